"""What the cells of the ladder say: a figure per row, all from daily returns, by the formulas of ``analysis``.

The test spans of a pair and seed are strung together. A row's figure is the median over pairs of the mean over seeds;
the book is the account that holds all pairs in equal parts.
Differences to another row are those of Sharpe ratios pair by pair, and their interval resamples the sessions of all
pairs and both rows alike, in blocks (``analysis.bootstrap``), so that what accounts and pairs share cancels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from analysis.bootstrap import LEVEL, resampled_sharpes
from analysis.labels import NOTHING, interval, percent, plain
from analysis.metrics import alpha_beta, cagr, max_drawdown, sharpe, volatility
from analysis.summary import sessions_per_year
from pbt.terms import BASE
from rayconf.errors import UserError

BLOCK = 63
"""Mean length of a resampled block in sessions."""
RESAMPLES = 1999

TIMES = ("construct_seconds", "train_seconds", "validate_seconds")
"""What a training took; cells of pairs that it serves alike say the same."""

Streams = dict[tuple[str, int], pd.DataFrame]
"""By (pair, seed): net_return, turnover and gross by session, strung over the folds."""
Found = dict[tuple[str, str, int], Path]
"""Folders of the complete cells of a row by (pair, fold, seed)."""


@dataclass(frozen=True)
class Block:
    """The cells of a row that can be compared: every pair with every fold for every seed."""

    pairs: tuple[str, ...]
    folds: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of cells."""
        return len(self.pairs) * len(self.folds) * len(self.seeds)


def block_of(found: Found) -> Block:
    """The block of an unfinished row: folds of its first seed, the pairs that have all of them, the seeds with all."""
    if not found:
        return Block((), (), ())
    first = min(seed for *_, seed in found)
    folds = tuple(dict.fromkeys(fold for _, fold, seed in found if seed == first))
    names = dict.fromkeys(pair for pair, *_ in found)
    pairs = tuple(pair for pair in names if all((pair, fold, first) in found for fold in folds))
    seeds = sorted({seed for *_, seed in found})
    whole = tuple(s for s in seeds if all((pair, fold, s) in found for pair in pairs for fold in folds))
    return Block(pairs, folds, whole) if pairs else Block((), (), ())


def strung(found: Found, block: Block, policy: str, split: str = "test", scenario: str = BASE) -> Streams:
    """Sessions of a policy by pair and seed, the folds of the block one after the other."""
    wanted = [("policy", "==", policy), ("split", "==", split), ("scenario", "==", scenario)]
    columns = ["date", "net_return", "turnover", "gross"]
    streams: Streams = {}
    for pair in block.pairs:
        for seed in block.seeds:
            parts = [
                pd.read_parquet(found[pair, fold, seed] / "daily.parquet", columns=columns, filters=wanted)
                for fold in block.folds
            ]
            streams[pair, seed] = pd.concat(parts).set_index("date").sort_index()
    return streams


def returns_of(streams: Streams) -> pd.DataFrame:
    """Net returns [D, (pair, seed)] on the sessions that all streams have."""
    return pd.concat({key: stream.net_return for key, stream in streams.items()}, axis=1).dropna()


def median_of_means(values: dict[tuple[str, int], float]) -> float:
    """Median over pairs of the mean over seeds."""
    return float(pd.Series(values).groupby(level=0).mean().median())


@dataclass(frozen=True)
class Gap:
    """The difference of two rows' Sharpe ratios over all pairs, with its 95 % interval."""

    value: float
    low: float
    high: float
    error: float
    """Standard deviation over the resamples."""

    @property
    def gain(self) -> float:
        """What rows are chosen by: the difference less one error."""
        return self.value - self.error


