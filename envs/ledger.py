"""THE ledger: the only place where money moves.

One accounting step over a batch of B accounts with two legs, in any float type on any device. Training
(float32), evaluation and backtest (float64) and the Gymnasium environment (B = 1) all call ``step``.
Leg sums are written ``a + b``, so that the order of additions never depends on the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rayconf.sections import CostsConfig

LOG_FLOOR = 1e-3
"""Smallest growth ratio of a step under the logarithm, so that a ruined step has a finite reward."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms of trading. Each rate is one number, or a tensor [B] with a value per account."""

    cost: float | Tensor
    """Commission plus slippage as a fraction of traded value (2 bps = 2e-4)."""
    leverage: float | Tensor
    """Upper bound on gross exposure as a multiple of equity."""
    borrow_rate: float | Tensor
    """Interest per year on borrowed cash."""
    short_rate: float | Tensor
    """Fee per year on the value sold short."""
    gross_financing: bool = False
    """Charge ``borrow_rate`` on gross exposure beyond equity instead of on longs beyond equity."""
    ruin_fraction: float = 0.05
    """At or below this fraction of its start an account is closed for good."""

    @classmethod
    def from_costs(cls, costs: CostsConfig, cost_bps: float | Tensor | None = None) -> "Terms":
        """Terms of a run; ``cost_bps`` replaces its total trading cost per side (basis points)."""
        return cls(
            cost=(costs.real_bps if cost_bps is None else cost_bps) * 1e-4,
            leverage=costs.leverage,
            borrow_rate=costs.borrow_rate,
            short_rate=costs.short_rate,
            gross_financing=costs.financing == "gross",
            ruin_fraction=costs.ruin_fraction,
        )


@dataclass(frozen=True, slots=True)
class Account:
    """State of B accounts between two fills."""

    equity: Tensor
    """[B] value in dollars."""
    holdings: Tensor
    """[B, 2] signed dollar holdings per leg, drifted to the present."""
    start: Tensor
    """[B] equity the account was opened with."""
    ruined: Tensor
    """[B] bool; a ruined account never trades again."""


@dataclass(frozen=True, slots=True)
class Fill:
    """What one step did, before and during the bar it earned."""

    equity: Tensor
    """[B] equity just before the trade."""
    weights: Tensor
    """[B, 2] weights held after the leverage cap, as fractions of ``equity``."""
    held: Tensor
    """[B, 2] dollar holdings after the trade."""
    traded: Tensor
    """[B] dollars bought plus dollars sold."""
    cost: Tensor
    """[B] commission and slippage in dollars."""
    interest: Tensor
    """[B] borrow interest and short fee in dollars, for the time to the next fill."""
    growth: Tensor
    """[B] equity after the step over equity before; 1 where equity is zero."""

    @property
    def turnover(self) -> Tensor:
        """[B] two-sided turnover as a fraction of equity."""
        return _share(self.traded, self.equity)

    @property
    def trading_cost(self) -> Tensor:
        """[B] trading cost as a fraction of equity."""
        return _share(self.cost, self.equity)

    @property
    def financing(self) -> Tensor:
        """[B] financing as a fraction of equity."""
        return _share(self.interest, self.equity)

    @property
    def net_return(self) -> Tensor:
        """[B] simple return of the step after all costs."""
        return self.growth - 1

    @property
    def log_growth(self) -> Tensor:
        """[B] log of the growth ratio, floored at log(1e-3)."""
        return self.growth.clamp(min=LOG_FLOOR).log()

    def marked_equity(self, move: Tensor) -> Tensor:
        """[B] equity when the legs have moved by ``move`` [B, 2] (simple returns) since the fill."""
        return self.equity - self.cost - self.interest + _sum_legs(self.held * move)


def _sum_legs(values: Tensor) -> Tensor:
    a, b = values.unbind(1)
    return a + b


def _share(amount: Tensor, equity: Tensor) -> Tensor:
    return (amount / equity).masked_fill(equity <= 0, 0.0)


def open_accounts(batch: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Account:
    """B accounts of equity 1, all cash."""
    one = torch.ones(batch, dtype=dtype, device=device)
    return Account(
        equity=one,
        holdings=torch.zeros(batch, 2, dtype=dtype, device=device),
        start=one,
        ruined=torch.zeros(batch, dtype=torch.bool, device=device),
    )


def rebased(account: Account) -> Account:
    """The same accounts in units of their own equity, which becomes 1.

    The ledger knows no scale: an account of twice the equity and holdings does the same in fractions of it. A
    continuous account that is stepped in its own units is therefore the product of its growth ratios, and its
    state is two numbers that do not remember how rich it was.
    """
    unit = account.equity.masked_fill(account.equity <= 0, 1.0)  # wiped out: nothing held, nothing to divide
    return Account(
        equity=torch.ones_like(unit),
        holdings=account.holdings / unit.unsqueeze(1),
        start=account.start / unit,
        ruined=account.ruined,
    )


def step(account: Account, target: Tensor, returns: Tensor, dt: Tensor | float, terms: Terms) -> tuple[Account, Fill]:
    """Trade to the target, pay, and earn one bar.

    Args:
        account: State just before the fill.
        target: [B, 2] wanted weights as signed fractions of equity, before the leverage cap.
        returns: [B, 2] simple return of each leg from this fill to the next.
        dt: Time to the next fill in years of 365 days, [B] or one number.
        terms: Costs, rates and limits.

    Returns:
        The account at the next fill, and what the step did.
    """
    equity = account.equity
    # gross / limit, not limit / gross: torch turns the latter into a reciprocal when the limit is a plain number,
    # and a row with its own limit would differ in the last bit
    excess = (_sum_legs(target.abs()) / terms.leverage).clamp(min=1)
    weights = (target / excess.unsqueeze(1)).masked_fill(account.ruined.unsqueeze(1), 0.0)
    held = weights * equity.unsqueeze(1)

    traded = _sum_legs((held - account.holdings).abs())
    cost = traded * terms.cost

    longs = held.clamp(min=0)
    exposed, shorted = _sum_legs(longs), _sum_legs(longs - held)
    if terms.gross_financing:
        exposed = exposed + shorted
    interest = (terms.borrow_rate * (exposed - equity).clamp(min=0) + terms.short_rate * shorted) * dt

    earned = held * returns
    after = equity - cost - interest + _sum_legs(earned)
    drifted = held + earned

    growth = after / equity
    ruined = account.ruined
    low = after <= terms.ruin_fraction * account.start
    # Closed accounts stay low, so that without a low one there is nothing to close. Asking is cheaper than closing
    # nobody, except on an accelerator, which would have to be waited for.
    if low.device.type != "cpu" or bool(low.any()):
        ruin = low & ~ruined
        closed = (after - _sum_legs(drifted.abs()) * terms.cost).clamp(min=0)
        after = torch.where(ruin, closed, after)
        ruined = ruined | ruin
        drifted = drifted.masked_fill(ruined.unsqueeze(1), 0.0)
        growth = (after / equity).masked_fill(equity <= 0, 1.0)
    return (
        Account(equity=after, holdings=drifted, start=account.start, ruined=ruined),
        Fill(
            equity=equity,
            weights=weights,
            held=held,
            traded=traded,
            cost=cost,
            interest=interest,
            growth=growth,
        ),
    )
