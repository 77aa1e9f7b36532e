"""Bootstraps of return series: stationary for intervals and tests, circular for the fitness of selection.

A resample joins blocks of consecutive sessions; the series is a circle, so that every session is drawn equally often.
The stationary bootstrap (Politis and Romano 1994) draws block lengths from a geometric distribution whose mean is
chosen from the series (Politis and White 2004, corrected by Patton, Politis and White 2009: package ``arch``) and
rounded up to a power of two, so that series of one length share their resamples. The circular block bootstrap (Politis
and Romano 1992) has one fixed length. Intervals are percentile intervals.

What is resampled are sums, so a resample is the number of times that each session was drawn, and all resamples of all
series of one length are one product of matrices. Values are first rounded to multiples of a power of two that keeps
every partial sum exact in float64: neither the number of threads nor the company of other series changes a bit.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from analysis.metrics import is_flat
from rayconf.keys import derive_key

Array = NDArray[np.float64]

RESAMPLES = 999
LEVEL = 0.95
FEWEST = 20
"""Under this many sessions no interval is given."""
DEGENERATE = 1e-9
"""Share of a series' variance under which a resample counts as constant."""

_CHUNK = 1 << 21
_CACHED = 24 * 2**20


# Circular block bootstrap.


def block_length(sessions: int, block: int) -> int:
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


# Stationary bootstrap.


def automatic_block(values: Array) -> int:
    """Mean block length for a series [D]: the automatic choice, rounded up to a power of two, at most D / 4.

    1 for a series without variance or under 20 sessions.
    """
    if values.size < FEWEST or is_flat(values):
        return 1
    from arch.bootstrap import optimal_block_length

    found = float(optimal_block_length(values / values.std())["stationary"].iloc[0])
    most = values.size // 4
    if not math.isfinite(found):
        return 1
    return 1 << int(min(max(0, math.ceil(math.log2(max(found, 1.0)))), math.floor(math.log2(most))))


