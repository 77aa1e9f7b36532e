"""The Ray-parallel simulator: survivors, their ensemble and baselines over splits and scenarios.

All policies and scenarios of a task run as rows of one batch through the ledger; every network runs once a bar.
Tasks run side by side, one per pair and split; each pair's market and policies lie once in Ray's object store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import torch

from algos.policy import EnsemblePolicy, Policy
from algos.stack import decide_on
from analysis.frames import daily_schema, frame_block
from analysis.summary import scenario_id
from envs.batched import uses_drawdown
from envs.ledger import Terms
from envs.market import PairMarket
from envs.replay import Replay, replay
from pbt.baselines import ZScoreRule, baseline_targets, constant, fit_z_score
from rayconf.run_config import RunConfig

BASE = "base"
ENSEMBLE = "ensemble"
EQUAL_WEIGHT = "equal_weight"

Policies = Mapping[str, Policy | EnsemblePolicy]
Targets = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Scenario:
    """Terms that differ from the run's own."""

    name: str
    cost_bps: float
    """Commission plus slippage per side."""
    lag: int


def scenarios(run: RunConfig) -> tuple[Scenario, ...]:
    """The run's own terms, then the grid of costs and lags."""
    grid = (Scenario(scenario_id(cost, lag), cost, lag) for cost in run.backtest.cost_bps for lag in run.backtest.lags)
    return (base_scenario(run), *grid)


def base_scenario(run: RunConfig) -> Scenario:
    """The run's own costs and lag."""
    return Scenario(BASE, run.costs.real_bps, run.env.lag)


@dataclass(frozen=True)
class Batch:
    """Rows of one replay: every policy under every scenario, policy by policy."""

    policies: Policies
    targets: Targets
    scenarios: Sequence[Scenario]

    @property
    def names(self) -> list[str]:
        """Policy names in row order."""
        return [*self.policies, *self.targets]

    def run(self, market: PairMarket, run: RunConfig, split: str) -> Replay:
        """One continuous account per row over the split."""
        per_policy = len(self.scenarios)
        policies, features = list(self.policies.values()), torch.tensor(market.features)
        tables = [torch.from_numpy(np.asarray(table)) for table in self.targets.values()]
        lag = torch.tensor([s.lag for s in self.scenarios] * len(self.names))
        costs = torch.tensor([s.cost_bps for s in self.scenarios] * len(self.names), dtype=torch.float64)
        return replay(
            market,
            market.splits[split],
            decide_on(policies, features, per_policy) if policies else None,
            Terms.from_costs(run.costs, costs),
            int(lag[0]) if bool((lag == lag[0]).all()) else lag,
            batch=len(self.names) * per_policy,
            leverage=run.costs.leverage,
            drawdown=uses_drawdown(run),
            recorded=[table for table in tables for _ in self.scenarios],
        )

    def daily(self, market: PairMarket, run: RunConfig, split: str, name: str) -> dict[tuple[str, str], pa.Table]:
        """Rows of the ``daily`` frame by (scenario, policy); ``name`` is the run's identity."""
        record = self.run(market, run, split)
        gross = record.gross
        tables = {}
        schema = daily_schema()
        for p, policy in enumerate(self.names):
            for s, scenario in enumerate(self.scenarios):
                row = p * len(self.scenarios) + s
                constants = {
                    "run": name,
                    "window": 0,
                    "split": split,
                    "scenario": scenario.name,
                    "pair": market.pair,
                    "policy": policy,
                }
                columns = {
                    "decision_date": market.dates[record.decision_bar[:, row]],
                    "date": market.dates[record.fill_bar[:, row]],
                    "target_weight_a": record.target[:, row, 0],
                    "target_weight_b": record.target[:, row, 1],
                    "weight_a": record.weight[:, row, 0],
                    "weight_b": record.weight[:, row, 1],
                    "gross": gross[:, row],
                    "turnover": record.turnover[:, row],
                    "trading_cost": record.trading_cost[:, row],
                    "financing": record.financing[:, row],
                    "net_return": record.net_return[:, row],
                    "equity": record.equity[:, row],
                }
                tables[scenario.name, policy] = frame_block(schema, constants, columns)
        return tables


@dataclass(frozen=True)
class Prepared:
    """What the baselines take from train and validation, before the test span is read."""

    zscore: ZScoreRule
    static: tuple[float, float]
    """Mean weights of the ensemble on validation."""


def prepare(market: PairMarket, run: RunConfig, policies: Policies) -> Prepared:
    """Fit the z-score rule on train; take the ensemble's mean weights on validation."""
    torch.set_num_threads(1)
    record = Batch({ENSEMBLE: policies[ENSEMBLE]}, {}, [base_scenario(run)]).run(market, run, "validation")
    mean = record.weight[:, 0].mean(axis=0)
    return Prepared(fit_z_score(market, run), (float(mean[0]), float(mean[1])))


def simulate(
    market: PairMarket,
    run: RunConfig,
    policies: Policies,
    prepared: Prepared | None,
    split: str,
    name: str,
) -> dict[tuple[str, str], pa.Table]:
    """Daily rows of one pair and split, by (scenario, policy).

    Test holds all scenarios, train and validation the run's own. Train, where every fitted policy has seen all,
    holds the learned policies beside equal weight and needs nothing ``prepared``.
    """
    torch.set_num_threads(1)
    chosen = scenarios(run) if split == "test" else (base_scenario(run),)
    if split == "train":
        targets = {EQUAL_WEIGHT: constant(market, 0.5, 0.5)}
    elif prepared is None:
        raise ValueError(f"the baselines of {split} need what prepare() returns")
    else:
        targets = baseline_targets(market, run, prepared.zscore, prepared.static)
    return Batch(policies, targets, chosen).daily(market, run, split, name)


def backtest(
    run: RunConfig,
    name: str,
    markets: Mapping[str, ray.ObjectRef],
    policies: Mapping[str, Policies],
    splits: Sequence[str] = ("test", "train", "validation"),
) -> tuple[pa.Table, dict[str, Prepared]]:
    """Run every pair over the splits as Ray tasks.

    Args:
        run: The run.
        name: The run's identity, for the frame.
        markets: Markets in the object store, by pair.
        policies: Survivors and ensemble by pair and policy name.
        splits: Splits to run.

    Returns:
        The rows of the ``daily`` frame in the order of its key, and what the baselines were fitted to.
    """
    config = ray.put(run)
    chosen = {pair: ray.put(dict(of_pair)) for pair, of_pair in policies.items()}
    preparing = {pair: _prepare.remote(markets[pair], config, chosen[pair]) for pair in policies}
    running = {}
    for split in sorted(splits, key=lambda split: split != "train"):  # train is the longest and waits for nothing
        for pair in policies:
            prepared = None if split == "train" else preparing[pair]
            running[split, pair] = _simulate.remote(markets[pair], config, chosen[pair], prepared, split, name)
    blocks = {}
    for (split, pair), reference in running.items():
        for (scenario, policy), table in ray.get(reference).items():
            blocks[0, split, scenario, pair, policy] = table
    daily = pa.concat_tables([blocks[key] for key in sorted(blocks)]) if blocks else daily_schema().empty_table()
    return daily, {pair: ray.get(reference) for pair, reference in preparing.items()}


_prepare = ray.remote(num_cpus=1)(prepare)
_simulate = ray.remote(num_cpus=1)(simulate)
