"""Diversity from lineage rows: ancestors by hand, spread by numpy, moves by counting."""

import math
from typing import Any

import numpy as np
import pytest

from analysis.diversity import diversity_rows


def row(generation: int, member: str, parent: str, trained: int, operation: str, value: float) -> dict[str, Any]:
    return {
        "run": "r",
        "arm": "reference" if member == "m00" else "pbt",
        "window": 0,
        "pair": "A/B",
        "generation": generation,
        "member": member,
        "operation": operation,
        "parent_member": parent,
        "parent_generation": trained,
        "hp_x": value,
    }


LINEAGE = [
    *(row(0, f"m0{i}", f"m0{i}", 0, "start", 10.0**i) for i in range(4)),
    row(1, "m00", "m00", 1, "keep", 1.0),
    row(1, "m01", "m01", 1, "explore", 10.0),
    row(1, "m02", "m01", 1, "exploit", 10.0),
    row(1, "m03", "m03", 0, "lost", 1000.0),  # goes on from its untrained start
    row(2, "m00", "m00", 2, "keep", 1.0),
    row(2, "m01", "m01", 1, "rollback", 10.0),
    row(2, "m02", "m02", 2, "keep", 10.0),
    row(2, "m03", "m02", 2, "migrate", 10.0),
]


@pytest.mark.parametrize("order", [1, -1])
def test_rows_by_hand(order: int) -> None:
    found = diversity_rows(LINEAGE[::order], {"x": lambda value: math.log10(value) / 3})
    assert [r["generation"] for r in found] == [0, 1, 2]
    # after generation 1: m00, m01 (twice), m03; after generation 2 m03 carries m02's weights, which are m01's
    assert [r["ancestors"] for r in found] == [4, 3, 2]
    assert [(r["exploits"], r["explores"], r["migrations"]) for r in found] == [(0, 0, 0), (1, 1, 0), (0, 0, 1)]
    expected = [np.std([0, 1, 2, 3]) / 3, np.std([0, 1, 1, 3]) / 3, np.std([0, 1, 1, 1]) / 3]
    assert [r["spread_x"] for r in found] == pytest.approx(expected)
    assert {(r["run"], r["arm"], r["window"], r["pair"], r["members"]) for r in found} == {("r", "pbt", 0, "A/B", 4)}


def test_pairs_and_windows_are_kept_apart() -> None:
    other = [{**r, "pair": "C/D", "parent_member": r["member"]} for r in LINEAGE]
    walked = [{**r, "window": 1} for r in LINEAGE[:4]]
    found = diversity_rows([*LINEAGE, *other, *walked], {})
    keys = [(r["window"], r["pair"], r["generation"]) for r in found]
    assert keys == [*((0, p, g) for p in ("A/B", "C/D") for g in range(3)), (1, "A/B", 0)]
    assert [r["ancestors"] for r in found] == [4, 3, 2, 4, 4, 4, 4]
    alone = [r for r in LINEAGE if r["member"] == "m00"]
    assert diversity_rows(alone, {})[0]["arm"] == "reference"
