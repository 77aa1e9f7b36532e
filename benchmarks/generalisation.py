"""Does what is learned hold on unseen days? A ladder of policies over walk-forward folds of real prices.

``python -m benchmarks.generalisation --data-dir DIR [--rows ...] [--seeds N] [--workers K] [--report] [--choose]``

Eight pairs, five expanding folds whose test spans follow each other from 2010 on, costs of 2 bps a side and financing,
gross at most 1, fills at the next open. Every cell (row, pair, fold, seed) is kept in ``--out`` and never computed
again: a stop only pauses. ``benchmarks.ladder`` has the rows, ``benchmarks.ladder_table`` the columns. Snapshots are
chosen on validation alone; every look at a test span is a line in ``looks.jsonl``. ``--choose`` compares settings on
prices that end with 2009 and has no test span. Writes ``ladder.csv``, ``ladder.md`` and ``looks.csv``.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from analysis.labels import NOTHING
from analysis.summary import sessions_per_year
from benchmarks.cells import scenarios
from benchmarks.folds import EARLIER, PAIRS, PERIODS, Period, Prices
from benchmarks.ladder import BUDGET, CANDIDATES, ROWS, YARDSTICKS, Ladder, Row
from benchmarks.ladder_table import (
    Found,
    Streams,
    block_of,
    figures,
    gap,
    markdown,
    median_of_means,
    returns_of,
    rich_table,
    shown,
    strung,
)
from benchmarks.measuring import Benchmark, measure
from benchmarks.nested import cells_of, choices
from pbt.terms import BASE
from rayconf.errors import OneLineParser, UserError
from rayconf.sections import ResourcesConfig
from rayconf.session import start_ray

MISTAKE = 2


def report(benchmark: Benchmark, rows: Sequence[Row], console: Console) -> pd.DataFrame:
    """Print the table of the rows and write it and the count of looks.

    Raises:
        UserError: The yardsticks are not measured.
    """
    ladder = benchmark.ladder
    equal_weight = benchmark.found(ladder.row(YARDSTICKS[1]))
    if not equal_weight:
        raise UserError(
            f"--report: {benchmark.out} has no cells of these pairs and folds; leave --report out to measure"
        )
    names = [
        one.name for one in scenarios(ladder.run(rows[0], benchmark.folds[0], benchmark.pairs, 0)) if one.name != BASE
    ]
    table = []
    for row in rows:
        found = _chosen(benchmark, console) if row.kind == "chosen" else benchmark.found(row)
        if found:
            benchmark.look(row, "report", len(found))
        vol_target, equal = (benchmark.found(ladder.row(name)) for name in row.yardsticks)
        table.append({"row": row.name, **figures(found, row.policy, vol_target, equal, names)})
    headings, lines = shown(table, names)
    notes = _notes(equal_weight)
    console.print(rich_table(headings, lines))
    console.print("\n".join(notes), highlight=False)
    frame = pd.DataFrame(table)
    frame.to_csv(benchmark.out / "ladder.csv", index=False)
    benchmark.looks().to_csv(benchmark.out / "looks.csv", index=False)
    (benchmark.out / "ladder.md").write_text(markdown(headings, lines) + "".join(f"\n{note}\n" for note in notes))
    return frame


def _chosen(benchmark: Benchmark, console: Console) -> Found:
    """The cells of the best candidates on validation; says which they are."""
    made = choices(benchmark, [benchmark.ladder.row(name) for name in CANDIDATES])
    for choice in made:
        gains = ", ".join(f"{name} {gain:+.2f}" for name, gain in choice.gains.items())
        console.print(f"chosen for {choice.fold}: {choice.row.name}  (gains: {gains})", highlight=False, soft_wrap=True)
    return cells_of(benchmark, made)


def _notes(found: Found) -> list[str]:
    """What a reader should know of the figures."""
    cells = pd.concat([pd.read_parquet(folder / "cell.parquet") for folder in found.values()])
    few = cells.sort_values("train_bars").groupby("pair", sort=False).first().query("train_bars < 1260")
    short = [f"{pair} {one.fold} has {one.train_bars} training bars from {one.first_train_date:%Y-%m} on"
             for pair, one in few.iterrows()]  # fmt: skip
    return [
        "Medians over pairs of means over seeds, the test spans of a pair strung together; worst: of all pairs and "
        "seeds. Difference: Sharpe ratio less that of volatility-targeted equal weight, pair by pair, 95 % interval "
        "over blocks of 63 sessions. Matched: drawdown at equal weight's volatility. Turnover is a day's.",
        *([f"Little to train on: {'; '.join(short)}."] if short else []),
    ]


def choose(
    benchmark: Benchmark, row: Row, candidates: Sequence[tuple[str, ...]], console: Console
) -> list[dict[str, Any]]:
    """Train the row under each candidate's settings on the fold of choice and print what validation says.

    ``gain`` is what to choose by: the mean over pairs of the Sharpe ratio on validation less that of
    volatility-targeted equal weight, less one error of that mean. ``fitness`` is the smoothed one of the row's policy,
    which a whole run does not tell.

    Args:
        benchmark: Of the one fold without a test span that is looked at.
        row: A row that learns.
        candidates: Settings over the row's own, ``path=value``; () is the row itself.
        console: Where to print.
    """
    splits = ("train", "validation")
    vol_target = benchmark.ladder.row("vol_target")
    measure(benchmark, [vol_target], console, splits)
    yardstick = benchmark.found(vol_target)
    table = []
    for settings in candidates:
        candidate = replace(row, assignments=(*row.assignments, *settings))
        measure(benchmark, [candidate], console, splits)
        found = benchmark.found(candidate)
        block = block_of(found)
        own = returns_of(strung(found, block, row.policy, "validation"))
        other = returns_of(strung(yardstick, replace(block, seeds=(0,)), vol_target.policy, "validation"))
        cells = pd.concat([pd.read_parquet(folder / "cell.parquet") for folder in found.values()])
        means = cells[cells.policy == row.policy].mean(numeric_only=True)
        difference = gap(own, other, sessions_per_year(own.index.to_numpy()), np.mean)
        table.append(
            {
                "row": " ".join(settings) or f"{row.name} itself",
                "gain": difference.gain,
                "difference": difference.value,
                "low": difference.low,
                "high": difference.high,
                "fitness": means.get("smoothed", math.nan),
                "train": means.train_sharpe,
                "validation": means.validation_sharpe,
                "gross": _gross(strung(found, block, row.policy, "validation")),
                "cells": len(found),
            }
        )
    lines = [[_shown(value) for value in line.values()] for line in table]
    console.print(rich_table(list(table[0]), lines))
    return table


def _gross(streams: Streams) -> float:
    return median_of_means({key: float(stream.gross.mean()) for key, stream in streams.items()})


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return NOTHING if math.isnan(value) else f"{value:.2f}"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="benchmarks.generalisation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="a CSV or Parquet file per ticker")
    parser.add_argument("--out", type=Path, default=Path("generalisation"), metavar="DIR", help="where cells are kept")
    parser.add_argument(
        "--rows", nargs="+", metavar="NAME", help=f"some of {', '.join(row.name for row in ROWS)} (default: all)"
    )
    parser.add_argument(
        "--pairs", nargs="+", default=list(PAIRS), choices=PAIRS, metavar="A/B", help="some of the pairs"
    )
    names = [period.name for period in PERIODS]
    choices = [*names, *(period.name for period in EARLIER)]
    parser.add_argument("--folds", nargs="+", default=names, choices=choices, metavar="YEARS", help="some of the folds")
    parser.add_argument("--seeds", type=int, default=5, help="seeds per pair and fold (default 5)")
    parser.add_argument("--budget", type=int, default=BUDGET, metavar="STEPS", help="environment steps per member")
    parser.add_argument("--population", type=int, default=1, help="members per learner, of whom the best is kept")
    parser.add_argument("--workers", type=int, default=1, help="cells side by side (default 1)")
    parser.add_argument("--report", action="store_true", help="print the table of what is there; compute nothing")
    parser.add_argument("--choose", action="store_true", help="compare settings of one row on prices before 2010")
    parser.add_argument(
        "--candidate", nargs="+", action="append", default=[], metavar="a.b=value", help="settings that --choose tries"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 done, 2 and one line on a user's mistake."""
    try:
        _run(build_parser().parse_args(argv))
    except UserError as error:
        print(f"benchmarks.generalisation: {error}", file=sys.stderr)
        return MISTAKE
    return 0


