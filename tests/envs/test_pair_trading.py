"""The Gymnasium environment: its interface, that stepping it is the backtest, and the action mappings."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings

from envs import ledger, pair_trading
from envs.batched import BatchedPairTrading
from envs.ledger import Terms
from envs.mapping import ActionMap, round_targets
from envs.pair_trading import PairTradingEnv
from envs.replay import ByRow, replay
from rayconf.run_config import RunConfig
from tests.envs.conftest import LEVERAGE, make_market, make_run, reading_policy

INFO = ("turnover", "trading_cost", "financing", "net_return", "equity")


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("measure", ["variance", "downside", "drawdown"])
def test_gymnasium_accepts_it(split: str, lag: int, measure: str) -> None:
    check_env(PairTradingEnv(make_market(), make_run(lag=lag, risk_measure=measure), split), skip_render_check=True)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'all': one of train, validation, test"):
        PairTradingEnv(make_market(), make_run(), "all")


# --- the environment is the backtest ------------------------------------------------------------------------------


def drive(run: RunConfig, act: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], sabotage: Callable) -> None:
    """Step the environment over the test split and replay the same policy: every number equal to the last bit."""
    market = make_market(700, seed=4)
    env = PairTradingEnv(market, run, "test")
    sabotage(env)
    span = market.splits["test"]

    def decide(bars: torch.Tensor, features: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        wanted = ActionMap.of(run).targets(act(features, account), None, account[:, :2] * LEVERAGE)
        return round_targets(wanted)

    record = replay(
        market, span, ByRow(decide, market.features), Terms.from_costs(run.costs), run.env.lag,
        batch=1, leverage=LEVERAGE, drawdown=run.env.risk_measure == "drawdown",
    )  # fmt: skip
    seen, info = env.reset()
    assert info["date"] == str(market.dates[span.start - run.env.lag])
    for i in range(span.rows):
        row = torch.from_numpy(seen).unsqueeze(0)
        assert row.dtype == torch.float64
        seen, _, terminated, truncated, info = env.step(act(row[:, :5], row[:, 5:])[0].numpy())
        for name in INFO:
            assert info[name] == getattr(record, name)[i, 0], name
        np.testing.assert_array_equal(info["weights"], record.weight[i, 0])
        assert info["date"] == str(market.dates[record.fill_bar[i, 0]])
        assert not terminated
        assert truncated == (i == span.rows - 1)
    assert record.equity.std() > 0.005
    assert record.turnover.mean() > 0.05


def noise(features: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
    """Decisions that differ at every bar and do not look at the account."""
    generator = torch.Generator().manual_seed(int(features[0, 0]))
    return torch.rand(1, 2, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("act", [noise, reading_policy])
@pytest.mark.parametrize("lag", [1, 2])
def test_stepping_is_the_backtest_to_the_last_bit(lag: int, act: Callable) -> None:
    drive(make_run(lag=lag), act, lambda env: None)
    drive(make_run(lag=lag, risk_measure="drawdown", mapping="neutral"), act, lambda env: None)
    drive(make_run(lag=lag, leverage_cap=0.9), act, lambda env: None)
    drive(make_run(lag=lag, adjustment=0.3, no_trade_band=0.02), act, lambda env: None)


def _other_ledger(account, target, returns, dt, terms):
    """Trades from target to target, as if holdings did not drift."""
    new, fill = ledger.step(account, target, returns, dt, terms)
    return replace(new, holdings=fill.held), fill


def _later(env: PairTradingEnv) -> None:
    env._returns, env._years = env._returns.roll(-1, 0), env._years.roll(-1, 0)


def _unmarked(env: PairTradingEnv) -> None:
    env._moves = torch.zeros_like(env._moves)


def _no_time(env: PairTradingEnv) -> None:
    env._years = torch.zeros_like(env._years)


def _training_cost(env: PairTradingEnv) -> None:
    env._terms = replace(env._terms, cost=3e-4)


@pytest.mark.parametrize("mutant", [_later, _unmarked, _no_time, _training_cost])
def test_a_broken_environment_is_caught(mutant: Callable[[PairTradingEnv], None]) -> None:
    with pytest.raises(AssertionError):
        drive(make_run(), reading_policy, mutant)


def test_a_second_ledger_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {name: getattr(ledger, name) for name in ("open_accounts", "rebased")}
    monkeypatch.setattr(pair_trading, "ledger", SimpleNamespace(step=_other_ledger, **parts))
    with pytest.raises(AssertionError):
        drive(make_run(), reading_policy, lambda env: None)


# --- the environment is one row of the trainer's ------------------------------------------------------------------


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("measure", ["variance", "downside", "drawdown"])
def test_training_episode_equals_a_row_of_the_batch(measure: str, lag: int) -> None:
    run = make_run(
        risk_measure=measure, lag=lag, risk_penalty=3.0, turnover_penalty=40.0, cvar_weight=0.05, train_cost_bps=7.0
    )
    for crashes, ending in ((0.0, "truncated"), (0.08, "terminated")):
        market = make_market(seed=3, crashes=crashes)
        single = PairTradingEnv(market, run, "train")
        seen, _ = single.reset(seed=1)
        batch = BatchedPairTrading(market, run, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        batch.reset()
        batch._bar, batch._age = torch.tensor([int(seen[0])]), torch.tensor([0])
        assert single.tail_quantile == batch.tail_quantile
        single.tail_quantile = batch.tail_quantile = 0.004
        for _ in range(run.env.episode_bars):
            action = np.array([1.0, 0.8 if crashes else -0.6 + 0.1 * (seen[1] > 0)])
            seen, reward, terminated, truncated, _ = single.step(action)
            step = batch.step(torch.from_numpy(action).unsqueeze(0))
            assert reward == float(step.reward[0])
            assert (terminated, truncated) == (bool(step.terminated[0]), bool(step.truncated[0]))
            ahead = step.observation if step.final_observation is None else step.final_observation
            np.testing.assert_array_equal(seen, ahead[0].float().numpy())
            if terminated or truncated:
                break
        assert {"terminated": terminated, "truncated": truncated}[ending]


def test_training_starts_vary_with_the_seed_alone() -> None:
    env = PairTradingEnv(make_market(), make_run(), "train")
    starts = [float(env.reset(seed=seed)[0][0]) for seed in range(8)]
    assert starts == [float(env.reset(seed=seed)[0][0]) for seed in range(8)]
    assert len(set(starts)) > 4


# --- mappings -----------------------------------------------------------------------------------------------------

numbers = st.lists(st.tuples(*[st.floats(-1, 1)] * 2), min_size=1, max_size=9)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(pairs=numbers, leverage=st.floats(0.1, 4))
def test_mappings(pairs: list[tuple[float, float]], leverage: float) -> None:
    action = torch.tensor(pairs, dtype=torch.float64)
    direct = ActionMap("direct", leverage).targets(action)
    assert torch.equal(direct, action * leverage)
    neutral = ActionMap("neutral", leverage).targets(action)
    assert torch.equal(neutral[:, 0], -neutral[:, 1])  # no net exposure, to the bit
    assert bool((neutral.abs().sum(1) <= leverage * (1 + 1e-12)).all())
    assert torch.equal(neutral, ActionMap("neutral", leverage).targets(-action.flip(1)))
    extreme = ActionMap("neutral", leverage).targets(torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    torch.testing.assert_close(extreme[0, 0], torch.tensor(leverage / 2, dtype=torch.float64))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(pairs=numbers)
def test_rounding_of_targets(pairs: list[tuple[float, float]]) -> None:
    target = torch.tensor(pairs, dtype=torch.float64) * 1.5
    rounded = round_targets(target)
    assert bool(((rounded - target).abs() <= 0.5e-4 + 1e-12).all())
    assert torch.equal(rounded, round_targets(rounded))
    assert torch.equal(rounded, -round_targets(-target))
    assert torch.equal(rounded, torch.tensor(np.round(target.numpy(), 4)))
    settled = (target * 1e4 - (target * 1e4).floor() - 0.5).abs() > 1e-3
    assert torch.equal(round_targets(target * (1 + 1e-9))[settled], rounded[settled])
    # a target written as an action and mapped back is the same target
    assert torch.equal(round_targets(ActionMap("direct", 1.5).targets(rounded / 1.5)), rounded)


def test_unknown_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown mapping 'pure': one of direct, neutral, residual"):
        ActionMap("pure", 1.5)
