"""Policies with a market encoder: equal to the actor, equal to the bit however they are asked, after saving too."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from algos.bar_policy import BARS, BarPolicy, build_policy
from algos.policy import EnsemblePolicy, Policy
from algos.stack import decide_on
from envs.mapping import ActionMap
from rayconf.loading import load_config
from rayconf.run_config import RunConfig
from tests.algos.test_encoders import ACCOUNT, FEATURES, KINDS, WINDOW, network

TIMES = 3 * BARS - 100
NAMES = [f"f{i}" for i in range(FEATURES)]
MARKET = torch.from_numpy(np.random.default_rng(0).standard_normal((TIMES, FEATURES)).astype(np.float32))


def run_with(kind: str) -> RunConfig:
    fields = (f"encoder={kind}", f"encoder_window={WINDOW}", "encoder_width=8", "encoder_heads=2", "hidden=[12, 8]")
    return load_config("smoke", assignments=[f"network.{field}" for field in fields])


def make(kind: str, key: int = 1) -> BarPolicy:
    policy = build_policy(dict(network(kind, key=key).named_parameters()), run_with(kind), NAMES)
    assert isinstance(policy, BarPolicy)
    return policy


def asked(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    bars = torch.randint(0, TIMES, (count,), generator=g)
    return bars, MARKET[bars].double(), 0.5 * torch.randn(count, ACCOUNT, generator=g, dtype=torch.float64)


def decide(
    policies: Sequence[Policy | EnsemblePolicy],
    bars: Tensor,
    account: Tensor,
    market: Tensor = MARKET,
    rows: int | None = None,
) -> Tensor:
    every = torch.arange(len(bars))
    return decide_on(policies, market, rows).among(every, range(int(bars.min()), int(bars.max()) + 1))(bars, account)


@pytest.mark.parametrize("kind", KINDS)
def test_decides_the_actors_mean(kind: str) -> None:
    module = network(kind)
    module.attach(MARKET.double().numpy())
    bars, _, account = asked(150)
    observation = torch.cat((bars.double().unsqueeze(1), account), dim=1)
    with torch.no_grad():
        mean = module.forward_inference({Columns.OBS: observation})[Columns.ACTION_DIST_INPUTS][:, :2]
    expected = ActionMap("direct", 1.5).targets(torch.tanh(mean))
    targets = decide([make(kind)], bars, account)
    torch.testing.assert_close(targets, expected, rtol=0, atol=0.51e-4)
    assert len(targets.unique(dim=0)) > 100


@pytest.mark.parametrize("kind", KINDS)
def test_neither_company_nor_later_bars_change_a_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("algos.stack.round_targets", lambda target: target.clone())
    policy = make(kind)
    bars, _, account = asked(130)
    whole = decide([policy], bars, account)
    for count in (1, 2, 7, 63, 65, 129):
        part = decide([policy], bars[-count:], account[-count:])
        assert torch.equal(part, whole[-count:])
    middle = int(bars.median())
    shaken = MARKET.clone()
    shaken[middle + 1 :] += 2
    early = bars <= middle
    moved = decide([policy], bars, account, shaken)
    assert torch.equal(moved[early], whole[early])
    assert not torch.equal(moved, whole)


def test_many_policies_decide_what_each_decides_alone() -> None:
    plain = Policy(
        [(torch.randn(2, FEATURES + ACCOUNT, generator=torch.Generator().manual_seed(0)), torch.zeros(2))],
        activation="tanh",
        action_map=ActionMap("direct", 1.5),
        feature_names=NAMES,
    )
    a, b = make("conv"), make("transformer", key=2)
    team = EnsemblePolicy([a, plain, b])
    bars, seen, account = asked(12)
    together = decide([team, a, plain], bars, account, rows=4)
    for i, policy in enumerate((team, a, plain)):
        own = slice(4 * i, 4 * i + 4)
        assert torch.equal(together[own], decide([policy], bars[own], account[own]))
    members = torch.stack([decide([p], bars, account) for p in (a, plain, b)])
    torch.testing.assert_close(decide([team], bars, account), members.mean(0), rtol=0, atol=0.51e-4)
    with pytest.raises(ValueError, match="rows"):
        decide_on([a, b], MARKET)
    with pytest.raises(ValueError, match="decide_on"):
        a.decide(seen, account)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_policy_decides_equally_to_the_bit(kind: str, tmp_path: Path) -> None:
    policy = make(kind)
    policy.save(tmp_path)
    loaded = Policy.load(tmp_path)
    bars, _, account = asked(70)
    question = (bars, account)
    assert torch.equal(decide([loaded], *question), decide([policy], *question))
    assert {f.name for f in tmp_path.iterdir()} == {"policy.safetensors", "policy.json"}
    about = json.loads((tmp_path / "policy.json").read_text())
    assert (about["account_columns"], about["feature_names"]) == (ACCOUNT, NAMES)
    about["market_network"]["hidden"] = [5, 5]
    (tmp_path / "policy.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="different networks"):
        Policy.load(tmp_path)
