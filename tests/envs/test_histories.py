"""Histories vary as they say, each by a draw of its own, and without a look beyond the border of validation."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings

from envs.bars import is_intraday
from envs.batched import BatchedPairTrading
from envs.features import lookback
from envs.histories import aggregate_starts, aggregated, delayed, histories, log_uniform, stationary_rows
from envs.market import Borders, PairMarket, build_market
from envs.placebo import dealt
from envs.prior import PRIOR_COLUMNS, vol_target_scale
from envs.training_bars import TrainingBars
from envs.universe import universe_of
from rayconf.errors import UserError
from rayconf.keys import derive_key
from rayconf.loading import build_config
from rayconf.run_config import RunConfig
from tests.envs.conftest import make_bars, make_market, make_run, weekday_dates
from tests.envs.test_placebo import moves
from tests.envs.test_universe import BORDERS, legs

PAIR = "AAA/BBB"
PRICES = ("open", "high", "low", "close")


def made_of(run: RunConfig) -> tuple[PairMarket, list[PairMarket]]:
    """A market and its histories."""
    a, b = legs()[PAIR]
    market = build_market(PAIR, a, b, run, BORDERS)
    return market, histories(market, a, b, run, BORDERS)


def varied(**augment: float) -> RunConfig:
    return make_run({"augment": {"histories": 4, "block": 20, **augment}})


@pytest.fixture(scope="module")
def plain() -> list[PairMarket]:
    return made_of(varied())[1]


def test_a_history_without_variation_is_the_bootstrap_alone(plain: list[PairMarket]) -> None:
    run = varied()
    a, b = (leg.before(BORDERS.validation) for leg in legs()[PAIR])
    market = build_market(PAIR, *legs()[PAIR], run, BORDERS)
    for number, made in enumerate(plain):
        rng = np.random.default_rng(derive_key(run.seed, PAIR, "history", number))
        rows = 1 + stationary_rows(rng, len(a) - 1, 20)
        slow = build_market(PAIR, dealt(a, rows), dealt(b, rows), run, BORDERS, market.scaler)
        for name in ("features", "fill", "close", "dates"):
            np.testing.assert_array_equal(getattr(made, name), getattr(slow, name))


def test_variation_reads_no_bar_from_the_border_on() -> None:
    run = varied(volatility=2, aggregation=1.5, lags=2)
    found, shifted = (universe_of({PAIR: legs(shift)[PAIR]}, run, BORDERS)[0] for shift in (0.0, 0.3))
    for name in ("features", "steps", "dates"):
        np.testing.assert_array_equal(getattr(found, name), getattr(shifted, name))


# --- volatility -----------------------------------------------------------------------------------------------------


def test_log_moves_of_both_legs_are_multiplied_by_one_number_per_history(plain: list[PairMarket]) -> None:
    _, louder = made_of(varied(volatility=2))
    factors = []
    for was, made in zip(plain, louder, strict=True):
        ratio = [
            np.log(getattr(m, name)[1:] / m.close[:-1]).std(axis=0) for name in ("close", "fill") for m in (made, was)
        ]
        factors.append(ratio[0][0] / ratio[1][0])
        np.testing.assert_allclose([ratio[0] / ratio[1], ratio[2] / ratio[3]], factors[-1], rtol=1e-9)
        assert 0.5 <= factors[-1] <= 2
        np.testing.assert_array_equal(made.dates, was.dates)
    assert len(set(factors)) == 4


@pytest.mark.parametrize("factor", [0.5, 1.7])
def test_the_path_within_a_day_is_multiplied_too(factor: float) -> None:
    bars = make_bars("AAA", weekday_dates(300), 1)
    rows = 1 + stationary_rows(np.random.default_rng(0), 299, 20)
    was, made = moves(dealt(bars, rows)), moves(dealt(bars, rows, factor))
    np.testing.assert_allclose(made[:, :4], factor * was[:, :4], atol=1e-12)
    np.testing.assert_array_equal(made[:, 4], was[:, 4])


def test_factors_are_log_uniform() -> None:
    rng = np.random.default_rng(0)
    drawn = np.log([log_uniform(rng, 1 / 3, 3) for _ in range(5000)]) / np.log(3)
    assert np.abs(np.histogram(drawn, bins=4, range=(-1, 1))[0] / 5000 - 0.25).max() < 0.025
    assert log_uniform(rng, 1, 1) == 1


# --- temporal aggregation -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(count=st.integers(2, 300), length=st.floats(1, 5), fill=st.sampled_from(["open", "close"]))
def test_joined_bars_are_those_of_pandas(count: int, length: float, fill: str) -> None:
    bars = make_bars("AAA", weekday_dates(count), 1)
    starts = aggregate_starts(np.random.default_rng(count), bars, length)
    made = aggregated(bars, starts, fill)
    frame = pd.DataFrame({name: getattr(bars, name) for name in ("dates", *PRICES, "volume")})
    run = np.isin(np.arange(count), starts).cumsum()
    how = dict(zip(PRICES, ("first", "max", "min", "last"), strict=True))
    slow = frame.groupby(run).agg({"dates": "first" if fill == "open" else "last", **how, "volume": "sum"})
    for name in ("dates", *PRICES):
        np.testing.assert_array_equal(getattr(made, name), slow[name].to_numpy())
    np.testing.assert_allclose(made.volume, slow["volume"], rtol=1e-12)
    assert set(np.diff(starts)) <= {int(length), int(length) + 1}


def test_runs_have_the_mean_length_that_is_asked_for() -> None:
    bars = make_bars("AAA", weekday_dates(6000), 1)
    starts = aggregate_starts(np.random.default_rng(0), bars, 1.6)
    assert len(bars) / len(starts) == pytest.approx(1.6, rel=0.02)


def test_an_aggregated_history_is_the_same_one_in_fewer_bars(plain: list[PairMarket]) -> None:
    run = varied(aggregation=1.9)
    _, coarse = made_of(run)
    lengths = []
    for was, made in zip(plain, coarse, strict=True):
        kept = np.isin(was.close[:, 0], made.close[:, 0])
        np.testing.assert_array_equal(was.close[kept], made.close)
        assert set(made.dates) < set(was.dates)
        assert made.years.sum() == pytest.approx((made.dates[-1] - made.dates[0]) / np.timedelta64(365, "D"))
        lengths.append(len(was.dates) / len(made.dates))
        assert made.bars_per_year == pytest.approx(252 / lengths[-1])
        assert made.splits["train"].rows > 252
    assert 1 < min(lengths) < max(lengths) < 1.95


def test_a_short_market_stays_long_enough_to_train_on() -> None:
    run, border = varied(aggregation=5, histories=6), Borders(weekday_dates(700)[-1], weekday_dates(900)[-1])
    a, b = (make_bars(name, weekday_dates(1200), seed) for seed, name in enumerate(("AAA", "BBB")))
    market = build_market(PAIR, a, b, run, border)
    rows = [made.splits["train"].rows for made in histories(market, a, b, run, border)]
    assert 225 < min(rows) < max(rows) < 447, "252, up to the draw of runs, of 446"


def test_a_prior_aims_at_a_volatility_per_year() -> None:
    run = make_run(
        {"augment": {"histories": 1, "aggregation": 1.8}, "features": {"prior": "vol_target"}}, mapping="residual"
    )
    _, (made,) = made_of(run)
    features = run.features
    assert features.prior_volatility
    assert features.prior_half_life
    scale = vol_target_scale(made.close, features.prior_volatility, features.prior_half_life, made.bars_per_year)
    first = lookback(features) - 1
    assert made.prior is not None
    np.testing.assert_allclose(made.prior[first:, 0], 0.5 * scale[first:], rtol=1e-6)
    assert made.bars_per_year < 240


def test_intraday_bars_are_joined_within_their_session() -> None:
    days = np.datetime64("2024-01-01T14:00", "us") + np.arange(60) * np.timedelta64(1, "D")
    dates = (days[:, None] + np.arange(7) * np.timedelta64(1, "h")).ravel()
    bars = make_bars("AAA", dates, 1)
    starts = aggregate_starts(np.random.default_rng(0), bars, 2.5)
    assert set(range(0, len(bars), 7)) <= set(starts)
    assert is_intraday(aggregated(bars, starts, "open").dates)


def test_a_volume_that_no_file_holds_stays_one() -> None:
    bars = replace(make_bars("AAA", weekday_dates(50), 1), volume=np.ones(50))
    assert set(aggregated(bars, np.array([0, 1, 3, 20]), "close").volume) == {1.0}


# --- lags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapping", ["direct", "residual"])
def test_a_delayed_market_is_one_with_more_lag(mapping: str) -> None:
    market, more, window = make_market(crashes=0.01), 2, 4
    market = replace(market, scaler=replace(market.scaler, names=("0", "1", "2", *PRIOR_COLUMNS)))
    features = {"features": {"prior": "vol_target"}}
    late = TrainingBars.joined([market, delayed(market, more)], 1 + window)
    real = TrainingBars.joined([market, market], 1 + more + window)
    whole = [bars.features[slice(*bars.blocks[1])] for bars in (late, real)]
    np.testing.assert_array_equal(whole[0], whole[1][: len(whole[0])], "with what an encoder reads before")
    runs = [make_run(features, mapping=mapping, lag=lag, train_cost_bps=7.0) for lag in (1, 1 + more)]
    envs = []
    for run, bars in zip(runs, (late, real), strict=True):
        # the second market alone: the first has other lags in the two
        trained = replace(market, training=replace(bars, spans=bars.spans[1:], pairs=bars.pairs[1:]))
        envs.append(BatchedPairTrading(trained, run, 64, generator=torch.Generator().manual_seed(0)))
    seen = [env.reset()[:, :5] for env in envs]
    ended = 0
    for _ in range(60):
        assert torch.equal(*seen)
        steps = [env.step(torch.tanh(features[:, 1:3])) for env, features in zip(envs, seen, strict=True)]
        for name in ("log_growth", "reward", "terminated", "truncated"):
            assert torch.equal(*(getattr(step, name) for step in steps)), name
        seen = [step.observation[:, :5] for step in steps]
        ended += int((steps[0].terminated | steps[0].truncated).sum())
    assert ended > 64


def test_each_history_draws_its_lag(plain: list[PairMarket]) -> None:
    market, late = made_of(varied(lags=2))
    drawn = []
    for was, made in zip(plain, late, strict=True):
        fits = [bars for bars in range(3) if np.array_equal(delayed(was, bars).features, made.features)]
        assert len(fits) == 1
        drawn += fits
        np.testing.assert_array_equal(made.fill, was.fill)
    assert len(set(drawn)) > 1
    assert not np.array_equal(market.features[:1000], late[0].features)


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"volatility": 1.5}, r"augment: volatility 1\.5 varies resampled histories; set histories to 1 or more"),
        ({"aggregation": 2}, "augment: aggregation 2 varies"),
        ({"lags": 1}, "augment: lags 1 varies"),
        ({"histories": 1, "volatility": 0.5}, r"augment\.volatility"),
    ],
)
def test_variations_that_cannot_be_are_refused(augment: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config({"augment": augment})


def test_a_burn_in_that_the_longest_lag_leaves_no_features_is_refused() -> None:
    a, b = legs()[PAIR]
    run = make_run({"augment": {"histories": 1, "lags": 20}})
    with pytest.raises(UserError, match=r"split\.burn: 252 is below \d+ = longest feature window plus longest lag"):
        build_market(PAIR, a, b, run, BORDERS)
