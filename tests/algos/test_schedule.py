"""Schedule and averaged weights where PBT moves the number of gradient steps: counted in progress, not in steps."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from algos.config import PairPPOConfig
from algos.pair_ppo import PairPPO
from tests.algos.conftest import small_run

Build = Callable[..., PairPPO]
SPACE = {
    "epochs": {"path": "ppo.epochs", "low": 1, "high": 6, "scale": "integer"},
    "rows": {"path": "ppo.minibatch_size", "scale": "categorical", "choices": [64, 128, 256]},
}
RUN = small_run(f"search={SPACE}", "pbt.iterations=4", "optimizer.warmup_fraction=0.25", "optimizer.ema_half_life=0.5")
CHAINS = [
    [(2, 128), (2, 128), (2, 128), (2, 128)],
    [(5, 64), (1, 256), (2, 128), (6, 64)],
    [(1, 256), (6, 64), (3, 256), (1, 128)],
]


def share_of_peak(progress: float) -> float:
    """The schedule as a function of progress alone, for the finest steps of this run: 48 an update."""
    finest = 1 / (4 * 48)
    if progress < 0.25 - 1e-12:
        return (progress + finest) / 0.25
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (progress - 0.25) / 0.75))


@pytest.mark.parametrize("chain", CHAINS)
def test_progress_of_the_schedule_and_weight_of_the_past(build: Build, chain: list[tuple[int, int]]) -> None:
    """A state handed from member to member, each with epochs and minibatches of its own."""
    state: dict[str, Tensor] | None = None
    weight = 0.0
    for done, (epochs, rows) in enumerate(chain):
        run = RUN.with_values({"epochs": float(epochs), "rows": float(rows)})
        algorithm = build(config=PairPPOConfig.from_run(run, "SYNA/SYNB"))
        if state is not None:
            algorithm.load_boundary_state(state)
        learner = algorithm.learner_group._learner
        rates: list[float] = []
        apply = learner.apply_gradients

        def apply_seen(gradients: object, learner=learner, rates=rates, apply=apply) -> None:
            apply(gradients)
            rates.append(learner._own_optimizers["adamw"].param_groups[0]["lr"] / 0.003)

        learner.apply_gradients = apply_seen
        algorithm.train()
        steps = epochs * 512 // rows
        assert rates == pytest.approx([share_of_peak((done + i / steps) / 4) for i in range(steps)], rel=1e-9)
        state = algorithm.boundary_state()
        assert state["schedule/steps"] == 48 * (done + 1)
        weight = 0.25 * weight + 0.75  # an update is a generation: two half-lives, whatever its steps
        assert float(state["ema_weight"]) == pytest.approx(weight, rel=1e-9)


def test_where_steps_do_not_move_the_schedule_counts_them(build: Build) -> None:
    """And going on in one process equals going on from the boundary, also between coarser steps."""
    algorithm = build("pbt.iterations=4")
    algorithm.train()
    assert algorithm.boundary_state()["schedule/steps"] == 8
    first = build(config=PairPPOConfig.from_run(RUN.with_values({"epochs": 5.0, "rows": 256.0}), "SYNA/SYNB"))
    first.train()
    boundary = first.boundary_state()
    first.reseed(7)
    first.train()
    other = build(config=first.config.copy(copy_frozen=False).training(key=5))
    other.load_boundary_state(boundary)
    other.reseed(7)
    other.train()
    states = first.boundary_state(), other.boundary_state()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
