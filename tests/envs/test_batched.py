"""The trainer's environment against one account at a time in plain Python, and within its own training span."""

import math
from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from envs.batched import BatchedPairTrading, training_terms
from envs.market import PairMarket, Span
from envs.prior import PRIOR_COLUMNS
from envs.training_bars import TrainingBars
from rayconf.errors import UserError
from rayconf.loading import build_config
from rayconf.run_config import RunConfig
from tests.envs.conftest import SlowAccount, make_market, make_run, reading_policy

TAIL_QUANTILE = 0.004


class SlowRow:
    """Episodes of one row: its account, its clock and its reward by the written formula."""

    def __init__(self, market: PairMarket, run: RunConfig, bar: int, age: int) -> None:
        self.market, self.run = market, run
        self.bar, self.age = bar, age
        self.account = SlowAccount(market, training_terms(run), run.env.lag, bar)
        self.seen = self.account.view(bar, True)
        self.log_equity = [0.0]

    def step(self, action: list[float]) -> float:
        env = self.run.env
        tilt = (action[0] - action[1]) * 0.375
        target = [1.5 * action[0], 1.5 * action[1]] if env.mapping == "direct" else [tilt, -tilt]
        if env.mapping == "residual":
            target = [float(p) + 1.5 * env.reach * a for p, a in zip(self.market.prior[self.bar], action, strict=True)]
        if env.adjustment < 1:
            held = [1.5 * x for x in self.seen[:2]]
            moves = [env.adjustment * (w - h) for w, h in zip(target, held, strict=True)]
            band = env.no_trade_band
            target = [h + math.copysign(max(0.0, abs(m) - band), m) for h, m in zip(held, moves, strict=True)]
        done = self.account.act(self.bar, target)
        growth = math.log(max(done["growth"], 1e-3))
        before = self.deepest()
        self.log_equity.append(self.log_equity[-1] + growth)
        rho = {"variance": growth**2, "downside": min(growth, 0) ** 2, "drawdown": 2 * (self.deepest() - before)}
        tau = max(0.0, -growth - TAIL_QUANTILE) / 0.05
        self.bar, self.age = self.bar + 1, self.age + 1
        assert env.risk_penalty is not None
        return (
            growth
            - env.risk_penalty / 2 * rho[env.risk_measure]
            - 1e-4 * env.turnover_penalty * done["turnover"] ** 2
            - env.cvar_weight * tau
        ) / self.market.equal_weight_sd

    def deepest(self) -> float:
        """Maximum log-drawdown of the episode so far, the long way round."""
        return max(max(self.log_equity[: i + 1]) - x for i, x in enumerate(self.log_equity))

    @property
    def over(self) -> bool:
        last = self.market.splits["train"].stop - 2 - self.run.env.lag
        return not self.account.ruined and (self.age >= self.run.env.episode_bars or self.bar > last)


