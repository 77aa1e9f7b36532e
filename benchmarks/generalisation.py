"""Does what is learned hold on unseen days? A ladder of policies over walk-forward folds of real prices.

``python -m benchmarks.generalisation --data-dir DIR [--rows ...] [--seeds N] [--workers K] [--report] [--choose]``

Eight pairs, five expanding folds whose test spans follow each other from 2010 on, costs of 2 bps a side and financing,
gross at most 1, fills at the next open. Every cell (row, pair, fold, seed) is kept in ``--out`` and never computed
again: a stop only pauses. ``benchmarks.ladder`` has the rows, ``benchmarks.ladder_table`` the columns. Snapshots are
chosen on validation alone; every look at a test span is a line in ``looks.jsonl``. ``--choose`` compares settings on
prices that end with 2009 and has no test span. Writes ``ladder.csv`` and ``ladder.md``.
"""

import argparse
import datetime
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from analysis.journal import append_jsonl
from analysis.labels import NOTHING
from analysis.summary import sessions_per_year
from benchmarks.cells import Job, scenarios, work
from benchmarks.folds import PAIRS, PERIODS, Fold, Period, Prices
from benchmarks.ladder import BUDGET, ROWS, YARDSTICKS, Ladder, Row
from benchmarks.ladder_table import Found, block_of, figures, gap, markdown, returns_of, rich_table, shown, strung
from pbt.run_dir import folder_name
from pbt.terms import BASE
from rayconf.errors import OneLineParser, UserError
from rayconf.sections import AugmentConfig, ResourcesConfig, UniverseConfig
from rayconf.session import start_ray

MISTAKE = 2


@dataclass(frozen=True)
class Benchmark:
    """A ladder on some pairs and folds, and where its cells are kept."""

    ladder: Ladder
    out: Path
    folds: tuple[Fold, ...]
    pairs: tuple[str, ...]

    def cell(self, row: Row, fold: Fold, pair: str, seed: int) -> Path:
        """Folder of a cell: what it computes, on which prices, for whom."""
        wide = row.kind in ("universe", "run")  # it, or its base, has seen all prices
        prices = fold.digest(self.pairs if wide else (pair,), everything=wide)
        one = f"{folder_name(pair)}_{fold.name}_s{seed}_{prices}"
        return self.out / "cells" / f"{row.kind}-{self.ladder.digest(row)}" / one

    def seeds(self, row: Row) -> range:
        """Seeds of a row; what has none of its own has the seed 0."""
        return range(self.ladder.seeds if row.learns else 1)

    def jobs(self, row: Row, splits: Sequence[str] = ("test", "train", "validation")) -> list[Job]:
        """All work of a row, in the order of its doing: a seed after the other, a pair after the other."""
        jobs = []
        groups = [self.pairs] if row.together else [(pair,) for pair in self.pairs]
        source = self.ladder.trained(row)
        for seed, group, fold in product(self.seeds(row), groups, self.folds):
            cells = {pair: self.cell(row, fold, pair, seed) for pair in group}
            members: dict[str, tuple[Path, ...]] = {}
            if row.kind == "ensemble":
                members = {pair: tuple(self.cell(source, fold, pair, s) for s in self.seeds(source)) for pair in group}
            run = self.ladder.run(source, fold, group, seed)
            if row.kind == "run" and row.of:
                base = self.ladder.row(row.of)
                members = {pair: (self.cell(base, fold, pair, seed),) for pair in group}
                ((start,),) = members.values()
                stages = run.stages.model_copy(update={"base": str((start / base.policy).resolve())})
                run = run.model_copy(update={"stages": stages})
            if not row.learns:  # what nobody trains on need not be built
                run = run.model_copy(update={"universe": UniverseConfig(), "augment": AugmentConfig()})
            jobs.append(Job(row, fold.name, run, cells, members, tuple(splits)))
        return jobs

    def found(self, row: Row) -> Found:
        """The complete cells of a row."""
        pairs = [pair for pair in self.pairs if pair in (row.shown or self.pairs)]
        keys = [(pair, fold, seed) for seed in self.seeds(row) for pair in pairs for fold in self.folds]
        cells = {(pair, fold.name, seed): self.cell(row, fold, pair, seed) for pair, fold, seed in keys}
        return {key: folder for key, folder in cells.items() if folder.is_dir()}

    def look(self, row: Row, what: str, cells: int) -> None:
        """Log a look at the test spans."""
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        look = {"when": when, "row": row.name, "digest": self.ladder.digest(row), "what": what, "cells": cells}
        append_jsonl(self.out / "looks.jsonl", [look])


