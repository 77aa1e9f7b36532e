"""A folder that every node reaches: a local path, or a URI that pyarrow knows (``s3://``, ``gs://``, ``abfs://``).

Files are small enough to be held in memory, and are written whole or not at all: locally under a temporary name that is
then renamed, remotely by one put, which object storage makes visible when it is complete.
"""

import contextlib
import functools
import os
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote

SIDE_BY_SIDE = 16
"""Transfers at a time."""
PATIENCE = 60.0
"""Seconds for which the network's and the server's own failures are met by trying again."""
_PASSING = (
    "NETWORK_CONNECTION",
    "REQUEST_TIMEOUT",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "SLOW_DOWN",
    "THROTTLING",
)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SECRET = ("secret", "password", "token", "account_key", "sas")
T = TypeVar("T")


class StorageError(OSError):
    """A place that cannot be reached, read or written, in one line without secrets."""


def is_uri(place: str | Path) -> bool:
    """Whether a place is a URI; ``hf://`` names a published run, which is fetched by other means."""
    return isinstance(place, str) and bool(_URI.match(place)) and not place.startswith("hf://")


def place(text: str) -> str | Path:
    """A command's argument: a URI as it is (a ``Path`` would lose a slash of it), anything else as a path."""
    return text if is_uri(text) else Path(text)


def shown(uri: str) -> str:
    """A URI for people: without credentials and query."""
    scheme, _, rest = uri.partition("://")
    head, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{head.rpartition('@')[2]}{slash}{path}"


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
    def names(self) -> list[str]:
        """All whole files here and below, sorted."""

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

    def names(self) -> list[str]:
        """List all files but temporary ones."""
        found = (path for path in self._folder.rglob("*") if path.suffix != ".tmp" and path.is_file())
        return sorted(path.relative_to(self._folder).as_posix() for path in found)

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


class RemoteStorage(Storage):
    """A folder of a pyarrow filesystem.

    Args:
        uri: Its URI, with whatever query the filesystem needs.
        system: The filesystem; None: the URI's, opened once per process.
        path: The folder's path in it.
    """

    def __init__(self, uri: str, system: Any = None, path: str = "") -> None:
        super().__init__(uri)
        self.system, self.path = (system, path) if system is not None else _opened(uri)

    def check(self) -> None:
        """Raise ``StorageError`` where there is no such bucket, or it cannot be asked."""
        bucket = self.path.partition("/")[0]
        with self._told("reached"):
            found = self.system.get_file_info(bucket).type.name
        if found == "NotFound":
            raise StorageError(f"{self.shown()}: there is no bucket {bucket!r}; make it first")

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Put a file.

        In a thread of its own, where no Ctrl-C reaches: a stream that is left by an exception would be completed as a
        file of what it holds.
        """
        _pool().submit(self._put, name, content).result()

    def _put(self, name: str, content: bytes | memoryview) -> None:
        def put() -> None:
            stream = self.system.open_output_stream(self._at(name))
            stream.write(content)
            stream.close()

        self._patiently(put, "written", name)

    def read(self, name: str) -> bytes:
        """Get a file."""

        def get() -> bytes:
            with self.system.open_input_stream(self._at(name)) as stream:
                content: bytes = stream.read()
            return content

        return self._patiently(get, "read", name)

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return self._patiently(lambda: bool(self.system.get_file_info(self._at(name)).is_file), "looked for", name)

    def occupied(self) -> bool:
        """Whether a name begins with that of the folder."""
        with self._told("read"):
            return bool(self.system.get_file_info(self.path).type.name != "NotFound")

    def names(self) -> list[str]:
        """List all files."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.path, recursive=True, allow_not_found=True)
        found = self._patiently(lambda: self.system.get_file_info(selector), "listed")
        return sorted(info.path[len(self.path) + 1 :] for info in found if info.is_file)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files."""

        def gone(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._patiently(lambda: self.system.delete_file(self._at(name)), "deleted", name)

        list(self.each(gone, names))

    def clear(self) -> None:
        """Delete the folder."""
        with contextlib.suppress(FileNotFoundError):
            self._patiently(lambda: self.system.delete_dir(self.path), "deleted")

    def within(self, name: str) -> "RemoteStorage":
        """A folder in this one; it need not exist."""
        address, mark, query = self.place.partition("?")
        return RemoteStorage(f"{address.rstrip('/')}/{quote(name)}{mark}{query}", self.system, self._at(name))

    def shown(self, name: str = "") -> str:
        """The URI without credentials and query."""
        return shown(self.place).rstrip("/") + (f"/{name}" if name else "")

    def each(self, action: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
        """Act on each name, ``SIDE_BY_SIDE`` at a time."""
        return _pool().map(action, names)

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _patiently(self, action: Callable[[], T], what: str, name: str = "") -> T:
        """The action's result, tried again while the store cannot be reached, but not for ever."""
        deadline, pause = time.monotonic() + PATIENCE, 1.0
        while True:
            try:
                with self._told(what, name):
                    return action()
            except StorageError as error:
                if time.monotonic() > deadline or not any(kind in str(error) for kind in _PASSING):
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    @contextlib.contextmanager
    def _told(self, what: str, name: str = "") -> Iterator[None]:
        """Errors of the filesystem in our words."""
        from pyarrow import ArrowException

        try:
            yield
        except (FileNotFoundError, StorageError):
            raise
        except (OSError, ArrowException) as error:
            raise StorageError(f"{self.shown(name)}: cannot be {what}: {_line(error)}") from error


def storage_at(place: str | Path) -> Storage:
    """Open a folder. It need not exist.

    Raises:
        StorageError: The URI holds a secret, names no bucket, or is none that pyarrow knows.
    """
    if isinstance(place, str) and place.startswith("file://"):
        place = place.removeprefix("file://")
    return RemoteStorage(place) if is_uri(place) else LocalStorage(Path(place))  # type: ignore[arg-type]


@functools.cache
def _opened(uri: str) -> tuple[Any, str]:
    """Filesystem and path of a URI."""
    from pyarrow import ArrowException, fs

    if _holds_secret(uri):
        raise StorageError(
            f"{shown(uri)}: leave keys out of the URI, which is stored and passed to every node; give them by "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machines' own role"
        )
    address, _, query = uri.partition("?")
    # Without it, pyarrow sends even a small file in three requests.
    known = f"{query}&" if query else ""
    asked = f"{address}?{known}allow_delayed_open=true" if address.startswith("s3://") else uri
    try:
        system, path = fs.FileSystem.from_uri(asked)
    except (OSError, ArrowException, ImportError, ValueError) as error:
        raise StorageError(f"{shown(uri)}: {_line(error).replace(asked, shown(uri))}") from error
    path = path.rstrip("/")
    if not path:
        raise StorageError(f"{shown(uri)}: names no bucket; write s3://BUCKET/runs")
    return system, path


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="storage")


def _holds_secret(uri: str) -> bool:
    address, _, query = uri.partition("://")[2].partition("?")
    user, at, _ = address.partition("/")[0].rpartition("@")
    names = (name.lower() for name, _ in parse_qsl(query, keep_blank_values=True))
    return bool(at and ":" in user) or any(secret in name for name in names for secret in _SECRET)


def _line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
