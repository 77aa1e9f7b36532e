"""A run at a URI, and the driver's working copy of it on local disk.

Members write what they train straight to the URI; the driver writes everything else into its copy, as it does in a
folder, and pushes. The order of a push is what makes a run safe: journals come before the manifests that count on
them, a manifest is the commit, and ``summary.json`` comes last, because it says that the run is whole.
"""

import atexit
import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rayconf.errors import UserError
from rayconf.remote_storage import RemoteStorage
from rayconf.storage import Storage, StorageError, Wanted

TRAINED = ("members/", "tune/")
"""What workers write, straight to the URI."""
LEFT = (*TRAINED, "backtests/", "replays/")
"""What a working copy does without."""
HERE = ("state/reserve",)
"""What only the machine of the driver needs."""
COMMITS = ("config.yaml", "extension.yaml", "base/", "forecasts.parquet", "state/")
"""What a resume goes on from."""
WINDOW = re.compile(r"^windows/[0-9]+/")
"""Folder of a window of a walk-forward, which is laid out as the run is."""
Signature = tuple[int, int, int]


def working(name: str) -> bool:
    """What a resume, and whatever else works on a run, needs of it."""
    return not _bare(name).startswith(LEFT)


def committed(name: str) -> bool:
    """What a run has committed so far."""
    return _bare(name).startswith(COMMITS)


def _bare(name: str) -> str:
    """A file's name in its window, or in the run where it is of none."""
    return WINDOW.sub("", name)


class Mirror:
    """A run's folder on local disk and the run itself.

    Args:
        folder: The working copy; need not exist.
        home: Where the run lies.
    """

    def __init__(self, folder: Path, home: Storage) -> None:
        self.folder, self.home = folder, home
        self._known: dict[str, Signature] = {}
        self.pulled = self.pushed = False
        """Whether anything was fetched, or sent."""

    def pull(self, wanted: Wanted = working) -> None:
        """Fetch the files that are wanted. Raises ``StorageError`` where that fails."""
        names = self.home.names(wanted)
        self.home.fetch(names, self.folder)
        self.pulled = self.pulled or bool(names)
        self._known |= {name: _signature(self.folder / name) for name in names}

    def push(self, *, everything: bool = False) -> None:
        """Send what changed since the last push or pull, and delete what vanished.

        Args:
            everything: Not only what a resume goes on from.

        Raises:
            StorageError: It cannot be written; what comes after in order was then not sent.
        """
        found = {name: signature for name, signature in self._files() if everything or committed(name)}
        changed = {name: signature for name, signature in found.items() if self._known.get(name) != signature}
        for stage in range(3):
            names = [name for name in changed if _stage(name) == stage]
            self.home.send(names, self.folder)
            self._known |= {name: changed[name] for name in names}
            self.pushed = self.pushed or bool(names)
        gone = [name for name in self._known if name not in found and not (self.folder / name).exists()]
        self.home.delete(gone)
        for name in gone:
            del self._known[name]

    def _files(self) -> Iterator[tuple[str, Signature]]:
        for folder, _, names in os.walk(self.folder):
            for path in (Path(folder, name) for name in names if not name.endswith(".tmp")):
                name = path.relative_to(self.folder).as_posix()
                if name not in HERE and not _bare(name).startswith(TRAINED):
                    with contextlib.suppress(FileNotFoundError):
                        yield name, _signature(path)


def _signature(path: Path) -> Signature:
    """What changes when a file is written, replaced or appended to."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _stage(name: str) -> int:
    """Place of a file in the order of a push."""
    if name == "summary.json":
        return 2
    name = _bare(name)
    return int(name.startswith("state/") and name.count("/") == 1 and name.endswith(".json"))


class RemoteRuns:
    """A folder of runs at a URI, for a command that works on one of them.

    Args:
        uri: The folder's.

    Raises:
        UserError: It cannot be reached, with the flag.
    """

    def __init__(self, uri: str) -> None:
        with refusing("--run-dir"):
            self._storage = RemoteStorage(uri)
            self._storage.check()
        self._top = Path(tempfile.mkdtemp(prefix="pairpbt-"))
        self.folder = self._top / Path(self._storage.path).name
        """Folder of the working copies."""
        self._mirrors: dict[str, Mirror] = {}

    def mirror(self, name: str) -> Mirror:
        """The mirror of a run by name."""
        if name not in self._mirrors:
            self._mirrors[name] = Mirror(self.folder / name, self._storage.within(name))
        return self._mirrors[name]

    def fetched(self, name: str) -> Mirror:
        """The same, once the run is in its working copy. Raises ``StorageError`` where it cannot be read."""
        mirror = self.mirror(name)
        mirror.pull()
        return mirror

    def close(self) -> bool:
        """Send what was begun and remove the working copies; where it cannot be sent, keep them and say where."""
        for mirror in self._mirrors.values():
            try:
                if mirror.pulled or mirror.pushed:
                    mirror.push(everything=True)
            except OSError as error:
                if mirror.pushed:  # else nothing has come of it but a line that says why
                    print(f"pairpbt: {error}; what could not be sent lies in {mirror.folder}", file=sys.stderr)
                    return False
        shutil.rmtree(self._top, ignore_errors=True)
        return True


def fetched(uri: str, wanted: Wanted = working) -> Mirror:
    """A run at a URI, or a folder of one, in a working copy that lives as long as this process.

    Raises:
        UserError: It cannot be read, or nothing lies there.
    """
    top = Path(tempfile.mkdtemp(prefix="pairpbt-"))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    with refusing():
        home = RemoteStorage(uri)
        home.check()
        # The folder above tells the pair of a survivor.
        mirror = Mirror(top.joinpath(*Path(home.path).parts[-2:]), home)
        mirror.pull(wanted)
    if not mirror.folder.is_dir():
        raise UserError(f"{home.shown()}: nothing lies there")
    return mirror


@contextlib.contextmanager
def refusing(what: str = "") -> Iterator[None]:
    """Storage that cannot be used, as the user's mistake."""
    try:
        yield
    except StorageError as error:
        raise UserError(f"{what}: {error}" if what else str(error)) from error
