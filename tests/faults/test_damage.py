"""Members hang, files rot, numbers overflow and disks fill; the run ends all the same, and says what happened."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from pbt.fitness import BROKEN
from pbt.manifest import Population
from tests.faults.conftest import PAIRS, Launches, finished
from tests.faults.saboteur import PAIR, flip

pytestmark = pytest.mark.faults


def test_a_member_that_hangs_is_retried(launches: Launches, undisturbed: Launches) -> None:
    finished(launches.start("--set", "resources.cpus=2", fault="a-member-hangs"))
    assert launches.results() == undisturbed.results()
    hung = launches.events("retry")
    assert len(hung) == 1
    assert hung.iloc[0].detail.startswith("hung for ")
    progress = pd.read_parquet(launches.run / "frames" / "progress.parquet")
    retried = progress.query("pair == @hung.pair.iloc[0] and member == @hung.member.iloc[0]").set_index("generation")
    assert retried.attempt[int(hung.generation.iloc[0])] == 2


def test_a_state_that_rots_in_a_running_launch_sends_its_pair_back(launches: Launches, undisturbed: Launches) -> None:
    finished(launches.start("--set", "resources.cpus=2", fault="a-state-rots"))
    assert launches.results() == undisturbed.results()
    found = launches.events("corrupt")
    assert list(found.pair) == [PAIR]
    assert found.iloc[0].detail.endswith("back from generation 2 to 1")
    assert "actor_lost" not in set(pd.read_parquet(launches.run / "frames" / "events.parquet").kind)


def files_of(run: Path, manifest: Path) -> list[Path]:
    return [run / "members" / "states" / f"{name}.pt" for name in sorted(Population.read(manifest).own_states())]


def test_damage_found_at_a_resume(launches: Launches, undisturbed: Launches) -> None:
    """A flipped byte, a truncated file and a torn manifest: both pairs train their last generation again."""
    run, state = launches.run, launches.run / "state"
    shutil.copytree(undisturbed.run, run)
    (run / "summary.json").unlink()  # the run counts as unfinished
    shutil.rmtree(run / "frames")
    newest, before = state / "SYNA_SYNB.json", state / "previous" / "SYNA_SYNB.json"
    only_new = sorted(set(files_of(run, newest)) - set(files_of(run, before)))
    flip(only_new[0])
    only_new[1].write_bytes(only_new[1].read_bytes()[:1000])
    torn = state / "SYNC_SYND.json"
    torn.write_text(torn.read_text()[:-100])
    finished(launches.resume())
    assert launches.results() == undisturbed.results()
    found = launches.events("corrupt").set_index("pair").detail
    assert only_new[0].name in found["SYNA/SYNB"]
    assert only_new[1].name in found["SYNA/SYNB"]
    assert "cannot be read; back to generation 2" in found["SYNC/SYND"]
    assert [entry["status"] for entry in map(json.loads, (newest.read_text(), torn.read_text()))] == ["complete"] * 2


def test_two_damaged_commits_are_one_line_that_says_what_to_do(launches: Launches, undisturbed: Launches) -> None:
    run, state = launches.run, launches.run / "state"
    shutil.copytree(undisturbed.run, run)
    (run / "summary.json").unlink()
    both = sorted(
        set(files_of(run, state / "SYNA_SYNB.json")) & set(files_of(run, state / "previous" / "SYNA_SYNB.json"))
    )
    flip(both[0])
    done = launches.resume()
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert both[0].name in line
    assert "restore the files from a copy of the run, or start a new run" in line
    assert launches.results() == undisturbed.results()  # nothing was touched
    assert both[0].exists()


def test_a_member_that_trains_on_nan_is_replaced(launches: Launches) -> None:
    """By a donor where the pair has one; where all others are idle it starts its generation over."""
    finished(launches.start("--set", "resources.cpus=2", fault="a-loss-is-nan"))
    found = launches.events("nan")
    assert {(row.pair, row.member, row.generation) for row in found.itertuples()} == {
        (pair, "m01", 2) for pair in PAIRS
    }
    lineage = pd.read_parquet(launches.run / "frames" / "lineage.parquet").set_index(["pair", "member", "generation"])
    idle, active = (lineage.loc[pair, "m01"] for pair in PAIRS)
    assert idle.operation[2] == "lost"
    assert idle.state[2] == idle.state[1]
    assert active.operation[2] == "exploit"
    assert active.parent_member[2] == "m02"
    for row in (idle, active):
        assert row.fitness[2] == BROKEN < row.fitness[3]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 48 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_the_launch_and_room_lets_it_go_on(small_disk: Path, undisturbed: Launches) -> None:
    launches = Launches(small_disk)
    # Without TensorBoard, which the driver writes, a member is the first to find the disk full.
    done = launches.start("--set", "resources.cpus=2", "--set", "tracking.tensorboard=false", fault="the-disk-fills")
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert f"no space left on the disk of {launches.run}" in line
    assert str(small_disk) in line
    assert "--resume --name run" in line
    assert "Traceback" not in done.stdout
    assert sorted(launches.generations()) in ([0, 1], [1, 1])
    assert len(launches.journal("disk_full")) == 1
    assert launches.journal("retry") == launches.journal("actor_lost") == []  # the members are not to blame

    (small_disk / "ballast").unlink()
    finished(launches.resume())
    assert launches.results() == undisturbed.results()
    assert len(launches.events("disk_full")) == 1
