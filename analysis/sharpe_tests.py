"""How sure a Sharpe ratio is: probabilistic and deflated Sharpe ratio, track record, effective number of trials.

Sharpe ratios in this module are per session unless a name says otherwise, since the formulae are.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.bootstrap import DEGENERATE, FEWEST
from analysis.metrics import is_flat, sharpe

Array = NDArray[np.float64]

CUT = 0.5
"""Streams whose average correlation is above 1 - CUT belong to one cluster."""
MOST_CLUSTERED = 2000
"""Streams beyond this number are thinned evenly before clustering, whose cost grows with their square."""


def shape(returns: Array) -> tuple[float, float]:
    """Skewness and kurtosis (3 for a normal distribution) of session returns [D], population moments."""
    if is_flat(returns):
        return 0.0, 3.0
    z = (returns - returns.mean()) / returns.std()
    return float(np.mean(z**3)), float(np.mean(z**4))


def sharpe_variance(ratio: float, skewness: float = 0.0, kurtosis: float = 3.0) -> float:
    """Variance of a Sharpe ratio's estimate times the number of sessions, less one, per session (Mertens 2002)."""
    return 1 - skewness * ratio + (kurtosis - 1) / 4 * ratio**2


def probabilistic_sharpe_ratio(
    ratio: float, benchmark: float, sessions: int, skewness: float = 0.0, kurtosis: float = 3.0
) -> float:
    """Probability that the true Sharpe ratio exceeds a benchmark (Bailey and Lopez de Prado 2012, eq. 11).

    Args:
        ratio: Sharpe ratio seen, per session.
        benchmark: Sharpe ratio to exceed, per session.
        sessions: Sessions seen, two at least.
        skewness: Skewness of the returns.
        kurtosis: Kurtosis of the returns, 3 if they are normal.
    """
    from scipy.special import ndtr

    variance = max(sharpe_variance(ratio, skewness, kurtosis), DEGENERATE)
    return float(ndtr((ratio - benchmark) * math.sqrt(sessions - 1) / math.sqrt(variance)))


def minimum_track_record(
    ratio: float, benchmark: float = 0.0, skewness: float = 0.0, kurtosis: float = 3.0, confidence: float = 0.95
) -> float | None:
    """Sessions needed until the Sharpe ratio seen differs from a benchmark (Bailey and Lopez de Prado 2012, eq. 14).

    Args:
        ratio: Sharpe ratio seen, per session.
        benchmark: Sharpe ratio to exceed, per session.
        skewness: Skewness of the returns.
        kurtosis: Kurtosis of the returns.
        confidence: Confidence wanted, one-sided.

    Returns:
        Sessions, or None where the ratio does not exceed the benchmark: no length would do.
    """
    from scipy.special import ndtri

    if ratio <= benchmark:
        return None
    variance = max(sharpe_variance(ratio, skewness, kurtosis), DEGENERATE)
    return float(1 + variance * (ndtri(confidence) / (ratio - benchmark)) ** 2)


def expected_maximum(trials: int, variance: float) -> float:
    """Largest Sharpe ratio to expect from trials without skill (Bailey and Lopez de Prado 2014, eq. 1).

    Args:
        trials: Independent trials; 1 gives 0.
        variance: Variance of the Sharpe ratio across trials, in the unit of the result squared.
    """
    from scipy.special import ndtri

    if trials <= 1:
        return 0.0
    tail = np.euler_gamma * ndtri(1 - 1 / (trials * math.e)) + (1 - np.euler_gamma) * ndtri(1 - 1 / trials)
    return float(math.sqrt(variance) * tail)


def deflated_sharpe_ratio(returns: Array, benchmark: float) -> float | None:
    """Probability that the true Sharpe ratio of a selected stream is positive (Bailey and Lopez de Prado 2014).

    Args:
        returns: Session returns [D] on the span that selection saw.
        benchmark: ``expected_maximum`` of the trials that it was selected from, per session.

    Returns:
        The probability; None under 20 sessions. 0.5 for a stream without variance and without trials to beat.
    """
    if returns.size < FEWEST:
        return None
    return probabilistic_sharpe_ratio(sharpe(returns, 1), benchmark, returns.size, *shape(returns))


