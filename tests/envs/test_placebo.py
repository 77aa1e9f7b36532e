"""Shuffled days keep what days are and lose what they say about one another."""

import numpy as np
import pytest
import torch

from envs.bars import Bars
from envs.ledger import Terms
from envs.market import load_legs, load_markets
from envs.placebo import shuffled_days
from envs.replay import replay
from envs.synthetic import synthetic_pair
from pbt.baselines import TEXTBOOK, z_score_targets
from rayconf import RunConfig, UserError, load_config


@pytest.fixture(scope="module")
def legs() -> tuple[Bars, Bars]:
    run = load_config("study", assignments=["synthetic.bars=4000"])
    return synthetic_pair(run.data.pairs[0], run.synthetic)


def moves(bars: Bars) -> np.ndarray:
    prices = np.stack([bars.open, bars.high, bars.low, bars.close], axis=1)[1:]
    return np.column_stack((np.log(prices / bars.close[:-1, None]), bars.volume[1:]))


def test_days_stay_whole_and_shared(legs: tuple[Bars, Bars]) -> None:
    dealt = shuffled_days(*legs, 3)
    before, after = (np.hstack([moves(leg) for leg in both]) for both in (legs, dealt))
    assert not np.allclose(before, after, atol=1e-6)
    # The same rows, both legs' moves of a day side by side, in another order.
    old, new = (values[np.lexsort(values.round(9).T)] for values in (before, after))
    np.testing.assert_allclose(new, old, atol=1e-9)
    for was, now in zip(legs, dealt, strict=True):
        assert (now.dates == was.dates).all()
        assert now.close[0] == was.close[0]
        assert now.close[-1] == pytest.approx(was.close[-1])
        assert (now.high >= np.maximum(now.open, now.close)).all()
        assert (now.low <= np.minimum(now.open, now.close)).all()


def test_a_seed_is_one_order_for_all_pairs(legs: tuple[Bars, Bars]) -> None:
    a, b = legs
    assert (shuffled_days(a, b, 3)[0].close == shuffled_days(a, b, 3)[0].close).all()
    assert (shuffled_days(a, b, 3)[0].close != shuffled_days(a, b, 4)[0].close).any()
    late = slice(500, None)  # a leg that was listed later
    whole, part = shuffled_days(a, b, 3)[0], shuffled_days(a, b.select(late), 3)[0]
    common = moves(a)[500:, 3]  # moves of the common days but the first
    where = [np.flatnonzero(np.isin(moves(leg)[:, 3].round(9), common.round(9))) for leg in (whole, part)]
    ordered = [moves(leg)[rows, 3] for leg, rows in zip((whole, part), where, strict=True)]
    np.testing.assert_allclose(ordered[0], ordered[1], atol=1e-8)


def test_days_of_intraday_bars_keep_their_inside() -> None:
    rng = np.random.default_rng(5)
    dates = (np.datetime64("2024-01-01T14:00", "us") + np.arange(40) * np.timedelta64(1, "D"))[:, None]
    dates = (dates + np.arange(3) * np.timedelta64(1, "h")).ravel()
    close = np.exp(np.cumsum(0.01 * rng.standard_normal(120)))
    bars = Bars("A", dates, close, close, close, close, np.arange(120.0))
    dealt, _ = shuffled_days(bars, bars, 0)
    days = dealt.volume.reshape(40, 3)
    assert (np.diff(days, axis=1) == 1).all()
    assert (days[0] == [0, 1, 2]).all()
    assert sorted(days[:, 0]) == list(range(0, 120, 3))
    assert (days[:, 0] != np.arange(0, 120, 3)).any()


def rule_sharpe(run: RunConfig) -> float:
    """Sharpe ratio of the textbook rule over train."""
    (market,) = load_markets(run).values()
    record = replay(
        market,
        market.splits["train"],
        None,
        Terms.from_costs(run.costs),
        run.env.lag,
        batch=1,
        leverage=run.costs.leverage,
        recorded=list(torch.from_numpy(z_score_targets(market, (TEXTBOOK,), 1.0))),
    )
    returns = record.net_return[:, 0]
    return float(returns.mean() / returns.std() * np.sqrt(252))


def test_what_a_rule_earns_by_time_is_gone() -> None:
    sharpes = [
        rule_sharpe(load_config("study", assignments=["synthetic.bars=12000", f"data.placebo={kind}"]))
        for kind in ("none", "shuffled_days")
    ]
    assert sharpes[0] > 0.7
    assert abs(sharpes[1]) < 0.5  # standard error 0.2 over 28 years


def test_a_run_on_a_placebo_says_so() -> None:
    run = load_config("smoke", assignments=["data.placebo=shuffled_days", "data.placebo_seed=2"])
    plain = load_config("smoke")
    assert run.identity != plain.identity
    for pair, market in load_markets(run).items():
        assert any("placebo" in note for note in market.notes)
        assert (market.close != load_markets(plain)[pair].close).any()
        assert (load_legs(run)[pair][0].close == market.close[:, 0]).all()
    with pytest.raises(UserError, match=r"data\.placebo"):
        load_config("smoke", assignments=["data.placebo=shuffled"])
