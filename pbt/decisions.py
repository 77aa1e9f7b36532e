"""What happens at a pair's barrier: a pure function of (seed, pair, generation, members' fitness)."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pbt.fitness import BROKEN, Gap
from rayconf.keys import derive_key
from rayconf.run_config import RunConfig
from rayconf.sections import Range

Values = dict[str, float]
"""Hyperparameters by name."""


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


def draw(*key: object) -> random.Random:
    """The random numbers of one named decision."""
    return random.Random(derive_key(*key))


def initial_values(run: RunConfig, pair: str, member: int) -> Values:
    """Where a member starts: the first at the run's own values, the others drawn from the search space."""
    if member == 0:
        return {name: _clip(run.value_of(name), space) for name, space in run.search.items()}
    rng = draw(run.seed, pair, f"m{member:02d}", "start")
    return {name: _between(space, rng.random()) for name, space in sorted(run.search.items())}


def explore(values: Mapping[str, float], search: Mapping[str, Range], rng: random.Random) -> Values:
    """Move every hyperparameter by at most one step, inside its bounds."""
    moved: Values = {}
    for name, space in sorted(search.items()):
        move = 2 * rng.random() - 1
        old = values[name]
        new = old * space.step**move if space.scale == "log" else old + space.step * move
        moved[name] = _clip(new, space)
    return moved


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


def _clip(value: float, space: Range) -> float:
    return min(space.high, max(space.low, value))


def _between(space: Range, share: float) -> float:
    if space.scale == "log":
        return _clip(space.low * (space.high / space.low) ** share, space)
    return space.low + share * (space.high - space.low)
