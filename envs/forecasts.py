"""Forecasts as features: a Parquet that a time-series model wrote is read, checked and laid beside the bars.

Columns: ``pair``, a pair ``AAA/BBB`` (its log-price spread) or a ticker ``AAA`` (its log price); ``date``, the label of
the last bar that the forecast saw; ``horizon`` in bars; ``quantile``; ``value``, that quantile of the series' change
over ``horizon`` bars after the close of ``date``; ``model`` and ``revision``, alike in all rows. Feature
``forecast_<series>_<horizon>_q<quantile>`` is the value / (volatility x sqrt(horizon)), the volatility being that of
``envs.features``.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from envs.bars import Bars, Dates
from envs.features import Floats, lookback, volatility_of
from rayconf.errors import UserError
from rayconf.remote_storage import RemoteStorage
from rayconf.sections import FeaturesConfig, ForecastConfig
from rayconf.storage import StorageError, is_uri

COLUMNS = ("pair", "date", "horizon", "quantile", "value", "model", "revision")
SAME_QUANTILE = 1e-6
"""Numbers this close name one quantile: a file may hold them in single precision."""


@dataclass(frozen=True)
class Forecasts:
    """Checked forecasts of one model for the horizons [H] and quantiles [Q] of a run."""

    place: str
    """The file, for complaints."""
    model: str
    revision: str
    horizons: tuple[int, ...]
    quantiles: tuple[float, ...]
    dates: Mapping[str, Dates]
    """By pair or ticker, labels [N] of the bars forecast at, rising."""
    values: Mapping[str, Floats]
    """By pair or ticker, float64 [N, H, Q]; finite, and not falling along Q."""

    @property
    def made_by(self) -> str:
        """Model and revision in one word."""
        return f"{self.model}@{self.revision}"

    @property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over all that features can depend on, whatever file holds it."""
        sha = hashlib.sha256(f"{self.made_by}|{self.horizons}|{self.quantiles}".encode())
        for name in sorted(self.dates):
            sha.update(f"|{name}|{len(self.dates[name])}|".encode())
            sha.update(self.dates[name].astype("<M8[us]").tobytes() + self.values[name].astype("<f8").tobytes())
        return sha.hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write them as a Parquet file, whole or not at all."""
        frames = []
        for name, dates in self.dates.items():
            grid = np.meshgrid(np.arange(len(dates)), self.horizons, self.quantiles, indexing="ij")
            row, horizon, quantile = (part.ravel() for part in grid)
            columns = {"date": dates[row], "horizon": horizon.astype(np.int32), "quantile": quantile}
            frames.append(pd.DataFrame({"pair": name, **columns, "value": self.values[name].ravel()}))
        frame = pd.concat(frames).assign(model=self.model, revision=self.revision)
        making = path.with_name(f"{path.name}.tmp")
        try:
            pq.write_table(pa.Table.from_pandas(frame[list(COLUMNS)], preserve_index=False), making, compression="zstd")
            os.replace(making, path)
        finally:
            making.unlink(missing_ok=True)


def series_names(pairs: Sequence[str], config: ForecastConfig) -> list[str]:
    """The pairs and tickers that a run needs forecasts of."""
    names = []
    for pair in pairs:
        legs = dict(zip("ab", pair.split("/"), strict=True))
        names += [legs.get(series, pair) for series in config.series]
    return list(dict.fromkeys(names))


def forecast_names(config: ForecastConfig) -> tuple[str, ...]:
    """Names of the K forecast features, in the order of the columns; none where no forecasts are in use."""
    if not config.used:
        return ()
    return tuple(
        f"forecast_{series}_{horizon}_q{quantile:g}"
        for series in config.series
        for horizon in config.horizons
        for quantile in config.quantiles
    )


def forecast_columns(
    forecasts: Forecasts, a: Bars, b: Bars, features: FeaturesConfig, config: ForecastConfig
) -> Floats:
    """Unscaled forecast features of every bar, float64 [T, K] in the order of ``forecast_names``.

    Args:
        forecasts: Forecasts of the pair's series.
        a: First leg.
        b: Second leg, on the same dates.
        features: Windows; bars before its lookback have no features and are NaN.
        config: Which series, horizons and quantiles.

    Raises:
        UserError: A bar from the lookback on has no forecast, or a forecast of the pair is of no bar.
    """
    pair, first = f"{a.ticker}/{b.ticker}", lookback(features) - 1
    log_a, log_b = np.log(a.close), np.log(b.close)
    series = {"spread": (pair, log_a - log_b), "a": (a.ticker, log_a), "b": (b.ticker, log_b)}
    scale = np.sqrt(np.asarray(forecasts.horizons, np.float64))[:, None]
    columns = []
    for side in config.series:
        name, log_price = series[side]
        if name not in forecasts.dates:
            raise UserError(f"{forecasts.place}: has no forecasts of {name}; make them with python -m pbt.forecast")
        if name == pair:
            _check_bars(forecasts, pair, a.dates)
        known = forecasts.dates[name]
        at = np.searchsorted(known, a.dates)
        missing = known[np.minimum(at, len(known) - 1)] != a.dates
        missing[:first] = False
        if missing.any():
            date = _label(a.dates[missing.argmax()])
            raise UserError(
                f"{forecasts.place}: has no forecast of {name} at {date}, a bar of {pair}; make the file anew from "
                "these prices with python -m pbt.forecast"
            )
        values = np.full((len(a.dates), *scale.shape[:1], len(forecasts.quantiles)), np.nan)
        values[first:] = forecasts.values[name][at[first:]]
        columns.append((values / (volatility_of(log_price, features)[:, None, None] * scale)).reshape(len(values), -1))
    return np.concatenate(columns, axis=1)


def read_forecasts(
    place: str | Path, names: Sequence[str], config: ForecastConfig, further: Sequence[str] = ()
) -> Forecasts:
    """Read and check a file of forecasts; horizons, quantiles and series that the run does not use are left out.

    Args:
        place: Path or URI of the Parquet file.
        names: Pairs and tickers wanted (see ``series_names``).
        config: ``horizons`` and ``quantiles``; ``model`` and ``revision`` must be the file's where they are given.
        further: Pairs and tickers taken where the file has them.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It cannot be read, or breaks the rules, naming pair and date.
    """
    table = _read(str(place))
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise UserError(f"{place}: missing columns: {', '.join(missing)} (found: {', '.join(map(str, table.columns))})")
    frame = table[list(COLUMNS)]
    for name in COLUMNS:
        if frame[name].isna().any() and name != "value":
            raise UserError(f"{place}: data row {int(frame[name].isna().to_numpy().argmax()) + 1}: {name} is missing")
    if not len(frame):
        raise UserError(f"{place}: has no rows")
    model, revision = (_only(place, frame, name) for name in ("model", "revision"))
    for name, asked, found in (("model", config.model, model), ("revision", config.revision, revision)):
        if asked not in (None, found):
            raise UserError(f"forecasts.{name}: {asked} is configured, {place} has forecasts of {found}")
    numbers = {name: _numbers(place, frame, name) for name in ("horizon", "quantile", "value")}
    column, row = _placed(numbers["quantile"], config.quantiles), _placed(numbers["horizon"], config.horizons)
    stamps = _stamps(place, frame["date"])
    kept = (column >= 0) & (row >= 0)
    dates: dict[str, Dates] = {}
    values: dict[str, Floats] = {}
    pairs = frame["pair"].astype(str).to_numpy()
    for name in dict.fromkeys((*names, *further)):
        own = kept & (pairs == name)
        if not own.any():
            if name not in names:
                continue
            raise UserError(f"{place}: has no forecasts of {name} for the run's horizons and quantiles")
        place_of = row[own], column[own]
        dates[name], values[name] = _grid(str(place), name, stamps[own], *place_of, numbers["value"][own], config)
    return Forecasts(str(place), model, revision, config.horizons, config.quantiles, dates, values)


def _read(place: str) -> pd.DataFrame:
    try:
        if is_uri(place):
            folder, _, name = place.rpartition("/")
            return pq.read_table(pa.BufferReader(RemoteStorage(folder).read(name))).to_pandas()
        return pq.read_table(Path(place.removeprefix("file://")).expanduser()).to_pandas()
    except FileNotFoundError:
        raise
    except StorageError as error:
        raise FileNotFoundError(str(error)) from error
    except Exception as error:  # pyarrow's errors share no base
        raise UserError(f"{place}: cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error


def _only(place: str | Path, frame: pd.DataFrame, name: str) -> str:
    found = frame[name].astype(str).unique()
    if len(found) > 1:
        raise UserError(f"{place}: forecasts of several {name}s ({found[0]}, {found[1]}); keep one per file")
    return str(found[0])


def _numbers(place: str | Path, frame: pd.DataFrame, name: str) -> Floats:
    try:
        return frame[name].to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: column {name} must hold numbers") from error


def _stamps(place: str | Path, column: "pd.Series[pd.Timestamp]") -> Dates:
    try:
        stamps = pd.to_datetime(column)
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: column date must hold dates") from error
    if stamps.dt.tz is not None:
        stamps = stamps.dt.tz_convert("UTC").dt.tz_localize(None)
    found: Dates = stamps.to_numpy().astype("datetime64[us]")
    return found


def _placed(numbers: Floats, wanted: Sequence[float]) -> np.ndarray:
    """Place of each number [R] among those wanted; -1 where it is none of them."""
    near = np.abs(numbers[:, None] - np.asarray(wanted, np.float64)) < SAME_QUANTILE
    return np.where(near.any(axis=1), near.argmax(axis=1), -1)


def _grid(
    place: str, name: str, stamps: Dates, row: np.ndarray, column: np.ndarray, value: Floats, config: ForecastConfig
) -> tuple[Dates, Floats]:
    """Dates [N] and values [N, H, Q] of one series, every cell of which must be given once, finite and in order."""
    dates, at = np.unique(stamps, return_inverse=True)
    shape = (len(dates), len(config.horizons), len(config.quantiles))
    count = np.zeros(shape, np.int64)
    np.add.at(count, (at, row, column), 1)
    values = np.full(shape, np.nan)
    values[at, row, column] = value

    def fail(where: np.ndarray, problem: str) -> UserError:
        n, h, q = (int(i[0]) for i in np.nonzero(where))
        cell = f"horizon {config.horizons[h]}, quantile {config.quantiles[q]:g}"
        return UserError(f"{place}: {name} at {_label(dates[n])}, {cell}: {problem}")

    if (count > 1).any():
        raise fail(count > 1, "is given twice")
    if (count == 0).any():
        raise fail(count == 0, "is missing")
    if not np.isfinite(values).all():
        raise fail(~np.isfinite(values), "is no finite number")
    falls = np.diff(values, axis=2, prepend=-np.inf) < 0
    if falls.any():
        raise fail(falls, "lies below the quantile before it; quantiles must not cross")
    return dates, values


def _check_bars(forecasts: Forecasts, pair: str, dates: Dates) -> None:
    """Forecasts between the first and the last bar must be of bars: others were made from other prices."""
    known = forecasts.dates[pair]
    inside = known[(known >= dates[0]) & (known <= dates[-1])]
    foreign = ~np.isin(inside, dates)
    if foreign.any():
        date = _label(inside[foreign.argmax()])
        raise UserError(f"{forecasts.place}: has a forecast of {pair} at {date}, which is no bar of it; other prices?")


def _label(date: np.datetime64) -> str:
    return str(np.datetime_as_string(date, unit="s")).removesuffix("T00:00:00")
