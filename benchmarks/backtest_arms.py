"""A grid of policies through the whole backtest, and the ledger against vectorbt on given weights, all in float64."""

import importlib.util
from typing import Any

import numpy as np
import torch

from algos.bar_policy import build_policy
from algos.config import PairPPOConfig
from algos.env_runner import BatchedEnvRunner
from algos.policy import EnsemblePolicy
from algos.stack import decide_on
from benchmarks.arena import PAIR, Arena
from benchmarks.arms import KEY, Arm
from envs import ledger
from envs.ledger import Terms
from envs.market import Span
from envs.replay import replay

COST = 2e-4


def grid_arm(setting: Arena, rows: int, bars: int) -> Arm:
    """``envs.replay`` as the backtest calls it: three survivors and their ensemble over a grid of costs.

    ``rows`` accounts, a quarter each; an account's step includes policy, ledger and record. The ensemble asks its
    three networks, so that 1.5 network rows run per account.
    """
    run, market = setting.run, setting.market
    survivors = []
    for number in range(3):
        module = BatchedEnvRunner(config=PairPPOConfig.from_run(run, PAIR, key=KEY + number)).module
        survivors.append(build_policy(dict(module.named_parameters()), run, market.scaler.names))
    policies = [EnsemblePolicy(survivors), *survivors]
    costs = torch.linspace(0, 10, rows // 4, dtype=torch.float64).repeat(4)
    first = market.splits["train"].start
    features = torch.tensor(market.features)

    def grid() -> None:
        record = replay(
            market,
            Span(first, first + bars + 1),
            decide_on(policies, features, rows // 4),
            Terms.from_costs(run.costs, costs),
            run.env.lag,
            batch=rows,
            leverage=run.costs.leverage,
        )
        assert np.isfinite(record.equity).all()

    return Arm(f"backtest of {rows:,} rows, {run.network.encoder}", "pairpbt", "backtest", rows, 0, rows * bars, grid)


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
