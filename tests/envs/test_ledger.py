"""The ledger against a slow reference, hand-computed cases, its promises as properties, and mutants of each."""

import math
from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings

from envs import ledger
from envs.ledger import Account, Fill, Terms, open_accounts

Step = Callable[[Account, torch.Tensor, torch.Tensor, torch.Tensor, Terms], tuple[Account, Fill]]
FREE = Terms(cost=0.0, leverage=1.5, borrow_rate=0.0, short_rate=0.0)
REAL = Terms(cost=2e-4, leverage=1.5, borrow_rate=0.0675, short_rate=0.005)
WEEKEND = 3 / 365
# Mutants must fail, not be explained: no shrinking.
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True, phases=(Phase.generate,))


def f64(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def paths(seed: int, bars: int = 40, batch: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random targets [K, B, 2], returns [K, B, 2] and times [K, B], float64."""
    g = torch.Generator().manual_seed(seed)
    target = 4 * torch.rand(bars, batch, 2, generator=g, dtype=torch.float64) - 2
    returns = 0.03 * torch.randn(bars, batch, 2, generator=g, dtype=torch.float64)
    dt = torch.randint(1, 5, (bars, batch), generator=g) / 365.0
    return target, returns.clamp(-0.3, 0.3), dt.double()


def run(step: Step, target: torch.Tensor, returns: torch.Tensor, dt: torch.Tensor, terms: Terms) -> list:
    account, out = open_accounts(target.shape[1], target.dtype), []
    for w, r, years in zip(target, returns, dt, strict=True):
        account, fill = step(account, w, r, years, terms)
        out.append((account, fill))
    return out


def reference(
    target: np.ndarray, returns: np.ndarray, dt: np.ndarray, terms: Terms
) -> tuple[list[float], list[float], list[float], list[float]]:
    """One account in plain Python, straight from the written definition: equity, turnover, cost, financing."""
    equity, start, h, dead = 1.0, 1.0, [0.0, 0.0], False
    equities, turnovers, costs, interests = [], [], [], []
    for w_in, r, years in zip(target.tolist(), returns.tolist(), dt.tolist(), strict=True):
        gross = sum(abs(x) for x in w_in)
        w = [x * min(1.0, terms.leverage / gross) if gross > 0 else x for x in w_in]
        if dead:
            w = [0.0, 0.0]
        plus = [x * equity for x in w]
        trade = sum(abs(p - q) for p, q in zip(plus, h, strict=True))
        cost = trade * terms.cost
        shorts = sum(-p for p in plus if p < 0)
        base = sum(abs(p) for p in plus) if terms.gross_financing else sum(p for p in plus if p > 0)
        interest = (terms.borrow_rate * max(0.0, base - equity) + terms.short_rate * shorts) * years
        after = equity - cost - interest + sum(p * x for p, x in zip(plus, r, strict=True))
        h = [p * (1 + x) for p, x in zip(plus, r, strict=True)]
        if not dead and after <= terms.ruin_fraction * start:
            after, h, dead = max(0.0, after - sum(abs(x) for x in h) * terms.cost), [0.0, 0.0], True
        turnovers.append(trade / equity if equity > 0 else 0.0)
        costs.append(cost / equity if equity > 0 else 0.0)
        interests.append(interest / equity if equity > 0 else 0.0)
        equity = after
        equities.append(equity)
    return equities, turnovers, costs, interests


@EXAMPLES
@given(seed=st.integers(0, 2**32), gross=st.booleans(), wild=st.booleans())
def test_matches_the_slow_reference(seed: int, gross: bool, wild: bool) -> None:
    target, returns, dt = paths(seed)
    if wild:  # large enough moves that some accounts are ruined
        returns = (8 * returns).clamp(-0.95, 2.0)
    terms = replace(REAL, gross_financing=gross, cost=1e-3)
    out = run(ledger.step, target, returns, dt, terms)
    for b in range(target.shape[1]):
        expected = reference(target[:, b].numpy(), returns[:, b].numpy(), dt[:, b].numpy(), terms)
        actual = (
            [float(account.equity[b]) for account, _ in out],
            [float(fill.turnover[b]) for _, fill in out],
            [float(fill.trading_cost[b]) for _, fill in out],
            [float(fill.financing[b]) for _, fill in out],
        )
        for want, have in zip(expected, actual, strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-11, atol=1e-13)


# --- promises: each takes the step under test, so that mutants can be tried on it -------------------------------


def buy_and_hold(step: Step) -> None:
    _, returns, dt = paths(1)
    target = torch.zeros_like(returns)
    target[..., 0] = 1.0
    account, _ = run(step, target, returns, dt, FREE)[-1]
    torch.testing.assert_close(account.equity, (1 + returns[..., 0]).prod(0), rtol=1e-12, atol=0)


def no_action_is_free(step: Step) -> None:
    _, returns, dt = paths(2)
    for account, _ in run(step, torch.zeros_like(returns), returns, dt, REAL):
        assert torch.equal(account.equity, torch.ones_like(account.equity))


def net_returns_telescope(step: Step) -> None:
    @EXAMPLES
    @given(seed=st.integers(0, 2**32))
    def check(seed: int) -> None:
        out = run(step, *paths(seed), REAL)
        growth = torch.stack([1 + fill.net_return for _, fill in out]).prod(0)
        torch.testing.assert_close(growth, out[-1][0].equity, rtol=1e-11, atol=0)

    check()


def costs_never_help(step: Step) -> None:
    @EXAMPLES
    @given(seed=st.integers(0, 2**32), which=st.sampled_from(["cost", "borrow_rate", "short_rate"]))
    def check(seed: int, which: str) -> None:
        data = paths(seed)
        dearer = replace(REAL, **{which: getattr(REAL, which) * 3})
        for (cheap, _), (dear, _) in zip(run(step, *data, REAL), run(step, *data, dearer), strict=True):
            assert bool((dear.equity <= cheap.equity * (1 + 1e-12))[~cheap.ruined & ~dear.ruined].all())
        assert bool((run(step, *data, dearer)[-1][0].equity != run(step, *data, REAL)[-1][0].equity).any())

    check()


def leverage_is_capped(step: Step) -> None:
    for _, fill in run(step, *paths(3), REAL):
        assert bool((fill.held.abs().sum(1) <= 1.5 * fill.equity * (1 + 1e-12)).all())


def shorts_mirror_longs(step: Step) -> None:
    target, returns, dt = paths(4, bars=1)
    long, _ = step(open_accounts(8), target[0].abs(), returns[0], dt[0], FREE)
    short, _ = step(open_accounts(8), -target[0].abs(), returns[0], dt[0], FREE)
    torch.testing.assert_close(short.equity - 1, 1 - long.equity, rtol=0, atol=1e-15)


def drift_is_traded(step: Step) -> None:
    """Holding the drifted weights needs no trade; returning to the old target does."""
    account, _ = step(open_accounts(1), f64([[0.5, -0.3]]), f64([[0.1, -0.2]]), 0.0, FREE)  # fmt: skip
    drifted = account.holdings / account.equity.unsqueeze(1)
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    _, still = step(account, drifted, nothing, 0.0, FREE)
    _, back = step(account, f64([[0.5, -0.3]]), nothing, 0.0, FREE)
    assert float(still.turnover) < 1e-15
    assert float(back.turnover) == pytest.approx(abs(0.5 - 0.55 / 1.11) + abs(-0.3 + 0.24 / 1.11), rel=1e-12)


def batch_equals_ones(step: Step) -> None:
    target, returns, dt = paths(5)
    whole = run(step, target, returns, dt, REAL)[-1][0].equity
    rows = [slice(b, b + 1) for b in range(8)]
    ones = [run(step, target[:, b], returns[:, b], dt[:, b], REAL)[-1][0].equity for b in rows]
    assert torch.equal(whole, torch.cat(ones))


def float32_follows(step: Step) -> None:
    """After 40 bars single precision is within 2e-5 of double."""
    data = paths(6)
    exact = run(step, *data, REAL)[-1][0].equity
    single = run(step, *(x.float() for x in data), REAL)[-1][0].equity
    torch.testing.assert_close(single.double(), exact, rtol=2e-5, atol=0)


def ruin_is_final(step: Step) -> None:
    crash = f64([[-0.70, -0.70]])
    target = f64([[0.75, 0.75]])
    terms = replace(FREE, cost=0.01)
    account, fill = step(open_accounts(1), target, crash, 0.0, terms)
    # 1 - 0.015 - 1.05 < 0.05: closed at cost 0.01 * 0.45, never below zero
    assert bool(account.ruined)
    assert float(account.equity) == 0.0
    assert float(fill.log_growth) == pytest.approx(math.log(1e-3))
    later, fill = step(account, target, -crash, 1.0, REAL)
    assert float(later.equity) == 0.0
    assert float(fill.net_return) == 0.0
    assert bool(later.ruined)


PROMISES = {
    f.__name__: f
    for f in (
        buy_and_hold, no_action_is_free, net_returns_telescope, costs_never_help, leverage_is_capped,
        shorts_mirror_longs, drift_is_traded, batch_equals_ones, float32_follows, ruin_is_final,
    )
}  # fmt: skip


@pytest.mark.parametrize("promise", PROMISES)
def test_promise_holds(promise: str) -> None:
    PROMISES[promise](ledger.step)
    assert promise in MUTANTS


def _target_to_target(account, target, returns, dt, terms):  # forgets that holdings drift
    new, fill = ledger.step(account, target, returns, dt, terms)
    return replace(new, holdings=torch.where(new.ruined.unsqueeze(1), 0.0, fill.held)), fill


def _no_cap(account, target, returns, dt, terms):
    return ledger.step(account, target, returns, dt, replace(terms, leverage=1e9))


def _paid_to_trade(account, target, returns, dt, terms):
    return ledger.step(account, target, returns, dt, replace(terms, cost=-terms.cost))


def _free_short(account, target, returns, dt, terms):
    return ledger.step(account, target, returns, dt, replace(terms, short_rate=0.0, cost=0.0, borrow_rate=0.0))


def _cash_earns(account, target, returns, dt, terms):
    new, fill = ledger.step(account, target, returns, dt, terms)
    return replace(new, equity=new.equity * (1 + 1e-12)), fill


def _gross_return(account, target, returns, dt, terms):
    new, fill = ledger.step(account, target, returns, dt, terms)
    return new, replace(fill, growth=(new.equity + fill.cost) / fill.equity)


def _short_earns_nothing(account, target, returns, dt, terms):
    return ledger.step(account, target, torch.where(target < 0, 0.0, returns), dt, terms)


def _close_only(account, target, returns, dt, terms):  # loses the overnight part
    return ledger.step(account, target, 0.7 * returns, dt, terms)


def _pooled(account, target, returns, dt, terms):
    return ledger.step(account, target, returns.mean(0, keepdim=True) + 0 * returns, dt, terms)


def _half_precision(account, target, returns, dt, terms):
    if target.dtype == torch.float64:
        return ledger.step(account, target, returns, dt, terms)
    return ledger.step(account, target, returns.bfloat16().float(), dt, terms)


def _never_ruined(account, target, returns, dt, terms):
    return ledger.step(account, target, returns, dt, replace(terms, ruin_fraction=-9.0))


MUTANTS = {
    "buy_and_hold": [_close_only, _pooled],
    "no_action_is_free": [_cash_earns],
    "net_returns_telescope": [_gross_return, _cash_earns],
    "costs_never_help": [_paid_to_trade, _free_short],
    "leverage_is_capped": [_no_cap],
    "shorts_mirror_longs": [_short_earns_nothing],
    "drift_is_traded": [_target_to_target],
    "batch_equals_ones": [_pooled],
    "float32_follows": [_half_precision],
    "ruin_is_final": [_never_ruined],
}


@pytest.mark.parametrize(("promise", "mutant"), [(p, m) for p, ms in MUTANTS.items() for m in ms])
def test_mutant_is_caught(promise: str, mutant: Step) -> None:
    with pytest.raises(AssertionError):
        PROMISES[promise](mutant)


# --- hand-computed cases at E = 1 -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "gross", "bps"),
    [
        ((1.5, 0.0), False, 0.5 * 0.0675 * WEEKEND * 1e4),  # 2.77
        ((1.2, -0.3), False, (0.2 * 0.0675 + 0.3 * 0.005) * WEEKEND * 1e4),  # 1.11 and the short fee
        ((1.2, -0.3), True, (0.5 * 0.0675 + 0.3 * 0.005) * WEEKEND * 1e4),  # 2.77 and the short fee
        ((0.75, -0.75), False, 0.75 * 0.005 * WEEKEND * 1e4),
        ((0.75, -0.75), True, (0.5 * 0.0675 + 0.75 * 0.005) * WEEKEND * 1e4),
    ],
)
def test_weekend_financing_by_hand(weights: tuple[float, float], gross: bool, bps: float) -> None:
    terms = replace(REAL, gross_financing=gross)
    target, flat = f64([list(weights)]), torch.zeros(1, 2, dtype=torch.float64)
    _, fill = ledger.step(open_accounts(1), target, flat, WEEKEND, terms)
    assert float(fill.financing) * 1e4 == pytest.approx(bps, rel=1e-12)


def test_documented_weekend_figures() -> None:
    assert round(0.5 * 0.0675 * WEEKEND * 1e4, 2) == 2.77
    assert round(0.2 * 0.0675 * WEEKEND * 1e4, 2) == 1.11


def test_short_over_an_overnight_gap_by_hand() -> None:
    """Short one leg at 100; it opens at 104 the next day: lose 4 % of the weight, pay 2 bps and one day's fee."""
    target, gap = f64([[0.0, -1.0]]), f64([[0.0, 0.04]])
    account, fill = ledger.step(open_accounts(1), target, gap, 1 / 365, REAL)
    assert float(account.equity) == pytest.approx(1 - 0.04 - 2e-4 - 0.005 / 365, rel=1e-14)
    assert float(account.holdings[0, 1]) == pytest.approx(-1.04)
    assert float(fill.turnover) == 1.0


def test_leverage_cap_by_hand() -> None:
    _, fill = ledger.step(open_accounts(1), f64([[2.0, -1.0]]), torch.zeros(1, 2, dtype=torch.float64), 0.0, REAL)
    torch.testing.assert_close(fill.weights, f64([[1.0, -0.5]]), rtol=1e-15, atol=0)


def test_terms_may_differ_by_row() -> None:
    target, returns, dt = paths(7)
    costs = torch.tensor([0.0, 1e-4, 5e-4, 1e-3] * 2, dtype=torch.float64)
    mixed = run(ledger.step, target, returns, dt, replace(REAL, cost=costs))[-1][0].equity
    for b in range(8):
        one = run(ledger.step, target, returns, dt, replace(REAL, cost=float(costs[b])))[-1][0].equity
        assert torch.equal(mixed[b], one[b])
