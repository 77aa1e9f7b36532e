"""Runs in a bucket: the frames of a folder's run, a kill that leaves the bucket alone, and mistakes in one line."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from analysis.frames import read_jsonl
from analysis.report import main as report
from pbt.backtest import main as backtest
from pbt.decide import main as decide
from pbt.launch import main
from pbt.status import main as status
from tests.cluster import small_cluster
from tests.commands import MINUTES, command, environment, tiny
from tests.conftest import ROOT
from tests.object_store import KEYS, ObjectStore, object_store

pytestmark = pytest.mark.usefixtures("alone")

TWO_CPUS = ("--set", "resources.cpus=2")
SAME = ("lineage", "daily", "validation", "summary", "evidence")


@pytest.fixture(scope="module")
def bucket() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


def launch(scratch: Path, *arguments: str, fault: str | None = None) -> subprocess.CompletedProcess[str]:
    """A launch whose working copies lie in a folder of its own."""
    scratch.mkdir(exist_ok=True)
    sockets = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())  # whose paths must be short
    planted = [sys.executable, "-m", "tests.faults.saboteur", fault or "", *arguments]
    return subprocess.run(
        planted if fault else command(*arguments),
        cwd=ROOT,
        env=environment(TMPDIR=str(scratch), RAY_TMPDIR=sockets),
        capture_output=True,
        text=True,
        timeout=8 * MINUTES,
    )


def frames(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: files[f"frames/{name}.parquet"] for name in SAME}


def folder_frames(run: Path) -> dict[str, bytes]:
    return {name: (run / "frames" / f"{name}.parquet").read_bytes() for name in SAME}


def test_a_run_in_a_bucket_is_the_run_of_a_folder(
    bucket: ObjectStore, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = launch(tmp_path / "scratch", *tiny(bucket.uri("runs"), *TWO_CPUS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "report s3://mine/runs/tiny/report.html"
    assert not list((tmp_path / "scratch").glob("pairpbt-*"))
    files = bucket.files("runs/tiny")
    assert frames(files) == folder_frames(undisturbed)
    # Nothing more and nothing less than in the folder; event files are named by process and time.
    own = {path.relative_to(undisturbed).as_posix() for path in undisturbed.rglob("*") if path.is_file()}
    assert {name for name in files if "tfevents" not in name} == {name for name in own if "tfevents" not in name}
    assert len(files) == len(own)
    for name in own:
        if name.startswith(("members/", "survivors/", "state/SYN", "state/previous/")):
            assert files[name] == (undisturbed / name).read_bytes(), name

    uri = bucket.uri("runs/tiny")
    assert status([uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "complete"
    assert report([uri]) == 0
    assert capsys.readouterr().out.strip() == "s3://mine/runs/tiny/report.html"
    assert bucket.files("runs/tiny")["report.html"] == files["report.html"]

    assert decide([bucket.uri("runs/tiny/survivors/SYNC_SYND/1"), "--json"]) == 0
    there = capsys.readouterr().out
    assert decide([str(undisturbed / "survivors" / "SYNC_SYND" / "1"), "--json"]) == 0
    assert capsys.readouterr().out == there

    assert backtest([uri, "--grid", "costs=2,20"]) == 0
    where = capsys.readouterr().out.strip().splitlines()[-1].removeprefix("backtest s3://mine/runs/tiny/")
    after = bucket.files("runs/tiny")
    looks = [
        row["detail"] for row in map(json.loads, after["state/events.jsonl"].splitlines()) if row["kind"] == "look"
    ]
    assert len(looks) == 2
    assert looks[1].startswith(f"backtest {Path(where).name}: ")
    assert after[f"{where}/frames/daily.parquet"]
    changed = {name for name in after if after[name] != files.get(name)}
    assert {name for name in changed if not name.startswith(f"{where}/")} == {
        "state/events.jsonl",
        "frames/events.parquet",
    }


def test_a_kill_on_a_cluster_leaves_the_bucket_which_goes_on(
    bucket: ObjectStore, undisturbed: Path, tmp_path: Path
) -> None:
    """Two nodes that share nothing but the bucket, and a second driver that knows nothing of the first."""
    with small_cluster(**KEYS) as address:
        place = ["--run-dir", bucket.uri("killed"), "--name", "tiny", "--address", address]
        started = tiny(bucket.uri("killed"), "--address", address, *TWO_CPUS)
        killed = launch(tmp_path / "first", *started, fault="at-a-barrier")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert "2 nodes checked" in killed.stdout
        files = bucket.files("killed/tiny")
        generations = [json.loads(files[f"state/{pair}.json"])["generation"] for pair in ("SYNA_SYNB", "SYNC_SYND")]
        assert sorted(generations) == [0, 1]
        assert "summary.json" not in files
        done = launch(tmp_path / "second", *place, "--resume")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "second").glob("pairpbt-*"))
    files = bucket.files("killed/tiny")
    assert frames(files) == folder_frames(undisturbed)
    assert not [name for name in files if name.startswith("tune/")]
    assert {name for name in files if name.startswith("members/")} == {
        path.relative_to(undisturbed).as_posix() for path in (undisturbed / "members").rglob("*.*")
    }
    (tmp_path / "events.jsonl").write_bytes(files["state/events.jsonl"])
    kinds = [row["kind"] for row in read_jsonl(tmp_path / "events.jsonl")]
    assert [kinds.count(kind) for kind in ("start", "resume", "look", "done")] == [1, 1, 1, 1]


def test_mistakes_are_one_line_and_leave_nothing(
    bucket: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    here, there = bucket.uri("mistakes"), bucket.uri("mistakes", bucket="theirs")
    bucket.put("mistakes/tiny/config.yaml", b"seed: 7\n")
    before = bucket.files("mistakes")

    def told(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        out, line = capsys.readouterr()
        assert len(line.strip().splitlines()) == 1
        assert out == ""
        return line.removeprefix("pairpbt: ").strip()

    assert told(*tiny(here)).startswith("--name: s3://mine/mistakes/tiny exists; choose another name")
    assert told(*tiny(there)) == "--run-dir: s3://theirs/mistakes: there is no bucket 'theirs'; make it first"
    assert told(*tiny("wrong://x/y")).startswith("--run-dir: wrong://x/y: Unrecognized filesystem type")
    assert told(*tiny("s3://KEY:hidden@mine/runs")).startswith("--run-dir: s3://mine/runs: leave keys out of the URI")
    resumed = told("--run-dir", here, "--name", "other", "--resume")
    assert resumed == "--resume: s3://mine/mistakes/other holds no run to go on with"
    assert told("--run-dir", here, "--extend", "tiny", "--pairs", "A/B").startswith("--extend: the run must lie in a")
    with bucket.read_only():
        refused = told(*tiny(here, "--name", "new"))
    assert refused.startswith("--run-dir: s3://mine/mistakes/new/")
    assert "cannot be written: " in refused
    assert "ACCESS_DENIED" in refused
    assert bucket.files("mistakes") == before
    assert list(tmp_path.iterdir()) == []

    for ask, line in (
        (status, "s3://mine/mistakes/none: nothing lies there"),
        (report, "s3://theirs/mistakes: there is no bucket 'theirs'; make it first"),
    ):
        assert ask([bucket.uri("mistakes/none") if ask is status else there]) == 2
        assert capsys.readouterr().err == f"pairpbt: {line}\n"
