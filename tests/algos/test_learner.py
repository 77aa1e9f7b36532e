"""The Learner: stock PPO's gradients, the learning rate in force, clipping, order of rows, averaged weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian
from ray.rllib.core.learner import Learner
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from torch import Tensor

from algos.config import PairPPOConfig
from algos.env_runner import BatchedEnvRunner
from algos.learner import PairPPOLearner
from algos.markets import market_for
from algos.minibatches import SlabOrder
from algos.pair_ppo import PairPPO
from tests.algos.conftest import small_config

NORM_KINDS = ["adamw", "muon_mix"]


@pytest.fixture
def batch(ray_session: None) -> MultiAgentBatch:
    return BatchedEnvRunner(config=small_config()).sample()[0]


def make_learner(config: PairPPOConfig, kind: type[Learner] = PairPPOLearner) -> Any:
    spaces = BatchedEnvRunner(config=config).get_spaces()
    learner = config.copy(copy_frozen=False).learners(learner_class=kind).build_learner(spaces=spaces)
    learner.build()
    return learner


def network(learner: Any) -> torch.nn.Module:
    return learner.module[DEFAULT_MODULE_ID].unwrapped()


def snapshot(learner: Any) -> list[Tensor]:
    return [p.detach().clone() for p in network(learner).parameters()]


def gradients(learner: Any, batch: MultiAgentBatch) -> dict[str, Tensor]:
    columns = batch.policy_batches
    learner.before_gradient_based_update(timesteps={})
    losses = learner.compute_losses(fwd_out=learner.module.forward_train(columns), batch=columns)
    learner.compute_gradients(losses)
    return {name: p.grad.clone() for name, p in network(learner).named_parameters()}


def test_gradients_equal_stock_ppo(batch: MultiAgentBatch) -> None:
    """Stock Learner, stock Gaussian over the latents: the squashing changes no gradient."""
    config = small_config()
    ours, stock = make_learner(config), make_learner(config, PPOTorchLearner)
    assert type(stock) is PPOTorchLearner
    g = torch.Generator().manual_seed(0)
    for p, q in zip(network(ours).parameters(), network(stock).parameters(), strict=True):
        shifted = p.detach() + 0.05 * torch.randn(p.shape, generator=g)  # ratios away from 1, some of them clipped
        p.data.copy_(shifted)
        q.data.copy_(shifted)
    network(stock).action_dist_cls = TorchDiagGaussian
    a, b = gradients(ours, batch), gradients(stock, batch)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-6)
    assert max(float(grad.abs().max()) for grad in b.values()) > 1e-2


@pytest.mark.parametrize("encoder", ["factored", "conv", "gru", "transformer"])
def test_gradients_with_an_encoder_equal_stock_ppo_on_mixed_rows(ray_session: None, encoder: str) -> None:
    """Ours on rows in the order of a slab, stock on the same rows mixed: sharing bars changes no gradient."""
    config = small_config(f"network.encoder={encoder}", "network.encoder_width=8", "network.encoder_window=9")
    batch = BatchedEnvRunner(config=config).sample()[0]
    ours, stock = make_learner(config), make_learner(config, PPOTorchLearner)
    network(stock).attach(market_for(config.env_config).features)
    g = torch.Generator().manual_seed(0)
    for p, q in zip(network(ours).parameters(), network(stock).parameters(), strict=True):
        shifted = p.detach() + 0.05 * torch.randn(p.shape, generator=g)
        p.data.copy_(shifted)
        q.data.copy_(shifted)
    network(stock).action_dist_cls = TorchDiagGaussian
    columns = batch[DEFAULT_MODULE_ID]
    order = SlabOrder(columns[Columns.OBS][:, 0].long(), 16).draw(g)
    sorted_, mixed = (
        MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch({k: v[index] for k, v in columns.items()})}, len(index))
        for index in (order, torch.randperm(len(order), generator=g))
    )
    assert len(sorted_[DEFAULT_MODULE_ID][Columns.OBS][:, 0].unique()) < 0.9 * len(order)
    a, b = gradients(ours, sorted_), gradients(stock, mixed)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=2e-6, msg=name)
    assert max(float(grad.abs().max()) for grad in b.values()) > 1e-2


def test_minibatches_of_an_encoder_share_bars(ray_session: None) -> None:
    config = small_config("network.encoder=factored", "ppo.accounts_per_start=4", "ppo.minibatch_size=128")
    batch = BatchedEnvRunner(config=config).sample()[0]
    learner = make_learner(config)
    counts: list[int] = []
    sums = network(learner).sums
    network(learner).sums = lambda bars: counts.append(len(bars)) or sums(bars)
    learner.update(**{**one_step(config, batch), "num_epochs": 2, "minibatch_size": 128})
    distinct = len(batch[DEFAULT_MODULE_ID][Columns.OBS][:, 0].unique())
    assert distinct < 512 / 3
    assert len(counts) == 2 * 4
    assert sum(counts) <= 2 * (distinct + 3)


def one_step(config: PairPPOConfig, batch: MultiAgentBatch) -> dict[str, Any]:
    """Keywords that make ``Learner.update`` a single gradient step."""
    columns = {name: column.clone() for name, column in batch[DEFAULT_MODULE_ID].items()}
    joined = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=batch.env_steps())
    return {"batch": joined, "num_epochs": 1, "minibatch_size": batch.env_steps(), "timesteps": {}}


def rate_in_force(learner: Any, batch: MultiAgentBatch, config: PairPPOConfig) -> float:
    """The learning rate that explains the parameter delta of the next gradient step, given Adam's own moments."""
    before = snapshot(learner)
    learner.update(**one_step(config, batch))
    moved = direction = 0.0
    (optimizer,) = (o for _, o in learner.get_optimizers_for_module(DEFAULT_MODULE_ID))
    for p, old in zip(network(learner).parameters(), before, strict=True):
        group = next(g for g in optimizer.param_groups if any(q is p for q in g["params"]))
        state, (beta1, beta2) = optimizer.state[p], group["betas"]
        step = float(state["step"])
        mean = state["exp_avg"] / (1 - beta1**step)
        root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"]
        unit = -(mean / root + group["weight_decay"] * old)
        moved += float((unit * (p.detach() - old)).sum())
        direction += float(unit.square().sum())
    return moved / direction


