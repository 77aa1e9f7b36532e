"""Running the commands as their users do, on a market and a network as small as they go."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

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


def tiny(folder: str | Path, *arguments: str) -> list[str]:
    """Arguments of a launch on one CPU, which uses less of the machine than two do and gives the same frames."""
    run = ["--preset", "smoke", "--run-dir", str(folder), "--name", "tiny", "--seed", "7"]
    return [*run, *SETTINGS, "--set", "resources.cpus=1", *arguments]
