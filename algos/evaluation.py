"""RLlib's ``evaluate()``: the evaluation policy over the validation span, one account, real costs."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from algos.markets import market_for
from algos.policy import Policy
from algos.stack import decide_on
from envs.batched import uses_drawdown
from envs.ledger import Terms
from envs.market import PairMarket
from envs.replay import Replay, replay
from rayconf.run_config import RunConfig

if TYPE_CHECKING:
    from algos.pair_ppo import PairPPO


def replay_policy(policy: Policy, market: PairMarket, run: RunConfig, split: str) -> Replay:
    """One continuous account from cash over a split, under the run's real costs and lag."""
    return replay(
        market,
        market.splits[split],
        decide_on([policy], torch.tensor(market.features)),
        Terms.from_costs(run.costs),
        run.env.lag,
        batch=1,
        leverage=run.costs.leverage,
        drawdown=uses_drawdown(run),
    )


def account_metrics(record: Replay, run: RunConfig, bars_per_year: float) -> dict[str, float]:
    """What the account of a replay did; nothing in here depends on a penalty.

    Returns:
        ``sharpe``: annualised, floored by ``pbt.floor_volatility`` (0 for cash); ``growth``: log growth per
        year; ``total_return``; ``volatility`` per year; ``turnover`` and ``gross``: means per bar.
    """
    returns = record.net_return[:, 0]
    variance = float(np.var(returns))
    floor = run.pbt.floor_volatility**2 / bars_per_year
    spread = math.sqrt(variance + floor)
    final = float(record.equity[-1, 0])
    return {
        "sharpe": math.sqrt(bars_per_year) * float(np.mean(returns)) / spread if spread > 0 else 0.0,
        "growth": math.log(max(final, 1e-12)) * bars_per_year / len(returns),
        "total_return": final - 1,
        "volatility": math.sqrt(variance * bars_per_year),
        "turnover": float(np.mean(record.turnover)),
        "gross": float(np.mean(record.gross)),
    }


def evaluate_on_validation(algorithm: "PairPPO", workers: Any) -> tuple[dict[str, Any], int, int]:
    """RLlib's custom evaluation function: ``account_metrics`` on validation.

    Args:
        algorithm: The algorithm under evaluation.
        workers: Unused; the replay is one account and needs no runners.
    """
    run = algorithm.config.run
    market = market_for(algorithm.config.env_config)
    record = replay_policy(algorithm.evaluation_policy(), market, run, "validation")
    results = account_metrics(record, run, market.bars_per_year)
    logger = MetricsLogger(stats_cls_lookup=algorithm.config.stats_cls_lookup, root=False)
    logger.log_dict(results, window=1)
    algorithm.metrics.aggregate([logger.reduce()], key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS))
    steps = len(record.net_return)
    return results, steps, steps
