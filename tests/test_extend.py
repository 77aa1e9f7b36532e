"""A finished run gets another pair: killed on the way, resumed, replayed; the finished pairs keep every bit."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from analysis.frames import read_frame
from envs.synthetic import synthetic_pair
from pbt.launch import main
from pbt.leaderboard import run_status
from pbt.manifest import Population
from pbt.replay import main as replay
from pbt.run_dir import RunDir
from pbt.store import StateStore
from rayconf.loading import build_config, load_file, merge
from rayconf.sections import SyntheticConfig
from rayconf.storage import LocalStorage
from tests.commands import MINUTES, command, environment, launch
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("alone")

NEW = "SYNE/SYNF"
OLD = ("SYNA/SYNB", "SYNC/SYND")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def finished_part(run: Path) -> dict[str, bytes]:
    """All that a finished run consists of, apart from the journals that grow."""
    grows = ("state/events.jsonl", "state/progress.jsonl", "state/lineage.jsonl", "run.log")
    return {name: content for name, content in contents(run).items() if name not in grows}


@pytest.fixture(scope="module")
def killed(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extension killed after its first barrier; all the while its status could be read."""
    run = tmp_path_factory.mktemp("extended") / "tiny"
    shutil.copytree(undisturbed, run)
    process = subprocess.Popen(
        command("--extend", str(run), "--pairs", NEW), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 5 * MINUTES
    seen = []
    while not seen or seen[-1] != ("partial", 1):
        assert process.poll() is None, "the extension ended before it could be killed"
        assert time.monotonic() < deadline
        status = run_status(RunDir(run))
        seen.append((status["status"], status["pairs"].get(NEW, {}).get("generation")))
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert seen[0] == ("complete", None)
    assert ("partial", 0) in seen
    return run


@pytest.fixture(scope="module")
def extended(killed: Path, undisturbed: Path) -> Path:
    before, now = finished_part(undisturbed), finished_part(killed)
    assert {name: now[name] for name in before} == before  # the kill cost the finished part nothing
    assert main(["--extend", str(killed), "--pairs", "SYNG/SYNH"]) == 2
    watch = subprocess.Popen(
        [sys.executable, "-m", "pbt.status", str(killed), "--watch", "0.2"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    done = launch("--resume", "--run-dir", str(killed.parent), "--name", "tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"report {killed / 'report.html'}"
    assert "members    3 (1 pair x 3)" in done.stdout
    told, _ = watch.communicate(timeout=MINUTES)
    assert watch.returncode == 0
    assert told.splitlines()[-1] == "tiny: complete, 6 of 6 generations"
    assert f"{NEW}  generation 2/2" in told
    return killed


def test_the_finished_pairs_keep_every_bit(extended: Path, undisturbed: Path) -> None:
    for name in ("daily", "lineage", "progress", "validation", "summary"):
        before, after = (read_frame(run / "frames" / f"{name}.parquet") for run in (undisturbed, extended))
        pairs = after.column("pair").to_pylist()
        assert after.filter([pair in OLD for pair in pairs]).equals(before), name
        assert set(pairs) == {*OLD, NEW}, name
    before, after = contents(undisturbed / "survivors"), contents(extended / "survivors")
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"SYNE_SYNF"}
    summaries = [json.loads((run / "summary.json").read_text()) for run in (undisturbed, extended)]
    # More pairs are more tests: p-values, and what may be claimed, follow their number. All else stays.
    before, after = (
        {pair: {k: v for k, v in entry.items() if k not in ("verdict", "statistics")} for pair, entry in one.items()}
        for one in (summaries[0]["pairs"], summaries[1]["pairs"])
    )
    assert {pair: after[pair] for pair in OLD} == before
    statistics = [{pair: one["pairs"][pair]["statistics"] for pair in OLD} for one in summaries]
    for pair in OLD:
        assert statistics[1][pair]["sharpe"] == statistics[0][pair]["sharpe"]
        assert (statistics[0][pair]["looks"], statistics[1][pair]["looks"]) == (1, 1)  # not looked at again
        assert (statistics[0][pair]["pairs"], statistics[1][pair]["pairs"]) == (2, 3)
    assert summaries[1]["pairs"][NEW]["zscore"].startswith("window")
    states = [set((run / "members" / "states").iterdir()) for run in (undisturbed, extended)]
    assert {path.name for path in states[0]} <= {path.name for path in states[1]}
    report = (extended / "report.html").read_text()
    assert all(f">{pair}</h2>" in report for pair in (*OLD, NEW))


def test_where_the_new_pair_came_from_is_told_and_kept(extended: Path, undisturbed: Path) -> None:
    config, was = (yaml.safe_load((run / "config.yaml").read_text()) for run in (extended, undisturbed))
    assert config["data"].pop("pairs") == [*OLD, NEW]
    assert config["data"].pop("transferred") == [NEW]
    assert config["split"].pop("validation_start") < config["split"].pop("test_start")
    was["data"].pop("pairs"), was["data"].pop("transferred")
    was["split"].pop("validation_start"), was["split"].pop("test_start")
    assert config == was
    assert not (extended / "extension.yaml").exists()

    events = pd.read_parquet(extended / "frames" / "events.parquet")
    told = [kind for kind in events.kind if kind != "first_step"]
    assert told[-5:] == ["resume", "plan", "resume", "look", "done"]
    plan = events[events.kind == "plan"].detail.iloc[-1]
    population = Population.read(extended / "state" / "SYNE_SYNF.json")
    rows = pd.read_parquet(extended / "frames" / "lineage.parquet").query("pair == @NEW and generation == 0")
    assert list(rows.operation) == ["start"] * 3
    assert rows.state.isna().to_list() == [True, False, False]  # m00 is the control
    archives = {pair: Population.read(extended / "state" / f"{pair.replace('/', '_')}.json").archive for pair in OLD}
    for row in rows[rows.state.notna()].itertuples():
        assert row.parent_member == population.bases[row.state]
        source = population.bases[row.state]
        pair, member, generation = source.split(":")
        (snapshot,) = [s for s in archives[pair] if (s.member, s.generation) == (member, int(generation))]
        assert f"{NEW}: {row.member} starts from {source}, state {snapshot.state}" in plan
        assert row.hp_learning_rate == snapshot.hyperparameters["learning_rate"]
        assert row.state in StateStore(LocalStorage(extended)).names()


def test_a_transferred_survivor_replays_to_the_bit(extended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It starts from the recorded state, and not from nothing."""
    archive = json.loads((extended / "summary.json").read_text())["pairs"][NEW]["survivors"]
    rank = next(entry["rank"] for entry in archive if entry["member"] != "m00")
    assert replay([str(extended), "--pair", NEW, "--rank", str(rank)]) == 0
    assert "equal      every segment" in capsys.readouterr().out
    segments = pq.read_table(next((extended / "replays").iterdir()) / "segments.parquet")
    assert segments.column("start")[0].as_py() in Population.read(extended / "state" / "SYNE_SYNF.json").bases


@pytest.fixture(scope="module")
def on_files(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run as if its prices had come from files, among them a pair that is too short."""
    folder = tmp_path_factory.mktemp("files")
    prices = folder / "prices"
    prices.mkdir()
    for pair in (*OLD, "BRIEF/SHORT"):
        for bars in synthetic_pair(pair, SyntheticConfig(bars=1600)):
            columns = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
            table = pd.DataFrame({"date": bars.dates.astype(str), **columns})
            table.head(1600 if pair in OLD else 900).to_csv(prices / f"{bars.ticker}.csv", index=False)
    run = folder / "tiny"
    shutil.copytree(undisturbed, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["dir"] = str(prices)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


MISTAKES = {
    "there already": (["--pairs", "SYNA/SYNB"], r"--pairs: SYNA/SYNB is a pair of .* already"),
    "no pair": (["--pairs", "SYNE-SYNF"], r"'SYNE-SYNF' is no pair"),
    "twice": (["--pairs", "SYNE/SYNF,SYNE/SYNF"], r"give each pair once"),
    "which": ([], r"--extend: by which pairs\? give --pairs"),
    "none": (["--pairs", ","], r"--pairs: name at least one pair"),
    "a seed": (["--pairs", NEW, "--seed", "3"], r"--seed: leave it out"),
    "a field": (["--pairs", NEW, "--set", "ppo.gamma=0.9"], r"--set: leave it out"),
    "a name": (["--pairs", NEW, "--name", "other"], r"--name: leave it out"),
    "resume": (["--pairs", NEW, "--resume"], r"--resume: leave it out"),
    "no prices": (["--pairs", "GONE/AWAY"], r"GONE"),
    "too short": (["--pairs", "BRIEF/SHORT"], r"BRIEF/SHORT: 900 bars are too few: validation"),
    "pooled": (["--pairs", NEW], r"has one population for all pairs \(pbt\.pooled\); launch them in another run"),
    "anchored": (["--pairs", NEW], r"holds on to its base; launch the pairs in a run of their own with that --base"),
}
OF_THE_RUN: dict[str, dict[str, dict[str, object]]] = {
    "pooled": {"pbt": {"pooled": True}, "universe": {"pairs": OLD}},
    "anchored": {"optimizer": {"pull": 1.0}, "stages": {"base": "elsewhere"}},
}
"""Settings that a finished run may have."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_touches_nothing(
    mistake: str, undisturbed: Path, on_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = MISTAKES[mistake]
    run = on_files if mistake in ("no prices", "too short") else undisturbed
    if mistake in OF_THE_RUN:
        run = shutil.copytree(undisturbed, tmp_path / "tiny")
        config = merge(load_file(run / "config.yaml"), OF_THE_RUN[mistake])
        (run / "config.yaml").write_text(build_config(config).to_yaml())
    before = contents(run)
    assert main(["--extend", str(run), *arguments]) == 2
    told, errors = capsys.readouterr()
    assert told == ""
    assert re.search(message, errors), errors
    assert len(errors.splitlines()) == 1
    assert contents(run) == before


def test_only_a_finished_run_is_extended_and_no_copy_of_its_config_launched(
    undisturbed: Path, extended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(undisturbed, run)
    (run / "summary.json").unlink()
    assert main(["--extend", str(run), "--pairs", NEW]) == 2
    assert "is not finished; finish it with --resume" in capsys.readouterr().err
    assert main(["--extend", str(tmp_path / "nowhere"), "--pairs", NEW]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert main(["--config", str(extended / "config.yaml"), "--run-dir", str(tmp_path), "--name", "copy"]) == 2
    assert f"data.transferred: {NEW} joined another run" in capsys.readouterr().err
    assert main(["--extend", str(undisturbed), "--pairs", NEW, "--dry-run"]) == 0
    assert "members    3 (1 pair x 3)" in capsys.readouterr().out
    assert not (undisturbed / "extension.yaml").exists()
