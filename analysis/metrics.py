"""Performance metrics: every column of ``summary`` as a pure function of arrays.

Conventions: returns are simple, standard deviations are of the population (ddof 0), there is no
risk-free rate, and ``sessions_per_year`` (252, or 365 for a market that never closes) annualises.
Intraday bars are compounded to sessions before anything else. The definitions follow Bacon,
*Practical Portfolio Performance Measurement and Attribution* (2008), unless a function says otherwise.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

METRICS = (
    "days",
    "avg_daily_return",
    "annualized_return",
    "cumulative_return",
    "final_value",
    "annualised_sharpe",
    "avg_turnover",
    "max_drawdown",
    "cagr",
    "volatility",
    "sortino",
    "calmar",
    "cvar_95",
    "gross_exposure",
    "cost_paid",
    "alpha",
    "beta",
    "sharpe_ci_low",
    "sharpe_ci_high",
    "deflated_sharpe",
)

# A standard deviation this small against the largest return is rounding of a constant stream.
FLAT = 1e-12


def session_starts(dates: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Index of the first bar of each session (calendar day of the bar's label) in ascending dates [T]."""
    days = np.asarray(dates, "datetime64[us]").astype("datetime64[D]")
    if days.size == 0:
        return np.empty(0, np.int64)
    return np.concatenate([[0], np.flatnonzero(days[1:] != days[:-1]) + 1])


def session_returns(net_return: Array, dates: NDArray[np.datetime64]) -> tuple[Array, NDArray[np.datetime64]]:
    """Returns compounded to sessions, and the session days: the equity after each day's last bar.

    Args:
        net_return: Simple return per bar [T], fraction of equity.
        dates: Label of each bar [T], ascending.

    Returns:
        Simple return per session [D] and the day of each [D]. Daily bars come back unchanged.
    """
    starts = session_starts(dates)
    days = np.asarray(dates, "datetime64[us]").astype("datetime64[D]")[starts]
    values = np.asarray(net_return, np.float64)
    if len(starts) == len(values):
        return values.copy(), days
    return np.multiply.reduceat(1 + values, starts) - 1, days


def is_flat(returns: Array) -> bool:
    """Whether returns [D] have no variance beyond rounding (cash, or an empty stream)."""
    return returns.size == 0 or bool(returns.std() <= FLAT * np.abs(returns).max())


def sharpe(returns: Array, sessions_per_year: float = 252) -> float:
    """Annualised Sharpe ratio of session returns [D] (Sharpe 1994, zero benchmark); 0 without variance."""
    if is_flat(returns):
        return 0.0
    return float(math.sqrt(sessions_per_year) * returns.mean() / returns.std())


def volatility(returns: Array, sessions_per_year: float = 252) -> float:
    """Annualised population standard deviation of session returns [D]."""
    return 0.0 if is_flat(returns) else float(math.sqrt(sessions_per_year) * returns.std())


def sortino(returns: Array, sessions_per_year: float = 252) -> float | None:
    """Annualised mean over downside deviation (Sortino and van der Meer 1991, target 0).

    Returns:
        0 for a stream of zeros; None where no session lost, since the ratio is then unbounded.
    """
    if returns.size == 0 or not np.any(returns):
        return 0.0
    downside = math.sqrt(float(np.mean(np.minimum(returns, 0) ** 2)))
    if downside == 0:
        return None
    return float(math.sqrt(sessions_per_year) * returns.mean() / downside)


def equity_curve(returns: Array) -> Array:
    """Equity [D + 1] from 1.0, the initial value included."""
    return np.concatenate([[1.0], np.cumprod(1 + np.asarray(returns, np.float64))])


def max_drawdown(returns: Array) -> float:
    """Deepest fall of equity below its running maximum, from -1 to 0; the initial value counts as a peak."""
    equity = equity_curve(returns)
    return float(np.min(equity / np.maximum.accumulate(equity) - 1))


def annualized_return(returns: Array, sessions_per_year: float = 252) -> float:
    """``(1 + mean)^252 - 1``, as the original log printed it: not what an account earned, see ``cagr``."""
    return float((1 + returns.mean()) ** sessions_per_year - 1) if returns.size else 0.0


def cagr(returns: Array, sessions_per_year: float = 252) -> float:
    """Compound annual growth of the equity curve; -1 after a total loss."""
    if returns.size == 0:
        return 0.0
    final = float(np.prod(1 + returns))
    return final ** (sessions_per_year / returns.size) - 1 if final > 0 else -1.0


def calmar(returns: Array, sessions_per_year: float = 252) -> float | None:
    """``cagr`` over the absolute maximum drawdown (Young 1991); 0 for a flat account, None for one that never fell."""
    depth = -max_drawdown(returns)
    growth = cagr(returns, sessions_per_year)
    if depth == 0:
        return 0.0 if growth == 0 else None
    return growth / depth


def cvar(returns: Array, level: float = 0.95) -> float:
    """Mean of the worst ``1 - level`` of session returns [D], historical; usually negative.

    The order statistics up to index ``floor((D - 1)(1 - level))`` count, so one session at least
    (Rockafellar and Uryasev 2000).
    """
    if returns.size == 0:
        return 0.0
    count = int((returns.size - 1) * (1 - level)) + 1
    return float(np.partition(returns, count - 1)[:count].mean())


def alpha_beta(returns: Array, benchmark: Array, sessions_per_year: float = 252) -> tuple[float, float]:
    """Ordinary least squares of session returns [D] on a benchmark's [D].

    Returns:
        The intercept times ``sessions_per_year`` (per year, arithmetic) and the slope; on a benchmark
        without variance the slope is 0 and the intercept the mean.
    """
    if is_flat(benchmark):
        return float(returns.mean() * sessions_per_year) if returns.size else 0.0, 0.0
    centred = benchmark - benchmark.mean()
    # Sums and not dot products: those are split over threads, and the last bits would follow their number.
    slope = float(np.sum(centred * (returns - returns.mean())) / np.sum(centred**2))
    return float((returns.mean() - slope * benchmark.mean()) * sessions_per_year), slope