def clusters(streams: Array, cut: float = CUT) -> NDArray[np.int64]:
    """Cluster of each stream, from 1: average linkage on 1 - correlation, cut at ``cut``.

    Args:
        streams: Session returns [D, N]; a stream without variance correlates with none, and all such are one cluster.
        cut: Average distance at which clusters stop merging.

    Returns:
        Labels [N].
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    count = streams.shape[1]
    if count < 2:
        return np.ones(count, np.int64)
    moving = streams.std(axis=0) > 0
    z = np.where(moving, (streams - streams.mean(axis=0)) / np.where(moving, streams.std(axis=0), 1.0), 0.0)
    distance = 1 - z.T @ z / len(z)
    flat = ~moving
    distance[np.ix_(flat, flat)] = 0.0
    # Rounded, so that the last bits of a product of matrices decide no cut.
    condensed = np.round(np.clip(distance[np.triu_indices(count, 1)], 0.0, 2.0), 9)
    return fcluster(linkage(condensed, "average"), cut, "distance").astype(np.int64)


def representatives(streams: Array, labels: NDArray[np.int64]) -> list[int]:
    """The stream that stands for each cluster: the one nearest to the cluster's mean stream.

    Args:
        streams: Session returns [D, N].
        labels: Cluster of each [N].

    Returns:
        Column of each representative, in the order of the labels.
    """
    found = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        spread = streams[:, own].std(axis=0)
        z = (streams[:, own] - streams[:, own].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        nearness = np.round((z * z.mean(axis=1, keepdims=True)).sum(axis=0) / len(z), 9)
        found.append(int(own[np.argmax(nearness)]))
    return found


def within_clusters(streams: Array, labels: NDArray[np.int64]) -> float:
    """Largest Sharpe ratio by which luck alone sets the best stream of a cluster above the cluster, per session.

    Streams of one cluster with average correlation r and equal skill have estimates that spread by (1 - r) / D around
    the cluster's; the best of n is expected the ``expected_maximum`` of that above it. 0 for clusters of one stream and
    for exact copies. Without it the best of 50 streams correlated 0.6, a single cluster, would count as one trial.

    Args:
        streams: Session returns [D, N].
        labels: Cluster of each [N].
    """
    found = 0.0
    for label in np.unique(labels):
        own = streams[:, labels == label]
        spread = own.std(axis=0)
        count = own.shape[1]
        if count < 2 or not spread.all():
            continue
        z = (own - own.mean(axis=0)) / spread
        # The mean of all correlations, the streams' own among them, is the variance of the mean stream.
        correlation = (count * float(np.mean(z.mean(axis=1) ** 2)) - 1) / (count - 1)
        found = max(found, expected_maximum(count, max(1 - correlation, 0.0) / len(streams)))
    return found


def selection_benchmark(streams: Array) -> tuple[float, int]:
    """The Sharpe ratio that luck alone would show the best of these trials, and their effective number.

    Effective trials are clusters, and the variance is that across their representatives: near copies of one policy
    would understate it. Two clusters or more never count as spread less than the sampling error of a Sharpe ratio,
    which the variance of a few could miss. What choice among the streams of one cluster adds (``within_clusters``)
    is independent of it and joins in quadrature; with a single trial the benchmark is 0.

    Args:
        streams: Session returns [D, N] of every trial that selection saw.

    Returns:
        Benchmark per session for ``deflated_sharpe_ratio``, and the number of clusters.
    """
    count = streams.shape[1]
    if count > MOST_CLUSTERED:
        streams = streams[:, np.unique(np.linspace(0, count - 1, MOST_CLUSTERED).round().astype(int))]
    labels = clusters(streams)
    chosen = representatives(streams, labels)
    ratios: Sequence[float] = [sharpe(streams[:, column], 1) for column in chosen]
    variance = max(float(np.var(ratios, ddof=1)), 1 / len(streams)) if len(ratios) > 1 else 0.0
    return math.hypot(expected_maximum(len(ratios), variance), within_clusters(streams, labels)), len(ratios)
