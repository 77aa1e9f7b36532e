"""Forecast features: the file's rules, the scale beside the bars, and bars without forecasts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from envs.bars import Bars
from envs.features import lookback
from envs.forecasts import Forecasts, forecast_columns, forecast_names, read_forecasts, series_names
from envs.market import build_market, load_markets, raw_features
from envs.synthetic import synthetic_pair
from envs.universe import with_universe
from rayconf.errors import UserError
from rayconf.run_config import RunConfig
from rayconf.sections import FeaturesConfig, ForecastConfig
from tests.envs.conftest import make_bars, make_run, weekday_dates

PAIR = "AAA/BBB"
SETTINGS = ForecastConfig(series=("spread", "b"), horizons=(1, 5), quantiles=(0.1, 0.9), digest="0" * 16)
BARS = 860


def legs(bars: int = BARS) -> tuple[Bars, Bars]:
    dates = weekday_dates(bars)
    return make_bars("AAA", dates, 1), make_bars("BBB", dates, 2)


def forecasts_of(a: Bars, b: Bars, first: int = 0, seed: int = 3) -> Forecasts:
    """Some numbers for the spread and for leg b, from bar ``first`` on."""
    rng = np.random.default_rng(seed)
    dates = {PAIR: a.dates[first:], "BBB": b.dates[first:]}
    values = {name: np.sort(0.02 * rng.standard_normal((len(x), 2, 2)), axis=2) for name, x in dates.items()}
    return Forecasts("made.parquet", "owner/tiny", "c0ffee", SETTINGS.horizons, SETTINGS.quantiles, dates, values)


def run_with(settings: ForecastConfig = SETTINGS) -> RunConfig:
    return make_run({"pbt": {"window": 63}, "forecasts": settings.model_dump()})


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    path = tmp_path_factory.mktemp("forecasts") / "forecasts.parquet"
    forecasts_of(*legs(300)).write(path)
    return pd.read_parquet(path)


def read(path: Path, frame: pd.DataFrame, settings: ForecastConfig = SETTINGS) -> Forecasts:
    frame.to_parquet(path)
    return read_forecasts(path, series_names([PAIR], settings), settings)


def test_a_file_gives_back_what_was_written_whatever_else_it_holds(frame: pd.DataFrame, tmp_path: Path) -> None:
    made = forecasts_of(*legs(300))
    more = frame.assign(horizon=63, value=9.0), frame.assign(pair="CCC/DDD")
    mixed = pd.concat([frame, *more]).sample(frac=1, random_state=0)
    mixed["quantile"] = mixed["quantile"].astype(np.float32)
    found = read(tmp_path / "other.parquet", mixed)
    assert found.made_by == "owner/tiny@c0ffee"
    assert found.digest == made.digest
    assert found.values.keys() == {PAIR, "BBB"}
    for name, values in made.values.items():
        assert (found.values[name] == values).all()
        assert (found.dates[name] == made.dates[name]).all()
    mixed.loc[(mixed.pair == PAIR) & (mixed.horizon == 1) & (mixed["quantile"] > 0.5), "value"] += 1e-12
    assert read(tmp_path / "other.parquet", mixed).digest != made.digest


WRONG: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "column": (lambda x: x.drop(columns="revision"), "missing columns: revision"),
    "rows": (lambda x: x.iloc[:0], "has no rows"),
    "pair": (lambda x: x[x.pair != "BBB"], "has no forecasts of BBB"),
    "missing": (lambda x: x.drop(index=6), r"AAA/BBB at 2001-01-02, horizon 5, quantile 0.1: is missing"),
    "twice": (lambda x: pd.concat([x, x.iloc[[7]]]), r"AAA/BBB at 2001-01-02, horizon 5, quantile 0.9: is given twice"),
    "infinite": (lambda x: x.assign(value=x.value.where(x.index != 4, np.inf)), "2001-01-02.* is no finite number"),
    "not a number": (lambda x: x.assign(value=x.value.where(x.index != 4)), "2001-01-02.* is no finite number"),
    "crossing": (lambda x: x.assign(value=x.value.where(x.index != 5, -1.0)), "2001-01-02, horizon 1.* not cross"),
    "models": (
        lambda x: x.assign(model=np.where(x.index == 9, "other", x.model)),
        "several models",
    ),
    "text": (lambda x: x.assign(value="much"), "column value must hold numbers"),
    "dates": (lambda x: x.assign(date="soon"), "column date must hold dates"),
    "no date": (lambda x: x.assign(date=x.date.where(x.index != 2)), "data row 3: date is missing"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_breaks_the_rules_is_refused_by_pair_and_date(wrong: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    change, message = WRONG[wrong]
    with pytest.raises(UserError, match=message) as told:
        read(tmp_path / "bad.parquet", change(frame))
    assert "bad.parquet" in str(told.value)


def test_model_and_revision_must_be_those_configured(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    named = SETTINGS.model_copy(update={"model": "owner/tiny", "revision": "c0ffee"})
    assert read(path, frame, named).model == "owner/tiny"
    for field, value in (("model", "owner/other"), ("revision", "decade")):
        with pytest.raises(UserError, match=rf"forecasts\.{field}: {value} is configured"):
            read(path, frame, named.model_copy(update={field: value}))
    (tmp_path / "none.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"none\.parquet: cannot be read as Parquet"):
        read_forecasts(tmp_path / "none.parquet", [PAIR], SETTINGS)


def test_columns_are_quantiles_over_volatility_times_root_of_horizon() -> None:
    """Against the definition, one number at a time."""
    a, b = legs(300)
    forecasts, windows = forecasts_of(a, b), FeaturesConfig()
    found = forecast_columns(forecasts, a, b, windows, SETTINGS)
    names = forecast_names(SETTINGS)
    assert names[0] == "forecast_spread_1_q0.1"
    assert names[-1] == "forecast_b_5_q0.9"
    assert found.shape == (300, len(names))
    spread = [float(np.log(x) - np.log(y)) for x, y in zip(a.close, b.close, strict=True)]
    logs = {"spread": (PAIR, spread), "b": ("BBB", [float(np.log(x)) for x in b.close])}
    assert np.isnan(found[: lookback(windows) - 1]).all()
    for t in (lookback(windows) - 1, 270, 299):
        for column, name in enumerate(names):
            _, side, horizon, quantile = name.split("_")
            series, values = logs[side]
            squares = [(values[i] - values[i - 1]) ** 2 for i in range(t - windows.volatility_window + 1, t + 1)]
            volatility = (sum(squares) / len(squares)) ** 0.5
            place = SETTINGS.horizons.index(int(horizon)), SETTINGS.quantiles.index(float(quantile[1:]))
            wanted = forecasts.values[series][t][place] / (volatility * int(horizon) ** 0.5)
            assert found[t, column] == pytest.approx(wanted, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(250, 300))
def test_later_bars_change_no_bit(cut: int) -> None:
    a, b = legs(300)
    forecasts, run = forecasts_of(a, b), run_with()
    rows = np.arange(cut)
    names, whole = raw_features(a, b, run, forecasts)
    again = raw_features(a.select(rows), b.select(rows), run, forecasts)[1]
    assert names[-8:] == forecast_names(SETTINGS)
    assert np.array_equal(whole[:cut], again, equal_nan=True)


def test_every_bar_from_the_lookback_on_needs_its_forecast() -> None:
    a, b = legs()
    run = run_with()
    first = lookback(run.features) - 1
    market = build_market(PAIR, a, b, run, forecasts=forecasts_of(a, b, first))
    assert market.scaler.names[-8:] == forecast_names(SETTINGS)
    assert market.features[first:, -8:].std(axis=0).min() > 0.5
    assert any("features hold forecasts of owner/tiny@c0ffee" in note for note in market.notes)
    late = np.datetime_as_string(a.dates[first], unit="D")
    with pytest.raises(UserError, match=rf"made\.parquet: has no forecast of AAA/BBB at {late}, a bar of AAA/BBB"):
        build_market(PAIR, a, b, run, forecasts=forecasts_of(a, b, first + 1))
    short = forecasts_of(*legs(BARS - 1), first)
    with pytest.raises(UserError, match=f"no forecast of AAA/BBB at {np.datetime_as_string(a.dates[-1], unit='D')}"):
        build_market(PAIR, a, b, run, forecasts=short)
    holes = np.delete(np.arange(BARS), 600)
    with pytest.raises(UserError, match=f"at {np.datetime_as_string(a.dates[600], unit='D')}, which is no bar of it"):
        build_market(PAIR, a.select(holes), b.select(holes), run, forecasts=forecasts_of(a, b))


def test_a_prior_stays_last_and_a_universe_has_its_own_forecasts() -> None:
    sections = {
        "pbt": {"window": 63},
        "forecasts": SETTINGS.model_dump(),
        "data": {"pairs": [PAIR]},
        "universe": {"pairs": [PAIR, "SYNC/SYND"]},
        "synthetic": {"bars": BARS},
    }
    run = make_run(sections, mapping="residual")
    both = {pair: synthetic_pair(pair, run.synthetic) for pair in run.universe.pairs}
    forecasts = forecasts_of(*both[PAIR])
    market = build_market(PAIR, *both[PAIR], run, forecasts=forecasts)
    assert market.scaler.names[-10:] == (*forecast_names(SETTINGS), "prior_a", "prior_b")
    with pytest.raises(UserError, match="has no forecasts of SYNC/SYND"):
        with_universe({PAIR: market}, run, forecasts)
    more = forecasts_of(*both["SYNC/SYND"], seed=4)
    renamed = {"SYNC/SYND": PAIR, "SYND": "BBB"}
    dates = {**forecasts.dates, **{new: more.dates[old] for new, old in renamed.items()}}
    values = {**forecasts.values, **{new: more.values[old] for new, old in renamed.items()}}
    bars = with_universe({PAIR: market}, run, replace(forecasts, dates=dates, values=values))[PAIR].training
    assert bars is not None
    assert len(bars.spans) == 2
    assert bars.features.shape[1] == len(market.scaler.names)
    with pytest.raises(ValueError, match="resampled histories have no forecasts"):
        make_run({**sections, "augment": {"histories": 1}})


def test_forecasts_are_never_left_out_or_added_in_silence() -> None:
    a, b = legs()
    with pytest.raises(ValueError, match="need them"):
        build_market(PAIR, a, b, run_with())
    with pytest.raises(ValueError, match="take none"):
        build_market(PAIR, a, b, run_with(ForecastConfig()), forecasts=forecasts_of(a, b))
    with pytest.raises(ValueError, match="looked for before"):
        load_markets(make_run({"forecasts": {"file": "f.parquet"}}))
