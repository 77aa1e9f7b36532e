"""The machine from which a cluster is started: it has the checkout, its virtual environment and a key for SSH."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT
from tests.fleet.image import ENVIRONMENT
from tests.fleet.rack import PATH, Machine, Rack

MINUTES = 60.0


class Laptop:
    """Commands typed on a laptop in the checkout, as docs/cluster.md has them; each one's seconds are kept."""

    def __init__(self, rack: Rack, address: str, **variables: str) -> None:
        self.machine: Machine = rack.add("laptop", address, "root")
        self.seconds: dict[str, float] = {}
        self._variables = {
            "PATH": f"{ENVIRONMENT}/bin:{PATH}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        self.write(".ssh/id_ed25519", rack.key.read_bytes())

    def command(self, *arguments: str) -> list[str]:
        """The command line for this computer."""
        return self.machine.command(*arguments, cwd=str(ROOT), **self._variables)

    def write(self, name: str, content: bytes) -> None:
        """Write a file into the home, for its owner alone."""
        script = f"umask 077 && mkdir -p $(dirname ~/{name}) && cat >~/{name}"
        subprocess.run(self.machine.command("sh", "-c", script), input=content, check=True)

    def write_cluster(self, shipped: Path, changes: dict[str, Any]) -> None:
        """Write ``~/cluster.yaml``: a file of the checkout with other values at these paths of keys."""
        config = yaml.safe_load(shipped.read_text())
        for path, value in changes.items():
            *folders, last = path.split(".")
            inner = config
            for name in folders:
                inner = inner[name]
            assert last in inner, f"{path} is no key of {shipped.name}"
            inner[last] = value
        self.write("cluster.yaml", yaml.safe_dump(config, sort_keys=False).encode())

    def run(self, label: str, *arguments: str, minutes: float = 3) -> str:
        """Run a command that must succeed; what it wrote."""
        with self.started(label, *arguments) as process:
            return finish(label, process, minutes)

    @contextlib.contextmanager
    def started(self, label: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that runs while the block does; what is left of it is ended."""
        began = time.monotonic()
        process = subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            yield process
        finally:
            self.seconds[label] = time.monotonic() - began
            if process.poll() is None:
                self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=5)
            return
        process.kill()
        process.communicate()


def finish(label: str, process: subprocess.Popen[str], minutes: float) -> str:
    """Wait for the end of a command that must succeed; what it wrote."""
    try:
        output, _ = process.communicate(timeout=minutes * MINUTES)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"{label}: not done in {minutes:g} minutes\n{output}") from None
    assert process.returncode == 0, f"{label}: exit status {process.returncode}\n{output}"
    if "FLEET_VERBOSE" in os.environ:
        print(f"--- {label}\n{output}")
    return output