def measure(
    benchmark: Benchmark, rows: Sequence[Row], console: Console, splits: Sequence[str] = ("test", "train", "validation")
) -> int:
    """Compute the cells of the rows that are missing, as Ray tasks; Ray is up.

    Returns:
        Number of jobs done.

    Raises:
        UserError: Cells that a row stands on are not all there.
    """
    import ray

    task = ray.remote(num_cpus=1)(work)
    count = 0
    for row in sorted(rows, key=lambda row: row.kind in ("run", "ensemble")):  # on others' cells
        todo = [job for job in benchmark.jobs(row, splits) if not job.done]
        for job in todo:
            missing = [cell for cells in job.members.values() for cell in cells if not cell.is_dir()]
            if missing:
                raise UserError(f"--rows: {row.name} needs the cells of {row.of}, of which some are missing; add it")
        if todo and "test" in splits:
            benchmark.look(row, "evaluation", sum(len(job.cells) for job in todo))
        running = {task.remote(job): job for job in todo}
        while running:
            (finished,), _ = ray.wait(list(running), num_returns=1)
            job, seconds = running.pop(finished), ray.get(finished)
            count += 1
            console.print(_told(job, seconds, len(todo) - len(running), len(todo)), highlight=False)
    return count


def _told(job: Job, seconds: Mapping[str, float], number: int, of: int) -> str:
    pairs = next(iter(job.cells)) if len(job.cells) == 1 else f"{len(job.cells)} pairs"
    line = f"[{number}/{of}] {job.row.name} {pairs} {job.fold} seed {job.run.seed}: "
    line += f"{seconds['seconds']:.1f} s"
    if seconds["env_steps"]:
        speed = seconds["env_steps"] / seconds["train_seconds"]
        line += f", {speed:,.0f} steps/s; " + ", ".join(
            f"{name} {seconds[f'{name}_seconds']:.1f}" for name in ("construct", "train", "validate", "replay")
        )
    return line


def report(benchmark: Benchmark, rows: Sequence[Row], console: Console) -> pd.DataFrame:
    """Print the table of the rows and write ``ladder.csv`` and ``ladder.md``.

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
        found = benchmark.found(row)
        if found:
            benchmark.look(row, "report", len(found))
        yardsticks = (benchmark.found(ladder.row(name)) for name in row.yardsticks)
        table.append({"row": row.name, **figures(found, row.policy, *yardsticks, names)})
    headings, lines = shown(table, names)
    notes = _notes(equal_weight)
    console.print(rich_table(headings, lines))
    console.print("\n".join(notes), highlight=False)
    frame = pd.DataFrame(table)
    frame.to_csv(benchmark.out / "ladder.csv", index=False)
    (benchmark.out / "ladder.md").write_text(markdown(headings, lines) + "".join(f"\n{note}\n" for note in notes))
    return frame


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
                "gain": difference.value - difference.error,
                "difference": difference.value,
                "low": difference.low,
                "high": difference.high,
                "fitness": means.get("smoothed", math.nan),
                "train": means.train_sharpe,
                "validation": means.validation_sharpe,
                "cells": len(found),
            }
        )
    lines = [[_shown(value) for value in line.values()] for line in table]
    console.print(rich_table(list(table[0]), lines))
    return table


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
    parser.add_argument("--folds", nargs="+", default=names, choices=names, metavar="YEARS", help="some of the folds")
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
    periods: list[Period] = [period for period in PERIODS if period.name in args.folds]
    folds = (prices.choice(),) if args.choose else tuple(prices.fold(period) for period in periods)
    benchmark = Benchmark(ladder, args.out, folds, tuple(args.pairs))
    console = Console(width=None if sys.stdout.isatty() else 220)
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
