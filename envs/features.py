"""Causal features of a pair: what can be known at the close of a bar, free of the level of prices.

Every feature is a function of the bars inside its window alone, so neither later bars nor the start of the file can
change a bit of it. Prices enter as log differences only: multiplying a leg's whole history by a constant (as a later
split does in adjusted data) changes nothing.

Legs (``a_``, ``b_``), with volatility the root mean square of close-to-close log returns over ``volatility_window``:

- ``return_H``: log return over H bars / (volatility x sqrt(H));
- ``volatility_regime``: log(volatility / volatility over ``regime_window``);
- ``gap``: log(open / previous close) / volatility; ``range``: log(high / low) / volatility;
- ``volume``: log volume less its mean over ``volume_window``; volume below 1 % of the window's mean counts as 1 %.

The spread s = log(close a) - log(close b): ``spread_return_H`` and ``spread_volatility_regime`` likewise, and
``spread_z_W`` = (s - mean) / sd over W bars (ddof 1). Both legs: ``volatility_ratio`` = log(volatility a / volatility
b); ``hedge_ratio``, the slope of the regression of a's log returns on b's over ``hedge_window``, and ``correlation``.

Calendar: ``day_sin``, ``day_cos`` (day of the week), ``days_since_bar`` and, intraday, ``time_sin``, ``time_cos`` of
the time since the session's first bar (so that daylight saving does not move them).

Last, with ``prior``, the weights of a rule, ``prior_a`` and ``prior_b``, which no scaler touches: see ``envs.prior``.

``envs.legs`` knows what each column becomes when the legs change places.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from envs.bars import Bars, Dates, infer_bars_per_year, is_intraday, sessions
from envs.prior import PRIOR_COLUMNS, SPREAD_WINDOW, prior_lookback, prior_weights
from rayconf import UserError
from rayconf.sections import FeaturesConfig

Floats = NDArray[np.float64]

# Smallest deviation (log price) that anything is divided by: far below that of anything traded, far above rounding.
FLOOR = 1e-6
VOLUME_FLOOR = 0.01


def feature_names(config: FeaturesConfig, intraday: bool) -> tuple[str, ...]:
    """Names of the F features, in the order of the columns.

    Raises:
        UserError: A horizon or window is given twice.
    """
    for field in ("return_horizons", "z_windows"):
        values = getattr(config, field)
        if len(set(values)) != len(values):
            raise UserError(f"features.{field}: {list(values)} repeats a value; give each once")
    returns = [f"return_{h}" for h in config.return_horizons]
    leg = [*returns, "volatility_regime", "gap", "range", "volume"]
    spread = [*returns, "volatility_regime", *(f"z_{w}" for w in config.z_windows)]
    names = [f"{side}_{name}" for side, group in (("a", leg), ("b", leg), ("spread", spread)) for name in group]
    names += ["volatility_ratio", "hedge_ratio", "correlation"]
    if config.calendar:
        names += ["day_sin", "day_cos", "days_since_bar"]
        names += ["time_sin", "time_cos"] if intraday else []
    if has_prior(config):
        names += PRIOR_COLUMNS
    return tuple(names)


def has_prior(config: FeaturesConfig) -> bool:
    """Whether the features end in a prior's weights."""
    return config.prior in ("vol_target", "spread")


def lookback(config: FeaturesConfig) -> int:
    """Bars that the first complete row consumes: rows ``[lookback - 1:]`` are finite, earlier ones NaN."""
    returns = [config.volatility_window, config.regime_window, config.hedge_window, *config.return_horizons]
    return max(*(n + 1 for n in returns), config.volume_window, *config.z_windows, prior_lookback(config))


def compute_features(a: Bars, b: Bars, config: FeaturesConfig, bars_per_year: float | None = None) -> Floats:
    """Unscaled features of every bar, float64 [T, F] in the order of ``feature_names``.

    Args:
        a: First leg.
        b: Second leg, on the same dates (see ``join_bars``).
        config: Windows and choices.
        bars_per_year: Annualises the volatility of a prior; None: inferred from the dates.
    """
    if not np.array_equal(a.dates, b.dates):
        raise ValueError(f"{a.ticker} and {b.ticker} are not on the same dates: join them first")
    names = feature_names(config, is_intraday(a.dates))
    log_a, log_b = np.log(a.close), np.log(b.close)
    spread = log_a - log_b
    columns: dict[str, Floats] = {}
    for side, bars, log_price in (("a", a, log_a), ("b", b, log_b)):
        volatility = _add_moves(columns, side, log_price, config)
        columns[f"{side}_gap"] = (np.log(bars.open) - _lagged(log_price, 1)) / volatility
        columns[f"{side}_range"] = (np.log(bars.high) - np.log(bars.low)) / volatility
        columns[f"{side}_volume"] = _relative_volume(bars.volume, config.volume_window)
        columns[f"{side}_volatility"] = volatility
    _add_moves(columns, "spread", spread, config)
    for window in config.z_windows:
        columns[f"spread_z_{window}"] = z_score(spread, window)
    columns["volatility_ratio"] = np.log(columns["a_volatility"] / columns["b_volatility"])
    slope, correlation = regression(_change(log_a, 1), _change(log_b, 1), config.hedge_window)
    columns |= {"hedge_ratio": slope, "correlation": correlation}
    if config.calendar:
        columns |= _calendar(a.dates)
    if has_prior(config):
        z = z_score(spread, SPREAD_WINDOW) if config.prior == "spread" else None
        per_year = bars_per_year or infer_bars_per_year(a.dates)
        weights = prior_weights(np.stack((a.close, b.close), axis=1), z, config, per_year)
        columns |= dict(zip(PRIOR_COLUMNS, weights.T, strict=True))
    values = np.stack([columns[name] for name in names], axis=1)
    values[: lookback(config) - 1] = np.nan
    return values


