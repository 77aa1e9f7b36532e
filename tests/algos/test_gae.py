"""Advantages against a slow loop, and the EnvRunner's columns against its own environment's record."""

from collections.abc import Callable

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from algos.gae import gae, next_values
from algos.pair_ppo import PairPPO

GAMMA, LAMBDA = 0.93, 0.8


def slow_gae(reward: Tensor, value: Tensor, after: Tensor, ruined: Tensor, cut: Tensor) -> Tensor:
    """The definition: the sum over k of (gamma lambda)^k delta[t + k], up to the end of t's episode."""
    steps, accounts = reward.shape
    advantage = torch.zeros_like(reward)
    for n in range(accounts):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                future = 0.0 if ruined[k, n] else GAMMA * float(after[k, n])
                advantage[t, n] += weight * (float(reward[k, n]) + future - float(value[k, n]))
                if ruined[k, n] or cut[k, n]:
                    break
                weight *= GAMMA * LAMBDA
    return advantage


@pytest.mark.parametrize("seed", range(4))
def test_gae_equals_the_slow_sum(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    shape = (23, 5)
    reward, value, after = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
    ruined = torch.rand(shape, generator=g) < 0.1
    cut = (torch.rand(shape, generator=g) < 0.15) & ~ruined
    fast = gae(reward, value, after, ruined, cut, GAMMA, LAMBDA)
    torch.testing.assert_close(fast, slow_gae(reward, value, after, ruined, cut), rtol=0, atol=1e-12)
    # the test can fail: bootstrapping ruin, or letting a truncation pass, is another number
    assert not torch.allclose(gae(reward, value, after, ruined & False, cut | ruined, GAMMA, LAMBDA), fast)
    assert not torch.allclose(gae(reward, value, after, ruined, cut & False, GAMMA, LAMBDA), fast)


def test_truncated_steps_bootstrap_from_their_own_final_observation() -> None:
    value = torch.tensor([[1.0], [2.0]])
    cut = torch.tensor([[True], [False]])
    after = next_values(value, torch.tensor([9.0]), torch.tensor([[7.0], [0.0]]), cut)
    assert after.tolist() == [[7.0], [9.0]]


def test_runner_columns_follow_from_what_the_environment_returned(build: Callable[..., PairPPO]) -> None:
    algorithm = build("costs.ruin_fraction=0.97", config=None, gamma=GAMMA, lambda_=LAMBDA)
    runner = algorithm.env_runner
    record, step = [], runner.env.step
    runner.env.step = lambda action: record.append((action, step(action))) or record[-1][1]
    columns = runner.sample()[0][DEFAULT_MODULE_ID]
    shape = (len(record), runner.num_envs)

    reward = torch.stack([s.reward for _, s in record]).double()
    ruined = torch.stack([s.terminated for _, s in record])
    cut = torch.stack([s.truncated for _, s in record])
    assert ruined.any()
    assert cut.any()
    module = runner.module
    with torch.no_grad():
        value = module.vf(columns[Columns.OBS]).reshape(shape).double()
        after = torch.stack(
            [
                module.vf(s.observation if s.final_observation is None else s.final_observation).squeeze(-1)
                for _, s in record
            ]
        ).double()
    expected = slow_gae(reward, value, after, ruined, cut)
    torch.testing.assert_close(
        columns[Postprocessing.ADVANTAGES].reshape(shape).double(), expected, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        columns[Postprocessing.VALUE_TARGETS].reshape(shape).double(), expected + value, rtol=1e-4, atol=1e-5
    )
    actions = torch.stack([action for action, _ in record])
    assert torch.equal(torch.tanh(columns[Columns.ACTIONS]).reshape(actions.shape), actions)
    assert float(actions.abs().max()) < 1
