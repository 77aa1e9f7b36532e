"""What W&B's client wrote offline, read back from its transaction logs (LevelDB's log format)."""

import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
HEADER = 7


@dataclass
class Log:
    """One run's transaction log."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


def logs(folder: Path) -> dict[str, Log]:
    """The offline logs below a run's folder by the title of their run; each title once."""
    found = [read(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]
    titles = [log.run.display_name for log in found]
    assert len(set(titles)) == len(titles), titles
    return dict(zip(titles, found, strict=True))


def read(path: Path) -> Log:
    log = Log()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            log.run = record.run
            log.config = _items(record.run.config.update)
        elif kind == "history":
            log.history.append({**_items(record.history.item), "_step": record.history.step.num})
        elif kind == "summary":
            log.summary |= _items(record.summary.update)
        elif kind == "artifact":
            log.artifacts.append(record.artifact)
        elif kind == "exit":
            log.exit_code = record.exit.exit_code
    return log


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> list[bytes]:
    assert data[:4] == b":W&B"
    place, part, found = HEADER, b"", []
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # a block's end holds no header
            place += BLOCK - place % BLOCK
            continue
        checksum, size, kind = struct.unpack("<IHB", data[place : place + HEADER])
        chunk = data[place + HEADER : place + HEADER + size]
        assert zlib.crc32(bytes([kind]) + chunk) == checksum
        place, part = place + HEADER + size, part + chunk
        if kind in (1, 4):  # whole, or its last part
            found.append(part)
            part = b""
    return found
