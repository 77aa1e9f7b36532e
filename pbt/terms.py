"""Scenarios: the terms under which survivors and baselines are run again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from analysis.summary import scenario_id
from envs.ledger import Terms
from rayconf.run_config import RunConfig

BASE = "base"


@dataclass(frozen=True)
class Scenario:
    """Terms of a backtest."""

    name: str
    cost_bps: float
    """Commission plus slippage per side."""
    lag: int
    leverage: float | None = None
    """Gross limit of the ledger; None: the run's own. Policies ask for what they were trained to ask for."""
    borrow_rate: float | None = None
    """Interest per year on borrowed cash; None: the run's own."""


def scenarios(run: RunConfig) -> tuple[Scenario, ...]:
    """The run's own terms, then the grid of costs, lags, gross limits and borrow rates."""
    grid = run.backtest
    own = run.costs
    cells = product(
        grid.cost_bps, grid.lags, grid.leverages or (own.leverage,), grid.borrow_rates or (own.borrow_rate,)
    )
    return (base_scenario(run), *(scenario(run, *cell) for cell in cells))


def scenario(run: RunConfig, cost_bps: float, lag: int, leverage: float, borrow_rate: float) -> Scenario:
    """A scenario with its name, which tells the terms that differ from the run's own beside cost and lag."""
    others: dict[str, float] = {}
    if leverage != run.costs.leverage:
        others["lev"] = leverage
    if borrow_rate != run.costs.borrow_rate:
        others["borrow"] = borrow_rate
    return Scenario(scenario_id(cost_bps, lag, **others), cost_bps, lag, others.get("lev"), others.get("borrow"))


def base_scenario(run: RunConfig) -> Scenario:
    """The run's own costs and lag."""
    return Scenario(BASE, run.costs.real_bps, run.env.lag)


def terms_of(run: RunConfig, rows: Sequence[Scenario]) -> Terms:
    """Terms with a value per row where rows may differ."""

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    terms = Terms.from_costs(run.costs, column([row.cost_bps for row in rows]))
    if any(row.leverage is not None for row in rows):
        limits = [run.costs.leverage if row.leverage is None else row.leverage for row in rows]
        terms = replace(terms, leverage=column(limits))
    if any(row.borrow_rate is not None for row in rows):
        rates = [run.costs.borrow_rate if row.borrow_rate is None else row.borrow_rate for row in rows]
        terms = replace(terms, borrow_rate=column(rates))
    return terms
