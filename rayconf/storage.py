"""A folder that every node reaches: a local path, or a URI that pyarrow knows (``s3://``, ``gs://``, ``abfs://``).

Files are small enough to be held in memory, and are written whole or not at all: locally under a temporary name that is
then renamed, remotely by one put, which object storage makes visible when it is complete.
"""

import contextlib
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
T = TypeVar("T")
Wanted = Callable[[str], bool]
"""Whether a file, or a folder ``x/``, is wanted, by name."""


class StorageError(OSError):
    """A place that cannot be reached, read or written, in one line without secrets."""


def is_uri(place: str | Path) -> bool:
    """Whether a place is a URI; not ``hf://``, a published run, nor ``file://``, a folder."""
    return isinstance(place, str) and bool(_URI.match(place)) and not place.startswith(("hf://", "file://"))


def place(text: str) -> str | Path:
    """A command's argument: a URI as it is (a ``Path`` would lose a slash of it), anything else as a path."""
    return text if is_uri(text) else Path(text.removeprefix("file://"))


class Storage(ABC):
    """A folder; names are relative to it, with ``/`` between parts."""

    def __init__(self, place: str) -> None:
        self.place = place
        """What ``storage_at`` opens again, on whatever node."""

    @abstractmethod
    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file whole. Raises ``OSError``, remotely ``StorageError``."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's content. Raises ``FileNotFoundError``, or else as ``write``."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def occupied(self) -> bool:
        """Whether anything lies here."""

    @abstractmethod
    def names(self, wanted: Wanted = bool) -> list[str]:
        """Whole files here and below, sorted: those wanted. A folder ``x/`` that is not is passed over as a whole."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Delete files, where present."""

    @abstractmethod
    def clear(self) -> None:
        """Delete the folder with all in it, where present."""

    @abstractmethod
    def within(self, name: str) -> "Storage":
        """A folder in this one."""

    @abstractmethod
    def shown(self, name: str = "") -> str:
        """The folder, or a file in it, for people."""

    def tidy(self) -> None:
        """Delete what interrupted writes left."""
        return

    def each(self, action: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
        """Act on each name, side by side where waiting dominates; results in the order of names."""
        return map(action, names)

    def read_each(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """Contents in the order of names; None: there is no such file."""

        def found(name: str) -> bytes | None:
            with contextlib.suppress(FileNotFoundError):
                return self.read(name)
            return None

        return self.each(found, names)

    def fetch(self, names: Iterable[str], folder: Path) -> None:
        """Copy files into a local folder."""

        def copy(name: str) -> None:
            LocalStorage(folder).write(name, self.read(name))

        list(self.each(copy, names))

    def send(self, names: Iterable[str], folder: Path) -> None:
        """Copy files from a local folder; one that vanished meanwhile is left out."""

        def copy(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._put(name, (folder / name).read_bytes())

        list(self.each(copy, names))

    def _put(self, name: str, content: bytes | memoryview) -> None:
        self.write(name, content)


class LocalStorage(Storage):
    """A folder on this machine, or one that all machines mount."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder.expanduser().absolute()))
        self._folder = folder

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write under a temporary name, then rename."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """Read a file."""
        return (self._folder / name).read_bytes()

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return (self._folder / name).is_file()

    def occupied(self) -> bool:
        """Whether the folder exists."""
        return self._folder.exists()

    def names(self, wanted: Wanted = bool) -> list[str]:
        """List files, temporary ones aside."""
        found = (path for path in self._folder.rglob("*") if path.suffix != ".tmp" and path.is_file())
        return sorted(filter(wanted, (path.relative_to(self._folder).as_posix() for path in found)))

    def delete(self, names: Iterable[str]) -> None:
        """Delete files."""
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete the folder as far as possible."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def within(self, name: str) -> "LocalStorage":
        """A folder in this one; it need not exist."""
        return LocalStorage(self._folder / name)

    def shown(self, name: str = "") -> str:
        """The path."""
        return str(self._folder / name)

    def tidy(self) -> None:
        """Delete temporary files."""
        for temporary in self._folder.rglob("*.tmp"):
            temporary.unlink(missing_ok=True)


def storage_at(place: str | Path) -> Storage:
    """Open a folder. It need not exist.

    Raises:
        StorageError: The URI holds a secret, names no bucket, or is none that pyarrow knows.
    """
    if not is_uri(place):
        return LocalStorage(Path(place))
    from rayconf.remote_storage import RemoteStorage

    return RemoteStorage(str(place))
