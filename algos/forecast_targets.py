"""What pre-training forecasts: returns and volatility after the fill of a decision, for both legs and the spread.

A decision at the close of bar t fills at bar t + lag, so a target is made of fills from t + lag on. What it is measured
in, the trailing volatility, is made of fills up to bar t. Every fill lies in the training span.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.market import Span
from envs.training_bars import TrainingBars

VOLATILITY_BARS = 21
"""Fills that trailing and future volatility are made of."""
LIMIT = 10.0
"""Bound on a target: after flat prices a small move is many times the volatility."""
FLOOR = 1e-6
"""Smallest volatility per bar, far below that of anything traded."""
HELD_OUT = 0.15
"""Share of the bars, the last, that only measure: the internal split of a training span."""
SERIES = ("a", "b", "spread")


@dataclass(frozen=True)
class Targets:
    """N decision bars with K targets each."""

    names: tuple[str, ...]
    """Of the targets: ``a_return_5``, ``spread_volatility``, ..."""
    rows: np.ndarray
    """[N] int64 rows of ``TrainingBars``."""
    dates: np.ndarray
    """[N] datetime64[us] of the decision bars."""
    ends: np.ndarray
    """[N] datetime64[us] of the last bar that a target of the decision may be made of."""
    values: np.ndarray
    """[N, K] float32; NaN where the target's last fill would lie beyond the training span."""

    @property
    def border(self) -> np.datetime64:
        """First date of the internal split, common to all markets, so that no market tells what another holds out."""
        return np.sort(self.dates)[int(len(self.dates) * (1 - HELD_OUT))]

    def split(self, border: np.datetime64) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the decisions to fit and of those held out; no bar of a fitted target lies beyond the border."""
        return np.flatnonzero(self.ends < border), np.flatnonzero(self.dates >= border)


def build_targets(bars: TrainingBars, lag: int, horizons: Sequence[int], window: int) -> Targets:
    """Targets of every decision bar whose window of features and trailing volatility lie in its own market.

    Where ``bars`` says that decisions open later, no bar from there on is read: they are the policies'. Resampled
    histories are left out: they hold days of the internal split.

    Args:
        bars: Training spans.
        lag: Bars from the decision to the fill.
        horizons: Bars after the fill, rising.
        window: Bars that the encoder reads, the decision bar included.
    """
    kept = [bars.pairs[:m].count(pair) == 0 for m, pair in enumerate(bars.pairs)]
    markets = [both for both, real in zip(zip(bars.blocks, bars.spans, strict=True), kept, strict=True) if real]
    parts = [_of_market(bars, block, span, lag, horizons, window) for block, span in markets]
    names = [*(f"{side}_return_{h}" for h in horizons for side in SERIES), *(f"{side}_volatility" for side in SERIES)]
    rows, ends, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Targets(tuple(names), rows, bars.dates[rows], bars.dates[ends], values)


def _of_market(
    bars: TrainingBars, block: Span, span: Span, lag: int, horizons: Sequence[int], window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [N] of the decisions of one market, of the last bar that a target may need, and targets [N, K]."""
    stop = span.stop
    if bars.opens is not None:
        stop = max(block.start + 1, block.start + int(np.searchsorted(bars.dates[slice(*block)], bars.opens)))
    legs = np.log1p(bars.steps[block.start : stop - 1, :2])
    steps = np.column_stack((legs, legs[:, 0] - legs[:, 1]))  # row i: from the fill at bar i to the next
    total, squares = (np.vstack((np.zeros(3), np.cumsum(x, axis=0))) for x in (steps, steps**2))
    count, past = len(steps), VOLATILITY_BARS
    first = max(past, window - 1, span.start - block.start - lag)
    bar = np.arange(first, max(first, count - lag))  # decisions, counted from the block's first row
    volatility = _root(squares[bar] - squares[bar - past], past)
    fill, columns = bar + lag, []
    for horizon in horizons:
        moved = _ahead(total, fill, horizon)
        columns.append(np.clip(moved / (volatility * np.sqrt(horizon)), -LIMIT, LIMIT))
    ahead = _root(_ahead(squares, fill, past), past)
    columns.append(np.clip(np.log(ahead / volatility), -LIMIT, LIMIT))
    last = np.minimum(fill + max(*horizons, past), count)
    return bar + block.start, last + block.start, np.hstack(columns).astype(np.float32)


def _ahead(total: np.ndarray, fill: np.ndarray, horizon: int) -> np.ndarray:
    """[N, 3] sums of the ``horizon`` steps from each fill on; NaN where the span ends before."""
    inside = fill + horizon < len(total)
    found = np.full((len(fill), total.shape[1]), np.nan)
    found[inside] = total[fill[inside] + horizon] - total[fill[inside]]
    return found


def _root(squares: np.ndarray, count: int) -> np.ndarray:
    return np.sqrt(np.maximum(squares / count, FLOOR**2))
