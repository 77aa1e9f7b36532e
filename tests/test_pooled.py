"""One population for all pairs of a run: trained and told once, judged on every pair, the same for each."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.frames import read_frame
from pbt import fitness
from pbt.launch import main
from pbt.leaderboard import run_status
from pbt.publication import portable
from pbt.replay import main as replay
from pbt.run_dir import RunDir
from rayconf.errors import UserError
from rayconf.loading import build_config, load_config, load_file
from rayconf.plan import plan
from rayconf.session import Machine
from tests.commands import environment, launch, tiny
from tests.conftest import ROOT
from tests.envs.conftest import make_bars

pytestmark = pytest.mark.usefixtures("alone")

LEADER, OTHER = PAIRS = ("SYNA/SYNB", "SYNC/SYND")
SETTINGS = (
    "pbt.pooled=true",
    "universe.pairs=SYNA/SYNB,SYNC/SYND,SYNE/SYNF",
    "split.walk_validation=150",
    "env.mapping=residual",  # so that nobody is idle, and some are challenged
    "pbt.fitness_over=cash",
    "backtest.cost_bps=[2]",
    "backtest.lags=[1]",
)
TESTS = ("--walk-forward", "1779-01-01,1780-02-01")
FRAMES = ("lineage", "diversity", "validation", "daily", "summary", "evidence")
WHERE = ["window", "member", "generation"]


def arguments(folder: Path) -> list[str]:
    return tiny(folder, *TESTS, *[word for text in SETTINGS for word in ("--set", text)])


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two windows of a walk-forward, two generations of three members in each."""
    folder = tmp_path_factory.mktemp("pooled")
    done = launch(*arguments(folder))
    assert done.returncode == 0, done.stderr
    assert "members    3 (one population for 2 pairs)" in done.stdout
    assert f"under the name of {LEADER}, whose fitness is pooled over {', '.join(PAIRS)}" in done.stdout
    assert done.stdout.count("generation 2/2") == 2, "a line per window, not per pair"
    return folder / "tiny"


def frame(run: Path, name: str, **values: object) -> pd.DataFrame:
    return read_frame(run / "frames" / f"{name}.parquet", **values).to_pandas()


def test_it_trains_once_and_is_evaluated_on_every_pair(pooled: Path) -> None:
    run = build_config(load_file(pooled / "config.yaml"))
    progress, validation = frame(pooled, "progress"), frame(pooled, "validation")
    assert set(progress.pair) == {LEADER}
    assert len(progress) * run.env_steps_per_update == 2 * plan(run, Machine(2)).env_steps
    assert {tuple(sorted(rows.pair.unique())) for _, rows in validation.groupby(WHERE)} == {PAIRS}
    assert len(validation.groupby(WHERE)) == 2 * 2 * 3
    entries = json.loads((pooled / "summary.json").read_text())["pairs"]
    assert {pair: entry["trials"] for pair, entry in entries.items()} == dict.fromkeys(PAIRS, 2 * 2 * 3)
    status = run_status(RunDir(pooled))
    assert list(status["pairs"]) == [LEADER]
    assert (status["status"], status["pairs"][LEADER]["generation"]) == ("complete", 2)
    report = (pooled / "report.html").read_text()
    assert f"one population, under the name of {LEADER}, whose fitness is pooled over {', '.join(PAIRS)}" in report
    assert f"Validation fitness of {OTHER} over generations" in report


def test_fitness_and_gaps_are_those_of_the_returns_that_were_kept(pooled: Path) -> None:
    run = build_config(load_file(pooled / "config.yaml"))
    windows = json.loads((pooled / "summary.json").read_text())["pairs"][LEADER]["windows"]
    seeds = {entry["window"]: entry["seed"] for entry in windows}
    validation = frame(pooled, "validation").set_index(["window", "member", "generation", "pair"]).sort_index()

    def accounts(window: int, member: str, generation: int) -> list[fitness.Account]:
        kept = [validation.loc[(window, member, generation, pair)] for pair in PAIRS]
        return [
            fitness.Account(rows.net_return.to_numpy(), np.ones(len(rows)), rows.date.to_numpy(), 252.0, False)
            for rows in kept
        ]

    for row in frame(pooled, "progress").itertuples():
        of = accounts(row.window, row.member, row.generation)
        found = fitness.evaluate_each(of, run.pbt, seeds[row.window], LEADER, int(row.generation))
        assert (found.value, found.se) == (row.fitness, row.fitness_se)
    lineage = frame(pooled, "lineage", pair=LEADER)
    challenged = lineage[lineage.gap.notna()]
    assert len(challenged)
    for row in challenged.itertuples():
        where = (lineage.window == row.window) & (lineage.generation == row.generation)
        (donor,) = lineage[where & (lineage.fitness == row.parent_fitness)].member
        gaps = [
            fitness.pooled_score(d.net_return, 252.0, run.pbt) - fitness.pooled_score(m.net_return, 252.0, run.pbt)
            for d, m in zip(*(accounts(row.window, name, row.generation) for name in (donor, row.member)), strict=True)
        ]
        assert row.gap == pytest.approx(np.mean(gaps), rel=1e-12)


