"""A walk-forward as its users run it: two windows on a market as small as they go, killed, resumed, and used after."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis.frames import read_frame
from analysis.metrics import cagr, max_drawdown, sharpe
from analysis.statistics import evidence
from envs.walk_forward import dated
from pbt.audit import main as audit
from pbt.backtest import main as backtest
from pbt.finished import FinishedRun
from pbt.launch import main
from pbt.leaderboard import run_status, summary_line
from pbt.mirror import committed, working
from pbt.publication import Publication, build
from pbt.replay import main as replay
from pbt.run_dir import RunDir
from pbt.survivor import load_policy
from pbt.windows import windows_of
from rayconf import load_config
from rayconf.loading import build_config, load_file
from tests.commands import MINUTES, command, environment, launch, tiny
from tests.conftest import ROOT
from tests.pbt.conftest import TINY

pytestmark = pytest.mark.usefixtures("alone")

PAIR = "SYNA/SYNB"
STARTS = ("1779-01-01", "1780-02-01")
FRAMES = ("lineage", "validation", "daily", "summary", "evidence", "diversity")


def prices(folder: Path, changed_from: str | None = None) -> Path:
    """The tickers of the pair as CSV, with other prices from a date on if one is given."""
    from envs.synthetic import synthetic_pair
    from rayconf.sections import SyntheticConfig

    folder.mkdir()
    rng = np.random.default_rng(3)
    for bars in synthetic_pair(PAIR, SyntheticConfig(bars=1600)):
        table = pd.DataFrame({name: getattr(bars, name) for name in ("open", "high", "low", "close")})
        if changed_from is not None:
            late = bars.dates >= np.datetime64(changed_from)
            table[late] *= np.exp(np.cumsum(0.03 * rng.standard_normal((late.sum(), 1)), axis=0))
        table = table.assign(date=bars.dates.astype("datetime64[D]").astype(str), volume=bars.volume)
        table.to_csv(folder / f"{bars.ticker}.csv", index=False)
    return folder


def arguments(folder: Path, data: Path, starts: str = ",".join(STARTS)) -> list[str]:
    where = ["--data-dir", str(data / "prices"), "--pairs", PAIR]
    return tiny(folder, *where, "--walk-forward", starts, "--set", "split.walk_validation=150")


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walked")
    prices(folder / "prices")
    done = launch(*arguments(folder / "runs", folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("window 1/2  SYNA/SYNB  generation 2/2") == 1
    assert done.stdout.count("window 2/2  SYNA/SYNB  generation 2/2") == 1
    return folder / "runs" / "tiny"


def frames(run: Path) -> dict[str, bytes]:
    return {name: (run / "frames" / f"{name}.parquet").read_bytes() for name in FRAMES}


def test_strung_returns_are_those_of_the_windows(walked: Path) -> None:
    daily = pd.read_parquet(walked / "frames" / "daily.parquet")
    summary = pd.read_parquet(walked / "frames" / "summary.parquet")
    assert set(daily.window) == set(summary.window) == {-1, 1, 2}
    names = ["scenario", "policy"]
    test = daily[(daily.split == "test") & (daily.window > 0)]
    whole = daily[daily.window == -1].groupby(names)
    assert set(whole.groups) == set(test.groupby(names).groups)
    for key, rows in test.groupby(names):
        own = rows.sort_values(["window", "date"])
        strung = whole.get_group(key)
        np.testing.assert_array_equal(strung.net_return, own.net_return)
        np.testing.assert_array_equal(strung.date, own.date)
        np.testing.assert_allclose(strung.equity, np.cumprod(1 + own.net_return.to_numpy()), rtol=1e-12)
    own = test[(test.scenario == "base") & (test.policy == "ensemble")].sort_values("date")
    row = summary.query("window == -1 and scenario == 'base' and policy == 'ensemble'").iloc[0]
    returns = own.net_return.to_numpy()
    figures = (len(returns), sharpe(returns, 252), cagr(returns, 252), max_drawdown(returns))
    assert (row.days, row.annualised_sharpe, row.cagr, row.max_drawdown) == pytest.approx(figures, rel=1e-12)
    # Every window begins from cash.
    first = own.groupby("window").first()
    np.testing.assert_allclose(first.turnover, first.gross, rtol=1e-9)
    starts = [np.datetime64(start) for start in STARTS]
    for window, rows in own.groupby("window"):
        assert rows.date.min() >= starts[window - 1] + np.timedelta64(29, "D")  # the embargo's 21 bars
        assert window == 2 or rows.date.max() < starts[1]


def test_headline_verdict_and_survivors(walked: Path) -> None:
    """The verdict is that of the strung span; the survivors are the last window's."""
    content = json.loads((walked / "summary.json").read_text())["pairs"][PAIR]
    found = evidence(walked)[PAIR]  # from the frames alone, to the bit what the launch wrote
    assert content["verdict"] == found.sentence()
    assert content["statistics"] == json.loads(json.dumps(found.as_dict()))
    summary = read_frame(walked / "frames" / "summary.parquet", split="test", scenario="base").to_pylist()
    sharpes = {(row["window"], row["policy"]): row["annualised_sharpe"] for row in summary}
    assert content["ensemble"]["test"]["base"]["annualised_sharpe"] == sharpes[-1, "ensemble"] == found.sharpe.value
    assert content["baselines"]["vol_target"]["base"]["annualised_sharpe"] == sharpes[-1, "vol_target"]
    assert content["survivors"][0]["test"]["base"]["annualised_sharpe"] == sharpes[2, "survivor-1"]
    assert [entry["window"] for entry in content["windows"]] == [1, 2]
    assert [e["ensemble"]["test"]["base"]["annualised_sharpe"] for e in content["windows"]] == [
        sharpes[number, "ensemble"] for number in (1, 2)
    ]
    assert content["trials"] == 2 * 2 * 3  # windows, generations, members
    report = (walked / "report.html").read_text()
    assert "Windows of the walk-forward" in report
    assert "strung together" in report
    survivor, early = (
        walked / "survivors" / "SYNA_SYNB" / "1",
        walked / "windows" / "1" / "survivors" / "SYNA_SYNB" / "1",
    )
    assert not (walked / "windows" / "2" / "survivors").exists()
    assert (survivor / "policy.safetensors").read_bytes() != (early / "policy.safetensors").read_bytes()
    for folder, number in ((survivor, 2), (early, 1)):
        run = build_config(load_file(folder / "config.yaml"))
        assert (run.split.test_start, run.split.walk_forward) == (STARTS[number - 1], ())
        assert run.split.test_end == (None if number == 2 else STARTS[1])
        assert run.seed == content["windows"][number - 1]["seed"] != 7
    assert load_policy(walked).run.split.test_start == STARTS[1]
    assert not list(walked.rglob("tune"))
    stored = yaml.safe_load((walked / "config.yaml").read_text())
    assert (stored["split"]["walk_forward"], stored["seed"]) == (list(STARTS), 7)


