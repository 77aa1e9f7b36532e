"""The direct arm: the gradient, the objective and the accounts against slower ways, and the algorithm as a whole."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from algos.bar_network import BarActorCritic
from algos.direct import Course, Unroll, objective
from algos.dropout import KeyedDropout
from algos.module import ActorCritic
from algos.pair_ppo import PairPPO
from benchmarks import optimality
from envs.account_view import account_size
from envs.batched import training_terms, uses_drawdown
from envs.mapping import ActionMap
from envs.market import PairMarket, Span
from envs.replay import ByRow, Replay, replay
from envs.training_bars import TrainingBars
from rayconf.errors import UserError
from rayconf.run_config import RunConfig, default_search
from rayconf.search import idle_fields
from tests.algos.conftest import small_run
from tests.envs.conftest import make_market, make_run

Build = Callable[..., PairPPO]
WINDOWS, BARS, BURN = 6, 20, 4
DIRECT = {"windows": WINDOWS, "window_bars": BARS, "burn_bars": BURN}
SMALL = ("algo=direct", "direct.windows=16", "direct.window_bars=12", "direct.burn_bars=3", "direct.steps=4")
SD = 0.01  # of equal weight in the made market


def run_for(encoder: str = "mlp", direct: dict[str, Any] | None = None, **env: Any) -> RunConfig:
    network = {"encoder": encoder, "hidden": [7, 5], "encoder_window": 5, "encoder_width": 4}
    direct = {**DIRECT, **(direct or {})}
    return make_run({"algo": "direct", "direct": direct, "network": network, "costs": {"ruin_fraction": 0.5}}, **env)


def network_for(run: RunConfig, market: PairMarket, scale: float = 1.0) -> ActorCritic:
    """In float64, with an actor that trades: its weights are drawn at random."""
    features, account = market.features.shape[1], account_size(uses_drawdown(run))
    kind = ActorCritic if run.network.encoder == "mlp" else BarActorCritic
    config = run.network.model_dump() | {"key": 1, "features": features, "policy_gain": 0.01}
    spaces = [gym.spaces.Box(-np.inf, np.inf, (n,), np.float32) for n in (account, 2)]
    spaces[0] = gym.spaces.Box(-np.inf, np.inf, (account + (features if kind is ActorCritic else 1),), np.float32)
    net = kind(observation_space=spaces[0], action_space=spaces[1], model_config=config).double()
    g = torch.Generator().manual_seed(3)
    for p in net.parameters():
        p.data = scale * (p.data + 0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    if isinstance(net, BarActorCritic):
        net.attach(market.features)
    return net


def market_for_windows(crashes: float = 0.0, seed: int = 0) -> PairMarket:
    """The first feature, which counts bars, is brought to the size of the others."""
    market = make_market(seed=seed, crashes=crashes)
    market.features[:, 0] = np.sin(market.features[:, 0])
    return market


def course_of(run: RunConfig, market: PairMarket, net: ActorCritic) -> tuple[Course, Tensor]:
    """The windows that key 5 draws, and the bars of their first decisions."""
    unroll = Unroll(market, run, torch.Generator().manual_seed(5), dtype=torch.float64)
    course = unroll(net)
    return course, unroll.env._bar - run.direct.window_bars


def gradient(value: Tensor, net: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*net.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {name: part for name, part in zip(names, found, strict=True) if part is not None}


CASES = [
    ("mlp", {"worst_window": 0.3}, {}),
    ("mlp", {"objective": "reward"}, {"risk_measure": "drawdown", "cvar_weight": 0.1}),
    ("factored", {}, {"lag": 2, "mapping": "neutral"}),
    ("gru", {"objective": "reward"}, {"leverage_cap": 0.7}),
    ("mlp", {}, {"mapping": "residual", "reach": 1.0, "adjustment": 0.4, "no_trade_band": 0.01}),
]


@pytest.mark.parametrize(("encoder", "direct", "env"), CASES)
def test_the_gradient_is_that_of_finite_differences(encoder: str, direct: dict[str, Any], env: dict[str, Any]) -> None:
    run, market = run_for(encoder, direct, **env), market_for_windows()
    net = network_for(run, market)

    def value() -> Tensor:
        return objective(course_of(run, market, net)[0], run.direct, run.env.turnover_penalty)

    exact = gradient(value(), net)
    assert {name for name, _ in net.named_parameters()} - set(exact) == {
        name for name, _ in net.named_parameters() if name.startswith(("vf.", "critic_encoder.", "log_std"))
    }
    g = torch.Generator().manual_seed(9)
    for name, parameter in net.named_parameters():
        if name not in exact:
            continue
        way = torch.randn(parameter.shape, generator=g, dtype=parameter.dtype)
        ends = []
        for step in (1e-6, -1e-6):
            parameter.data += step * way
            ends.append(float(value().detach()))
            parameter.data -= step * way
        slope = (ends[0] - ends[1]) / 2e-6
        assert float((exact[name] * way).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-8), name
    assert max(float(part.abs().max()) for part in exact.values()) > 1e-4


def replayed(run: RunConfig, market: PairMarket, net: ActorCritic, starts: Tensor) -> Replay:
    """The same windows as accounts of a replay, under the training terms."""
    env, mapped = run.env, ActionMap.of(run)
    prior = None if market.prior is None else torch.from_numpy(market.prior)

    def decide(bars: Tensor, features: Tensor, account: Tensor) -> Tensor:
        shown = features if run.network.encoder == "mlp" else bars.double().unsqueeze(1)
        action = torch.tanh(net.parameters_of(torch.cat((shown, account), dim=1))[:, :2])
        return mapped.targets(action, None if prior is None else prior[bars], account[:, :2] * run.costs.leverage)

    firsts = (starts + env.lag).tolist()
    return replay(
        market,
        [Span(first, first + run.direct.window_bars + 1) for first in firsts],
        ByRow(decide, market.features),
        training_terms(run),
        env.lag,
        batch=len(firsts),
        leverage=run.costs.leverage,
        drawdown=uses_drawdown(run),
        in_pieces=False,
    )


@pytest.mark.parametrize(
    ("encoder", "env", "crashes"),
    [
        ("mlp", {"train_cost_bps": 15.0}, 0.0),
        ("mlp", {"risk_measure": "drawdown", "lag": 2}, 0.2),
        ("factored", {"mapping": "neutral"}, 0.0),
        ("mlp", {"adjustment": 0.3, "no_trade_band": 0.02}, 0.0),
    ],
)
def test_the_objective_is_the_sharpe_ratio_of_a_replay(encoder: str, env: dict[str, Any], crashes: float) -> None:
    run, market = run_for(encoder, {"worst_window": 0.25}, **env), market_for_windows(crashes)
    net = network_for(run, market)
    with torch.no_grad():
        course, starts = course_of(run, market, net)
        found = float(objective(course, run.direct, 3.0))
    span = market.splits["train"]
    assert (starts + run.env.lag >= span.start).all()
    assert (starts + run.env.lag + BARS <= span.stop - 1).all()
    record = replayed(run, market, net, starts)
    np.testing.assert_allclose(course.net_return, record.net_return, rtol=0, atol=1e-12)
    np.testing.assert_allclose(course.turnover, record.turnover, rtol=1e-9, atol=1e-12)
    if crashes:
        assert (record.net_return[-1] == 0).any(), "some account is ruined"

    paid = (record.net_return - 3e-4 * record.turnover**2)[BURN:]
    pooled = paid.mean() / np.sqrt(paid.var() + (0.1 * SD) ** 2)
    t = [np.sqrt(BARS - BURN) * row.mean() / np.sqrt(row.var() + (0.1 * SD) ** 2) for row in paid.T]
    worst = -np.log(np.mean(np.exp(-5 * np.array(t)))) / 5 / np.sqrt(BARS - BURN)
    assert found == pytest.approx(pooled + 0.25 * worst, rel=1e-9)
    assert min(t) / np.sqrt(BARS - BURN) < worst < np.mean(t) / np.sqrt(BARS - BURN)


def test_windows_lie_in_one_market_each_and_all_count_alike() -> None:
    first = market_for_windows()
    second = replace(market_for_windows(seed=1), equal_weight_sd=0.03)
    market = replace(first, training=TrainingBars.joined([first, second], 2))
    run = run_for(direct={"windows": 400})
    net = network_for(run, market)
    course, starts = course_of(run, market, net)
    assert torch.isfinite(course.net_return).all(), "a market's last row earns no number"
    assert set(course.unit.unique().tolist()) == {1 / 0.01, 1 / 0.03}
    assert (course.unit == course.unit[0]).all(), "a window stays where it begins"
    spans = market.training.decisions(1) if market.training else []
    expected = {bar for span in spans for bar in range(span.start, span.stop - BARS + 1)}
    assert set(starts.tolist()) <= expected
    assert len(set(starts.tolist())) > 0.6 * len(expected)
    paid = ((course.net_return - 5e-5 * course.turnover**2) * course.unit)[BURN:].detach().numpy()
    found = objective(course, run.direct, 0.5).item()
    assert found == pytest.approx(paid.mean() / np.sqrt(paid.var() + 0.01))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 50),
    crashes=st.sampled_from([0.0, 0.2]),
    scale=st.sampled_from([0.0, 1.0, 300.0]),
    measure=st.sampled_from(["variance", "downside", "drawdown"]),
    goal=st.sampled_from([{"worst_window": 0.5}, {"objective": "reward"}]),
    cost=st.sampled_from([0.0, 2.0, 400.0]),
    lag=st.integers(1, 3),
)
def test_gradients_are_numbers_wherever_accounts_go(
    seed: int, crashes: float, scale: float, measure: str, goal: dict[str, Any], cost: float, lag: int
) -> None:
    """From cash to the cap and into ruin, before and within the part that counts."""
    run = run_for("mlp", goal, risk_measure=measure, train_cost_bps=2.0, lag=lag)
    run = run.model_copy(update={"env": run.env.model_copy(update={"train_cost_bps": cost})})
    market = market_for_windows(crashes, seed)
    net = network_for(run, market, scale)
    course, _ = course_of(run, market, net)
    value = objective(course, run.direct, 0.5)
    assert torch.isfinite(value)
    assert all(bool(torch.isfinite(part).all()) for part in gradient(value, net).values())


def test_a_mask_is_held_until_it_is_renewed() -> None:
    layer = nn.Identity()
    hook = KeyedDropout(0.5, torch.Generator().manual_seed(0), held=True)
    layer.register_forward_hook(hook)
    ones = torch.ones(4, 32)
    first = layer(ones)
    assert torch.equal(layer(2 * ones), 2 * first)
    hook.renew()
    assert not torch.equal(layer(ones), first)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "settings_",
    [
        ("network.dropout=0.3",),
        ("direct.objective=reward", "env.cvar_weight=0.1", "network.encoder=gru", "network.encoder_width=8"),
        ("optimizer.kind=muon_mix", "network.encoder=factored", "env.risk_measure=drawdown"),
        ("universe.pairs=SYNC/SYND,SYNE/SYNF", "env.mapping=residual", "augment.noise=0.2", "augment.cost_factor=3"),
    ],
)
def test_a_generation_is_a_function_of_state_config_and_key(build: Build, settings_: tuple[str, ...]) -> None:
    first = build(*SMALL, *settings_)
    first.train()
    boundary = first.boundary_state()
    results = []
    for algorithm, key in ((first, 77), (build(*SMALL, *settings_, key=123), 77), (build(*SMALL, *settings_), 78)):
        algorithm.load_boundary_state(boundary)
        algorithm.reseed(key)
        algorithm.train()
        results.append((algorithm.boundary_state(), algorithm.last_iteration()))
    assert same(results[0][0], results[1][0])
    assert not same(results[0][0], results[2][0])
    for figures in (results[0][1], results[2][1]):
        assert figures["env_steps"] == 16 * 12 * 4
        assert figures["skipped_steps"] == 0
        assert figures["grad_norm"] > 0
        assert figures["lr_first_step"] > 0
        assert figures["value_loss"] is figures["kl"] is figures["entropy"] is None
        assert figures["policy_loss"] not in (0, None)
    assert results[0][1]["policy_loss"] == results[1][1]["policy_loss"]
    assert results[0][0]["tail_quantile"] != boundary["tail_quantile"]


@pytest.mark.parametrize("encoder", ["mlp", "conv"])
def test_states_of_each_learner_start_the_other(build: Build, encoder: str) -> None:
    network = (f"network.encoder={encoder}", "network.encoder_width=8")
    direct = build(*SMALL, *network)
    fresh = direct.boundary_state()
    direct.train()
    ours = direct.boundary_state()
    idle = {
        n for n in fresh if n.split("/", 1)[-1].startswith(("vf.", "critic_encoder.", "log_std")) and "ema" not in n
    }
    still = {name for name in fresh if name.startswith("module/") and torch.equal(fresh[name], ours[name])}
    assert still == {name for name in idle if name.startswith("module/")}

    ppo = build(*network)
    ppo.load_boundary_state(ours)
    assert same(ppo.boundary_state(), ours)
    ppo.reseed(1)
    ppo.train()
    theirs = ppo.boundary_state()
    moved = {name for name in ours if name.startswith("module/") and not torch.equal(ours[name], theirs[name])}
    assert moved == {name for name in ours if name.startswith("module/")}

    direct.load_boundary_state(theirs)
    assert same(direct.boundary_state(), theirs)
    direct.reseed(2)
    direct.train()
    assert direct.last_iteration()["skipped_steps"] == 0
    assert direct.evaluate()["env_runners"]["gross"] > 0


def test_a_gradient_that_is_no_number_is_left_out(build: Build) -> None:
    algorithm = build(*SMALL)
    before = algorithm.boundary_state()
    broken = {k: torch.full_like(v, torch.nan) if k == "module/pi.4.bias" else v for k, v in before.items()}
    algorithm.load_boundary_state(broken)
    algorithm.train()
    figures = algorithm.last_iteration()
    assert (figures["skipped_steps"], figures["grad_norm"]) == (4, 0)
    assert torch.equal(algorithm.boundary_state()["module/pi.0.weight"], before["module/pi.0.weight"])


def test_planted_skill_is_found(ray_session: None) -> None:
    """The plain market, whose optimum is known: a good share of it after 40 gradient steps."""
    goal = ("algo=direct", "direct.steps=40", "optimizer.learning_rate=0.004")
    table = optimality.study(0, 2.0, 40 * 128 * 84, "direct", goal).set_index("policy")
    assert table.env_steps["learner"] == 40 * 128 * 84
    assert table.share["learner"] > 0.75


def test_pbt_turns_what_acts() -> None:
    sharpe = small_run("algo=direct")
    assert set(sharpe.search) == {"learning_rate", "turnover_penalty", "train_cost_bps"}
    assert small_run("algo=direct", "direct.objective=reward").search == small_run().search
    assert default_search(sharpe.env, sharpe.costs, idle_fields("direct", "sharpe")) == sharpe.search


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (("search={x: {path: ppo.clip, low: 0.1, high: 0.3}}",), ("search.x.path", "ppo.clip", "algo is direct")),
        (("search={x: {path: env.cvar_weight, low: 0.1, high: 1}}",), ("env.cvar_weight", "objective is sharpe")),
        (("direct.burn_bars=83",), ("burn_bars 83", "window_bars 84")),
        (("direct.objective=reward", "direct.worst_window=1"), ("worst_window", "sharpe")),
        (("algo=ppo", "search={x: {path: direct.worst_window, low: 0.1, high: 1}}"), ("algo is ppo",)),
    ],
)
def test_what_cannot_act_is_the_users_mistake(assignments: tuple[str, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        small_run("algo=direct", *assignments)
    for word in words:
        assert word in str(caught.value)
