"""The direct arm: the exact gradient of what the deterministic policy earns on windows of the training span.

The market is exogenous and the ledger is written in torch, so the accounts of a window are one graph from the weights
to the net returns (Moody and Saffell 2001; Lim, Zohren and Roberts 2019). No action is sampled, and the critic and
``log_std`` stay as they are.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import POLICY_LOSS_KEY
from torch import Tensor

from algos.bar_network import BarActorCritic
from algos.env_runner import ENV_SECONDS, POLICY_SECONDS, REWARD_MEAN, TAIL_QUANTILE
from algos.learner import PairPPOLearner
from algos.markets import market_for, run_of
from algos.module import ActorCritic
from envs.batched import BatchedPairTrading
from envs.market import PairMarket
from rayconf.keys import torch_seed
from rayconf.run_config import RunConfig
from rayconf.sections import DirectConfig

SHARPNESS = 5.0
"""Inverse temperature of the smooth minimum over windows, in units of the windows' t-statistics."""


@dataclass(frozen=True, slots=True)
class Course:
    """What N accounts did on the T bars of their windows, all [T, N]."""

    net_return: Tensor
    """Simple net return per bar under the training terms."""
    unit: Tensor
    """What counts as 1 / noise in the market of the account, see ``BatchedPairTrading.unit``."""
    turnover: Tensor
    reward: Tensor
    """Shaped reward; without a graph where the objective does not need it."""
    log_growth: Tensor
    """Without a graph."""


class Unroll:
    """Runs the deterministic policy through windows drawn from the training span.

    The gradient goes the whole way through the accounts: what is held decides what the next order costs, and what the
    policy sees of it.

    Args:
        market: The pair.
        run: Its sections ``direct``, ``env`` and ``costs``, and the kind of network.
        generator: CPU generator that draws the windows.
        device: Where the network lies.
        dtype: Float type of network and accounting.
    """

    def __init__(
        self,
        market: PairMarket,
        run: RunConfig,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._length, self._shaped = run.direct.window_bars, run.direct.objective == "reward"
        numbered = run.network.encoder != "mlp"
        self.env = BatchedPairTrading(
            market, run, run.direct.windows, generator=generator, dtype=dtype, device=device, numbered=numbered
        )
        self.env_seconds = 0.0
        """Time in the environment's forward steps so far."""

    def __call__(self, net: ActorCritic) -> Course:
        """Windows drawn anew, under the network's weights."""
        env, parts = self.env, []
        observation = env.open_windows(self._length)
        actor = _actor(net, observation, self._length)
        for t in range(self._length):
            action = torch.tanh(actor(t, observation))
            entered = time.perf_counter()
            observation, fill = env.advance(action)
            with torch.set_grad_enabled(self._shaped):
                reward = env.shaped(fill)
            self.env_seconds += time.perf_counter() - entered
            parts.append((fill.net_return, env.unit, fill.turnover, reward, fill.log_growth.detach()))
        return Course(*(torch.stack(part) for part in zip(*parts, strict=True)))


def _actor(net: ActorCritic, observation: Tensor, length: int) -> Callable[[int, Tensor], Tensor]:
    """Mean latents [N, 2] of observations at the t-th bar; what reads only the market is evaluated once per bar."""
    if not isinstance(net, BarActorCritic):
        return lambda _, seen: net.pi(seen)
    branch, first = net.pi, observation[:, 0].long()
    bars = first + torch.arange(length, device=first.device).unsqueeze(1)
    distinct, place = torch.unique(bars, return_inverse=True)
    shares = net.actor_sums(distinct).index_select(0, place.flatten()).unflatten(0, bars.shape).unbind()
    return lambda t, seen: branch.head(shares[t], seen[:, 1:])


def objective(course: Course, direct: DirectConfig, turnover_penalty: float) -> Tensor:
    """What is maximised, 0-dim: see ``DirectConfig.objective``.

    Args:
        course: The windows; their first ``burn_bars`` bars do not count.
        direct: Objective, burn-in, floor and weight of the worst windows.
        turnover_penalty: Extra cost in basis points at a squared turnover of 1.
    """
    if direct.objective == "reward":
        return course.reward[direct.burn_bars :].mean()
    returns = course.net_return - 1e-4 * turnover_penalty * course.turnover.square()
    returns = (returns * course.unit)[direct.burn_bars :]
    floor = direct.floor**2
    pooled = returns.mean() / (returns.var(correction=0) + floor).sqrt()
    if not direct.worst_window:
        return pooled
    scale = len(returns) ** 0.5  # ratios per bar become t-statistics, whose noise is 1
    each = scale * returns.mean(0) / (returns.var(0, correction=0) + floor).sqrt()
    smooth = torch.logsumexp(-SHARPNESS * each, 0) - math.log(returns.shape[1])
    return pooled - direct.worst_window * smooth / (SHARPNESS * scale)


class DirectLearner(PairPPOLearner):
    """The learner of ``algo: direct``: optimizers, schedule, clipping, averages and states are ``PairPPOLearner``'s.

    Dropout keeps its masks within a gradient step.
    """

    holds_masks = True

    def build(self) -> None:
        """Build module and optimizers, then the windows' environment."""
        if self._is_built:
            return
        self._starts = torch.Generator()
        super().build()
        env_config = self.config.env_config
        self._run, market = run_of(env_config), market_for(env_config)
        self._unroll = Unroll(market, self._run, self._starts, self._device)

    def reseed(self, key: int) -> None:
        """Restart the draws of windows and the masks of dropout from ``key``."""
        super().reseed(key)
        self._starts.manual_seed(torch_seed(key, "windows"))

    def ascend(self, timesteps: dict[str, Any], tail_quantile: float) -> tuple[Any, dict[str, float]]:
        """One update: ``direct.steps`` gradient steps, each on windows drawn anew.

        Args:
            timesteps: As for ``update``.
            tail_quantile: Running quantile of the raw loss.

        Returns:
            What has been logged, as ``update`` returns it, and figures of the update: mean shaped reward, the moved
            tail quantile, seconds in the environment and in the rest of the unrolling.
        """
        self.before_gradient_based_update(timesteps=timesteps)
        self._net.train()
        env, direct = self._unroll.env, self._run.direct
        env.tail_quantile, self._unroll.env_seconds = tail_quantile, 0.0
        self._objectives: list[Tensor] = []
        rewards, growth, seconds = [], [], 0.0
        for _ in range(direct.steps):
            began = time.perf_counter()
            for hook in self._hooks:
                hook.renew()
            course = self._unroll(self._net)
            seconds += time.perf_counter() - began
            value = objective(course, direct, self._run.env.turnover_penalty)
            self._objectives.append(value.detach())
            rewards.append(course.reward.detach().mean())
            growth.append(course.log_growth)
            gradients = self.compute_gradients({DEFAULT_MODULE_ID: -value})
            self.apply_gradients(self.postprocess_gradients(gradients))
        self._trained = direct.steps * direct.bars_per_step
        env.observe_tail(torch.cat(growth))
        self.after_gradient_based_update(timesteps=timesteps)
        figures = {
            REWARD_MEAN: float(torch.stack(rewards).mean()),
            TAIL_QUANTILE: env.tail_quantile,
            ENV_SECONDS: self._unroll.env_seconds,
            POLICY_SECONDS: seconds - self._unroll.env_seconds,
        }
        return self.metrics.reduce(), figures

    def _loss_report(self) -> dict[str, Any]:
        return {POLICY_LOSS_KEY: -torch.stack(self._objectives).mean()}
