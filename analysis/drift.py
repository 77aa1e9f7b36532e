"""How a feature's distribution differs between two spans, and where it shifted: statistics of plain series."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from arch.covariance.kernel import Bartlett
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

BINS = 10
FLOOR = 1e-4
"""Least share of a bin, so that an empty one gives a large index and no infinite one."""


def stability_index(reference: Floats, sample: Floats) -> float:
    """Population stability index of ``sample`` [M] against ``reference`` [N]: sum of (q - p) log(q / p) over bins.

    Bins are the reference's deciles, equal ones merged. By custom under 0.1 is stable and above 0.25 another population
    (Siddiqi 2006, Credit Risk Scorecards); a span of few independent values exceeds that by chance.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:-1]))
    p, q = (
        np.maximum(np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) / len(x), FLOOR)
        for x in (reference, sample)
    )
    return float(((q - p) * np.log(q / p)).sum())


def independent(values: Floats) -> float:
    """How many independent values the mean of an autocorrelated series [N] is worth: N var / long-run variance.

    The long-run variance is that of Newey and West with an automatic bandwidth; from 1 to N.
    """
    variance = float(values.var())
    if not variance > 0:
        return float(len(values))
    return float(np.clip(len(values) * variance / _long_run(values), 1.0, len(values)))


def kolmogorov_smirnov(reference: Floats, sample: Floats) -> tuple[float, float]:
    """Largest distance between two empirical distribution functions, and its asymptotic p-value.

    The p-value counts independent values (see ``independent``), since bars that resemble their neighbours would make
    every difference significant.
    """
    distance = float(stats.ks_2samp(reference, sample, method="asymp").statistic)
    n, m = independent(reference), independent(sample)
    return distance, float(stats.kstwobign.sf(distance * np.sqrt(n * m / (n + m))))


@dataclass(frozen=True)
class Shift:
    """A change of level."""

    index: int
    """First value after it."""
    before: float
    """Mean before, back to the shift before."""
    after: float
    """Mean after, up to the next shift."""
    p_value: float


def level_shifts(values: Floats, least: int, level: float = 0.01) -> list[Shift]:
    """Changes of the mean of a series [N], in order, found by halving where the CUSUM is largest.

    The statistic max |sum of (x - mean)| / (sigma sqrt(N)), with sigma^2 the long-run variance around a shift at that
    place, is asymptotically the largest value of a Brownian bridge (Ploberger and Kraemer 1992), whose distribution is
    Kolmogorov's. Pieces are halved again while they are significant at ``level`` (binary segmentation, Vostrikova
    1981).

    Args:
        values: The series.
        least: Shortest piece.
        level: Probability that a piece without a shift is cut.
    """
    found: dict[int, float] = {}
    open_pieces = [(0, len(values))]
    while open_pieces:
        start, stop = open_pieces.pop()
        cut = _cut(values[start:stop], least)
        if cut is not None and cut[1] < level:
            found[start + cut[0]] = cut[1]
            open_pieces += [(start, start + cut[0]), (start + cut[0], stop)]
    places = sorted(found)
    borders = [0, *places, len(values)]
    means = [float(values[a:b].mean()) for a, b in pairwise(borders)]
    return [Shift(place, means[i], means[i + 1], found[place]) for i, place in enumerate(places)]


def _cut(values: Floats, least: int) -> tuple[int, float] | None:
    """Where the CUSUM of a piece is largest, and the p-value."""
    count = len(values)
    if count < 2 * least:
        return None
    path = np.abs(np.cumsum(values - values.mean()))[least - 1 : count - least]
    place = int(path.argmax()) + least
    rest = np.concatenate([part - part.mean() for part in (values[:place], values[place:])])
    sigma = np.sqrt(_long_run(rest))
    if not sigma > 0:
        return (place, 0.0) if path.max() > 0 else None
    return place, float(stats.kstwobign.sf(path.max() / (sigma * np.sqrt(count))))


def _long_run(values: Floats) -> float:
    """Long-run variance; a series that never moves has none."""
    if np.ptp(values) == 0:
        return 0.0
    return float(np.squeeze(Bartlett(values).cov.long_run))
