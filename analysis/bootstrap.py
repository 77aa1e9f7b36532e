"""Circular block bootstrap of Sharpe ratios (Politis and Romano 1992), vectorised over resamples.

A resample joins blocks of consecutive sessions, cut to the length of the original; the series is a
circle, so that every session is drawn equally often. Block sums come from cumulative sums, so a
resample costs one look-up per block instead of one per session. Intervals are percentile intervals.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from analysis.metrics import is_flat, sharpe
from rayconf.keys import derive_key

Array = NDArray[np.float64]

BLOCK = 21
RESAMPLES = 999
LEVEL = 0.95
FEWEST = 20
"""Under this many sessions no interval is given."""


def block_length(sessions: int, block: int = BLOCK) -> int:
    """The block that is used: at most a quarter of the series, since longer ones hide its variation."""
    return max(1, min(block, sessions // 4))


@lru_cache(maxsize=16)
def block_starts(sessions: int, block: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """First session of every block, [resamples, ceil(sessions / block)], drawn from a keyed generator.

    It depends on the arguments alone, so that all series of one length are resampled alike (paired).
    """
    generator = np.random.Generator(np.random.PCG64(derive_key("bootstrap", seed, sessions, block, resamples)))
    return generator.integers(0, sessions, size=(resamples, -(-sessions // block)))


def block_sums(values: Array, starts: NDArray[np.int64], block: int) -> Array:
    """Sum of each resample [resamples] of one series [D]; the last block is cut to the series' length."""
    sessions = values.size
    wrapped = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[:block]]))])
    full = wrapped[block : block + sessions] - wrapped[:sessions]
    rest = sessions - block * (starts.shape[1] - 1)
    last = wrapped[rest : rest + sessions] - wrapped[:sessions]
    return full[starts[:, :-1]].sum(axis=1) + last[starts[:, -1]]


def resampled_sharpes(returns: Array, starts: NDArray[np.int64], block: int, sessions_per_year: float) -> Array:
    """Annualised Sharpe ratio of each resample [resamples] of session returns [D]; 0 without variance."""
    if is_flat(returns):
        return np.zeros(len(starts))
    # Centred first: the difference of second moments would otherwise lose digits.
    mean = returns.mean()
    centred = returns - mean
    variance = float(np.mean(centred**2))
    first = block_sums(centred, starts, block) / returns.size
    second = block_sums(centred**2, starts, block) / returns.size - first**2
    degenerate = second <= 1e-9 * variance
    return np.where(
        degenerate, 0.0, math.sqrt(sessions_per_year) * (mean + first) / np.sqrt(np.where(degenerate, 1.0, second))
    )


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sharpe_interval(
    returns: Array,
    *,
    sessions_per_year: float = 252,
    seed: int = 0,
    block: int = BLOCK,
    resamples: int = RESAMPLES,
) -> tuple[float | None, float | None]:
    """95 % interval of the annualised Sharpe ratio of session returns [D].

    Returns:
        Lower and upper end; (None, None) under 20 sessions, (0, 0) for a stream without variance.
    """
    if returns.size < FEWEST:
        return None, None
    block = block_length(returns.size, block)
    starts = block_starts(returns.size, block, resamples, seed)
    return _interval(resampled_sharpes(returns, starts, block, sessions_per_year))


def sharpe_difference(
    returns: Array,
    other: Array,
    *,
    sessions_per_year: float = 252,
    seed: int = 0,
    block: int = BLOCK,
    resamples: int = RESAMPLES,
) -> tuple[float, float | None, float | None]:
    """Sharpe ratio of one account less another's over the same sessions [D], with its 95 % interval.

    Both are resampled with the same blocks, so what they share cancels (paired, as in Ledoit and Wolf 2008).

    Returns:
        Difference, lower and upper end; the ends are None under 20 sessions.

    Raises:
        ValueError: The two series differ in length.
    """
    if returns.shape != other.shape:
        raise ValueError(f"{returns.size} and {other.size} sessions cannot be paired")
    point = [sharpe(series, sessions_per_year) for series in (returns, other)]
    if returns.size < FEWEST:
        return point[0] - point[1], None, None
    block = block_length(returns.size, block)
    starts = block_starts(returns.size, block, resamples, seed)
    first, second = (resampled_sharpes(series, starts, block, sessions_per_year) for series in (returns, other))
    return point[0] - point[1], *_interval(first - second)
