"""Once per bar equals once per sample: forward, gradients, in any order of bars; and no bar sees a later one."""

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from ray.rllib.core.columns import Columns
from torch import Tensor, nn
from torch.nn import functional

from algos import encoders
from algos.bar_network import BarActorCritic
from algos.encoders import LocalLayer, dilations, strip_rows
from algos.module import ACTIVATIONS, POLICY_GAIN, ActorCritic
from benchmarks.encoders import PerSample

FEATURES, ACCOUNT, BARS, WINDOW = 5, 3, 260, 11
KINDS = ("factored", "conv", "gru", "transformer")
SHARINGS = ("separate", "shared", "detached")


def network(kind: str, sharing: str = "separate", hidden: tuple[int, ...] = (12, 8), **changes: Any) -> BarActorCritic:
    """In float64, on random features, every parameter moved away from its special first value."""
    config = {
        "hidden": hidden,
        "activation": "tanh",
        "initial_log_std": -0.5,
        "policy_gain": POLICY_GAIN,
        "key": 1,
        "features": FEATURES,
        "encoder": kind,
        "encoder_window": WINDOW,
        "encoder_width": 8,
        "encoder_layers": 2,
        "encoder_heads": 2,
        "encoder_sharing": sharing,
        **changes,
    }
    spaces = [gym.spaces.Box(-np.inf, np.inf, (size,), np.float32) for size in (1 + ACCOUNT, 2)]
    module = BarActorCritic(observation_space=spaces[0], action_space=spaces[1], model_config=config).double()
    g = torch.Generator().manual_seed(3)
    for p in module.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    module.attach(np.random.default_rng(0).standard_normal((BARS, FEATURES)))
    return module


