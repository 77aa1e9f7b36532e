"""Runs that something happens to, and the undisturbed one that they must equal."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.frames import read_jsonl
from pbt.manifest import Population
from tests.conftest import ROOT
from tests.pbt.conftest import TINY

PAIRS = ("SYNA/SYNB", "SYNC/SYND")
SETTINGS = (*TINY, "pbt.iterations=3", "pbt.straggler_seconds=12")
"""Three generations: one to go back from, one to go back to, one to go on with."""
SECONDS = 480
"""Generous: other work may share the machine."""


@pytest.fixture(scope="session", autouse=True)
def _alone() -> None:
    """Launches bring their own Ray; the session's has done its work."""
    import ray

    ray.shutdown()


class Launches:
    """Launches of one run in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"

    def start(self, *arguments: str, fault: str | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
        """A fresh launch, with a fault planted if one is named."""
        settings = [argument for text in SETTINGS for argument in ("--set", text)]
        return self._call(["--preset", "smoke", "--seed", "7", *settings, *arguments], fault, extra)

    def resume(self, *arguments: str, fault: str | None = None) -> subprocess.CompletedProcess[str]:
        """Go on with it."""
        return self._call(["--resume", *arguments], fault, {})

    def _call(
        self, arguments: list[str], fault: str | None, extra: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        module = ["pbt.launch"] if fault is None else ["tests.faults.saboteur", fault]
        where = ["--run-dir", str(self.folder), "--name", "run"]
        return subprocess.run(
            [sys.executable, "-m", *module, *where, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def generations(self) -> list[int]:
        """Committed generations by pair; -1: none."""
        manifests = [self.run / "state" / f"{pair.replace('/', '_')}.json" for pair in PAIRS]
        return [Population.read(path).generation if path.is_file() else -1 for path in manifests]

    def results(self) -> dict[str, str]:
        """SHA-256 of the frames that must not depend on what happened."""
        return {
            name: hashlib.sha256((self.run / "frames" / f"{name}.parquet").read_bytes()).hexdigest()
            for name in ("lineage", "validation", "daily", "summary")
        }

    def events(self, kind: str) -> pd.DataFrame:
        """Events of a kind in the finished run's frame."""
        events = pd.read_parquet(self.run / "frames" / "events.parquet")
        return events[events.kind == kind]

    def journal(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind so far."""
        return [row for row in read_jsonl(self.run / "state" / "events.jsonl") if row["kind"] == kind]


def finished(done: subprocess.CompletedProcess[str]) -> None:
    """The launch ended well."""
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def launches(tmp_path: Path) -> Launches:
    return Launches(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    reference = Launches(tmp_path_factory.mktemp("undisturbed"))
    finished(reference.start("--set", "resources.cpus=2"))
    assert reference.generations() == [3, 3]
    return reference
