"""Priors: causal rules that a policy leans on, as weights of every bar (``features.prior``).

With ``env.mapping: residual`` a policy corrects its prior, so that whatever it learns is measured against a rule that
needs no learning. The weights travel as two unscaled columns of the features.

- ``vol_target``: equal weight times min(1, target / volatility); volatility exponentially weighted over past closes.
- ``spread``: a partial step (Garleanu and Pedersen 2013) towards the spread's signal: the fading mean, half-life
  ``SPREAD_HALF_LIFE`` bars, of -z / ``SPREAD_FULL``, bounded by 1, of the z-score over ``SPREAD_WINDOW`` bars, at most
  half of the equity in each leg.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rayconf.sections import FeaturesConfig

Floats = NDArray[np.float64]

PRIOR_COLUMNS = ("prior_a", "prior_b")
MEMORY = 10
"""Half-lives after which the past is forgotten altogether: what is left out weighs a thousandth. A fading mean is thus
a function of a window, and the start of the file does not matter."""
SPREAD_WINDOW, SPREAD_FULL, SPREAD_HALF_LIFE = 60, 2.0, 10.0
TINY = 1e-12


def prior_columns(names: Sequence[str]) -> slice | None:
    """Where the prior's weights stand among features of these names; None: there are none, which is flat."""
    if PRIOR_COLUMNS[0] not in names:
        return None
    first = list(names).index(PRIOR_COLUMNS[0])
    return slice(first, first + len(PRIOR_COLUMNS))


def memory(half_life: float) -> int:
    """Bars that a fading mean reads."""
    return math.ceil(MEMORY * half_life)


def prior_lookback(config: FeaturesConfig) -> int:
    """Closes that the prior reads; 1 where there is none."""
    if config.prior == "vol_target":
        assert config.prior_half_life is not None
        return memory(config.prior_half_life) + 1
    return SPREAD_WINDOW + memory(SPREAD_HALF_LIFE) - 1 if config.prior == "spread" else 1


def fading_mean(values: Floats, half_life: float) -> Floats:
    """Exponentially weighted mean over the last ``memory`` values, [T]; over fewer at the start.

    Added up oldest first for every row alike, so that a row is the same to the bit wherever its window lies.
    """
    decay = 0.5 ** (1 / half_life)
    total, weight = np.zeros(len(values)), np.zeros(len(values))
    for age in reversed(range(min(memory(half_life), len(values)))):
        total[age:] += decay**age * values[: len(values) - age]
        weight[age:] += decay**age
    return total / weight


def vol_target_scale(close: Floats, target: float, half_life: float, bars_per_year: float) -> Floats:
    """min(1, target / volatility) [T] of equal weight.

    Args:
        close: [T, 2] closes.
        target: Volatility per year.
        half_life: Half-life of the squared returns' mean, in bars.
        bars_per_year: Annualises.
    """
    if len(close) < 2:
        return np.ones(len(close))
    change = (close[1:] / close[:-1] - 1).mean(axis=1)
    variance = fading_mean(change**2, half_life)
    volatility = np.sqrt(np.concatenate((variance[:1], variance)) * bars_per_year)
    return np.minimum(1.0, target / np.maximum(volatility, TINY))


def prior_weights(close: Floats, z: Floats | None, config: FeaturesConfig, bars_per_year: float) -> Floats:
    """Weights [T, 2] of the config's prior, signed fractions of equity; rows before ``prior_lookback`` mean nothing.

    Args:
        close: [T, 2] closes.
        z: [T] z-score of the log-price spread over ``SPREAD_WINDOW``, for ``spread``; NaN before the window is full.
        config: ``prior`` and its numbers.
        bars_per_year: Annualises volatility.
    """
    if config.prior == "vol_target":
        assert config.prior_volatility is not None
        assert config.prior_half_life is not None
        scale = vol_target_scale(close, config.prior_volatility, config.prior_half_life, bars_per_year)
        return np.repeat(0.5 * scale[:, None], 2, axis=1)
    if config.prior != "spread" or z is None:
        raise ValueError(f"no prior {config.prior!r} of these arguments")
    aim = np.clip(-np.nan_to_num(z) / SPREAD_FULL, -1.0, 1.0)
    lean = 0.5 * fading_mean(aim, SPREAD_HALF_LIFE)
    return np.stack((lean, -lean), axis=1)
