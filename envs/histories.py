"""Histories that never were: a training span resampled and, on request, louder or calmer, coarser, or seen late."""

from dataclasses import replace

import numpy as np

from envs.bars import Bars, is_intraday, join_bars, sessions
from envs.market import MIN_TRAIN_BARS, Borders, PairMarket, build_market
from envs.placebo import dealt
from rayconf.keys import derive_key
from rayconf.run_config import RunConfig


def histories(market: PairMarket, a: Bars, b: Bars, run: RunConfig, borders: Borders) -> list[PairMarket]:
    """Markets of resampled training spans: the stationary bootstrap (Politis and Romano 1994) of the days of both legs.

    What both legs did on a day stays together, and so do ``augment.block`` days in a row on average. Each history then
    draws its volatility, its temporal aggregation and its lag, see ``AugmentConfig``. No bar from the border of
    validation on is read. Features have the scale of the market itself.
    """
    a, b, _ = join_bars(a.before(borders.validation), b.before(borders.validation))
    return [_history(market, a, b, run, borders, number) for number in range(run.augment.histories)]


def _history(market: PairMarket, a: Bars, b: Bars, run: RunConfig, borders: Borders, number: int) -> PairMarket:
    augment = run.augment

    def stream(*purpose: str) -> np.random.Generator:
        return np.random.default_rng(derive_key(run.seed, market.pair, "history", number, *purpose))

    rows = 1 + stationary_rows(stream(), len(a) - 1, augment.block)
    factor = log_uniform(stream("volatility"), 1 / augment.volatility, augment.volatility)
    a, b = dealt(a, rows, factor), dealt(b, rows, factor)
    draw = stream("aggregation")
    length = log_uniform(draw, 1.0, min(augment.aggregation, longest_aggregate(a, run)))
    if length > 1:
        starts = aggregate_starts(draw, a, length)
        # As many years in fewer bars; a prior's volatility is annualised by this.
        per_year = market.bars_per_year * len(starts) / len(a)
        a, b = (aggregated(leg, starts, run.data.fill) for leg in (a, b))
        run = run.model_copy(update={"data": run.data.model_copy(update={"bars_per_year": per_year})})
    made = build_market(market.pair, a, b, run, borders, market.scaler)
    return delayed(made, int(stream("lag").integers(augment.lags + 1)))


def stationary_rows(rng: np.random.Generator, count: int, block: float) -> np.ndarray:
    """[count] row numbers: runs of neighbours, circular, of geometric length with mean ``block``."""
    fresh = rng.random(count) < 1 / block
    fresh[0] = True
    begun = np.maximum.accumulate(np.where(fresh, np.arange(count), 0))
    return (rng.integers(count, size=count)[begun] + np.arange(count) - begun) % count


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform between those of the two; 1 exactly where both are."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def longest_aggregate(bars: Bars, run: RunConfig) -> float:
    """Mean bars that may be joined into one, 1 or more: a training span stays one, and intraday bars stay intraday."""
    longest = len(bars) / (run.split.burn + MIN_TRAIN_BARS + 1)
    if is_intraday(bars.dates):
        longest = min(longest, float(np.median(np.bincount(sessions(bars.dates)))) / 2)
    return max(1.0, longest)


def aggregate_starts(rng: np.random.Generator, bars: Bars, length: float) -> np.ndarray:
    """[N] first bars of runs of ``length`` bars on average, each the whole number below or above it at random.

    At random, so that no rhythm tells how long the next one is. Runs of intraday bars also end with their session.
    """
    runs = int(length) + (rng.random(len(bars)) < length % 1)
    starts = np.concatenate(([0], np.cumsum(runs)))
    starts = starts[starts < len(bars)]
    if is_intraday(bars.dates):
        opens = np.flatnonzero(np.diff(sessions(bars.dates), prepend=-1))
        starts = np.union1d(starts, opens)
    return starts


def aggregated(bars: Bars, starts: np.ndarray, fill: str) -> Bars:
    """Bars of several in a row, exactly as they would have been recorded.

    Args:
        bars: T bars.
        starts: [N] first bar of each run, ascending from 0.
        fill: ``data.fill``. A run has the date of its first bar, or of its last where orders fill at closes, so that
            the time between two dates is the time between two fills.
    """
    ends = np.append(starts[1:], len(bars)) - 1
    # A constant is no volume, see ``envs.bars``: it stays one.
    traded = np.add.reduceat(bars.volume, starts) if np.ptp(bars.volume) else bars.volume[starts]
    return Bars(
        bars.ticker,
        bars.dates[starts if fill == "open" else ends],
        bars.open[starts],
        np.maximum.reduceat(bars.high, starts),
        np.minimum.reduceat(bars.low, starts),
        bars.close[ends],
        traded,
    )


def delayed(market: PairMarket, bars: int) -> PairMarket:
    """The market whose features, a prior among them, are those of ``bars`` bars earlier.

    What a policy makes of the features at bar t then fills at bar t + bars + lag of the market that it read them from:
    it trades with ``bars`` more of lag, but for the account, which it sees as it is.
    """
    features = np.zeros_like(market.features)
    features[bars:] = market.features[: len(features) - bars]
    return replace(market, features=features)
