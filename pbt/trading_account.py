"""What a trader knows of an account at the close that is decided on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from envs import ledger
from envs.account_view import account_columns
from envs.ledger import Terms
from rayconf.errors import UserError

Legs = ArrayLike | Mapping[str, float]
"""Two numbers in the order of the pair's legs, rows of two, or a number per ticker (a ticker left out: 0)."""


@dataclass(frozen=True)
class TradingAccount:
    """One account, or B accounts row by row, at a close. Fields of one row stand for all rows.

    Marks are those of the backtest: equity is cash plus holdings at the close after all costs paid so far, and the
    backtest pays the interest up to the next fill already at the fill.
    """

    equity: ArrayLike = 1.0
    """One number or [B]: value of cash and holdings, in dollars; positive."""
    holdings: Legs | None = None
    """[2] or [B, 2] signed dollars held per leg at the close; None: nothing, or as ``shares`` say."""
    shares: Legs | None = None
    """[2] or [B, 2] signed numbers of shares instead of ``holdings``."""
    pending: Legs | None = None
    """[2] or [B, 2] target weights of the newest order that has not filled (lag 2 and more); it counts as filled."""
    peak: ArrayLike | None = None
    """One number or [B]: highest equity at any close so far, dollars; needed where a policy sees the drawdown."""


@dataclass(frozen=True)
class Marked:
    """``TradingAccount`` as float64 tensors of B rows."""

    equity: Tensor
    """[B] dollars."""
    holdings: Tensor
    """[B, 2] dollars; orders that have not filled count as filled."""
    weights: Tensor
    """[B, 2] the same as fractions of equity."""
    depth: Tensor | None
    """[B] log-drawdown from the highest equity; None where the policy does not see it."""

    def view(self, leverage: float) -> Tensor:
        """Account part [B, A] of the observation, see ``envs.account_view``."""
        return account_columns(self.weights, leverage, self.depth)


def is_batch(account: TradingAccount) -> bool:
    """Whether an account is given as rows, even if as a single one."""
    legs = (account.holdings, account.shares, account.pending)
    flat = any(value is not None and np.ndim(value) > 0 for value in (account.equity, account.peak))
    return flat or any(not isinstance(x, Mapping) and x is not None and np.ndim(x) > 1 for x in legs)


def mark(
    account: TradingAccount, tickers: Sequence[str], close: np.ndarray, *, terms: Terms, lag: int, drawdown: bool
) -> Marked:
    """Bring an account into rows.

    Args:
        account: The account or accounts.
        tickers: The pair's legs.
        close: [D, 2] closes of the bars decided at; D is 1 or the number of rows.
        terms: The run's, whose leverage limit caps pending targets as their fill will.
        lag: Bars from decision to fill.
        drawdown: Whether the policy sees the drawdown.

    Raises:
        UserError: A field is missing, of another shape, not finite, or contradicts another.
    """
    equity = _numbers("equity", account.equity)
    if not (equity > 0).all():
        raise UserError(f"account: equity {float(equity.min()):g} must be positive; a wiped-out account cannot trade")
    if account.holdings is not None and account.shares is not None:
        raise UserError("account: give holdings (dollars) or shares, not both")
    if account.pending is not None and lag == 1:
        raise UserError("account: pending must be left out; with lag 1 every earlier order has filled")
    held = _legs("holdings", account.holdings, tickers)
    if account.shares is not None:
        held = _legs("shares", account.shares, tickers) * close
    peak = equity if account.peak is None else np.maximum(_numbers("peak", account.peak), equity)
    if drawdown and account.peak is None:
        raise UserError(
            "account: peak is missing; this policy sees the drawdown of its account, so give the highest equity so far"
        )
    pending = None if account.pending is None else _legs("pending", account.pending, tickers)
    fields = {"equity": equity, "holdings": held, "peak": peak, "dates": close}
    fields |= {} if pending is None else {"pending": pending}
    count = max(len(value) for value in fields.values())
    for name, value in fields.items():
        if len(value) not in (1, count):
            raise UserError(f"account: {name} has {len(value)} rows where another field has {count}; give one or all")

    def rows(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.broadcast_to(values, (count, *values.shape[1:])).copy())

    money, holdings = rows(equity), rows(held)
    if pending is None:
        weights = holdings / money.unsqueeze(1)
    else:
        weights = capped(rows(pending), terms)
        holdings = weights * money.unsqueeze(1)
    depth = rows(peak).log() - money.log() if drawdown else None
    return Marked(money, holdings, weights, depth)


def capped(target: Tensor, terms: Terms) -> Tensor:
    """Weights [B, 2] that an account holds which asked for ``target`` [B, 2]: after the ledger's leverage limit."""
    _, fill = ledger.step(ledger.open_accounts(len(target)), target, torch.zeros_like(target), 0.0, terms)
    return fill.weights


def _numbers(name: str, values: Any) -> np.ndarray:
    """[B] finite float64."""
    try:
        numbers = np.atleast_1d(np.asarray(values, np.float64))
    except (TypeError, ValueError) as error:
        raise UserError(f"account: {name} must be numbers ({error})") from error
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise UserError(f"account: {name} must be one finite number, or one per row")
    return numbers


def _legs(name: str, values: Legs | None, tickers: Sequence[str]) -> np.ndarray:
    """[B, 2] finite float64 in the order of the legs."""
    if values is None:
        values = (0.0, 0.0)
    if isinstance(values, Mapping):
        if unknown := [str(ticker) for ticker in values if ticker not in tickers]:
            raise UserError(f"account: {name} of {', '.join(unknown)}, but the policy trades {' and '.join(tickers)}")
        values = [values.get(ticker, 0.0) for ticker in tickers]
    try:
        numbers = np.atleast_2d(np.asarray(values, np.float64))
    except (TypeError, ValueError) as error:
        raise UserError(f"account: {name} must be numbers ({error})") from error
    if numbers.ndim != 2 or numbers.shape[1] != 2 or not np.isfinite(numbers).all():
        raise UserError(f"account: {name} must be two finite numbers, {' and '.join(tickers)}, or rows of two")
    return numbers
