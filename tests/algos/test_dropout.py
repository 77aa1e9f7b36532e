"""Dropout: in gradient steps alone, from a keyed generator, with and without a market encoder."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from algos.pair_ppo import PairPPO

Build = Callable[..., PairPPO]
ENCODERS = {
    "mlp": {"pi.2": 0.3, "pi.4": 0.3, "vf.2": 0.3, "vf.4": 0.3},
    # per bar in the trunk, per sample in the head; what enters a trunk is the market, of which nothing is left out
    "factored": {"pi.trunk.0": 0.0, "pi.trunk.2": 0.3, "pi.output": 0.3, "vf.trunk.2": 0.3, "vf.output": 0.3},
}


def network(algorithm: PairPPO) -> torch.nn.Module:
    return algorithm.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_hidden_units_of_gradient_steps_are_left_out(build: Build, encoder: str) -> None:
    algorithm = build(f"network.encoder={encoder}", "network.dropout=0.3", "ppo.accounts_per_start=4")
    inputs: dict[str, list[Tensor]] = {name: [] for name in ENCODERS[encoder]}
    acting: list[Tensor] = []
    for name, into in inputs.items():
        layer = network(algorithm).get_submodule(name)
        layer.register_forward_pre_hook(lambda _, given, into=into: into.append(given[0].detach().clone()))
        acting_layer = algorithm.env_runner.module.get_submodule(name)
        acting_layer.register_forward_pre_hook(lambda _, given: acting.append(given[0].detach().clone()))
    algorithm.train()
    for name, share in ENCODERS[encoder].items():
        values = torch.cat(inputs[name])
        zeros = (values == 0).float().mean()
        assert float(zeros) == pytest.approx(share, abs=0.02), name
        assert all((part == 0).float().mean() < 0.7 for part in inputs[name])
    hidden = [part for part in acting if part.shape[1] == 16]
    assert hidden
    assert not any(bool((part == 0).any()) for part in hidden), "who acts has all its units"


def test_masks_come_from_the_key_alone(build: Build) -> None:
    algorithm = build("network.dropout=0.5")
    masks: list[Tensor] = []
    network(algorithm).pi[2].register_forward_pre_hook(lambda _, given: masks.append(given[0].detach() != 0))
    state = algorithm.boundary_state()

    def trained(key: int) -> tuple[Tensor, dict[str, Tensor]]:
        masks.clear()
        algorithm.load_boundary_state(state)
        algorithm.reseed(key)
        before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
        algorithm.train()
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
        assert before[2] == random.getstate()
        return torch.stack(masks), algorithm.boundary_state()

    (first, ended), (again, ended_again), (other, _) = trained(1), trained(1), trained(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(torch.equal(tensor, ended_again[name]) for name, tensor in ended.items())
    network_ = network(build("network.dropout=0.5"))
    network_.eval()
    row = torch.ones(4, network_.pi[0].in_features)
    assert torch.equal(network_.pi(row), network_.pi(row)), "a network that is not in training is whole"


def test_a_state_knows_no_rate(build: Build) -> None:
    """Weights have the same names at any rate, so that a member may take them over from any other."""
    donor = build("network.dropout=0.5")
    donor.train()
    member = build()
    member.load_boundary_state(donor.boundary_state())
    assert not any(layer._forward_hooks for layer in network(member).modules())
    member.train()
    donor.load_boundary_state(member.boundary_state())
