"""The directory of a run: where everything lies, and the journal of its events."""

import time
from pathlib import Path
from typing import Any

from analysis.frames import append_jsonl, read_jsonl
from rayconf.errors import UserError


def folder_name(pair: str) -> str:
    """``AAA/BBB`` as it appears in paths: ``AAA_BBB``."""
    return pair.replace("/", "_")


def member_name(index: int) -> str:
    """Name of a member by number: m00 and up."""
    return f"m{index:02d}"


class RunDir:
    """Paths of one run. Nothing is created before ``create``.

    Args:
        path: The run's directory.
        identity: The run's identity, which its rows carry; needed to journal.
    """

    def __init__(self, path: Path, identity: str = "") -> None:
        self.path = path
        self.identity = identity
        self.config = path / "config.yaml"
        self.extension = path / "extension.yaml"
        self.frames = path / "frames"
        self.state = path / "state"
        self.states = path / "members" / "states"
        self.validation = path / "members" / "validation"
        self.tune = path / "tune"
        self.survivors = path / "survivors"
        self.replays = path / "replays"
        self.base = path / "base"
        self.tensorboard = path / "tensorboard"
        self.report = path / "report.html"
        self.summary_csv = path / "summary.csv"
        self.summary_json = path / "summary.json"
        self.log = path / "run.log"
        self.events_journal = self.state / "events.jsonl"
        self.reserve = self.state / "reserve"
        self.progress_journal = self.state / "progress.jsonl"
        self.lineage_journal = self.state / "lineage.jsonl"

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    def create(self) -> None:
        """Make the directory. Raises ``UserError`` when it exists or cannot be made."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir()
        except FileExistsError as error:
            raise UserError(f"--name: {self.path} exists; choose another name, or go on with --resume") from error
        except OSError as error:
            raise UserError(f"--run-dir: cannot make {self.path}: {error.strerror}") from error

    def require(self) -> None:
        """Raise ``UserError`` unless a run lies here."""
        if not self.config.is_file():
            raise UserError(f"{self.path} holds no run: config.yaml is missing")

    @property
    def config_in_force(self) -> Path:
        """The config of what the run is doing: ``extension.yaml`` while new pairs are joining, else ``config.yaml``."""
        return self.extension if self.extension.is_file() else self.config

    def manifest(self, pair: str) -> Path:
        """The committed state of a pair's population."""
        return self.state / f"{folder_name(pair)}.json"

    def manifest_before(self, pair: str) -> Path:
        """The commit before the last one, which the pair goes back to when a state is damaged."""
        return self.state / "previous" / f"{folder_name(pair)}.json"

    def validation_file(self, pair: str, member: str, generation: int) -> Path:
        """Net returns of one evaluation on validation, float64."""
        return self.validation / folder_name(pair) / f"g{generation:04d}-{member}.npy"

    def survivor(self, pair: str, rank: int) -> Path:
        """Folder of one survivor."""
        return self.survivors / folder_name(pair) / str(rank)

    def base_survivor(self, pair: str) -> Path:
        """Folder of the checkpoint that the pair started from."""
        return self.base / folder_name(pair)

    def frame(self, name: str) -> Path:
        """A result frame."""
        return self.frames / f"{name}.parquet"

    def event(self, kind: str, detail: str = "", **where: Any) -> None:
        """Append one event, on disk when this returns."""
        row = {
            "wall_time": time.time(),
            "seq": len(read_jsonl(self.events_journal)),
            "run": self.identity,
            "kind": kind,
            "window": 0,
            **where,
            "detail": detail,
        }
        append_jsonl(self.events_journal, [row])
