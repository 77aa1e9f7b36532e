"""Evaluation and backtest: one continuous account per row through a span, from cash, in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from envs import ledger
from envs.account_view import AccountView
from envs.ledger import Account, Fill, Terms
from envs.market import PairMarket, Span

Decide = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(bars [B] decided at, features [B, F], account [B, A]) -> target weights [B, 2]."""

CHUNK = 1 << 19
"""Numbers of the market that are gathered at once, for all rows and many bars."""


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
    """Equity valued at the next fill; starts from 1."""

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
) -> Replay:
    """Run B accounts through spans of the market.

    Args:
        market: The pair.
        spans: One span for all rows, or one per row, all of the same length; row b fills at bars
            ``start .. stop - 2`` of its span.
        decide: Target weights from the bars decided at, their features and the accounts' view; None where all
            rows are recorded.
        terms: Costs and limits; numbers, or tensors [B] with a scenario per row.
        lag: Bars from decision to fill, one number or an int64 tensor [B].
        batch: Number of rows B.
        leverage: The run's own leverage limit, which scales the account view.
        drawdown: Whether the account view holds the drawdown.
        recorded: Target weights [T, 2] by decision bar for each of the last R rows, which follow them whatever
            their account; ``decide`` is asked for the B - R rows before.

    Raises:
        ValueError: If spans differ in length, or rows without recorded targets have no ``decide``.
    """
    rows = spans if isinstance(spans, list) else [spans] * batch
    starts = torch.tensor([span.start for span in rows])
    count = rows[0].rows
    if any(span.rows != count for span in rows):
        raise ValueError("all spans of a replay must have the same length")
    asked = batch - len(recorded)
    if asked and decide is None:
        raise ValueError(f"{asked} of {batch} rows have neither recorded targets nor a policy")
    features = torch.tensor(market.features)
    market_bars = [torch.from_numpy(array) for array in (market.returns, market.moves, market.years)]
    view = AccountView(batch, lag, leverage, drawdown, torch.float64)
    seen = view.reset()
    account = ledger.open_accounts(batch)
    record = _empty_record(count, batch)
    size = max(1, CHUNK // (asked * features.shape[1] + 8 * batch))
    for first in range(0, count, size):
        k = starts + torch.arange(first, min(first + size, count)).unsqueeze(1)
        t = k - lag
        target = torch.empty(*k.shape, 2, dtype=torch.float64)
        at = t.expand(k.shape)
        for row, table in enumerate(recorded, start=asked):
            target[:, row] = table.index_select(0, at[:, row])
        returns, moves, years = (_gathered(array, k).unbind() for array in market_bars)
        if asked:
            decided_at = t[:, :asked].unbind()
            shown = _gathered(features, t[:, :asked]).double().unbind()
            answers = target[:, :asked].unbind()
        fills = []
        for i, wanted in enumerate(target.unbind()):
            if asked:
                assert decide is not None
                answers[i].copy_(decide(decided_at[i], shown[i], seen[:asked]))
            account, fill = ledger.step(account, wanted, returns[i], years[i], terms)
            if asked:
                seen = view.after(fill, moves[i])
            fills.append(fill)
        _write(record, slice(first, first + len(k)), k, t, target, fills, account)
    return record


def _gathered(values: Tensor, bars: Tensor) -> Tensor:
    return values.index_select(0, bars.flatten()).view(*bars.shape, *values.shape[1:])


def _empty_record(count: int, batch: int) -> Replay:
    bars = {name: np.empty((count, batch), np.int64) for name in ("fill_bar", "decision_bar")}
    pairs = {name: np.empty((count, batch, 2)) for name in ("target", "weight")}
    names = ("turnover", "trading_cost", "financing", "net_return", "equity")
    return Replay(**bars, **pairs, **{name: np.empty((count, batch)) for name in names})


def _write(record: Replay, part: slice, k: Tensor, t: Tensor, target: Tensor, fills: list[Fill], end: Account) -> None:
    """Write the bars of a chunk; ``end`` are the accounts after its last fill."""

    def stacked(name: str) -> Tensor:
        return torch.stack([getattr(fill, name) for fill in fills])

    whole = Fill(**{field.name: stacked(field.name) for field in fields(Fill)})
    record.fill_bar[part], record.decision_bar[part] = k, t
    record.target[part], record.weight[part] = target, whole.weights
    record.turnover[part], record.trading_cost[part] = whole.turnover, whole.trading_cost
    record.financing[part], record.net_return[part] = whole.financing, whole.net_return
    record.equity[part] = torch.cat((whole.equity[1:], end.equity.unsqueeze(0)))
