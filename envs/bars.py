"""Price bars: one CSV or Parquet file per ticker, validated row by row, and joined into pairs.

Columns (any case, spaces and underscores ignored): one of ``date``, ``datetime`` or ``timestamp``, then ``open``,
``high``, ``low``, ``close``, ``volume`` and optionally ``adj close``. Dates are ISO 8601, ascending and unique. Stamps
with a time zone become naive UTC; only where all of them are midnights of their own zone (daily bars) does the local
calendar date stay, so that neither daylight saving nor distance from Greenwich moves a bar to another day.

With ``data.adjust`` an ``adj close`` scales open, high, low and close by ``adj close / close`` (dividends and splits
count as return; volume stays as it is); without it, ``adj close`` is ignored. With ``data.fill: close`` a file may have
closes only: open, high and low are then the close, and an absent volume is 1 on every bar (its feature is 0).
"""

import csv
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rayconf import UserError
from rayconf.sections import DataConfig

TICKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.^=-]{0,15}")
HUB = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/?")
EXTENSIONS = (".csv", ".parquet")
DATE_COLUMNS = ("date", "datetime", "timestamp")
ALIASES = {"adjustedclose": "adjclose"}
_DATE = re.compile(r"\d{4}([-/]?)\d\d\1\d\d(?:$|[T ])")
_ZONE = re.compile(r":\d\d(?:\.\d+)?\s*(Z|[+-]\d\d(?::?\d\d)?)$")

Floats = NDArray[np.float64]
Dates = NDArray[np.datetime64]


@dataclass(frozen=True, eq=False)
class Bars:
    """Bars of one ticker, ascending and unique in time.

    Attributes:
        ticker: Name of the instrument.
        dates: datetime64[us] [T], naive: the bar's own label (daily: its date; intraday: UTC).
        open, high, low, close: Prices, float64 [T], positive.
        volume: float64 [T], not negative.
    """

    ticker: str
    dates: Dates
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __len__(self) -> int:
        return len(self.dates)

    def select(self, rows: slice | NDArray[Any]) -> "Bars":
        """The bars at ``rows`` (a slice, indices or a mask)."""
        prices = (self.open[rows], self.high[rows], self.low[rows], self.close[rows])
        return Bars(self.ticker, self.dates[rows], *prices, self.volume[rows])

    def before(self, border: np.datetime64) -> "Bars":
        """The bars that come before a date."""
        return self.select(self.dates < border)


@dataclass(frozen=True)
class JoinReport:
    """What an inner join kept and dropped."""

    a: str
    b: str
    kept: int
    dropped_a: int
    dropped_b: int
    first: np.datetime64
    last: np.datetime64

    @property
    def text(self) -> str:
        """The report in one line."""
        return (
            f"{self.kept} common bars, {_label(self.first)} .. {_label(self.last)}; "
            f"dropped {self.dropped_a} of {self.a} and {self.dropped_b} of {self.b}"
        )


@dataclass(frozen=True)
class _Table:
    """Raw columns of a file by normalised name, with the number a person would give each row."""

    path: Path | str
    """The file, or what else a complaint should name."""
    columns: dict[str, Any]
    rows: Sequence[int]
    noun: str

    def fail(self, index: int | np.integer, problem: str) -> UserError:
        return UserError(f"{self.path}: {self.noun} {self.rows[int(index)]}: {problem}")


def resolve_directory(data: DataConfig, tickers: Sequence[str]) -> Path:
    """The local folder of ``data.dir``; of a hub dataset, the hub's cache with the files of ``tickers`` and no others.

    Raises:
        UserError: No such folder or dataset, or a ticker that is no plain name.
    """
    for ticker in tickers:
        _check_ticker(ticker)
    location = data.dir or "."
    if location.startswith("hf:"):
        return _fetch(location, tickers)
    folder = Path(location).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.dir: {location} is no directory; give a folder with one CSV or Parquet file per ticker")
    return folder


def tickers_at(location: str) -> tuple[str, ...]:
    """All tickers that a folder or the root of a hub dataset has a CSV or Parquet file of, sorted.

    Raises:
        UserError: There is no such folder or dataset.
    """
    if location.startswith("hf:"):
        names = _hub_files(location)
    else:
        names = [file.name for file in resolve_directory(DataConfig(dir=location), ()).iterdir() if file.is_file()]
    paths = [Path(name) for name in names if "/" not in name]
    found = {path.stem for path in paths if path.suffix.lower() in EXTENSIONS}
    return tuple(sorted(ticker for ticker in found if TICKER.fullmatch(ticker)))