@pytest.mark.parametrize(("kind", "in_force"), [(PairPPOLearner, 1e-4), (PPOTorchLearner, 1e-2)])
def test_restored_learner_steps_at_its_own_rate(batch: MultiAgentBatch, kind: type[Learner], in_force: float) -> None:
    """Ours moves by the new rate 1e-4. Stock PPO, restored the stock way, still moves by the donor's 1e-2."""
    donor_config, config = small_config(lr=1e-2), small_config(lr=1e-4)
    donor = make_learner(donor_config, kind)
    assert rate_in_force(donor, batch, donor_config) == pytest.approx(1e-2, rel=1e-3)
    learner = make_learner(config, kind)
    learner.set_state(donor.get_state())
    assert rate_in_force(learner, batch, config) == pytest.approx(in_force, rel=1e-3)


def test_new_rate_is_in_force_at_the_first_minibatch_after_a_boundary(build: Callable[..., PairPPO]) -> None:
    donor = build(lr=1e-2)
    donor.train()
    algorithm = build(lr=1e-4)
    algorithm.load_boundary_state(donor.boundary_state())
    algorithm.reseed(5)
    batch = algorithm.env_runner.sample()[0]
    learner = algorithm.learner_group._learner
    assert rate_in_force(learner, batch, algorithm.config) == pytest.approx(1e-4, rel=1e-3)
    algorithm.train()
    assert algorithm.last_iteration()["lr_first_step"] == 1e-4