def _run(args: argparse.Namespace) -> None:
    for name in ("seeds", "budget", "population", "workers"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: {getattr(args, name)} must be 1 or more")
    ladder = Ladder(budget=args.budget, population=args.population, seeds=args.seeds)
    rows = [ladder.row(name) for name in args.rows or [row.name for row in ladder.rows]]
    prices = Prices(args.data_dir, PAIRS, args.out / "prices")
    periods: list[Period] = [period for period in (*EARLIER, *PERIODS) if period.name in args.folds]
    folds = (prices.choice(),) if args.choose else tuple(prices.fold(period) for period in periods)
    benchmark = Benchmark(ladder, args.out, folds, tuple(args.pairs))
    console = Console(width=None if sys.stdout.isatty() else 300)
    if args.report:
        report(benchmark, rows, console)
        return
    if args.candidate and not args.choose:
        raise UserError("--candidate: settings are tried by --choose alone")
    if args.choose and (len(rows) != 1 or not rows[0].learns or rows[0].of):
        raise UserError("--choose: name one row that learns and stands on no other, e.g. --rows ppo")
    candidates = [(), *(tuple(settings) for settings in args.candidate)]
    for settings in candidates:
        try:
            ladder.digest(replace(rows[0], assignments=(*rows[0].assignments, *settings)))
        except UserError as error:
            raise UserError(f"--candidate: {str(error).removeprefix('--set: ')}") from error
    with start_ray(ResourcesConfig(cpus=args.workers, object_store_mb=100)):
        if args.choose:
            choose(benchmark, rows[0], candidates, console)
            return
        needed = [*YARDSTICKS, *(name for row in rows for name in row.yardsticks)]
        measure(benchmark, [*dict.fromkeys([*(ladder.row(name) for name in needed), *rows])], console)
    report(benchmark, rows, console)


if __name__ == "__main__":
    sys.exit(main())
