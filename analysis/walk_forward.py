"""A walk-forward's test spans strung together: one account over all of them, as window -1.

Every window's account starts from cash on the first fill of its test, and what it holds at the end is marked, not
sold; the strung account earns the windows' net returns one after the other, so that its equity compounds over them.
Between two windows lie the embargo's bars, on which it holds nothing and which are no sessions of its own.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from analysis.frames import daily_schema, frame_block, group_slices, part_of
from analysis.summary import STRUNG

SPANS = ("window", "split", "pair", "date")
"""Columns of ``daily`` that say where the windows lie."""


def windows_in(table: pa.Table) -> list[int]:
    """Numbers of the windows of a walk-forward in a frame, first to last; empty without one."""
    return sorted(number for number in set(table.column("window").to_pylist()) if number > 0)


def strung(daily: pa.Table) -> pa.Table:
    """The strung account of every policy that all windows have, on test, by scenario and pair.

    Args:
        daily: Rows of ``daily`` of all windows, sorted by its key.

    Returns:
        Rows of window -1 in the order of the frame's key; none without a walk-forward.

    Raises:
        ValueError: A window's test does not lie after that of the window before.
    """
    schema = daily_schema()
    parts = [part_of(daily, window=number, split="test") for number in windows_in(daily)]
    found = [dict(group_slices(part, ["scenario", "pair", "policy"])) for part in parts]
    shared = sorted(set.intersection(*map(set, found))) if found else []
    blocks = []
    for scenario, pair, policy in shared:
        rows = [
            part.slice(slices[scenario, pair, policy].start, _length(slices[scenario, pair, policy]))
            for part, slices in zip(parts, found, strict=True)
        ]
        table = pa.concat_tables(rows)
        dates = table.column("date").to_numpy()
        if not (dates[1:] > dates[:-1]).all():
            raise ValueError(f"{pair} {policy}: test spans of the windows overlap")
        constants = {"run": table.column("run")[0].as_py(), "window": STRUNG, "split": "test"}
        constants |= {"scenario": scenario, "pair": pair, "policy": policy}
        columns = {name: table.column(name) for name in schema.names if name not in constants}
        columns["equity"] = compounded([part.column("equity").to_numpy() for part in rows])
        blocks.append(frame_block(schema, constants, columns))
    return pa.concat_tables(blocks) if blocks else schema.empty_table()


def spans_of(daily: pa.Table) -> dict[tuple[str, int, str], tuple[str, str]]:
    """Days of the first and the last fill by pair, window and split.

    Args:
        daily: Rows of ``daily`` with the columns ``SPANS``, sorted by its key: one policy's, under one scenario.
    """
    dates = daily.column("date").to_numpy().astype("datetime64[D]")
    return {
        (pair, window, split): (str(dates[rows.start]), str(dates[rows.stop - 1]))
        for (window, split, pair), rows in group_slices(daily, ["window", "split", "pair"])
    }


def compounded(equities: Sequence[np.ndarray]) -> np.ndarray:
    """Equity [sum of T] of accounts [T] that each start at 1, where each goes on with what the one before left."""
    start, parts = 1.0, []
    for equity in equities:
        parts.append(start * equity)
        start = float(parts[-1][-1])
    return np.concatenate(parts)


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)
