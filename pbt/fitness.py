"""What selection may look at: validation returns under the run's real costs, never the shaped reward.

Specifications: one continuous account from cash over validation; the floored Sharpe ratio
S(x) = sqrt(P) * mean / sqrt(var + s0^2 / P) of session returns x (P sessions per year, s0 a volatility per
year), as the median over rolling windows less one circular-block-bootstrap standard error (Politis and
Romano 1992) of S over the whole span.

Of a policy that trades several pairs, an account each, S is the mean over the accounts, in every window and in every
resample. A resample draws the same sessions of all accounts, so that the error of the mean knows what they share.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

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


@dataclass(frozen=True)
class Account:
    """One continuous validation account."""

    net_return: np.ndarray
    """[K] simple net returns per bar."""
    gross: np.ndarray
    """[K] gross exposure held."""
    dates: np.ndarray
    """[K] label of each bar."""
    per_year: float
    """Sessions per year."""
    ruined: bool
    over: np.ndarray | None = None
    """[K] net returns of another account on the same bars, which fitness is measured over; None: cash, whose statistic
    is 0."""

    @property
    def broken(self) -> bool:
        """Whether it was ruined or is not finite."""
        return self.ruined or not np.isfinite(self.net_return).all()

    @property
    def idle(self) -> bool:
        """Whether it held next to nothing."""
        return bool(np.mean(self.gross) < IDLE_GROSS)


class Calendar:
    """The sessions that some accounts have in common, S of them, from the first such to the last.

    What an account earned between two of them, on a day when another market was closed, is compounded into the later
    one, so that no return is lost.

    Args:
        dates: Label of each bar [K] of every account.
        per_year: Sessions per year of every account; those in common are as many as the fewest.
    """

    def __init__(self, dates: Sequence[np.ndarray], per_year: Sequence[float]) -> None:
        self._dates = dates
        days = [np.unique(np.asarray(own, "datetime64[us]").astype("datetime64[D]")) for own in dates]
        self._days: np.ndarray = reduce(np.intersect1d, days)
        self.per_year = min(per_year)

    def __len__(self) -> int:
        return len(self._days)

    def returns(self, streams: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Simple returns per common session [S] of net returns per bar [K], one stream of every account."""
        return [self._on_days(*session_returns(own, dates)) for own, dates in zip(streams, self._dates, strict=True)]

    def _on_days(self, returns: np.ndarray, days: np.ndarray) -> np.ndarray:
        if len(days) == len(self._days):
            return returns
        within = (days >= self._days[0]) & (days <= self._days[-1])
        after = np.searchsorted(days[within], self._days[:-1], side="right")
        return np.multiply.reduceat(1 + returns[within], [0, *after]) - 1


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
    return evaluate_each([Account(net_return, gross, dates, per_year, ruined, over)], pbt, *key)


def evaluate_each(accounts: Sequence[Account], pbt: PBTConfig, *key: object) -> Fitness:
    """Fitness of a policy from its accounts on several pairs, all of them over another account or none.

    It is broken where one of its accounts is, and idle where all of them are.

    Args:
        accounts: One per pair.
        pbt: Metric, windows and bootstrap.
        key: What seeds the bootstrap: (seed, pair that the population trains under, generation).
    """
    idle = all(account.idle for account in accounts)
    if any(account.broken for account in accounts):
        return Fitness(BROKEN, 0.0, True, idle, 0)
    calendar = Calendar([account.dates for account in accounts], [account.per_year for account in accounts])
    sample = Resampler(len(calendar), pbt, *key)
    starts = window_starts(len(calendar), pbt)
    of = pooled_scores if len(starts) < FEW_WINDOWS or pbt.fitness == "growth" else windowed_scores
    streams = calendar.returns([account.net_return for account in accounts])
    scores = [sample.scores(returns, calendar.per_year) for returns in streams]
    values = [of(returns, calendar.per_year, pbt) for returns in streams]
    over = [account.over for account in accounts if account.over is not None]
    if over:
        others = calendar.returns(over)
        scores = [own - sample.scores(other, calendar.per_year) for own, other in zip(scores, others, strict=True)]
        values = [own - of(other, calendar.per_year, pbt) for own, other in zip(values, others, strict=True)]
    se, value = float(np.mean(scores, axis=0).std(ddof=1)), float(np.median(np.mean(values, axis=0)))
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
    donor: Sequence[np.ndarray], member: Sequence[np.ndarray], calendar: Calendar, pbt: PBTConfig, *key: object
) -> Gap:
    """Gap of the pooled statistic, donor less member, with its paired bootstrap standard error; its mean over accounts.

    Both are net returns [K] per bar of every account of ``calendar``, on the same bars; the same resamples serve all of
    them, so what donor and member share cancels and what accounts share does not.
    """
    per_year = calendar.per_year
    pairs = list(zip(calendar.returns(donor), calendar.returns(member), strict=True))
    sample = Resampler(len(calendar), pbt, *key)
    spread = [sample.scores(d, per_year) - sample.scores(m, per_year) for d, m in pairs]
    values = [pooled_score(d, per_year, pbt) - pooled_score(m, per_year, pbt) for d, m in pairs]
    return Gap(float(np.mean(values)), float(np.mean(spread, axis=0).std(ddof=1)))
