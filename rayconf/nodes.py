"""Asking the nodes of a cluster what they have, and bringing workers up to be asked."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rayconf import node_probe
from rayconf.demand import Demand
from rayconf.errors import UserError
from rayconf.sections import ResourcesConfig
from rayconf.session import offered

SECONDS = 120.0


@dataclass(frozen=True)
class NodeReport:
    """What one node said of itself."""

    node: str
    """Ray's name of it."""
    address: str
    """Its address in the cluster."""
    head: bool
    """Whether it is the head."""
    cpus: float
    """CPUs that Ray offers there."""
    gpus: float
    """GPUs that Ray offers there."""
    object_store_gb: float = 0.0
    """Memory of Ray's object store in GB."""
    host: str = ""
    """Its own name."""
    executable: str = ""
    """The Python of its workers."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions by package, and Python's."""
    code: str = ""
    """Digest of the project's sources; empty: not installed."""
    cuda_devices: int = 0
    """GPUs that torch finds; asked only where Ray offers some."""
    tmp_gb: float = 0.0
    """Free disk in GB where Ray keeps its files."""
    storage_gb: float | None = None
    """Free disk in GB of the storage; None: not asked, or object storage."""
    shm_gb: float = 0.0
    """Size of /dev/shm in GB."""
    open_files: int = 0
    """Files that a process may have open."""
    clock_seconds: float = 0.0
    """Its clock less the driver's, in seconds."""
    storage_error: str = ""
    """Why the storage could not be used; empty: it could, or was not asked."""
    storage_seconds: float = 0.0
    """Time to write and read one small file of the storage."""
    unseen: tuple[str, ...] = ()
    """Addresses of the nodes whose files in the storage this one does not see."""
    data_error: str = ""
    """Why the data could not be read; empty: they could, or were not asked."""
    data: str = ""
    """Digest of names and sizes of the data."""
    error: str = ""
    """Why the node could not be asked at all."""

    def line(self) -> str:
        """The node in one line."""
        about = f"{self.address:15s} {'head' if self.head else 'worker':6s} {self.cpus:g} CPUs {self.gpus:g} GPUs"
        if self.error:
            return f"{about}  no answer"
        shown = ("python", "ray", "torch", "huggingface_hub", "urllib3")
        packages = "  ".join(f"{name} {self.versions.get(name, 'missing')}" for name in shown)
        storage = "" if self.storage_gb is None else f"  storage {self.storage_gb:.0f} GB free"
        return f"{about}  {packages}  {self.tmp_gb:.0f} GB free{storage}  clock {self.clock_seconds:+.2f} s"


def bring_up(cpus: int, gpus: int, seconds: float) -> None:
    """Ask the cluster's autoscaler for CPUs and GPUs and wait until they are there.

    They stay as long as the autoscaler leaves idle workers alone. Ray must be joined.

    Raises:
        UserError: when they are not there in time, with what is.
    """

    def missing() -> tuple[int, int]:
        have = offered()
        return max(0, cpus - have.cpus), max(0, gpus - int(have.gpus))

    def short() -> str:
        have = offered()
        return f"--cpus {cpus} --gpus {gpus}: the cluster has {have.cpus} CPUs and {have.gpus:g} GPUs"

    _wait([Demand({"CPU": 1}), Demand({"GPU": 1})], missing, short, seconds)


def bring_up_slots(resources: ResourcesConfig, wanted: int, seconds: float) -> None:
    """Ask the autoscaler for room for ``wanted`` members and wait until there is room for one. Ray must be joined.

    Raises:
        UserError: when not even that comes in time.
    """

    def missing() -> tuple[int]:
        return (0 if offered().slots(resources) else wanted,)

    def short() -> str:
        needs = " and ".join(f"{amount:g} {what}" for what, amount in resources.bundle.items())
        return f"--address: no node of the cluster has room for a member ({needs})"

    _wait([Demand(resources.bundle)], missing, short, seconds)


