"""Where there can be no machines, or nobody asked for them, their tests say why."""

import pytest

from tests.fleet.rack import missing


@pytest.fixture(autouse=True)
def _possible(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("fleet_aws") and "fleet_aws" not in request.config.option.markexpr:
        pytest.skip("`make test-cluster` runs it")
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _alone(_possible: None) -> None:
    """Launches bring their own Ray."""
    import ray

    ray.shutdown()
