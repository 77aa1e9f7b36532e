"""The committed state of one pair's population: what a resume starts from."""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pbt.search import Values
from rayconf.errors import UserError

SCHEMA = 2


@dataclass(frozen=True)
class Peak:
    """The best evaluation that a member's weights ever had."""

    state: str
    member: str
    """Member that trained it."""
    generation: int
    fitness: float
    evaluations: int
    """Length of ``Member.fitness_history`` up to and including it."""


@dataclass(frozen=True)
class Member:
    """One member between two generations."""

    state: str | None
    """Digest of the state it continues from; null: untrained."""
    hyperparameters: Values
    """In force in the next generation."""
    parent: str
    """Member that trained that state; at the start from another run or pair PAIR:member:generation."""
    trained: int = 0
    """Generation that trained it; 0: none."""
    fitness_history: tuple[float, ...] = ()
    """Fitness of the weights it carries, generation by generation; it follows the weights at an exploit."""
    peak: Peak | None = None
    """Best of that history, idle and broken accounts left out; kept where ``pbt.on_drop`` asks for it."""
    frozen: bool = False
    """Whether the market encoder rests in the next generation."""

    def states(self) -> set[str]:
        """Digests that this member may continue from."""
        own = {self.state} if self.state is not None else set()
        return own | {self.peak.state} if self.peak is not None else own


@dataclass(frozen=True)
class Snapshot:
    """One state that validation has seen."""

    state: str
    member: str
    generation: int
    fitness: float
    fitness_se: float
    score: float
    idle: bool
    hyperparameters: Values
    """In force while its last generation trained."""

    @property
    def rank(self) -> tuple[bool, float, int, str]:
        """Order of preference: active before idle, then by score, then the earlier one."""
        return (self.idle, -self.score, self.generation, self.member)


@dataclass(frozen=True)
class Observation:
    """What one generation gained under which hyperparameters: a row of PB2's history."""

    generation: int
    member: str
    hyperparameters: Values
    change: float | None
    """Fitness less that of the state it started from; null: it broke the account."""


@dataclass(frozen=True)
class Mark:
    """The best smoothed fitness that counted as progress."""

    score: float
    se: float


@dataclass(frozen=True)
class Population:
    """One pair at a committed barrier."""

    pair: str
    generation: int
    """Generations finished."""
    status: str
    """running or complete."""
    members: dict[str, Member]
    archive: tuple[Snapshot, ...] = ()
    patience: int = 0
    """Generations since the last progress."""
    mark: Mark | None = None
    """What progress is measured against; null: no account has been whole yet."""
    observations: tuple[Observation, ...] = ()
    """History for PB2, oldest first."""
    previous: tuple[str, ...] = field(default=())
    """States that the commit before needs, kept until the next one: a damaged state sends the pair back to it."""
    bases: dict[str, str] = field(default_factory=dict)
    """States that members came with from other pairs or runs, kept for replays that start there: digest to source."""
    schema: int = SCHEMA

    def own_states(self) -> set[str]:
        """Digests that training and back-testing go on from: members and their peaks, and the archive."""
        members = {state for member in self.members.values() for state in member.states()}
        return members | {snapshot.state for snapshot in self.archive}

    def states(self) -> set[str]:
        """Digests to keep: this commit's own, those of the commit before, and bases."""
        return self.own_states() | {*self.previous, *self.bases}

    def archived(self, snapshots: list[Snapshot], size: int) -> tuple[Snapshot, ...]:
        """The best ``size`` of the archive and the new snapshots; each state once."""
        best: dict[str, Snapshot] = {}
        for snapshot in sorted([*self.archive, *snapshots], key=lambda s: s.rank):
            best.setdefault(snapshot.state, snapshot)
        return tuple(best.values())[:size]

    def progress(self, snapshots: list[Snapshot]) -> tuple[int, Mark | None]:
        """``patience`` and ``mark`` after a generation.

        Progress is a smoothed fitness above the mark by more than the mark's own standard error; small steps add up,
        because the mark moves only then. The generation's best is the one that the archive would prefer.
        """
        best = min(snapshots, key=lambda s: s.rank, default=None)
        if best is not None and (self.mark is None or best.score > self.mark.score + self.mark.se):
            return 0, Mark(best.score, best.fitness_se)
        return self.patience + 1, self.mark

    def write(self, path: Path) -> None:
        """Commit: write to a temporary name, sync, rename."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w") as stream:
            json.dump(asdict(self), stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> "Population":
        """Read a commit back. Raises ``UserError`` when it is damaged or of another schema."""
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            if (schema := data["schema"]) == SCHEMA:
                mark = data["mark"]
                return cls(
                    **{
                        **data,
                        "members": {name: _member(entry) for name, entry in data["members"].items()},
                        "archive": tuple(Snapshot(**entry) for entry in data["archive"]),
                        "mark": Mark(**mark) if mark else None,
                        "observations": tuple(Observation(**entry) for entry in data["observations"]),
                        "previous": tuple(data["previous"]),
                    }
                )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: no readable population state ({error}); restore it from a copy") from error
        raise UserError(f"{path}: schema {schema}; this version reads schema {SCHEMA}, so start a new run")

    def advanced(self, **changes: Any) -> "Population":
        """A copy with the given fields replaced."""
        return replace(self, **changes)


def _member(entry: dict[str, Any]) -> Member:
    peak = entry["peak"]
    return Member(
        **{**entry, "fitness_history": tuple(entry["fitness_history"]), "peak": Peak(**peak) if peak else None}
    )
