"""How hyperparameters are drawn and moved inside the search space."""

import random
from collections.abc import Mapping

from rayconf.keys import derive_key
from rayconf.run_config import RunConfig
from rayconf.sections import Range

Values = dict[str, float]
"""Hyperparameters by name."""


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


def _clip(value: float, space: Range) -> float:
    return min(space.high, max(space.low, value))


def _between(space: Range, share: float) -> float:
    if space.scale == "log":
        return _clip(space.low * (space.high / space.low) ** share, space)
    return space.low + share * (space.high - space.low)