def load_bars(directory: Path, ticker: str, data: DataConfig) -> Bars:
    """Read and validate ``<ticker>.csv`` or ``<ticker>.parquet`` of a local folder.

    Args:
        directory: The folder (see ``resolve_directory``).
        ticker: Exact name of the file without its extension (the extension may be in any case).
        data: ``fill`` and ``adjust`` decide which columns are needed and used.

    Raises:
        UserError: Naming the file and, where there is one, the row: CSV rows are lines of the file (the header is
            row 1), Parquet has "data row" 1, 2, ...
    """
    _check_ticker(ticker)
    path = _find_file(directory, ticker)
    return _bars(ticker, _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path), data)


def bars_from_frame(frame: pd.DataFrame, ticker: str, data: DataConfig) -> Bars:
    """Validate bars that are in memory, by the rules of files.

    Args:
        frame: [T] rows with the columns of a file; the date may be the index.
        ticker: Name of the instrument.
        data: ``fill`` and ``adjust`` decide which columns are needed and used.

    Raises:
        UserError: Naming the ticker and, where there is one, the row ("data row" 1, 2, ...).
    """
    _check_ticker(ticker)
    return _bars(ticker, _frame_table(f"prices of {ticker}", frame), data)


def _bars(ticker: str, table: _Table, data: DataConfig) -> Bars:
    prices = ("open", "high", "low", "close")
    closes_only = data.fill == "close" and not table.columns.keys() >= {"open", "high", "low"}
    required = ["close"] if data.fill == "close" else [*prices, "volume"]
    _check_columns(table, required, data)
    dates = _dates(table)
    names = ("close",) if closes_only else prices
    columns = {name: _positive(table, name) for name in names}
    if not closes_only:
        crossed = np.flatnonzero(columns["high"] < columns["low"])
        if crossed.size:
            i = crossed[0]
            raise table.fail(i, f"high {columns['high'][i]:g} is below low {columns['low'][i]:g}")
    if data.adjust and "adjclose" in table.columns:
        adjusted = _positive(table, "adjclose")
        factor = adjusted / columns["close"]
        columns = {name: column * factor for name, column in columns.items()} | {"close": adjusted}
    open_, high, low, close = (columns.get(name, columns["close"]) for name in prices)
    volume = _positive(table, "volume") if "volume" in table.columns else np.ones(len(dates))
    return Bars(ticker, dates, open_, high, low, close, volume)


def join_bars(a: Bars, b: Bars) -> tuple[Bars, Bars, JoinReport]:
    """Inner join on dates; nothing is filled in.

    Raises:
        UserError: The two have no date in common.
    """
    common, rows_a, rows_b = np.intersect1d(a.dates, b.dates, assume_unique=True, return_indices=True)
    if not common.size:
        spans = "; ".join(f"{x.ticker} has {_label(x.dates[0])} to {_label(x.dates[-1])}" for x in (a, b))
        raise UserError(f"pair {a.ticker}/{b.ticker}: the files have no date in common ({spans})")
    dropped_a, dropped_b = len(a) - len(common), len(b) - len(common)
    report = JoinReport(a.ticker, b.ticker, len(common), dropped_a, dropped_b, common[0], common[-1])
    return a.select(rows_a), b.select(rows_b), report


def sessions(dates: Dates) -> NDArray[np.int32]:
    """Session of every bar, int32 [T]: 0 for the first calendar day (intraday: of UTC) present, 1 for the next, ..."""
    days = dates.astype("datetime64[D]").astype(np.int64)
    return np.cumsum(np.diff(days, prepend=days[:1]) > 0, dtype=np.int32)


def is_intraday(dates: Dates) -> bool:
    """Whether the typical session has more than one bar."""
    return bool(len(dates) and np.median(np.bincount(sessions(dates))) >= 2)


def infer_bars_per_year(dates: Dates) -> float:
    """Median bars per session x 252 sessions, or x 365 for a market that never closes (Saturdays and Sundays trade).

    Raises:
        UserError: Sessions lie more than three days apart (weekly bars), or there are no bars.
    """
    if not len(dates):
        raise UserError("data: no bars to infer bars per year from; set data.bars_per_year")
    days = np.unique(dates.astype("datetime64[D]")).astype(np.int64)
    gap = float(np.median(np.diff(days))) if len(days) > 1 else 1.0
    if gap > 3:
        raise UserError(f"data: bars lie {gap:g} days apart, neither daily nor intraday; set data.bars_per_year")
    weekday = (days + 3) % 7  # 1970-01-01 was a Thursday
    share = 1 / 14  # half of what a market open every day shows, so that a stray weekend session changes nothing
    never_closes = min(np.mean(weekday == 5), np.mean(weekday == 6)) > share
    return float(np.median(np.bincount(sessions(dates))) * (365 if never_closes else 252))


