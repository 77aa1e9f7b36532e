"""A leverage cap is part of the policy: what it asks for, alone, in a stack, saved, and as a survivor of a run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from algos.config import PairPPOConfig
from algos.markets import market_for
from algos.policy import EnsemblePolicy, Policy
from envs import ledger
from envs.ledger import Terms
from envs.mapping import ActionMap
from pbt.manifest import Population, Snapshot
from pbt.run_dir import RunDir
from pbt.store import ReturnStore, StateStore
from pbt.survivors import export, load_survivors
from rayconf.loading import load_config
from tests.algos.conftest import small_run
from tests.algos.test_policy import apart, make, rows, together

PAIR = "SYNA/SYNB"


@pytest.mark.parametrize("mapping", ["direct", "neutral"])
@pytest.mark.parametrize("cap", [0.25, 1.0, 1.5])
def test_a_capped_policy_asks_for_what_a_ledger_of_that_limit_would_hold(mapping: str, cap: float) -> None:
    action = torch.rand(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    asked = ActionMap(mapping, 1.5, cap).targets(action)
    terms = Terms(cost=0.0, leverage=cap, borrow_rate=0.0, short_rate=0.0)
    _, fill = ledger.step(
        ledger.open_accounts(500), ActionMap(mapping, cap).targets(action), torch.zeros_like(action), 0.0, terms
    )
    torch.testing.assert_close(asked, fill.weights, rtol=1e-12, atol=0)
    assert float(asked.abs().sum(1).max()) == pytest.approx(cap, rel=0.05)


def capped(cap: float | None, seed: int) -> Policy:
    policy = make(seed)
    policy.action_map = replace(policy.action_map, cap=cap)
    return policy


def test_policies_of_different_caps_share_a_stack_and_a_file(tmp_path: Path) -> None:
    a, b, c = capped(0.3, 0), capped(None, 1), capped(1.1, 2)
    team: list[Policy | EnsemblePolicy] = [EnsemblePolicy([a, b, c]), a, b, c]
    features, account = rows(40 * len(team))
    targets = together(team, 10 * features, account)
    assert torch.equal(targets, apart(team, 10 * features, account))
    gross = targets.abs().sum(1).view(len(team), -1).max(dim=1).values
    assert gross[1:].tolist() == pytest.approx([0.3, float(gross[2]), 1.1], abs=2e-4)
    assert gross[2] > 1.5, "without a cap of its own the ledger is left to keep the limit"

    a.save(tmp_path)
    assert json.loads((tmp_path / "policy.json").read_text())["leverage_cap"] == 0.3
    assert torch.equal(Policy.load(tmp_path).decide(features, account), a.decide(features, account))
    older = {k: v for k, v in json.loads((tmp_path / "policy.json").read_text()).items() if k != "leverage_cap"}
    (tmp_path / "policy.json").write_text(json.dumps(older))
    assert Policy.load(tmp_path).action_map.cap is None


@pytest.mark.parametrize("encoder", ["mlp", "factored"])
def test_survivors_keep_the_cap_they_were_evaluated_with(ray_session: None, tmp_path: Path, encoder: str) -> None:
    run = small_run(
        f"network.encoder={encoder}",
        'search={"cap": {"path": "env.leverage_cap", "low": 0.1, "high": 1.5, "scale": "linear"}}',
        "pbt.archive=3",
    )
    directory = RunDir(tmp_path / "run", run.identity)
    directory.create()
    store, archive, own = StateStore(directory.storage), [], []
    for number, cap in enumerate((0.2, 0.9)):
        member = PairPPOConfig.from_run(run.with_values({"cap": cap}), PAIR, key=number).build_algo()
        member.train()
        own.append(member.evaluation_policy())
        state = store.save(member.boundary_state())
        market = market_for(member.config.env_config)
        member.stop()
        archive.append(Snapshot(state, f"m0{number}", 1, 1.0 - number, 0.1, 1.0 - number, False, {"cap": cap}))
        returns = np.random.default_rng(number).standard_normal(50)
        ReturnStore(directory.storage).save((PAIR, f"m0{number}", 1), returns)
    survivors = load_survivors(run, directory, Population(PAIR, 1, "complete", {}, tuple(archive)), market)
    assert [survivor.policy.action_map.cap for survivor in survivors] == [0.2, 0.9]

    features, account = torch.tensor(market.features), torch.zeros(64, 2, dtype=torch.float64)

    def asked(policy: Policy) -> Tensor:
        return policy.action_map.targets(policy.actions(policy.market_sums(features, range(300, 364)), account))

    start = {"run": "r", "window": 0, "arm": "pbt", "operation": "start", "copied": "none", "key": "0" * 16}
    start |= {"pair": PAIR, "generation": 0, "parent_generation": 0}
    for survivor, policy in zip(survivors, own, strict=True):
        assert torch.equal(asked(survivor.policy), asked(policy))
        member = survivor.snapshot.member
        folder = export(run, directory, market, survivor, [{**start, "member": member, "parent_member": member}])
        assert Policy.load(folder).action_map == policy.action_map
        assert torch.equal(asked(Policy.load(folder)), asked(policy))
        assert load_config("demo", folder / "config.yaml").env.leverage_cap == policy.action_map.cap