def gap(own: pd.DataFrame, other: pd.DataFrame, per_year: float, center: Callable[..., Any] = np.median) -> Gap:
    """Sharpe ratios of a row less those of another over the same pairs.

    Args:
        own: Net returns [D, (pair, seed)].
        other: Net returns [D, (pair, seed)] of the same pairs and sessions.
        per_year: Sessions per year.
        center: What is taken over the pairs, along axis 0.

    Raises:
        ValueError: The sessions differ.
    """
    if not own.index.equals(other.index):
        raise ValueError("two rows of other sessions cannot be paired")
    mine, theirs = (list(frame.columns.get_level_values(0)) for frame in (own, other))
    both = [own[column].to_numpy() for column in own] + [other[column].to_numpy() for column in other]
    root = math.sqrt(per_year)
    level = root * np.array([[sharpe(stream, 1) for stream in both]])
    drawn = root * resampled_sharpes(both, BLOCK, RESAMPLES)

    def difference(values: np.ndarray) -> np.ndarray:
        """Of Sharpe ratios [B, K], by resample [B]."""
        per_pair = []
        for pair in dict.fromkeys(mine):
            ours = [i for i, name in enumerate(mine) if name == pair]
            others = [len(mine) + i for i, name in enumerate(theirs) if name == pair]
            per_pair.append(values[:, ours].mean(axis=1) - values[:, others].mean(axis=1))
        found: np.ndarray = center(np.stack(per_pair), axis=0)
        return found

    resampled = difference(drawn)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Gap(float(difference(level)[0]), float(low), float(high), float(resampled.std(ddof=1)))


def figures(
    found: Found, policy: str, vol_target: Found, equal_weight: Found, scenarios: Sequence[str]
) -> dict[str, Any]:
    """All columns of a row but its name; without a complete block only the number of cells.

    Args:
        found: The row's cells.
        policy: Its policy in them.
        vol_target: Cells of volatility-targeted equal weight.
        equal_weight: Cells of equal weight, against which alpha, beta and volatility are measured.
        scenarios: Names of the scenarios whose Sharpe ratio has a column.

    Raises:
        UserError: The baselines lack a cell that the row has.
    """
    block = block_of(found)
    if not block.size:
        return {"cells": len(found)}
    rule = Block(block.pairs, block.folds, (0,))
    lacking = [
        key for key in product(rule.pairs, rule.folds, rule.seeds) if key not in vol_target or key not in equal_weight
    ]
    if lacking:
        pair, fold, _ = lacking[0]
        raise UserError(f"--report: {pair} {fold} has no baselines; measure vol_target and equal_weight on it first")
    streams = strung(found, block, policy)
    own, target, equal = (
        returns_of(s) for s in (streams, strung(vol_target, rule, "rule"), strung(equal_weight, rule, "rule"))
    )
    per_year = sessions_per_year(own.index.to_numpy())

    def each(function: Callable[[np.ndarray, np.ndarray], float]) -> dict[tuple[str, int], float]:
        return {key: function(own[key].to_numpy(), equal[key[0], 0].to_numpy()) for key in streams}

    def matched(returns: np.ndarray, benchmark: np.ndarray) -> float:
        own_volatility = volatility(returns, per_year)
        return max_drawdown(returns * volatility(benchmark, per_year) / own_volatility) if own_volatility else 0.0

    ratios = each(lambda r, _: sharpe(r, per_year))
    seen = _in_sample(found, block, policy, per_year)
    difference = gap(own, target, per_year)
    book, plain_book = (pd.concat({"book": frame.T.groupby(level=1).mean().T}, axis=1) for frame in (own, target))
    of_book = gap(book, plain_book, per_year)
    outside = median_of_means(ratios)
    inside = median_of_means(seen)
    spread = pd.Series(ratios).groupby(level=0).std(ddof=1).median() if len(block.seeds) > 1 else math.nan
    return {
        "sharpe_in": inside,
        "sharpe_out": outside,
        "gap": inside - outside,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "sharpe_book": float(np.mean([sharpe(book["book", seed].to_numpy(), per_year) for seed in block.seeds])),
        "book_difference": of_book.value,
        "book_low": of_book.low,
        "book_high": of_book.high,
        "alpha": median_of_means(each(lambda r, e: alpha_beta(r, e, per_year)[0])),
        "beta": median_of_means(each(lambda r, e: alpha_beta(r, e, per_year)[1])),
        "max_drawdown": median_of_means(each(lambda r, _: max_drawdown(r))),
        "worst_drawdown": min(each(lambda r, _: max_drawdown(r)).values()),
        "drawdown_matched": median_of_means(each(matched)),
        "cagr": median_of_means(each(lambda r, _: cagr(r, per_year))),
        "turnover": median_of_means({key: float(s.turnover.mean()) for key, s in streams.items()}),
        "gross": median_of_means({key: float(s.gross.mean()) for key, s in streams.items()}),
        "seed_sd": float(spread),
        **{f"sharpe_{name}": _under(found, block, policy, name, per_year) for name in scenarios},
        "steps": _steps(found, block) / 1e6,
        "pairs": len(block.pairs),
        "folds": len(block.folds),
        "seeds": len(block.seeds),
        "cells": block.size,
    }


