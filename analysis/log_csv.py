"""Decisions as the original log wrote them: one CSV per pair, a row per bar."""

import csv
import io
from pathlib import Path

import pyarrow as pa

from analysis.frames import write_text
from analysis.metrics import session_starts

COLUMNS = ("timestamp", "portfolio_value", "turnover", "trading_cost", "financing_cost", "net_return")
"""The log's columns; ``weight_<TICKER>`` of both legs follow."""


def write_decisions(daily: pa.Table, pair: str, path: Path) -> None:
    """Write the rows of one account of a pair with the log's column names.

    ``timestamp`` is the bar of the fill, ``portfolio_value`` the equity from 1.0 valued at the next fill, the costs
    are fractions of the equity before the step, and weights are those held after the leverage limit.

    Args:
        daily: Rows of the ``daily`` frame of one account, in order of date.
        pair: The pair, AAA/BBB.
        path: File to write.
    """
    dates = daily.column("date").to_numpy().astype("datetime64[us]")
    daily_bars = len(session_starts(dates)) == len(dates)
    stamps = [str(date) for date in dates.astype("datetime64[D]" if daily_bars else "datetime64[s]")]
    names = ("equity", "turnover", "trading_cost", "financing", "net_return", "weight_a", "weight_b")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"weight_{ticker}" for ticker in pair.split("/"))])
    figures = [daily.column(name).to_pylist() for name in names]
    writer.writerows(zip(stamps, *figures, strict=True))
    write_text(path, text.getvalue())
