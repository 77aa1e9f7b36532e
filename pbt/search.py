"""How hyperparameters are drawn and moved inside the search space."""

import math
import random
from collections.abc import Mapping

from rayconf.keys import derive_key
from rayconf.run_config import RunConfig
from rayconf.search import Range

Values = dict[str, float]
"""Hyperparameters by name, whole ones too as float64; ``RunConfig.with_values`` makes integers of those again."""
REDRAW = 0.25
"""Share of the moves of a choice that draw it anew (Jaderberg et al. 2017); the others go to a neighbour."""


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
    """Move every hyperparameter by at most one step, inside its bounds; a choice may also be drawn anew."""
    return {name: _clip(_moved(values[name], space, rng.random()), space) for name, space in sorted(search.items())}


def _moved(old: float, space: Range, chance: float) -> float:
    """Where a number from 0 to 1 moves a value to, bounds aside."""
    move = 2 * chance - 1
    if space.scale == "log":
        return old * space.step**move
    if space.scale == "logit":
        return _from_log_odds(_log_odds(old) + math.log(space.step) * move)
    if space.scale == "integer":
        return old + math.copysign(max(1, math.ceil(space.step * abs(move))), move)
    if space.scale == "categorical":
        if chance < REDRAW:
            return from_unit(chance / REDRAW, space)
        neighbour = _place(old, space) + (1 if chance < REDRAW + (1 - REDRAW) / 2 else -1)
        return space.choices[min(len(space.choices) - 1, max(0, neighbour))]
    return old + space.step * move


def to_unit(value: float, space: Range) -> float:
    """Position of a value in its range, 0 (low) to 1 (high), on the range's scale; choices lie equally far apart."""
    low, high = space.bounds
    if space.scale == "log":
        return math.log(value / low) / math.log(high / low)
    if space.scale == "logit":
        return (_log_odds(value) - _log_odds(low)) / (_log_odds(high) - _log_odds(low))
    if space.scale == "categorical":
        return _place(value, space) / (len(space.choices) - 1)
    return (value - low) / (high - low)


def from_unit(share: float, space: Range) -> float:
    """The value at a position from 0 to 1; inverse of ``to_unit``.

    Whole numbers and choices take equal parts of the way, so that an even draw of positions is an even draw of them.
    """
    low, high = space.bounds
    if space.scale == "log":
        return _clip(low * (high / low) ** share, space)
    if space.scale == "logit":
        return _clip(_from_log_odds(_log_odds(low) + share * (_log_odds(high) - _log_odds(low))), space)
    if space.scale == "integer":
        return _clip(low + math.floor(share * (high - low + 1)), space)
    if space.scale == "categorical":
        count = len(space.choices)
        return space.choices[min(count - 1, math.floor(share * count))]
    return _clip(low + share * (high - low), space)


def is_discrete(space: Range) -> bool:
    """Whether only some positions have a value of their own."""
    return space.scale in ("integer", "categorical")


def _clip(value: float, space: Range) -> float:
    """The nearest value that the range has."""
    if space.scale == "categorical":
        return space.choices[_place(value, space)]
    low, high = space.bounds
    return min(high, max(low, float(round(value)) if space.scale == "integer" else value))


def _place(value: float, space: Range) -> int:
    """Number of the choice nearest to a value."""
    return min(range(len(space.choices)), key=lambda i: abs(space.choices[i] - value))


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def _from_log_odds(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def space_title(run: RunConfig) -> str:
    """What stands over the table of ``space_lines``: what the run's arm does with the space, where it is not PBT."""
    use = {
        "random": " (pbt.arm random: a member keeps its first draw)",
        "fixed": " (pbt.arm fixed: unused, every member keeps the values under start)",
    }
    return f"search space{use.get(run.pbt.arm, '')}"


def space_lines(run: RunConfig) -> list[str]:
    """The search space as a table, a line per hyperparameter; ``start`` is where the first member of a pair starts."""
    start = initial_values(run, "", 0)
    rows = [("name", "field", "scale", "low", "high", "step or choices", "start")]
    for name, space in run.search.items():
        low, high = (f"{bound:g}" for bound in space.bounds)
        own = run.value_of(name)
        outside = "" if own == start[name] else f" (the run's own {own:g} is outside)"
        rows.append((name, space.path, space.scale, low, high, _step(space), f"{start[name]:g}{outside}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _step(space: Range) -> str:
    if space.scale == "categorical":
        return " | ".join(f"{choice:g}" for choice in space.choices)
    return {"log": "x ", "logit": "odds x "}.get(space.scale, "+- ") + f"{space.step:g}"
