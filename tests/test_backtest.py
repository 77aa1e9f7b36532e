"""``python -m pbt.backtest``: a real run's survivors over scenarios, on other prices, and on a broken ledger."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from analysis.frames import read_frame
from envs.market import load_legs
from pbt.backtest import main
from pbt.finished import FinishedRun
from rayconf.run_config import RunConfig

pytestmark = pytest.mark.usefixtures("alone")

PAIR = "SYNC/SYND"
KEY = ["split", "scenario", "pair", "policy", "date"]


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    shutil.copytree(undisturbed, tmp_path / "tiny")
    return tmp_path / "tiny"


def looks(run: Path) -> int:
    return (run / "state" / "events.jsonl").read_text().count('"look"')


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def daily(folder: Path, **values: Any) -> pd.DataFrame:
    return read_frame(folder / "frames" / "daily.parquet", **values).to_pandas().set_index(KEY)


def test_a_grid_over_two_splits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = looks(run)
    grid = ["--grid", "costs=0,10", "lag=1,2", "leverage=0.5", "borrow=0,0.0675"]
    assert main([str(run), *grid, "--splits", "validation,test", "--csv"]) == 0
    told = capsys.readouterr().out
    target = Path(told.strip().splitlines()[-1].removeprefix("backtest "))
    assert target.parent == run / "backtests"
    assert [path.name for path in (run / "backtests").iterdir()] == [target.name]
    assert looks(run) == before + 1
    events = read_frame(run / "frames" / "events.parquet").to_pandas()
    assert events.iloc[-1].detail == f"backtest {target.name}: 2 costs x 2 lag x 1 leverage x 2 borrow"

    scenarios = {f"cost{c}-lag{lag}-lev0.5{b}" for c in (0, 10) for lag in (1, 2) for b in ("", "-borrow0.0")}
    rows = daily(target)
    assert set(rows.index.get_level_values("scenario")) == {"base", *scenarios}
    of_grid = rows.query("scenario != 'base'")
    assert set(of_grid.index.get_level_values("policy")) == {"ensemble", "equal_weight"}
    assert of_grid.gross.max() <= 0.5 + 1e-12
    base = rows.query("scenario == 'base'")
    launched = daily(run, scenario="base").query("split != 'train'")
    pd.testing.assert_frame_equal(base.sort_index(), launched.sort_index())  # survivors from disk, to the bit
    summary = read_frame(target / "frames" / "summary.parquet").to_pandas()
    assert len(summary) == 2 * 2 * 9 * 14  # pairs, splits, scenarios, policies
    first = read_frame(run / "frames" / "summary.parquet", scenario="base").to_pandas()
    metrics = ["split", "pair", "policy", "annualised_sharpe", "cagr", "alpha", "sharpe_ci_low"]
    ours = summary.query("scenario == 'base'")[metrics].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, first.query("split != 'train'")[metrics].reset_index(drop=True))
    schema = pq.read_schema(target / "frames" / "daily.parquet")
    assert schema.equals(pq.read_schema(run / "frames" / "daily.parquet"), check_metadata=True)

    found = json.loads((target / "scenarios.json").read_text())
    assert found["splits"] == ["validation", "test"]
    assert found["grid"]["leverages"] == [0.5]
    one = found["pairs"][PAIR]["test"]["policies"]
    assert set(one) == set(base.index.get_level_values("policy"))
    own = summary.query("scenario == 'base' and split == 'test' and pair == @PAIR").set_index("policy")
    for policy, figures in one.items():
        assert figures["delay"]["1"]["annualised_sharpe"] == own.annualised_sharpe[policy]
        assert set(figures["delay"]) == {"1", "2"}
        if figures["breakeven_bps"] is not None:
            assert (own.final_value[policy] > 1) == (figures["breakeven_bps"] > 2)
    assert "breakeven" in told
    assert f"{PAIR}  validation: costs and delay of execution" in told

    with open(target / "decisions-SYNC_SYND.csv", newline="") as stream:
        lines = list(csv.reader(stream))
    headline = base.loc[("test", "base", PAIR, "ensemble")]
    assert lines[0] == ["timestamp", "portfolio_value", "turnover", "trading_cost", "financing_cost", "net_return",
                        "weight_SYNC", "weight_SYND"]  # fmt: skip
    columns = ["equity", "turnover", "trading_cost", "financing", "net_return", "weight_a", "weight_b"]
    assert [[float(value) for value in line[1:]] for line in lines[1:]] == headline[columns].to_numpy().tolist()
    assert [line[0] for line in lines[1:]] == [str(date.date()) for date in headline.index]
    assert (target / "decisions-SYNA_SYNB-validation.csv").is_file()


def write_prices(folder: Path, run: RunConfig, bars: int) -> None:
    """The synthetic prices as files, longer than the run's own: the first bars are the same."""
    folder.mkdir()
    longer = run.model_copy(update={"synthetic": run.synthetic.model_copy(update={"bars": bars})})
    for legs in load_legs(longer).values():
        for leg in legs:
            columns = {name: getattr(leg, name) for name in ("open", "high", "low", "close", "volume")}
            frame = pd.DataFrame({"date": leg.dates, **columns})
            frame.to_parquet(folder / f"{leg.ticker}.parquet")


