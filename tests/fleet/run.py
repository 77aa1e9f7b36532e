"""A run that something happens to on a cluster, and the same run on this computer, whose frames it must have."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from analysis.frames import read_jsonl
from pbt.manifest import Population
from pbt.run_dir import RunDir
from tests.commands import command, environment
from tests.conftest import ROOT
from tests.fleet.laptop import Command, end

RUNS = "/mnt/runs"
"""The folder that all machines share, where they see it."""
NAME = "disturbed"
SETTINGS = (
    "synthetic.bars=1600",
    "network.hidden=[16,16]",  # `ray submit` hands arguments on unquoted: no blanks
    "resources.object_store_mb=100",
    "pbt.population=3",
    "pbt.interval=2",
)
FRAMES = ("lineage", "validation", "daily", "summary")
SECONDS = 600.0
"""Generous: other work may share the computer."""


def arguments(generations: int) -> list[str]:
    """Of the launch, but for where it runs; a generation takes a second or more."""
    settings = [part for text in (*SETTINGS, f"pbt.iterations={2 * generations}") for part in ("--set", text)]
    return ["--preset", "smoke", "--seed", "7", "--name", NAME, *settings]


def on_cluster(generations: int) -> list[str]:
    """Arguments of the launch on the head."""
    return [*arguments(generations), "--address", "auto", "--run-dir", RUNS, "--set", "resources.cpus=4"]


@contextlib.contextmanager
def undisturbed(folder: Path, generations: int) -> Iterator[subprocess.Popen[bytes]]:
    """The run by the ordinary launch, beside what the block does."""
    launch = command(*arguments(generations), "--run-dir", str(folder), "--set", "resources.cpus=2")
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(launch, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        end(process)


def wait_for_a_commit(run: RunDir, submitted: Command) -> None:
    """Wait until two machines have trained and both pairs have committed a generation."""
    deadline = time.monotonic() + SECONDS
    committed: list[int] = []
    hosts: set[str] = set()
    while len(committed) < 2 or min(committed) < 1 or len(hosts) < 2:
        assert submitted.process.poll() is None, f"the run ended at once\n{submitted.output}"
        assert time.monotonic() < deadline, f"no commit: {committed}, {hosts}\n{submitted.output}"
        time.sleep(0.1)
        committed = [Population.read(path).generation for path in (run.path / "state").glob("*_*.json")]
        hosts = {row["host"] for row in read_jsonl(run.progress_journal)} if run.progress_journal.is_file() else set()


def check_frames(run: RunDir, folder: Path, reference: subprocess.Popen[bytes]) -> None:
    """The run's frames must be those of the undisturbed run, byte for byte."""
    assert reference.wait(SECONDS) == 0, (folder / "output").read_text()
    for frame in FRAMES:
        mine, theirs = (path / "frames" / f"{frame}.parquet" for path in (run.path, folder / NAME))
        assert mine.read_bytes() == theirs.read_bytes(), frame
