import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analysis import metrics
from analysis.frames import KEYS, daily_schema, frame_path, read_frame, write_frame
from analysis.summary import (
    annual_sessions_of,
    build_summary,
    scenario_id,
    sessions_per_year,
    summarise,
    with_deflated,
    write_summary,
)
from tests.analysis.frames_made import account, business_days, daily_table, survivors_of

PAIRS = ("AAA/BBB", "CCC/DDD")


@pytest.fixture(scope="module")
def daily(tmp_path_factory) -> pa.Table:
    path = tmp_path_factory.mktemp("daily") / "daily.parquet"
    return write_frame(daily_table(PAIRS), daily_schema(), KEYS["daily"], path)


@pytest.fixture(scope="module")
def summary(daily: pa.Table) -> pa.Table:
    return build_summary(daily, survivors_of(PAIRS), base_cost_bps=2.0, base_lag=1)


def test_one_row_per_key_with_the_terms_of_its_scenario(daily: pa.Table, summary: pa.Table) -> None:
    rows = summary.to_pylist()
    assert len(rows) == len(PAIRS) * 10 * (7 + 2)
    assert len({tuple(row[name] for name in KEYS["summary"]) for row in rows}) == len(rows)
    terms = {row["scenario"]: (row["cost_bps"], row["lag"]) for row in rows}
    assert terms["base"] == (2.0, 1)
    assert terms["cost10-lag2"] == (10.0, 2)
    survivor = next(row for row in rows if row["policy"] == "survivor-2")
    assert (survivor["kind"], survivor["rank"], survivor["member"], survivor["generation"]) == ("survivor", 2, "m02", 2)
    assert {row["policy"] for row in rows if row["kind"] == "ensemble"} == {"ensemble"}
    assert all(row["rank"] is None for row in rows if row["kind"] != "survivor")


def test_a_row_says_what_its_daily_rows_say(daily: pa.Table, summary: pa.Table) -> None:
    frame = daily.to_pandas()
    row = next(
        r
        for r in summary.to_pylist()
        if (r["pair"], r["policy"], r["scenario"], r["split"]) == ("CCC/DDD", "zscore", "cost5-lag1", "test")
    )
    part = frame[(frame.pair == "CCC/DDD") & (frame.scenario == "cost5-lag1")]
    own, market = part[part.policy == "zscore"], part[part.policy == "equal_weight"]
    returns = own.net_return.to_numpy()
    assert row["days"] == len(own) == 300
    assert row["final_value"] == pytest.approx(own.equity.iloc[-1], rel=1e-12)
    assert row["cumulative_return"] == row["final_value"] - 1
    assert row["annualised_sharpe"] == pytest.approx(np.sqrt(252) * returns.mean() / returns.std(), rel=1e-12)
    assert row["beta"] == pytest.approx(np.polyfit(market.net_return, returns, 1)[0], rel=1e-9)
    assert row["avg_turnover"] == pytest.approx(own.turnover.mean())
    assert row["gross_exposure"] == pytest.approx(own.gross.mean())
    assert row["cost_paid"] == pytest.approx((own.trading_cost + own.financing).mean() * 252)
    assert row["sharpe_ci_low"] < row["annualised_sharpe"] < row["sharpe_ci_high"]
    assert row["deflated_sharpe"] is None


def test_cash_is_flat_and_equal_weight_is_its_own_yardstick(summary: pa.Table) -> None:
    for row in summary.to_pylist():
        if row["policy"] == "cash":
            zeros = [name for name in metrics.METRICS if name not in ("days", "final_value", "deflated_sharpe")]
            assert [row[name] for name in zeros] == [0.0] * len(zeros)
            assert row["final_value"] == 1.0
        if row["policy"] == "equal_weight":
            assert (row["alpha"], row["beta"]) == pytest.approx((0.0, 1.0), abs=1e-12)


def test_no_metric_is_nan_or_infinite(summary: pa.Table) -> None:
    for row in summary.to_pylist():
        assert all(value is None or np.isfinite(value) for value in (row[name] for name in metrics.METRICS))


def test_hourly_rows_are_compounded_to_days() -> None:
    rng = np.random.default_rng(0)
    days = business_days("2024-01-02", 40)
    dates = (days[:, None] + np.arange(7) * np.timedelta64(1, "h") + np.timedelta64(14, "h")).ravel()
    hourly = rng.normal(2e-4, 0.004, dates.size)
    other = rng.normal(2e-4, 0.004, dates.size)
    ones = np.ones(dates.size)
    found = summarise(hourly, ones * 0.01, ones * 0.8, ones * 1e-5, dates, benchmark=other)
    daily = (1 + hourly).reshape(40, 7).prod(axis=1) - 1
    yardstick = (1 + other).reshape(40, 7).prod(axis=1) - 1
    assert found["days"] == 40
    assert found["annualised_sharpe"] == pytest.approx(metrics.sharpe(daily))
    assert found["max_drawdown"] == pytest.approx(metrics.max_drawdown(daily))
    assert found["beta"] == pytest.approx(metrics.alpha_beta(daily, yardstick)[1])
    assert found["avg_turnover"] == pytest.approx(0.07)
    assert found["cost_paid"] == pytest.approx(7e-5 * 252)
    assert found["gross_exposure"] == pytest.approx(0.8)