def observations(count: int, order: str, seed: int = 0) -> Tensor:
    """[count, 1 + A] of bars that repeat: ascending, in slabs of 16 in random order, or entirely mixed."""
    g = torch.Generator().manual_seed(seed)
    bars = torch.randint(0, BARS, (count,), generator=g)
    if order == "slabs":
        rank = torch.randperm(BARS // 16 + 1, generator=g)
        bars = bars[torch.argsort(rank[bars // 16] * BARS + bars)]
    elif order == "ascending":
        bars = bars.sort().values
    account = torch.randn(count, ACCOUNT, generator=g, dtype=torch.float64)
    return torch.cat((bars.double().unsqueeze(1), account), dim=1)


# The naive evaluation, one sample and one window at a time, from torch's own layers where it has them.


def naive_conv(encoder: Any, window: Tensor) -> Tensor:
    hidden = encoder.inputs(window)
    for dilation, taps in zip(encoder.dilations, encoder.taps, strict=True):
        kernel = torch.stack(taps.weight.chunk(2, dim=1), dim=2)
        mixed = functional.conv1d(hidden.t().unsqueeze(0), kernel, taps.bias, dilation=dilation)[0].t()
        hidden = hidden[dilation:] + torch.tanh(mixed)
    assert len(hidden) == 1
    return hidden[0]


def naive_gru(encoder: Any, window: Tensor) -> Tensor:
    names = {"weight_ih": encoder.inputs.weight, "bias_ih": encoder.inputs.bias}
    names |= {"weight_hh": encoder.state.weight, "bias_hh": encoder.state.bias}
    cell = nn.GRUCell(window.shape[1], encoder.width, dtype=window.dtype)
    hidden = window.new_zeros(1, encoder.width)
    for row in window:
        hidden = torch.func.functional_call(cell, names, (row.unsqueeze(0), hidden))
    return hidden[0]


def naive_transformer(encoder: Any, window: Tensor) -> Tensor:
    """Full attention over the whole window under a mask, every token kept to the end."""
    stream = encoder.inputs(window)
    age = torch.arange(len(window)).unsqueeze(1) - torch.arange(len(window))
    for layer in encoder.layers:
        normed = layer.attention_norm(stream)
        query, key, value = (
            projection(normed).view(len(window), layer.heads, -1).transpose(0, 1)
            for projection in (layer.query, layer.key, layer.value)
        )
        seen = (age >= 0) & (age <= layer.reach)
        bias = layer.bias[:, (layer.reach - age).clamp(0, layer.reach)].masked_fill(~seen, -math.inf)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        stream = stream + layer.output(mixed.transpose(0, 1).reshape(len(window), -1))
        stream = stream + layer.narrow(torch.tanh(layer.widen(layer.mixing_norm(stream))))
    return encoder.norm(stream[-1])


NAIVE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "factored": lambda _, window: window[-1],
    "conv": naive_conv,
    "gru": naive_gru,
    "transformer": naive_transformer,
}


def naive(module: BarActorCritic, kind: str, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Distribution parameters [B, 4] and values [B], each sample by itself."""
    logits, values = [], []
    for row in observation:
        bar, window = int(row[0]), module.encoder.window
        seen = module.market[bar : bar + window]  # window - 1 rows of zeros come first
        own = NAIVE[kind](module.encoder, seen)
        other = NAIVE[kind](module.critic_encoder, seen) if module.sharing == "separate" else own
        if module.sharing == "detached":
            other = other.detach()
        results = []
        for branch, embedding in ((module.pi, own), (module.vf, other)):
            hidden = branch.trunk(embedding) + branch.account.weight @ row[1:]
            results.append(branch.output(torch.tanh(hidden)))
        logits.append(torch.cat((results[0], module.log_std)))
        values.append(results[1][0])
    return torch.stack(logits), torch.stack(values)


def gradients(module: BarActorCritic, logits: Tensor, values: Tensor) -> dict[str, Tensor]:
    """Of a loss in which every sample weighs differently."""
    weight = torch.linspace(0.5, 2, len(values), dtype=values.dtype)
    module.zero_grad()
    ((logits.square().sum(1) + logits.sin().sum(1) + values.square() + values) * weight).sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("order", ["ascending", "slabs", "mixed"])
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_once_per_bar_equals_once_per_sample(kind: str, sharing: str, order: str) -> None:
    module, observation = network(kind, sharing), observations(90, order)
    assert len(observation[:, 0].unique()) < 80
    batch = {Columns.OBS: observation}
    out = module.forward_train(batch)
    logits = out[Columns.ACTION_DIST_INPUTS]
    values = module.compute_values(batch, embeddings=out[Columns.EMBEDDINGS])
    expected = naive(module, kind, observation)
    torch.testing.assert_close(logits, expected[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(values, expected[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(module.compute_values(batch), expected[1], rtol=0, atol=1e-10)
    shared, alone = gradients(module, logits, values), gradients(module, *expected)
    for name in alone:
        scale = float(alone[name].abs().max())
        torch.testing.assert_close(shared[name], alone[name], rtol=0, atol=1e-10 * max(scale, 1), msg=name)
        # A constant added to all keys changes no attention.
        assert scale > (0 if "key.bias" in name else 1e-3), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_a_rollout_is_the_forward_pass(kind: str) -> None:
    module, observation = network(kind), observations(70, "mixed")
    bars = observation[:, 0].long()
    table = module.table()
    for part in (bars[:20], bars.view(7, 10), bars[:0]):
        table.evaluate(part)
    with torch.no_grad():
        logits, values = naive(module, kind, observation)
        torch.testing.assert_close(table.means(observation), logits[:, :2], rtol=0, atol=1e-10)
        torch.testing.assert_close(table.values(observation).squeeze(1), values, rtol=0, atol=1e-10)
        missing = next(bar for bar in range(BARS) if bar not in bars.tolist())
        with pytest.raises((IndexError, RuntimeError)):
            table.means(torch.cat((torch.tensor([[float(missing)]]), observation[:1, 1:]), dim=1))


def test_the_benchmarks_naive_network_is_the_same_function() -> None:
    module, observation = network("transformer"), observations(40, "mixed")
    batch = {Columns.OBS: observation}
    expected, values = module.parameters_of(observation), module.compute_values(batch)
    slow = PerSample(module)
    module.embed, module._forward = slow.embed, slow.forward  # type: ignore[method-assign]
    torch.testing.assert_close(module.parameters_of(observation), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(module.compute_values(batch), values, rtol=0, atol=1e-12)
    torch.testing.assert_close(slow.means(observation), expected[:, :2], rtol=0, atol=1e-12)
    torch.testing.assert_close(slow.values(observation).squeeze(1), values, rtol=0, atol=1e-12)


def embeddings(module: BarActorCritic, features: np.ndarray) -> Tensor:
    module.attach(features)
    with torch.no_grad():
        return module.sums(torch.arange(len(features)))[0]


def first_bar_that_saw(module: BarActorCritic, bar: int) -> tuple[int, int]:
    """First and last bar whose sums change, to the bit, when the features of ``bar`` change."""
    features = np.random.default_rng(5).standard_normal((150, FEATURES))
    changed = features.copy()
    changed[bar] += 3.0
    moved = (embeddings(module, features) != embeddings(module, changed)).any(dim=1).nonzero().squeeze(1)
    return int(moved[0]), int(moved[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_no_bar_sees_a_later_one_or_beyond_the_window(kind: str) -> None:
    for changes in ({}, {"encoder_window": 40, "encoder_layers": 3}):
        module = network(kind, **changes)
        window = module.encoder.window
        for bar in (0, 1, 31, 32, 63, 100, 149):
            assert first_bar_that_saw(module, bar) == (bar, min(bar + window - 1, 149))


def test_a_leak_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: attention without its mask."""
    plain = LocalLayer.forward

    def unmasked(self: LocalLayer, stream: Tensor) -> Tensor:
        self.hidden = torch.zeros_like(self.hidden)
        return plain(self, stream)

    monkeypatch.setattr(LocalLayer, "forward", unmasked)
    assert first_bar_that_saw(network("transformer"), 100)[0] < 100


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 80), min_size=1, max_size=30), st.integers(1, 9), st.booleans())
def test_strips_hold_the_window_of_every_bar(bars: list[int], window: int, ordered: bool) -> None:
    asked = sorted(set(bars)) if ordered else bars
    rows, place = strip_rows(torch.tensor(asked), window)
    for bar, at in zip(asked, place.tolist(), strict=True):
        assert rows[at : at + window].tolist() == list(range(bar - window + 1, bar + 1))
    if ordered:  # nothing that no window holds, and context only once unless a run ends within it
        needed = {row for bar in asked for row in range(bar - window + 1, bar + 1)}
        assert set(rows.tolist()) == needed
        assert len(rows) < 2 * len(needed)


@given(st.integers(2, 512))
def test_dilations_cover_the_window_exactly(window: int) -> None:
    assert sum(dilations(window)) == window - 1
    assert len(dilations(window)) <= math.ceil(math.log2(window)) + 1


def test_factored_is_the_plain_network_where_the_account_enters_first() -> None:
    """One hidden layer: the same function; two: the same number of parameters."""
    module = network("factored", hidden=(12,))
    observation = observations(40, "mixed")
    plain = torch.cat((module.pi.trunk[0].weight, module.pi.account.weight), dim=1)
    inputs = torch.cat((module.market[observation[:, 0].long()], observation[:, 1:]), dim=1)
    means = module.pi.output(torch.tanh(inputs @ plain.t() + module.pi.trunk[0].bias))
    torch.testing.assert_close(module.parameters_of(observation)[:, :2], means, rtol=0, atol=1e-12)

    config = {"hidden": (12, 12), "activation": "tanh", "initial_log_std": -0.5, "policy_gain": 0.01, "key": 1}
    space = gym.spaces.Box(-np.inf, np.inf, (FEATURES + ACCOUNT,), np.float32)
    perceptron = ActorCritic(observation_space=space, action_space=module.action_space, model_config=config)
    count = [sum(p.numel() for p in m.parameters()) for m in (network("factored", hidden=(12, 12)), perceptron)]
    assert count[0] == count[1]


def test_sharing_decides_whose_gradient_reaches_the_encoder() -> None:
    observation = observations(30, "ascending")
    reached = {}
    for sharing in SHARINGS:
        module = network("conv", sharing)
        module.compute_values({Columns.OBS: observation}).sum().backward()
        reached[sharing] = module.encoder.inputs.weight.grad is not None
        assert hasattr(module, "critic_encoder") == (sharing == "separate")
    assert reached == {"separate": False, "shared": True, "detached": False}


def test_weights_come_from_the_key_alone() -> None:
    state = torch.get_rng_state()
    a, b, other = (network("transformer", key=key).state_dict() for key in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["encoder.inputs.weight"], other["encoder.inputs.weight"])
    assert not any("market" in name for name in a)


def test_muon_takes_the_inner_matrices_only() -> None:
    inner = network("conv").hidden_matrices()
    assert "encoder.taps.0.weight" in inner
    assert "pi.trunk.0.weight" in inner
    assert not {"encoder.inputs.weight", "pi.account.weight", "vf.output.weight"} & set(inner)
    assert network("factored").hidden_matrices() == ["pi.trunk.2.weight", "vf.trunk.2.weight"]
    assert not any("bias" in name or "norm" in name for name in network("transformer").hidden_matrices())


def test_a_market_of_other_columns_is_refused() -> None:
    module = network("conv")
    with pytest.raises(ValueError, match="5 features"):
        module.attach(np.zeros((9, 4)))
    module.market = module.market[:0]
    with pytest.raises(RuntimeError, match="attach"):
        module.sums(torch.arange(3))


def test_every_kind_has_an_encoder_and_others_have_none() -> None:
    from rayconf.sections import ENCODERS

    assert ENCODERS == KINDS
    with pytest.raises(ValueError, match="mlp"):
        encoders.build_encoder(
            {"encoder": "mlp", "encoder_width": 4, "encoder_window": 4}, 3, ACTIVATIONS["tanh"], torch.Generator()
        )
