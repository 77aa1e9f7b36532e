"""Importance finds the one feature that a planted policy trades on; a planted extreme and planted shifts are dated."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from algos.policy import Policy
from envs.features import volatility_of
from envs.mapping import ActionMap
from envs.market import PairMarket, build_market, load_legs
from pbt.feature_audit import audit_features, importance
from rayconf import RunConfig

PAIR, FEATURE = "SYNA/SYNB", "spread_z_20"


def linear(run: RunConfig, names: tuple[str, ...], weights: tuple[float, float]) -> Policy:
    """A policy without hidden layers that reads ``FEATURE`` alone, by one weight per leg."""
    weight = torch.zeros(2, len(names) + 2)
    weight[:, names.index(FEATURE)] = torch.tensor(weights)
    return Policy([(weight, torch.zeros(2))], activation="tanh", action_map=ActionMap.of(run), feature_names=names)


def test_what_a_policy_trades_on_is_important_and_nothing_else(
    tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]
) -> None:
    market = tiny_markets[PAIR]
    names = market.scaler.names
    policy = linear(tiny_run, names, (-1.0, 1.0))
    losses = importance(tiny_run, market, [policy], repeats=4, seed=0)
    column = names.index(FEATURE)
    assert losses[column].min() > 0
    assert losses[column].mean() > 0.5  # of a Sharpe ratio, on a market that reverts
    assert np.ptp(losses[column]) > 0
    assert not np.delete(losses, column, axis=0).any()
    again = importance(tiny_run, market, [policy], repeats=4, seed=0)
    assert (losses == again).all()


def test_a_planted_extreme_and_planted_shifts_are_told_with_their_dates(tiny_run: RunConfig) -> None:
    """Wider bars from one day on, wider gaps from another, and one bar whose low is a misprint."""
    a, b = load_legs(tiny_run)[PAIR]
    clean = build_market(PAIR, a, b, tiny_run)
    train, validation = clean.splits["train"], clean.splits["validation"]
    wider, gapped = train.start + train.rows // 2, train.start + 2 * train.rows // 3
    misprint = validation.start + validation.rows // 3
    bar, before = np.arange(len(a)), np.r_[a.close[0], a.close[:-1]]
    volatility = volatility_of(np.log(a.close), tiny_run.features)
    high = a.high * np.where(bar >= wider, np.exp(2 * volatility), 1.0)
    low = np.where(bar == misprint, a.low / 2, a.low)
    opened = before * (a.open / before) ** np.where(bar >= gapped, 4, 1)
    planted = replace(a, open=opened, high=high, low=low)
    market = build_market(PAIR, planted, b, tiny_run)
    finished = SimpleNamespace(
        run=tiny_run,
        forecasts=None,
        markets=lambda: {PAIR: market},
        legs=lambda: {PAIR: (planted, b)},
        policies=lambda _: {"survivor-1": linear(tiny_run, market.scaler.names, (-1.0, 1.0))},
    )
    reports = audit_features(finished, PAIR, ["validation"], 1, 0)  # type: ignore[arg-type]
    found = {report.name: report for report in reports}

    wide, span = found["a_range"], slice(train.start, validation.stop)
    column = market.scaler.names.index("a_range")
    ranges = np.log(high / low) / volatility
    assert wide.worst_bar == a.dates[misprint]
    assert wide.worst == pytest.approx((ranges[misprint] - market.scaler.mean[column]) / market.scaler.scale[column])
    assert wide.worst > market.scaler.limit
    assert wide.extreme == {"train": 0.0, "validation": 1 / (validation.stop - validation.start)}
    ((date, shift),) = wide.level_shifts
    cut = int(np.searchsorted(a.dates, date))
    assert abs(cut - wider) <= 5
    assert shift.before == pytest.approx(ranges[train.start : cut].mean())
    assert shift.after == pytest.approx(ranges[cut : validation.stop].mean())

    gap, gaps = found["a_gap"], np.log(opened / before) / volatility
    assert gap.level_shifts == ()
    ((date, shift),) = gap.spread_shifts
    cut, spread = int(np.searchsorted(a.dates, date)), np.abs(gaps - np.median(gaps[span]))
    assert abs(cut - gapped) <= 5
    assert shift.before == pytest.approx(spread[train.start : cut].mean())
    assert shift.after == pytest.approx(spread[cut : validation.stop].mean())