def test_a_market_that_never_closes_has_365_sessions() -> None:
    daily = np.arange(np.datetime64("2024-01-01"), np.datetime64("2024-12-31"))
    assert sessions_per_year(daily) == 365
    assert sessions_per_year(daily[np.is_busday(daily)]) == 252
    assert sessions_per_year(np.append(daily[np.is_busday(daily)], np.datetime64("2025-01-04"))) == 252


def test_wrong_input_is_refused() -> None:
    dates = business_days("2024-01-02", 5)
    good = np.full(5, 0.01)
    for values, message in [
        (np.array([0.0, 0.1, np.nan, 0, 0]), "net_return: not finite at bar 2"),
        (np.array([0.0, -1.5, 0, 0, 0]), "net_return: below -1 at bar 1"),
        (np.zeros(4), "net_return: .* for 5 dates"),
    ]:
        with pytest.raises(ValueError, match=message):
            summarise(values, good, good, good, dates)
    with pytest.raises(ValueError, match="not strictly ascending"):
        summarise(good, good, good, good, dates[::-1])
    with pytest.raises(ValueError, match="at least one"):
        summarise(*[np.empty(0)] * 4, np.empty(0, "datetime64[us]"))


def test_other_bars_than_equal_weights_and_unknown_survivors_are_refused(daily: pa.Table) -> None:
    with pytest.raises(ValueError, match="survivor-1: nothing is known"):
        build_summary(daily, [], base_cost_bps=2.0, base_lag=1)
    rng = np.random.default_rng(0)
    dates = business_days("2020-01-01", 30)
    parts = [
        account("cash", "A/B", "test", "base", np.zeros(30), dates, rng),
        account("equal_weight", "A/B", "test", "base", np.zeros(29), dates[1:], rng),
    ]
    with pytest.raises(ValueError, match="cash and equal_weight cover different bars"):
        build_summary(pa.concat_tables(parts), [], base_cost_bps=2.0, base_lag=1)
    with pytest.raises(ValueError, match="scenario 'cheap'"):
        build_summary(
            account("cash", "A/B", "test", "cheap", np.zeros(30), dates, rng), [], base_cost_bps=2.0, base_lag=1
        )


def test_scenario_names() -> None:
    assert scenario_id(1.0, 1) == "cost1-lag1"
    assert scenario_id(2.5, 3, lev=1.0, borrow=0.0675) == "cost2.5-lag3-lev1.0-borrow0.0675"
    rng = np.random.default_rng(0)
    dates = business_days("2020-01-01", 30)
    name = scenario_id(2.5, 3, lev=1.0)
    table = build_summary(
        account("cash", "A/B", "test", name, np.zeros(30), dates, rng), [], base_cost_bps=2.0, base_lag=1
    )
    assert (table.column("cost_bps")[0].as_py(), table.column("lag")[0].as_py()) == (2.5, 3)


def test_the_csv_holds_the_parquets_rows(summary: pa.Table, tmp_path: Path) -> None:
    written = write_summary(summary, tmp_path)
    with open(tmp_path / "summary.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = read_frame(frame_path(tmp_path, "summary")).to_pylist()
    assert written.num_rows == len(rows) == len(expected)
    for text, row in zip(rows, expected, strict=True):
        assert list(text) == list(row)
        for name, value in row.items():
            assert text[name] == ("" if value is None else str(value))
            if isinstance(value, float):
                assert float(text[name]) == value


def test_the_deflated_sharpe_ratio_stands_where_selection_looked(summary: pa.Table) -> None:
    filled = with_deflated(summary, {"AAA/BBB": {"survivor-1": 0.3, "ensemble": 0.4}})
    assert filled.schema.equals(summary.schema, check_metadata=True)
    values = {
        (row["pair"], row["split"], row["scenario"], row["policy"]): row["deflated_sharpe"]
        for row in filled.to_pylist()
        if row["deflated_sharpe"] is not None
    }
    assert values == {
        ("AAA/BBB", "validation", "base", "survivor-1"): 0.3,
        ("AAA/BBB", "validation", "base", "ensemble"): 0.4,
    }


def test_sessions_per_year_are_read_back_from_the_summary(summary: pa.Table) -> None:
    assert annual_sessions_of(summary.to_pylist()) == 252
    assert annual_sessions_of([{"avg_daily_return": 0.0, "annualized_return": 0.0}]) is None
    assert annual_sessions_of([{"avg_daily_return": 1e-3, "annualized_return": 1.001**365 - 1}]) == 365
