import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rayconf import UserError, load_config
from rayconf.origins import HOME
from rayconf.plan import plan, wanted_slots
from rayconf.session import Machine, available_cpus, machine_resources, start_ray


@pytest.mark.parametrize(
    ("cpus", "slots", "idle", "memory_mb"),
    [
        (1, 1, 0.0, 1000 + 800 + 512),
        (2, 2, 0.0, 1000 + 1600 + 512),
        (3, 3, 1 / 9, 1000 + 2400 + 512),  # 8 members on 3 slots: 3 rounds, one seat of nine empty
        (5, 5, 1 / 5, 1000 + 4000 + 512),
        (64, 16, 1 / 2, 1000 + 12800 + 512),  # 16 members in all, of which one pair has 8
    ],
)
def test_plan_counts_slots_and_what_waits(cpus: int, slots: int, idle: float, memory_mb: int) -> None:
    found = plan(load_config("demo"), Machine(cpus))
    assert (found.slots, found.memory_mb, found.updates) == (slots, memory_mb, 16 * 24)
    assert found.idle_share == pytest.approx(idle)


def test_plan_shares_gpus_without_splitting_a_member() -> None:
    third = load_config("demo", assignments=["resources.gpus_per_member=0.4"])
    assert plan(third, Machine(8, 2)).slots == 4  # two fit on each, not five on both
    assert plan(third, Machine(3, 2)).slots == 3
    tenth = load_config("demo", assignments=["resources.gpus_per_member=0.1"])
    assert plan(tenth, Machine(64, 1)).slots == 10
    quarter = load_config("demo", assignments=["resources.gpus_per_member=0.25"])
    assert [plan(quarter, Machine(cpus, 1)).slots for cpus in (2, 4, 16)] == [2, 4, 4]
    assert plan(quarter, Machine(64, 8)).slots == 16  # no more than there are members
    whole = load_config("demo", assignments=["resources.gpus_per_member=1"])
    assert [plan(whole, Machine(8, gpus)).slots for gpus in (1, 2)] == [1, 2]
    with pytest.raises(UserError, match=r"gpus_per_member 0\.4"):
        plan(third, Machine(8))


def test_a_members_share_lies_on_one_node() -> None:
    three = load_config("demo", assignments=["resources.cpus_per_member=3"])
    nodes = ((0.0, 0.0), (8.0, 0.0), (4.0, 2.0))
    cluster = Machine(12, 2, nodes=nodes, joined=True)
    assert cluster.slots(three.resources) == 3  # two on the one and one on the other, not four on both
    half = load_config("demo", assignments=["resources.cpus_per_member=0.5"])
    assert cluster.slots(half.resources) == 24
    mixed = load_config("demo", assignments=["resources.cpus_per_member=3", "resources.gpus_per_member=0.5"])
    assert cluster.slots(mixed.resources) == 1  # GPUs lie on the smaller node alone
    with pytest.raises(UserError, match=r"cpus_per_member"):
        load_config("demo", assignments=["resources.cpus_per_member=1.5"])


def test_a_cluster_is_asked_for_a_slot_per_member() -> None:
    run = load_config("demo")
    found = plan(run, Machine(2, nodes=((2.0, 0.0),), joined=True))
    assert (found.slots, found.wanted) == (2, 16)
    assert "2 of 16 that are asked for" in found.lines()[1]
    bounded = load_config("demo", assignments=["resources.cpus=6", "resources.cpus_per_member=2"])
    assert wanted_slots(bounded.resources, 16) == 3
    assert plan(bounded, Machine(64, nodes=((64.0, 0.0),), joined=True)).slots == 3
    assert plan(run, Machine(2)).wanted == 2  # a single machine does not grow


def test_plan_says_it_in_words() -> None:
    text = "\n".join(plan(load_config("demo"), Machine(3)).lines())
    for fact in ("16 (2 pairs x 8)", "3 training side by side", "11% idle", "12.6 M", "8 generations", "3.9 GB"):
        assert fact in text
    single = load_config("smoke", assignments=["data.pairs=[KO/PEP]", "pbt.interval=3"])
    assert "(1 pair x 4)" in plan(single, Machine(2)).lines()[0]
    assert "(1 generation," in plan(single, Machine(2)).lines()[2]


def test_cpus_follow_affinity_and_the_containers_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert available_cpus(tmp_path) == 6
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for quota, cpus in [("-1\n", 6), ("350000\n", 3), ("50000\n", 1), ("900000\n", 6)]:
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        assert available_cpus(tmp_path) == cpus
    for quota, cpus in [("max 100000\n", 6), ("250000 100000\n", 2), ("50000 100000\n", 1)]:
        (tmp_path / "cpu.max").write_text(quota)
        assert available_cpus(tmp_path) == cpus


