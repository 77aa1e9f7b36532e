"""The EnvRunner: N accounts stepped as tensors, one fragment [T, N] per call."""

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import (
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MEAN,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    WEIGHTS_SEQ_NO,
)
from torch import Tensor

from algos.bar_network import BarActorCritic
from algos.episode_ends import EndsKept, EndsPicked
from algos.gae import gae, next_values
from algos.markets import market_for, run_of
from algos.module import ActorCritic
from envs.account_view import account_size
from envs.batched import BatchedPairTrading, observation_dim, uses_drawdown
from rayconf.errors import UserError
from rayconf.keys import torch_seed

TAIL_QUANTILE = "tail_quantile"
REWARD_MEAN, ENV_SECONDS, POLICY_SECONDS = "reward_mean", "env_seconds", "policy_seconds"
Network = Callable[[Tensor], Tensor]
VALUE_ROWS = 8192
"""Rows per call of the critic on a finished rollout; larger blocks fall out of the cache."""


class BatchedEnvRunner(EnvRunner, Checkpointable):
    """Samples [T, N] rollouts from ``BatchedPairTrading`` and turns them into PPO's columns.

    Nothing runs per account: a step is one call of the actor and one of the environment. The critic is called
    once per rollout. Advantages are computed here, on [T, N], where time is still an axis.

    On an accelerator no step waits for the device (``branchless``): what depends on which accounts have finished is
    kept for all of them and picked out once per rollout. The seconds of environment and policy are then those of
    their launch.

    The state beyond the weights is the running tail quantile of the CVaR term; episodes and random streams
    are not state, they start anew from a key (``reseed``).
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        torch.set_num_threads(self.config.torch_threads)
        self.worker_index = kwargs.get("worker_index") or 0
        self.num_envs = self.config.num_envs_per_env_runner
        self.env: BatchedPairTrading | None = None
        self.module: ActorCritic | None = None
        self._device = _usable(self.config.runner_device)
        self.branchless = self._device.type != "cpu"
        self._starts = torch.Generator()  # the environment draws its episodes on the CPU, wherever it runs
        self._noise = torch.Generator(self._device)
        self._observation: Tensor | None = None
        self._tail: float | None = None
        self._spaces: dict[str, tuple[gym.Space, gym.Space]] | None = None
        self.reseed(self.config.stream_key)
        if self.worker_index > 0 or self.config.num_env_runners == 0 or self.config.create_env_on_local_worker:
            self.make_env()
        self.make_module()

    def make_env(self) -> None:
        """Build the environment of this process's pair."""
        env_config = self.config.env_config
        self.env = BatchedPairTrading(
            market_for(env_config),
            run_of(env_config),
            self.num_envs,
            generator=self._starts,
            device=self._device,
            numbered=run_of(env_config).network.encoder != "mlp",
            branchless=self.branchless,
        )
        self._observation = None

    def make_module(self) -> None:
        """Build actor and critic."""
        spec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=False)
        self.module = spec.build().to(self._device)
        if isinstance(self.module, BarActorCritic):
            self.module.attach(market_for(self.config.env_config).training_features)

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """Observation and action space; known without an environment, for the driver of remote runners."""
        if self._spaces is None:
            env_config = self.config.env_config
            run = run_of(env_config)
            if run.network.encoder == "mlp":
                dim = observation_dim(market_for(env_config), run)
            else:
                dim = 1 + account_size(uses_drawdown(run))
            box = gym.spaces.Box(-np.inf, np.inf, (dim,), np.float32)
            pair = (box, self.config.action_space)
            names = (INPUT_ENV_SPACES, INPUT_ENV_SINGLE_SPACES, DEFAULT_MODULE_ID)
            self._spaces = dict.fromkeys(names, pair)
        return self._spaces

    def reseed(self, key: int) -> None:
        """Restart all random streams from ``key`` (each runner its own) and begin fresh episodes."""
        self._starts.manual_seed(torch_seed(key, "episodes", self.worker_index))
        self._noise.manual_seed(torch_seed(key, "actions", self.worker_index))
        self._observation = None

    @property
    def tail_quantile(self) -> float | None:
        """Running 95 % quantile of the raw loss; None in a driver that has not been told one."""
        return self._tail if self.env is None else self.env.tail_quantile

    @tail_quantile.setter
    def tail_quantile(self, value: float) -> None:
        self._tail = value
        if self.env is not None:
            self.env.tail_quantile = value

    def assert_healthy(self) -> None:
        """Raise unless construction went through."""
        assert self.module is not None

    @torch.no_grad()
    def sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[MultiAgentBatch]:
        """One rollout of all accounts as a batch of T * N rows, time-major.

        Args:
            num_timesteps: Environment steps over all accounts, rounded up to whole steps of all; default: the
                config's fragment length.
            num_episodes: Not supported: episodes of N accounts end at different times.
            explore: False takes the mean action.
            random_actions: Not supported; RLlib's PPO never asks for it.
            force_reset: Begin fresh episodes.

        Raises:
            ValueError: For ``num_episodes`` and ``random_actions``.
        """
        if num_episodes is not None or random_actions:
            raise ValueError("batched rollouts are counted in steps and follow the policy")
        env, module = self.env, self.module
        assert env is not None
        assert module is not None
        if self._observation is None or force_reset:
            self._observation = env.reset()
            self._return = torch.zeros(self.num_envs, device=self._device)
            self._length = torch.zeros(self.num_envs, device=self._device)
        if num_timesteps is not None:
            steps = -(-num_timesteps // self.num_envs)
        else:
            steps = int(self.config.get_rollout_fragment_length(self.worker_index))
        explore = self.config.explore if explore is None else explore
        return [self._rollout(env, module, self._observation, steps, explore)]

    def _rollout(
        self, env: BatchedPairTrading, module: ActorCritic, current: Tensor, steps: int, explore: bool
    ) -> MultiAgentBatch:
        n, device = self.num_envs, self._device
        began = time.perf_counter()
        log_std = module.log_std.detach()
        noise = torch.randn(steps, n, len(log_std), generator=self._noise, device=device)
        noise = noise * log_std.exp() if explore else torch.zeros_like(noise)
        observation = torch.empty(steps, n, env.observation_dim, device=device)
        loc = torch.empty(steps, n, len(log_std), device=device)
        latent, reward, growth = torch.empty_like(loc), torch.empty(steps, n, device=device), []
        terminated = torch.zeros(steps, n, dtype=torch.bool, device=device)
        truncated = torch.zeros_like(terminated)
        ends = EndsKept(observation) if self.branchless else EndsPicked(n)
        env_seconds = 0.0
        actor: Network = module.pi
        critic: Network = module.vf
        table = None
        if isinstance(module, BarActorCritic):  # the weights stay as they are, so each bar is evaluated once
            table = module.table()
            table.evaluate(env.observable() if self.branchless else env.upcoming(steps))
            actor, critic = table.means, table.values
        for t in range(steps):
            observation[t] = current
            loc[t] = mean = actor(current)
            latent[t] = chosen = mean + noise[t]
            action = torch.tanh(chosen)
            entered = time.perf_counter()
            step = env.step(action)
            env_seconds += time.perf_counter() - entered
            reward[t] = step.reward
            growth.append(step.log_growth)
            self._return += step.reward
            self._length += 1
            if step.final_observation is not None:
                terminated[t], truncated[t] = step.terminated, step.truncated
                done = step.terminated | step.truncated
                ends.add(t, step.truncated, step.final_observation, done, self._return, self._length)
                self._return, self._length = self._return.masked_fill(done, 0), self._length.masked_fill(done, 0)
                if table is not None and not self.branchless and bool(step.terminated.any()):
                    table.evaluate(env.upcoming(steps - t - 1))  # a ruin nobody foresaw draws other starts
            current = step.observation
        self._observation = current
        env.observe_tail(torch.stack(growth))

        rows = steps * n
        flat = observation.reshape(rows, -1)
        value = _values(critic, flat).reshape(steps, n)
        final_value = torch.zeros(rows, device=device)
        index, final_observation = ends.truncations(truncated)
        if len(index):
            final_value[index] = _values(critic, final_observation)
        last_value = _values(critic, current)
        following = next_values(value, last_value, final_value.reshape(steps, n), truncated)
        advantage = gae(reward, value, following, terminated, truncated, self.config.gamma, self.config.lambda_)
        inputs = torch.cat((loc, log_std.expand_as(loc)), dim=-1).reshape(rows, -1)
        actions = latent.reshape(rows, -1)
        columns: dict[str, Any] = {
            Columns.OBS: flat,
            Columns.ACTIONS: actions,
            Columns.ACTION_DIST_INPUTS: inputs,
            Columns.ACTION_LOGP: module.action_dist_cls.from_logits(inputs).logp(actions),
            Postprocessing.ADVANTAGES: advantage.reshape(rows),
            Postprocessing.VALUE_TARGETS: (advantage + value).reshape(rows),
        }
        finished = ends.episodes(terminated | truncated)
        self._log(rows, float(reward.mean()), finished, env_seconds, time.perf_counter() - began - env_seconds)
        if self.worker_index > 0:  # numpy travels through Ray's object store without a copy
            columns = {name: column.cpu().numpy() for name, column in columns.items()}
        return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=rows)

    def _log(self, rows: int, reward: float, finished: Tensor, env_seconds: float, policy_seconds: float) -> None:
        SingleAgentEnvRunner._increase_sampled_metrics(self, rows, finished.shape[1])
        self.metrics.log_value(REWARD_MEAN, reward, window=1)
        self.metrics.log_value(ENV_SECONDS, env_seconds, window=1)
        self.metrics.log_value(POLICY_SECONDS, policy_seconds, window=1)
        if finished.shape[1]:
            mean_return, mean_length = finished.mean(dim=1).tolist()
            self.metrics.log_value(EPISODE_RETURN_MEAN, mean_return, window=1)
            self.metrics.log_value(EPISODE_LEN_MEAN, mean_length, window=1)

    def get_metrics(self) -> Any:
        """What has been logged since the last call."""
        return self.metrics.reduce()

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Counter and tail quantile, and the weights where asked for."""
        state: dict[str, Any] = {
            NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime,
            TAIL_QUANTILE: self.tail_quantile,
        }
        assert self.module is not None
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state(**kwargs)
            state[WEIGHTS_SEQ_NO] = 0
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` holds. Weights always: a donor's may be older by count than one's own."""
        if COMPONENT_RL_MODULE in state:
            weights = state[COMPONENT_RL_MODULE]
            if isinstance(weights, ray.ObjectRef):
                weights = ray.get(weights)
            assert self.module is not None
            self.module.set_state(weights.get(DEFAULT_MODULE_ID, weights))
        if state.get(TAIL_QUANTILE) is not None:
            self.tail_quantile = state[TAIL_QUANTILE]
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[NUM_ENV_STEPS_SAMPLED_LIFETIME]

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments that rebuild this runner."""
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """The module."""
        return [(COMPONENT_RL_MODULE, self.module)]

    def stop(self) -> None:
        """Let go of the environment."""
        self.env = None


def _usable(name: str) -> torch.device:
    """The device of that name. Raises ``UserError`` where there is none."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"runner_device: torch {torch.__version__} finds no CUDA device for {name!r}; use 'cpu'")
    return device


def _values(critic: Network, observation: Tensor) -> Tensor:
    return torch.cat([critic(block) for block in observation.split(VALUE_ROWS)]).squeeze(-1)
