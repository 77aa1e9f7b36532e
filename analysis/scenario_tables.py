"""What a backtest over scenarios found, as compact tables in the terminal."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import pyarrow as pa
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.frames import part_of
from analysis.labels import order, percent, plain, policy_label
from analysis.tables import WIDTH

HEADLINE = "ensemble"


def print_scenarios(found: Mapping[str, Any], summary: pa.Table, file: TextIO | None = None) -> None:
    """Print the tables of ``scenarios.json``, and the headline's Sharpe ratio over the grid.

    Args:
        found: The content of ``scenarios.json``.
        summary: The ``summary`` frame of the same backtest.
        file: Where to; None: standard output.
    """
    stream = file or sys.stdout
    styled = stream.isatty()
    width = None if styled else WIDTH
    console = Console(file=stream, width=width, no_color=not styled, legacy_windows=False)
    parts: list[RenderableType] = []
    for pair, by_split in found["pairs"].items():
        for split, of_split in by_split.items():
            parts += [
                Text(f"{pair}  {split}: costs and delay of execution", style="bold"),
                _costs_and_delay(pair, of_split["policies"], styled),
                Text(f"{pair}  {split}: Sharpe ratio of the {HEADLINE} by cost a side", style="bold"),
                _grid(part_of(summary, pair=pair, split=split, policy=HEADLINE), styled),
            ]
            if of_split["stress"]:
                parts += [
                    Text(f"{pair}  {split}: years of stress (return / drawdown / Sharpe)", style="bold"),
                    _stress(pair, of_split["stress"], styled),
                ]
    parts.append(
        Text(
            f"Breakeven: the cost a side at which compound growth is 0, the policy deciding anew (searched up to "
            f"{found['breakeven_searched_bps']:g} bps). Lags are in bars, under the run's own costs."
        )
    )
    console.print(Group(*parts), highlight=False)


def _table(styled: bool, *headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if styled else box.ASCII, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    return table


def _style(policy: str) -> str:
    return "bold" if policy == HEADLINE else "" if policy.startswith("survivor-") else "dim"


def _costs_and_delay(pair: str, policies: Mapping[str, Any], styled: bool) -> Table:
    lags = list(next(iter(policies.values()))["delay"])
    headings = [f"{name}, lag {lag}" for name in ("Sharpe", "CAGR") for lag in lags]
    table = _table(styled, "policy", "breakeven", *headings)
    for policy in sorted(policies, key=order):
        one = policies[policy]
        figures = [plain(one["delay"][lag]["annualised_sharpe"]) for lag in lags]
        figures += [percent(one["delay"][lag]["cagr"]) for lag in lags]
        table.add_row(policy_label(policy, pair), one["breakeven"], *figures, style=_style(policy))
    return table


def _grid(summary: pa.Table, styled: bool) -> Table:
    """The headline's Sharpe ratio: a row per lag and further terms, a column per cost."""
    cells = {(row["cost_bps"], _other_terms(row)): row["annualised_sharpe"] for row in summary.to_pylist()}
    costs = sorted({cost for cost, _ in cells})
    table = _table(styled, "terms", *[f"{cost:g} bps" for cost in costs])
    for terms in dict.fromkeys(terms for _, terms in cells):
        values = [cells.get((cost, terms)) for cost in costs]
        table.add_row(terms, *["" if value is None else plain(value) for value in values])
    return table


def _other_terms(row: Mapping[str, Any]) -> str:
    text = f"lag {row['lag']}"
    for name, word in (("lev", "leverage"), ("borrow", "borrow")):
        match = re.search(rf"-{name}([0-9.e+-]+?)(?=-[a-z]|$)", row["scenario"])
        text += f", {word} {match[1]}" if match else ""
    return text


def _stress(pair: str, rows: Sequence[Mapping[str, Any]], styled: bool) -> Table:
    windows = {row["stress"]: f"{row['stress']} ({row['days']} days)" for row in rows}
    table = _table(styled, "policy", *windows.values())
    cells = {(row["policy"], row["stress"]): row for row in rows}
    for policy in sorted({row["policy"] for row in rows}, key=order):
        shown = []
        for window in windows:
            row = cells.get((policy, window))
            figures = row and (row["cumulative_return"], row["max_drawdown"])
            shown.append("" if not row or not figures else f"{' / '.join(map(percent, figures))} / "
                         f"{plain(row['annualised_sharpe'])}")  # fmt: skip
        table.add_row(policy_label(policy, pair), *shown, style=_style(policy))
    return table
