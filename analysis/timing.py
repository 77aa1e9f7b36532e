"""Where the time of a run went: the seconds columns of its progress rows, by what was done."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

WORK = ("env", "policy", "learner", "evaluation", "checkpoint")
"""Parts of a generation, each a column ``<part>_seconds``."""


def time_split(rows: Sequence[Row]) -> dict[str, float]:
    """Seconds of the slot actors by what they did, from progress rows.

    Args:
        rows: Rows of the journal or of the frame; a column that is missing or null counts as 0. Splits of disjoint
            rows add up to that of all of them.

    Returns:
        Seconds in env, policy, learner, evaluation, checkpoint; in waiting (at barriers, for a next ticket), switch
        (the algorithm rebuilt for the next member) and start-up (of the actors' processes).
    """
    split = {part: _total(rows, part) for part in WORK}
    waiting = _total(rows, "wait")
    return {
        **split,
        "waiting": waiting,
        "switch": _total(rows, "switch") - waiting,
        "start-up": _total(rows, "startup"),
    }


def _total(rows: Sequence[Row], part: str) -> float:
    return math.fsum(row.get(f"{part}_seconds") or 0.0 for row in rows)


def time_line(split: Mapping[str, float], most: int | None = None) -> str:
    """A split as one line, ``time: learner 62 %  evaluation 12 %``: the largest first, shares under 1 % left out.

    Args:
        split: As ``time_split`` returns it.
        most: The number of parts to name; None: all.
    """
    whole = math.fsum(split.values())
    if whole <= 0:
        return "time: ?"
    shares = sorted(((seconds / whole, part) for part, seconds in split.items()), reverse=True)
    named = [f"{part} {share:.0%}".replace("%", " %") for share, part in shares if share >= 0.01]
    return "time: " + "  ".join(named[:most])


@dataclass(frozen=True)
class ActorTime:
    """What one slot actor's rows say of its time, between its first environment step and its last moment of work."""

    host: str
    pid: int
    began: float
    """First environment step, unix s."""
    ended: float
    """End of its last row, unix s."""
    seconds: float
    """What the columns add up to in between."""


def actor_times(rows: Sequence[Row]) -> list[ActorTime]:
    """The slot actors of a run in the order of their first step, from progress rows."""
    actors: dict[tuple[str, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: float(row["wall_time"])):
        actors.setdefault((row["host"], row["actor_pid"]), []).append(row)
    found = []
    for (host, pid), own in actors.items():
        worked = math.fsum(_total(own[:1], part) for part in WORK)
        seconds = math.fsum(_total(own, part) for part in (*WORK, "switch"))
        seconds -= _total(own[:1], "switch")
        found.append(ActorTime(host, pid, own[0]["wall_time"] - worked, own[-1]["wall_time"], seconds))
    return sorted(found, key=lambda actor: actor.began)


def first_gradient(rows: Sequence[Row]) -> float:
    """When the first gradient step of a run began, unix s: its first rollout was done by then."""
    firsts = []
    for row in rows:
        work = math.fsum(_total([row], part) for part in WORK)
        rollout = math.fsum(_total([row], part) for part in ("env", "policy"))
        firsts.append(row["wall_time"] - work + rollout)
    return float(min(firsts))
