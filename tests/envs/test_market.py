"""Markets: chronological splits on common borders, embargo, the scaler's span, time, and lengths that are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from envs.bars import Bars
from envs.market import (
    Borders,
    PairMarket,
    Span,
    build_market,
    load_markets,
    split_borders,
    split_spans,
)
from envs.scaler import Scaler
from rayconf.errors import UserError
from rayconf.run_config import RunConfig
from rayconf.sections import SplitConfig
from tests.envs.conftest import make_bars, make_market, make_run, weekday_dates


def short(**sections: Any) -> RunConfig:
    """Windows of fitness short enough for 860 bars."""
    return make_run({"pbt": {"window": 63}, **sections})


def pair_of(bars: int, seed: int = 1) -> tuple[Bars, Bars]:
    dates = weekday_dates(bars)
    return make_bars("AAA", dates, seed), make_bars("BBB", dates, seed + 1)


def real(folder: Path, pairs: tuple[str, ...], **sections: Any) -> dict[str, PairMarket]:
    return load_markets(RunConfig.model_validate({"data": {"dir": str(folder), "pairs": pairs}, **sections}))


def days(market: PairMarket, split: str) -> tuple[str, str, int]:
    """First and last bar of a split, and how many it has."""
    span = market.splits[split]
    first, last = np.datetime_as_string(market.dates[[span.start, span.stop - 1]], unit="D")
    return str(first), str(last), span.stop - span.start


@pytest.fixture(scope="module")
def daily(shared_data: Path) -> dict[str, PairMarket]:
    return real(shared_data / "daily", ("KO/PEP", "NVDA/GOOGL"))


def test_splits_of_real_daily_bars(daily: dict[str, PairMarket]) -> None:
    market = daily["KO/PEP"]
    assert len(market.dates) == 6488
    assert days(market, "train") == ("2001-01-02", "2015-11-13", 3741)
    assert days(market, "validation") == ("2015-12-16", "2020-10-28", 1226)
    assert days(market, "test") == ("2020-11-30", "2025-10-17", 1227)
    assert [span.rows for span in market.splits.values()] == [3740, 1225, 1226]
    assert (market.bars_per_year, market.sessions_per_year, market.intraday) == (252.0, 252.0, False)


def test_borders_are_the_longest_pairs(daily: dict[str, PairMarket]) -> None:
    """GOOGL trades since 2004-08-19: its own burn-in, then the borders of the run."""
    market = daily["NVDA/GOOGL"]
    assert str(market.dates[0]).startswith("2004-08-19")
    assert days(market, "train")[:2] == (str(market.dates[252])[:10], "2015-11-13")
    assert days(market, "validation") == days(daily["KO/PEP"], "validation")
    assert days(market, "test") == days(daily["KO/PEP"], "test")
    assert any("dropped 1162 of NVDA and 0 of GOOGL" in note for note in market.notes)


def test_weekends_and_nights_are_paid_by_the_calendar(daily: dict[str, PairMarket]) -> None:
    market = daily["KO/PEP"]
    friday = int(np.searchsorted(market.dates, np.datetime64("2024-06-07")))
    assert market.years[friday] * 365 == pytest.approx(3, rel=1e-12)
    assert market.years[friday - 1] * 365 == pytest.approx(1, rel=1e-12)
    assert market.years.sum() * 365 == pytest.approx((market.dates[-1] - market.dates[0]) / np.timedelta64(1, "D"))
    np.testing.assert_array_equal(market.returns[7], market.fill[8] / market.fill[7] - 1)
    assert not np.array_equal(market.fill, market.close)


def test_hourly_bars(shared_data: Path) -> None:
    market = real(shared_data / "hourly_ibkr", ("KO/AAPL",))["KO/AAPL"]
    assert (market.bars_per_year, market.sessions_per_year, market.intraday) == (7 * 252.0, 252.0, True)
    train, validation, test = (market.splits[name] for name in ("train", "validation", "test"))
    assert validation.start - train.stop == test.start - validation.stop == 5 * 7
    assert {"time_sin", "time_cos"} <= set(market.scaler.names)
    assert market.years.min() * 365 * 24 == pytest.approx(0.5)  # the half hour from 9:30 to 10:00


def test_dates_may_be_given() -> None:
    a, b = pair_of(860)
    run = short(split={"validation_start": "2003-01-01", "test_start": "2003-09-01", "embargo": 4})
    market = build_market("AAA/BBB", a, b, run)
    assert days(market, "train")[1] == "2002-12-31"
    assert days(market, "validation")[:2] == ("2003-01-07", "2003-08-29")  # four weekdays left out
    assert days(market, "test")[:2] == ("2003-09-05", str(a.dates[-1])[:10])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    bars=st.integers(300, 3000),
    late=st.integers(0, 290),
    train=st.floats(0.2, 0.7),
    share=st.floats(0.2, 0.8),
    embargo=st.integers(0, 40),
)
def test_splits_lie_apart_and_in_order(bars: int, late: int, train: float, share: float, embargo: int) -> None:
    """Of any pair on the run's borders: a fill and the next one lie in one split, splits in order, embargo between."""
    dates = weekday_dates(bars)
    rest = 1 - train
    config = SplitConfig(fractions=(train, rest * share, rest * (1 - share)), burn=100)
    borders = split_borders("AAA/BBB", dates, config)
    own = dates[late:]
    splits = split_spans(own, borders, config.burn, embargo)
    dated = {
        name: own[[k for k in range(span.start, span.stop - 1) for k in (k, k + 1)]]
        for name, span in splits.items()
        if span.rows
    }
    for name, low, high in (
        ("train", own[min(100, len(own) - 1)], borders.validation),
        ("validation", borders.validation, borders.test),
        ("test", borders.test, own[-1] + np.timedelta64(1, "D")),
    ):
        if name in dated:
            assert (dated[name] >= low).all()
            assert (dated[name] < high).all()
            assert len(dated[name]) == 2 * splits[name].rows
    assert splits["test"].start - splits["validation"].stop == embargo
    assert splits["validation"].start - splits["train"].stop >= embargo
    assert splits["train"].start == 100


