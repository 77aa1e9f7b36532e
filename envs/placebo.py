"""Prices without time: the days of real ones in another order, in which no rule can know what comes next."""

from dataclasses import replace

import numpy as np

from envs.bars import Bars, join_bars, sessions
from rayconf.keys import derive_key

LAST_DAY = 60_000
"""Days since 1970 that have a place in the order: to the year 2134."""


def shuffled_days(a: Bars, b: Bars, seed: int) -> tuple[Bars, Bars]:
    """Both legs on their common dates, their days dealt anew, alike for both and for every pair with this seed.

    What a day did relative to the close before it (gap, high, low, close, and its own volume) moves as a whole, so that
    returns, their distribution and what legs have in common within a day stay. What one day says about a later one is
    gone: momentum, reversion of the spread, clusters of volatility. First and last close stay, up to rounding.

    Args:
        a: First leg.
        b: Second leg; intraday days keep their bars in order.
        seed: Of the order of days.

    Raises:
        UserError: The two have no date in common.
    """
    a, b, _ = join_bars(a, b)
    rows = _order(a, seed)
    return dealt(a, rows), dealt(b, rows)


def _order(bars: Bars, seed: int) -> np.ndarray:
    """Bars [T - 1] that take the places 1, 2, ...; the first bar stays, for nothing comes before it."""
    place = np.random.Generator(np.random.PCG64(derive_key(seed, "placebo"))).random(LAST_DAY)
    session = sessions(bars.dates)
    day = bars.dates.astype("datetime64[D]").astype(np.int64)
    later = np.flatnonzero(session > 0)
    # Days of before 1970 take the places of as many days after it, counted back from the end.
    order = np.lexsort((later, place[day[later] % LAST_DAY]))
    within = np.flatnonzero(session == 0)[1:]
    return np.concatenate((within, later[order]))


def dealt(bars: Bars, rows: np.ndarray, factor: float = 1.0) -> Bars:
    """The same dates on which the days ``rows`` [T - 1] happen in turn, from the second on.

    A day is what its bar did relative to the close before it, in logarithms and times ``factor``, and its volume;
    ``rows`` are numbers of bars from 1.
    """
    before = np.log(bars.close[rows - 1])
    opened, high, low, closed = (
        factor * (np.log(prices[rows]) - before) for prices in (bars.open, bars.high, bars.low, bars.close)
    )
    close = np.exp(np.log(bars.close[0]) + np.concatenate(([0.0], np.cumsum(closed))))
    start = np.log(close[:-1])
    opens = np.exp(start + opened)
    # The same bar by two sums: rounding must not put its high below its close.
    highest = np.maximum.reduce([np.exp(start + high), opens, close[1:]])
    lowest = np.minimum.reduce([np.exp(start + low), opens, close[1:]])
    return replace(
        bars,
        open=np.concatenate((bars.open[:1], opens)),
        high=np.concatenate((bars.high[:1], highest)),
        low=np.concatenate((bars.low[:1], lowest)),
        close=np.concatenate((bars.close[:1], close[1:])),
        volume=np.concatenate((bars.volume[:1], bars.volume[rows])),
    )
