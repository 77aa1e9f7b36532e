"""Policies that train on many markets: the same bits twice, and other ones on another universe."""

from collections.abc import Callable

import pytest
import torch

from algos.pair_ppo import PairPPO


@pytest.mark.parametrize("encoder", ["mlp", "factored", "conv"])
def test_a_policy_trains_on_a_universe(build: Callable[..., PairPPO], encoder: str) -> None:
    settings = (
        f"network.encoder={encoder}",
        "network.encoder_window=8",
        "universe.pairs=SYNC/SYND,SYNE/SYNF",
        "env.mapping=residual",
        "augment.histories=1",
        "augment.volatility=2",
        "augment.aggregation=1.5",
        "augment.lags=1",
    )
    states = []
    for extra in ((), (), ("universe.pairs=SYNC/SYND",)):
        algorithm = build(*settings, *extra)
        algorithm.train()
        states.append(algorithm.boundary_state())
    same, other = (
        all(torch.equal(states[0][name], states[i][name]) for name in states[0] if name.startswith("module/pi"))
        for i in (1, 2)
    )
    assert same
    assert not other
    assert all(bool(torch.isfinite(tensor).all()) for tensor in states[0].values())
