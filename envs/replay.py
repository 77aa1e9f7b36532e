"""Evaluation and backtest: one continuous account per row through a span, from cash, in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs import ledger
from envs.account_view import AccountView
from envs.ledger import Terms
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


@torch.no_grad()
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
    features = torch.from_numpy(np.array(market.features)).double()
    returns, moves, years = (torch.tensor(x) for x in (market.returns, market.moves, market.years))
    view = AccountView(batch, lag, leverage, drawdown, torch.float64)
    seen = view.reset()
    account = ledger.open_accounts(batch)
    fills, targets = [], []
    equity = torch.empty(count, batch, dtype=torch.float64)
    for i in range(count):
        k = starts + i
        t = k - lag
        target = decide(t, features[t], seen)
        account, fill = ledger.step(account, target, returns[k], years[k], terms)
        seen = view.after(fill, moves[k])
        fills.append(fill)
        targets.append(target)
        equity[i] = account.equity
    bars = starts.unsqueeze(0) + torch.arange(count).unsqueeze(1)

    def column(name: str) -> np.ndarray:
        return torch.stack([getattr(fill, name) for fill in fills]).numpy()

    return Replay(
        fill_bar=bars.numpy(),
        decision_bar=(bars - torch.as_tensor(lag)).numpy(),
        target=torch.stack(targets).numpy(),
        weight=column("weights"),
        turnover=column("turnover"),
        trading_cost=column("trading_cost"),
        financing=column("financing"),
        net_return=column("net_return"),
        equity=equity.numpy(),
    )
