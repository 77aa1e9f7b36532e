"""What happens at a pair's barrier: a pure function of (seed, pair, generation, members' fitness)."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from pbt.fitness import Gap
from pbt.groups import plan_groups
from pbt.manifest import Observation
from pbt.search import Values, draw, explore
from pbt.standings import Decision, GapOf, Plan, Standing
from rayconf.run_config import RunConfig

FallOf = Callable[[str], Gap | None]
"""Paired gap of a member's peak over its present evaluation; None without one of both."""


class Move(Protocol):
    """The explore step."""

    def __call__(self, values: Values, rng: random.Random) -> Values:
        """New hyperparameters, from the old ones."""


def decide(
    run: RunConfig,
    pair: str,
    generation: int,
    members: Sequence[Standing],
    gap: GapOf,
    *,
    fall: FallOf = lambda member: None,
    observations: Sequence[Observation] = (),
    stop: bool = False,
) -> list[Decision]:
    """Decisions of a pair's barrier, in order of member.

    Each group (one, unless ``pbt.frequencies`` names more) that is due exploits and takes migrants, see
    ``pbt.groups``. Members that did neither and fell from their peak are rolled back or frozen. Then all that explore
    move, in order of member. The reference and the arms without selection keep what they have.

    Args:
        run: Seed, search space and PBT settings.
        pair: The pair.
        generation: Number of the generation just finished, from 1.
        members: All members of the pair.
        gap: Paired gap of (donor, member), asked for only where needed.
        fall: Paired gap of a member's peak over its present evaluation, asked for only where needed.
        observations: History for PB2, the generation just finished included.
        stop: Whether the pair ends here, also before its last generation.
    """
    ordered = sorted(members, key=lambda s: s.member)
    if stop or generation >= run.pbt.generations:
        plans = {s.member: Plan(_own(s, "stop")) for s in ordered}
    else:
        plans = {s.member: Plan(_own(s, "keep")) for s in ordered}
        if run.pbt.arm == "pbt":
            due = plan_groups(run, pair, generation, ordered, gap)
            plans.update(due)
            _watch_falls(run, pair, generation, [s for s in ordered if s.member in due], plans, fall)
    _move(run, generation, ordered, plans, observations)
    return [_settled(run, s, plans[s.member].decision) for s in ordered]


def _own(standing: Standing, operation: str) -> Decision:
    return Decision(standing.member, operation, standing.member, dict(standing.values))


def _watch_falls(
    run: RunConfig,
    pair: str,
    generation: int,
    members: Sequence[Standing],
    plans: dict[str, Plan],
    fall: FallOf,
) -> None:
    """Roll back or freeze members that lie below their peak by more than noise; the broken ones without gate."""
    mode = run.pbt.on_drop
    for standing in members:
        peak = standing.peak
        untouched = plans[standing.member].decision.operation in ("keep", "explore")
        if mode == "none" or peak is None or standing.lost or not untouched:
            continue
        measured = None
        if not standing.broken:
            measured = fall(standing.member) if standing.fitness < peak.fitness else None
            if measured is None or not measured.exceeds(run.pbt.drop_z):
                continue
        if mode == "rollback":
            decision = Decision(
                standing.member, "rollback", peak.member, dict(standing.values), peak.fitness, measured, "weights"
            )
            plans[standing.member] = Plan(decision, draw(run.seed, pair, generation, standing.member, "rollback"))
        elif not standing.broken:
            own = _own(standing, "freeze")
            plans[standing.member] = Plan(replace(own, parent_fitness=peak.fitness, gap=measured))


def _move(
    run: RunConfig,
    generation: int,
    ordered: Sequence[Standing],
    plans: dict[str, Plan],
    observations: Sequence[Observation],
) -> None:
    """Take the explore steps, in order of member."""
    moving = [s.member for s in ordered if plans[s.member].rng is not None]
    if not moving:
        return
    settled = [plans[s.member].decision.values for s in ordered if plans[s.member].rng is None]
    move = _mover(run, generation, settled, observations)
    for member in moving:
        plan = plans[member]
        assert plan.rng is not None
        plans[member] = Plan(replace(plan.decision, values=move(plan.decision.values, plan.rng)))


def _mover(run: RunConfig, generation: int, settled: list[Values], observations: Sequence[Observation]) -> Move:
    if run.pbt.explore == "pb2":
        from pbt import pb2  # its library takes a second to import

        if len(observations) >= pb2.rows_needed(run.search):
            return pb2.Bandit(run.search, generation + 1, observations, settled)
    return lambda values, rng: explore(values, run.search, rng)


def _settled(run: RunConfig, standing: Standing, decision: Decision) -> Decision:
    """In arm ``pbt`` a broken member that took nobody's weights starts its generation over; so does every lost one."""
    again = standing.broken and run.pbt.arm == "pbt" and decision.operation in ("keep", "explore")
    own = decision.operation in ("keep", "explore", "stop")
    return replace(decision, operation="lost") if (standing.lost and own) or again else decision
