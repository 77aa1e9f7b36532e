"""The shipped file for machines of one's own, from `ray up` to `ray down`, with a machine that loses its power."""

import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from pbt.run_dir import RunDir
from tests.conftest import ROOT
from tests.fleet.image import VISIBLE, home_with
from tests.fleet.laptop import Laptop
from tests.fleet.rack import Machine, Rack
from tests.fleet.run import NAME, RUNS, check_frames, on_cluster, undisturbed, wait_for_a_commit
from tests.fleet.timeline import Loss

pytestmark = pytest.mark.fleet

SHIPPED = ROOT / "rayconf" / "clusters" / "local.yaml"
HEAD, WORKERS = "10.77.0.11", ("10.77.0.12", "10.77.0.13")
CHANGES = {
    # Whoever uses the file puts these in; nothing else of it is changed.
    "provider.head_ip": HEAD,
    "provider.worker_ips": list(WORKERS),
}
GENERATIONS = 5
"""The power goes after the first."""
FILE = "/root/cluster.yaml"
LIST = "ray list nodes --detail --format json"
WHEN_DEAD = f"until {LIST} | grep -q DEAD; do sleep 1; done; {LIST}"
"""The run may be over before Ray itself misses the machine."""
JOB = (
    *("--address", "http://localhost:8265", "--"),
    *("python", "-m", "pbt.launch", "--address", "auto", "--run-dir", RUNS, "--resume", "--name", NAME),
)


def test_a_power_cut_on_a_cluster_of_the_shipped_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with undisturbed(tmp_path, GENERATIONS) as reference, Rack(VISIBLE, RUNS) as rack:
        laptop = Laptop(rack, "10.77.0.10/24")
        head, _, unlucky = (
            rack.add(name, f"{address}/24", "ubuntu", home_script=home_with(".pairpbt"))
            for name, address in zip(("head", "worker-1", "worker-2"), (HEAD, *WORKERS), strict=True)
        )
        laptop.seconds["boot of 4 machines"] = time.monotonic() - began
        laptop.write_cluster(SHIPPED, CHANGES)
        laptop.run("get-auth-token", "ray", "get-auth-token", "--generate")
        laptop.run("cluster_check", "python", "-m", "rayconf.cluster_check", FILE)
        laptop.run("ray up", "ray", "up", "-y", FILE)
        asked = laptop.run("doctor", "ray", "exec", FILE, f"python -m rayconf.doctor --cpus 4 --storage {RUNS}")
        assert all(f"{address} " in asked for address in (HEAD, *WORKERS)), asked

        run = RunDir(rack.shared / NAME)
        with laptop.started(
            "ray submit", "ray", "submit", FILE, "pbt/launch.py", *on_cluster(GENERATIONS)
        ) as submitted:
            wait_for_a_commit(run, submitted)
            off = time.time()
            unlucky.power_off()
            output = submitted.finish(10)
        assert f"report {RUNS}/{NAME}/report.html" in output
        nodes = laptop.run("ray list nodes", "ray", "exec", FILE, WHEN_DEAD)

        with laptop.started("ray dashboard", "ray", "dashboard", FILE):
            laptop.run("tunnel", "bash", "-c", "until (</dev/tcp/localhost/8265) 2>/dev/null; do sleep 0.2; done")
            job = laptop.run("ray job submit", "ray", "job", "submit", *JOB)
        assert f"complete; report {RUNS}/{NAME}/report.html" in job
        assert processes(head, "gcs_server")
        laptop.run("ray down", "ray", "down", "-y", FILE)
        assert not processes(head, "gcs_server")

        check_frames(run, tmp_path, reference)
        events = pd.read_parquet(run.path / "frames" / "events.parquet")
        lost = events[events.kind == "node_lost"]
        assert len(lost) == 1
        assert f" at {WORKERS[1]};" in lost.detail.item()
        with capsys.disabled():
            print(laptop.table(), Loss(run.path, unlucky.name, off, nodes), sep="\n")


def processes(machine: Machine, name: str) -> list[str]:
    """Processes of a machine whose command line holds a name."""
    found = subprocess.run(machine.command("pgrep", "-af", name), capture_output=True, text=True)
    return found.stdout.splitlines()
