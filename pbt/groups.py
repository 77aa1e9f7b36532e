"""Who challenges whom at a barrier: exploit within groups, migration between groups of different frequency.

Multiple-Frequencies PBT (Doulazmi et al. 2025, arXiv:2506.03225): groups that decide often are greedy and quick, groups
that decide seldom see what pays in the long run. Migration is asymmetric, as in the paper and its authors' code: from a
slower group weights and hyperparameters are taken; from a faster one the weights only, under the hyperparameters of the
best member of one's own group, so that greedy values do not spread. Migrants go to the members just above the bottom,
which exploit has not replaced already, the best migrant to the best of these, each once, and are not explored.

Beside the paper: every replacement passes the gate, a group too small to have such a middle offers its worst member,
and the reference, which is in no group, may be donor to each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pbt.search import draw
from pbt.standings import Decision, GapOf, Plan, Standing, arm_of
from rayconf.run_config import RunConfig


@dataclass(frozen=True)
class Group:
    """Members that compete with one another."""

    frequency: int
    """It decides at generations divisible by this."""
    ranked: tuple[Standing, ...]
    """Best first."""


def deal(run: RunConfig, members: Sequence[Standing]) -> tuple[list[Group], Standing | None]:
    """The groups, dealt round-robin in order of member, and the reference, which is in none."""
    ordered = sorted(members, key=lambda s: s.member)
    reference = next((s for s in ordered if arm_of(run.pbt, s.member) == "reference"), None)
    others = [s for s in ordered if s is not reference]
    step = len(run.pbt.frequencies)
    groups = [
        Group(frequency, tuple(sorted(others[i::step], key=lambda s: s.rank)))
        for i, frequency in enumerate(run.pbt.frequencies)
    ]
    return groups, reference


def plan_groups(run: RunConfig, pair: str, generation: int, members: Sequence[Standing], gap: GapOf) -> dict[str, Plan]:
    """What becomes of the members of the groups that are due, before anybody explores."""
    groups, reference = deal(run, members)
    plans: dict[str, Plan] = {}
    for group in groups:
        if generation % group.frequency == 0:
            challenge = _Challenge(run, pair, generation, group, groups, reference, gap)
            plans.update({standing.member: challenge.plan(standing) for standing in group.ranked})
    return plans


class _Challenge:
    """One group at a barrier that it takes part in.

    The bottom ``pbt.quantile`` of the group faces a donor drawn from the top. It takes over the donor's weights and
    explores around the donor's hyperparameters when the paired gap is real; otherwise it keeps its weights and explores
    around its own. Broken members are replaced without gate. Idle ones are never donors.
    """

    def __init__(
        self,
        run: RunConfig,
        pair: str,
        generation: int,
        group: Group,
        groups: Sequence[Group],
        reference: Standing | None,
        gap: GapOf,
    ) -> None:
        self._run, self._key, self._gap = run, (run.seed, pair, generation), gap
        self._group, ranked = group, group.ranked
        pool = sorted([*ranked, *([reference] if reference else [])], key=lambda s: s.rank)
        count = min(math.ceil(len(ranked) * run.pbt.quantile), len(pool) // 2)
        top = {s.member for s in pool[:count]}
        self._donors = [s for s in pool[:count] if s.eligible]
        rest = [s for s in ranked if s.member not in top or s.broken]
        self._bottom = {s.member for s in ranked[len(ranked) - count :] if s.member not in top}
        self._bottom |= {s.member for s in rest if s.broken}
        middle = [s for s in rest if s.member not in self._bottom]
        bracket = middle[len(middle) - count :] if middle else rest[-1:]
        self._bracket = {s.member for s in bracket}
        frequency = {s.member: other.frequency for other in groups if other is not group for s in other.ranked}
        outside = [s for other in groups if other is not group for s in other.ranked if s.eligible]
        self._migrants = sorted(outside, key=lambda s: s.rank)
        self._frequency = frequency

    def plan(self, standing: Standing) -> Plan:
        """What becomes of a member; to be asked in order of rank, because a migrant is taken once."""
        unrescued = standing.broken and not self._donors
        if standing.member in self._bracket or unrescued:
            migrated = self._migration(standing)
            if migrated is not None:
                return Plan(migrated)
        if standing.member in self._bottom:
            return self._exploit(standing)
        return Plan(Decision(standing.member, "keep", standing.member, dict(standing.values)))

    def _migration(self, standing: Standing) -> Decision | None:
        if not self._migrants or (standing.broken and self._donors):
            return None
        migrant = self._migrants[0]
        measured = None
        if not standing.broken:
            if migrant.score <= standing.score:
                return None
            measured = self._gap(migrant.member, standing.member)
            if not measured.exceeds(self._run.pbt.replace_z):
                return None
        self._migrants.pop(0)
        slower = self._frequency[migrant.member] > self._group.frequency
        own = next((s for s in self._group.ranked if s.eligible), standing)
        values, copied = (migrant.values, "all") if slower else (own.values, "weights")
        return Decision(standing.member, "migrate", migrant.member, dict(values), migrant.fitness, measured, copied)

    def _exploit(self, standing: Standing) -> Plan:
        rng = draw(*self._key, standing.member, "exploit")
        own = Decision(standing.member, "explore", standing.member, dict(standing.values))
        if not self._donors:
            return Plan(own, rng)
        donor = self._donors[rng.randrange(len(self._donors))]
        measured = None if standing.broken else self._gap(donor.member, standing.member)
        if measured is None or measured.exceeds(self._run.pbt.replace_z):
            taken = Decision(
                standing.member, "exploit", donor.member, dict(donor.values), donor.fitness, measured, "all"
            )
            return Plan(taken, rng)
        return Plan(Decision(standing.member, "explore", standing.member, own.values, donor.fitness, measured), rng)
