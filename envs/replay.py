"""Evaluation and backtest: one continuous account per row through a span, from cash, in float64."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from envs import ledger
from envs.account_view import AccountView
from envs.ledger import Fill, Terms
from envs.market import PairMarket, Span

Decide = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(bars [B] decided at, features [B, F], account [B, A]) -> target weights [B, 2]."""


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
    decide: Decide,
    terms: Terms,
    lag: int | Tensor,
    *,
    batch: int,
    leverage: float,
    drawdown: bool = False,
) -> Replay:
    """Run B accounts through spans of the market.

    Args:
        market: The pair.
        spans: One span for all rows, or one per row, all of the same length; row b fills at bars
            ``start .. stop - 2`` of its span.
        decide: Target weights from the bars decided at, their features and the accounts' view.
        terms: Costs and limits; numbers, or tensors [B] with a scenario per row.
        lag: Bars from decision to fill, one number or an int64 tensor [B].
        batch: Number of rows B.
        leverage: The run's own leverage limit, which scales the account view.
        drawdown: Whether the account view holds the drawdown.
    """
    rows = spans if isinstance(spans, list) else [spans] * batch
    starts = torch.tensor([span.start for span in rows])
    count = rows[0].rows
    if any(span.rows != count for span in rows):
        raise ValueError("all spans of a replay must have the same length")
    features = torch.tensor(market.features)
    bars = torch.from_numpy(np.column_stack((market.returns, market.moves[:-1], market.years)))
    view = AccountView(batch, lag, leverage, drawdown, torch.float64)
    seen = view.reset()
    account = ledger.open_accounts(batch)
    fills, targets = [], []
    equity = torch.empty(count, batch, dtype=torch.float64)
    for i in range(count):
        k = starts + i
        t = k - lag
        target = decide(t, features.index_select(0, t).double(), seen)
        returns, moves, years = bars.index_select(0, k).split_with_sizes((2, 2, 1), dim=1)
        account, fill = ledger.step(account, target, returns, years.squeeze(1), terms)
        seen = view.after(fill, moves)
        fills.append(fill)
        targets.append(target)
        equity[i] = account.equity
    record = Fill(**{field.name: torch.stack([getattr(fill, field.name) for fill in fills]) for field in fields(Fill)})
    fill_bar = starts.unsqueeze(0) + torch.arange(count).unsqueeze(1)
    return Replay(
        fill_bar=fill_bar.numpy(),
        decision_bar=(fill_bar - torch.as_tensor(lag)).numpy(),
        target=torch.stack(targets).numpy(),
        weight=record.weights.numpy(),
        turnover=record.turnover.numpy(),
        trading_cost=record.trading_cost.numpy(),
        financing=record.financing.numpy(),
        net_return=record.net_return.numpy(),
        equity=equity.numpy(),
    )
