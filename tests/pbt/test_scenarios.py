"""Grids of scenarios: their terms, breakeven costs, delays, and the check that costs cost."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from analysis.metrics import cagr, session_returns, sharpe
from envs import ledger
from envs.market import PairMarket
from pbt.scenarios import (
    HIGHEST,
    Breakeven,
    breakeven_costs,
    check_spans,
    delays,
    parse_grid,
    parse_splits,
    rises_with_costs,
    with_grid,
)
from pbt.simulator import Batch, follow, followed, simulate
from pbt.terms import Scenario, scenarios
from rayconf import RunConfig, UserError
from tests.pbt.test_simulator import PAIR, Case, assert_same_bits, changed, columns, make_case

GRID = ("costs=0,5", "lag=1,2", "leverage=0.8,1.5", "borrow=0,0.0675")


@pytest.fixture(scope="module")
def case(tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]) -> Case:
    return make_case(with_grid(tiny_run, parse_grid(GRID)), tiny_markets[PAIR])


def test_names_tell_the_terms_that_are_not_the_runs_own(case: Case) -> None:
    found = {one.name: one for one in scenarios(case.run)}
    assert len(found) == 1 + 2 * 2 * 2 * 2
    assert found["base"] == Scenario("base", 2.0, 1)
    assert found["cost5-lag2"] == Scenario("cost5-lag2", 5.0, 2)
    assert found["cost0-lag1-lev0.8-borrow0.0"] == Scenario("cost0-lag1-lev0.8-borrow0.0", 0.0, 1, 0.8, 0.0)


def test_terms_reach_the_ledger_and_nothing_else(case: Case) -> None:
    """The ledger caps and lends otherwise; what a policy asks for changes only as its account does."""
    for (name, policy), table in case.test.items():
        held = table["gross"].to_numpy()
        limit = 0.8 if "lev0.8" in name else 1.5
        assert held.max() <= limit * (1 + 1e-12)
        if policy == "zscore" and held.max() > 0:
            assert held.max() == pytest.approx(limit)
            assert np.abs(table["target_weight_a"].to_numpy()).max() == 0.75
        if policy == "hold_a" and "borrow0.0" in name:
            assert (table["financing"].to_numpy() == 0).all()
    doubled = changed(case.run, "backtest", leverages=(2.5,))
    wide = simulate(case.market, doubled, case.policies, case.prepared, "test", "made", scenarios(doubled))
    name = "cost5-lag1-lev2.5"
    gross = {lev: tables[key, "survivor-1"]["gross"].to_numpy() for lev, tables, key in (
        (2.5, wide, name), (1.5, case.test, "cost5-lag1"))}  # fmt: skip
    assert gross[2.5].max() > 1.5 >= gross[1.5].max() - 1e-12
    free = case.test["cost5-lag1-borrow0.0", "survivor-1"]["financing"].to_numpy()
    assert (free <= case.test["cost5-lag1", "survivor-1"]["financing"].to_numpy() + 1e-3).all()
    assert free.sum() < case.test["cost5-lag1", "survivor-1"]["financing"].to_numpy().sum()


def test_a_row_is_the_same_in_whatever_share_of_the_grid(case: Case) -> None:
    grid = scenarios(case.run)
    for share in (grid[3:4], grid[5:12:3]):
        again = simulate(case.market, case.run, case.policies, case.prepared, "test", "made", share)
        for key, table in again.items():
            assert_same_bits(columns(table), columns(case.test[key]))


def final(case: Case, name: str, cost: float) -> float:
    targets = followed(case.market, case.run, case.prepared, "test")
    own = {name: case.policies[name]} if name in case.policies else {}
    table = {} if own else {name: targets[name]}
    record = follow(own, table, case.market, case.run, "test", [Scenario("", cost, 1)])
    return float(record.equity[-1, 0])


def test_breakeven_is_where_growth_crosses_zero(case: Case) -> None:
    targets = followed(case.market, case.run, case.prepared, "test")
    turned = {f"not {name}": -table for name, table in targets.items()}
    found = breakeven_costs(case.market, case.run, case.policies, {**targets, **turned}, "test")
    kinds = {one.known for one in found.values()}
    assert kinds == {"found", "above", "loses", "idle"}
    assert found["cash"] == Breakeven(None, "idle")
    for name, one in found.items():
        if name.startswith("not"):
            continue
        if one.bps is not None:
            assert final(case, name, one.bps - 0.02) > 1 > final(case, name, one.bps + 0.02), name
            assert str(one) == f"{one.bps:.1f} bps"
        elif one.known == "above":
            assert final(case, name, HIGHEST) > 1
            assert str(one) == "> 100 bps"
        elif one.known == "loses":
            assert final(case, name, 0.0) <= 1


def test_delays_are_those_of_an_account_of_its_own(case: Case) -> None:
    targets = followed(case.market, case.run, case.prepared, "validation")
    found = delays(case.market, case.run, case.policies, targets, "validation")
    assert set(found) == {*case.policies, *targets}
    for lag in (1, 2):
        batch = Batch({"survivor-2": case.policies["survivor-2"]}, {}, [Scenario("", 2.0, lag)])
        record = batch.run(case.market, case.run, "validation")
        returns, _ = session_returns(record.net_return[:, 0], case.market.dates[record.fill_bar[:, 0]])
        assert found["survivor-2"][lag] == (sharpe(returns), cagr(returns))


HONEST = ledger.step


def paid_for_trading(account: Any, target: Any, returns: Any, dt: Any, terms: Any) -> Any:
    return HONEST(account, target, returns, dt, replace(terms, cost=-1 * terms.cost))


def unfilled_where_dear(account: Any, target: Any, returns: Any, dt: Any, terms: Any) -> Any:
    """Slipped orders are dropped on falling bars: slippage as a filter that knows the bar."""
    falling = (returns.sum(dim=1, keepdim=True) < 0) & (torch.as_tensor(terms.cost) > 3e-4).reshape(-1, 1)
    return HONEST(account, target.masked_fill(falling, 0.0), returns, dt, terms)


def test_equity_never_rises_with_costs_and_a_broken_ledger_shows(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = followed(case.market, case.run, case.prepared, "test")
    arguments = (case.market, case.run, case.policies, targets, "test")
    assert rises_with_costs(*arguments) == []

    monkeypatch.setattr(ledger, "step", paid_for_trading)
    found = rises_with_costs(*arguments)
    assert {one.policy for one in found} == {*case.policies, *targets} - {"cash"}
    first = next(one for one in found if one.policy == "survivor-1")
    assert (first.pair, first.split, first.cheap.cost_bps, first.dear.cost_bps) == (PAIR, "test", 0.0, 2.0)
    assert first.date == case.market.dates[case.market.splits["test"].start]  # the first trade
    assert first.equity_dear > first.equity_cheap
    assert f"{PAIR} test survivor-1: equity" in str(first)
    assert "at 2 bps is above" in str(first)

    monkeypatch.setattr(ledger, "step", unfilled_where_dear)
    found = rises_with_costs(*arguments)
    assert {one.policy for one in found} >= {"equal_weight", "hold_a", "hold_b"}
    assert {(one.cheap.cost_bps, one.dear.cost_bps) for one in found} == {(2.0, 5.0)}


MISTAKES = {
    "cost=1": "must be one of costs, lag, leverage, borrow",
    "costs": "must be one of",
    "lag=soon": "must list numbers",
    "costs=1,1": "cost_bps: give each value once",
    "costs=-1": "cost_bps.0",
    "lag=0": "lags.0",
    "lag=1.5": "lags.0",
    "leverage=0": "leverages.0",
    "borrow=-0.1": "borrow_rates.0",
    "borrow=nan": "borrow_rates.0",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_grid_that_cannot_be(text: str, tiny_run: RunConfig) -> None:
    with pytest.raises(UserError, match=f"--grid: .*{MISTAKES[text]}"):
        with_grid(tiny_run, parse_grid([text]))


def test_splits_and_spans_that_cannot_be(case: Case) -> None:
    assert parse_splits("validation,test") == ("validation", "test")
    for text, message in (("tset", "'tset' is no split"), ("test,test", "twice"), ("", "'' is no split")):
        with pytest.raises(UserError, match=message):
            parse_splits(text)
    with pytest.raises(UserError, match="--grid: costs is given twice"):
        parse_grid(["costs=1", "costs=2"])
    late = with_grid(case.run, {"lags": [20]})
    check_spans(case.market, late, ("validation", "test"))
    with pytest.raises(UserError, match="lag=20 decides before the first features of train; at most 3"):
        check_spans(case.market, late, ("train",))
