"""Evaluation and backtest: one continuous account per row through a span, from cash, in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from envs.ledger import Terms
from envs.market import PairMarket, Span
from envs.walker import Walker

Answer = Callable[[Tensor, Tensor], Tensor]
"""(bars [M] decided at, account [M, A]) -> target weights [M, 2] float64."""


class Decide(Protocol):
    """Whoever decides for the rows of a replay."""

    def among(self, rows: Tensor, bars: range) -> Answer:
        """What answers for rows ``rows`` [M] at any of ``bars``.

        A row's answer may depend on its number, its bar and its account alone, to the last bit.
        """


@dataclass(frozen=True)
class ByRow:
    """A function of (bars [M], features [M, F], account [M, A]) that treats every row alike, as ``Decide``."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    features: np.ndarray
    """[T, F] of the whole market."""

    def among(self, rows: Tensor, bars: range) -> Answer:
        """The function itself."""
        features = torch.from_numpy(np.asarray(self.features, np.float64))
        return lambda at, account: self.function(at, features.index_select(0, at), account)


@dataclass(frozen=True)
class Replay:
    """Bar by bar record of B accounts over K fills, all float64 [K, B] unless said otherwise."""

    fill_bar: np.ndarray
    """[K, B] int64 bar of each fill; ``dates[fill_bar]`` labels the row."""
    decision_bar: np.ndarray
    """[K, B] int64 bar whose close each decision saw."""
    target: np.ndarray
    """[K, B, 2] weights asked for."""
    weight: np.ndarray
    """[K, B, 2] weights held after the leverage cap."""
    turnover: np.ndarray
    trading_cost: np.ndarray
    financing: np.ndarray
    net_return: np.ndarray
    equity: np.ndarray
    """Equity valued at the next fill; starts from 1. The product of the growth ratios."""

    @property
    def gross(self) -> np.ndarray:
        """Gross exposure held, as a multiple of equity."""
        return np.abs(self.weight[..., 0]) + np.abs(self.weight[..., 1])


@torch.inference_mode()
def replay(
    market: PairMarket,
    spans: Span | list[Span],
    decide: Decide | None,
    terms: Terms,
    lag: int | Tensor,
    *,
    batch: int,
    leverage: float,
    drawdown: bool = False,
    recorded: Sequence[Tensor] = (),
    in_pieces: bool = True,
) -> Replay:
    """Run B accounts through spans of the market.

    Args:
        market: The pair.
        spans: One span for all rows, or one per row, all of the same length; row b fills at bars
            ``start .. stop - 2`` of its span.
        decide: Who decides for the rows that are not recorded; None where all are.
        terms: Costs and limits; numbers, or tensors [B] with a scenario per row.
        lag: Bars from decision to fill, one number or an int64 tensor [B].
        batch: Number of rows B.
        leverage: The run's own leverage limit, which scales the account view.
        drawdown: Whether the account view holds the drawdown.
        recorded: Target weights [T, 2] by decision bar for each of the last R rows, which follow them whatever
            their account; ``decide`` is asked for the B - R rows before.
        in_pieces: Whether spans may be cut into pieces; the result is the same. A view with the drawdown
            remembers its whole past, so that such accounts are walked in one piece.

    Raises:
        ValueError: If spans differ in length, or rows without recorded targets have no ``decide``.
    """
    of_row = spans if isinstance(spans, list) else [spans] * batch
    count = of_row[0].rows
    if any(span.rows != count for span in of_row):
        raise ValueError("all spans of a replay must have the same length")
    asked = batch - len(recorded)
    if asked and decide is None:
        raise ValueError(f"{asked} of {batch} rows have neither recorded targets nor a policy")
    starts = torch.tensor([span.start for span in of_row])
    walker = Walker(market, decide, terms, lag, starts, count, asked, leverage, drawdown, recorded)
    record = _empty_record(count, batch)
    everyone = torch.arange(batch)
    if drawdown or not in_pieces:
        walker.in_one(everyone, record)
    else:
        walker.in_pieces(everyone, record)
    k = starts + torch.arange(count).unsqueeze(1)
    record.fill_bar[:], record.decision_bar[:] = k, k - lag
    np.cumprod(record.equity, axis=0, out=record.equity)  # of growth ratios till here
    return record


def _empty_record(count: int, batch: int) -> Replay:
    bars = {name: np.empty((count, batch), np.int64) for name in ("fill_bar", "decision_bar")}
    pairs = {name: np.empty((count, batch, 2)) for name in ("target", "weight")}
    names = ("turnover", "trading_cost", "financing", "net_return", "equity")
    return Replay(**bars, **pairs, **{name: np.empty((count, batch)) for name in names})
