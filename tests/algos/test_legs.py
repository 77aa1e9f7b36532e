"""Legs that share their weights: equivariance, the plain policy they become, and training as for any network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor, nn

from algos.bar_policy import build_policy
from algos.direct import Unroll
from algos.markets import market_for
from algos.module import ActorCritic
from algos.pair_ppo import PairPPO
from envs.batched import observation_names
from envs.legs import swap_legs
from envs.market import PairMarket
from envs.prior import prior_columns
from pbt.base import base_state
from rayconf.errors import UserError
from rayconf.run_config import RunConfig
from tests.algos.conftest import small_run
from tests.envs.conftest import make_run
from tests.envs.test_legs import CHANGES, mirrored, named_market

Build = Callable[..., PairPPO]
DIRECT = {"windows": 6, "window_bars": 20, "burn_bars": 4}
ENVS: dict[str, dict[str, Any]] = {
    "direct": {"risk_measure": "drawdown"},
    "neutral": {"mapping": "neutral"},
    "residual": {"mapping": "residual", "reach": 1.0, "adjustment": 0.5, "no_trade_band": 0.01},
}


def run_for(env: str = "direct", **network: Any) -> RunConfig:
    network = {"legs": "shared", "hidden": [7, 5], **network}
    return make_run({"algo": "direct", "direct": DIRECT, "network": network}, **ENVS[env])


def network_for(run: RunConfig) -> ActorCritic:
    """In float64, with weights drawn at random, biases too."""
    names = observation_names(CHANGES, run)
    spaces = [gym.spaces.Box(-np.inf, np.inf, (n,), np.float32) for n in (len(names), 2)]
    config = run.network.model_dump() | {"key": 1, "policy_gain": 0.01, "swap": swap_legs(names)}
    net = ActorCritic(observation_space=spaces[0], action_space=spaces[1], model_config=config).double()
    g = torch.Generator().manual_seed(3)
    for p in net.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return net


def swapped(observation: Tensor, run: RunConfig) -> Tensor:
    index, sign = swap_legs(observation_names(CHANGES, run))
    return observation[:, index] * torch.tensor(sign)


def observations(run: RunConfig, count: int = 50) -> Tensor:
    width = len(observation_names(CHANGES, run))
    return torch.randn(count, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("hidden", [[7, 5], [4], []])
def test_one_pass_is_the_network_asked_about_each_order(hidden: list[int]) -> None:
    """Values and gradients of the two-pass definition; so swapping legs swaps actions and leaves values alone."""
    run = run_for(hidden=hidden)
    net, seen = network_for(run), observations(run)
    g, h = (nn.Sequential(*branch) for branch in (net.pi, net.vf))
    apart = torch.cat((g(seen), g(swapped(seen, run))), dim=1), (h(seen) + h(swapped(seen, run))).squeeze(1) / 2
    whole = net.parameters_of(seen)[:, :2], net.compute_values({Columns.OBS: seen})
    for one, two in zip(whole, apart, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
        weights = [p for name, p in net.named_parameters() if name != "log_std"]
        here, there = (
            torch.autograd.grad(x.sin().sum(), weights, allow_unused=True, materialize_grads=True) for x in (one, two)
        )
        torch.testing.assert_close(here, there, rtol=0, atol=1e-11)
    other = net.parameters_of(swapped(seen, run))[:, :2], net.compute_values({Columns.OBS: swapped(seen, run)})
    torch.testing.assert_close(other[0], whole[0].flip(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(other[1], whole[1], rtol=0, atol=1e-12)
    assert (whole[0][:, 0] - whole[0][:, 1]).abs().min() > 1e-4


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize(("activation", "layer_norm"), [("tanh", False), ("silu", False), ("tanh", True)])
def test_the_policy_is_the_networks_mean_action_and_swaps_with_the_legs(
    env: str, activation: str, layer_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("algos.policy.round_targets", lambda target: target)
    run = run_for(env, activation=activation, layer_norm=layer_norm)
    net, seen = network_for(run), observations(run, 48)
    policy = build_policy(dict(net.named_parameters()), run, CHANGES)

    def decided(observation: Tensor) -> Tensor:
        return policy.decide(observation[:, : len(CHANGES)], observation[:, len(CHANGES) :])

    action = torch.tanh(net.parameters_of(seen)[:, :2]).detach()
    prior, held = seen[:, prior_columns(CHANGES)], seen[:, len(CHANGES) :][:, :2] * run.costs.leverage
    torch.testing.assert_close(decided(seen), policy.action_map.targets(action, prior, held), rtol=0, atol=1e-12)
    torch.testing.assert_close(decided(swapped(seen, run)), decided(seen).flip(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("env", ENVS)
def test_windows_of_the_swapped_market_earn_the_same(env: str) -> None:
    """The direct arm through accounts and all: the mirror image of a pair teaches nothing that the pair has not."""
    run = run_for(env)
    net = network_for(run)

    def earned(market: PairMarket) -> Tensor:
        unroll = Unroll(market, run, torch.Generator().manual_seed(5), dtype=torch.float64)
        return unroll(net).net_return.detach()

    here = earned(named_market())
    torch.testing.assert_close(earned(mirrored(named_market())), here, rtol=0, atol=1e-12)
    assert here.std() > 1e-4


SHARED = "network.legs=shared"
SETTINGS = [
    ("algo=direct", "direct.windows=16", "direct.window_bars=12", "direct.burn_bars=3", "network.dropout=0.3"),
    ("network.layer_norm=true", "optimizer.kind=muon_mix", "optimizer.encoder_lr_factor=0.5", "network.dropout=0.3"),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_trains_on_a_state_and_a_survivor_brings_it_back(build: Build, tmp_path: Path, settings: Any) -> None:
    """A generation is a function of state, config and key; a base checkpoint folds back to the weights to the bit."""
    first = build(SHARED, *settings)
    untrained = first.boundary_state()
    assert untrained["module/pi.4.weight"].shape == (1, 16)
    first.train()
    boundary = first.boundary_state()
    ends = []
    for algorithm in (first, build(SHARED, *settings, key=123)):
        algorithm.load_boundary_state(boundary)
        algorithm.reseed(7)
        algorithm.train()
        ends.append(algorithm.boundary_state())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert all(not torch.equal(boundary[f"module/pi.{i}.weight"], ends[0][f"module/pi.{i}.weight"]) for i in (0, 2, 4))
    assert first.last_iteration()["skipped_steps"] == 0

    first.evaluation_policy().save(tmp_path)
    run = first.config.run
    market = market_for(first.config.env_config)
    based = base_state(run, market, tmp_path)
    averaged = first.learner_group._learner.evaluation_weights()
    actor = {name for name in averaged if name.startswith("pi.")}
    assert all(torch.equal(based[f"module/{name}"], averaged[name]) for name in actor)
    assert based.keys() == untrained.keys()
    with pytest.raises(UserError, match=r"pi\.0\.weight of shape \(32, 37\) has no place in the run's network"):
        base_state(small_run(*settings), market, tmp_path)


def test_copies_draw_masks_of_their_own(build: Build) -> None:
    """A unit of g may be left out for one leg and kept for the other."""
    algorithm = build(SHARED, "network.dropout=0.3")
    seen: list[Tensor] = []
    net = algorithm.learner_group._learner._net
    net.pi[2].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach() == 0))
    algorithm.train()
    masks = torch.cat(seen)
    assert masks.shape[1:] == (2, 16)
    assert float(masks.double().mean()) == pytest.approx(0.3, abs=0.02)
    assert float((masks[:, 0] & masks[:, 1]).double().mean()) == pytest.approx(0.09, abs=0.01)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (("network.encoder=gru",), "legs shared needs encoder mlp; gru"),
        (("forecasts.file=x.parquet", "forecasts.series=[spread, a]"), "forecasts.series: ['spread', 'a'] must name"),
        (("forecasts.file=x.parquet", "forecasts.quantiles=[0.1, 0.5]"), "forecasts.quantiles: [0.1, 0.5] must hold"),
    ],
)
def test_what_has_no_mirror_image_is_the_users_mistake(assignments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as caught:
        small_run(SHARED, *assignments)
    assert words in str(caught.value)
    # legs alone: their quantiles need no mirror image
    small_run(SHARED, "forecasts.file=x.parquet", "forecasts.series=[a, b]", "forecasts.quantiles=[0.2]")