def _in_sample(found: Found, block: Block, policy: str, per_year: float) -> dict[tuple[str, int], float]:
    """Mean over folds of the Sharpe ratio on train, whose spans overlap and cannot be strung."""
    ratios: dict[tuple[str, int], list[float]] = {}
    for fold in block.folds:
        for key, stream in strung(found, Block(block.pairs, (fold,), block.seeds), policy, "train").items():
            ratios.setdefault(key, []).append(sharpe(stream.net_return.to_numpy(), per_year))
    return {key: float(np.mean(values)) for key, values in ratios.items()}


def _steps(found: Found, block: Block) -> float:
    """Environment steps of a fold and a seed, over all pairs and members; pairs of one training count once."""
    cells = [found[key] / "cell.parquet" for key in product(block.pairs, block.folds, block.seeds)]
    columns = ["fold", "seed", "env_steps", *TIMES]
    table = pd.concat([_told(cell, columns) for cell in cells]).drop_duplicates()
    return float(table.env_steps.sum()) / (len(block.folds) * len(block.seeds))


def _told(cell: Path, columns: Sequence[str]) -> pd.DataFrame:
    return pd.read_parquet(cell).reindex(columns=list(columns))


def _under(found: Found, block: Block, policy: str, scenario: str, per_year: float) -> float:
    streams = strung(found, block, policy, scenario=scenario)
    return median_of_means({key: sharpe(s.net_return.to_numpy(), per_year) for key, s in streams.items()})


HEADINGS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("sharpe_in", "Sharpe in", plain),
    ("sharpe_out", "out", plain),
    ("gap", "gap", plain),
    ("difference", "to vol target", plain),
    ("interval", "95 % interval", str),
    ("sharpe_book", "book", plain),
    ("book_difference", "to vol target", plain),
    ("book_interval", "95 % interval", str),
    ("alpha", "alpha", percent),
    ("beta", "beta", plain),
    ("max_drawdown", "drawdown", percent),
    ("worst_drawdown", "worst", percent),
    ("drawdown_matched", "matched", percent),
    ("cagr", "CAGR", percent),
    ("turnover", "turnover", percent),
    ("gross", "gross", plain),
    ("seed_sd", "seed SD", plain),
    ("steps", "M steps", plain),
    ("seeds", "seeds", str),
    ("cells", "cells", str),
)


def shown(rows: Sequence[dict[str, Any]], scenarios: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table as text."""
    columns = [*HEADINGS[:-2], *((f"sharpe_{name}", name, plain) for name in scenarios), *HEADINGS[-2:]]
    lines = []
    for row in rows:
        values = {
            **row,
            "interval": interval(row.get("difference_low"), row.get("difference_high")),
            "book_interval": interval(row.get("book_low"), row.get("book_high")),
        }
        line = [str(row["row"])]
        for name, _, form in columns:
            value = values.get(name, math.nan)
            line.append(NOTHING if isinstance(value, float) and math.isnan(value) else form(value))
        lines.append(line)
    return ["row", *(heading for _, heading, _ in columns)], lines


def rich_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """The table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    rule = ["---", *(["---:"] * (len(headings) - 1))]
    return "".join("| " + " | ".join(line) + " |\n" for line in (headings, rule, *lines))