@pytest.mark.parametrize("kind", NORM_KINDS)
def test_gradients_are_clipped_by_the_norm_of_the_whole_module(batch: MultiAgentBatch, kind: str) -> None:
    learner = make_learner(small_config(optimizer_kind=kind, grad_clip=0.05))
    raw = gradients(learner, batch)
    norm = torch.stack([g.norm() for g in raw.values()]).norm()
    assert norm > 0.05
    learner.postprocess_gradients({})
    for name, p in network(learner).named_parameters():
        torch.testing.assert_close(p.grad, raw[name] * (0.05 / norm), rtol=1e-4, atol=1e-8)
    assert float(learner._norm) == pytest.approx(float(norm), rel=1e-5)


def test_a_gradient_that_is_not_finite_moves_nothing(batch: MultiAgentBatch) -> None:
    learner = make_learner(small_config())
    before, state = snapshot(learner), learner.export_training_state()
    batch[DEFAULT_MODULE_ID][Postprocessing.ADVANTAGES][3] = float("nan")
    learner.update(**one_step(learner.config, batch))
    assert all(torch.equal(p, q) for p, q in zip(snapshot(learner), before, strict=True))
    assert all(torch.equal(tensor, state[name]) for name, tensor in learner.export_training_state().items())
    assert learner._skipped == 1


def test_every_epoch_is_its_own_permutation(batch: MultiAgentBatch) -> None:
    learner = make_learner(small_config())
    rows = batch.env_steps()
    batch[DEFAULT_MODULE_ID][Columns.ACTION_LOGP] = torch.arange(rows, dtype=torch.float32)
    seen: list[Tensor] = []
    learner._update = lambda columns: (  # type: ignore[method-assign]
        seen.append(columns[DEFAULT_MODULE_ID][Columns.ACTION_LOGP]),
        {},
        {},
    )
    learner.after_gradient_based_update = lambda **_: None  # type: ignore[method-assign]
    python, numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    learner.update(**{**one_step(learner.config, batch), "num_epochs": 3, "minibatch_size": 100})
    assert torch.equal(python, torch.get_rng_state())
    assert (numpy == np.random.get_state()[1]).all()  # noqa: NPY002
    parts = -(-rows // 100)
    assert len(seen) == 3 * parts
    assert max(len(s) for s in seen) - min(len(s) for s in seen) <= 1
    epochs = [torch.cat(seen[i * parts : (i + 1) * parts]) for i in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(rows, dtype=torch.float32))
        assert not torch.equal(epoch, torch.arange(rows, dtype=torch.float32))
    assert not torch.equal(epochs[0], epochs[1])


def test_averaged_weights_follow_every_gradient_step(batch: MultiAgentBatch) -> None:
    learner = make_learner(small_config(ema_half_life=3.0))
    seen: list[list[Tensor]] = []
    update = learner._average.update
    learner._average.update = lambda: (update(), seen.append(snapshot(learner)))
    learner.update(**{**one_step(learner.config, batch), "num_epochs": 2, "minibatch_size": 64})
    assert len(seen) == 2 * -(-batch.env_steps() // 64)
    weights = torch.tensor([0.5 ** (age / 3.0) for age in range(len(seen))][::-1])
    for i, (name, average) in enumerate(learner.evaluation_weights().items()):
        stacked = torch.stack([step[i] for step in seen])
        expected = (stacked * weights.view(-1, *[1] * average.ndim)).sum(0) / weights.sum()
        torch.testing.assert_close(average, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_learning_rate_warms_up_over_gradient_steps(batch: MultiAgentBatch) -> None:
    config = small_config(lr=1e-3, warmup_fraction=0.5, total_updates=2)
    assert config.steps_per_update == 8
    learner = make_learner(config)
    rates = [rate_in_force(learner, batch, config) for _ in range(10)]
    expected = [min(1.0, (i + 1) / 8) * 1e-3 for i in range(10)]
    assert rates == pytest.approx(expected, rel=2e-3)
