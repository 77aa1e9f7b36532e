"""The final table in the terminal: survivors and baselines of every pair side by side, headline first."""

import sys
from collections.abc import Collection, Mapping
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.frames import part_of
from analysis.labels import FIGURES, in_order, interval, plain, policy_label, shown
from analysis.summary import headline_window

WIDTH = 132
"""Columns of the plain table that goes to files and pipes."""

# The first to go in a narrow terminal stands first; Sharpe, its interval, CAGR and drawdown always stay.
_OPTIONAL = ("gross_exposure", "beta", "alpha", "cost_paid", "avg_turnover", "volatility")


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
            Text(("* " if row["policy"] == "ensemble" else "  ") + label),
            shown(row["annualised_sharpe"], plain),
            interval(row["sharpe_ci_low"], row["sharpe_ci_high"]),
            *[shown(row[name], form) for name, _, form in figures],
            style="bold" if row["policy"] == "ensemble" else "dim" if kind == "baseline" else "",
        )
    return table


def final_table(
    summary: pa.Table, daily: pa.Table, verdicts: Mapping[str, str] | None = None, *, width: int | None = None
) -> RenderableType:
    """The final table of a run under the run's own terms, on the test span.

    Args:
        summary: The ``summary`` frame.
        daily: The ``daily`` frame, for the dates.
        verdicts: The verdict on each pair, which comes first; None: none was made.
        width: Columns of the terminal, to leave out the lesser figures in a narrow one; None: plain ASCII, all figures.

    Returns:
        Something that a rich console prints: per pair the verdict, a heading and the table.
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
        if verdicts is not None and pair in verdicts:
            parts.append(Text(f"{pair}  {verdicts[pair]}", style="bold"))
        parts += [Text(heading, style="" if verdicts else "bold"), _fitted(pair, rows, width), Text("")]
    if not parts:
        return Text("No test results under the run's own terms.")
    parts.append(
        Text(
            "* headline, declared before the test span was read. Sharpe: no risk-free rate, stationary bootstrap. "
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


def print_final_table(
    summary: pa.Table, daily: pa.Table, verdicts: Mapping[str, str] | None = None, file: TextIO | None = None
) -> None:
    """Print the final table: styled in a terminal, plain ASCII rules of fixed width to a file or a pipe."""
    stream = file or sys.stdout
    if stream.isatty():
        console = Console(file=stream)
        console.print(final_table(summary, daily, verdicts, width=console.width))
    else:
        console = Console(file=stream, width=WIDTH, no_color=True, force_terminal=False, legacy_windows=False)
        console.print(final_table(summary, daily, verdicts), soft_wrap=False, highlight=False)