def _draw(sessions: int, block: int, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
    """First session [rows, K] of every block, and its length; lengths add up to ``sessions`` and may end in zeros."""
    if block == 1:
        return generator.integers(0, sessions, (rows, sessions)), np.ones((rows, sessions), np.int64)
    mean = sessions / block
    count = math.ceil(mean + 6 * math.sqrt(mean) + 12)
    ends = np.cumsum(generator.geometric(1 / block, (rows, count)), axis=1)
    while ends[:, -1].min() < sessions:  # hardly ever: more than six standard deviations
        more = generator.geometric(1 / block, (rows, count))
        ends = np.concatenate([ends, ends[:, -1:] + np.cumsum(more, axis=1)], axis=1)
    ends = np.minimum(ends, sessions)
    starts = generator.integers(0, sessions, ends.shape)
    return starts, np.diff(ends, axis=1, prepend=0)


def _chunks(sessions: int, block: int, resamples: int) -> list[tuple[int, np.random.Generator]]:
    rows = max(1, _CHUNK // sessions)
    return [
        (
            min(rows, resamples - first),
            np.random.Generator(np.random.PCG64(derive_key("stationary bootstrap", sessions, block, first))),
        )
        for first in range(0, resamples, rows)
    ]


def resampled_indices(sessions: int, block: int, resamples: int) -> list[NDArray[np.int64]]:
    """The sessions drawn, in order: [rows, sessions] in chunks that make ``resamples`` rows in all."""
    parts = []
    for rows, generator in _chunks(sessions, block, resamples):
        starts, lengths = _draw(sessions, block, rows, generator)
        flat = np.repeat(starts.ravel(), lengths.ravel())
        began = np.repeat((np.cumsum(lengths, axis=1) - lengths).ravel(), lengths.ravel())
        within = np.tile(np.arange(sessions), rows) - began
        parts.append(((flat + within) % sessions).reshape(rows, sessions))
    return parts


def _drawn(sessions: int, block: int, resamples: int) -> NDArray[np.uint8]:
    counts = np.empty((resamples, sessions), np.uint8)
    first = 0
    for rows, generator in _chunks(sessions, block, resamples):
        starts, lengths = _draw(sessions, block, rows, generator)
        offset = np.arange(rows)[:, None] * (sessions + 1)
        if block == 1:
            found = np.bincount((starts + offset).ravel(), minlength=rows * (sessions + 1))
            found = found.reshape(rows, sessions + 1)
        else:
            ends = starts + lengths
            over = ends > sessions
            wrapped = np.where(over, ends - sessions, 0)
            size = rows * (sessions + 1)
            change = np.bincount((starts + offset).ravel(), minlength=size)
            change -= np.bincount((np.minimum(ends, sessions) + offset).ravel(), minlength=size)
            change -= np.bincount((wrapped + offset).ravel(), minlength=size)
            change = change.reshape(rows, sessions + 1)
            change[:, 0] += starts.shape[1]  # one for each block that wraps; for the others it undoes wrapped = 0
            found = np.cumsum(change, axis=1)
        counts[first : first + rows] = found[:, :sessions]
        first += rows
    return counts


_kept = lru_cache(maxsize=8)(_drawn)


def resampled_counts(sessions: int, block: int, resamples: int = RESAMPLES) -> NDArray[np.uint8]:
    """How often each session is drawn in each resample, [resamples, sessions]; every row adds up to ``sessions``.

    It depends on the arguments alone, so that all series of one length and block are resampled alike (paired).
    """
    large = resamples * sessions > _CACHED
    return _drawn(sessions, block, resamples) if large else _kept(sessions, block, resamples)


def resampled_means(columns: Array, block: int, resamples: int = RESAMPLES) -> Array:
    """Mean of each resample [resamples, K] of columns [D, K], to the bit whatever the threads or the other columns."""
    sessions = len(columns)
    bound = np.maximum(np.abs(columns).max(axis=0), 1e-300) * sessions
    quantum = np.exp2(np.ceil(np.log2(bound)) - 52)
    exact = np.round(columns / quantum)  # whole numbers whose sums stay below 2^53
    counts = resampled_counts(sessions, block, resamples)
    means = np.empty((resamples, columns.shape[1]))
    rows = max(1, _CHUNK // sessions)
    for first in range(0, resamples, rows):
        means[first : first + rows] = counts[first : first + rows].astype(np.float64) @ exact
    return means * (quantum / sessions)


def _percentiles(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


Ends = tuple[float | None, float | None]


def resampled_sharpes(streams: Sequence[Array], block: int, resamples: int = RESAMPLES) -> Array:
    """Sharpe ratio per session of each resample [resamples, K] of K streams of one length [D], resampled alike.

    0 for a stream without variance, and for a resample without any.
    """
    values = np.zeros((resamples, len(streams)))
    moving = [i for i, stream in enumerate(streams) if not is_flat(stream)]
    if not moving:
        return values
    level = np.array([streams[i].mean() / streams[i].std() for i in moving])
    z = np.stack([(streams[i] - streams[i].mean()) / streams[i].std() for i in moving], axis=1)
    means = resampled_means(np.concatenate([z, z**2], axis=1), block, resamples)
    first, second = means[:, : len(moving)], means[:, len(moving) :]
    variance = second - first**2
    constant = variance <= DEGENERATE
    spread = np.sqrt(np.where(constant, 1.0, variance))
    values[:, moving] = np.where(constant, 0.0, (level + first) / spread)
    return values


def sharpe_intervals(
    streams: Sequence[Array], *, sessions_per_year: Sequence[float] | float = 252, resamples: int = RESAMPLES
) -> list[Ends]:
    """95 % interval of the annualised Sharpe ratio of each stream of session returns [D].

    Args:
        streams: Session returns; streams of one length and block length share their resamples.
        sessions_per_year: For all, or one for each.
        resamples: Number of resamples.

    Returns:
        Lower and upper end of each; (None, None) under 20 sessions, (0, 0) for a stream without variance. A stream's
        interval does not depend on the others.
    """
    years = [sessions_per_year] * len(streams) if isinstance(sessions_per_year, int | float) else sessions_per_year
    found: list[Ends] = [(None, None)] * len(streams)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, stream in enumerate(streams):
        if stream.size < FEWEST:
            continue
        if is_flat(stream):
            found[index] = (0.0, 0.0)
            continue
        groups.setdefault((stream.size, automatic_block(stream)), []).append(index)
    for (_, block), indices in groups.items():
        values = resampled_sharpes([streams[i] for i in indices], block, resamples)
        for column, index in enumerate(indices):
            low, high = _percentiles(math.sqrt(years[index]) * values[:, column])
            found[index] = (low, high)
    return found


def sharpe_interval(returns: Array, *, sessions_per_year: float = 252, resamples: int = RESAMPLES) -> Ends:
    """95 % interval of the annualised Sharpe ratio of session returns [D]; see ``sharpe_intervals``."""
    return sharpe_intervals([returns], sessions_per_year=sessions_per_year, resamples=resamples)[0]


def growth_interval(returns: Array, *, sessions_per_year: float = 252, resamples: int = RESAMPLES) -> Ends:
    """95 % interval of the compound growth per year of session returns [D]; as ``sharpe_intervals`` in the rest."""
    if returns.size < FEWEST:
        return None, None
    growth = np.log(np.maximum(1 + returns, 1e-12))
    means = resampled_means(growth[:, None], automatic_block(returns), resamples)[:, 0]
    low, high = _percentiles(np.expm1(means * sessions_per_year))
    return low, high


def drawdown_interval(returns: Array, *, resamples: int = RESAMPLES) -> Ends:
    """95 % interval of the maximum drawdown of session returns [D], from -1 to 0.

    It says how deep accounts fall whose sessions come in another order of blocks. The block is at least that of the
    absolute returns, because drawdowns follow the clustering of volatility.
    """
    if returns.size < FEWEST:
        return None, None
    block = max(automatic_block(returns), automatic_block(np.abs(returns)))
    growth = np.log(np.maximum(1 + returns, 1e-12))
    depths = []
    for indices in resampled_indices(returns.size, block, resamples):
        path = np.cumsum(growth[indices], axis=1)
        peak = np.maximum(np.maximum.accumulate(path, axis=1), 0.0)
        depths.append(np.expm1((path - peak).min(axis=1)))
    low, high = _percentiles(np.minimum(np.concatenate(depths), 0.0))
    return low, high
