"""A full disk: told apart from other failures, and survived with a last word."""

import contextlib
import errno
import os
from pathlib import Path

from pbt.run_dir import RunDir

RESERVE_BYTES = 256 * 1024
_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


class DiskFullError(RuntimeError):
    """A member could not write: no fault of its own, and trying again would not help."""


def is_full(error: BaseException | str) -> bool:
    """Whether an error says that a disk, or a quota, is full.

    Judged by the system's own words, since Ray, Tune and Arrow wrap the error of another process as text.
    """
    return any(text in str(error) for text in _FULL)


def keep_reserve(directory: RunDir) -> None:
    """Hold some room, so that a run that fills the disk can still say so in its journal and log."""
    directory.reserve.parent.mkdir(parents=True, exist_ok=True)
    directory.reserve.write_bytes(bytes(RESERVE_BYTES))


def give_up(directory: RunDir) -> str:
    """Use the reserve for the event of a full disk; returns what the user is told."""
    directory.reserve.unlink(missing_ok=True)
    message = f"no space left on the disk of {directory.path.resolve()} (mounted at {_mount(directory.path)})"
    with contextlib.suppress(OSError):  # whoever filled the disk may have taken the reserve too
        directory.event("disk_full", message)
    return message


def _mount(path: Path) -> Path:
    path = path.resolve()
    while not path.is_mount():
        path = path.parent
    return path