def z_score(values: Floats, window: int) -> Floats:
    """(x - mean) / sd of the last ``window`` values, ddof 1; float64 [T], NaN before the window is full."""
    # Measured from the window's own last value: a high level costs no digits and a flat window gives exactly 0.
    last = values[window - 1 :]
    mean = _accumulate(window, lambda x: x - last, values) / window
    offset = mean[window - 1 :]
    squares = _accumulate(window, lambda x: (x - last - offset) ** 2, values)
    return -mean / np.maximum(np.sqrt(squares / (window - 1)), FLOOR)


def regression(y: Floats, x: Floats, window: int) -> tuple[Floats, Floats]:
    """Least-squares slope of y on x and their correlation over the last ``window`` values; each float64 [T]."""
    mean_x, mean_y = ((_accumulate(window, _itself, v) / window)[window - 1 :] for v in (x, y))
    covariance = _accumulate(window, lambda u, v: (u - mean_x) * (v - mean_y), x, y) / window
    variance_x = _accumulate(window, lambda u: (u - mean_x) ** 2, x) / window
    variance_y = _accumulate(window, lambda v: (v - mean_y) ** 2, y) / window
    sd_x, sd_y = np.maximum(np.sqrt(variance_x), FLOOR), np.maximum(np.sqrt(variance_y), FLOOR)
    return covariance / sd_x**2, np.clip(covariance / (sd_x * sd_y), -1.0, 1.0)


def volatility_of(log_price: Floats, config: FeaturesConfig) -> Floats:
    """Volatility of every bar [T], root mean square of the log returns over ``volatility_window``."""
    return _root_mean_square(_change(log_price, 1), config.volatility_window)


def _add_moves(columns: dict[str, Floats], side: str, log_price: Floats, config: FeaturesConfig) -> Floats:
    """Scaled returns and volatility regime of one log-price series; returns its volatility per bar [T]."""
    change = _change(log_price, 1)
    volatility = volatility_of(log_price, config)
    for horizon in config.return_horizons:
        columns[f"{side}_return_{horizon}"] = _change(log_price, horizon) / (volatility * np.sqrt(horizon))
    columns[f"{side}_volatility_regime"] = np.log(volatility / _root_mean_square(change, config.regime_window))
    return volatility


def _itself(values: Floats) -> Floats:
    return values


def _accumulate(window: int, term: Callable[..., Floats], *series: Floats) -> Floats:
    """Sum of ``term(*series)`` over the last ``window`` bars, [T], NaN before the window is full.

    Added up one offset at a time over whole vectors, oldest first for every row alike. A running sum would be faster
    but carries its rounding, and any extreme bar's, along the whole history.
    """
    count = len(series[0]) - window + 1
    result = np.full(len(series[0]), np.nan)
    if count > 0:
        total = np.zeros(count)
        for offset in range(window):
            total += term(*(values[offset : offset + count] for values in series))
        result[window - 1 :] = total
    return result


def _root_mean_square(change: Floats, window: int) -> Floats:
    return np.maximum(np.sqrt(_accumulate(window, _itself, change * change) / window), FLOOR)


def _lagged(values: Floats, bars: int) -> Floats:
    result = np.full(len(values), np.nan)
    result[bars:] = values[: max(len(values) - bars, 0)]
    return result


def _change(values: Floats, bars: int) -> Floats:
    return values - _lagged(values, bars)


def _relative_volume(volume: Floats, window: int) -> Floats:
    mean = _accumulate(window, _itself, volume) / window
    # a window without any volume has ratios of 0 / 1: all floored alike, so the feature is 0
    scale = np.where(mean > 0, mean, 1.0)

    def log_ratio(x: Floats, of: Floats) -> Floats:
        return np.log(np.maximum(x / of, VOLUME_FLOOR))

    tail = scale[window - 1 :]
    return log_ratio(volume, scale) - _accumulate(window, lambda x: log_ratio(x, tail), volume) / window


def _calendar(dates: Dates) -> dict[str, Floats]:
    microseconds = dates.astype("datetime64[us]").astype(np.int64)
    day = 86_400_000_000
    weekday = 2 * np.pi * ((microseconds // day + 3) % 7) / 7  # 1970-01-01 was a Thursday
    session = sessions(dates)
    first = np.searchsorted(session, session)  # the first bar of each bar's own session
    time = 2 * np.pi * (microseconds - microseconds[first]) / day
    return {
        "day_sin": np.sin(weekday),
        "day_cos": np.cos(weekday),
        "days_since_bar": np.diff(microseconds, prepend=microseconds[:1]) / day,
        "time_sin": np.sin(time),
        "time_cos": np.cos(time),
    }