def test_the_scaler_sees_train_alone() -> None:
    a, b = pair_of(860)
    run = short()
    market = build_market("AAA/BBB", a, b, run)
    border = market.splits["train"].stop

    def changed(first: int) -> Scaler:
        factor = np.where(np.arange(860) < first, 1.0, np.exp(np.arange(860) % 7 / 50))
        prices = {name: getattr(a, name) * factor for name in ("open", "high", "low", "close", "volume")}
        return build_market("AAA/BBB", replace(a, **prices), b, run).scaler

    assert changed(border).to_json() == market.scaler.to_json()
    assert changed(border - 1).to_json() != market.scaler.to_json()
    span = market.splits["train"]
    inner = market.features[span.start : span.stop]
    assert np.abs(np.median(inner, axis=0)).max() < 1.5
    assert np.abs(market.features).max() <= run.features.extreme_limit
    assert np.isfinite(market.features).all()


def test_equal_weight_noise_is_that_of_train() -> None:
    a, b = pair_of(860)
    market = build_market("AAA/BBB", a, b, short())
    train = market.splits["train"]
    logs = [
        np.log(0.5 * a.open[k + 1] / a.open[k] + 0.5 * b.open[k + 1] / b.open[k])
        for k in range(train.start, train.stop - 1)
    ]
    assert market.equal_weight_sd == pytest.approx(float(np.std(logs)), rel=1e-12)


def test_closes_only() -> None:
    a, b = pair_of(860)
    market = build_market("AAA/BBB", a, b, short(data={"fill": "close"}))
    np.testing.assert_array_equal(market.fill, np.stack([a.close, b.close], axis=1))
    assert not market.moves.any()
    assert any("fill at closes" in note for note in market.notes)
    assert not any("closes" in note for note in build_market("AAA/BBB", a, b, short()).notes)