def _check_ticker(ticker: str) -> None:
    if not TICKER.fullmatch(ticker):  # no path may be built from anything else
        raise UserError(f"ticker {ticker!r} is no plain name: use up to 16 letters, digits, '.', '^', '=' or '-'")


def _find_file(directory: Path, ticker: str) -> Path:
    if not directory.is_dir():
        raise UserError(f"data.dir: {directory} is no directory; give a folder with one CSV or Parquet file per ticker")
    files = sorted(x for x in directory.iterdir() if x.suffix.lower() in EXTENSIONS and x.is_file())
    found = [x for x in files if x.stem == ticker]
    if len(found) > 1:
        raise UserError(f"data.dir: {directory} has {' and '.join(x.name for x in found)}; keep one file per ticker")
    if not found:
        by_upper = {x.stem.upper(): x.stem for x in files}
        near = [by_upper[x] for x in difflib.get_close_matches(ticker.upper(), list(by_upper), n=3)]
        some = ", ".join(sorted(by_upper.values())[:8]) or "no CSV or Parquet file"
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {some}"
        raise UserError(f"data.dir: {directory} has no {ticker}.csv or {ticker}.parquet; {hint}")
    return found[0]


def _dataset(location: str) -> tuple[str, str | None]:
    """Name and revision of a hub dataset."""
    match = HUB.fullmatch(location)
    if match is None:
        raise UserError(f"data.dir: {location!r} is no hub dataset; write hf://datasets/OWNER/NAME")
    return match["repo"], match["revision"]


def _unfetched(location: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"data.dir: {location}: cannot be fetched from the hub: {reason}")


def _hub_files(location: str) -> list[str]:
    repo, revision = _dataset(location)
    from huggingface_hub import HfApi  # slow to import, and few runs need it

    try:
        return HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)
    except Exception as error:  # as in _fetch
        raise _unfetched(location, error) from error


def _fetch(location: str, tickers: Sequence[str]) -> Path:
    repo, revision = _dataset(location)
    from huggingface_hub import snapshot_download  # slow to import, and few runs need it

    extensions = ("[cC][sS][vV]", "[pP][aA][rR][qQ][uU][eE][tT]")
    patterns = [f"{ticker}.{extension}" for ticker in tickers for extension in extensions]
    try:
        folder = snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except Exception as error:  # the hub raises unrelated types: HTTP, validation, offline, file system
        raise _unfetched(location, error) from error
    if not Path(folder).is_dir():
        raise UserError(f"data.dir: {location} has no CSV or Parquet file of {', '.join(tickers)} at its root")
    return Path(folder)


def _read_csv(path: Path) -> _Table:
    records: list[list[str]] = []
    rows: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            if header is None:
                raise UserError(f"{path}: the file is empty")
            for record in reader:
                if not any(field.strip() for field in record):
                    continue  # a blank line
                if len(record) != len(header):
                    raise UserError(
                        f"{path}: row {reader.line_num}: {len(record)} fields where the header has {len(header)}"
                    )
                records.append(record)
                rows.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 CSV: {' '.join(str(error).split())}") from error
    if not records:
        raise UserError(f"{path}: the file has a header and no rows")
    raw = list(zip(*records, strict=True))
    return _Table(path, _normalised(path, header, raw), rows, "row")


def _read_parquet(path: Path) -> _Table:
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow's and pandas' errors share no base
        raise UserError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error
    return _frame_table(path, frame)


def _frame_table(path: Path | str, frame: pd.DataFrame) -> _Table:
    if not len(frame):
        raise UserError(f"{path}: has no rows")
    has_date = any(_normalise(name) in DATE_COLUMNS for name in frame.columns)
    if not has_date and (isinstance(frame.index, pd.DatetimeIndex) or _normalise(frame.index.name) in DATE_COLUMNS):
        # a DatetimeIndex is the date whatever it is called
        frame = frame.rename_axis(index="date").reset_index()
    columns = _normalised(path, list(frame.columns), [frame.iloc[:, i] for i in range(frame.shape[1])])
    return _Table(path, columns, range(1, len(frame) + 1), "data row")


def _normalise(name: object) -> str:
    plain = re.sub(r"[^a-z0-9]", "", str(name).lower())
    return ALIASES.get(plain, plain)


