"""Test spans strung together, against plain numpy on invented frames of two windows."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from analysis.columns import KEYS
from analysis.frames import daily_schema, validation_schema, write_frame
from analysis.metrics import sharpe
from analysis.overfitting import archive_overfitting, snapshot_streams
from analysis.sharpe_tests import deflated_sharpe_ratio, selection_benchmark
from analysis.statistics import evidence_of
from analysis.summary import build_summary, headline_window, with_deflated
from analysis.walk_forward import SPANS, compounded, spans_of, strung, windows_in
from pbt.windows import numbered
from tests.analysis.frames_made import daily_table, lineage_rows, survivors_of, validation_table

PAIRS = ("AAA/BBB", "CCC/DDD")
FIRST = {"train": ("2015-01-01", 300), "validation": ("2016-06-01", 260), "test": ("2018-07-02", 300)}
SECOND = {"train": ("2015-01-01", 700), "validation": ("2018-09-03", 250), "test": ("2020-01-02", 220)}
OVERLAPPING = {**SECOND, "validation": ("2017-03-01", 260)}
"""Validation begins before that of the first window has ended."""


def frames(second: dict[str, tuple[str, int]] = SECOND) -> tuple[pa.Table, pa.Table]:
    """Daily rows with the strung ones, and validation returns."""
    daily, validation = [], []
    for number, spans in enumerate((FIRST, second), start=1):
        daily.append(numbered(daily_table(PAIRS, seed=number, spans=spans, grid=("cost1-lag1",)), number))
        validation.append(numbered(validation_table(PAIRS, seed=10 + number, spans=spans), number))
    return pa.concat_tables(daily), pa.concat_tables(validation)


def ordered(table: pa.Table, frame: str, folder) -> pa.Table:  # type: ignore[no-untyped-def]
    schema = daily_schema() if frame == "daily" else validation_schema()
    return write_frame(table, schema, KEYS[frame], folder / f"{frame}.parquet")


@pytest.fixture
def made(tmp_path) -> tuple[pa.Table, pa.Table]:  # type: ignore[no-untyped-def]
    daily, validation = frames()
    daily = ordered(daily, "daily", tmp_path)
    daily = ordered(pa.concat_tables([strung(daily), daily]), "daily", tmp_path)
    return daily, ordered(validation, "validation", tmp_path)


def test_the_strung_account_earns_one_window_after_the_other(made: tuple[pa.Table, pa.Table]) -> None:
    table = made[0].to_pandas()
    assert windows_in(made[0]) == [1, 2]
    assert headline_window(made[0]) == -1
    whole = table[table.window == -1]
    assert set(whole.split) == {"test"}
    count = 0
    names = ["scenario", "pair", "policy"]
    windows = table.query("window > 0 and split == 'test'").groupby(names)
    for key, rows in whole.groupby(names):
        own = windows.get_group(key).sort_values(["window", "date"])
        np.testing.assert_array_equal(rows.net_return, own.net_return)
        np.testing.assert_allclose(rows.equity, np.cumprod(1 + own.net_return.to_numpy()), rtol=1e-12)
        for name in ("date", "decision_date", "weight_a", "target_weight_b", "turnover", "trading_cost", "financing"):
            np.testing.assert_array_equal(rows[name], own[name])
        assert rows.date.is_monotonic_increasing
        count += len(rows)
    assert count == len(whole) == 2 * 2 * 10 * (300 + 220)


def test_what_is_lost_stays_lost() -> None:
    """A window that ends in ruin leaves that to the next one, and nothing comes of nothing."""
    np.testing.assert_array_equal(compounded([np.array([0.5, 0.04]), np.array([2.0, 3.0])]), [0.5, 0.04, 0.08, 0.12])
    np.testing.assert_array_equal(compounded([np.array([0.0]), np.array([2.0])]), [0.0, 0.0])


def test_policies_that_not_all_windows_have_are_not_strung(made: tuple[pa.Table, pa.Table]) -> None:
    table = made[0].to_pandas()
    fewer = table[(table.window > 0) & ~((table.window == 2) & (table.policy == "survivor-2"))]
    whole = strung(pa.Table.from_pandas(fewer, schema=daily_schema(), preserve_index=False))
    assert "survivor-2" not in set(whole.column("policy").to_pylist())
    assert "survivor-1" in set(whole.column("policy").to_pylist())
    ordinary = made[0].filter(pa.array([number == 1 for number in made[0].column("window").to_pylist()]))
    assert strung(numbered(ordinary, 0)).num_rows == 0
    twice = pa.concat_tables([ordinary, numbered(ordinary, 2)])
    with pytest.raises(ValueError, match="test spans of the windows overlap"):
        strung(twice)


def test_the_summary_has_a_row_of_every_window_and_of_all(made: tuple[pa.Table, pa.Table]) -> None:
    known = [{**row, "window": number} for number in (1, 2) for row in survivors_of(PAIRS)]
    summary = build_summary(made[0], known, base_cost_bps=2.0, base_lag=1, annual_sessions=252, resamples=50)
    summary = with_deflated(summary, {"AAA/BBB": {"ensemble": 0.25}}, 1)
    summary = with_deflated(summary, {"AAA/BBB": {"ensemble": 0.75}}, 2)
    table = summary.to_pandas()
    rows = table.query("pair == 'AAA/BBB' and scenario == 'base'").set_index(["window", "split", "policy"])
    assert rows.loc[(-1, "test", "ensemble"), "days"] == 520
    parts = [1 + rows.loc[(number, "test", "ensemble"), "cumulative_return"] for number in (1, 2)]
    assert rows.loc[(-1, "test", "ensemble"), "cumulative_return"] == pytest.approx(np.prod(parts) - 1, rel=1e-12)
    survivor = rows.loc[(-1, "test", "survivor-2")]
    assert (survivor.kind, survivor["rank"]) == ("survivor", 2)
    assert pd.isna(survivor.member)
    assert pd.isna(survivor.generation)
    deflated = rows.deflated_sharpe.dropna()
    assert deflated.to_dict() == {(1, "validation", "ensemble"): 0.25, (2, "validation", "ensemble"): 0.75}
    spans = spans_of(made[0].filter(_base(made[0])).select(list(SPANS)))
    assert spans["CCC/DDD", -1, "test"] == (spans["CCC/DDD", 1, "test"][0], spans["CCC/DDD", 2, "test"][1])
    assert spans["AAA/BBB", 2, "validation"][0] == "2018-09-03"


def _base(daily: pa.Table) -> pa.Array:
    table = daily.select(["scenario", "policy"]).to_pandas()
    return pa.array((table.scenario == "base") & (table.policy == "equal_weight"))


def lineage() -> list[dict[str, object]]:
    return [{**row, "window": number} for number in (1, 2) for row in lineage_rows(PAIRS)]


def test_the_evidence_of_the_whole_knows_the_selection_of_every_window(made: tuple[pa.Table, pa.Table]) -> None:
    daily, validation = made
    found = evidence_of(daily, validation, lineage(), [], window=-1, thorough=True)["AAA/BBB"]
    table = daily.to_pandas().query("pair == 'AAA/BBB' and scenario == 'base'")
    returns = table.query("window == -1 and policy == 'ensemble'").net_return.to_numpy()
    assert found.sessions == 520
    assert found.sharpe.value == sharpe(returns, 252)
    streams = [snapshot_streams(validation)[number, "AAA/BBB"] for number in (1, 2)]
    luck = [selection_benchmark(part) for part in streams]
    best = table.query("window > 0 and split == 'validation' and policy == 'survivor-1'").sort_values(
        ["window", "date"]
    )
    mean = (luck[0][0] * 260 + luck[1][0] * 250) / 510
    assert found.deflated_sharpe == pytest.approx(deflated_sharpe_ratio(best.net_return.to_numpy(), mean), rel=1e-12)
    assert (found.trials, found.effective_trials) == (24, luck[0][1] + luck[1][1])
    assert found.overfitting == pytest.approx(np.mean([archive_overfitting(part) for part in streams]))
    one = evidence_of(daily, validation, lineage(), [], window=2, thorough=False)["AAA/BBB"]
    assert (one.sessions, one.trials, one.effective_trials) == (220, 12, luck[1][1])


def test_no_session_of_validation_counts_twice(tmp_path) -> None:  # type: ignore[no-untyped-def]
    daily, validation = frames(OVERLAPPING)
    daily = ordered(pa.concat_tables([strung(daily), daily]), "daily", tmp_path)
    validation = ordered(validation, "validation", tmp_path)
    found = evidence_of(daily, validation, lineage(), [], window=-1, thorough=False)["CCC/DDD"]
    table = daily.to_pandas().query("pair == 'CCC/DDD' and split == 'validation' and policy == 'ensemble'")
    first = table[table.window == 1]
    fresh = table[(table.window == 2) & (table.date > first.date.max())]
    assert 0 < len(fresh) < 260
    luck = [selection_benchmark(snapshot_streams(validation)[number, "CCC/DDD"])[0] for number in (1, 2)]
    mean = np.average(luck, weights=[260, len(fresh)])
    stream = np.concatenate([first.net_return, fresh.net_return])
    assert found.deflated["ensemble"] == pytest.approx(deflated_sharpe_ratio(stream, mean), rel=1e-12)
