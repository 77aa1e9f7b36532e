"""Whole processes die; what is resumed ends with the frames of the undisturbed run."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from ray.cluster_utils import Cluster

from tests.conftest import ROOT
from tests.faults.conftest import Launches, finished
from tests.faults.saboteur import RAYLET

pytestmark = pytest.mark.faults


def test_a_launch_killed_at_six_points_on_one_cpu_or_two_ends_as_if_nothing_had_happened(
    launches: Launches, undisturbed: Launches
) -> None:
    """One run that is killed again and again, each time at the next point of its life."""
    two_cpus = ("--set", "resources.cpus=2")  # one wherever nothing is said
    killed = launches.start("--set", "resources.cpus=1", fault="before-the-first-barrier")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert launches.generations() == [0, 0]

    assert launches.resume(*two_cpus, fault="inside-a-save").returncode == -signal.SIGKILL
    torn = list((launches.run / "members" / "states").glob("*.tmp"))
    assert torn
    assert launches.generations() == [0, 0]

    assert launches.resume(fault="between-save-and-commit").returncode == -signal.SIGKILL
    assert not any(path.exists() for path in torn)
    assert (launches.run / "state" / "lineage.jsonl").read_text().count('"generation":1') == 3
    assert launches.generations() == [0, 0]

    assert launches.resume(*two_cpus, fault="at-a-barrier").returncode == -signal.SIGKILL
    assert sorted(launches.generations()) == [0, 1]

    assert launches.resume(fault="in-the-backtest").returncode == -signal.SIGKILL
    assert launches.generations() == [3, 3]
    assert (launches.run / "frames" / "lineage.parquet").is_file()
    assert not (launches.run / "frames" / "daily.parquet").exists()

    assert launches.resume(fault="in-the-report").returncode == -signal.SIGKILL
    assert (launches.run / "frames" / "daily.parquet").is_file()
    assert not (launches.run / "report.html").exists()

    finished(launches.resume())
    assert launches.results() == undisturbed.results()
    assert len(launches.events("resume")) == 6
    assert (launches.run / "report.html").is_file()
    assert not list(launches.run.rglob("*.tmp"))

    one = pd.read_parquet(launches.run / "frames" / "progress.parquet")
    two = pd.read_parquet(undisturbed.run / "frames" / "progress.parquet")
    # Six members share one process of the launch that went on alone here, and two there: more members than CPUs.
    assert one[one.generation > one.generation.min()].actor_pid.nunique() == 1
    assert two.actor_pid.nunique() <= 2
    assert set(one.member) == set(two.member) == {"m00", "m01", "m02"}


def test_members_of_a_lost_node_go_on_elsewhere(
    launches: Launches, undisturbed: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    memory = 100 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": memory},
    )
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=memory)
        raylet = second.all_processes["raylet"][0].process.pid
        done = launches.start("--address", cluster.address, fault="a-node-goes", **{RAYLET: str(raylet)})
        finished(done)
        assert "slots      3" in done.stdout
    finally:
        cluster.shutdown()
    assert launches.results() == undisturbed.results()
    assert len(launches.events("node_lost")) == 1
    assert not os.path.exists(f"/proc/{raylet}")


def test_a_run_whose_only_worker_is_lost_goes_on_on_the_one_that_comes(
    launches: Launches, undisturbed: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    small = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        only = cluster.add_node(num_cpus=1, **small)
        raylet = only.all_processes["raylet"][0].process.pid
        with ThreadPoolExecutor() as pool:
            running = pool.submit(
                launches.start, "--address", cluster.address, fault="a-node-goes", **{RAYLET: str(raylet)}
            )
            while not running.done() and not launches.journal("node_lost"):
                time.sleep(0.2)
            cluster.add_node(num_cpus=2, **small)
            done = running.result()
        finished(done)
        assert "slots      1 of 6 that are asked for" in done.stdout
        elsewhere = Launches(launches.folder / "other")
        unfit = elsewhere.start("--address", cluster.address, fault="a-node-differs")
    finally:
        cluster.shutdown()
    assert launches.results() == undisturbed.results()
    assert len(launches.events("node_lost")) == 1
    [joined] = launches.events("node_joined").detail
    assert joined.endswith("slots now 2")
    assert unfit.returncode == 1
    [line] = unfit.stderr.splitlines()
    assert "other code of pairpbt than the driver; install the driver's there" in line
    assert elsewhere.generations() == [0, 0]
