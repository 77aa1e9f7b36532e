"""Baselines against slow references, and their causality."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from envs.market import PairMarket
from pbt.baselines import (
    TEXTBOOK,
    Z_GRID,
    ZScoreRule,
    baseline_targets,
    fit_z_score,
    spread_positions,
    vol_target_scale,
    z_score_targets,
)
from rayconf import RunConfig


def slow_rule(z: np.ndarray, rule: ZScoreRule) -> list[int]:
    """The rule in words, bar by bar."""
    position, out = 0, []
    for value in z:
        if np.isnan(value):
            out.append(position)
            continue
        if position == 0:
            position = -1 if value > rule.entry else 1 if value < -rule.entry else 0
        else:
            if position == 1 and value > rule.entry:
                position = -1
            elif position == -1 and value < -rule.entry:
                position = 1
            elif abs(value) < rule.exit or value * position > 0:
                position = 0
        out.append(position)
    return out


def test_rule_matches_the_slow_state_machine() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    z = np.cumsum(0.4 * rng.standard_normal(4000))
    z = 3 * np.sin(z / 3) + 0.5 * rng.standard_normal(4000)
    z[:19] = np.nan
    fast = spread_positions(np.tile(z[:, None], len(Z_GRID)), Z_GRID)
    for column, rule in enumerate(Z_GRID):
        assert fast[:, column].tolist() == slow_rule(z, rule)
    assert {-1.0, 0.0, 1.0} == set(np.unique(fast))


def test_z_score_weights_are_neutral_at_half_the_gross(tiny_markets: Mapping[str, PairMarket]) -> None:
    market = tiny_markets["SYNA/SYNB"]
    targets = z_score_targets(market, (TEXTBOOK,), 1.5)[0]
    spread = np.log(market.close[:, 0] / market.close[:, 1])
    t = 700
    windows = np.lib.stride_tricks.sliding_window_view(spread[: t + 1], 60)
    z = (windows[:, -1] - windows.mean(axis=1)) / windows.std(axis=1, ddof=1)
    positions = slow_rule(z, TEXTBOOK)
    assert targets[t].tolist() == [0.75 * positions[-1], -0.75 * positions[-1]]
    np.testing.assert_array_equal(targets[:, 0], -targets[:, 1])


def test_volatility_target_matches_a_loop(tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]) -> None:
    market = tiny_markets["SYNA/SYNB"]
    change = (market.close[1:] / market.close[:-1] - 1).mean(axis=1)
    expected = []
    for t in range(len(change)):
        past = change[max(0, t - 199) : t + 1][::-1]  # ten half-lives
        variance = np.average(past**2, weights=0.5 ** (np.arange(len(past)) / 20))
        expected.append(min(1.0, 0.15 / np.sqrt(252 * variance)))
    np.testing.assert_allclose(vol_target_scale(market, tiny_run)[1:], expected, rtol=1e-9)


def test_no_baseline_reads_a_later_bar(tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]) -> None:
    market = tiny_markets["SYNA/SYNB"]
    cut = 900
    later = np.arange(len(market.dates))[:, None] > cut
    shaken = replace(market, close=np.where(later, market.close * np.array([[1.3, 1.0]]), market.close))
    before = baseline_targets(market, tiny_run, TEXTBOOK, (0.2, -0.1))
    after = baseline_targets(shaken, tiny_run, TEXTBOOK, (0.2, -0.1))
    changed = set()
    for name in before:
        np.testing.assert_array_equal(before[name][: cut + 1], after[name][: cut + 1])
        if not np.array_equal(before[name], after[name]):
            changed.add(name)
    assert {"vol_target", "zscore"} <= changed


def test_fitting_reads_train_alone(tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]) -> None:
    market = tiny_markets["SYNA/SYNB"]
    later = np.arange(len(market.dates))[:, None] >= market.splits["train"].stop
    shaken = replace(
        market,
        close=np.where(later, market.close[::-1], market.close),
        fill=np.where(later, market.fill[::-1], market.fill),
    )
    assert fit_z_score(market, tiny_run) == fit_z_score(shaken, tiny_run)
    assert fit_z_score(market, tiny_run) in Z_GRID
