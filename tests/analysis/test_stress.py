"""Years of stress, and decisions as the log wrote them, from invented daily rows."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analysis.frames import KEYS, daily_schema, write_frame
from analysis.log_csv import write_decisions
from analysis.metrics import max_drawdown, sharpe
from analysis.stress import stress_rows
from tests.analysis.frames_made import account, business_days


def made(tmp_path: Path, start: str, count: int) -> pa.Table:
    rng = np.random.default_rng(2)
    dates = business_days(start, count)
    parts = [
        account(policy, "AAA/BBB", "test", "base", rng.normal(0, 0.01, count), dates, rng)
        for policy in ("ensemble", "equal_weight")
    ]
    return write_frame(pa.concat_tables(parts), daily_schema(), KEYS["daily"], tmp_path / "daily.parquet")


def test_windows_that_the_dates_reach(tmp_path: Path) -> None:
    daily = made(tmp_path, "2007-06-01", 3500)  # to the autumn of 2020
    rows = stress_rows(daily)
    assert [(row["policy"], row["stress"]) for row in rows] == [
        (policy, window) for policy in ("ensemble", "equal_weight") for window in ("2008", "2020")
    ]
    year = next(row for row in rows if (row["policy"], row["stress"]) == ("ensemble", "2008"))
    assert (year["first"], year["last"], year["days"]) == ("2008-01-01", "2008-12-31", 262)
    own = daily.to_pandas().query("policy == 'ensemble' and '2008-01-01' <= date < '2009-01-01'").net_return.to_numpy()
    assert year["cumulative_return"] == pytest.approx(np.prod(1 + own) - 1)
    assert year["max_drawdown"] == max_drawdown(own)
    assert year["annualised_sharpe"] == sharpe(own)
    part = next(row for row in rows if row["stress"] == "2020")
    assert part["last"] < "2020-12-31"
    assert part["days"] < 262


def test_a_window_of_which_less_than_half_is_there_is_left_out(tmp_path: Path) -> None:
    daily = made(tmp_path, "2021-06-01", 283)  # 129 sessions of 2022, whose weekdays are 260
    assert stress_rows(daily) == []
    assert {row["days"] for row in stress_rows(made(tmp_path, "2021-06-01", 284))} == {130}


HOUR, DAY = np.timedelta64(1, "h"), np.timedelta64(1, "D")


@pytest.mark.parametrize(("step", "stamp"), [(DAY, "2020-01-02"), (HOUR, "2020-01-01T01:00:00")])
def test_the_logs_columns(step: np.timedelta64, stamp: str, tmp_path: Path) -> None:
    dates = np.datetime64("2020-01-01", "us") + step * np.arange(30)
    table = account("ensemble", "AAA/BBB", "test", "base", np.full(30, 0.01), dates, np.random.default_rng(0))
    write_decisions(table, "AAA/BBB", tmp_path / "decisions.csv")
    with open(tmp_path / "decisions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    log = ["timestamp", "portfolio_value", "turnover", "trading_cost", "financing_cost", "net_return"]
    assert list(rows[0]) == [*log, "weight_AAA", "weight_BBB"]
    assert rows[1]["timestamp"] == stamp
    assert float(rows[2]["portfolio_value"]) == table["equity"][2].as_py()
    assert float(rows[2]["weight_BBB"]) == table["weight_b"][2].as_py()
