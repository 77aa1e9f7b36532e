"""Fixtures that all rooms share: the real data beside the checkout, one Ray for the session, small markets."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch

# no test is one of speed, whatever else the machine does
settings.register_profile("no-deadline", parent=settings.default, deadline=None)
settings.load_profile("no-deadline")
# In the background a shell's commands ignore SIGINT, and so would every run that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Faults and clusters come last: they end the session's Ray, and what else is broken shows sooner."""
    items.sort(key=lambda item: [item.get_closest_marker(name) is not None for name in ("fleet", "faults")])


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the checkout")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real prices, for tests only."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real prices in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small Ray for all in-process tests."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def alone() -> None:
    """Commands bring their own Ray; the session's has done its work."""
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny run by the real command on two CPUs, for every test that only looks at it."""
    from tests.commands import launch, tiny

    folder = tmp_path_factory.mktemp("undisturbed")
    done = launch(*tiny(folder, "--set", "resources.cpus=2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"report {folder / 'tiny' / 'report.html'}"
    assert "ensemble" in done.stdout
    assert done.stdout.count("generation 2/2") == 2  # one plain line per pair and generation without a terminal
    assert done.stdout.count("time: ") == 2 * 2 + 1  # with each of them, and at the end
    assert "Trial " not in done.stdout, "Tune keeps its progress to itself"
    return folder / "tiny"
