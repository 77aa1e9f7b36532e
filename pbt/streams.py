"""A member as trackers see it: a stream of numbers with a name, and what it started from."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from analysis.frames import KEYS, keep_last, read_jsonl
from pbt.run_dir import RunDir, folder_name

Row = Mapping[str, Any]

BASE = "base"
"""Arm of what the stages before populations train."""

_LABELS = {
    *("run", "arm", "window", "pair", "member", "generation", "iteration", "env_steps"),
    *("host", "actor_pid", "attempt", "wall_time"),
}


@dataclass(frozen=True)
class Stream:
    """One member of one pair."""

    pair: str
    member: str
    arm: str
    window: int = 0
    """Window of a walk-forward; 0: none."""
    hyperparameters: Mapping[str, float] = field(default_factory=dict, compare=False)
    """What it started with."""

    @property
    def staged(self) -> bool:
        """Whether it is of a stage before populations: the encoder's, or a pair's specialist's."""
        return self.arm == BASE

    @property
    def name(self) -> str:
        """``AAA_BBB-m00``, in a walk-forward ``w1-AAA_BBB-m00``: the stream's folder or title."""
        return "-".join(self.parts)

    @property
    def parts(self) -> tuple[str, ...]:
        """What its name is made of."""
        window = (f"w{self.window}",) if self.window else ()
        return *window, folder_name(self.pair), self.member


class Tracker(Protocol):
    """What takes the progress of members. Rows that it holds already may come again; it leaves them out."""

    name: str

    def log(self, stream: Stream, rows: Iterable[Row]) -> None:
        """Take progress rows of a member, in order of iteration."""

    def finish(self, stream: Stream) -> None:
        """The member has trained its last generation; may be told again."""

    def close(self) -> None:
        """End; streams that were not finished stay open for a resume."""


def numbers(row: Row) -> dict[str, float]:
    """What of a progress row can be drawn: finite numbers, without labels and clocks of the process."""
    return {
        name: value
        for name, value in row.items()
        if name not in _LABELS and isinstance(value, int | float) and math.isfinite(value)
    }


class Streams:
    """The members of a run, or of a window of it, with their progress so far, from its journals."""

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory
        self._known: dict[tuple[str, str], Stream] = {}
        self._starts = {
            (row["pair"], row["member"]): {
                name.removeprefix("hp_"): value for name, value in row.items() if name.startswith("hp_")
            }
            for row in read_jsonl(directory.lineage_journal)
            if row["generation"] == 0 and row["window"] == directory.window
        }

    def split(self, rows: Iterable[Row]) -> dict[Stream, list[Row]]:
        """Progress rows by member, each in order of iteration."""
        found: dict[Stream, list[Row]] = {}
        for row in rows:
            key = (row["pair"], row["member"])
            if key not in self._known:
                self._known[key] = Stream(*key, row["arm"], row["window"], self._starts.get(key, {}))
            found.setdefault(self._known[key], []).append(row)
        return {stream: sorted(own, key=lambda row: row["iteration"]) for stream, own in found.items()}

    def so_far(self) -> dict[Stream, list[Row]]:
        """All that is committed, and what the stages before have journaled."""
        rows = keep_last(read_jsonl(self._directory.progress_journal), KEYS["progress"])
        for journal in sorted(self._directory.base.rglob("journal.jsonl")):
            rows = [*rows, *read_jsonl(journal)]
        return self.split(row for row in rows if row["window"] == self._directory.window)
