"""What a grid of scenarios tells of a policy beyond its rows: breakeven cost, execution delay, and that costs cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import ray
import torch

from analysis.metrics import cagr, session_returns, sharpe
from envs.features import lookback
from envs.market import MIN_TEST_BARS, SPLITS, PairMarket
from envs.replay import Replay
from pbt.simulator import Batch, Policies, Prepared, Targets, follow, followed
from pbt.terms import Scenario, base_scenario, scenario
from rayconf.errors import UserError
from rayconf.loading import build_config, merge
from rayconf.run_config import RunConfig

GRID = {"costs": "cost_bps", "lag": "lags", "leverage": "leverages", "borrow": "borrow_rates"}
"""Fields of the config's ``backtest`` section by their names on the command line."""
HIGHEST = 100.0
"""Bps a side up to which a breakeven cost is looked for."""
LADDER = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, HIGHEST)
"""Costs that are tried first, in bps a side."""
ROUNDS, INSIDE = 3, 9
"""Times that the bracket of a breakeven is divided, by how many costs inside it."""
ROUNDING = 1e-12
"""Share of equity by which rounding alone may lift one account over another of the same arithmetic."""


def parse_grid(texts: Sequence[str]) -> dict[str, list[float]]:
    """``costs=1,5 lag=1,2 leverage=1,1.5 borrow=0`` as fields of the config's ``backtest`` section.

    Raises:
        UserError: For a name that is none of these, a name given twice, or values that are no numbers.
    """
    fields: dict[str, list[float]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if name not in GRID or not equals:
            raise UserError(f"--grid: {text!r} must be one of {', '.join(GRID)} with values, e.g. costs=1,5")
        if GRID[name] in fields:
            raise UserError(f"--grid: {name} is given twice; list its values once, e.g. {name}=1,5")
        try:
            fields[GRID[name]] = [float(value) for value in values.split(",")]
        except ValueError as error:
            raise UserError(f"--grid: {text!r} must list numbers, e.g. {name}=1,5") from error
    return fields


def with_grid(run: RunConfig, grid: Mapping[str, Sequence[float]]) -> RunConfig:
    """The run with another grid of scenarios; what is not given keeps the run's own. Raises ``UserError``."""
    try:
        return build_config(merge(run.model_dump(mode="json"), {"backtest": grid}))
    except UserError as error:
        raise UserError(f"--grid: {error}") from error


def parse_splits(text: str) -> tuple[str, ...]:
    """``validation,test`` as names of splits, each once. Raises ``UserError``."""
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in SPLITS]
    if unknown or len(set(names)) != len(names):
        wrong = f"{unknown[0]!r} is no split" if unknown else f"{text!r} names a split twice"
        raise UserError(f"--splits: {wrong}; list some of {', '.join(SPLITS)}, e.g. validation,test")
    return names


def check_spans(market: PairMarket, run: RunConfig, splits: Sequence[str]) -> None:
    """Raise ``UserError`` where a split is too short, or the longest lag would decide before features are known."""
    longest = max(run.env.lag, *run.backtest.lags)
    for split in splits:
        span = market.splits[split]
        if span.rows < MIN_TEST_BARS:
            raise UserError(f"{market.pair}: {split} has {span.rows} fills on these prices and needs {MIN_TEST_BARS}")
        if span.start - longest < lookback(run.features) - 1:
            most = span.start - lookback(run.features) + 1
            raise UserError(f"--grid: lag={longest} decides before the first features of {split}; at most {most}")


@dataclass(frozen=True)
class Breakeven:
    """The cost a side at which a policy that decides under it stops growing: its equity ends where it began."""

    bps: float | None
    """None where there is none, see ``known``."""
    known: str
    """``found``; ``above``: it still grows at the highest cost tried; ``loses``: it shrinks without any cost;
    ``idle``: it never trades."""

    def __str__(self) -> str:
        """As in a table."""
        words = {"above": f"> {HIGHEST:g} bps", "loses": "loses at 0", "idle": "-"}
        return words.get(self.known) or f"{self.bps:.1f} bps"


@dataclass(frozen=True)
class Rise:
    """An account that, with the targets of another, ended a bar above it although it pays more."""

    pair: str
    split: str
    policy: str
    cheap: Scenario
    dear: Scenario
    date: np.datetime64
    equity_cheap: float
    equity_dear: float

    def __str__(self) -> str:
        """In one line."""
        return (
            f"{self.pair} {self.split} {self.policy}: equity {self.equity_dear:.9f} at {self.dear.cost_bps:g} bps is "
            f"above {self.equity_cheap:.9f} at {self.cheap.cost_bps:g} bps on {self.date} with identical targets "
            f"({_rest(self.dear)})"
        )


@dataclass(frozen=True)
class Probe:
    """What was found out about the policies of one pair and split, by policy."""

    breakeven: dict[str, Breakeven]
    delays: dict[str, dict[int, tuple[float, float]]]
    """Sharpe ratio and CAGR by lag, under the run's own costs."""
    rises: list[Rise]


def probe(market: PairMarket, run: RunConfig, policies: Policies, prepared: Prepared | None, split: str) -> Probe:
    """Breakeven, delays and the check of costs for every policy and baseline of a pair and split."""
    torch.set_num_threads(1)
    targets = followed(market, run, prepared, split)
    return Probe(
        breakeven_costs(market, run, policies, targets, split),
        delays(market, run, policies, targets, split),
        rises_with_costs(market, run, policies, targets, split),
    )