def _wait(
    demands: Sequence[Demand], missing: Callable[[], tuple[int, ...]], short: Callable[[], str], seconds: float
) -> None:
    """Ask for what is missing, one number per demand, until nothing is."""
    deadline = time.monotonic() + seconds
    try:
        while any(units := missing()):
            for demand, wanted in zip(demands, units, strict=True):
                demand.ask(wanted)
            if time.monotonic() > deadline:
                raise UserError(
                    f"{short()} after {seconds:.0f} s; `ray status` says what it waits for, or ask for less"
                )
            time.sleep(1)
    finally:
        for demand in demands:
            demand.close()


def check_nodes(storage: str | None = None, data_dir: str | None = None, seconds: float = SECONDS) -> list[NodeReport]:
    """Ask every living node of the cluster that Ray has joined; head first, then by address.

    Args:
        storage: Where runs will be written; a small file per node is written there and deleted.
        data_dir: Folder of prices. A URI is left to the driver, which reads it.
        seconds: How long to wait for the slowest node.
    """
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    blank = sorted(
        (_blank(node) for node in ray.nodes() if node["Alive"]), key=lambda n: (not n.head, n.address, n.node)
    )
    token = uuid.uuid4().hex[:12]
    local_data = None if data_dir is None or "://" in data_dir else str(Path(data_dir).expanduser().absolute())
    if storage is not None and "://" not in storage:
        storage = str(Path(storage).expanduser().absolute())  # nodes work in folders of their own
    cloudpickle.register_pickle_by_value(node_probe)
    try:
        actor = ray.remote(node_probe.Probe)
        probes = {
            report.node: actor.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(report.node, soft=False)
            ).remote(report.node, token, storage, local_data, report.gpus)
            for report in blank
        }
        answers = _gather({node: probe.report.remote() for node, probe in probes.items()}, seconds)
    finally:
        cloudpickle.unregister_pickle_by_value(node_probe)
    alive = [node for node, answer in answers.items() if isinstance(answer, dict)]
    wrote = [node for node in alive if storage is not None and not answers[node]["storage_error"]]
    unseen = _gather({node: probes[node].look.remote(wrote) for node in wrote}, seconds)
    left = _gather({node: probes[node].forget.remote() for node in wrote}, seconds)
    clocks = {node: _clock(probes[node]) for node in alive}
    for probe in probes.values():
        ray.kill(probe)

    addresses = {report.node: report.address for report in blank}
    reports = []
    for report in blank:
        answer = answers[report.node]
        if not isinstance(answer, dict):
            reports.append(replace(report, error=answer))
            continue
        found = replace(report, **answer, clock_seconds=clocks[report.node])
        if report.node in wrote:
            missing, error = unseen[report.node], left[report.node]
            found = replace(
                found,
                storage_error=f"cannot delete: {error}" if error else "",
                unseen=tuple(addresses[node] for node in missing) if isinstance(missing, list) else (),
            )
        reports.append(found)
    return reports


def _blank(node: dict[str, Any]) -> NodeReport:
    """A node as Ray lists it, before it was asked."""
    offered = node["Resources"]
    return NodeReport(
        node=node["NodeID"],
        address=node["NodeManagerAddress"],
        head="node:__internal_head__" in offered,
        cpus=offered.get("CPU", 0.0),
        gpus=offered.get("GPU", 0.0),
        object_store_gb=offered.get("object_store_memory", 0.0) / node_probe.GIGABYTE,
    )


def _gather(calls: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The answer of each node, or why there is none, as text."""
    import ray

    if not calls:
        return {}
    ready, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds)
    found: dict[str, Any] = {}
    for node, call in calls.items():
        if call not in ready:
            found[node] = f"no answer within {seconds:.0f} s"
            continue
        try:
            found[node] = ray.get(call)
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            found[node] = lines[-1] if lines else type(error).__name__
    return found


def _clock(probe: Any) -> float:
    """A node's clock less ours in seconds: at the middle of the quickest of five round trips (Cristian, 1989)."""
    import ray

    trips = []
    for _ in range(5):
        sent = time.time()
        try:
            there = ray.get(probe.clock.remote(), timeout=10)
        except (ray.exceptions.RayError, TimeoutError):
            continue
        back = time.time()
        trips.append((back - sent, there - (sent + back) / 2))
    return min(trips)[1] if trips else 0.0
