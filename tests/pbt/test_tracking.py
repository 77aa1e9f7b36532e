"""Trackers by their real clients: what was written is read back."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from analysis.frames import read_jsonl
from pbt.run_dir import RunDir
from pbt.wandb_runs import run_id
from tests.conftest import ROOT
from tests.pbt.tracked import STEPS
from tests.pbt.wandb_logs import logs

MEMBERS = [f"SYNA_SYNB-m0{i}" for i in range(4)]
OFFLINE = ("tracking.wandb=offline", "tracking.wandb_tags=[one, two]", "tracking.wandb_project=mine")


def track(folder: Path, *arguments: str, status: int = 0, **environment: str) -> str:
    """The output of a tracked rehearsal in a process of its own, with no login of the machine's."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.pbt.tracked", str(folder), *arguments],
        cwd=ROOT,
        env={**mine, "PYTHONPATH": str(ROOT), "HOME": str(folder / "home"), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def raw_steps(folder: Path, tag: str) -> list[int]:
    """Steps of a curve as they lie in the event files, before any reader drops repeats."""
    events = [event for file in sorted(folder.glob("events.*")) for event in EventFileLoader(str(file)).Load()]
    return [event.step for event in events if tag in {value.tag for value in event.summary.value}]


def hparams(board: EventAccumulator) -> dict[str, Any]:
    """What the HPARAMS tab is told, by kind."""
    found = {}
    for tag, metadata in board.summary_metadata.items():
        data = HParamsPluginData.FromString(metadata.plugin_data.content)
        kind = data.WhichOneof("data")
        if tag.startswith("_hparams_/"):
            found[kind] = getattr(data, kind)
    return found


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, str]]:
    """A run that was killed with a generation committed and not yet logged, and resumed to its end; the first ids."""
    folder = tmp_path_factory.mktemp("resumed")
    track(folder, "3", "kill", *OFFLINE, status=-9)
    run = folder / "run"
    first = {path.stem: path.parent.name for path in run.glob("wandb/offline-run-*/run-*.wandb")}
    assert len(first) == 4
    torn = next((run / "tensorboard" / MEMBERS[0]).glob("events.*"))
    torn.write_bytes(torn.read_bytes()[:-5])  # generation 2 was being written
    assert raw_steps(torn.parent, "reward_mean") == [STEPS]
    assert raw_steps(torn.parents[1] / MEMBERS[1], "reward_mean") == [STEPS, 2 * STEPS]
    track(folder, "5", "end", *OFFLINE)
    return run, first


def test_wandb_goes_on_after_a_kill_with_every_step_once(resumed: tuple[Path, Mapping[str, str]]) -> None:
    run, first = resumed
    found = logs(run)
    assert sorted(found) == MEMBERS
    assert {f"run-{log.run.run_id}" for log in found.values()} == set(first), "the same runs"
    for title, log in found.items():
        assert log.steps == [1, 2, 3, 4, 5], title
        assert [row["env_steps"] for row in log.history] == [STEPS * i for i in range(1, 6)]
        assert [row["generation"] for row in log.history] == [1, 2, 3, 4, 5]
        assert not {"kl", "host"} & log.history[0].keys()
        assert log.exit_code == 0
        assert log.run.project == "mine"
        assert log.run.run_group == "run"
        assert list(log.run.tags) == ["one", "two"]
        assert log.run.job_type == "member"
    rows = read_jsonl(RunDir(run).lineage_journal)
    start = {row["member"]: row for row in rows if row["generation"] == 0}["m01"]
    config = found["SYNA_SYNB-m01"].config
    assert config["hyperparameters"] == {name[3:]: value for name, value in start.items() if name.startswith("hp_")}
    assert config["hyperparameters"]["learning_rate"] != config["optimizer"]["learning_rate"]
    assert (config["pair"], config["member"], config["arm"]) == ("SYNA/SYNB", "m01", "pbt")
    assert config["identity"] == start["run"]


