"""The shipped file for machines of one's own, from `ray up` to `ray down`, with a machine that loses its power."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from analysis.frames import read_jsonl
from pbt.manifest import Population
from pbt.run_dir import RunDir
from tests.commands import command, environment
from tests.conftest import ROOT
from tests.fleet.image import VISIBLE, home_with
from tests.fleet.laptop import Laptop, finish
from tests.fleet.rack import Machine, Rack
from tests.fleet.timeline import Loss

pytestmark = pytest.mark.fleet

SHIPPED = ROOT / "rayconf" / "clusters" / "local.yaml"
HEAD, WORKERS = "10.77.0.11", ("10.77.0.12", "10.77.0.13")
CHANGES = {
    # Whoever uses the file puts these in; nothing else of it is changed.
    "provider.head_ip": HEAD,
    "provider.worker_ips": list(WORKERS),
}
RUNS = "/mnt/runs"
NAME = "powercut"
SETTINGS = (
    "synthetic.bars=1600",
    "network.hidden=[16,16]",  # `ray submit` passes arguments on as they are: no blanks
    # Six generations of some seconds: the power goes after the first of both pairs.
    "pbt.population=4",
    "pbt.iterations=12",
    "pbt.interval=2",
    "resources.object_store_mb=100",
)
ARGUMENTS = ["--preset", "smoke", "--seed", "7", "--name", NAME, *(part for text in SETTINGS for part in ("--set", text))]
FRAMES = ("lineage", "validation", "daily", "summary")


def test_a_power_cut_on_a_cluster_started_with_the_shipped_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with undisturbed(tmp_path) as reference, Rack(VISIBLE, RUNS) as rack:
        laptop = Laptop(rack, "10.77.0.10/24")
        hosts = [
            rack.add(name, f"{address}/24", "ubuntu", home_script=home_with(".pairpbt"))
            for name, address in zip(("head", "worker-1", "worker-2"), (HEAD, *WORKERS), strict=True)
        ]
        laptop.seconds["boot of 4 machines"] = time.monotonic() - began
        laptop.write_cluster(SHIPPED, CHANGES)
        file = "/root/cluster.yaml"
        laptop.run("token", "ray", "get-auth-token", "--generate")
        laptop.run("cluster_check", "python", "-m", "rayconf.cluster_check", file)
        laptop.run("ray up", "ray", "up", "-y", file)
        asked = laptop.run("ray exec", "ray", "exec", file, f"python -m rayconf.doctor --cpus 4 --storage {RUNS}")
        assert all(f"{address} " in asked for address in (HEAD, *WORKERS)), asked

        run = RunDir(rack.shared / NAME)
        on_cluster = ["--address", "auto", "--run-dir", RUNS, "--set", "resources.cpus=4"]
        with laptop.started("ray submit", "ray", "submit", file, "pbt/launch.py", *ARGUMENTS, *on_cluster) as submitted:
            wait_for_a_commit(run, submitted)
            off = time.time()
            hosts[2].power_off()
            output = finish("ray submit", submitted, 6)
        assert f"report {RUNS}/{NAME}/report.html" in output
        loss = Loss(run.path, hosts[2].name, off, laptop.run("nodes", "ray", "exec", file, LIST_NODES))

        with laptop.started("ray dashboard", "ray", "dashboard", file):
            job = laptop.run("ray job submit", "ray", "job", "submit", *JOB)
        assert f"complete; report {RUNS}/{NAME}/report.html" in job
        laptop.run("ray down", "ray", "down", "-y", file)
        assert not processes(hosts[0], "gcs_server")

        finish("the undisturbed run", reference, 6)
        for frame in FRAMES:
            mine, theirs = (folder / NAME / "frames" / f"{frame}.parquet" for folder in (rack.shared, tmp_path))
            assert mine.read_bytes() == theirs.read_bytes(), frame
        events = pd.read_parquet(run.path / "frames" / "events.parquet")
        lost = events[events.kind == "node_lost"]
        assert len(lost) == 1
        assert f" at {WORKERS[1]};" in lost.detail.item()
        with capsys.disabled():
            print()
            for label, seconds in laptop.seconds.items():
                print(f"{label:30s} {seconds:6.1f} s")
            print(loss)


LIST_NODES = "ray list nodes --detail --format json"
JOB = (
    *("--address", "http://localhost:8265", "--"),
    *("python", "-m", "pbt.launch", "--address", "auto", "--run-dir", RUNS, "--resume", "--name", NAME),
)


@contextmanager
def undisturbed(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The same run on this computer by the ordinary launch, beside what the block does."""
    arguments = command(*ARGUMENTS, "--run-dir", str(folder), "--set", "resources.cpus=2")
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def wait_for_a_commit(run: RunDir, submitted: subprocess.Popen[str]) -> None:
    """Wait until both workers have trained and both pairs have committed a generation."""
    deadline = time.monotonic() + 240
    while True:
        manifests = list((run.path / "state").glob("*_*.json"))
        committed = [Population.read(path).generation for path in manifests]
        hosts = {row["host"] for row in read_jsonl(run.progress_journal)} if run.progress_journal.is_file() else set()
        if len(committed) == 2 and min(committed) >= 1 and len(hosts) == 2:
            return
        if submitted.poll() is not None or time.monotonic() > deadline:
            submitted.kill()
            raise AssertionError(f"no power cut: committed {committed}, hosts {hosts}\n{submitted.communicate()[0]}")
        time.sleep(0.1)


def processes(machine: Machine, name: str) -> list[str]:
    """Processes of a machine whose command line holds a name."""
    found = subprocess.run(machine.command("pgrep", "-af", name), capture_output=True, text=True)
    return found.stdout.splitlines()
