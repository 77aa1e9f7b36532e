"""The machine from which a cluster is started: it has the checkout, its virtual environment and a key for SSH."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
            inner[last] = value
        self.write("cluster.yaml", yaml.safe_dump(config, sort_keys=False).encode())

    def table(self) -> str:
        """The seconds of all commands, a line each."""
        return "\n".join(["", *(f"{label:28s} {seconds:7.1f} s" for label, seconds in self.seconds.items())])

    def run(self, label: str, *arguments: str, minutes: float = 5) -> str:
        """Run a command that must succeed; what it wrote."""
        with self.started(label, *arguments) as command:
            return command.finish(minutes)

    @contextlib.contextmanager
    def started(self, label: str, *arguments: str) -> Iterator["Command"]:
        """A command that runs while the block does; what is left of it is ended."""
        log = self.machine.rack.folder / f"{label.replace(' ', '-')}.output"
        began = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(*arguments), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield Command(label, process, log)
        finally:
            self.seconds[label] = time.monotonic() - began
            end(process)


@dataclass
class Command:
    """A command that was started on the laptop."""

    label: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def finish(self, minutes: float) -> str:
        """Wait for its end, which must be a success; what it wrote."""
        try:
            self.process.wait(minutes * MINUTES)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.label}: not done in {minutes:g} minutes\n{self.output}") from None
        assert self.process.returncode == 0, f"{self.label}: exit status {self.process.returncode}\n{self.output}"
        return self.output


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that may have ended; gently, if it lets itself."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return
        process.kill()
        process.wait()