def test_wandb_finds_the_logs_to_upload(resumed: tuple[Path, Mapping[str, str]]) -> None:
    folders = [str(path) for path in sorted(resumed[0].glob("wandb/offline-run-*"))]
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", *folders],
        env={**os.environ, "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Would sync 4 run(s)" in done.stderr


def test_tensorboard_goes_on_after_a_kill_with_every_step_once(resumed: tuple[Path, Mapping[str, str]]) -> None:
    for title in MEMBERS:
        folder = resumed[0] / "tensorboard" / title
        assert raw_steps(folder, "reward_mean") == [STEPS * i for i in range(1, 6)], title
        board = EventAccumulator(str(folder)).Reload()
        assert [event.step for event in board.Scalars("reward_mean")] == [STEPS * i for i in range(1, 6)]
        assert "kl" not in board.Tags()["scalars"]


def test_the_hparams_tab_compares_members(resumed: tuple[Path, Mapping[str, str]]) -> None:
    starts = {row["member"]: row for row in read_jsonl(RunDir(resumed[0]).lineage_journal) if row["generation"] == 0}
    for title in MEMBERS:
        board = EventAccumulator(str(resumed[0] / "tensorboard" / title)).Reload()
        told = hparams(board)
        values = told["session_start_info"].hparams
        row = starts[title[-3:]]
        assert values["learning_rate"].number_value == row["hp_learning_rate"]
        assert values["member"].string_value == title[-3:]
        metrics = {metric.name.tag for metric in told["experiment"].metric_infos}
        assert {"fitness", "fitness_smoothed"} <= metrics & set(board.Tags()["scalars"])
        assert told["session_end_info"].status == 1  # success


def test_a_finished_member_is_left_as_it_is(resumed: tuple[Path, Mapping[str, str]], tmp_path: Path) -> None:
    run = resumed[0]
    before = {
        path: path.stat().st_mtime_ns for path in run.rglob("*") if path.suffix == ".wandb" or "tfev" in path.name
    }
    track(run.parent, "5", "end", *OFFLINE)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(logs(run)) == 4


def test_online_without_a_login_goes_offline_and_says_so(tmp_path: Path) -> None:
    told = track(tmp_path, "2", "end", "tracking.wandb=online").splitlines()
    folder = tmp_path / "run" / "wandb"
    line = f"wandb: no login found, logging offline to {folder}; upload with wandb sync {folder}/offline-run-*"
    assert told == [line, "trained"]
    events = read_jsonl(tmp_path / "run" / "state" / "events.jsonl")
    assert [event["detail"] for event in events if event["kind"] == "tracker_failed"] == [line]
    found = logs(tmp_path / "run")
    assert [log.steps for log in found.values()] == [[1, 2]] * 4
    assert {log.exit_code for log in found.values()} == {1}, "not trained to the end"


@pytest.mark.parametrize(
    ("key", "said"), [("0" * 40, "connection refused"), ("5ecre7", "WANDB_API_KEY invalid: API key must have 40+")]
)
def test_a_login_that_does_not_work_stops_nothing(tmp_path: Path, key: str, said: str) -> None:
    server = {"WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    told = track(tmp_path, "5", "end", "tracking.wandb=online", **server).splitlines()
    (line,) = [line for line in told if line != "trained"]
    assert said in line
    assert f"logging offline to {tmp_path / 'run' / 'wandb'}; upload with wandb sync" in line
    found = logs(tmp_path / "run")
    assert {title: log.steps for title, log in found.items()} == {title: [1, 2, 3, 4, 5] for title in MEMBERS}
    assert {log.exit_code for log in found.values()} == {0}
    kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert not kept, "a key is stored nowhere"


def test_a_tracker_that_fails_ends_neither_the_run_nor_the_others(tmp_path: Path) -> None:
    track(tmp_path, "1", "end", "tracking.tensorboard=false")
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    told = track(tmp_path, "5", "end", "tracking.wandb=offline").splitlines()
    (line,) = [line for line in told if line != "trained"]
    assert line.startswith("tensorboard: ")
    assert "it logs no further, the run goes on" in line
    found = logs(tmp_path / "run")
    assert [log.steps for log in found.values()] == [[1, 2, 3, 4, 5]] * 4, "with what was trained before it was on"


def test_ids_are_stable_short_and_distinct() -> None:
    name = "a" * 100
    ids = [
        run_id(RunDir(Path(folder) / name, identity), pair, member)
        for folder in ("x", "y")
        for identity in ("seed0-0", "seed1-0")
        for pair in ("BRK.B_^GSPC", "BRK.B_-GSPC")
        for member in ("m00", "m01")
    ]
    assert ids[:8] == ids[8:], "not of where the runs lie"
    assert len(set(ids)) == 8
    assert all(len(found) <= 128 and not set(found) & set("/\\#?%:^=") for found in ids)
