"""The committed state of one pair's population: what a resume starts from."""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pbt.search import Values
from rayconf.errors import UserError

SCHEMA = 1


@dataclass(frozen=True)
class Member:
    """One member between two generations."""

    state: str | None
    """Digest of the state it continues from; null: untrained."""
    hyperparameters: Values
    """In force in the next generation."""
    parent: str
    """Member whose state that is; at the start of a transferred one PAIR:member:generation."""
    fitness_history: tuple[float, ...] = ()
    """Fitness of the weights it carries, generation by generation; it follows the weights at an exploit."""


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
class Population:
    """One pair at a committed barrier."""

    pair: str
    generation: int
    """Generations finished."""
    status: str
    """running or complete."""
    members: dict[str, Member]
    archive: tuple[Snapshot, ...] = ()
    previous: tuple[str, ...] = field(default=())
    """States named by the commit before, kept until the next one."""
    bases: dict[str, str] = field(default_factory=dict)
    """States that members came with from other pairs, kept so that replays can start there: digest to source."""
    schema: int = SCHEMA

    def states(self) -> set[str]:
        """Digests this commit needs: members, archive, bases and the commit before."""
        own = {member.state for member in self.members.values() if member.state is not None}
        return own | {snapshot.state for snapshot in self.archive} | {*self.previous, *self.bases}

    def archived(self, snapshots: list[Snapshot], size: int) -> tuple[Snapshot, ...]:
        """The best ``size`` of the archive and the new snapshots; each state once."""
        best: dict[str, Snapshot] = {}
        for snapshot in sorted([*self.archive, *snapshots], key=lambda s: s.rank):
            best.setdefault(snapshot.state, snapshot)
        return tuple(best.values())[:size]

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
        """Read a commit back. Raises ``UserError`` when it is damaged."""
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            members = {
                name: Member(**{**entry, "fitness_history": tuple(entry["fitness_history"])})
                for name, entry in data["members"].items()
            }
            archive = tuple(Snapshot(**entry) for entry in data["archive"])
            return cls(**{**data, "members": members, "archive": archive, "previous": tuple(data["previous"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: no readable population state ({error}); restore it from a copy") from error

    def advanced(self, **changes: Any) -> "Population":
        """A copy with the given fields replaced."""
        return replace(self, **changes)
