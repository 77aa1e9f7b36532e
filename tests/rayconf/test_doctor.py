"""The doctor on a real cluster of two nodes, and what it says of nodes that are off."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayconf import UserError
from rayconf.doctor import complaints
from rayconf.node_probe import Probe, code_digest, versions
from rayconf.nodes import NodeReport
from tests.cluster import small_cluster
from tests.commands import environment
from tests.conftest import ROOT

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}

# Every question that needs no command line of its own, in one visit.
ASK = """
import json, sys
from dataclasses import asdict
from rayconf import UserError, load_config
from rayconf.doctor import ensure_nodes
from rayconf.nodes import bring_up, check_nodes
from rayconf.session import start_ray

address, folder, bucket = sys.argv[1:]
def said(action):
    try:
        return action()
    except UserError as error:
        return str(error)

with start_ray(load_config("smoke").resources, address):
    bring_up(2, 0, 30)
    print(json.dumps({
        "plain": [asdict(report) for report in check_nodes(folder + "/later/runs", folder)],
        "bucket": [asdict(report) for report in check_nodes(bucket)],
        "broken": [asdict(report) for report in check_nodes("/proc/nothing/runs", folder + "/missing")],
        "unknown": [asdict(report) for report in check_nodes("wrong://x/y")],
        "too many": said(lambda: bring_up(99, 0, 0)),
        "sound": len(ensure_nodes(folder, folder, 0)),
        "refused": said(lambda: ensure_nodes("/proc/nothing/runs", None, 0)),
    }))
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head without CPUs and a worker with two, on this machine."""
    with small_cluster(**KEYS) as address:
        yield address


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prices")
    (folder / "AAA.csv").write_text("date,open\n")
    return folder


@pytest.fixture(scope="module")
def answers(address: str, prices: Path) -> dict[str, Any]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        store = boto3.client(
            "s3",
            region_name="us-east-1",
            endpoint_url=f"http://{host}:{port}",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        store.create_bucket(Bucket="mine")
        uri = f"s3://mine/runs?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        done = subprocess.run(
            [sys.executable, "-c", ASK, address, str(prices), uri],
            env=environment(**KEYS),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        left = [item["Key"] for item in store.list_objects_v2(Bucket="mine").get("Contents", [])]
    finally:
        server.stop()
    return {**json.loads(done.stdout), "left": left}


def reports(answer: list[dict[str, Any]]) -> list[NodeReport]:
    return [NodeReport(**{**report, "unseen": tuple(report["unseen"])}) for report in answer]


def test_every_node_answers_for_itself(answers: dict[str, Any], prices: Path) -> None:
    head, worker = reports(answers["plain"])
    assert (head.head, worker.head) == (True, False)
    assert (head.cpus, worker.cpus) == (0, 2)
    assert head.node != worker.node
    for report in (head, worker):
        assert report.versions == versions()
        assert {"python", "ray", "torch", "huggingface_hub", "urllib3"} <= set(report.versions)
        assert report.code == code_digest() != ""
        assert abs(report.clock_seconds) < 1
        assert report.storage_gb is not None
        assert min(report.tmp_gb, report.storage_gb, report.shm_gb, report.storage_seconds) > 0
        assert (report.error, report.storage_error, report.data_error, report.unseen) == ("", "", "", ())
    assert complaints([head, worker], str(prices), min_disk_gb=0) == []
    assert [path.name for path in prices.iterdir()] == ["AAA.csv"], "probe files are gone, no folder was made"


def test_object_storage_is_written_and_cleared_by_every_node(answers: dict[str, Any]) -> None:
    for report in reports(answers["bucket"]):
        assert (report.storage_error, report.unseen, report.storage_gb) == ("", (), None)
        assert report.storage_seconds > 0
    assert [key for key in answers["left"] if "doctor" in key] == []


def test_unwritable_storage_and_missing_data_are_said_of_every_node(answers: dict[str, Any]) -> None:
    for report in reports(answers["broken"]):
        assert "/proc" in report.storage_error
        assert "missing" in report.data_error
    assert all("wrong" in report.storage_error for report in reports(answers["unknown"]))
    assert answers["sound"] == 2
    assert answers["refused"].startswith("--address: ")
    assert "storage: " in answers["refused"]
    assert "(1 more: python -m rayconf.doctor)" in answers["refused"]
    assert "--cpus 99" in answers["too many"]
    assert "2 CPUs" in answers["too many"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"error": "no answer within 120 s"}, "no answer"),
        ({"versions": {"torch": "2.12.0+cpu"}}, "torch 2.12.0+cpu, the driver has 2.13.0"),
        ({"versions": {"urllib3": None}}, "urllib3 missing"),
        ({"versions": {"python": "3.12.1"}}, "python 3.12.1"),
        ({"code": "0123456789ab"}, "other code of pairpbt"),
        ({"code": ""}, "pairpbt is not installed"),
        ({"gpus": 2.0, "cuda_devices": 1}, "Ray offers 2 GPUs"),
        ({"tmp_gb": 4.9}, "4.9 GB free for Ray's files, under 5"),
        ({"storage_gb": 0.1}, "0.1 GB free for the storage"),
        ({"shm_gb": 0.06, "object_store_gb": 0.5}, "/dev/shm has 0.1 GB"),
        ({"open_files": 1024}, "ulimit -n 65536"),
        ({"clock_seconds": -2.5}, "off by -2.5 s"),
        ({"storage_error": "Access Denied"}, "storage: Access Denied"),
        ({"unseen": ("10.0.0.9",)}, "does not see what 10.0.0.9 wrote"),
        ({"data_error": "No such file"}, "data: No such file"),
        ({"data": "0123456789ab"}, "other files than the driver's"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_one_fault_gives_one_line_with_node_and_fix(
    answers: dict[str, Any], prices: Path, change: dict[str, Any], words: str
) -> None:
    sound = [replace(report, tmp_gb=50.0, storage_gb=50.0, open_files=65536) for report in reports(answers["plain"])]
    assert complaints(sound, str(prices)) == []
    if "versions" in change:
        changed = {**sound[1].versions, **change["versions"]}
        change = {"versions": {name: version for name, version in changed.items() if version is not None}}
    (line,) = complaints([sound[0], replace(sound[1], **change)], str(prices))
    assert line.startswith(f"{sound[1].address} (worker): ")
    assert words in line
    assert "error" in change or ";" in line, "the fix"


def test_builds_of_a_version_and_patches_of_python_are_no_fault(answers: dict[str, Any], prices: Path) -> None:
    (head, worker) = reports(answers["plain"])
    ours = versions()
    major, minor, _ = ours["python"].split(".")
    other = {**ours, "torch": f"{ours['torch'].partition('+')[0]}+cu130", "python": f"{major}.{minor}.99"}
    assert complaints([head, replace(worker, versions=other)], str(prices), min_disk_gb=0) == []


def test_folders_of_one_name_that_are_not_one_are_told_apart(tmp_path: Path) -> None:
    probes = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        probes.append(Probe(name, "0", str(tmp_path / name), None, 0))
        assert probes[-1].report()["storage_error"] == ""
    assert [probe.look(["a", "b"]) for probe in probes] == [["b"], ["a"]]
    together = Probe("b", "0", str(tmp_path / "a"), None, 0)
    assert together.report()["storage_error"] == ""
    assert (probes[0].look(["a", "b"]), together.look(["a", "b"])) == ([], [])
    assert [probe.forget() for probe in (*probes, together)] == ["", "", ""]
    assert "No such file" in together.forget()


def test_missing_data_here_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data-dir: cannot read .*none"):
        complaints([], str(tmp_path / "none"))


def doctor(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rayconf.doctor", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**environment(**KEYS), **env}, capture_output=True, text=True, timeout=200
    )


def test_command_prints_a_line_per_node(address: str, tmp_path: Path) -> None:
    done = doctor("--address", address, "--storage", str(tmp_path), "--min-disk-gb", "0")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    head, worker = done.stdout.splitlines()
    ours = versions()
    for line, role in [(head, " head "), (worker, " worker ")]:
        assert role in line
        for package in ("ray", "torch", "huggingface_hub", "urllib3"):
            assert f"{package} {ours[package]}" in line


def test_command_ends_with_2_and_the_fixes(address: str, tmp_path: Path) -> None:
    done = doctor("--address", address, "--storage", "/proc/nothing", "--min-disk-gb", "0", "--json")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert len(found["nodes"]) == len(found["problems"]) == 2
    assert [f"pairpbt: {problem}" for problem in found["problems"]] == done.stderr.splitlines()
    tokenless = {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    for arguments, env, words in [
        (["--address", "127.0.0.1:1"], {}, "nothing listens"),
        (["--min-disk-gb", "much"], {}, "--min-disk-gb"),
        (["--address", address], tokenless, "asks for a token"),
    ]:
        refused = doctor(*arguments, **env)
        (line,) = refused.stderr.splitlines()
        assert (refused.returncode, refused.stdout) == (2, "")
        assert line.startswith("pairpbt: ")
        assert words in line
