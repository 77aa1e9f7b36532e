"""Running the commands as their users do, on a market and a network as small as they go."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT
from tests.pbt.conftest import TINY

SETTINGS = [argument for text in TINY for argument in ("--set", text)]
MINUTES = 60


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pbt.launch", *arguments]


def environment(**extra: str) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}


def launch(*arguments: str, cwd: Path = ROOT, timeout: float = 8 * MINUTES) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout
    )


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=5 * MINUTES,
    )


class Told(NamedTuple):
    """How a command ended and what it printed."""

    returncode: int
    stdout: str
    stderr: str


ALL = """
import contextlib, importlib, io, json, sys
for module, *arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = importlib.import_module(module).main(arguments)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def in_one_process(variables: Mapping[str, str], *commands: tuple[str, ...]) -> list[Told]:
    """Commands, each a module and its arguments, one after the other in a process with this environment."""
    arguments = [sys.executable, "-c", ALL, json.dumps(commands)]
    done = subprocess.run(arguments, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=5 * MINUTES)
    assert (done.returncode, done.stderr) == (0, "")
    return [Told(*json.loads(line)) for line in done.stdout.splitlines()]


def tiny(folder: str | Path, *arguments: str) -> list[str]:
    """Arguments of a launch on one CPU, which uses less of the machine than two do and gives the same frames."""
    run = ["--preset", "smoke", "--run-dir", str(folder), "--name", "tiny", "--seed", "7"]
    return [*run, *SETTINGS, "--set", "resources.cpus=1", *arguments]
