"""A frozen encoder keeps its bytes, moments included, while the rest of the network trains."""

from collections.abc import Callable

import pytest
import torch

from algos.pair_ppo import PairPPO

ENCODERS = {
    "mlp": {f"{layer}.{kind}" for layer in ("pi.0", "pi.1.0", "vf.0", "vf.1.0") for kind in ("weight", "bias")},
    "factored": {"pi.trunk.0.weight", "pi.trunk.0.bias", "vf.trunk.0.weight", "vf.trunk.0.bias"},
    "gru": {
        f"{encoder}.{layer}.{kind}"
        for encoder in ("encoder", "critic_encoder")
        for layer in ("inputs", "state")
        for kind in ("weight", "bias")
    },
}


@pytest.mark.parametrize(("encoder", "kind"), [("mlp", "muon_mix"), ("factored", "adamw"), ("gru", "muon_mix")])
def test_frozen_bytes(build: Callable[..., PairPPO], encoder: str, kind: str) -> None:
    settings = [f"network.encoder={encoder}", "network.encoder_window=5", "network.encoder_width=8"]
    settings += [f"network.layer_norm={encoder == 'mlp'}"]
    settings += ["network.hidden=[16, 16, 16]", f"optimizer.kind={kind}", "optimizer.weight_decay=0.1"]
    algorithm = build(*settings)
    algorithm.train()
    before = algorithm.boundary_state()  # with moments, which alone would move the weights on
    algorithm.freeze_encoder()
    algorithm.train()
    algorithm.train()
    after = algorithm.boundary_state()

    names = {name.removeprefix("module/") for name in before if name.startswith("module/")}
    frozen = ENCODERS[encoder]
    assert frozen < names
    for name in names:
        own = [key for key in before if key == f"module/{name}" or (key.endswith(f"/{name}") and "optimizer" in key)]
        assert len(own) >= 2
        equal = {torch.equal(before[key], after[key]) for key in own}
        assert equal == {name in frozen}, name

    free = build(*settings)
    free.load_boundary_state(before)
    free.train()
    assert not any(torch.equal(free.boundary_state()[f"module/{name}"], before[f"module/{name}"]) for name in frozen)
