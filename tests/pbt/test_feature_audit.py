"""Importance finds the one feature that a planted policy trades on."""

from collections.abc import Mapping

import numpy as np
import torch

from algos.policy import Policy
from envs.mapping import ActionMap
from envs.market import PairMarket
from pbt.feature_audit import importance
from rayconf import RunConfig

PAIR, FEATURE = "SYNA/SYNB", "spread_z_20"


def test_what_a_policy_trades_on_is_important_and_nothing_else(
    tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]
) -> None:
    market = tiny_markets[PAIR]
    names = market.scaler.names
    weight = torch.zeros(2, len(names) + 2)
    weight[:, names.index(FEATURE)] = torch.tensor([-1.0, 1.0])
    policy = Policy(
        [(weight, torch.zeros(2))],
        activation="tanh",
        action_map=ActionMap.of(tiny_run),
        feature_names=names,
    )
    losses = importance(tiny_run, market, [policy], repeats=4, seed=0)
    column = names.index(FEATURE)
    assert losses[column].min() > 0
    assert losses[column].mean() > 0.5  # of a Sharpe ratio, on a market that reverts
    assert np.ptp(losses[column]) > 0
    assert not np.delete(losses, column, axis=0).any()
    again = importance(tiny_run, market, [policy], repeats=4, seed=0)
    assert (losses == again).all()
