"""Small markets without files, and the account of one row kept by hand in plain Python."""

import math
from typing import Any

import numpy as np
import torch

from envs.bars import Bars
from envs.ledger import Terms
from envs.market import PairMarket, Span
from envs.scaler import Scaler
from rayconf.run_config import RunConfig

LEVERAGE = 1.5


def make_run(sections: dict[str, Any] | None = None, **env: Any) -> RunConfig:
    """The default run with the given fields of ``env`` and of other sections."""
    return RunConfig.model_validate({**(sections or {}), "env": {"episode_bars": 24, **env}})


def weekday_dates(bars: int) -> np.ndarray:
    return np.busday_offset("2001-01-01", np.arange(bars)).astype("datetime64[us]")


def make_market(bars: int = 400, seed: int = 0, *, crashes: float = 0.0, burn: int = 40) -> PairMarket:
    """Random prices; feature 0 is the bar's own index, so that a test can tell where an account stands.

    ``crashes`` is the share of bars over which both legs lose 80 %, enough to ruin a leveraged account.
    """
    rng = np.random.default_rng(seed)
    jumps = 0.012 * rng.standard_normal((bars, 2)) + np.log(0.2) * (rng.random((bars, 1)) < crashes)
    close = 50 * np.exp(np.cumsum(jumps, axis=0))
    fill = np.concatenate(
        (close[:1], close[:-1] * np.exp(0.3 * jumps[1:] + 0.002 * rng.standard_normal((bars - 1, 2))))
    )
    features = rng.standard_normal((bars, 5)).astype(np.float32)
    features[:, 0] = np.arange(bars)
    first, second = burn + (bars - burn) // 2, burn + (bars - burn) * 3 // 4
    return PairMarket(
        pair="AAA/BBB",
        dates=weekday_dates(bars),
        fill=fill,
        close=close,
        features=features,
        scaler=Scaler(tuple("01234"), np.zeros(5), np.ones(5), "clip", 5.0),
        splits={"train": Span(burn, first), "validation": Span(first + 5, second), "test": Span(second + 5, bars)},
        bars_per_year=252.0,
        session=np.arange(bars, dtype=np.int32),
        equal_weight_sd=0.01,
        notes=(),
    )


def make_bars(ticker: str, dates: np.ndarray, seed: int) -> Bars:
    """A random walk with gaps and ranges."""
    rng = np.random.default_rng(seed)
    close = 80 * np.exp(np.cumsum(0.012 * rng.standard_normal(len(dates))))
    open_ = close * np.exp(0.006 * rng.standard_normal(len(dates)))
    high, low = np.maximum(open_, close) * 1.003, np.minimum(open_, close) * 0.997
    return Bars(ticker, dates, open_, high, low, close, 1e6 * np.exp(0.3 * rng.standard_normal(len(dates))))


def reading_policy(features: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
    """Actions [B, 2] that depend on the market and on every account column; elementwise and free of libm."""
    seen = features[:, 1:3] + features[:, 3:5].flip(1) - 1.5 * account[:, :2]
    if account.shape[1] > 2:
        seen = seen - 3 * account[:, 2:]
    return seen / (1 + seen.abs())


class SlowAccount:
    """One account from the written definition, one number at a time.

    Decision t fills at bar t + lag. The view before decision t is marked at close[t] from the fills up to bar t
    alone; while orders are pending (lag 2 and more) the last target, capped, counts as held.
    """

    def __init__(self, market: PairMarket, terms: Terms, lag: int, first: int) -> None:
        self.fill, self.close = market.fill.tolist(), market.close.tolist()
        self.days = market.dates.astype("datetime64[D]").astype(int).tolist()
        self.terms, self.lag = terms, lag
        self.equity, self.held, self.ruined = 1.0, [0.0, 0.0], False
        self.asked = [0.0, 0.0]
        self.trades: dict[int, tuple[float, list[float], float]] = {}
        self.peak = 0.0
        self.level(first)

    def act(self, t: int, target: list[float]) -> dict[str, float]:
        """Decide at bar t; what the fill at t + lag did until the next fill."""
        k, terms, before = t + self.lag, self.terms, self.equity
        gross = abs(target[0]) + abs(target[1])
        share = min(1.0, float(terms.leverage) / gross) if gross else 1.0
        self.asked = [0.0 if self.ruined else w * share for w in target]
        plus = [w * before for w in self.asked]
        traded = sum(abs(p - h) for p, h in zip(plus, self.held, strict=True))
        years = (self.days[k + 1] - self.days[k]) / 365
        lent = max(0.0, sum(p for p in plus if p > 0) - before) * float(terms.borrow_rate)
        interest = (lent + sum(-p for p in plus if p < 0) * float(terms.short_rate)) * years
        cost = traded * float(terms.cost)
        paid = cost + interest
        self.trades[k] = (before, plus, paid)
        grown = [p * self.fill[k + 1][i] / self.fill[k][i] for i, p in enumerate(plus)]
        self.equity, self.held = before - paid + sum(grown) - sum(plus), grown
        if not self.ruined and self.equity <= terms.ruin_fraction:
            self.equity = max(0.0, self.equity - sum(abs(g) for g in grown) * float(terms.cost))
            self.ruined = True
        if self.ruined:
            self.held = [0.0, 0.0]
        return {
            "turnover": traded / before if before > 0 else 0.0,
            "trading_cost": cost / before if before > 0 else 0.0,
            "financing": interest / before if before > 0 else 0.0,
            "growth": self.equity / before if before > 0 else 1.0,
        }

    def level(self, t: int) -> float:
        """Log equity marked at close[t]; moves the peak."""
        value = 1.0
        if t in self.trades:
            before, plus, paid = self.trades[t]
            value = before - paid + sum(p * (self.close[t][i] / self.fill[t][i] - 1) for i, p in enumerate(plus))
        log_value = math.log(max(value, 1e-9))
        self.peak = max(self.peak, log_value)
        return log_value

    def view(self, t: int, drawdown: bool) -> list[float]:
        """Account columns of the observation at close[t]; to be asked once per bar, in order."""
        weights = self.asked
        if self.lag == 1 and t in self.trades:
            before, plus, paid = self.trades[t]
            now = [p * self.close[t][i] / self.fill[t][i] for i, p in enumerate(plus)]
            value = before - paid + sum(now) - sum(plus)
            weights = [n / max(value, 0.01 * before, 1e-11) for n in now]
        view = [w / LEVERAGE for w in weights]
        depth = self.peak - self.level(t) if drawdown else 0.0
        depth = max(depth, 0.0)
        return [*view, min(depth, 0.5) / 0.5] if drawdown else view
