"""Features: no look-ahead (and planted leaks are caught), slow references, invariances."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.bars import Bars, Dates, is_intraday, join_bars, load_bars
from envs.features import compute_features, feature_names, lookback
from envs.scaler import Scaler
from rayconf import UserError
from rayconf.sections import DataConfig, FeaturesConfig

DEFAULT = FeaturesConfig()
SMALL = FeaturesConfig(
    return_horizons=(1, 5),
    z_windows=(5, 12),
    volatility_window=6,
    regime_window=20,
    hedge_window=10,
    volume_window=8,
)
# Raw bars of two tickers in, the dates of the rows and their features out.
Pipeline = Callable[[Bars, Bars], tuple[Dates, np.ndarray]]


def random_bars(ticker: str, seed: int, dates: Dates) -> Bars:
    """A random walk with gaps, ranges, and jumps in a hundredth of the bars."""
    generator = np.random.default_rng([seed, *ticker.encode()])
    count = len(dates)
    scale = 0.01 * np.where(generator.random(count) < 0.01, 10, 1)
    gap, move = generator.normal(0, 0.5, count) * scale, generator.normal(0, 1, count) * scale
    close = 50 * np.exp(np.cumsum(gap + move))
    opened = close * np.exp(-move)
    high = np.maximum(opened, close) * np.exp(np.abs(generator.normal(0, 0.3, count)) * scale)
    low = np.minimum(opened, close) * np.exp(-np.abs(generator.normal(0, 0.3, count)) * scale)
    volume = np.round(np.exp(generator.normal(10, 1, count))) * (generator.random(count) > 0.02)
    return Bars(ticker, dates.astype("datetime64[us]"), opened, high, low, close, volume)


def daily(count: int) -> Dates:
    return np.busday_offset("2001-01-01", np.arange(count), roll="forward").astype("datetime64[us]")


def hourly(days: int) -> Dates:
    """Seven bars a session, which opens an hour earlier in the second half (daylight saving)."""
    opening = np.where(np.arange(days) < days // 2, 14, 13)
    hours = (opening[:, None] + np.arange(7)).astype("timedelta64[h]")
    return (daily(days)[:, None] + hours).ravel()


def with_holes(bars: Bars, seed: int) -> Bars:
    """The bars without a fiftieth of them, as a halted instrument has."""
    return bars.select(np.random.default_rng(seed).random(len(bars)) > 0.02)


def pipeline(config: FeaturesConfig) -> Pipeline:
    def run(a: Bars, b: Bars) -> tuple[Dates, np.ndarray]:
        a, b, _ = join_bars(a, b)
        return a.dates, compute_features(a, b, config)

    return run


def shaken(bars: Bars, after: np.datetime64, seed: int) -> Bars:
    """Every number of every bar later than ``after`` changed at random (high stays above low)."""
    late = bars.dates > after
    generator = np.random.default_rng(seed)

    def change(values: np.ndarray) -> np.ndarray:
        return np.where(late, values * np.exp(generator.normal(0, 0.2, len(values))), values)

    high, low = change(bars.high), change(bars.low)
    high, low = np.maximum(high, low), np.minimum(high, low)
    return Bars(bars.ticker, bars.dates, change(bars.open), high, low, change(bars.close), change(bars.volume))


def leaks(run: Pipeline, a: Bars, b: Bars, cuts: Iterable[np.datetime64]) -> list[str]:
    """What of the rows up to each cut changes, to the bit, when later bars are cut off or changed. Empty: causal."""
    dates, full = run(a, b)
    found = []
    for number, cut in enumerate(cuts):
        known = full[dates <= cut]
        truncated = run(a.select(a.dates <= cut), b.select(b.dates <= cut))
        perturbed = run(shaken(a, cut, number), shaken(b, cut, number + 1))
        for kind, (other_dates, other) in {"truncated": truncated, "perturbed": perturbed}.items():
            rows = other[other_dates <= cut]
            same = rows.shape == known.shape and np.array_equal(rows, known, equal_nan=True)
            if not same:
                found.append(f"{kind} at {cut}")
    return found


def cuts_of(dates: Dates, first: int, count: int, seed: int = 0) -> Dates:
    picked = np.random.default_rng(seed).choice(np.arange(first, len(dates) - 1), count, replace=False)
    return dates[np.unique([first, *picked, len(dates) - 2])]


CALENDARS = {"daily": daily(700), "hourly": hourly(100)}


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("config", [DEFAULT, SMALL])
def test_nothing_before_a_cut_depends_on_what_follows(calendar: str, config: FeaturesConfig) -> None:
    dates = CALENDARS[calendar]
    a, b = (with_holes(random_bars(ticker, 1, dates), seed) for ticker, seed in (("AAA", 2), ("BBB", 3)))
    # from 30 bars on: also inside the lookback, where rows must be NaN with or without a future
    assert leaks(pipeline(config), a, b, cuts_of(dates, 30, 60)) == []


@pytest.mark.parametrize(("folder", "pair"), [("daily", ("META", "SPY")), ("hourly_ibkr", ("AAPL", "AMZN"))])
def test_nothing_before_a_cut_depends_on_what_follows_on_real_prices(
    shared_data: Path, folder: str, pair: tuple[str, str]
) -> None:
    a, b = (load_bars(shared_data / folder, ticker, DataConfig()) for ticker in pair)
    assert leaks(pipeline(DEFAULT), a, b, cuts_of(a.dates, 260, 25)) == []


def test_scaled_features_depend_on_the_training_span_only() -> None:
    a, b = random_bars("AAA", 1, daily(600)), random_bars("BBB", 1, daily(600))
    assert leaks(_scaled(400), a, b, cuts_of(a.dates, 401, 20)) == []


def _scaled(train_stop: int | None) -> Pipeline:
    def run(a: Bars, b: Bars) -> tuple[Dates, np.ndarray]:
        first = lookback(SMALL) - 1
        values = compute_features(a, b, SMALL)
        names = feature_names(SMALL, is_intraday(a.dates))
        return a.dates, Scaler.fit(values[first:train_stop], names, SMALL).apply(values)

    return run


def _centred_window(a: Bars, b: Bars) -> tuple[Dates, np.ndarray]:
    dates, values = pipeline(SMALL)(a, b)
    a, b, _ = join_bars(a, b)
    spread = pd.Series(np.log(a.close / b.close))
    centred = (spread - spread.rolling(11, center=True).mean()).to_numpy()
    return dates, np.column_stack([values, centred])


def _next_open(a: Bars, b: Bars) -> tuple[Dates, np.ndarray]:
    dates, values = pipeline(SMALL)(a, b)
    a, _, _ = join_bars(a, b)
    fill_gap = np.append(np.log(a.open[1:] / a.close[:-1]), np.nan)  # the price the order is about to fill at
    return dates, np.column_stack([values, fill_gap])


def _back_filled_join(a: Bars, b: Bars) -> tuple[Dates, np.ndarray]:
    dates = np.union1d(a.dates, b.dates)

    def filled(bars: Bars) -> Bars:
        table = pd.DataFrame(
            {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}, index=bars.dates
        )
        return Bars(bars.ticker, dates, *table.reindex(dates).bfill().ffill().to_numpy().T)

    return dates, compute_features(filled(a), filled(b), SMALL)


def _whole_sample_mean(a: Bars, b: Bars) -> tuple[Dates, np.ndarray]:
    dates, values = pipeline(SMALL)(a, b)
    a, _, _ = join_bars(a, b)
    return dates, np.column_stack([values, np.log(a.close) - np.log(a.close).mean()])


LEAKS: dict[str, Pipeline] = {
    "centred window": _centred_window,
    "scaler fitted on everything": _scaled(None),
    "price of the coming fill": _next_open,
    "back-filled join": _back_filled_join,
    "mean over the whole sample": _whole_sample_mean,
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_caught(name: str) -> None:
    dates = daily(300)
    a, b = random_bars("AAA", 1, dates), random_bars("BBB", 1, dates)
    if name == "back-filled join":
        a, b = with_holes(a, 2), with_holes(b, 3)
    found = leaks(LEAKS[name], a, b, cuts_of(dates, 60, 60))
    assert any(text.startswith("truncated") for text in found)
    assert any(text.startswith("perturbed") for text in found)


def reference_row(a: Bars, b: Bars, t: int, config: FeaturesConfig) -> dict[str, float]:
    """The features of one bar, written from their definitions with loops and library statistics."""
    logs = {"a": np.log(a.close), "b": np.log(b.close)}
    logs["spread"] = logs["a"] - logs["b"]
    row: dict[str, float] = {}
    volatility = {}
    for side, log_price in logs.items():
        change = [log_price[i] - log_price[i - 1] for i in range(1, t + 1)]

        def rms(window: int, change: list[float] = change) -> float:
            return float(np.sqrt(np.mean(np.square(change[-window:]))))

        volatility[side] = rms(config.volatility_window)
        for h in config.return_horizons:
            row[f"{side}_return_{h}"] = (log_price[t] - log_price[t - h]) / (volatility[side] * h**0.5)
        row[f"{side}_volatility_regime"] = np.log(volatility[side] / rms(config.regime_window))
    for side, bars in (("a", a), ("b", b)):
        row[f"{side}_gap"] = np.log(bars.open[t] / bars.close[t - 1]) / volatility[side]
        row[f"{side}_range"] = np.log(bars.high[t] / bars.low[t]) / volatility[side]
        volume = bars.volume[t + 1 - config.volume_window : t + 1]
        logs_of_volume = np.log(np.maximum(volume, 0.01 * volume.mean()))
        row[f"{side}_volume"] = logs_of_volume[-1] - logs_of_volume.mean()
    for window in config.z_windows:
        part = logs["spread"][t + 1 - window : t + 1]
        row[f"spread_z_{window}"] = (part[-1] - part.mean()) / part.std(ddof=1)
    row["volatility_ratio"] = np.log(volatility["a"] / volatility["b"])
    span = slice(t - config.hedge_window, t + 1)
    returns_a, returns_b = np.diff(logs["a"][span]), np.diff(logs["b"][span])
    row["hedge_ratio"] = np.polyfit(returns_b, returns_a, 1)[0]
    row["correlation"] = np.corrcoef(returns_a, returns_b)[0, 1]
    stamps = pd.DatetimeIndex(a.dates)
    angle = 2 * np.pi * stamps[t].weekday() / 7
    row["day_sin"], row["day_cos"] = np.sin(angle), np.cos(angle)
    row["days_since_bar"] = (stamps[t] - stamps[t - 1]).total_seconds() / 86400
    first = min(stamp for stamp in stamps if stamp.date() == stamps[t].date())
    angle = 2 * np.pi * (stamps[t] - first).total_seconds() / 86400
    row["time_sin"], row["time_cos"] = np.sin(angle), np.cos(angle)
    return row


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("config", [DEFAULT, SMALL])
def test_features_equal_a_slow_reference(calendar: str, config: FeaturesConfig) -> None:
    dates = CALENDARS[calendar]
    a, b = random_bars("AAA", 5, dates), random_bars("BBB", 5, dates)
    values = compute_features(a, b, config)
    names = feature_names(config, calendar == "hourly")
    assert values.shape == (len(dates), len(names))
    for t in (lookback(config) - 1, lookback(config) + 1, 400, len(dates) - 1):
        expected = reference_row(a, b, t, config)
        for name, value in zip(names, values[t], strict=True):
            assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-9), (t, name)


def test_names_counts_and_lookback_of_the_default() -> None:
    names = feature_names(DEFAULT, intraday=True)
    assert len(names) == len(set(names)) == 37
    assert feature_names(DEFAULT, intraday=False) == names[:-2]
    assert feature_names(FeaturesConfig(calendar=False), intraday=True) == names[:-5]
    assert lookback(DEFAULT) == 250
    with pytest.raises(UserError, match=r"features\.z_windows: \[20, 20\]"):
        feature_names(FeaturesConfig(z_windows=(20, 20)), intraday=False)


windows = st.integers(5, 40)
configs = st.builds(
    FeaturesConfig,
    return_horizons=st.lists(st.integers(1, 40), max_size=3, unique=True).map(tuple),
    z_windows=st.lists(windows, max_size=3, unique=True).map(tuple),
    volatility_window=windows,
    regime_window=st.integers(20, 40),
    hedge_window=st.integers(10, 40),
    volume_window=windows,
    calendar=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(config=configs, seed=st.integers(0, 10**6))
def test_rows_are_complete_from_the_lookback_on_and_need_no_more(config: FeaturesConfig, seed: int) -> None:
    a, b = random_bars("AAA", seed, daily(90)), random_bars("BBB", seed, daily(90))
    values, need = compute_features(a, b, config), lookback(config)
    assert np.isnan(values[: need - 1]).all()
    assert np.isfinite(values[need - 1 :]).all()
    # the last row from the last ``need`` bars alone: the same bits, so the start of a file is of no account either
    tail = slice(len(a) - need, None)
    np.testing.assert_array_equal(compute_features(a.select(tail), b.select(tail), config)[-1], values[-1])
    # one bar less would leave something undefined
    short = slice(len(a) - need + 1, None)
    assert np.isnan(compute_features(a.select(short), b.select(short), config)).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    factor=st.floats(1e-4, 1e4),
    leg=st.sampled_from(["a", "b"]),
    volume_factor=st.floats(1e-4, 1e4),
)
def test_the_level_of_a_leg_changes_nothing(seed: int, factor: float, leg: str, volume_factor: float) -> None:
    legs = {"a": random_bars("AAA", seed, daily(90)), "b": random_bars("BBB", seed, daily(90))}
    before = compute_features(legs["a"], legs["b"], SMALL)
    x = legs[leg]
    prices = (price * factor for price in (x.open, x.high, x.low, x.close))
    legs[leg] = Bars(x.ticker, x.dates, *prices, x.volume * volume_factor)
    np.testing.assert_allclose(compute_features(legs["a"], legs["b"], SMALL), before, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("frozen", ["a", "b", "both", "twins"])
def test_still_prices_and_empty_volume_give_finite_features(frozen: str) -> None:
    dates = daily(300)
    still = Bars("AAA", dates, *(np.full(300, 0.1),) * 4, np.zeros(300))
    moving = random_bars("BBB", 1, dates)
    a, b = {
        "a": (still, moving),
        "b": (moving, still),
        "both": (still, still),
        "twins": (moving, moving),  # a spread that never moves
    }[frozen]
    values = compute_features(a, b, SMALL)[lookback(SMALL) - 1 :]
    assert np.isfinite(values).all()
    columns = dict(zip(feature_names(SMALL, False), values.T, strict=True))
    if frozen != "b":
        assert (columns["spread_z_12"] == 0).all() == (frozen in ("both", "twins"))
    if frozen in ("a", "both"):
        assert (columns["a_return_5"] == 0).all()
        assert (columns["a_volume"] == 0).all()
        assert (columns["correlation"] == 0).all()
    if frozen == "twins":
        np.testing.assert_allclose(columns["hedge_ratio"], 1)
        np.testing.assert_allclose(columns["correlation"], 1)


def test_one_wild_bar_leaves_no_trace_after_its_windows() -> None:
    a, b = random_bars("AAA", 1, daily(300)), random_bars("BBB", 1, daily(300))
    wild = a.close.copy()
    wild[100] *= 1e12
    other = Bars(a.ticker, a.dates, a.open, a.high, a.low, wild, a.volume)
    after = 100 + lookback(SMALL)
    before, with_wild = compute_features(a, b, SMALL), compute_features(other, b, SMALL)
    np.testing.assert_array_equal(with_wild[after:], before[after:])
    assert not np.array_equal(with_wild[after - 1], before[after - 1])


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21])
def test_too_few_bars_are_nan(count: int) -> None:
    a, b = random_bars("AAA", 1, daily(count)), random_bars("BBB", 1, daily(count))
    values = compute_features(a, b, SMALL)
    assert values.shape == (count, len(feature_names(SMALL, False)))
    assert np.isfinite(values[lookback(SMALL) - 1 :]).all()
    assert np.isnan(values[: lookback(SMALL) - 1]).all()


def test_legs_must_be_joined() -> None:
    a, b = random_bars("AAA", 1, daily(90)), random_bars("BBB", 1, daily(91))
    with pytest.raises(ValueError, match="join them first"):
        compute_features(a, b.select(slice(1, None)), SMALL)


def test_the_default_market_takes_less_than_a_second() -> None:
    dates = np.datetime64("1800-01-01", "us") + np.arange(65_294) * np.timedelta64(1, "D")
    a, b = random_bars("AAA", 1, dates), random_bars("BBB", 1, dates)
    start = time.process_time()
    compute_features(a, b, DEFAULT)
    assert time.process_time() - start < 1.0
