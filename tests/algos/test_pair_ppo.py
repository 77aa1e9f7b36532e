"""PairPPO as a whole: boundary states, determinism, RLlib's own interface."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.learner import LearnerGroup
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import Tensor

from algos.config import PairPPOConfig
from algos.evaluation import replay_policy
from algos.markets import market_for, provide
from algos.pair_ppo import PairPPO
from rayconf.errors import UserError
from tests.algos.conftest import LEASH, small_config, small_run

Build = Callable[..., PairPPO]
KINDS = ["adamw", "muon_mix"]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trained(build: Build, *, kind: str = "adamw", iterations: int = 1, **training: Any) -> PairPPO:
    algorithm = build(optimizer_kind=kind, **training)
    for _ in range(iterations):
        algorithm.train()
    return algorithm


@pytest.mark.parametrize(("kind", "settings"), [("adamw", ()), ("muon_mix", ()), ("adamw", LEASH)])
def test_going_on_equals_loading_the_boundary_elsewhere(build: Build, kind: str, settings: tuple[str, ...]) -> None:
    first = build(*settings, optimizer_kind=kind)
    first.train()
    boundary = first.boundary_state()
    first.reseed(77)
    first.train()

    other = build(*settings, optimizer_kind=kind, key=123)  # other weights, other streams: all of it must be replaced
    other.load_boundary_state(boundary)
    assert same(other.boundary_state(), boundary)
    other.reseed(77)
    other.train()
    assert same(first.boundary_state(), other.boundary_state())
    assert not same(first.boundary_state(), boundary)
    assert any(name.startswith("optimizer/") for name in boundary)
    assert any(name.startswith("anchor/") for name in boundary) == bool(settings), "other states stay as they are"


@pytest.mark.parametrize(
    ("encoder", "kind"), [("factored", "adamw"), ("conv", "muon_mix"), ("gru", "adamw"), ("transformer", "muon_mix")]
)
def test_encoders_train_go_on_from_a_boundary_and_evaluate(
    build: Build, tmp_path: Path, encoder: str, kind: str
) -> None:
    settings = [f"network.encoder={encoder}", "network.encoder_window=9", "network.encoder_width=8"]
    settings += [*LEASH, f"optimizer.kind={kind}", "costs.ruin_fraction=0.97"]  # ruins change the starts foreseen
    first = build(*settings)
    first.train()
    boundary = first.boundary_state()
    first.reseed(77)
    first.train()
    other = build(*settings, key=123)
    other.load_boundary_state(boundary)
    other.reseed(77)
    other.train()
    assert same(first.boundary_state(), other.boundary_state())
    moved = [name for name, tensor in first.boundary_state().items() if not torch.equal(tensor, boundary[name])]
    assert {name for name in boundary if name.startswith("module/")} - set(moved) == set()
    assert np.isfinite(list(first.last_iteration().values())).all()
    assert first.evaluate()["env_runners"]["gross"] > 0
    first.save_to_path(tmp_path / "checkpoint")
    restored = PairPPO.from_checkpoint(tmp_path / "checkpoint")
    try:
        assert same(restored.boundary_state(), first.boundary_state())
    finally:
        restored.stop()


def test_an_encoder_reaches_remote_runners_and_learner(build: Build) -> None:
    config = small_config("network.encoder=conv", "network.encoder_width=8")
    config.env_runners(num_env_runners=1, num_cpus_per_env_runner=0.25)
    algorithm = build(config=config.learners(num_learners=1, num_cpus_per_learner=0.5))
    algorithm.train()
    assert algorithm.last_iteration()["env_steps"] == 512


@pytest.mark.parametrize("lost", ["optimizer/adamw/exp_avg/", "ema/", "tail_quantile", "schedule/steps", "anchor/"])
def test_a_state_that_lost_a_part_goes_on_differently(build: Build, lost: str) -> None:
    """Broken on purpose: each part of the boundary matters, and none may be missing."""
    first = build(*LEASH, warmup_fraction=0.9, total_updates=3)
    first.train()
    boundary = first.boundary_state()
    assert any(name.startswith(lost) for name in boundary)
    with pytest.raises(ValueError, match="does not fit"):
        first.load_boundary_state({k: v for k, v in boundary.items() if not k.startswith(lost)})

    results = []
    for state in (boundary, {k: v * 0 if k.startswith(lost) else v for k, v in boundary.items()}):
        algorithm = build("env.cvar_weight=0.1", *LEASH, warmup_fraction=0.9, total_updates=3)
        algorithm.load_boundary_state(state)
        algorithm.reseed(3)
        algorithm.train()
        results.append({k: v for k, v in algorithm.boundary_state().items() if k != "tail_quantile"})
    assert not same(*results)


def test_boundary_of_another_network_is_refused_by_name(build: Build) -> None:
    boundary = build().boundary_state()
    with pytest.raises(ValueError, match=r"pi\.0\.weight"):
        build("network.hidden=[8, 8]").load_boundary_state(boundary)
    with pytest.raises(ValueError, match=r"pi\.2\.weight is not expected"):
        build(optimizer_kind="muon_mix").load_boundary_state(boundary)


def test_boundary_state_is_a_copy(build: Build) -> None:
    algorithm = build()
    before = algorithm.boundary_state()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    algorithm.train()
    assert same(before, kept)
    assert not same(before, algorithm.boundary_state())


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_gives_the_same_bits_and_another_does_not(build: Build, kind: str) -> None:
    a, b = (trained(build, kind=kind, iterations=2).boundary_state() for _ in range(2))
    assert same(a, b)
    other = trained(build, kind=kind, iterations=2, key=9).boundary_state()
    assert not torch.equal(a["module/pi.0.weight"], other["module/pi.0.weight"])
    assert small_config("seed=1").key != small_config("seed=2").key


def test_training_uses_no_global_generator(build: Build) -> None:
    algorithm = build()
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    algorithm.train()
    algorithm.reseed(4)
    algorithm.train()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert before[2] == random.getstate()


def test_reset_config_leaves_nothing_of_the_old_one(build: Build) -> None:
    """A slot that hosted another member trains to the same bits as a fresh process."""
    fresh = build(lr=1e-3, key=5)
    fresh.train()
    used = trained(build, key=6)
    assert used.reset_config(small_config(lr=1e-3, key=5))
    used.train()
    assert same(fresh.boundary_state(), used.boundary_state())
    assert used.reset_config({"env_config": {"run": small_run().model_dump(mode="json")}, "lr": 2e-3})
    used.train()
    assert used.last_iteration()["lr_first_step"] == 2e-3
    assert used.config.num_envs_per_env_runner == 32


def test_report_of_an_iteration(build: Build) -> None:
    algorithm = build()
    assert algorithm.last_iteration() == {}
    result = algorithm.train()
    report = algorithm.last_iteration()
    assert report["env_steps"] == 512
    assert report["lr_first_step"] == pytest.approx(0.003)
    assert all(np.isfinite(value) for value in report.values())
    assert report["kl"] > 0
    assert 0 <= report["clip_fraction"] <= 1
    assert 0 < report["entropy"] < 2 * np.log(2)
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 512


def test_untrained_policy_is_near_cash_and_training_moves_the_evaluation_policy(build: Build) -> None:
    algorithm = build()
    market = market_for(algorithm.config.env_config)
    features = torch.from_numpy(np.array(market.features[300:400])).double()
    account = torch.zeros(100, 2, dtype=torch.float64)
    before = algorithm.evaluation_policy()
    assert float(before.decide(features, account).abs().max()) < 0.15
    assert before.feature_names == tuple(market.scaler.names)
    algorithm.train()
    assert not torch.equal(algorithm.evaluation_policy().decide(features, account), before.decide(features, account))


def test_evaluate_replays_validation_free_of_penalties(build: Build) -> None:
    """Penalties that would swamp the shaped reward leave the evaluation of one boundary state unchanged."""
    boundary = trained(build, iterations=2).boundary_state()
    results = []
    for penalty in (0.3, 30.0):
        algorithm = build(f"env.risk_penalty={penalty}", "env.train_cost_bps=20")
        algorithm.load_boundary_state(boundary)
        results.append(algorithm.evaluate()["env_runners"])
    assert results[0] == results[1]
    record = replay_policy(
        algorithm.evaluation_policy(), market_for(algorithm.config.env_config), small_run(), "validation"
    )
    assert results[0]["total_return"] == pytest.approx(record.equity[-1, 0] - 1, abs=1e-12)
    assert np.prod(1 + record.net_return[:, 0]) == pytest.approx(record.equity[-1, 0], rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_restores_through_rllib(build: Build, tmp_path: Path, kind: str) -> None:
    algorithm = trained(build, kind=kind, iterations=2, ema_half_life=4.0)
    algorithm.save_to_path(tmp_path / "checkpoint")
    restored = PairPPO.from_checkpoint(tmp_path / "checkpoint")
    try:
        assert same(restored.boundary_state(), algorithm.boundary_state())
        assert restored.iteration == 2
        assert restored.config.optimizer_kind == kind
        for a in (algorithm, restored):
            a.reseed(1)
            a.train()
        assert same(restored.boundary_state(), algorithm.boundary_state())
    finally:
        restored.stop()


def test_restoring_an_older_checkpoint_in_place_takes_its_weights(build: Build, tmp_path: Path) -> None:
    """Stock runners and learners keep their own weights when the checkpoint has seen fewer updates."""
    algorithm = trained(build)
    algorithm.save_to_path(tmp_path / "early")
    early = algorithm.boundary_state()
    algorithm.train()
    algorithm.restore_from_path(tmp_path / "early")
    assert same(algorithm.boundary_state(), early)
    for name, p in algorithm.env_runner.module.named_parameters():
        assert torch.equal(p, early[f"module/{name}"])


def test_remote_runners_and_learner(build: Build, tmp_path: Path) -> None:
    config = small_config().env_runners(num_env_runners=2, num_cpus_per_env_runner=0.25)
    algorithm = build(config=config.learners(num_learners=1, num_cpus_per_learner=0.5))
    assert isinstance(algorithm.learner_group, LearnerGroup)
    assert algorithm.learner_group.is_remote
    untrained = algorithm.boundary_state()
    result = algorithm.train()
    assert algorithm.last_iteration()["env_steps"] == 512
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 512
    boundary = algorithm.boundary_state()
    assert not torch.equal(boundary["module/pi.0.weight"], untrained["module/pi.0.weight"])
    assert not torch.equal(boundary["tail_quantile"], untrained["tail_quantile"])
    tails = algorithm.env_runner_group.foreach_env_runner(lambda runner: runner.tail_quantile)
    assert tails == [float(boundary["tail_quantile"])] * 3
    weights = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: runner.module.pi[0].weight.detach().clone(), local_env_runner=False
    )
    assert all(torch.equal(w, boundary["module/pi.0.weight"]) for w in weights)
    noise = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: runner._noise.get_state(), local_env_runner=False
    )
    assert not torch.equal(*noise)

    algorithm.reseed(8)
    algorithm.train()
    again = algorithm.boundary_state()
    algorithm.load_boundary_state(boundary)
    algorithm.reseed(8)
    algorithm.train()
    assert same(again, algorithm.boundary_state())
    assert algorithm.evaluate()["env_runners"]["gross"] >= 0
    algorithm.save_to_path(tmp_path / "remote")


def test_updates_go_through_rllibs_learner(build: Build) -> None:
    algorithm = build()
    learner = algorithm.learner_group._learner
    assert isinstance(learner, TorchLearner)
    calls: list[int] = []
    update = learner.update
    learner.update = lambda **kwargs: calls.append(1) or update(**kwargs)
    algorithm.train()
    assert calls == [1]


def test_config_takes_everything_from_the_run_and_yields_to_what_is_set_after() -> None:
    run = small_run("optimizer.learning_rate=0.002", "pbt.iterations=6", "pbt.interval=2")
    config = PairPPOConfig.from_run(run, "SYNA/SYNB")
    assert (config.lr, config.gamma, config.total_updates) == (0.002, run.ppo.gamma, 6)
    assert config.ema_half_life == pytest.approx(0.1 * 2 * 8)
    assert config.lr_schedule_kind == "constant"  # the learning rate is PBT's to move
    fixed = small_run('search={"risk_penalty": {"path": "env.risk_penalty", "low": 1, "high": 2}}')
    assert PairPPOConfig.from_run(fixed, "SYNA/SYNB").lr_schedule_kind == "cosine"
    changed = PairPPOConfig().update_from_dict(
        {"lr": 0.5, "env_config": {"run": run.model_dump(mode="json"), "pair": "SYNA/SYNB"}}
    )
    assert (changed.lr, changed.total_updates, changed.num_epochs) == (0.5, 6, 2)


def test_settings_that_cannot_work_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"network\.hidden"):
        small_config("network.hidden=[16]", optimizer_kind="muon_mix").validate()
    with pytest.raises(UserError, match="lr:"):
        small_config(lr=[[0, 1e-3], [100, 1e-4]]).validate()
    with pytest.raises(UserError, match="SYNA/SYNB"):
        market_for({"run": small_run().model_dump(mode="json"), "pair": "XXX/YYY"})


def test_market_is_built_once_and_can_be_provided() -> None:
    env_config = small_config().env_config
    market = market_for(env_config)
    penalised = small_config("env.risk_penalty=9", "env.train_cost_bps=30").env_config
    assert market_for(penalised) is market
    assert market_for(small_config("synthetic.seed=5").env_config) is not market
    run = small_run("synthetic.seed=99")
    provide(run, "SYNA/SYNB", market)
    assert market_for({"run": run.model_dump(mode="json"), "pair": "SYNA/SYNB"}) is market
