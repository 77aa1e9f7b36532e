"""An EC2 whose instances are machines: moto's server on the laptop, and a machine for each of its running instances."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fleet.image import home_with
from tests.fleet.laptop import Laptop
from tests.fleet.rack import Rack

LAPTOP = "172.31.255.10"
"""In moto's default network, at an address that it gives to no instance."""
PREFIX_LENGTH = 16
ACCOUNT = {
    "AWS_ENDPOINT_URL": f"http://{LAPTOP}:5000",
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-west-2",
}
IN_IMAGE = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Instance:
    """A running instance as EC2 describes it."""

    name: str
    address: str
    public_key: str
    kind: str | None
    """Name of the node type in the cluster's file."""
    spot: bool


class Cloud:
    """The instances that run, and those that ever did."""

    def __init__(self, rack: Rack, laptop: Laptop) -> None:
        self._rack, self._laptop = rack, laptop
        self.running: dict[str, Instance] = {}
        self.history: list[tuple[float, str, Instance]] = []
        """Unix time, ``start`` or ``end``, the instance."""
        self.failure: BaseException | None = None

    def workers(self) -> list[Instance]:
        """Running spot instances of the type ``cpu``."""
        return [instance for instance in list(self.running.values()) if instance.kind == "cpu" and instance.spot]

    def reclaim(self, instance: Instance) -> None:
        """EC2 takes a spot instance back: its machine ends, and then EC2 says so."""
        self._rack.machines[instance.name].end()
        self._laptop.run(f"reclaim {instance.name}", "python", "-m", "tests.fleet.ec2", "reclaim", instance.name)

    def wait(self, seconds: float, kinds: Sequence[str | None]) -> None:
        """Wait until instances of these node types run and no others."""
        deadline = time.monotonic() + seconds
        while (found := [instance.kind for instance in list(self.running.values())]) != list(kinds):
            assert self.failure is None, self.failure
            assert time.monotonic() < deadline, f"{found} after {seconds} s, not {kinds}"
            time.sleep(0.2)

    def follow(self, log: Path, stop: threading.Event) -> None:
        """Boot and end machines as the watcher writes; for a thread of its own, whose end is that of the machines."""
        newest = "[]"
        try:
            while not stop.wait(0.1):
                *lines, _ = log.read_text().split("\n")
                if lines and lines[-1] != newest:
                    newest = lines[-1]
                    self._follow({entry["name"]: Instance(**entry) for entry in json.loads(newest)})
        except BaseException as error:
            self.failure = error

    def _follow(self, running: dict[str, Instance]) -> None:
        for name in self.running.keys() - running.keys():
            self._rack.machines[name].end()
            self.history.append((time.time(), "end", self.running.pop(name)))
        for name in running.keys() - self.running.keys():
            instance = running[name]
            self._rack.add(
                name,
                f"{instance.address}/{PREFIX_LENGTH}",
                "ubuntu",
                instance.public_key + "\n",
                home_with(".pairpbt") + "\necho 'export PATH=$HOME/.pairpbt/bin:$PATH' >>.bashrc",
                **ACCOUNT,
                **IN_IMAGE,
            )
            self.running[name] = instance
            self.history.append((time.time(), "start", instance))


@contextlib.contextmanager
def cloud(rack: Rack, laptop: Laptop) -> Iterator[Cloud]:
    """EC2 for the length of a ``with`` block, on an account with the project's stack."""
    with laptop.started("EC2", "env", "MOTO_IAM_LOAD_MANAGED_POLICIES=true", "moto_server", "-H", LAPTOP, "-p", "5000"):
        laptop.run("stack", "python", "-m", "tests.fleet.ec2", "deploy")
        with laptop.started("watch", "python", "-m", "tests.fleet.ec2", "watch") as watcher:
            found, stop = Cloud(rack, laptop), threading.Event()
            thread = threading.Thread(target=found.follow, args=[watcher.log, stop])
            thread.start()
            try:
                yield found
            finally:
                stop.set()
                thread.join()