def test_every_pair_has_the_same_survivors_with_a_scaler_of_its_own(pooled: Path) -> None:
    lineage, diversity = frame(pooled, "lineage"), frame(pooled, "diversity")
    for rows in (lineage, diversity):
        one, two = (rows[rows.pair == pair].drop(columns="pair").reset_index(drop=True) for pair in PAIRS)
        pd.testing.assert_frame_equal(one, two)
    for home in (pooled, pooled / "windows" / "1"):
        ranks = sorted(path.name for path in (home / "survivors" / "SYNA_SYNB").iterdir())
        assert ranks == ["1", "2", "3"]
        for rank in ranks:
            one, two = (home / "survivors" / name / rank for name in ("SYNA_SYNB", "SYNC_SYND"))
            assert (one / "policy.safetensors").read_bytes() == (two / "policy.safetensors").read_bytes()
            assert (one / "scaler.json").read_text() != (two / "scaler.json").read_text()
            ours, theirs = (pd.read_parquet(at / "schedule.parquet") for at in (one, two))
            pd.testing.assert_frame_equal(ours.drop(columns="pair"), theirs.drop(columns="pair"))


def test_a_survivor_of_the_second_pair_comes_out_of_its_schedule_to_the_bit(
    pooled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = pd.read_parquet(pooled / "survivors" / "SYNC_SYND" / "1" / "schedule.parquet")
    assert replay([str(pooled), "--pair", OTHER]) == 0
    told = capsys.readouterr().out
    assert f"equal      every segment ({len(schedule)})" in told
    (found,) = (pooled / "replays").iterdir()
    segments = pd.read_parquet(found / "segments.parquet")
    assert list(segments.fitness) == list(segments.recorded_fitness)


def test_killed_at_a_barrier_and_resumed_equals_undisturbed(
    pooled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "tests.faults.saboteur", "at-a-barrier", *arguments(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, timeout=480)
    assert killed.returncode < 0
    run = tmp_path / "tiny"
    where = ["--resume", "--run-dir", str(tmp_path), "--name", "tiny"]
    assert main([*where, "--set", "pbt.pooled=false"]) == 2
    assert "pbt.pooled was True and cannot become False" in capsys.readouterr().err
    done = launch(*where)
    assert done.returncode == 0, done.stderr
    for name in FRAMES:
        assert (run / "frames" / f"{name}.parquet").read_bytes() == (
            pooled / "frames" / f"{name}.parquet"
        ).read_bytes(), name


REFUSED = {
    "no universe": ({}, "pbt.pooled: one population for all pairs trains on what they share; give universe.tickers"),
    "joined": ({"data": {"transferred": [OTHER]}}, "pbt.pooled: pairs cannot join a population of others"),
    "specialists": (
        {"stages": {"run": ["base", "specialists", "population"]}, "network": {"encoder": "conv"}},
        "pbt.pooled: leave specialists out of stages.run",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pooled_is_refused(case: str) -> None:
    more, message = REFUSED[case]
    universe = {} if case == "no universe" else {"pairs": PAIRS}
    with pytest.raises(UserError, match=message):
        build_config({"pbt": {"pooled": True}, "universe": universe, **more})


@pytest.mark.parametrize(
    ("hourly", "message"),
    [
        (False, "pbt.pooled: the pairs have 0 sessions of validation in common and need 126"),
        (True, "pbt.pooled: SYNC/SYND has other features than SYNA/SYNB"),
    ],
)
def test_pairs_without_common_days_or_features_are_refused(
    hourly: bool, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prices of every second day, those of the second pair of the days between, or of their hours."""
    days = np.datetime64("2000-01-01") + 2 * np.arange(1600)
    hours = (days[:, None].astype("datetime64[h]") + np.arange(14, 20)).ravel()
    for number, ticker in enumerate(("SYNA", "SYNB", "SYNC", "SYND")):
        second = number // 2
        dates = (hours if hourly and second else days) + np.timedelta64(second, "D")
        bars = make_bars(ticker, dates, number)
        table = pd.DataFrame({name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")})
        table.insert(0, "date", np.datetime_as_string(dates))
        table.to_csv(tmp_path / f"{ticker}.csv", index=False)
    where = ["--data-dir", str(tmp_path), "--pairs", ",".join(PAIRS), "--dry-run"]
    settings = ["--set", "pbt.pooled=true", "--set", "universe.pairs=SYNA/SYNB"]
    assert main(["--preset", "smoke", *where, *settings]) == 2
    assert message in capsys.readouterr().err


def test_a_published_config_keeps_its_universe() -> None:
    run = load_config("smoke", assignments=SETTINGS)
    assert portable(run, [OTHER]).universe == run.universe
