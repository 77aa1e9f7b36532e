"""Paired tests of two policies on one span, of several policies against each other, and between seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from analysis.bootstrap import DEGENERATE, FEWEST, LEVEL, automatic_block, resampled_means
from analysis.metrics import is_flat, sharpe
from analysis.verdict import Difference, holm
from rayconf.keys import derive_key

Array = NDArray[np.float64]

PAIRED_RESAMPLES = 1999
"""More than an interval needs: adjusted p-values reach far into the tail."""


def _standardised(returns: Array) -> tuple[Array, float]:
    """Returns [D] with mean 0 and unit deviation, and their Sharpe ratio per session; zeros without variance."""
    if is_flat(returns):
        return np.zeros_like(returns), 0.0
    return (returns - returns.mean()) / returns.std(), sharpe(returns, 1)


def _own(level: float, first: Array, second: Array, third: Array, fourth: Array) -> tuple[Array, Array, Array, Array]:
    """Sharpe ratio, deviation, skewness and kurtosis of each resample from its raw moments [B]."""
    variance = second - first**2
    spread = np.sqrt(np.where(variance > DEGENERATE, variance, 1.0))
    skew = (third - 3 * first * second + 2 * first**3) / spread**3
    kurt = (fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4) / spread**4
    return (level + first) / spread, spread, skew, kurt


def _differences(y: Array, level_x: float, level_y: float, means: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Sharpe difference of each resample, the variance of its estimate times D, and whether both series move [B].

    ``means`` [B, 12] are those of the columns that ``_moments`` gives of two series, of which ``y`` [D] is the second.
    The variance is that of the influence functions z - S (z^2 - 1) / 2 of the two ratios (Mertens 2002; Ledoit and
    Wolf 2008, section 3.1), under independence.
    """
    ax, bx, cx, dx, ay, by, cy, dy, xy, xxy, xyy, xxyy = means.T
    ratio_x, sx, skew_x, kurt_x = _own(level_x, ax, bx, cx, dx)
    variance = 1 - ratio_x * skew_x + ratio_x**2 * (kurt_x - 1) / 4
    moving = bx - ax**2 > DEGENERATE
    if not y.any():
        return ratio_x, variance, moving
    ratio_y, sy, skew_y, kurt_y = _own(level_y, ay, by, cy, dy)
    moving = moving & (by - ay**2 > DEGENERATE)
    one_one = (xy - ax * ay) / (sx * sy)
    two_one = (xxy - 2 * ax * xy - ay * bx + 2 * ax**2 * ay) / (sx**2 * sy)
    one_two = (xyy - 2 * ay * xy - ax * by + 2 * ay**2 * ax) / (sx * sy**2)
    two_two = (xxyy - 2 * ay * xxy - 2 * ax * xyy + ay**2 * bx + ax**2 * by + 4 * ax * ay * xy - 3 * ax**2 * ay**2) / (
        sx * sy
    ) ** 2
    variance = variance + 1 - ratio_y * skew_y + ratio_y**2 * (kurt_y - 1) / 4
    variance -= 2 * (one_one - ratio_y * one_two / 2 - ratio_x * two_one / 2 + ratio_x * ratio_y * (two_two - 1) / 4)
    return ratio_x - ratio_y, variance, moving


def _moments(x: Array, y: Array) -> Array:
    xx, yy = x**2, y**2
    return np.stack([x, xx, xx * x, xx**2, y, yy, yy * y, yy**2, x * y, xx * y, x * yy, xx * yy], axis=1)


def sharpe_difference(
    returns: Array, other: Array, *, sessions_per_year: float = 252, resamples: int = PAIRED_RESAMPLES
) -> Difference:
    """Sharpe ratio of one account less another's over the same sessions [D], with interval and p-value.

    The studentised bootstrap of Ledoit and Wolf (2008): both accounts are resampled with the same sessions, so that
    what they share cancels, and the symmetric interval follows the distribution of |difference* - difference| / s*.
    Resamples are those of the stationary bootstrap with the automatic block of the difference of the standardised
    returns; s is the standard error under independence in data and resamples alike, so that the distribution of the
    ratio carries what autocorrelation adds.

    Args:
        returns: Session returns of the account judged [D].
        other: Session returns of the other [D]; without variance (cash) its ratio is 0 and certain.
        sessions_per_year: Annualises the difference.
        resamples: Number of resamples.

    Returns:
        The difference per year; ends and p are None under 20 sessions, or where too few sessions move to compare.

    Raises:
        ValueError: The two series differ in length.
    """
    if returns.shape != other.shape:
        raise ValueError(f"{returns.size} and {other.size} sessions cannot be paired")
    (x, level_x), (y, level_y) = _standardised(returns), _standardised(other)
    year = math.sqrt(sessions_per_year)
    value = year * (level_x - level_y)
    if returns.size < FEWEST:
        return Difference(value, None, None, None)
    if not x.any():
        if not y.any():
            return Difference(0.0, 0.0, 0.0, 1.0)
        turned = sharpe_difference(other, returns, sessions_per_year=sessions_per_year, resamples=resamples)
        low, high = (None if end is None else -end for end in (turned.high, turned.low))
        return Difference(value, low, high, turned.p)
    columns = _moments(x, y)
    point, variance, _ = _differences(y, level_x, level_y, columns.mean(axis=0, keepdims=True))
    if variance[0] <= DEGENERATE:  # one account is a multiple of the other
        return Difference(value, value, value, 1.0 if abs(value) <= DEGENERATE else 1 / (resamples + 1))
    means = resampled_means(columns, automatic_block(x - y), resamples)
    points, variances, moving = _differences(y, level_x, level_y, means)
    moving = moving & (variances > DEGENERATE)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(moving, np.abs(points - point[0]) / np.sqrt(variances), np.inf)
    seen = abs(point[0]) / math.sqrt(variance[0])
    p = (1 + int(np.sum(t >= seen))) / (resamples + 1)
    width = float(np.sort(t)[math.ceil(LEVEL * (resamples + 1)) - 1]) * math.sqrt(variance[0])
    if not math.isfinite(width):
        return Difference(value, None, None, None)
    return Difference(value, value - year * width, value + year * width, p)


