"""What choosing among rows on validation is worth: every fold takes the row that validation likes best by then.

For each fold the candidates are compared on the validation spans of that fold and of those before it, all of which end
before its test, by the gain that ``--choose`` goes by: the mean over pairs of the Sharpe ratio less that of
volatility-targeted equal weight, less one error of that mean. The best one's test span is the row's; where none gains,
it is that of volatility-targeted equal weight, the prior that the candidates correct. One seed, the first.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from analysis.summary import sessions_per_year
from benchmarks.ladder import Row
from benchmarks.ladder_table import Block, Found, gap, returns_of, strung
from benchmarks.measuring import Benchmark
from rayconf.errors import UserError

NAME = "chosen"


@dataclass(frozen=True)
class Choice:
    """What a fold takes, and why."""

    fold: str
    row: Row
    gains: dict[str, float]
    """Of every candidate, by name."""


def choices(benchmark: Benchmark, candidates: Sequence[Row]) -> list[Choice]:
    """The choice of every fold among the candidates that have all cells of the first seed.

    Raises:
        UserError: No candidate has.
    """
    prior = benchmark.ladder.row("vol_target")
    keys = list(product(benchmark.pairs, (fold.name for fold in benchmark.folds), (0,)))
    whole = {row: found for row in candidates if all(key in (found := benchmark.found(row)) for key in keys)}
    if not whole:
        raise UserError(f"--rows: {NAME} is among {', '.join(row.name for row in candidates)}; measure some of them")
    made = []
    for number, fold in enumerate(benchmark.folds, start=1):
        block = Block(benchmark.pairs, tuple(known.name for known in benchmark.folds[:number]), (0,))
        other = returns_of(strung(benchmark.found(prior), block, prior.policy, "validation"))
        gains = {}
        for row, found in whole.items():
            own = returns_of(strung(found, block, row.policy, "validation"))
            gains[row.name] = gap(own, other, sessions_per_year(own.index.to_numpy()), np.mean).gain
        best = max(whole, key=lambda row: gains[row.name])
        made.append(Choice(fold.name, best if gains[best.name] > 0 else prior, gains))
    return made


def cells_of(benchmark: Benchmark, made: Sequence[Choice]) -> Found:
    """The cells of what was chosen, written anew under the policy ``chosen``."""
    place = benchmark.out / NAME
    shutil.rmtree(place, ignore_errors=True)
    cells: Found = {}
    for choice, pair in product(made, benchmark.pairs):
        source = benchmark.found(choice.row)[pair, choice.fold, 0]
        cells[pair, choice.fold, 0] = folder = place / choice.fold / source.name
        folder.mkdir(parents=True)
        for file in ("daily.parquet", "cell.parquet"):
            frame = pd.read_parquet(source / file)
            frame = frame[frame.policy == choice.row.policy]
            frame.assign(policy=NAME).to_parquet(folder / file, index=False)
    return cells
