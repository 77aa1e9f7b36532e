"""How much of a population lives on: ancestors, spread of hyperparameters, and moves, generation by generation."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def diversity_rows(
    lineage: Sequence[Mapping[str, Any]], positions: Mapping[str, Callable[[float], float]]
) -> list[dict[str, Any]]:
    """Rows of the frame ``diversity``, one per pair and generation, after its decisions.

    A generation-0 member is alive while somebody's weights go back to it. ``spread_<name>`` is the population standard
    deviation, over all members, of the hyperparameter's position in its range.

    Args:
        lineage: Lineage rows, every generation of every pair, in any order.
        positions: By hyperparameter, its position from 0 to 1 in its range.
    """
    barriers: dict[tuple[int, str, int], list[Mapping[str, Any]]] = {}
    for row in lineage:
        barriers.setdefault((row["window"], row["pair"], row["generation"]), []).append(row)
    ancestor: dict[tuple[int, str, int, str], str] = {}
    found = []
    for (window, pair, generation), rows in sorted(barriers.items()):
        for row in rows:
            trained, parent = row["parent_generation"], row["parent_member"]
            # who trained the state took it over one generation earlier
            ancestor[window, pair, generation, row["member"]] = (
                ancestor[window, pair, trained - 1, parent] if trained else parent
            )
        moves = Counter(row["operation"] for row in rows)
        # the reference belongs to the arm it is compared with
        arms = {row["arm"] for row in rows}
        found.append(
            {
                "run": rows[0]["run"],
                "arm": min(arms - {"reference"}, default="reference"),
                "window": window,
                "pair": pair,
                "generation": generation,
                "ancestors": len({ancestor[window, pair, generation, row["member"]] for row in rows}),
                "members": len(rows),
                **{
                    f"spread_{name}": float(np.std([position(row[f"hp_{name}"]) for row in rows]))
                    for name, position in positions.items()
                },
                "exploits": moves["exploit"],
                "explores": moves["explore"],
                "migrations": moves["migrate"],
            }
        )
    return found
