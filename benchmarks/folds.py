"""Walk-forward folds: the spans of each, and the price folder in which nothing after its end exists.

A fold's markets are read by the product's own loader from a copy of the prices that is cut after the fold's last date,
so that whatever a learner or a baseline does, no later bar is there to be seen. Training starts where the prices do
(expanding windows); validation is the ``VALIDATION`` bars before test, and the embargo lies before either span.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from envs.bars import Bars, load_bars, resolve_directory
from envs.market import EMBARGO_BARS, MIN_TEST_BARS
from rayconf.errors import UserError
from rayconf.sections import DataConfig

PAIRS = ("AAPL/AMZN", "AMZN/MSFT", "NVDA/GOOGL", "KO/PEP", "XOM/CVX", "JPM/BAC", "INTC/AMD", "SPY/QQQ")
VALIDATION = 504
"""Bars of validation right before the test span."""
CHOICE = ("2008-01-01", "2009-12-31")
"""First date of validation and last of all prices where hyperparameters are chosen."""


@dataclass(frozen=True)
class Period:
    """A test span by its calendar dates, both included."""

    name: str
    first: str
    last: str


PERIODS = (
    Period("2010-12", "2010-01-01", "2012-12-31"),
    Period("2013-15", "2013-01-01", "2015-12-31"),
    Period("2016-18", "2016-01-01", "2018-12-31"),
    Period("2019-21", "2019-01-01", "2021-12-31"),
    Period("2022-25", "2022-01-01", "2025-12-31"),
)
EARLIER = (Period("2006-07", "2006-01-01", "2007-12-31"), Period("2008-09", "2008-01-01", "2009-12-31"))
"""Where one may look as often as one likes: whether a rule of selection holds on the years after its validation."""


@dataclass(frozen=True)
class Fold:
    """Cut prices and the borders of their splits."""

    name: str
    folder: Path
    """Price folder that ends with the fold."""
    validation_start: str
    test_start: str
    digests: Mapping[str, str]
    """Digest of the cut prices by ticker."""

    def assignments(self) -> tuple[str, ...]:
        """The fold as settings of a run."""
        return (
            f"data.dir={json.dumps(str(self.folder))}",
            f"split.validation_start={self.validation_start}",
            f"split.test_start={self.test_start}",
            f"split.embargo={EMBARGO_BARS}",
        )

    def digest(self, pairs: Sequence[str], *, everything: bool = False) -> str:
        """Digest of some pairs and their prices, or of the prices of all tickers."""
        tickers = {ticker for pair in pairs for ticker in pair.split("/")}
        own = [self.digests[ticker] for ticker in sorted(self.digests) if everything or ticker in tickers]
        return _digest("|".join([*pairs, *own]).encode())


class Prices:
    """The price files of a folder, read once, and the folders cut from them.

    Args:
        directory: One CSV or Parquet file per ticker.
        pairs: Pairs of the benchmark, whose longest common history is the calendar that bars are counted in.
        out: Where cut folders are kept; those that are there are used again.

    Raises:
        UserError: If a file is missing or unreadable.
    """

    def __init__(self, directory: Path, pairs: Sequence[str], out: Path) -> None:
        data = DataConfig(dir=str(directory))
        wanted = sorted({ticker for pair in pairs for ticker in pair.split("/")})
        folder = resolve_directory(data, wanted)
        files = {file.stem for file in folder.iterdir() if file.suffix.lower() in (".csv", ".parquet")}
        self._bars = {ticker: load_bars(folder, ticker, data) for ticker in sorted({*wanted, *files})}
        legs = ([self._bars[ticker].dates for ticker in pair.split("/")] for pair in pairs)
        self._calendar = max((np.intersect1d(a, b) for a, b in legs), key=len)
        self._out = out

    def fold(self, period: Period) -> Fold:
        """The fold that tests on ``period``.

        Raises:
            UserError: If there are no prices of the period, or too few before it.
        """
        first, last = np.datetime64(period.first), np.datetime64(period.last)
        test, end = (int(np.searchsorted(self._calendar, day)) for day in (first, last + np.timedelta64(1, "D")))
        validation = test - VALIDATION - EMBARGO_BARS
        if end <= test or validation <= 0:
            have = f"{_day(self._calendar[0])} .. {_day(self._calendar[-1])}"
            raise UserError(f"--data-dir: fold {period.name} needs prices of it and before it; they span {have}")
        return self._cut(period.name, last, _day(self._calendar[validation]), period.first)

    def choice(self, first: str = CHOICE[0], last: str = CHOICE[1]) -> Fold:
        """Prices up to ``last`` with validation from ``first`` on, for choosing hyperparameters.

        A market cannot be without a test span: its last bars are one of the least length, which nobody looks at.

        Raises:
            UserError: If there are no prices to validate on.
        """
        end = int(np.searchsorted(self._calendar, np.datetime64(last) + np.timedelta64(1, "D")))
        test = end - EMBARGO_BARS - MIN_TEST_BARS - 1
        if test <= 0 or self._calendar[test] <= np.datetime64(first):
            raise UserError(f"--choose: the prices have nothing between {first} and {last}")
        return self._cut("choice", np.datetime64(last), first, _day(self._calendar[test]))

    def _cut(self, name: str, last: np.datetime64, validation_start: str, test_start: str) -> Fold:
        until = {ticker: bars.select(bars.dates.astype("datetime64[D]") <= last) for ticker, bars in self._bars.items()}
        until = {ticker: bars for ticker, bars in until.items() if len(bars)}
        digests = {ticker: _digest(b"".join(column.tobytes() for column in _columns(bars).values()))
                   for ticker, bars in until.items()}  # fmt: skip
        folder = self._out / f"{name}-{_digest(json.dumps(digests).encode())}"
        if not folder.is_dir():
            temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
            temporary.mkdir(parents=True)
            for ticker, bars in until.items():
                pd.DataFrame(_columns(bars)).to_parquet(temporary / f"{ticker}.parquet", index=False)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
                shutil.rmtree(temporary)  # another command cut the same meanwhile
        return Fold(name, folder.resolve(), validation_start, test_start, digests)


def _columns(bars: Bars) -> dict[str, np.ndarray]:
    names = ("open", "high", "low", "close", "volume")
    return {"date": bars.dates, **{name: getattr(bars, name) for name in names}}


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()


def _day(date: np.datetime64) -> str:
    return str(np.datetime_as_string(date, unit="D"))
