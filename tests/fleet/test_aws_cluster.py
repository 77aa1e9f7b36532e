"""The shipped cluster.yaml on an EC2 of machines: from zero workers and back, with a spot instance taken away."""

import time
from pathlib import Path

import pandas as pd
import pytest

from pbt.run_dir import RunDir
from tests.conftest import ROOT
from tests.fleet.cloud import ACCOUNT, LAPTOP, PREFIX_LENGTH, cloud
from tests.fleet.image import VISIBLE
from tests.fleet.laptop import Laptop
from tests.fleet.rack import Rack
from tests.fleet.run import NAME, ON_CLUSTER, RUNS, check_frames, undisturbed, wait_for_a_commit

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
FILE = "/root/cluster.yaml"


def test_a_spot_reclaim_on_a_cluster_of_the_shipped_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with undisturbed(tmp_path) as reference, Rack(VISIBLE, RUNS) as rack:
        laptop = Laptop(rack, f"{LAPTOP}/{PREFIX_LENGTH}", **ACCOUNT)
        with cloud(rack, laptop) as ec2:
            laptop.write_cluster(SHIPPED, CHANGES)
            laptop.run("get-auth-token", "ray", "get-auth-token", "--generate")
            laptop.run("cluster_check", "python", "-m", "rayconf.cluster_check", "cluster.yaml")
            laptop.run("ray up", "ray", "up", "-y", FILE)
            assert [instance.kind for instance in ec2.running.values()] == ["head"]

            run = RunDir(rack.shared / NAME)
            launch = f"cd pairpbt && python -m pbt.launch {' '.join(ON_CLUSTER)}"
            with laptop.started("ray exec", "ray", "exec", FILE, launch) as submitted:
                wait_for_a_commit(run, submitted)
                first, second = ec2.workers()
                ec2.reclaim(second)
                off = time.time()
                output = submitted.finish(10)
            done = time.time()
            assert f"report {RUNS}/{NAME}/report.html" in output
            check_frames(run, tmp_path, reference)
            events = pd.read_parquet(run.path / "frames" / "events.parquet")
            assert f" at {second.address};" in events[events.kind == "node_lost"].detail.item()

            ec2.wait(240, ["head"])
            zero = time.time()
            started = [instance for _, what, instance in ec2.history if what == "start" and instance.kind == "cpu"]
            assert started[:2] in ([first, second], [second, first])
            assert len(started) == 3, "the reclaimed instance was not replaced"
            laptop.run("ray down", "ray", "down", "-y", FILE)
            ec2.wait(60, [])
            with capsys.disabled():
                print(laptop.table())
                replaced = next(when for when, what, instance in ec2.history if instance is started[2])
                print(f"from the reclaim to the replacement's boot {replaced - off:.1f} s")
                print(f"from the run's end to zero workers {zero - done:.1f} s")
