"""What all arms of the throughput benchmark share: one market, one network, one set of hyperparameters, one probe."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algos.markets import market_for
from algos.module import ACTION_DIM, POLICY_GAIN, perceptron
from envs.batched import BatchedPairTrading, observation_dim
from envs.market import PairMarket
from rayconf import RunConfig, load_config
from rayconf.keys import torch_seed

PAIR = "SYNA/SYNB"
BATCH = 32_768
"""Samples of one PPO update, the same in every arm."""
PROBE_ENVS, PROBE_STEPS = 1024, 64
LEARNING_RATE = 1e-3


@dataclass
class Network:
    """Actor and critic in a form common to all frameworks."""

    pi: nn.Sequential
    vf: nn.Sequential
    log_std: nn.Parameter

    def parameters(self) -> list[nn.Parameter]:
        """All weights."""
        return [*self.pi.parameters(), *self.vf.parameters(), self.log_std]


@dataclass(frozen=True)
class Arena:
    """The setting of one measurement."""

    run: RunConfig
    market: PairMarket

    @property
    def batch(self) -> int:
        """Samples of one update."""
        return self.run.ppo.num_envs * self.run.ppo.rollout_steps

    @property
    def observation_dim(self) -> int:
        """Columns of an observation."""
        return observation_dim(self.market, self.run)

    def env(self, num_envs: int, key: int) -> BatchedPairTrading:
        """A batched environment with its own stream of episodes."""
        generator = torch.Generator().manual_seed(torch_seed(key, "benchmark", "episodes"))
        return BatchedPairTrading(self.market, self.run, num_envs, generator=generator)

    def network(self) -> Network:
        """The initial network, the same weights at every call."""
        hidden, activation = self.run.network.hidden, self.run.network.activation
        generator = torch.Generator().manual_seed(torch_seed(self.run.seed, "benchmark", "weights"))
        inputs = self.observation_dim
        pi = perceptron((inputs, *hidden, ACTION_DIM), activation, POLICY_GAIN, generator)
        vf = perceptron((inputs, *hidden, 1), activation, 1.0, generator)
        return Network(pi, vf, nn.Parameter(torch.full((ACTION_DIM,), self.run.network.initial_log_std)))


def arena(minibatch: int, batch: int = BATCH, num_envs: int = 512, assignments: Sequence[str] = ()) -> Arena:
    """The smoke preset's size of market, plain; the product's network and PPO but a constant, larger learning rate.

    Args:
        minibatch: Samples per gradient step.
        batch: Samples per update.
        num_envs: Accounts of the tensor loops; peers have their own numbers.
        assignments: Further settings of the run, each ``a.b=value``.
    """
    run = load_config(
        "smoke",
        assignments=[
            f"data.pairs=[{PAIR}]",
            "synthetic.form=plain",
            f"ppo.num_envs={num_envs}",
            f"ppo.rollout_steps={batch // num_envs}",
            f"ppo.minibatch_size={minibatch}",
            "ppo.epochs=4",
            f"optimizer.learning_rate={LEARNING_RATE}",
            "optimizer.weight_decay=0",
            "optimizer.schedule=constant",
            "optimizer.warmup_fraction=0",
            *assignments,
        ],
    )
    return Arena(run, market_for({"run": run.model_dump(mode="json"), "pair": PAIR}))


def linear_layers(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    """All linear layers of the modules, in order."""
    return [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def copy_weights(source: Iterable[nn.Module], target: Iterable[nn.Module]) -> None:
    """Copy linear layers one by one between two networks of the same shape."""
    for theirs, ours in zip(linear_layers(source), linear_layers(target), strict=True):
        ours.weight.copy_(theirs.weight)
        ours.bias.copy_(theirs.bias)


@torch.no_grad()
def probe(setting: Arena, network: Network, squash: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """What an arm has learnt, judged alike for all: its mean action on the same accounts from the same bars.

    Args:
        setting: Market and hyperparameters.
        network: The arm's weights.
        squash: How the arm turns means into actions, ``torch.tanh`` or a clip.

    Returns:
        Mean reward per step, and the critic's mean squared error against the discounted rewards to the end of the
        probe plus the critic's own estimate there.
    """
    env = setting.env(PROBE_ENVS, key=7)
    tail, current = env.tail_quantile, env.reset()
    rewards, values, alive = [], [], []
    for _ in range(PROBE_STEPS):
        values.append(network.vf(current).squeeze(-1))
        step = env.step(squash(network.pi(current)))
        rewards.append(step.reward)
        alive.append(~(step.terminated | step.truncated))
        current = step.observation
    assert env.tail_quantile == tail
    target, squared = network.vf(current).squeeze(-1), []
    for reward, value, goes_on in zip(rewards[::-1], values[::-1], alive[::-1], strict=True):
        target = reward + setting.run.ppo.gamma * torch.where(goes_on, target, value)
        squared.append((value - target).square().mean())
    return float(torch.stack(rewards).mean()), float(torch.stack(squared).mean())
