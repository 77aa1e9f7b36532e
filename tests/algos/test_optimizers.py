"""Schedule, averaged weights and the split of parameters between optimizers."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from algos.module import perceptron
from algos.optimizers import WeightAverage, build_optimizers, hidden_matrices, pull_back, schedule_factor
from rayconf.errors import UserError


def net(hidden: tuple[int, ...] = (8, 8)) -> nn.Module:
    g = torch.Generator().manual_seed(0)
    module = nn.Module()
    module.pi = perceptron((5, *hidden, 2), "tanh", 0.01, g)
    module.vf = perceptron((5, *hidden, 1), "tanh", 1.0, g)
    module.log_std = nn.Parameter(torch.zeros(2))
    return module


def test_schedule_warms_up_and_falls_to_its_floor() -> None:
    cosine = [schedule_factor(i, 100, 0.1, 0.2, "cosine") for i in range(120)]
    assert cosine[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.6)
    assert cosine[100:] == pytest.approx([0.2] * 20)
    assert all(a >= b for a, b in pairwise(cosine[10:]))
    constant = [schedule_factor(i, 100, 0.1, 0.2, "constant") for i in range(120)]
    assert constant[:10] == cosine[:10]
    assert set(constant[10:]) == {1.0}
    assert schedule_factor(0, 3, 0.0, 0.1, "constant") == 1.0


@pytest.mark.parametrize("half_life", [0.0, 0.5, 7.0])
def test_average_is_the_weighted_mean_of_the_weights_seen(half_life: float) -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    average = WeightAverage([p], half_life)
    seen, g = [], torch.Generator().manual_seed(0)
    for _ in range(20):
        with torch.no_grad():
            p.copy_(torch.randn(3, generator=g, dtype=torch.float64))
        average.update()
        seen.append(p.detach().clone())
        ages = torch.arange(len(seen) - 1, -1, -1, dtype=torch.float64)
        weights = 0.5 ** (ages / half_life) if half_life else (ages == 0).double()
        expected = (torch.stack(seen) * weights.unsqueeze(1)).sum(0) / weights.sum()
        torch.testing.assert_close(average.corrected()[0], expected, rtol=1e-12, atol=1e-12)


def test_average_before_any_step_is_the_live_weight() -> None:
    p = nn.Parameter(torch.ones(2))
    assert torch.equal(WeightAverage([p], 3.0).corrected()[0], p)


def test_muon_takes_the_matrices_between_hidden_layers() -> None:
    module = net()
    assert hidden_matrices(module) == ["pi.2.weight", "vf.2.weight"]
    optimizers = build_optimizers(module, "muon_mix", 1e-3, 2.0, 0.1)
    taken = [p for o in optimizers.values() for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in taken} == {id(p) for p in module.parameters()}
    assert len(taken) == len(list(module.parameters()))
    assert optimizers["muon"].param_groups[0]["lr"] == pytest.approx(2e-3)
    for group in optimizers["adamw"].param_groups:
        assert all((p.ndim == 2) == (group["weight_decay"] == 0.1) for p in group["params"])


def test_muon_without_hidden_matrices_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"network\.hidden"):
        build_optimizers(net((8,)), "muon_mix", 1e-3, 1.0, 0.0)


def test_one_rate_serves_both_optimizers() -> None:
    """Muon's first update has about AdamW's root mean square, 0.2 of lr against 1 at most."""
    module = net((64, 64))
    optimizers = build_optimizers(module, "muon_mix", 1e-3, 1.0, 0.0)
    g = torch.Generator().manual_seed(1)
    before = module.pi[2].weight.detach().clone()
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=g)
    optimizers["muon"].step()
    rms = float((module.pi[2].weight.detach() - before).square().mean().sqrt())
    assert 0.1e-3 < rms < 0.4e-3


@pytest.mark.parametrize("kind", ["adamw", "muon_mix"])
def test_allocated_state_is_what_the_optimizer_would_have_made(kind: str) -> None:
    """Steps from our zero state equal steps from no state at all."""
    ours, theirs = net(), net()
    a, b = (build_optimizers(m, kind, 1e-2, 1.0, 0.1) for m in (ours, theirs))
    for optimizer in b.values():
        optimizer.state.clear()
    g = torch.Generator().manual_seed(3)
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=g)
            q.grad = p.grad.clone()
        for optimizer in (*a.values(), *b.values()):
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_initial_weights_are_orthogonal_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    pi = net((16, 16)).pi
    assert torch.equal(state, torch.get_rng_state())
    gram = pi[2].weight @ pi[2].weight.T
    torch.testing.assert_close(gram, 2 * torch.eye(16), rtol=0, atol=1e-5)
    assert float(pi[4].weight.detach().norm()) == pytest.approx(0.01 * math.sqrt(2), rel=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon_mix"])
def test_without_gradient_pulled_weights_decay_geometrically_to_where_they_started(kind: str) -> None:
    """By the learning rate of their own group; what has no anchor, or rests, stays."""
    module = net()
    optimizers = build_optimizers(module, kind, 0.01, 2.0, 0.0)
    named = dict(module.named_parameters())
    anchor = {p: p.detach() + 1 for name, p in named.items() if name.startswith("pi.")}
    before = {name: p.detach().clone() for name, p in named.items()}
    for name, p in named.items():
        p.grad = None if name == "pi.4.bias" else torch.zeros_like(p)
    for _ in range(30):
        for optimizer in optimizers.values():
            optimizer.step()
        pull_back(optimizers, anchor, 5.0)
    for name, p in named.items():
        moves = p in anchor and name != "pi.4.bias"
        share = 0.1 if kind == "muon_mix" and name == "pi.2.weight" else 0.05
        expected = before[name] + (1 - (1 - share) ** 30) * moves
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-5, msg=name)
    pull_back(optimizers, anchor, 1000.0, torch.tensor(1.0))
    assert not torch.equal(named["pi.0.weight"], anchor[named["pi.0.weight"]])
    pull_back(optimizers, anchor, 1000.0, torch.tensor(0.0))
    assert torch.equal(named["pi.0.weight"], anchor[named["pi.0.weight"]]), "the whole way, and not beyond"