def breakeven_costs(
    market: PairMarket, run: RunConfig, policies: Policies, targets: Targets, split: str
) -> dict[str, Breakeven]:
    """The first cost, from 0 upwards, at which the compound growth of each policy crosses 0, by policy.

    Policies decide anew under every cost, at the run's own lag, leverage limit and rates. A ladder of costs brackets
    the crossing, which is then narrowed; all costs of a round are rows of one replay.
    """
    names = [*policies, *targets]

    def growth(asked: Sequence[str], costs: np.ndarray) -> tuple[np.ndarray, Replay]:
        """Log growth [P, C] of the policies asked at their own costs [P, C]."""
        rows = [Scenario("", float(cost), run.env.lag) for cost in costs.ravel()]
        own = {name: policy for name, policy in policies.items() if name in asked}
        tables = {name: table for name, table in targets.items() if name in asked}
        record = follow(own, tables, market, run, split, rows)
        return np.log(np.maximum(record.equity[-1], 1e-300)).reshape(costs.shape), record

    ladder = np.tile(np.array(LADDER), (len(names), 1))
    grown, record = growth(names, ladder)
    traded = record.turnover.max(axis=0).reshape(ladder.shape).max(axis=1) > 0
    found: dict[str, Breakeven] = {}
    brackets: dict[str, tuple[float, float, float, float]] = {}
    for name, own, trades in zip(names, grown, traded, strict=True):
        if not trades:
            found[name] = Breakeven(None, "idle")
        elif own[0] <= 0:
            found[name] = Breakeven(None, "loses")
        elif (own > 0).all():
            found[name] = Breakeven(None, "above")
        else:
            i = int(np.argmax(own <= 0))
            brackets[name] = (LADDER[i - 1], LADDER[i], own[i - 1], own[i])
    for _ in range(ROUNDS if brackets else 0):
        asked = [name for name in names if name in brackets]
        inside = np.stack([np.linspace(*brackets[name][:2], INSIDE + 2) for name in asked])
        between, _ = growth(asked, inside[:, 1:-1])
        for name, costs, own in zip(asked, inside, between, strict=True):
            edges = np.concatenate(([brackets[name][2]], own, [brackets[name][3]]))
            i = int(np.argmax(edges <= 0))
            brackets[name] = (costs[i - 1], costs[i], edges[i - 1], edges[i])
    for name, (low, high, above, below) in brackets.items():
        found[name] = Breakeven(float(low + (high - low) * above / (above - below)), "found")
    return {name: found[name] for name in names}


def delays(
    market: PairMarket, run: RunConfig, policies: Policies, targets: Targets, split: str
) -> dict[str, dict[int, tuple[float, float]]]:
    """Sharpe ratio and CAGR by policy and lag: the run's own and those of its grid, under the run's own costs."""
    lags = sorted({run.env.lag, *run.backtest.lags})
    batch = Batch(policies, targets, [Scenario("", run.costs.real_bps, lag) for lag in lags])
    record = batch.run(market, run, split)
    figures: dict[str, dict[int, tuple[float, float]]] = {}
    for row, (name, lag) in enumerate(product(batch.names, lags)):
        returns, _ = session_returns(record.net_return[:, row], market.dates[record.fill_bar[:, row]])
        per_year = market.sessions_per_year
        figures.setdefault(name, {})[lag] = (sharpe(returns, per_year), cagr(returns, per_year))
    return figures


def rises_with_costs(
    market: PairMarket, run: RunConfig, policies: Policies, targets: Targets, split: str
) -> list[Rise]:
    """Where equity rises with costs although the targets are the same: never, or the accounting is broken.

    The targets that every policy asked for under the run's own terms are followed again at every cost of the grid
    (and none, and the run's own), for every leverage limit and borrow rate of the grid. Bars from the ruin of either
    account on say nothing, for who lost more may have been closed sooner.

    Returns:
        The first such bar of every two neighbouring costs.
    """
    batch = Batch(policies, targets, [base_scenario(run)])
    asked = batch.run(market, run, split)
    grid, own = run.backtest, run.costs
    costs = sorted({0.0, own.real_bps, *grid.cost_bps})
    limits = sorted({own.leverage, *grid.leverages})
    rates = sorted({own.borrow_rate, *grid.borrow_rates})
    cells = [scenario(run, cost, run.env.lag, limit, rate) for limit, rate in product(limits, rates) for cost in costs]
    found = []
    for row, name in enumerate(batch.names):
        table = np.zeros((len(market.dates), 2))
        table[asked.decision_bar[:, row]] = asked.target[:, row]
        record = follow({}, {name: table}, market, run, split, cells)
        alive = np.minimum.accumulate(record.equity, axis=0) > own.ruin_fraction
        for i, j in pairwise(range(len(cells))):
            cheap, dear = record.equity[:, i], record.equity[:, j]
            wrong = alive[:, i] & alive[:, j] & (dear > cheap * (1 + ROUNDING))
            if cells[i].cost_bps < cells[j].cost_bps and wrong.any():
                bar = int(wrong.argmax())
                where = (market.pair, split, name, cells[i], cells[j], market.dates[record.fill_bar[bar, 0]])
                found.append(Rise(*where, float(cheap[bar]), float(dear[bar])))
    return found


def _rest(terms: Scenario) -> str:
    return terms.name.partition("-")[2]


probing = ray.remote(num_cpus=1)(probe)