def test_later_prices_and_windows_change_no_weight_of_a_window(walked: Path, tmp_path: Path) -> None:
    """The first window alone, on prices that are others from its test on: every state is the same, to the bit."""
    prices(tmp_path / "prices", changed_from=STARTS[0])
    done = launch(*arguments(tmp_path / "runs", tmp_path, STARTS[0]))
    assert done.returncode == 0, done.stderr
    alone = tmp_path / "runs" / "tiny"

    def of_window(run: Path, name: str, **values: object) -> pd.DataFrame:
        return (
            read_frame(run / "frames" / f"{name}.parquet", window=1, **values)
            .to_pandas()
            .drop(columns="run", errors="ignore")
        )

    for name in ("lineage", "validation"):
        pd.testing.assert_frame_equal(of_window(walked, name), of_window(alone, name))
    for split in ("train", "validation"):
        pd.testing.assert_frame_equal(of_window(walked, "daily", split=split), of_window(alone, "daily", split=split))
    ours, theirs = (of_window(run, "daily", split="test", policy="hold_a", scenario="base") for run in (walked, alone))
    assert not np.array_equal(ours.net_return[:200], theirs.net_return[:200])
    path = Path("survivors") / "SYNA_SYNB" / "1"
    for file in ("policy.safetensors", "scaler.json"):
        assert (walked / "windows" / "1" / path / file).read_bytes() == (alone / path / file).read_bytes()


