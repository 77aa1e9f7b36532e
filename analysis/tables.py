"""The final table in the terminal: survivors and baselines of every pair side by side, headline first."""

import math
import sys
from collections.abc import Collection, Mapping
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.labels import FIGURES, in_order, interval, plain, policy_label, shown
from analysis.summary import Comparison, compare

WIDTH = 132
"""Columns of the plain table that goes to files and pipes."""

# The first to go in a narrow terminal stands first; Sharpe, its interval, CAGR and drawdown always stay.
_OPTIONAL = ("gross_exposure", "beta", "alpha", "cost_paid", "avg_turnover", "volatility")


def headline_window(summary: pa.Table) -> int:
    """The strung walk-forward (-1) where there is one, else the smallest window."""
    windows = pc.unique(summary.column("window")).to_pylist()
    return -1 if -1 in windows else min(windows, default=0)


def part_of(table: pa.Table, **values: Any) -> pa.Table:
    """The rows of a frame whose named columns hold the given values, e.g. ``split="test", scenario="base"``."""
    mask = np.ones(table.num_rows, bool)
    for name, value in values.items():
        mask &= pc.equal(table.column(name), pa.scalar(value, table.schema.field(name).type)).to_numpy()
    return table.filter(pa.array(mask))


BARS_TO_BEAT = ("equal_weight", "vol_target")
"""Baselines that the headline is held against in words."""


def annual_sessions_of(rows: list[Mapping[str, Any]]) -> float | None:
    """The sessions per year under which summary rows were made: annualized_return = (1 + average)^P - 1."""
    for row in rows:
        average = row["avg_daily_return"]
        if average and abs(average) > 1e-9 and average > -1:
            return round(math.log1p(row["annualized_return"]) / math.log1p(average), 4)
    return None


def comparison_of(summary: pa.Table, daily: pa.Table, pair: str, other: str = "equal_weight") -> Comparison | None:
    """The headline of a pair (its ensemble, else its first survivor) against a baseline, on test under base terms."""
    window = headline_window(summary)
    rows = part_of(summary, window=window, split="test", scenario="base", pair=pair).to_pylist()
    part = part_of(daily, window=window, split="test", scenario="base", pair=pair)
    for policy in ("ensemble", "survivor-1"):
        found = compare(part, pair, policy, other, window=window, annual_sessions=annual_sessions_of(rows))
        if found is not None:
            return found
    return None


def _pair_table(
    pair: str, rows: list[Mapping[str, Any]], hidden: Collection[str] = (), *, styled: bool = True
) -> Table:
    table = Table(box=box.SIMPLE_HEAD if styled else box.ASCII, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("Sharpe", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    figures = [figure for figure in FIGURES if figure[0] not in hidden]
    for _, heading, _ in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    kind = None
    for row in in_order(rows):
        if kind == "survivor" and row["kind"] == "baseline":
            table.add_section()
        kind = row["kind"]
        label = policy_label(row["policy"], pair, row["member"], row["generation"])
        table.add_row(
            Text(("* " if kind == "ensemble" else "  ") + label),
            shown(row["annualised_sharpe"], plain),
            interval(row["sharpe_ci_low"], row["sharpe_ci_high"]),
            *[shown(row[name], form) for name, _, form in figures],
            style="bold" if kind == "ensemble" else "dim" if kind == "baseline" else "",
        )
    return table


def final_table(summary: pa.Table, daily: pa.Table, *, width: int | None = None) -> RenderableType:
    """The final table of a run under the run's own terms, on the test span.

    Args:
        summary: The ``summary`` frame.
        daily: The ``daily`` frame, for the dates and the comparison with equal weight.
        width: Columns of the terminal, to leave out the lesser figures in a narrow one; None: plain ASCII, all figures.

    Returns:
        Something that a rich console prints: per pair a heading, the table and one plain line.
    """
    window = headline_window(summary)
    head = part_of(summary, window=window, split="test", scenario="base")
    days = part_of(daily, window=window, split="test", scenario="base")
    parts: list[RenderableType] = []
    for pair in sorted(set(head.column("pair").to_pylist())):
        rows = part_of(head, pair=pair).to_pylist()
        dates = part_of(days, pair=pair).column("date")
        first, last = (str(pc.min_max(dates)[end].as_py().date()) for end in ("min", "max"))
        terms = f"{rows[0]['cost_bps']:g} bps a side, lag {rows[0]['lag']}"
        heading = f"{pair}  test {first} to {last}, {rows[0]['days']} days, {terms}"
        parts += [Text(heading, style="bold"), _fitted(pair, rows, width)]
        for bar in BARS_TO_BEAT:
            comparison = comparison_of(head, days, pair, bar)
            if comparison is not None:
                parts.append(Text(comparison.sentence()))
        parts.append(Text(""))
    if not parts:
        return Text("No test results under the run's own terms.")
    parts.append(
        Text(
            "* headline, declared before the test span was read. Sharpe: no risk-free rate, circular block bootstrap. "
            "alpha (per year) and beta are against equal weight. Turnover is per day, cost per year, in equity.",
            style="" if width is None else "dim",
        )
    )
    return Group(*parts)


def _fitted(pair: str, rows: list[Mapping[str, Any]], width: int | None) -> Table:
    if width is None:
        return _pair_table(pair, rows, styled=False)
    measure = Console(width=1000)
    hidden: list[str] = []
    table = _pair_table(pair, rows)
    for name in _OPTIONAL:
        if measure.measure(table).maximum <= width:
            break
        hidden.append(name)
        table = _pair_table(pair, rows, hidden)
    return table


def print_final_table(summary: pa.Table, daily: pa.Table, file: TextIO | None = None) -> None:
    """Print the final table: styled in a terminal, plain ASCII rules of fixed width to a file or a pipe."""
    stream = file or sys.stdout
    if stream.isatty():
        console = Console(file=stream)
        console.print(final_table(summary, daily, width=console.width))
    else:
        console = Console(file=stream, width=WIDTH, no_color=True, force_terminal=False, legacy_windows=False)
        console.print(final_table(summary, daily), soft_wrap=False, highlight=False)
