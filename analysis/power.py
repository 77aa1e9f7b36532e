"""What a span of given length can show: power of the paired Sharpe test, computed before any data is seen."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def difference_covariance(ratio: float, others: Sequence[float], correlations: Array) -> Array:
    """Covariance of the estimates of several Sharpe differences that share one account, times the sessions.

    For normal returns without autocorrelation (Jobson and Korkie 1981, corrected by Memmel 2003): two ratios a and b
    with correlation r of their returns have the covariance r + a b r^2 / 2. An account without variance (cash) is
    given as ratio 0 and correlation 0 with all, and its ratio is certain.

    Args:
        ratio: Sharpe ratio of the account, per session.
        others: Sharpe ratios of the baselines [K], per session.
        correlations: Correlations [K + 1, K + 1], the account first; 0 on the diagonal of one without variance.

    Returns:
        Covariance [K, K] of (account less baseline) estimates, times D.
    """
    ratios = np.array([ratio, *others], np.float64)
    joint = correlations + np.outer(ratios, ratios) * correlations**2 / 2
    loading = np.concatenate([np.ones((len(others), 1)), -np.eye(len(others))], axis=1)
    return loading @ joint @ loading.T


def _critical(level: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(1 - level / 2))


def planned_power(
    difference: float,
    sessions: int,
    *,
    correlation: float = 0.0,
    other: float = 0.0,
    cash: bool = False,
    sessions_per_year: float = 252,
    level: float = 0.05,
    pairs: int = 1,
    looks: int = 1,
) -> float:
    """Probability that a true Sharpe difference is found on a span: the 95 % interval of the difference lies above 0.

    Args:
        difference: True difference, per year.
        sessions: Length of the span.
        correlation: Of the two accounts' session returns; without meaning against cash.
        other: True Sharpe ratio of the other account, per year.
        cash: The other account is cash, whose ratio of 0 is certain.
        sessions_per_year: Sessions per year.
        level: Two-sided level.
        pairs: Pairs of the run; the level is divided by them, the worst case of Holm's procedure.
        looks: Looks at the test span; the level is divided by them.
    """
    from scipy.special import ndtr

    year = math.sqrt(sessions_per_year)
    correlations = np.array([[1.0, 0.0], [0.0, 0.0]]) if cash else np.array([[1.0, correlation], [correlation, 1.0]])
    base = 0.0 if cash else other / year
    variance = float(difference_covariance(base + difference / year, [base], correlations)[0, 0])
    error = math.sqrt(variance / sessions)
    return float(ndtr(difference / year / error - _critical(level / pairs / looks)))


def detectable_difference(
    sessions: int,
    *,
    power: float = 0.8,
    correlation: float = 0.0,
    other: float = 0.0,
    cash: bool = False,
    sessions_per_year: float = 252,
    level: float = 0.05,
    pairs: int = 1,
    looks: int = 1,
) -> float:
    """Smallest true Sharpe difference per year that is found with the given power; arguments as ``planned_power``."""
    from scipy.optimize import brentq

    def short_of(difference: float) -> float:
        found = planned_power(
            difference, sessions, correlation=correlation, other=other, cash=cash,
            sessions_per_year=sessions_per_year, level=level, pairs=pairs, looks=looks,
        )  # fmt: skip
        return found - power

    return float(brentq(short_of, 0.0, 1000.0, xtol=1e-6))


def planned_claim_power(
    ratio: float,
    others: Sequence[float],
    correlations: Array,
    sessions: int,
    *,
    validation_sessions: int | None = None,
    sessions_per_year: float = 252,
    level: float = 0.05,
    deflated: float = 0.95,
    benchmark: float = 0.0,
    pairs: int = 1,
    looks: int = 1,
) -> float:
    """Probability of the claim ``above``: all baselines beaten on test, and the deflated Sharpe ratio reached.

    Test and validation are different spans, so their probabilities multiply; the statistics on test are jointly
    normal, since they share the account.

    Args:
        ratio: True Sharpe ratio of the headline, per year.
        others: True Sharpe ratios of the baselines [K], per year; 0 for cash.
        correlations: As ``difference_covariance`` takes them.
        sessions: Length of the test span.
        validation_sessions: Length of validation; None leaves the deflated Sharpe ratio out.
        sessions_per_year: Sessions per year.
        level: Two-sided level of every paired test.
        deflated: Deflated Sharpe ratio to reach.
        benchmark: Expected maximum of the trials' Sharpe ratios without skill, per year.
        pairs: Pairs of the run.
        looks: Looks at the test span.
    """
    from scipy.special import ndtr, ndtri
    from scipy.stats import multivariate_normal

    year = math.sqrt(sessions_per_year)
    covariance = difference_covariance(ratio / year, [other / year for other in others], correlations) / sessions
    errors = np.sqrt(np.diag(covariance))
    centre = (ratio - np.asarray(others, np.float64)) / year / errors - _critical(level / pairs / looks)
    joint = covariance / np.outer(errors, errors)
    found = float(multivariate_normal(np.zeros(len(centre)), joint, allow_singular=True, seed=0).cdf(centre))
    if validation_sessions is not None:
        spread = math.sqrt((1 + (ratio / year) ** 2 / 2) / (validation_sessions - 1))
        found *= float(ndtr((ratio - benchmark) / year / spread - ndtri(deflated)))
    return found
