"""Where there can be no machines, their tests say why."""

import pytest

from tests.fleet.rack import missing


@pytest.fixture(scope="session", autouse=True)
def _alone() -> None:
    """Launches bring their own Ray."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    import ray

    ray.shutdown()
