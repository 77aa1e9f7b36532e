"""The backtest: equal to the environment to the bit, honest scenarios, and the same on any number of CPUs."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from torch import Tensor

from algos.policy import EnsemblePolicy, Policy
from analysis.frames import KEYS, daily_schema, write_frame
from envs.account_view import AccountView
from envs.ledger import Terms
from envs.mapping import ActionMap
from envs.market import PairMarket
from envs.pair_trading import PairTradingEnv
from envs.replay import ByRow, Replay, replay
from pbt import simulator as backtest_module
from pbt.simulator import (
    ENSEMBLE,
    WEIGHTED,
    Daily,
    Policies,
    Prepared,
    backtest,
    deal,
    prepare,
    simulate,
    with_ensembles,
)
from pbt.terms import Scenario, base_scenario, scenarios
from rayconf import RunConfig

PAIR = "SYNA/SYNB"
LEARNED = ("ensemble", "survivor-1", "survivor-2", "survivor-3")
BASELINES = (
    "cash", "equal_weight", "hold_a", "hold_b", "static_gross", "vol_target", "zscore", "zscore_gross1",
    "zscore_textbook",
)  # fmt: skip
LEDGER_COLUMNS = (
    "target_weight_a", "target_weight_b", "weight_a", "weight_b", "turnover", "trading_cost", "financing",
    "net_return", "equity",
)  # fmt: skip


def survivors(run: RunConfig, market: PairMarket, seed: int = 0) -> Policies:
    """Three networks that nobody trained, restless enough to trade at every bar, and their ensemble."""
    g = torch.Generator().manual_seed(seed)
    sizes = [market.features.shape[1] + 2, *run.network.hidden, 2]
    made = []
    for _ in range(3):
        layers = [
            (torch.randn(after, before, generator=g) / before**0.5, 0.1 * torch.randn(after, generator=g))
            for before, after in pairwise(sizes)
        ]
        made.append(
            Policy(
                layers,
                activation=run.network.activation,
                action_map=ActionMap.of(run),
                feature_names=market.scaler.names,
            )
        )
    return {"ensemble": EnsemblePolicy(made), **{f"survivor-{i}": policy for i, policy in enumerate(made, start=1)}}


@dataclass(frozen=True)
class Case:
    run: RunConfig
    market: PairMarket
    policies: Policies
    prepared: Prepared
    test: Daily


def make_case(run: RunConfig, market: PairMarket) -> Case:
    policies = survivors(run, market)
    prepared = prepare(market, run, policies)
    return Case(
        run, market, policies, prepared, simulate(market, run, policies, prepared, "test", "made", scenarios(run))
    )


@pytest.fixture(scope="module")
def case(tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]) -> Case:
    return make_case(tiny_run, tiny_markets[PAIR])


def changed(run: RunConfig, section: str, **values: Any) -> RunConfig:
    return run.model_copy(update={section: getattr(run, section).model_copy(update=values)})


def columns(table: pa.Table) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy() for name in LEDGER_COLUMNS}


def assert_same_bits(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> None:
    for name in LEDGER_COLUMNS:
        assert left[name].tobytes() == right[name].tobytes(), name


# --- the environment and the backtest are one thing ----------------------------------------------------------------


def play(env: PairTradingEnv, policy: Policy, leverage: float) -> dict[str, np.ndarray]:
    """Walk the environment with a policy; what every step did, as columns of the daily frame."""
    observation, _ = env.reset()
    account_columns = 2
    rows: list[dict[str, float]] = []
    over = False
    while not over:
        seen = torch.from_numpy(observation).unsqueeze(0)
        target = policy.decide(seen[:, :-account_columns], seen[:, -account_columns:])[0].numpy()
        observation, _, terminated, truncated, info = env.step(target / leverage)
        weights = info.pop("weights")
        rows.append(
            {
                "target_weight_a": target[0],
                "target_weight_b": target[1],
                "weight_a": weights[0],
                "weight_b": weights[1],
                **{name: info[name] for name in LEDGER_COLUMNS if name in info},
            }
        )
        over = terminated or truncated
    return {name: np.array([row[name] for row in rows]) for name in LEDGER_COLUMNS}


def test_the_weighted_ensemble_counts_members_by_fitness_in_units_of_its_error(case: Case) -> None:
    members = {name: case.policies[name] for name in LEARNED[1:]}
    fitness = [(0.9, 0.1), (0.7, 0.3), (0.5, 0.2)]  # mean error 0.2
    made = with_ensembles(members, fitness)
    assert list(made) == [ENSEMBLE, WEIGHTED, *members]
    assert made[ENSEMBLE].shares is None
    odds = np.exp([0.0, -1.0, -2.0])
    assert made[WEIGHTED].shares == pytest.approx(odds / odds.sum())
    certain = with_ensembles(members, [(value, 0.0) for value, _ in fitness])
    assert certain[WEIGHTED].shares == pytest.approx((1.0, 0.0, 0.0))
    assert WEIGHTED not in with_ensembles({"survivor-1": members["survivor-1"]}, fitness[:1])


@pytest.mark.parametrize("lag", [1, 2])
def test_the_environment_is_the_backtest_to_the_last_bit(
    lag: int, tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]
) -> None:
    run, market = changed(tiny_run, "env", lag=lag), tiny_markets[PAIR]
    case = make_case(run, market)
    for name, policy in case.policies.items():
        if isinstance(policy, Policy):
            walked = play(PairTradingEnv(market, run, "test"), policy, run.costs.leverage)
            assert_same_bits(walked, columns(case.test["base", name]))
            assert walked["turnover"].mean() > 0.05
            assert len(walked["equity"]) == market.splits["test"].rows


def marked_late(env: PairTradingEnv) -> None:
    env._moves = torch.tensor(env._market.returns)  # marks the account at the next fill instead of the close


def undrifted(env: PairTradingEnv) -> None:
    env._view = AccountView(1, 2, env._run.costs.leverage, False, torch.float64)


def later(env: PairTradingEnv) -> None:
    env._lag, env._first, env._last = 2, env._first - 1, env._last - 1


def cheaper(env: PairTradingEnv) -> None:
    env._terms = Terms.from_costs(env._run.costs, 1.0)


@pytest.mark.parametrize("break_it", [marked_late, undrifted, later, cheaper])
def test_an_environment_broken_on_purpose_is_not_the_backtest(
    break_it: Callable[[PairTradingEnv], None], case: Case
) -> None:
    env = PairTradingEnv(case.market, case.run, "test")
    break_it(env)
    walked = play(env, case.policies["survivor-1"], case.run.costs.leverage)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        assert_same_bits(walked, columns(case.test["base", "survivor-1"]))


# --- what the rows say ---------------------------------------------------------------------------------------------


def replayed(case: Case, decide: Callable[[Tensor, Tensor, Tensor], Tensor], scenario: Scenario) -> Replay:
    return replay(
        case.market,
        case.market.splits["test"],
        ByRow(decide, case.market.features),
        Terms.from_costs(case.run.costs, scenario.cost_bps),
        scenario.lag,
        batch=1,
        leverage=case.run.costs.leverage,
        in_pieces=False,
    )


def assert_rows_are(record: Replay, table: pa.Table) -> None:
    """The first row of a replay against a table, to the bit."""
    parts = {name: getattr(record, name)[:, 0] for name in LEDGER_COLUMNS if hasattr(record, name)}
    for i, leg in enumerate("ab"):
        parts |= {f"target_weight_{leg}": record.target[:, 0, i], f"weight_{leg}": record.weight[:, 0, i]}
    assert_same_bits({name: np.ascontiguousarray(values) for name, values in parts.items()}, columns(table))


def test_every_learned_row_is_its_policy_alone_in_every_scenario(case: Case) -> None:
    """All networks and scenarios together, against one account after the other and policies asked by themselves."""
    for scenario in scenarios(case.run):
        for name, policy in case.policies.items():

            def decide(_bars: Tensor, features: Tensor, account: Tensor, policy: Any = policy) -> Tensor:
                return policy.decide(features, account)

            assert_rows_are(replayed(case, decide, scenario), case.test[scenario.name, name])


def test_the_ensemble_targets_the_mean_of_its_members(case: Case) -> None:
    members = [case.policies[name] for name in LEARNED[1:]]
    means = []

    def decide(_bars: Tensor, features: Tensor, account: Tensor) -> Tensor:
        means.append(np.mean([member.decide(features, account)[0].numpy() for member in members], axis=0))
        return case.policies["ensemble"].decide(features, account)

    base = scenarios(case.run)[0]
    assert_rows_are(replayed(case, decide, base), case.test["base", "ensemble"])
    held = case.test["base", "ensemble"]
    targets = np.column_stack((held["target_weight_a"], held["target_weight_b"]))
    np.testing.assert_allclose(targets, means, rtol=0, atol=0.5000001e-4)
    spread = [held[f"target_weight_{leg}"].to_numpy() - case.test["base", "survivor-1"][f"target_weight_{leg}"]
              for leg in "ab"]  # fmt: skip
    assert np.abs(spread).mean() > 0.05  # a mean that is just its first member would be seen


def test_all_scenarios_and_policies_fill_on_the_same_bars(case: Case) -> None:
    span = case.market.splits["test"]
    expected = case.market.dates[span.start : span.stop - 1]
    lags = {scenario.name: scenario.lag for scenario in scenarios(case.run)}
    assert set(case.test) == {(scenario, policy) for scenario in lags for policy in (*LEARNED, *BASELINES)}
    for (scenario, _), table in case.test.items():
        np.testing.assert_array_equal(table["date"].to_numpy(), expected)
        decided = case.market.dates[span.start - lags[scenario] : span.stop - 1 - lags[scenario]]
        np.testing.assert_array_equal(table["decision_date"].to_numpy(), decided)


def test_baselines_target_by_decision_bar_whatever_the_lag(case: Case) -> None:
    """Lag 2 asks for what lag 1 asked for a bar before; another cost changes no target."""
    for name in BASELINES:
        for leg in "ab":
            target = {s: case.test[s, name][f"target_weight_{leg}"].to_numpy() for s, _ in case.test}
            np.testing.assert_array_equal(target["cost5-lag1"][:-1], target["cost5-lag2"][1:])
            np.testing.assert_array_equal(target["cost5-lag1"], target["cost10-lag1"])


def test_equity_never_rises_with_costs(case: Case) -> None:
    """The same targets under 1, 5 and 10 bps, bar by bar; strictly lower once something has been traded."""
    for lag in case.run.backtest.lags:
        for name in BASELINES:
            paths = [case.test[f"cost{cost:g}-lag{lag}", name]["equity"].to_numpy() for cost in (1.0, 5.0, 10.0)]
            for cheap, dear in pairwise(paths):
                assert (dear <= cheap).all(), name
                assert (dear[-1] < cheap[-1]) == (name != "cash")


def test_static_gross_holds_the_ensembles_mean_weights_on_validation(case: Case) -> None:
    rows = simulate(
        case.market, case.run, case.policies, case.prepared, "validation", "made", [base_scenario(case.run)]
    )
    assert {name for _, name in rows} == {*LEARNED, *BASELINES}
    assert {scenario for scenario, _ in rows} == {"base"}
    for leg in "ab":
        mean = rows["base", "ensemble"][f"weight_{leg}"].to_numpy().mean()
        targets = case.test["base", "static_gross"][f"target_weight_{leg}"].to_numpy()
        assert len(set(targets)) == 1
        assert targets[0] == pytest.approx(mean, rel=1e-12)
        first = rows["base", "survivor-1"][f"weight_{leg}"].to_numpy().mean()
        assert abs(mean - first) > 1e-3


def test_train_holds_learned_policies_and_equal_weight_alone(case: Case) -> None:
    own = [base_scenario(case.run)]
    rows = simulate(case.market, case.run, case.policies, None, "train", "made", own)
    assert set(rows) == {("base", name) for name in (*LEARNED, "equal_weight")}
    assert {table.num_rows for table in rows.values()} == {case.market.splits["train"].rows}
    equal = rows["base", "equal_weight"]
    assert set(equal["target_weight_a"].to_numpy()) == set(equal["target_weight_b"].to_numpy()) == {0.5}
    with pytest.raises(ValueError, match="prepare"):
        simulate(case.market, case.run, case.policies, None, "test", "made", own)


def test_base_is_the_scenario_of_the_same_terms(tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]) -> None:
    """Base is the run's own 2 bps and lag 1, so the grid's cost2-lag1 must repeat it; no other cell does."""
    run = changed(tiny_run, "backtest", cost_bps=(2.0, 5.0))
    rows = make_case(run, tiny_markets[PAIR]).test
    for name in (*LEARNED, *BASELINES):
        base = columns(rows["base", name])
        assert_same_bits(base, columns(rows["cost2-lag1", name]))
        if name != "cash":
            assert columns(rows["cost5-lag1", name])["equity"][-1] < base["equity"][-1] or name in LEARNED
            assert (columns(rows["cost5-lag1", name])["trading_cost"] != base["trading_cost"]).any()


# --- on Ray --------------------------------------------------------------------------------------------------------


def meeting(folder: Path, guests: int) -> Any:
    """The task of the backtest, which goes on only once ``guests`` tasks have started: alone it would wait in vain."""

    def attend(market: PairMarket, *rest: Any) -> Any:
        _, _, _, split, _, chosen, *_ = rest
        (folder / f"{market.pair.replace('/', '_')}-{split}-{chosen[0].name}").touch()
        deadline = time.monotonic() + 60
        while len(list(folder.iterdir())) < guests:
            if time.monotonic() > deadline:
                raise TimeoutError("no other task runs beside this one")
            time.sleep(0.01)
        return deal(market, *rest)

    return ray.remote(num_cpus=1)(attend)


def test_tasks_run_side_by_side_on_markets_put_once_and_equal_one_process(
    ray_session: None,
    tmp_path: Path,
    tiny_run: RunConfig,
    tiny_markets: Mapping[str, PairMarket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pickled: list[str] = []

    def counted(market: PairMarket, protocol: int) -> Any:
        pickled.append(market.pair)
        return object.__reduce_ex__(market, protocol)

    monkeypatch.setattr(PairMarket, "__reduce_ex__", counted)
    references = {pair: ray.put(market) for pair, market in tiny_markets.items()}
    policies = {pair: survivors(tiny_run, market, seed) for seed, (pair, market) in enumerate(tiny_markets.items())}
    monkeypatch.setattr(backtest_module, "_deal", meeting(tmp_path, 2))
    daily, prepared = backtest(tiny_run, "made", references, policies)
    assert sorted(pickled) == sorted(tiny_markets)  # once each, by the puts above
    assert len(list(tmp_path.iterdir())) == 3 * len(tiny_markets)

    # two CPUs a task on a machine of two: one task after the other
    monkeypatch.setattr(backtest_module, "_deal", ray.remote(num_cpus=2)(deal))
    serial, again = backtest(tiny_run, "made", references, policies)
    assert serial.equals(daily)
    assert again == prepared

    blocks = {}
    for pair, market in tiny_markets.items():
        assert prepared[pair] == prepare(market, tiny_run, policies[pair])
        for split in ("test", "train", "validation"):
            chosen = scenarios(tiny_run) if split == "test" else [base_scenario(tiny_run)]
            rows = simulate(market, tiny_run, policies[pair], prepared[pair], split, "made", chosen)
            blocks.update({(split, scenario, pair, policy): table for (scenario, policy), table in rows.items()})
    assert daily.equals(pa.concat_tables([blocks[key] for key in sorted(blocks)]))

    assert daily.schema.equals(daily_schema())
    assert len(daily.select(KEYS["daily"]).group_by(KEYS["daily"]).aggregate([])) == daily.num_rows
    written = write_frame(daily, daily_schema(), KEYS["daily"], tmp_path / "daily.parquet")
    assert written.equals(daily)  # it came in the order of its key
    assert set(daily["run"].to_pylist()) == {"made"}
    assert all(daily[name].null_count == 0 for name in daily.schema.names)


def test_a_grid_is_dealt_to_all_cpus_and_its_rows_are_the_same(
    ray_session: None, tmp_path: Path, tiny_run: RunConfig, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pair and one split are no longer one task: two meet on two CPUs, and smaller shares give the same frame."""
    known = [{"pair": PAIR, "policy": name, "rank": 1, "member": "m00", "generation": 1} for name in LEARNED[1:]]
    whole: dict[int, pa.Table] = {}
    for cells in (backtest_module.CELLS, 1):
        monkeypatch.setattr(backtest_module, "CELLS", cells)
        folder = tmp_path / str(cells)
        folder.mkdir()
        monkeypatch.setattr(backtest_module, "_deal", meeting(folder, 2))
        simulator = backtest_module.Simulator.start(
            tiny_run, "made", {PAIR: ray.put(case.market)}, {PAIR: case.policies}, {PAIR: case.prepared}
        )
        summaries: list[pa.Table] = []
        blocks = list(simulator.blocks({"test": scenarios(tiny_run)}, known, ("ensemble",), summaries))
        assert [name for name, _ in blocks] == sorted(one.name for one in scenarios(tiny_run))
        assert len(list(folder.iterdir())) == (2 if cells > 1 else len(blocks))
        whole[cells] = pa.concat_tables([table for _, table in blocks])
        assert pa.concat_tables(summaries).num_rows == len(blocks) * len({*LEARNED, *BASELINES})
    first, second = whole.values()
    assert first.equals(second)
    expected = [case.test[key] for key in sorted(case.test) if key[0] == "base" or key[1] == "ensemble"]
    assert first.equals(pa.concat_tables(expected))