def _normalised(path: Path | str, names: Sequence[object], columns: Sequence[Any]) -> dict[str, Any]:
    known = {*DATE_COLUMNS, "open", "high", "low", "close", "adjclose", "volume"}
    result: dict[str, Any] = {}
    for name, column in zip(names, columns, strict=True):
        plain = _normalise(name)
        if plain in result and plain in known:
            raise UserError(f"{path}: several columns are called {plain!r} (case and spaces aside); keep one")
        result[plain] = column
    return result


def _check_columns(table: _Table, required: Sequence[str], data: DataConfig) -> None:
    dates = [name for name in DATE_COLUMNS if name in table.columns]
    if len(dates) > 1:
        raise UserError(f"{table.path}: has several date columns ({', '.join(dates)}); keep one")
    missing = ([] if dates else ["date"]) + [name for name in required if name not in table.columns]
    if missing:
        found = ", ".join(name for name in table.columns if name) or "none"
        closes = data.fill == "open" and "close" in table.columns and dates
        hint = "; for closes only set data.fill=close" if closes else ""
        raise UserError(f"{table.path}: missing columns: {', '.join(missing)} (found: {found}){hint}")


def _numbers(values: Any) -> Floats:
    """Float64 [T]; NaN where a value is missing or no number. Strings are parsed with correct rounding."""
    if isinstance(values, pd.Series) and pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    numbers = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        try:
            numbers[i] = float(value)
        except (TypeError, ValueError):
            continue  # stays NaN and is reported with its row
    return numbers


def _positive(table: _Table, name: str) -> Floats:
    numbers = _numbers(table.columns[name])
    zero_allowed = name == "volume"
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0 if zero_allowed else numbers > 0)))
    if bad.size:
        value = list(table.columns[name])[bad[0]]
        shown = "missing" if pd.isna(value) or not str(value).strip() else f"{str(value)[:40]!r}"
        need = "a number, 0 or more" if zero_allowed else "a positive number"
        raise table.fail(bad[0], f"{name} is {shown}; it must be {need}")
    return numbers


def _dates(table: _Table) -> Dates:
    name = next(name for name in DATE_COLUMNS if name in table.columns)
    values = table.columns[name]
    zoned: NDArray[np.bool_]
    if isinstance(values, pd.Series) and pd.api.types.is_datetime64_any_dtype(values):
        zoned = np.full(len(values), values.dt.tz is not None)
        utc = values.dt.tz_convert("UTC").dt.tz_localize(None) if zoned[0] else values
        local = values.dt.tz_localize(None)
    else:
        texts = [str(value).strip() for value in values]
        zones = [_ZONE.search(text) for text in texts]
        zoned = np.array([zone is not None for zone in zones])
        utc = _parse(texts)
        local = _parse([x if z is None else x[: z.start(1)].strip() for x, z in zip(texts, zones, strict=True)])
    unreadable = np.flatnonzero((local.isna() | utc.isna()).to_numpy())
    if unreadable.size:
        i = int(unreadable[0])
        shown = repr(str(list(values)[i])[:40])
        raise table.fail(i, f"{name} {shown} is no ISO 8601 date; write it like 2020-12-31 or 2020-12-31T14:30:00Z")
    mixed = np.flatnonzero(zoned != zoned[0])
    if mixed.size:
        raise table.fail(mixed[0], f"{name} differs from the rows above in having a time zone; give all or none one")
    daily = bool((local == local.dt.normalize()).all())
    dates: Dates = (local if daily else utc).to_numpy().astype("datetime64[us]")
    steps = np.diff(dates).astype(np.int64)
    bad = np.flatnonzero(steps <= 0)
    if bad.size:
        i = int(bad[0]) + 1
        if steps[i - 1] == 0:
            raise table.fail(i, f"duplicate date {_label(dates[i])}; keep one row per bar")
        raise table.fail(i, f"date {_label(dates[i])} is before {_label(dates[i - 1])} above it; sort ascending")
    return dates


def _parse(texts: Sequence[str]) -> "pd.Series[pd.Timestamp]":
    """Naive UTC stamps; NaT where a text is no ISO 8601 date (pandas alone would read "today", too)."""
    plain = pd.Series([text if _DATE.match(text) else None for text in texts], dtype=object)
    return pd.to_datetime(plain, format="ISO8601", errors="coerce", utc=True).dt.tz_localize(None)


def _label(date: np.datetime64) -> str:
    return str(np.datetime_as_string(date, unit="s")).removesuffix("T00:00:00")
