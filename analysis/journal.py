"""Append-only JSON lines: what a run writes while it is alive, before its frames exist.

A process may be killed in the middle of a line. Such a torn tail is ignored when reading and cut off
by the next append; whole lines are on disk when ``append_jsonl`` returns.
"""

import datetime
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rayconf.errors import UserError


def _plain(value: Any) -> Any:
    """The value in JSON's types; NaN becomes null, infinities stay (Python's JSON reads them back)."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _tail(stream: BinaryIO) -> bytes:
    """What follows the last newline."""
    size = stream.seek(0, os.SEEK_END)
    tail = b""
    while size and b"\n" not in tail:
        step = min(size, 1 << 16)
        size -= step
        stream.seek(size)
        tail = stream.read(step) + tail
    return tail.rpartition(b"\n")[2]


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows, one JSON object per line, and wait until they are on disk.

    A torn last line that a crash left behind is cut off first.
    """
    text = "".join(json.dumps(_plain(row), separators=(",", ":")) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(exist_ok=True)
    with open(path, "r+b") as stream:
        tail = _tail(stream)
        end = stream.seek(0, os.SEEK_END)
        if tail:
            stream.truncate(end - len(tail))
            stream.seek(0, os.SEEK_END)
            if _row(tail) is not None:
                stream.write(tail + b"\n")
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole rows, oldest first; an absent file has none, and a torn last line is left out.

    Raises:
        UserError: Another line than an unterminated last one is no JSON object.
    """
    if not path.is_file():
        return []
    *lines, tail = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None:
            raise UserError(f"{path}: line {number} is no JSON object; the file is damaged, restore or remove it")
        rows.append(row)
    last = _row(tail)
    return rows if last is None else [*rows, last]
