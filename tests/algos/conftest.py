"""A run small enough that an update takes a tenth of a second."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from algos.config import PairPPOConfig
from algos.pair_ppo import PairPPO
from rayconf.loading import load_config
from rayconf.run_config import RunConfig

SMALL = (
    "data.pairs=[SYNA/SYNB]",
    "network.hidden=[16, 16]",
    "ppo.num_envs=32",
    "ppo.rollout_steps=16",
    "ppo.minibatch_size=128",
    "ppo.epochs=2",
    "env.episode_bars=12",
    "optimizer.learning_rate=0.003",
)
BASE = "stages.base=runs/base"
"""For what needs a base checkpoint: the initial weights of an algorithm that is given no state stand for the base's."""
LEASH = (BASE, "optimizer.pull=30")


def small_run(*assignments: str) -> RunConfig:
    return load_config("smoke", assignments=[*SMALL, *assignments])


def small_config(*assignments: str, **training: Any) -> PairPPOConfig:
    run = small_run(*assignments)
    return PairPPOConfig.from_run(run, run.data.pairs[0]).training(**training)


@pytest.fixture
def build(ray_session: None) -> Iterator[Callable[..., PairPPO]]:
    """Builds algorithms and stops them after the test."""
    built: list[PairPPO] = []

    def _build(*assignments: str, config: PairPPOConfig | None = None, **training: Any) -> PairPPO:
        built.append((config or small_config(*assignments, **training)).build_algo())
        return built[-1]

    yield _build
    for algorithm in built:
        algorithm.stop()
