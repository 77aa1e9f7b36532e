"""The Ray-parallel simulator: survivors, their ensemble and baselines over splits and scenarios.

All policies and scenarios of a task run as rows of one batch through the ledger; every network runs once a bar.
Tasks run side by side, at least one per pair and split, and as many more as there are CPUs: a grid is dealt out by
scenarios, and a row's bits depend on neither its task nor its neighbours. Each pair's market and policies lie once in
Ray's object store.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from algos.policy import EnsemblePolicy, Policy
from algos.stack import decide_on
from analysis.frames import daily_schema, frame_block
from analysis.summary import build_summary
from envs.batched import uses_drawdown
from envs.market import PairMarket
from envs.replay import Replay, replay
from pbt.baselines import ZScoreRule, baseline_targets, constant, fit_z_score
from pbt.terms import BASE, Scenario, base_scenario, scenarios, terms_of
from rayconf.run_config import RunConfig

ENSEMBLE = "ensemble"
WEIGHTED = "ensemble_weighted"
EQUAL_WEIGHT = "equal_weight"

SMALLEST_ERROR = 1e-3
"""Of a fitness, where survivors are weighted by it."""
BASELINES = 9
"""Baselines beside the policies, about."""
CELLS = 2_500_000
"""Rows of the daily frame that one task makes, about; some 200 bytes each."""

Policies = Mapping[str, Policy | EnsemblePolicy]
Targets = Mapping[str, np.ndarray]
Daily = dict[tuple[str, str], pa.Table]
"""Rows of the ``daily`` frame by (scenario, policy)."""


def with_ensembles(survivors: Mapping[str, Policy], fitness: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The survivors of a pair with their ensembles, by policy name.

    ``ensemble``, the headline, counts all alike. ``ensemble_weighted``, where there are several, counts each by
    exp(f / e) of its fitness f, e the mean standard error: by how far they are apart in units of their noise.

    Args:
        survivors: By name, best first.
        fitness: Fitness on validation and its standard error, of each.
    """
    members = list(survivors.values())
    found: dict[str, Any] = {ENSEMBLE: EnsemblePolicy(members)}
    if len(members) > 1:
        found[WEIGHTED] = EnsemblePolicy(members, fitness_shares(fitness))
    return {**found, **survivors}


def fitness_shares(fitness: Sequence[tuple[float, float]]) -> list[float]:
    """Shares of policies in their ensemble, the best one's 1, by fitness and its standard error of each."""
    value, error = np.array(fitness, np.float64).T
    shares: list[float] = np.exp((value - value.max()) / max(float(error.mean()), SMALLEST_ERROR)).tolist()
    return shares


def follow(
    policies: Policies,
    targets: Targets,
    market: PairMarket,
    run: RunConfig,
    split: str,
    rows: Sequence[Scenario],
) -> Replay:
    """One continuous account per row over a split.

    Args:
        policies: Who decides, by name.
        targets: Target weights [T, 2] by decision bar that further rows follow, by name.
        market: The pair.
        run: The run, whose leverage limit scales what the policies see of their account, whatever the scenario's.
        split: The split.
        rows: Terms of every row: those of the first policy, of the second, and so on, as many for each.
    """
    per_policy = len(rows) // (len(policies) + len(targets))
    tables = [torch.from_numpy(np.asarray(table)) for table in targets.values()]
    lag = torch.tensor([row.lag for row in rows])
    return replay(
        market,
        market.splits[split],
        decide_on(list(policies.values()), torch.tensor(market.features), per_policy) if policies else None,
        terms_of(run, rows),
        int(lag[0]) if bool((lag == lag[0]).all()) else lag,
        batch=len(rows),
        leverage=run.costs.leverage,
        drawdown=uses_drawdown(run),
        recorded=[table for table in tables for _ in range(per_policy)],
    )


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
        rows = [scenario for _ in self.names for scenario in self.scenarios]
        return follow(self.policies, self.targets, market, run, split, rows)

    def daily(self, market: PairMarket, run: RunConfig, split: str, name: str) -> Daily:
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


def followed(market: PairMarket, run: RunConfig, prepared: Prepared | None, split: str) -> dict[str, np.ndarray]:
    """Target weights [T, 2] of the baselines of a split by name.

    Train, where every fitted policy has seen all, has equal weight alone and needs nothing ``prepared``.
    """
    if split == "train":
        return {EQUAL_WEIGHT: constant(market, 0.5, 0.5)}
    if prepared is None:
        raise ValueError(f"the baselines of {split} need what prepare() returns")
    return baseline_targets(market, run, prepared.zscore, prepared.static)


def simulate(
    market: PairMarket,
    run: RunConfig,
    policies: Policies,
    prepared: Prepared | None,
    split: str,
    name: str,
    chosen: Sequence[Scenario],
) -> Daily:
    """Daily rows of one pair and split under the chosen scenarios, by (scenario, policy)."""
    torch.set_num_threads(1)
    return Batch(policies, followed(market, run, prepared, split), chosen).daily(market, run, split, name)


def deal(
    market: PairMarket,
    run: RunConfig,
    policies: Policies,
    prepared: Prepared | None,
    split: str,
    name: str,
    chosen: Sequence[Scenario],
    known: Sequence[Mapping[str, Any]] | None,
    kept: Sequence[str] | None,
) -> tuple[Daily, pa.Table | None]:
    """What one task does: daily rows by (scenario, policy), and their summary.

    Args:
        market: The pair.
        run: The run.
        policies: Survivors and ensemble.
        prepared: What the baselines were fitted to.
        split: The split.
        name: The run's identity.
        chosen: The task's share of the scenarios.
        known: Survivors as ``build_summary`` takes them; None: no summary is made.
        kept: Policies whose rows come back from scenarios other than the run's own terms; None: all.
    """
    daily = simulate(market, run, policies, prepared, split, name, chosen)
    summary = None
    if known is not None:
        summary = build_summary(
            pa.concat_tables([daily[key] for key in sorted(daily)]),
            known,
            base_cost_bps=run.costs.real_bps,
            base_lag=run.env.lag,
            annual_sessions=market.sessions_per_year,
        )
    if kept is not None:
        daily = {key: table for key, table in daily.items() if key[0] == BASE or key[1] in kept}
    return daily, summary


