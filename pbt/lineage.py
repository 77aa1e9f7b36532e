"""The rows that a barrier adds to the journals of progress and lineage."""

from collections.abc import Iterable, Mapping
from typing import Any

from pbt.generation import training_key
from pbt.manifest import Member
from pbt.standings import Decision, Standing, arm_of
from rayconf.run_config import RunConfig


def progress_rows(
    run: RunConfig, identity: str, standing: Standing, iterations: Iterable[Mapping[str, Any]], window: int = 0
) -> list[dict[str, Any]]:
    """A member's iterations of the generation just finished; the last one says how it ranked."""
    where = {"run": identity, "arm": arm_of(run.pbt, standing.member), "window": window}
    rows = [{**where, **row} for row in iterations]
    rows[-1]["fitness_smoothed"] = standing.score
    return rows


def lineage_row(
    run: RunConfig,
    identity: str,
    pair: str,
    generation: int,
    decision: Decision,
    member: Member,
    standing: Standing | None = None,
    window: int = 0,
) -> dict[str, Any]:
    """The decision at the end of ``generation``; hp_* and key are those of the generation that follows.

    ``parent_member`` and ``parent_generation`` say who trained the state that goes on, and when; generation 0:
    untrained.

    Args:
        run: The run.
        identity: Its identity.
        pair: The pair.
        generation: The generation just finished; 0 at the start.
        decision: What was decided.
        member: The member as the decision leaves it.
        standing: How it stood; None at the start.
        window: Window of a walk-forward; 0: none.
    """
    measured = standing is not None and not standing.lost
    row: dict[str, Any] = {
        "run": identity,
        "arm": arm_of(run.pbt, decision.member),
        "window": window,
        "pair": pair,
        "generation": generation,
        "member": decision.member,
        "operation": decision.operation,
        "parent_member": member.parent,
        "parent_generation": member.trained,
        "copied": decision.copied,
        "fitness": standing.fitness if measured and standing else None,
        "fitness_se": standing.fitness_se if measured and standing else None,
        "parent_fitness": decision.parent_fitness,
        "gap": decision.gap.value if decision.gap else None,
        "gap_se": decision.gap.se if decision.gap else None,
        "key": f"{training_key(run, pair, decision.member, generation + 1):016x}",
        "state": member.state,
    }
    row.update({f"hp_{name}": value for name, value in decision.values.items()})
    if standing is not None:
        row.update({f"old_hp_{name}": value for name, value in standing.values.items()})
    return row
