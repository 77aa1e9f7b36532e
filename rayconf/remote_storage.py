"""A folder of object storage, by a pyarrow filesystem. Transfers go side by side, and short outages are waited out."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote

from rayconf.storage import Storage, StorageError, Wanted

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
_SECRET = ("secret", "password", "token", "account_key", "sas")
T = TypeVar("T")


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

    def names(self, wanted: Wanted = bool) -> list[str]:
        """List files."""
        found = self._listed(self.path, recursive=False)
        for folder in [info for info in found if not info.is_file and wanted(f"{info.base_name}/")]:
            found += self._listed(folder.path, recursive=True)
        names = (info.path[len(self.path) + 1 :] for info in found if info.is_file)
        return sorted(filter(wanted, names))

    def _listed(self, path: str, *, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(path, recursive=recursive, allow_not_found=True)
        return self._patiently(lambda: list(self.system.get_file_info(selector)), "listed")

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


def shown(uri: str) -> str:
    """A URI for people: without credentials and query."""
    scheme, _, rest = uri.partition("://")
    head, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{head.rpartition('@')[2]}{slash}{path}"


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