def between_policies(
    streams: Mapping[str, Array], *, sessions_per_year: float = 252, resamples: int = PAIRED_RESAMPLES
) -> dict[tuple[str, str], Difference]:
    """Paired Sharpe differences of every two of some policies, p-values adjusted over all of them (Holm).

    Args:
        streams: Session returns [D] by policy, all on the same sessions.
        sessions_per_year: Annualises.
        resamples: Number of resamples.
    """
    found = {
        (one, two): sharpe_difference(
            streams[one], streams[two], sessions_per_year=sessions_per_year, resamples=resamples
        )
        for one, two in combinations(streams, 2)
    }
    tested = [key for key, difference in found.items() if difference.p is not None]
    for key, p in zip(tested, holm([found[key].p or 0.0 for key in tested]), strict=True):
        found[key] = replace(found[key], p=p)
    return found


@dataclass(frozen=True)
class SeedComparison:
    """Results of two arms over the same seeds.

    Attributes:
        seeds: Number of seeds compared.
        value: Mean difference, first arm less second.
        low: Lower end of its 95 % interval, of its centre: the signed-rank test inverted; None under 6 seeds.
        high: Upper end.
        permutation_p: Two-sided paired permutation test of the mean (sign flips; exact up to 12 seeds).
        wilcoxon_p: Two-sided signed-rank test (Wilcoxon 1945).
    """

    seeds: int
    value: float
    low: float | None
    high: float | None
    permutation_p: float
    wilcoxon_p: float


def between_seeds(first: Sequence[float], second: Sequence[float]) -> SeedComparison:
    """Compare one figure (a Sharpe ratio, a fitness) of two arms that ran under the same seeds.

    Args:
        first: A figure per seed.
        second: The other arm's, in the same order of seeds.

    Returns:
        Mean difference, its interval and the p-values; p is 1 where no seed differs. With few seeds p cannot be small:
        2 / 2^n at least.

    Raises:
        ValueError: Different numbers of seeds, or none.
    """
    from scipy.stats import permutation_test, wilcoxon

    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.shape != y.shape or x.size == 0:
        raise ValueError(f"{x.size} and {y.size} seeds cannot be paired")
    gaps = x - y
    value = float(gaps.mean())
    if not gaps.any():
        return SeedComparison(x.size, 0.0, 0.0, 0.0, 1.0, 1.0)
    generator = np.random.Generator(np.random.PCG64(derive_key("between seeds", x.size)))
    if x.size == 1:
        return SeedComparison(1, value, None, None, 1.0, 1.0)
    test = permutation_test(
        (gaps,), lambda g, axis: g.mean(axis=axis), permutation_type="samples", n_resamples=4095, rng=generator,
        vectorized=True,
    )  # fmt: skip
    low, high = (None, None) if x.size < 6 else _walsh_interval(gaps)
    return SeedComparison(x.size, value, low, high, float(test.pvalue), float(wilcoxon(gaps).pvalue))


def _walsh_interval(gaps: Array) -> tuple[float, float]:
    """95 % interval of the centre from the ordered Walsh averages (Hodges and Lehmann 1963): Wilcoxon's, inverted."""
    from scipy.stats import norm

    n = gaps.size
    averages = np.sort(((gaps[:, None] + gaps[None, :]) / 2)[np.triu_indices(n)])
    centre, spread = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    skip = max(0, math.floor(centre - norm.ppf((1 + LEVEL) / 2) * spread - 0.5))
    return float(averages[skip]), float(averages[-1 - skip])