def test_other_prices_move_no_split_and_a_foreign_run_is_left_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prices that have grown: fractions of them would put the test span elsewhere, and fit another scaler."""
    config = FinishedRun.open(run).run
    write_prices(tmp_path / "prices", config, config.synthetic.bars + 300)
    shutil.rmtree(run / "state")  # as it is published: without a journal
    before = files(run)
    out = tmp_path / "elsewhere"
    prices = ["--data-dir", str(tmp_path / "prices")]
    assert main([str(run), "--grid", "costs=3", "lag=1", *prices, "--out", str(out), "--all-daily"]) == 0
    assert files(run) == before
    events = read_frame(out / "frames" / "events.parquet").to_pandas()
    assert list(events.kind) == ["look"]
    assert events.detail[0].endswith(f"on prices of {tmp_path / 'prices'}")
    again, first = (daily(folder, split="test", scenario="base") for folder in (out, run))
    assert set(again.run) != set(first.run)  # other prices, another identity
    dates = again.index.get_level_values("date")
    assert dates.min() == first.index.get_level_values("date").min()
    assert (dates > first.index.get_level_values("date").max()).sum() == 300 * len(first.groupby("policy")) * 2
    shared = again.loc[first.index].drop(columns="run")
    pd.testing.assert_frame_equal(shared, first.drop(columns="run"))
    assert set(daily(out, scenario="cost3-lag1").index.get_level_values("policy")) >= {"survivor-3", "zscore"}

    assert main([str(run), "--out", str(out)]) == 2
    assert f"--out: {out} exists and is not empty" in capsys.readouterr().err


def test_prices_of_the_test_span_alone_are_enough(run: Path, tmp_path: Path) -> None:
    """Nothing is fitted anew, neither scaler nor baselines, and features remember no more than their windows."""
    config = FinishedRun.open(run).run
    write_prices(tmp_path / "prices", config, config.synthetic.bars)
    first = daily(run, split="test", scenario="base", policy="survivor-1")
    start = first.index.get_level_values("date").min()
    for path in (tmp_path / "prices").iterdir():
        frame = pd.read_parquet(path)
        begin = int(frame.date.searchsorted(start)) - 251
        frame.iloc[begin:].to_parquet(path)
    out = tmp_path / "elsewhere"
    assert (
        main([str(run), "--grid", "costs=3", "lag=1", "--data-dir", str(tmp_path / "prices"), "--out", str(out)]) == 0
    )
    for policy in ("survivor-1", "static_gross", "zscore", "zscore_textbook"):
        again = daily(out, split="test", scenario="base", policy=policy).reset_index().drop(columns="run")
        own = daily(run, split="test", scenario="base", policy=policy).reset_index().drop(columns="run")
        # a rule remembers a position from before the prices begin until its next signal
        rows = slice(None) if policy in ("survivor-1", "static_gross") else slice(150, None)
        pd.testing.assert_frame_equal(again[rows].drop(columns="equity"), own[rows].drop(columns="equity"))


def break_and_probe(*arguments: Any) -> Any:
    """The probe of a task in which trading pays."""
    from envs import ledger
    from pbt.scenarios import probe

    honest = ledger.step

    def paid(account: Any, target: Any, returns: Any, dt: Any, terms: Any) -> Any:
        return honest(account, target, returns, dt, replace(terms, cost=-1 * terms.cost))

    ledger.step = paid
    return probe(*arguments)


def test_returns_that_rise_with_costs_end_the_command(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    import pbt.scenarios

    monkeypatch.setattr(pbt.scenarios, "probing", ray.remote(num_cpus=1)(break_and_probe))
    before = files(run)
    assert main([str(run), "--grid", "costs=1,5", "lag=1", "--splits", "validation", "--pairs", "SYNA/SYNB"]) == 1
    told, errors = capsys.readouterr()
    assert told == ""
    assert errors.startswith("pairpbt: THE ACCOUNTING IS BROKEN: equity rises with costs; nothing was written")
    assert "SYNA/SYNB validation ensemble: equity" in errors
    assert "at 5 bps is above" in errors
    assert " with identical targets" in errors
    assert files(run) == before  # and validation alone is no look


MISTAKES = {
    "no run": (["nowhere"], "nowhere holds no run"),
    "split": (["RUN", "--splits", "tset"], "--splits: 'tset' is no split; list some of train, validation, test"),
    "lag": (["RUN", "--grid", "lag=4", "--splits", "train,test"], "lag=4 decides before the first features of train"),
    "pairs": (["RUN", "--pairs", "A/B"], "--pairs: 'A/B' is no pair of this run; choose from SYNA/SYNB, SYNC/SYND"),
    "leverage": (["RUN", "--grid", "leverage=-1"], "--grid: backtest.leverages.0"),
    "policy": (["RUN", "--csv", "--policy", "nobody"], "--policy: SYNA/SYNB has no 'nobody'; choose one of ensemble"),
    "prices": (["RUN", "--data-dir", "nowhere"], "data.dir: nowhere is no directory"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = MISTAKES[mistake]
    assert main([str(undisturbed) if argument == "RUN" else argument for argument in arguments]) == 2
    told, errors = capsys.readouterr()
    assert told == ""
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not (undisturbed / "backtests").exists()


def test_a_scaler_of_other_features_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run / "survivors" / "SYNC_SYND").glob("*/scaler.json"):
        path.write_text(path.read_text().replace('"spread_z_60"', '"spread_z_61"'))
    assert main([str(run)]) == 2
    assert "SYNC/SYND: feature 27 is spread_z_60 here and spread_z_61 in the policy's scaler" in capsys.readouterr().err
