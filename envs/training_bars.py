"""``TrainingBars``: what training episodes are drawn from, the training spans of one market or of many, end to end."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.market import PairMarket, Span
from envs.scaler import Scaler


@dataclass(frozen=True)
class TrainingBars:
    """Rows of M markets one after the other. An episode begins at a decision bar of one and stays there."""

    features: np.ndarray
    """[T, F] float32, each market's standardised by its own scaler."""
    steps: np.ndarray
    """[T, 6]: simple return of each leg from the fill at the bar to the next, move of each from the fill to the close,
    years to the next fill, and 1 / standard deviation of equal weight's log return on the market's training span. NaN
    in the last row of a market, from which nothing is earned."""
    spans: tuple[Span, ...]
    """Of each market its fills in these rows, as the training split of ``PairMarket`` has them."""
    pairs: tuple[str, ...]
    """Of each market; a resampled history has the name of the pair that it is made of, and follows it."""
    dates: np.ndarray
    """[T] datetime64[us], the bars' own labels; those of a resampled history are not when its days were."""
    scalers: tuple[Scaler, ...]
    """Of each market."""
    opens: np.datetime64 | None = None
    """Date before which no decision is made: bars before it trained the encoder. None: from the first fill on."""

    @classmethod
    def of(cls, market: PairMarket) -> "TrainingBars":
        """The training span of one market, by its own bar numbers."""
        span, scalers = market.splits["train"], (market.scaler,)
        return cls(market.features, _steps(market), (span,), (market.pair,), market.dates, scalers)

    @classmethod
    def joined(cls, markets: Sequence[PairMarket], before: int) -> "TrainingBars":
        """The training spans of several markets, each with ``before`` bars that come before its first fill.

        Raises:
            ValueError: Their features differ.
        """
        first = markets[0]
        if any(market.scaler.names != first.scaler.names for market in markets):
            raise ValueError("markets of different features cannot be joined")
        parts, spans, offset = [], [], 0
        for market in markets:
            train = market.splits["train"]
            begin = max(0, train.start - before)
            parts.append(slice(begin, train.stop))
            spans.append(Span(offset + train.start - begin, offset + train.stop - begin))
            offset += train.stop - begin
        return cls(
            np.concatenate([m.features[part] for m, part in zip(markets, parts, strict=True)]),
            np.concatenate([_steps(m)[part] for m, part in zip(markets, parts, strict=True)]),
            tuple(spans),
            tuple(market.pair for market in markets),
            np.concatenate([m.dates[part] for m, part in zip(markets, parts, strict=True)]),
            tuple(market.scaler for market in markets),
        )

    @property
    def blocks(self) -> list[Span]:
        """Of each market its rows, ``start`` to ``stop - 1``, from the first that is kept to the last of training."""
        starts = [0, *(span.stop for span in self.spans[:-1])]
        return [Span(start, span.stop) for start, span in zip(starts, self.spans, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.features.nbytes + self.steps.nbytes + self.dates.nbytes

    def decisions(self, lag: int) -> list[Span]:
        """Of each market the decision bars ``start .. stop - 1`` whose fills lie in its span, from ``opens`` on."""
        found = [Span(span.start - lag, span.stop - 1 - lag) for span in self.spans]
        if self.opens is None:
            return found
        first = (b.start + int(np.searchsorted(self.dates[slice(*b)], self.opens)) for b in self.blocks)
        return [Span(min(max(s.start, bar), s.stop), s.stop) for s, bar in zip(found, first, strict=True)]


def _steps(market: PairMarket) -> np.ndarray:
    rows = np.full((len(market.dates), 6), np.nan)
    rows[:-1, :2], rows[:-1, 2:4], rows[:-1, 4] = market.returns, market.moves[:-1], market.years
    rows[:, 5] = 1 / market.equal_weight_sd
    return rows