def backtest(
    run: RunConfig,
    name: str,
    markets: Mapping[str, ray.ObjectRef],
    policies: Mapping[str, Policies],
    splits: Sequence[str] = ("test", "train", "validation"),
) -> tuple[pa.Table, dict[str, Prepared]]:
    """Run every pair over the splits as Ray tasks: test under all scenarios, train and validation under the run's own.

    Args:
        run: The run.
        name: The run's identity, for the frame.
        markets: Markets in the object store, by pair.
        policies: Survivors and ensemble by pair and policy name.
        splits: Splits to run.

    Returns:
        The rows of the ``daily`` frame in the order of its key, and what the baselines were fitted to.
    """
    cluster = Simulator.start(run, name, markets, policies)
    own = (base_scenario(run),)
    wanted = {split: scenarios(run) if split == "test" else own for split in splits}
    blocks = [table for _, table in cluster.blocks(wanted)]
    daily = pa.concat_tables(blocks) if blocks else daily_schema().empty_table()
    return daily, {pair: ray.get(reference) for pair, reference in cluster.prepared.items()}


@dataclass(frozen=True)
class Simulator:
    """A run's markets and policies in Ray's object store, for tasks of all kinds."""

    name: str
    config: ray.ObjectRef
    markets: Mapping[str, ray.ObjectRef]
    policies: Mapping[str, ray.ObjectRef]
    prepared: Mapping[str, ray.ObjectRef]
    rows: Mapping[str, int]
    """Policies and baselines of a pair, about."""

    @classmethod
    def start(
        cls,
        run: RunConfig,
        name: str,
        markets: Mapping[str, ray.ObjectRef],
        policies: Mapping[str, Policies],
        prepared: Mapping[str, Prepared] | None = None,
    ) -> "Simulator":
        """Put what the tasks share, once, and begin to fit the baselines unless they are ``prepared``."""
        config = ray.put(run)
        chosen = {pair: ray.put(dict(of_pair)) for pair, of_pair in policies.items()}
        if prepared is None:
            preparing = {pair: _prepare.remote(markets[pair], config, chosen[pair]) for pair in policies}
        else:
            preparing = {pair: ray.put(prepared[pair]) for pair in policies}
        rows = {pair: len(own) + BASELINES for pair, own in policies.items()}
        return cls(name, config, markets, chosen, preparing, rows)

    def blocks(
        self,
        wanted: Mapping[str, Sequence[Scenario]],
        known: Sequence[Mapping[str, Any]] | None = None,
        kept: Sequence[str] | None = None,
        summaries: list[pa.Table] | None = None,
    ) -> Iterator[tuple[str, pa.Table]]:
        """Rows of the ``daily`` frame in the order of its key: a scenario and its table per (split, scenario, pair).

        Args:
            wanted: Scenarios by split.
            known: Survivors as ``build_summary`` takes them; None: nothing is summarised.
            kept: Policies whose rows are wanted from scenarios other than the run's own terms; None: all.
            summaries: Where the ``summary`` rows of all policies and scenarios are put.
        """
        shares = {split: self._dealt(split, chosen, len(wanted)) for split, chosen in wanted.items()}
        running: dict[tuple[str, int, str], ray.ObjectRef] = {}
        for split in sorted(wanted, key=lambda split: split != "train"):  # the longest, and waits for nothing
            for number, share in enumerate(shares[split]):
                for pair in self.policies:
                    task = _deal.remote(*self.of(pair, split), split, self.name, share, known, kept)
                    running[split, number, pair] = task
        for split in sorted(wanted):
            for number, share in enumerate(shares[split]):
                done = {pair: ray.get(running.pop((split, number, pair))) for pair in sorted(self.policies)}
                if summaries is not None:
                    summaries += [summary for _, summary in done.values()]
                for scenario in share:
                    for tables, _ in done.values():
                        own = sorted(policy for name, policy in tables if name == scenario.name)
                        yield scenario.name, pa.concat_tables([tables[scenario.name, policy] for policy in own])

    def of(self, pair: str, split: str) -> tuple[Any, ...]:
        """What every task of a pair and split begins with: market, config, policies, what baselines were fitted to."""
        prepared = None if split == "train" else self.prepared[pair]
        return self.markets[pair], self.config, self.policies[pair], prepared

    def _dealt(self, split: str, chosen: Sequence[Scenario], splits: int) -> list[list[Scenario]]:
        """The scenarios in order of name, dealt into as many runs of neighbours as keep all CPUs busy."""
        ordered = sorted(chosen, key=lambda one: one.name)
        cpus = int(ray.cluster_resources().get("CPU", 1))
        bars = {pair: ray.get(self.markets[pair]).splits[split].rows for pair in self.policies}
        cells = max((bars[pair] * self.rows[pair] * len(ordered) for pair in bars), default=0)
        parts = max(-(-cpus // max(1, splits * len(bars))), -(-cells // CELLS))
        size = -(-len(ordered) // min(parts, len(ordered))) if ordered else 1
        return [ordered[first : first + size] for first in range(0, len(ordered), size)]


_prepare = ray.remote(num_cpus=1)(prepare)
_deal = ray.remote(num_cpus=1)(deal)
