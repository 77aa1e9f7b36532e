"""What happens at a pair's barrier: a pure function of (seed, pair, generation, members' fitness)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pbt.fitness import BROKEN, Gap
from pbt.search import Values, draw, explore
from rayconf.run_config import RunConfig


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

    @property
    def broken(self) -> bool:
        """Ruined, lost or non-finite."""
        return self.fitness <= BROKEN


@dataclass(frozen=True)
class Decision:
    """What becomes of one member."""

    member: str
    operation: str
    """keep, explore, exploit, lost or stop."""
    parent: str
    """Whose weights it continues from."""
    values: Values
    """Hyperparameters in force in the next generation."""
    parent_fitness: float | None = None
    gap: Gap | None = field(default=None)


def decide(
    run: RunConfig, pair: str, generation: int, members: Sequence[Standing], gap: Callable[[str, str], Gap]
) -> list[Decision]:
    """Decisions of a pair's barrier, in order of member.

    The bottom ``pbt.quantile`` of the members faces a donor drawn from the top. It takes over the donor's weights
    and explores around the donor's hyperparameters when the paired gap is real; otherwise it keeps its weights
    and explores around its own. Broken members are replaced without gate. Idle ones are never donors.

    Args:
        run: Seed, search space and PBT settings.
        pair: The pair.
        generation: Number of the generation just finished, from 1.
        members: All members of the pair.
        gap: Paired gap of (donor, member), asked for only where needed.
    """
    ranked = sorted(members, key=lambda s: (-s.score, s.member))
    count = min(math.ceil(len(ranked) * run.pbt.quantile), len(ranked) // 2)
    donors = [s for s in ranked[:count] if not s.broken and not s.idle]
    bottom = {s.member for s in ranked[len(ranked) - count :]} | {s.member for s in members if s.broken}
    last = generation >= run.pbt.generations
    decisions = []
    for standing in sorted(members, key=lambda s: s.member):
        if last:
            decisions.append(Decision(standing.member, "stop", standing.member, dict(standing.values)))
        elif standing.member not in bottom:
            decisions.append(Decision(standing.member, "keep", standing.member, dict(standing.values)))
        else:
            decisions.append(_challenge(run, pair, generation, standing, donors, gap))
    return decisions


def _challenge(
    run: RunConfig,
    pair: str,
    generation: int,
    standing: Standing,
    donors: Sequence[Standing],
    gap: Callable[[str, str], Gap],
) -> Decision:
    rng = draw(run.seed, pair, generation, standing.member, "exploit")
    candidates = [donor for donor in donors if donor.member != standing.member]
    if not candidates:
        own = explore(standing.values, run.search, rng)
        return Decision(standing.member, "explore", standing.member, own)
    donor = candidates[rng.randrange(len(candidates))]
    measured = None if standing.broken else gap(donor.member, standing.member)
    if measured is None or measured.exceeds(run.pbt.replace_z):
        values = explore(donor.values, run.search, rng)
        return Decision(standing.member, "exploit", donor.member, values, donor.fitness, measured)
    own = explore(standing.values, run.search, rng)
    return Decision(standing.member, "explore", standing.member, own, donor.fitness, measured)
