"""A small run on the embedded market, shared by the tests of this room."""

from collections.abc import Mapping

import pytest

from envs.market import PairMarket, load_markets
from rayconf import RunConfig, load_config

TINY = (
    "synthetic.bars=1600",
    "ppo.num_envs=64",
    "ppo.rollout_steps=16",
    "ppo.minibatch_size=512",
    "network.hidden=[16, 16]",
    "pbt.population=3",
    "pbt.iterations=2",
    "pbt.interval=1",
    "resources.object_store_mb=100",
)


@pytest.fixture(scope="session")
def tiny_run() -> RunConfig:
    return load_config("smoke", assignments=[*TINY, "seed=7"])


@pytest.fixture(scope="session")
def tiny_markets(tiny_run: RunConfig) -> Mapping[str, PairMarket]:
    return load_markets(tiny_run)
