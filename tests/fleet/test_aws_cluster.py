"""The shipped cluster.yaml on an EC2 of machines: from zero workers and back, with a spot instance taken away."""

import time
from pathlib import Path

import pandas as pd
import pytest

from analysis.frames import read_jsonl
from pbt.run_dir import RunDir
from tests.conftest import ROOT
from tests.fleet.cloud import ACCOUNT, LAPTOP, PREFIX_LENGTH, cloud
from tests.fleet.image import VISIBLE
from tests.fleet.laptop import Laptop
from tests.fleet.rack import Rack
from tests.fleet.run import NAME, RUNS, check_frames, on_cluster, undisturbed, wait_for_a_commit

pytestmark = pytest.mark.fleet_aws

SHIPPED = ROOT / "cluster.yaml"
CHANGES = {
    # Nobody routes the public addresses that the simulated EC2 makes up.
    "provider.use_internal_ips": True,
    # There is no registry to pull images from; the machines' disks hold what the image does.
    "docker": {},
    "available_node_types.gpu.docker": {},
    # Two CPUs, so that the run's four come from two machines.
    "available_node_types.cpu.node_config.InstanceType": "c6i.large",
    # Workers go while the test looks on.
    "idle_timeout_minutes": 0.5,
}
GENERATIONS = 30
"""The run begins on the first machine; what is left after the reclaim must last until a replacement trains."""
FILE = "/root/cluster.yaml"


def test_a_spot_reclaim_on_a_cluster_of_the_shipped_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with undisturbed(tmp_path, GENERATIONS) as reference, Rack(VISIBLE, RUNS) as rack:
        laptop = Laptop(rack, f"{LAPTOP}/{PREFIX_LENGTH}", **ACCOUNT)
        with cloud(rack, laptop) as ec2:
            laptop.write_cluster(SHIPPED, CHANGES)
            laptop.run("get-auth-token", "ray", "get-auth-token", "--generate")
            laptop.run("cluster_check", "python", "-m", "rayconf.cluster_check", "cluster.yaml")
            laptop.run("ray up", "ray", "up", "-y", FILE)
            assert [instance.kind for instance in ec2.running.values()] == ["head"]

            run = RunDir(rack.shared / NAME)
            launch = f"cd pairpbt && python -m pbt.launch {' '.join(on_cluster(GENERATIONS))}"
            with laptop.started("ray exec", "ray", "exec", FILE, launch) as submitted:
                wait_for_a_commit(run, submitted)
                trained = {row["host"] for row in read_jsonl(run.progress_journal)}
                before = ec2.workers()
                unlucky = next(instance for instance in before if instance.name in trained)
                off = time.time()
                ec2.reclaim(unlucky)
                output = submitted.finish(10)
            done = time.time()
            assert f"report {RUNS}/{NAME}/report.html" in output
            ec2.wait(300, ["head"])
            zero = time.time()
            laptop.run("ray down", "ray", "down", "-y", FILE)
            ec2.wait(60, [])

            check_frames(run, tmp_path, reference)
            events = pd.read_parquet(run.path / "frames" / "events.parquet")
            lost = events[events.kind == "node_lost"]
            assert f" at {unlucky.address};" in lost.detail.item()
            came = [when for when, what, instance in ec2.history if what == "start" and instance not in before]
            replaced = min(when for when in came if when > off)
            joined = events[(events.kind == "node_joined") & (events.wall_time > off)].wall_time
            assert len(joined), "no machine took the lost one's place before the run was over"
            trained_on = (
                pd.read_parquet(run.path / "frames" / "progress.parquet").query("wall_time > @joined.min()").host
            )
            assert set(trained_on) - {instance.name for instance in before}, "the replacement trained nobody"
            with capsys.disabled():
                print(laptop.table())
                print(f"from the reclaim to the replacement among the slots {joined.min() - off:.1f} s")
                print(f"from the reclaim to node_lost {lost.wall_time.item() - off:.1f} s")
                print(f"from the reclaim to the replacement's boot {replaced - off:.1f} s")
                print(f"from the run's end to zero workers {zero - done:.1f} s")
                print(f"workers at the reclaim: {len(before)}, for 4 CPUs")
