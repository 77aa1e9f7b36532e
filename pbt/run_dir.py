"""The directory of a run: where everything lies, and the journal of its events."""

import time
from pathlib import Path
from typing import Any

from analysis.frames import append_jsonl, read_jsonl
from pbt.mirror import Mirror, fetched, working
from rayconf.errors import UserError
from rayconf.storage import LocalStorage, Storage, Wanted, is_uri


def folder_name(pair: str) -> str:
    """``AAA/BBB`` as it appears in paths: ``AAA_BBB``."""
    return pair.replace("/", "_")


def member_name(index: int) -> str:
    """Name of a member by number: m00 and up."""
    return f"m{index:02d}"


def open_run(where: str | Path, wanted: Wanted = working) -> "RunDir":
    """The directory of a run: a folder, or a working copy of what is wanted of a run at a URI.

    Raises:
        UserError: The URI cannot be read, or nothing lies there.
    """
    if not is_uri(where):
        return RunDir(Path(where))
    mirror = fetched(str(where), wanted)
    return RunDir(mirror.folder, mirror=mirror)


class RunDir:
    """Paths of one run. Nothing is created before ``create``.

    Args:
        path: The run's directory.
        identity: The run's identity, which its rows carry; needed to journal.
        mirror: Where ``path`` is but the driver's working copy, the run itself at a URI; members write there.
        window: Window of a walk-forward, from 1, as which the run is seen: what it trains lies below
            ``windows/<window>``, and its rows carry its number. 0: the run itself.
    """

    def __init__(self, path: Path, identity: str = "", mirror: Mirror | None = None, window: int = 0) -> None:
        self.path = path
        self.identity = identity
        self.window = window
        self._mirror = mirror
        self._home: Storage = LocalStorage(path) if mirror is None else mirror.home
        self.storage: Storage = self._home.within(f"windows/{window}") if window else self._home
        """Where the run, or the window of it, lies for every node."""
        trained = path / "windows" / str(window) if window else path
        self.config = path / "config.yaml"
        self.extension = path / "extension.yaml"
        self.frames = path / "frames"
        self.state = path / "state"
        self.manifests = trained / "state"
        self.survivors = trained / "survivors"
        self.replays = path / "replays"
        self.base = trained / "base"
        self.forecasts = path / "forecasts.parquet"
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

    def in_window(self, window: int) -> "RunDir":
        """The same run as a window of its walk-forward sees it; 0: the run itself."""
        return RunDir(self.path, self.identity, self._mirror, window)

    def create(self) -> None:
        """Make the directory. Raises ``UserError`` when it exists or cannot be made."""
        taken = f"--name: {self.shown(self.path)} exists; choose another name, or go on with --resume"
        if self.storage.occupied():
            raise UserError(taken)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir()
        except FileExistsError as error:
            raise UserError(taken) from error
        except OSError as error:
            raise UserError(f"--run-dir: cannot make {self.path}: {error.strerror}") from error

    def require(self) -> None:
        """Raise ``UserError`` unless a run lies here."""
        if not self.config.is_file():
            raise UserError(f"{self.shown(self.path)} holds no run: config.yaml is missing")

    def push(self, *, everything: bool = False) -> None:
        """Send what changed to where the run lies, if that is elsewhere: config and state, or everything.

        Raises:
            StorageError: It cannot be written there.
        """
        if self._mirror is not None:
            self._mirror.push(everything=everything)

    def pull(self, wanted: Wanted) -> None:
        """Fetch anew what is wanted, if the run lies elsewhere. Raises ``StorageError`` where it cannot be read."""
        if self._mirror is not None:
            self._mirror.pull(wanted)

    def shown(self, path: Path) -> str:
        """A path of the run as its user knows it."""
        if self._mirror is None or not path.is_relative_to(self.path):
            return str(path)
        return self._home.shown("" if path == self.path else path.relative_to(self.path).as_posix())

    @property
    def config_in_force(self) -> Path:
        """The config of what the run is doing: ``extension.yaml`` while new pairs are joining, else ``config.yaml``."""
        return self.extension if self.extension.is_file() else self.config

    def manifest(self, pair: str) -> Path:
        """The committed state of a pair's population."""
        return self.manifests / f"{folder_name(pair)}.json"

    def manifest_before(self, pair: str) -> Path:
        """The commit before the last one, which the pair goes back to when a state is damaged."""
        return self.manifests / "previous" / f"{folder_name(pair)}.json"

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
            "window": self.window,
            **where,
            "detail": detail,
        }
        append_jsonl(self.events_journal, [row])
