"""How hyperparameters are drawn and moved inside the search space."""

import math
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
    """Where a member starts: the first, and all in arm ``fixed``, at the run's own values; the others drawn."""
    if member == 0 or run.pbt.arm == "fixed":
        return {name: _clip(run.value_of(name), space) for name, space in run.search.items()}
    rng = draw(run.seed, pair, f"m{member:02d}", "start")
    return {name: from_unit(rng.random(), space) for name, space in sorted(run.search.items())}


def explore(values: Mapping[str, float], search: Mapping[str, Range], rng: random.Random) -> Values:
    """Move every hyperparameter by at most one step, inside its bounds."""
    moved: Values = {}
    for name, space in sorted(search.items()):
        move = 2 * rng.random() - 1
        old = values[name]
        new = old * space.step**move if space.scale == "log" else old + space.step * move
        moved[name] = _clip(new, space)
    return moved


def to_unit(value: float, space: Range) -> float:
    """Position of a value in its range, 0 (low) to 1 (high), on the range's scale; 0 where it has no width."""
    if space.low == space.high:
        return 0.0
    if space.scale == "log":
        return math.log(value / space.low) / math.log(space.high / space.low)
    return (value - space.low) / (space.high - space.low)


def from_unit(share: float, space: Range) -> float:
    """The value at a position from 0 to 1; inverse of ``to_unit``."""
    if space.scale == "log":
        return _clip(space.low * (space.high / space.low) ** share, space)
    return _clip(space.low + share * (space.high - space.low), space)


def _clip(value: float, space: Range) -> float:
    return min(space.high, max(space.low, value))
