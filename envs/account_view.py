"""What a policy sees of its own account: marked at the close it decides on, never later."""

from collections import deque

import torch
from torch import Tensor

from envs.ledger import Fill

DRAWDOWN_BOUND = 0.5
"""Log-drawdown beyond which the observation no longer distinguishes."""
SMALLEST_MARK = 0.01
"""Weights are shown over at least this share of the equity before the trade, so that an account that lies wiped out
between two fills has finite weights."""
TINY = 1e-9
"""Keeps quotients and logarithms of an equity of zero finite."""


class AccountView:
    """The account part of the observation for B accounts, updated after each ledger step.

    Before decision t the account is marked at close[t]. With lag 1 the order of decision t-1 filled at this
    bar, so its holdings have drifted to the close. With a longer lag the last orders have not filled yet and
    count as filled at the close: the weights are the last capped target. Columns: weight of each leg over the
    leverage limit and, where the risk measure is the drawdown, the log-drawdown over its bound.
    """

    def __init__(
        self,
        batch: int,
        lag: int | Tensor,
        leverage: float,
        drawdown: bool,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.size = account_size(drawdown)
        self._leverage = leverage
        self._lag = lag
        self._drawdown = drawdown
        self._zero = torch.zeros(batch, dtype=dtype, device=device)
        self._longest = lag if isinstance(lag, int) else int(lag.max())
        self._same_bar = None if isinstance(lag, int) else (lag == 1).unsqueeze(1)
        self._marks: deque[Tensor] = deque(maxlen=self._longest)
        self.reset()

    def reset(self) -> Tensor:
        """Open all accounts in cash and return their view [B, A]."""
        self._marks.extend(self._zero for _ in range(self._longest))
        self._peak = self._zero
        return torch.zeros(len(self._zero), self.size, dtype=self._zero.dtype, device=self._zero.device)

    def reset_rows(self, rows: Tensor) -> None:
        """Open the accounts selected by the mask ``rows`` [B] anew."""
        if self._drawdown:
            self._marks.extend([mark.masked_fill(rows, 0.0) for mark in self._marks])
            self._peak = self._peak.masked_fill(rows, 0.0)

    def after(self, fill: Fill, move: Tensor, unit: float | Tensor = 1.0) -> Tensor:
        """View [B, A] before the next decision.

        Args:
            fill: The newest ledger step.
            move: [B, 2] simple return per leg from its fill to the close of the same bar.
            unit: What 1 of the fill's dollars is worth, where the accounts are kept in units of their own equity.
        """
        marked = fill.marked_equity(move)
        weights = fill.weights
        if self._same_bar is not None or self._lag == 1:
            value = torch.maximum(marked, fill.equity.clamp(min=TINY) * SMALLEST_MARK)
            drifted = fill.held * (1 + move) / value.unsqueeze(1)
            weights = drifted if self._same_bar is None else torch.where(self._same_bar, drifted, weights)
        if not self._drawdown:
            return account_columns(weights, self._leverage)
        self._marks.append((marked * unit).clamp(min=TINY).log())
        level = self._marks[0] if isinstance(self._lag, int) else self._per_row()
        self._peak = torch.maximum(self._peak, level)
        return account_columns(weights, self._leverage, self._peak - level)

    def _per_row(self) -> Tensor:
        stacked = torch.stack(tuple(self._marks))
        index = (self._longest - torch.as_tensor(self._lag)).unsqueeze(0)
        return stacked.gather(0, index).squeeze(0)


def account_columns(weights: Tensor, leverage: float, depth: Tensor | None = None) -> Tensor:
    """Account part of an observation, [B, 2], or [B, 3] with the drawdown.

    Args:
        weights: [B, 2] signed fractions of equity at the close that is decided on.
        leverage: The run's limit, which scales them.
        depth: [B] log-drawdown from the highest equity so far, 0 or more; None: not shown.
    """
    view = weights / leverage
    if depth is None:
        return view
    return torch.cat((view, (depth.clamp(max=DRAWDOWN_BOUND) / DRAWDOWN_BOUND).unsqueeze(1)), dim=1)


def account_names(drawdown: bool) -> tuple[str, ...]:
    """Names of the account columns of an observation, in their order."""
    return ("a_weight", "b_weight", "drawdown") if drawdown else ("a_weight", "b_weight")


def account_size(drawdown: bool) -> int:
    """Number of account columns in an observation."""
    return len(account_names(drawdown))
