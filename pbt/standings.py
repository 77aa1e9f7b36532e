"""What a barrier is decided on and with: standings, decisions, and plans between the two."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from pbt.fitness import BROKEN, Gap
from pbt.manifest import Peak
from pbt.search import Values
from rayconf.sections import PBTConfig

LOST = float("-inf")
"""Fitness of a member that has no result."""
REFERENCE = "m00"
"""The member that starts at the run's own values."""


@dataclass(frozen=True)
class Standing:
    """One member at a barrier."""

    member: str
    fitness: float
    fitness_se: float
    score: float
    """Smoothed fitness that ranks."""
    values: Values
    """Hyperparameters it trained with."""
    idle: bool = False
    peak: Peak | None = None
    """Best earlier evaluation of the weights it carries."""

    @property
    def broken(self) -> bool:
        """Ruined, lost or non-finite."""
        return self.fitness <= BROKEN

    @property
    def lost(self) -> bool:
        """Without a result."""
        return self.fitness == LOST

    @property
    def eligible(self) -> bool:
        """Whether others may take its weights."""
        return not self.broken and not self.idle

    @property
    def rank(self) -> tuple[float, str]:
        """Order of preference: by score, ties by member."""
        return (-self.score, self.member)


@dataclass(frozen=True)
class Decision:
    """What becomes of one member."""

    member: str
    operation: str
    """keep, explore, exploit, migrate, rollback, freeze, lost or stop; lost: its generation counts for nothing, it
    goes on from where that started."""
    parent: str
    """Whose weights it continues from: a member's at this barrier, or for rollback who trained the peak."""
    values: Values
    """Hyperparameters in force in the next generation."""
    parent_fitness: float | None = None
    gap: Gap | None = field(default=None)
    copied: str = "none"
    """What was taken from another state: none, weights or all (hyperparameters too)."""


GapOf = Callable[[str, str], Gap]
"""Paired gap of (donor, member) at this barrier."""


@dataclass
class Plan:
    """A decision whose explore step is still to be taken."""

    decision: Decision
    rng: random.Random | None = None
    """Random numbers of that step; None: hyperparameters stay as decided."""


def arm_of(pbt: PBTConfig, member: str) -> str:
    """The arm that a member belongs to, as the frames say it."""
    return "reference" if pbt.arm == "pbt" and pbt.reference and member == REFERENCE else pbt.arm
