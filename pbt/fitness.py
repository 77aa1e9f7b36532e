"""What selection may look at: validation returns under the run's real costs, never the shaped reward.

Specifications: one continuous account from cash over validation; the floored Sharpe ratio
S(x) = sqrt(P) * mean / sqrt(var + s0^2 / P) of session returns x (P sessions per year, s0 a volatility per
year), as the median over rolling windows less one circular-block-bootstrap standard error (Politis and
Romano 1992) of S over the whole span.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from analysis.bootstrap import block_length, block_starts, block_sums
from analysis.metrics import session_returns
from analysis.verdict import IDLE_GROSS
from rayconf.keys import derive_key
from rayconf.sections import PBTConfig

BROKEN = -10.0
"""Fitness of a ruined, lost or non-finite account: never a donor, never archived, replaced without gate."""
FEW_WINDOWS = 5
"""With fewer rolling windows the pooled statistic takes the place of their median."""
MIN_SE = 1e-9


@dataclass(frozen=True)
class Fitness:
    """Fitness of one evaluation."""

    value: float
    se: float
    broken: bool
    idle: bool
    windows: int


def floored_sharpe(mean: np.ndarray, var: np.ndarray, per_year: float, floor: float) -> np.ndarray:
    """Floored Sharpe ratio of population moments per session; exactly 0 for cash."""
    deviation = np.sqrt(np.maximum(var, 0) + floor**2 / per_year)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(deviation > 0, math.sqrt(per_year) * mean / deviation, 0.0)


def _score(mean: np.ndarray, var: np.ndarray, per_year: float, pbt: PBTConfig) -> np.ndarray:
    if pbt.fitness == "growth":
        return per_year * mean
    return floored_sharpe(mean, var, per_year, pbt.floor_volatility)


def _values(returns: np.ndarray, pbt: PBTConfig) -> np.ndarray:
    return np.log(np.maximum(1 + returns, 1e-12)) if pbt.fitness == "growth" else returns


class Resampler:
    """The circular block bootstrap of one (seed, pair, generation): the same resamples serve every member."""

    def __init__(self, sessions: int, pbt: PBTConfig, *key: object) -> None:
        self._pbt, self._sessions = pbt, sessions
        self._block = block_length(sessions, pbt.block)
        self._starts = block_starts(sessions, self._block, pbt.bootstrap, derive_key(*key))

    def scores(self, returns: np.ndarray, per_year: float) -> np.ndarray:
        """The fitness statistic of session returns [S], pooled over the span, in every resample [B]."""
        values = _values(returns, self._pbt)
        mean = self._mean(values)
        return _score(mean, self._mean(values**2) - mean**2, per_year, self._pbt)

    def _mean(self, values: np.ndarray) -> np.ndarray:
        return block_sums(values, self._starts, self._block) / self._sessions


def pooled_scores(returns: np.ndarray, per_year: float, pbt: PBTConfig) -> np.ndarray:
    """The fitness statistic over all sessions [S], [1]."""
    values = _values(returns, pbt)
    return np.atleast_1d(_score(values.mean(), values.var(), per_year, pbt))


def windowed_scores(returns: np.ndarray, per_year: float, pbt: PBTConfig) -> np.ndarray:
    """The fitness statistic in every rolling window of sessions [S]; of Sharpe ratios, as windows are for no other."""
    windows = sliding_window_view(returns, pbt.window)[:: pbt.window_step]
    return _score(windows.mean(axis=1), windows.var(axis=1), per_year, pbt)


def pooled_score(returns: np.ndarray, per_year: float, pbt: PBTConfig) -> float:
    """The fitness statistic over all sessions [S], without windows or standard error."""
    return float(pooled_scores(returns, per_year, pbt)[0])


def smoothed(history: Sequence[float], past: float) -> float:
    """Exponential mean of a fitness history, oldest first, that gives the past the weight ``past`` at every step."""
    score = history[0]
    for value in history[1:]:
        score = past * score + (1 - past) * value
    return score


def window_starts(sessions: int, pbt: PBTConfig) -> range:
    """First session of every rolling window that fits into the span."""
    return range(0, sessions - pbt.window + 1, pbt.window_step)


def evaluate(
    net_return: np.ndarray,
    gross: np.ndarray,
    dates: np.ndarray,
    per_year: float,
    ruined: bool,
    pbt: PBTConfig,
    *key: object,
    over: np.ndarray | None = None,
) -> Fitness:
    """Fitness of one continuous validation account.

    Over another account, e.g. that of the prior, it is what the statistic gains: in every window the difference of
    both, less the standard error of the paired difference, in which what they share cancels. An account equal to the
    other has exactly 0.

    Args:
        net_return: [K] simple net returns per bar.
        gross: [K] gross exposure held.
        dates: [K] label of each bar.
        per_year: Sessions per year.
        ruined: Whether the account was ruined.
        pbt: Metric, windows and bootstrap.
        key: What seeds the bootstrap: (seed, pair, generation).
        over: [K] net returns of that other account on the same bars; None: cash, whose statistic is 0.
    """
    idle = bool(np.mean(gross) < IDLE_GROSS)
    if ruined or not np.isfinite(net_return).all():
        return Fitness(BROKEN, 0.0, True, idle, 0)
    returns, _ = session_returns(net_return, dates)
    sample = Resampler(len(returns), pbt, *key)
    scores = sample.scores(returns, per_year)
    starts = window_starts(len(returns), pbt)
    of = pooled_scores if len(starts) < FEW_WINDOWS or pbt.fitness == "growth" else windowed_scores
    values = of(returns, per_year, pbt)
    if over is not None:
        other, _ = session_returns(over, dates)
        scores, values = scores - sample.scores(other, per_year), values - of(other, per_year, pbt)
    se, value = float(scores.std(ddof=1)), float(np.median(values))
    return Fitness(value - se, se, False, idle, len(starts))


@dataclass(frozen=True)
class Gap:
    """Paired difference of two members on the same validation sessions."""

    value: float
    se: float

    def exceeds(self, z: float) -> bool:
        """Whether the gap is real: more than z standard errors, of a standard error that is not nil."""
        return self.se > MIN_SE and self.value > z * self.se


def paired_gap(
    donor: np.ndarray, member: np.ndarray, dates: np.ndarray, per_year: float, pbt: PBTConfig, *key: object
) -> Gap:
    """Gap of the pooled statistic, donor less member, with its paired bootstrap standard error.

    Both series are net returns [K] on the same bars; the same resamples serve both, so what they share cancels.
    """
    d, m = (session_returns(stream, dates)[0] for stream in (donor, member))
    sample = Resampler(len(d), pbt, *key)
    spread = sample.scores(d, per_year) - sample.scores(m, per_year)
    return Gap(pooled_score(d, per_year, pbt) - pooled_score(m, per_year, pbt), float(spread.std(ddof=1)))