def test_machine_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    own = load_config("smoke", assignments=["resources.cpus=3"]).resources
    assert (machine_resources(own).cpus, machine_resources(own).gpus) == (3, 0)
    shared = load_config("smoke", assignments=["resources.gpus_per_member=0.5"]).resources
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine_resources(shared).gpus == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"resources\.gpus_per_member: 0\.5.*set it to 0"):
        machine_resources(shared)
    with pytest.raises(UserError, match=r"gpus_per_member"), start_ray(shared):
        pytest.fail("started without its GPU")


def test_a_dashboard_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.dashboard.optional_deps", None)  # as importing it fails with plain ray
    wanted = load_config("smoke", assignments=["resources.dashboard=true"]).resources
    with pytest.raises(UserError, match=r"--dashboard: .*ray\[default\]"), start_ray(wanted):
        pytest.fail("started without its dashboard")


def test_an_address_joins_a_cluster_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    def init(**options: object) -> None:
        calls.append({**options, "usage": os.environ.get("RAY_USAGE_STATS_ENABLED")})
        if options["address"] == "nowhere:1":
            raise ConnectionError("refused")

    def shutdown() -> None:
        calls.append({})

    nodes = [
        {"NodeID": "a", "Alive": True, "Resources": {"CPU": 8.0}},
        {"NodeID": "b", "Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}},
        {"NodeID": "c", "Alive": False, "Resources": {"CPU": 4.0}},
    ]
    cluster = SimpleNamespace(init=init, shutdown=shutdown, nodes=lambda: nodes)
    monkeypatch.setitem(sys.modules, "ray", cluster)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    # Neither this machine's CPUs nor its missing GPU matter where the cluster's do.
    resources = load_config("smoke", assignments=["resources.cpus=1", "resources.gpus_per_member=0.5"]).resources
    with start_ray(resources, address="auto") as machine:
        assert (machine.cpus, machine.gpus) == (12, 2)
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    joined, ended = calls
    assert (joined["address"], joined["usage"], ended) == ("auto", "0", {})
    assert not {"num_cpus", "num_gpus", "object_store_memory"} & set(joined)
    with pytest.raises(UserError, match=r"--address.*nowhere:1"), start_ray(resources, address="nowhere:1"):
        pytest.fail("joined nothing")
    assert calls[-1] == {}


# One start of Ray, from a folder whose files would break a worker, amid invitations to join another Ray.
RUN = """
import json, os, signal, sys, threading
from pathlib import Path
from rayconf import load_config
from rayconf.session import start_ray

resources = load_config("smoke", assignments=["resources.cpus=1", "resources.object_store_mb=80"]).resources
here = os.getcwd()
try:
    with start_ray(resources) as machine:
        import ray, psutil

        @ray.remote
        def room():
            import analysis
            return analysis.__file__

        started = [child.pid for child in psutil.Process().children(recursive=True)]
        offered = ray.cluster_resources()
        found = {
            "machine": [machine.cpus, machine.gpus], "cpus": offered["CPU"],
            "store": offered["object_store_memory"], "cwd": os.getcwd() == here,
            "room": ray.get(room.remote()), "started": started, "namespace": ray.get_runtime_context().namespace,
        }
        print(json.dumps(found), flush=True)
        ENDING
finally:
    import ray
    print("down" if not ray.is_initialized() else "up", flush=True)
"""


@pytest.mark.launch
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGINT); threading.Event().wait(30)", 130),
        ("os.kill(os.getpid(), signal.SIGTERM); threading.Event().wait(30)", 143),
    ],
    ids=["interrupt", "terminate"],
)
def test_ray_starts_alone_and_leaves_nothing(tmp_path: Path, ending: str, code: int) -> None:
    (tmp_path / "analysis.py").write_text("raise RuntimeError('the worker imported the user file')\n")
    env = {**os.environ, "PYTHONPATH": str(HOME), "RAY_ADDRESS": "203.0.113.1:6379"}
    command = [sys.executable, "-P", "-c", RUN.replace("ENDING", ending)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[-1:] == ["down"], done.stderr
    found = json.loads(lines[0])
    assert found["machine"] == [1, 0.0]
    assert (found["cpus"], found["store"]) == (1, 80 * 2**20)
    assert (found["namespace"], found["cwd"]) == ("pairpbt", True)
    assert Path(found["room"]) == HOME / "analysis" / "__init__.py"
    assert done.returncode == (code if code == 143 else -2)  # an uncaught KeyboardInterrupt dies of SIGINT
    assert len(found["started"]) >= 2
    started = [psutil.Process(pid) for pid in found["started"] if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(started, timeout=20)  # what was told to end may need a moment on a busy machine
    assert alive == []
    noise = [line for line in done.stderr.splitlines() if line and not line.startswith(("Traceback", " "))]
    assert [line for line in noise if line != "KeyboardInterrupt"] == []
