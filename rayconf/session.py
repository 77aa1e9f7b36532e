"""Where a run runs: what the machine offers, and Ray's start and end.

Ray and torch are imported only where they are used, so that a config can be read without either.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rayconf.errors import UserError
from rayconf.origins import HOME
from rayconf.sections import ResourcesConfig

NAMESPACE = "pairpbt"
STORE_MB = 512
"""Object store of a run that names none, for all but what policies train on."""


@dataclass(frozen=True)
class Machine:
    """What a run may use: CPUs and GPUs of this machine or, under ``start_ray``, of the whole cluster."""

    cpus: int
    gpus: float = 0.0
    dashboard: str | None = None
    """Address of Ray's dashboard, if this run started one."""
    nodes: tuple[tuple[float, float], ...] = ()
    """CPUs and GPUs node by node; empty: all on one."""
    joined: bool = False
    """Whether it is a cluster that was joined, whose nodes may come and go."""

    def slots(self, resources: ResourcesConfig) -> int:
        """Members that fit at once; a member's CPUs, and its share of a GPU, lie on one node."""
        nodes = self.nodes or ((self.cpus, self.gpus),)
        return sum(_slots_on(resources, cpus, gpus) for cpus, gpus in nodes)


def store_mb(resources: ResourcesConfig, held: int = 0) -> int:
    """MiB of the object store of a Ray that starts here, ``held`` of which are for what policies train on."""
    return STORE_MB + held if resources.object_store_mb is None else resources.object_store_mb


def _slots_on(resources: ResourcesConfig, cpus: float, gpus: float) -> int:
    """Members that one node can host; a member's share lies on one GPU."""
    slots = int(cpus / resources.cpus_per_member + 1e-9)
    share = resources.gpus_per_member
    return min(slots, int(gpus) * int(1 / share + 1e-9)) if share > 0 else slots


def machine_resources(resources: ResourcesConfig) -> Machine:
    """What this machine offers a run: ``resources.cpus`` or all that the process may use, and the GPUs if asked for.

    Raises:
        UserError: when a GPU is asked for and torch finds none.
    """
    cpus = resources.cpus or available_cpus()
    if resources.gpus_per_member == 0:
        return Machine(cpus)
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 0:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        raise UserError(
            f"resources.gpus_per_member: {resources.gpus_per_member:g} asks for a GPU and torch {torch.__version__} "
            f"({build}) finds none; set it to 0 to train on CPU"
        )
    return Machine(cpus, float(gpus))


def available_cpus(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs this process may use: its affinity, and below that the quota of its container (cgroup v2 or v1)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroups / "cpu.max").read_text().split()
        return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))
    with contextlib.suppress(OSError, ValueError):
        allowed = int((cgroups / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((cgroups / "cpu" / "cpu.cfs_period_us").read_text())
        return cpus if allowed <= 0 else max(1, min(cpus, allowed // period_us))
    return cpus


def dashboard_installed() -> bool:
    """Whether Ray's dashboard and its export of metrics are installed: ``ray[default]``, not ``ray`` alone."""
    try:
        import ray.dashboard.optional_deps  # noqa: F401  what Ray itself asks
    except ImportError:
        return False
    return True


def _check_reachable(address: str) -> None:
    """Refuse HOST:PORT where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return  # "auto" or a URL, which Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address: nothing listens at {address!r}; start Ray there with `ray start --head` or leave the flag out"
        ) from error


def offered(lost: Container[str] = ()) -> Machine:
    """CPUs and GPUs of the living nodes of the Ray that was joined, but for ``lost`` ones, by Ray's name."""
    import ray

    living = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in lost]
    nodes = tuple((found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in living)
    return Machine(int(sum(cpus for cpus, _ in nodes)), sum(gpus for _, gpus in nodes), nodes=nodes, joined=True)


@contextlib.contextmanager
def start_ray(resources: ResourcesConfig, address: str | None = None, held: int = 0) -> Iterator[Machine]:
    """Ray for the length of a ``with`` block; shut down on every way out, also on Ctrl-C and SIGTERM.

    Without ``address`` Ray starts here with ``resources``, even where ``RAY_ADDRESS`` or another Ray invites
    it to join; with one, it joins that cluster. Its object store has room for ``held`` MiB to train on. Within the
    block SIGTERM raises ``SystemExit(143)``, and what a signal raised can be raised again by ``check_signals``. Yields
    the CPUs and GPUs that Ray has.

    Raises:
        UserError: when a GPU is asked for and there is none, the dashboard is and not installed, or no Ray answers at
            ``address``.
    """
    if address is not None:
        _check_reachable(address)
    elif resources.dashboard and not dashboard_installed():
        raise UserError("--dashboard: Ray's dashboard is not installed; get it with `pip install 'ray[default]'`")
    machine = machine_resources(resources) if address is None else None
    # Some builds of Ray report usage over the network unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    on_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # Ray puts the driver's current folder first on every worker's path, whatever the driver's own path is;
        # started from the rooms' folder, no file of the user's shadows a room in a worker.
        with contextlib.chdir(HOME):
            if machine is not None:
                context = ray.init(
                    address="local",
                    num_cpus=machine.cpus,
                    num_gpus=int(machine.gpus),
                    object_store_memory=store_mb(resources, held) * 2**20,
                    include_dashboard=resources.dashboard,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    namespace=NAMESPACE,
                )
                if resources.dashboard:
                    machine = replace(machine, dashboard=f"http://{context.dashboard_url}")
            else:
                try:
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace=NAMESPACE)
                except (ConnectionError, ValueError) as error:
                    raise UserError(
                        f"--address: no Ray answers at {address!r}; start one with `ray start --head`, leave the flag "
                        "out, or export RAY_AUTH_MODE=token if it asks for a token (~/.ray/auth_token)"
                    ) from error
                except ray.exceptions.AuthenticationError as error:
                    raise UserError(
                        f"--address: {address!r} asks for a token and there is none here; copy ~/.ray/auth_token from "
                        "where the cluster was started"
                    ) from error
        for number in before if on_main else ():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end)
        if machine is None:
            machine = offered()
        yield machine
    finally:
        ray.shutdown()
        for number, handler in before.items() if on_main else ():
            signal.signal(number, handler)
        _received.clear()


_received: list[int] = []
"""Signals that came within ``start_ray`` and end the run."""


def _end(signum: int, frame: FrameType | None) -> None:
    _received.append(signum)
    check_signals()


def check_signals() -> None:
    """Raise again what SIGINT or SIGTERM raised within ``start_ray``, if one came.

    Python drops what a signal's handler raises while a weakref's callback runs, and every import runs one: all that
    is left is a line "Exception ignored". So what must end does not rely on the handler alone.
    """
    if _received:
        raise KeyboardInterrupt if _received[-1] == signal.SIGINT else SystemExit(128 + _received[-1])
