"""What every forecaster does alike: read series, forecast each bar from bars up to it, write the Parquet.

A forecaster is a program that calls ``main(load)``. It needs numpy and pyarrow, and nothing of pairpbt. Windows are
batched in an order that does not depend on how long a series is, every batch has the same number of rows (the last is
filled up), and is seeded by its series and number: cutting off later bars changes nothing before them.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 256
"""Windows per batch."""


class CannotForecastError(Exception):
    """Why a forecaster cannot run, in one line that says what to do."""


class Model(Protocol):
    """What ``load`` gives."""

    def forecast(
        self, windows: np.ndarray, known: np.ndarray, horizons: Sequence[int], quantiles: Sequence[float], seed: int
    ) -> np.ndarray:
        """Quantiles of the change after each window, float64 [B, H, Q], not falling along Q.

        Args:
            windows: float64 [B, L], the last L values up to a bar, the bar's own last.
            known: bool [B, L], false where the series had not begun; such values repeat its first one.
            horizons: Bars ahead [H].
            quantiles: Of the change [Q].
            seed: Of whatever is random in this batch, below 2**63.
        """
        ...


def batches(values: np.ndarray, skip: int, context: int, rows: int = ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows and their mask, each [rows, context], of the bars from ``skip`` on, the last batch filled up.

    Args:
        values: A series [N].
        skip: Bars at its start that need no forecast.
        context: Length of a window.
        rows: Windows per batch.
    """
    padded = np.concatenate((np.repeat(values[:1], context - 1), values))
    windows = np.lib.stride_tricks.sliding_window_view(padded, context)
    for start in range(skip, len(values), rows):
        bars = np.minimum(np.arange(start, start + rows), len(values) - 1)
        yield windows[bars], np.arange(context) >= context - 1 - bars[:, None]


def forecast_series(
    model: Model,
    name: str,
    values: np.ndarray,
    skip: int,
    context: int,
    horizons: Sequence[int],
    quantiles: Sequence[float],
) -> np.ndarray:
    """Forecasts of every bar of a series from ``skip`` on, float64 [N - skip, H, Q].

    Raises:
        CannotForecastError: If the model gives other than finite numbers of this shape.
    """
    found = []
    for number, (windows, known) in enumerate(batches(values, skip, context)):
        seed = int.from_bytes(hashlib.sha256(f"{name}|{number}".encode()).digest()[:8], "big") % 2**63
        made = np.asarray(model.forecast(windows, known, horizons, quantiles, seed), np.float64)
        if made.shape != (len(windows), len(horizons), len(quantiles)) or not np.isfinite(made).all():
            raise CannotForecastError(f"{name}: the model gave no finite numbers of shape [{len(windows)}, H, Q]")
        found.append(made)
    return np.concatenate(found)[: len(values) - skip]


def main(load: Callable[[Path], Model], arguments: Sequence[str] | None = None) -> int:
    """Run a forecaster's command; returns the exit status.

    Args:
        load: Reads a model from its folder; may raise ``CannotForecastError``.
        arguments: Flags; None: the process's own.
    """
    parser = argparse.ArgumentParser(description="Write causal forecasts of all series to a Parquet file.")
    for flag, kind in (("model", Path), ("input", Path), ("output", Path), ("name", str), ("revision", str)):
        parser.add_argument(f"--{flag}", type=kind, required=True)
    parser.add_argument("--horizons", type=_numbers(int), required=True, metavar="1,5,21", help="bars ahead")
    parser.add_argument("--quantiles", type=_numbers(float), required=True, metavar="0.1,0.9")
    parser.add_argument("--context", type=int, required=True, help="bars up to a close that its forecast reads")
    parser.add_argument("--skip", type=int, required=True, help="bars at the start of a series that need no forecast")
    args = parser.parse_args(arguments)
    try:
        model = load(args.model)
        tables = [
            _table(name, dates, forecast_series(model, name, values, *_how(args)), args)
            for name, dates, values in _series(args.input)
        ]
    except CannotForecastError as error:
        print(error, file=sys.stderr)
        return 2
    making = args.output.with_name(f"{args.output.name}.tmp")
    pq.write_table(pa.concat_tables(tables), making)
    os.replace(making, args.output)
    return 0


def _numbers(kind: Callable[[str], float]) -> Callable[[str], list[float]]:
    return lambda text: [kind(part) for part in text.split(",")]


def _how(args: argparse.Namespace) -> tuple[int, int, list[int], list[float]]:
    return args.skip, args.context, args.horizons, args.quantiles


def _series(path: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, dates [N] and values [N] of each series in the input, in its order."""
    table = pq.read_table(path)
    names, dates, values = (table.column(name).to_numpy() for name in ("pair", "date", "value"))
    for name in dict.fromkeys(names):
        own = names == name
        yield str(name), dates[own], values[own].astype(np.float64)


def _table(name: str, dates: np.ndarray, found: np.ndarray, args: argparse.Namespace) -> pa.Table:
    grid = np.meshgrid(np.arange(len(found)), args.horizons, args.quantiles, indexing="ij")
    row, horizon, quantile = (part.ravel() for part in grid)
    constant = {key: pa.array([value] * len(row)) for key, value in (("model", args.name), ("revision", args.revision))}
    columns = {
        "pair": pa.array([name] * len(row)),
        "date": pa.array(dates[args.skip :][row]),
        "horizon": pa.array(horizon.astype(np.int32)),
        "quantile": pa.array(quantile),
        "value": pa.array(found.ravel()),
        **constant,
    }
    return pa.table(columns)
