"""The ledger against vectorbt on a grid of accounts that follow given weights, float64, costs but no financing."""

import importlib.util
from typing import Any

import numpy as np
import torch

from benchmarks.arms import KEY, Arm
from envs import ledger
from envs.ledger import Terms

COST = 2e-4


def backtest_arms(bars: int, accounts: int) -> list[Arm]:
    """The ledger and, where it is installed, vectorbt's ``Portfolio.from_orders`` at target percent.

    Both follow the same random weights of gross exposure below equity through the same random prices. Only
    ``from_orders`` is timed, not what vectorbt derives from it. Both must end at the same equity.
    """
    rng = np.random.Generator(np.random.PCG64(KEY))
    moves = 0.01 * rng.standard_normal((bars, 2 * accounts))
    weights = rng.uniform(-0.45, 0.45, (bars - 1, 2 * accounts))
    price = 100 * np.cumprod(1 + moves, axis=0)
    targets = torch.from_numpy(weights).reshape(bars - 1, accounts, 2)
    returns = torch.from_numpy(price[1:] / price[:-1] - 1).reshape(bars - 1, accounts, 2)
    terms = Terms(cost=COST, leverage=1.0, borrow_rate=0.0, short_rate=0.0)

    def ours() -> np.ndarray:
        account = ledger.open_accounts(accounts)
        for target, earned in zip(targets, returns, strict=True):
            account, _ = ledger.step(account, target, earned, 1 / 252, terms)
        return account.equity.numpy()

    steps = (bars - 1) * accounts
    arms = [Arm("ledger following weights", "pairpbt", "backtest", accounts, 0, steps, ours, passes=1)]
    if not importlib.util.find_spec("vectorbt"):
        return arms
    import vectorbt

    size = np.vstack((weights, np.full((1, 2 * accounts), np.nan)))  # the last bar only marks
    groups = np.repeat(np.arange(accounts), 2)

    def theirs() -> Any:
        return vectorbt.Portfolio.from_orders(
            close=price,
            size=size,
            size_type="targetpercent",
            fees=COST,
            group_by=groups,
            cash_sharing=True,
            call_seq="auto",
            init_cash=1.0,
            freq="D",
        )

    np.testing.assert_allclose(theirs().value().iloc[-1].to_numpy(), ours(), rtol=1e-6)
    arms.append(Arm("vectorbt following weights", "vectorbt", "backtest", accounts, 0, steps, theirs, passes=1))
    return arms
