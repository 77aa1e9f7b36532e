"""The arms of the throughput benchmark: what is run, and how many steps a run counts."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from algos.config import PairPPOConfig
from algos.env_runner import BatchedEnvRunner
from algos.pair_ppo import PairPPO
from benchmarks.arena import PAIR, Arena, Network, probe
from benchmarks.peers import StableBaselines3, StockRLlib
from benchmarks.plain_loop import PlainLoop
from envs import ledger
from envs.ledger import Terms

RLLIB_ENVS = 256
SB3_ENVS = (16, 64, 256)
KEY = 11


@dataclass
class Arm:
    """Something that is timed.

    A run is one PPO update for arms that train. ``passes`` runs are made in a round: several where a run is short.
    Gradient steps are counted at the optimizers themselves.
    """

    name: str
    framework: str
    what: str
    envs: int
    minibatch: int
    steps: int
    run: Callable[[], object]
    passes: int = 3
    setting: Arena | None = None
    network: Callable[[], Network] | None = None
    squash: Callable[[Tensor], Tensor] = torch.tanh
    close: Callable[[], None] = lambda: None
    updates: int = 0
    gradient_steps: int = 0
    judged_gradient_steps: int = 0
    reward: float = float("nan")
    value_loss: float = float("nan")
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)

    def __post_init__(self) -> None:
        for optimizer in self.optimizers:
            optimizer.register_step_post_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.gradient_steps += 1

    def ran(self, judged_at: int) -> None:
        """Count a run, and judge what the arm has learnt when it was the ``judged_at``-th."""
        self.updates += 1
        if self.updates == judged_at and self.network is not None and self.setting is not None:
            self.judged_gradient_steps = self.gradient_steps
            self.reward, self.value_loss = probe(self.setting, self.network(), self.squash)


def ledger_arm(setting: Arena, accounts: int, steps: int) -> Arm:
    """The ledger alone: accounts that trade to targets drawn beforehand, at returns drawn beforehand."""
    generator = torch.Generator().manual_seed(KEY)
    targets = torch.rand(64, accounts, 2, generator=generator) * 2 - 1
    returns = 0.01 * torch.randn(64, accounts, 2, generator=generator)
    terms = Terms.from_costs(setting.run.costs)

    @torch.no_grad()
    def run() -> None:
        account = ledger.open_accounts(accounts, torch.float32)
        for t in range(steps):
            account, _ = ledger.step(account, targets[t % 64], returns[t % 64], 1 / 252, terms)

    return Arm(f"ledger, {accounts:,} accounts", "pairpbt", "ledger", accounts, 0, accounts * steps, run)


def environment_arm(setting: Arena, steps: int) -> Arm:
    """The batched environment under actions drawn beforehand: ledger, reward, observations, resets."""
    accounts = setting.run.ppo.num_envs
    env = setting.env(accounts, KEY)
    actions = torch.rand(64, accounts, 2, generator=torch.Generator().manual_seed(KEY)) * 2 - 1
    env.reset()

    @torch.no_grad()
    def run() -> None:
        for t in range(steps):
            env.step(actions[t % 64])

    return Arm("environment", "pairpbt", "environment", accounts, 0, accounts * steps, run)


def rollout_arm(setting: Arena) -> Arm:
    """``BatchedEnvRunner.sample``: actor, environment, critic, advantages and PPO's columns."""
    runner = BatchedEnvRunner(config=PairPPOConfig.from_run(setting.run, PAIR, key=KEY))

    def run() -> None:
        runner.sample()
        runner.get_metrics()

    return Arm("rollouts with the policy", "pairpbt", "rollout", setting.run.ppo.num_envs, 0, setting.batch, run)


def plain_arm(setting: Arena) -> Arm:
    """The plain torch loop."""
    loop = PlainLoop(setting, KEY)
    return training(
        setting, "plain torch loop", "torch", setting.run.ppo.num_envs, loop.update, lambda: loop.net, [loop.optimizer]
    )


def product_arm(setting: Arena, whole: bool) -> Arm:
    """``PairPPO`` through ``Algorithm.train`` (``whole``), or its ``training_step`` alone."""
    algorithm: PairPPO = PairPPOConfig.from_run(setting.run, PAIR, key=KEY).build_algo()
    learner: Any = algorithm.learner_group._learner
    net = learner._net
    start = setting.network()
    for p, initial in zip((*net.pi.parameters(), *net.vf.parameters(), net.log_std), start.parameters(), strict=True):
        p.data.copy_(initial)
    algorithm._sync_weights()
    arm = training(
        setting,
        "PairPPO" if whole else "PairPPO, training_step alone",
        "pairpbt",
        setting.run.ppo.num_envs,
        algorithm.train if whole else algorithm.training_step,
        lambda: Network(net.pi, net.vf, net.log_std),
        list(learner._own_optimizers.values()),
    )
    arm.close = algorithm.stop
    return arm


def peer_arms(setting: Arena) -> list[Arm]:
    """Stock RLlib, and Stable-Baselines3 where it is installed, at each of its numbers of environments."""
    grid: list[tuple[type[StockRLlib] | type[StableBaselines3], str, int]] = [(StockRLlib, "RLlib PPO", RLLIB_ENVS)]
    if importlib.util.find_spec("stable_baselines3"):
        grid += [(StableBaselines3, "Stable-Baselines3 PPO", envs) for envs in SB3_ENVS]
    arms = []
    for kind, name, envs in grid:
        peer = kind(setting, envs, KEY)
        arm = training(setting, f"{name}, {envs} envs", name, envs, peer.update, peer.network, [peer.optimizer])
        arm.squash, arm.close, arm.passes = kind.squash, peer.close, 1
        arms.append(arm)
    return arms


def training(
    setting: Arena,
    name: str,
    framework: str,
    envs: int,
    update: Callable[[], object],
    network: Callable[[], Network],
    optimizers: list[torch.optim.Optimizer],
) -> Arm:
    """An arm whose run is one PPO update."""
    return Arm(
        name=name,
        framework=framework,
        what="training",
        envs=envs,
        minibatch=setting.run.ppo.minibatch_size,
        steps=setting.batch,
        run=update,
        setting=setting,
        network=network,
        optimizers=optimizers,
    )