def test_killed_in_the_second_window_and_resumed_equals_undisturbed(
    walked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = subprocess.Popen(
        command(*arguments(tmp_path / "runs", walked.parents[1])),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    run = tmp_path / "runs" / "tiny"
    manifest = run / "windows" / "2" / "state" / "SYNA_SYNB.json"
    deadline = time.monotonic() + 6 * MINUTES
    while not (manifest.is_file() and json.loads(manifest.read_text())["generation"] == 1):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    status = run_status(RunDir(run))
    assert (status["window"], status["windows"], status["pairs"][PAIR]["generation"]) == (2, 2, 1)
    assert ", window 2/2  1 of 2 generations" in summary_line(status)
    assert main(["--resume", "--run-dir", str(run.parent), "--name", "tiny", "--walk-forward", STARTS[0]]) == 2
    assert "split.walk_forward was ('1779-01-01', '1780-02-01')" in capsys.readouterr().err
    done = launch("--resume", "--run-dir", str(run.parent), "--name", "tiny")
    assert done.returncode == 0, done.stderr
    assert "window 1/2" not in done.stdout, "the first window was trained to its end"
    assert frames(run) == frames(walked)
    [resumed] = [e for e in read_frame(run / "frames" / "events.parquet").to_pylist() if e["kind"] == "resume"]
    assert resumed["detail"] == "window 1 SYNA/SYNB at generation 2, window 2 SYNA/SYNB at generation 1"


def test_what_comes_after_a_run_is_of_the_last_window(
    walked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(command: Callable[[Sequence[str]], int], *arguments: str) -> str:
        assert command([str(walked), *arguments]) == 0, capsys.readouterr()
        return capsys.readouterr().out

    assert "to the bit" in told(replay, "--pair", PAIR)
    audited = told(audit, "--lookahead", "--bars", "3")
    assert re.search(r"; [1-9][0-9,]* recorded decisions repeated", audited)
    tested = told(backtest, "--grid", "costs=1", "lag=1", "--out", str(tmp_path / "again"))
    assert tested.startswith("window     2, the last of a walk-forward")
    again = read_frame(tmp_path / "again" / "frames" / "daily.parquet", scenario="base", policy="ensemble").to_pandas()
    daily = read_frame(walked / "frames" / "daily.parquet", scenario="base", policy="ensemble").to_pandas()
    own = daily[(daily.window == 2) & (daily.split == "test")]
    np.testing.assert_array_equal(again.net_return, own.net_return)
    fills = FinishedRun.open(walked).fills(PAIR)
    assert fills["test"] == (own.date.min().to_datetime64(), own.date.max().to_datetime64())
    assert main(["--extend", str(walked), "--pairs", "SYNC/SYND"]) == 2
    refused = capsys.readouterr().err
    assert "is a walk-forward, which takes no more pairs" in refused
    assert len(refused.splitlines()) == 1


def test_it_is_published_with_its_windows(walked: Path, tmp_path: Path) -> None:
    build(Publication.of(walked), tmp_path, "trader/walk")
    card = (tmp_path / "README.md").read_text()
    daily = pd.read_parquet(walked / "frames" / "daily.parquet").query("window == -1")
    assert f"{str(daily.date.min())[:10]} to {str(daily.date.max())[:10]}" in card
    assert "tests of 2 windows of a walk-forward strung together" in card
    survivor = json.loads((tmp_path / "survivors" / "SYNA_SYNB" / "1" / "config.json").read_text())
    assert survivor["split"]["test_start"] == STARTS[1]


def planned(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> tuple[int, str, str]:
    status = main([*tiny(folder), "--pairs", PAIR, "--set", "split.walk_validation=150", *more])
    out, errors = capsys.readouterr()
    return status, out, errors


def test_a_plan_tells_the_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = planned(capsys, tmp_path, "--walk-forward", "2", "--dry-run")
    assert status == 0
    assert "windows    2, each of these steps, one after the other; tests from 1779-01-25, 1780-02-07" in out
    assert "SYNA/SYNB: window 1: train 1775-12-20 .. 1778-06-26, 657 fills" in out
    assert "SYNA/SYNB: window 2: test 1780-03-07 .. 1781-02-16, 248 fills" in out
    assert out.count("1600 common bars") == 1
    assert "the synthetic market, whatever its pairs are called" in out
    assert not list(tmp_path.iterdir())


REFUSED: Mapping[str, tuple[list[str], str]] = {
    "not rising": (["--walk-forward", "1780-01-01,1779-01-01"], "dates must rise"),
    "no date": (["--walk-forward", "often"], "list ISO dates"),
    "short": (["--walk-forward", "1777-06-01"], r"window 1 \(test from 1777-06-01\): SYNA/SYNB: .*train has \d+ bars"),
    "beyond": (["--walk-forward", "1779-01-01,1790-01-01"], r"window 2 .*SYNA/SYNB: .*test has 0 bars"),
    "both": (
        ["--walk-forward", "2", "--set", "split.validation_start=1778-01-01", "--set", "split.test_start=1779-01-01"],
        "leave validation_start and test_start out",
    ),
    "base": (["--walk-forward", "2", "--base-checkpoint", "elsewhere"], r"split\.walk_forward: leave stages\.base out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_end_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, message = REFUSED[case]
    status, out, errors = planned(capsys, tmp_path, *more)
    assert (status, out) == (2, "")
    assert len(errors.splitlines()) == 1
    assert re.search(message, errors), errors
    assert not list(tmp_path.iterdir())


def test_a_windows_files_are_sent_and_fetched_as_the_runs_are() -> None:
    names = ("members/states/0.pt", "state/A_B.json", "survivors/A_B/1/policy.json", "tune/attempt-1/x")
    for name in names:
        for of_window in (f"windows/1/{name}", f"windows/12/{name}"):
            assert (working(of_window), committed(of_window)) == (working(name), committed(name))
    assert not working("windows/1/members/states/0.pt")
    assert committed("windows/1/state/previous/A_B.json")


def test_an_ordinary_run_knows_no_window(undisturbed: Path) -> None:
    for name in FRAMES:
        assert set(pd.read_parquet(undisturbed / "frames" / f"{name}.parquet").window) == {0}, name
    assert not (undisturbed / "windows").exists()
    assert "windows" not in json.loads((undisturbed / "summary.json").read_text())["pairs"][PAIR]
    assert "Windows of the walk-forward" not in (undisturbed / "report.html").read_text()


def test_resampled_histories_are_those_of_the_window(tmp_path: Path) -> None:
    """What else a window trains on ends where its own training does."""
    run = dated(
        load_config(
            "smoke",
            assignments=[*TINY, "augment.histories=1", "split.walk_forward=2", "split.walk_validation=150"],
        )
    )
    lengths = []
    for window in windows_of(run, RunDir(tmp_path)):
        market = window.markets[PAIR]
        assert market.training is not None
        rows = {span.rows for span in market.training.spans}
        assert rows == {market.splits["train"].rows}
        assert len(market.training.spans) == 2
        lengths += rows
    assert lengths[0] < lengths[1]