def follow(
    market: PairMarket,
    run: RunConfig,
    seed: int,
    sabotage: Callable[[BatchedPairTrading], object],
    others: tuple[PairMarket, ...] = (),
) -> tuple:
    """Step rows through the batched environment and compare every number; counts of terminations, truncations.

    Feature 0 tells where an account stands: bar and, where the market trains on ``others`` too, in which of them.
    """
    known = (market, *others)

    def row_at(where: float, age: int) -> SlowRow:
        return SlowRow(known[int(where) // 10_000], run, int(where) % 10_000, age)

    n, drawdown = 6, run.env.risk_measure == "drawdown"
    env = BatchedPairTrading(market, run, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    env.tail_quantile = TAIL_QUANTILE
    seen = env.reset()
    sabotage(env)
    rows = [row_at(float(seen[i, 0]), int(env._age[i])) for i in range(n)]
    visited = {id(row.market) for row in rows}
    assert not bool(seen[:, 5:].any())
    ended = {"terminated": 0, "truncated": 0}
    for _ in range(90):
        action = reading_policy(seen[:, :5], seen[:, 5:])
        action[0] = 1.0  # one row always fully long, so that crashes ruin it
        step = env.step(action)
        ahead = step.observation if step.final_observation is None else step.final_observation
        for i, row in enumerate(rows):
            assert float(step.reward[i]) == pytest.approx(row.step(action[i].tolist()), rel=1e-9, abs=1e-9)
            assert float(step.log_growth[i]) == pytest.approx(row.log_equity[-1] - row.log_equity[-2], abs=1e-12)
            assert bool(step.terminated[i]) == row.account.ruined
            assert bool(step.truncated[i]) == row.over
            row.seen = account = row.account.view(row.bar, drawdown)
            expected = [*row.market.features[row.bar].astype(np.float64), *account]
            np.testing.assert_allclose(ahead[i].numpy(), expected, rtol=1e-9, atol=1e-12)
            if row.account.ruined or row.over:
                ended["terminated" if row.account.ruined else "truncated"] += 1
                assert step.final_observation is not None
                fresh = step.observation[i]
                assert not bool(fresh[5:].any())
                rows[i] = row_at(float(fresh[0]), 0)
                visited.add(id(rows[i].market))
                np.testing.assert_array_equal(fresh[:5].numpy(), rows[i].market.features[rows[i].bar])
            else:
                assert torch.equal(step.observation[i], ahead[i])
        seen = step.observation
    assert len(visited) == len(known)
    return ended["terminated"], ended["truncated"]


def strong(measure: str, lag: int, mapping: str = "direct") -> RunConfig:
    """Penalties large enough that each term of the reward shows, and a training cost above the real one."""
    return make_run(
        risk_measure=measure, risk_penalty=3.0, turnover_penalty=40.0, cvar_weight=0.05, train_cost_bps=7.0,
        lag=lag, mapping=mapping,
    )  # fmt: skip


@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize("measure", ["variance", "downside", "drawdown"])
def test_rows_equal_slow_accounts(measure: str, lag: int) -> None:
    mapping = "neutral" if lag == 3 else "direct"
    _, truncated = follow(make_market(seed=lag), strong(measure, lag, mapping), 1, lambda env: None)
    assert truncated >= 6
    terminated, _ = follow(make_market(seed=lag, crashes=0.1), strong(measure, lag), 2, lambda env: None)
    assert terminated >= 2


@pytest.mark.parametrize("lag", [1, 2])
def test_residuals_with_brakes_equal_slow_accounts(lag: int) -> None:
    market = make_market(seed=5)
    names = ("0", "1", "2", *PRIOR_COLUMNS)
    market = replace(market, scaler=replace(market.scaler, names=names))
    assert market.prior is not None
    run = make_run(mapping="residual", reach=0.4, adjustment=0.35, no_trade_band=0.03, lag=lag)
    assert follow(market, run, 3, lambda env: None)[1] >= 6


@pytest.mark.parametrize("lag", [1, 3])
def test_episodes_of_a_universe_are_those_of_its_markets(lag: int) -> None:
    markets = []
    for number, bars in enumerate((300, 260, 420)):
        market = make_market(bars, seed=number)
        market.features[:, 0] += 10_000 * number
        markets.append(replace(market, pair=f"P{number}/Q", equal_weight_sd=0.01 * (1 + number)))
    first, *others = markets
    first = replace(first, training=TrainingBars.joined(markets, before=lag + 1))
    assert follow(first, strong("drawdown", lag), 1, lambda env: None, tuple(others))[1] >= 6


def _marked_at_the_next_open(env: BatchedPairTrading) -> None:
    env._bars[:, 2:4] = env._bars[:, :2]


def _fills_a_bar_early(env: BatchedPairTrading) -> None:
    env._lag -= 1


def _no_time(env: BatchedPairTrading) -> None:
    env._bars[:, 4] = 0


def _no_ruin(env: BatchedPairTrading) -> None:
    env._terms = replace(env._terms, ruin_fraction=-9.0)


def _real_cost(env: BatchedPairTrading) -> None:
    env._terms = replace(env._terms, cost=2e-4)


def _drawdown_survives_resets(env: BatchedPairTrading) -> None:
    env._view.reset_rows = lambda rows: None  # type: ignore[method-assign]


def _without(term: str) -> Callable[[BatchedPairTrading], None]:
    return lambda env: setattr(env._reward, term, 0.0)


def _endless(env: BatchedPairTrading) -> None:
    env._episode_bars += 1


@pytest.mark.parametrize(
    "mutant",
    [
        _marked_at_the_next_open, _fills_a_bar_early, _no_time, _no_ruin, _real_cost, _drawdown_survives_resets,
        _without("_turnover"), _without("_cvar"), _without("_risk"), _endless,
    ],
)  # fmt: skip
def test_broken_environments_are_caught(mutant: Callable[[BatchedPairTrading], object]) -> None:
    with pytest.raises(AssertionError):
        follow(make_market(seed=1, crashes=0.05), strong("drawdown", 1), 2, mutant)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    lag=st.integers(1, 6),
    start=st.integers(6, 60),
    rows=st.integers(8, 90),
    episode=st.integers(2, 120),
)
def test_nothing_outside_train_is_touched(seed: int, lag: int, start: int, rows: int, episode: int) -> None:
    """With every other price and feature NaN all numbers stay finite; every fill bar of the span comes up."""
    stop = start + rows + 1
    market = make_market(160, seed % 1000)
    bar = np.arange(160)[:, None]
    fill = np.where((bar >= start) & (bar < stop), market.fill, np.nan)
    close = np.where((bar >= start) & (bar < stop - 1), market.close, np.nan)
    features = np.where((bar >= start - lag) & (bar < stop - lag), market.features, np.nan).astype(np.float32)
    poisoned = replace(market, fill=fill, close=close, features=features, splits={"train": Span(start, stop)})
    run = make_run(lag=lag, episode_bars=episode, risk_measure="drawdown")
    env = BatchedPairTrading(poisoned, run, 32, generator=torch.Generator().manual_seed(seed))
    seen, reached = env.reset(), set()
    for _ in range(110):
        assert bool(torch.isfinite(seen).all())
        decided = seen[:, 0].long()
        reached |= set((decided + lag).tolist())
        step = env.step(reading_policy(seen[:, :5], seen[:, 5:]))
        assert bool(torch.isfinite(step.reward).all())
        assert bool(torch.isfinite(step.log_growth).all())
        if step.final_observation is not None:
            assert bool(torch.isfinite(step.final_observation).all())
        seen = step.observation
    assert min(reached) >= start
    assert max(reached) <= stop - 2
    assert len(reached) > 0.8 * rows


def test_clocks_are_staggered_and_starts_spread() -> None:
    run = make_run(episode_bars=20)
    env = BatchedPairTrading(make_market(4000), run, 256, generator=torch.Generator().manual_seed(0))
    seen = env.reset()
    assert len(set(seen[:, 0].tolist())) > 80
    finished = torch.stack([env.step(torch.zeros(256, 2)).truncated.float().mean() for _ in range(60)])
    assert float(finished.max()) < 0.15  # never all at once
    assert float(finished.mean()) == pytest.approx(1 / 20, rel=0.05)


def test_single_precision_follows_double_and_the_generator_decides() -> None:
    run, market = strong("drawdown", 1), make_market()

    def rewards(dtype: torch.dtype, seed: int) -> torch.Tensor:
        env = BatchedPairTrading(market, run, 32, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        env.reset()
        actions = torch.rand(60, 32, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2 - 1
        return torch.stack([env.step(action.to(dtype)).reward for action in actions]).double()

    exact = rewards(torch.float64, 3)
    assert torch.equal(exact, rewards(torch.float64, 3))
    assert not torch.equal(exact, rewards(torch.float64, 4))
    torch.testing.assert_close(rewards(torch.float32, 3), exact, rtol=1e-3, atol=2e-4)


def test_tail_quantile_moves_towards_that_of_the_losses() -> None:
    env = BatchedPairTrading(make_market(), make_run(), 4, generator=torch.Generator().manual_seed(0))
    growth = torch.randn(400, 4, generator=torch.Generator().manual_seed(1)) * 0.01
    before = env.tail_quantile
    env.observe_tail(growth)
    goal = float(np.quantile(-growth.numpy(), 0.95))
    assert env.tail_quantile == pytest.approx(before + 0.1 * (goal - before), rel=1e-5)
    for _ in range(200):
        env.observe_tail(growth)
    assert env.tail_quantile == pytest.approx(goal, rel=1e-5)


@pytest.mark.parametrize("crashes", [0.0, 0.05])
def test_numbered_observations_are_the_same_episodes(crashes: float) -> None:
    """The number of the bar (feature 0 of these markets) instead of its features, nothing else."""
    market, run = make_market(seed=1, crashes=crashes), strong("drawdown", 1)
    plain, numbered = (
        BatchedPairTrading(market, run, 16, generator=torch.Generator().manual_seed(0), numbered=n)
        for n in (False, True)
    )
    seen, short = plain.reset(), numbered.reset()
    assert numbered.observation_dim == short.shape[1] == 4
    finals = 0
    for _ in range(60):
        assert torch.equal(short, seen[:, [0, 5, 6, 7]])
        a, b = (env.step(reading_policy(seen[:, :5], seen[:, 5:])) for env in (plain, numbered))
        assert torch.equal(a.reward, b.reward)
        if a.final_observation is not None:
            finals += 1
            assert torch.equal(b.final_observation, a.final_observation[:, [0, 5, 6, 7]])
        seen, short = a.observation, b.observation
    assert finals


@pytest.mark.parametrize("per_start", [1, 4])
def test_bars_ahead_are_known_unless_an_account_is_ruined(per_start: int) -> None:
    run = make_run({"ppo": {"num_envs": 16, "rollout_steps": 600, "accounts_per_start": per_start}}, episode_bars=9)
    env = BatchedPairTrading(make_market(400), run, 16, generator=torch.Generator().manual_seed(0), numbered=True)
    env.reset()
    for steps in (1, 25):
        ahead, seen = set(env.upcoming(steps).tolist()), set()
        for _ in range(steps):
            step = env.step(torch.zeros(16, 2))
            seen |= set(step.observation[:, 0].tolist())
            if step.final_observation is not None:
                seen |= set(step.final_observation[:, 0].tolist())
        assert seen <= ahead
        assert len(ahead - seen) <= 16  # those of the present


def test_accounts_that_start_together_see_the_same_bars() -> None:
    run = make_run({"ppo": {"num_envs": 16, "rollout_steps": 600, "accounts_per_start": 4}}, episode_bars=9)
    env = BatchedPairTrading(make_market(400), run, 16, generator=torch.Generator().manual_seed(0), numbered=True)
    seen = env.reset()
    for _ in range(40):
        bars = seen[:, 0].view(4, 4)
        assert bool((bars == bars[:, :1]).all())
        assert len(bars[:, 0].unique()) > 1
        seen = env.step(torch.rand(16, 2, generator=torch.Generator().manual_seed(1))).observation
    with pytest.raises(UserError, match="accounts_per_start 3 must divide num_envs 16"):
        build_config({"ppo": {"num_envs": 16, "minibatch_size": 16, "accounts_per_start": 3}})