def test_pairs_are_joined_and_what_is_dropped_is_said() -> None:
    a, b = pair_of(900)
    market = build_market("AAA/BBB", a.select(slice(0, 880)), b.select(np.arange(900) % 45 != 3), short())
    assert len(market.dates) == 860
    assert market.notes[0].startswith("AAA/BBB: 860 common bars")
    assert "dropped 20 of AAA and 20 of BBB" in market.notes[0]
    np.testing.assert_array_equal(market.close[3], [a.close[4], b.close[4]])


def test_synthetic_market_is_the_default() -> None:
    run = RunConfig.model_validate(
        {"synthetic": {"bars": 1500}, "data": {"pairs": ["SYNA/SYNB", "SYNC/SYND"]}, "split": {"burn": 260}}
    )
    markets = load_markets(run)
    assert list(markets) == ["SYNA/SYNB", "SYNC/SYND"]
    assert markets["SYNA/SYNB"].splits == markets["SYNC/SYND"].splits
    assert not np.array_equal(markets["SYNA/SYNB"].close, markets["SYNC/SYND"].close)


@pytest.mark.parametrize(
    ("bars", "sections", "words"),
    [
        (200, {}, ["AAA/BBB", "200 bars are too few", "252 of burn-in"]),
        (255, {}, ["AAA/BBB", "255 bars are too few", "252 of burn-in"]),
        (600, {}, ["AAA/BBB", "600 bars are too few", "train has 207 bars", "needs 252"]),
        (860, {"pbt": {"window": 126}}, ["AAA/BBB", "860 bars", "validation has 100 sessions", "needs 126"]),
        (860, {"split": {"fractions": (0.8, 0.15, 0.05)}}, ["AAA/BBB", "test has 9 bars", "needs 21"]),
        (860, {"split": {"burn": 230}}, ["split.burn: 230 is below 251"]),
        (
            860,
            {"split": {"validation_start": "2003-09-01", "test_start": "2003-01-01"}},
            ["split.validation_start: 2003-09-01 must lie before split.test_start 2003-01-01"],
        ),
        (
            860,
            {"split": {"validation_start": "2003-13-01", "test_start": "2004-01-01"}},
            ["split.validation_start: '2003-13-01' is no ISO date"],
        ),
        (
            860,
            {"split": {"validation_start": "today", "test_start": "2004-01-01"}},
            ["split.validation_start: 'today' is no ISO date"],
        ),
        (
            860,
            {"split": {"validation_start": "2003-01-01", "test_start": "2030-01-01"}},
            ["AAA/BBB", "test has 0 bars"],
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(bars: int, sections: dict[str, Any], words: list[str]) -> None:
    a, b = pair_of(bars)
    with pytest.raises(UserError) as caught:
        build_market("AAA/BBB", a, b, short(**sections))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_short_pairs_are_refused_by_name(tmp_path: Path) -> None:
    for ticker, bars in (("AAA", 100), ("BBB", 100)):
        rows = make_bars(ticker, weekday_dates(bars), 1)
        lines = [
            f"{str(d)[:10]},{o:.6f},{h:.6f},{low:.6f},{c:.6f},{v:.0f}"
            for d, o, h, low, c, v in zip(
                rows.dates, rows.open, rows.high, rows.low, rows.close, rows.volume, strict=True
            )
        ]
        (tmp_path / f"{ticker}.csv").write_text("\n".join(["date,open,high,low,close,volume", *lines]))
    with pytest.raises(UserError, match=r"^AAA/BBB: 100 bars are too few: 252 of burn-in"):
        real(tmp_path, ("AAA/BBB",))


def test_spans_and_sessions_count_right() -> None:
    assert Span(10, 12).rows == 1
    assert Span(10, 10).rows == Span(12, 5).rows == 0
    assert make_market().sessions_per_year == 252
    weekly = replace(make_market(), bars_per_year=52.0)
    assert weekly.sessions_per_year == 52
    assert Borders(*weekday_dates(2)).validation < Borders(*weekday_dates(2)).test
