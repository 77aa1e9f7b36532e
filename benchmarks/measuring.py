"""The cells of a ladder: where each is kept, what work they are, and the doing of what is missing as Ray tasks."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis.journal import append_jsonl
from benchmarks.cells import Job, work
from benchmarks.folds import EARLIER, Fold
from benchmarks.ladder import AVERAGES, Ladder, Row
from benchmarks.ladder_table import Found
from pbt.run_dir import folder_name
from rayconf.errors import UserError
from rayconf.sections import AugmentConfig, UniverseConfig


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
            if row.kind in AVERAGES:
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
        look["folds"] = [fold.name for fold in self.folds]
        append_jsonl(self.out / "looks.jsonl", [look])

    def looks(self) -> pd.DataFrame:
        """How often each row was looked at on test spans from 2010 on: row, evaluations, reports."""
        log = pd.read_json(self.out / "looks.jsonl", lines=True)
        earlier = {period.name for period in EARLIER}
        log = log[[not isinstance(folds, list) or not set(folds) <= earlier for folds in log.get("folds", log.row)]]
        counted = log.groupby("row").agg(
            evaluations=("what", lambda what: int((what == "evaluation").sum())),
            reports=("what", lambda what: int((what == "report").sum())),
        )
        return counted.reset_index()


def measure(
    benchmark: Benchmark, rows: Sequence[Row], console: Console, splits: Sequence[str] = ("test", "train", "validation")
) -> int:
    """Compute the cells of the rows that are missing, as Ray tasks; Ray is up.

    Returns:
        Number of jobs done.

    Raises:
        UserError: Cells that a row stands on are not all there, or the prices are too few.
    """
    import ray

    task = ray.remote(num_cpus=1)(work)
    count = 0
    rows = [row for row in rows if row.kind != "chosen"]  # which is what others did
    for row in sorted(rows, key=lambda row: row.kind in ("run", *AVERAGES)):  # on others' cells
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
            job = running.pop(finished)
            try:
                seconds = ray.get(finished)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(f"{job.row.name} {job.fold}: {error.cause}") from None
                raise
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
