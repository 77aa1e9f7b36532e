"""Peers of ``PairPPO`` on the same accounts: stock RLlib PPO and Stable-Baselines3 PPO, each as its users run it.

Both get the product's batched environment behind their own vector interface, so that no peer pays for a loop over
environments that is not its own, and both start from the same weights.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from benchmarks.arena import Arena, Network, copy_weights, linear_layers
from envs.batched import BatchedPairTrading, Step
from rayconf.keys import derive_key


def spaces_of(setting: Arena) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Observation and action space of one account."""
    return (
        gym.spaces.Box(-np.inf, np.inf, (setting.observation_dim,), np.float32),
        gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
    )


@torch.no_grad()
def take(env: BatchedPairTrading, actions: np.ndarray) -> Step:
    """Step on numpy actions, clipped to the bounds as both peers' Gaussians need."""
    return env.step(torch.from_numpy(np.clip(actions, -1.0, 1.0).astype(np.float32, copy=False)))


class GymnasiumVector(gym.vector.VectorEnv):
    """The batched environment as a Gymnasium vector environment that resets an account on the step after its end.

    That step's action is replaced by cash, so that the account it shows is a fresh one, and its reward by zero.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  (declared so by Gymnasium)

    def __init__(self, setting: Arena, num_envs: int, key: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = spaces_of(setting)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self._env = setting.env(num_envs, key)
        self._resetting = np.zeros(num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Fresh accounts."""
        self._resetting[:] = False
        return self._env.reset().numpy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Trade one bar in every account."""
        fresh = self._resetting
        step = take(self._env, np.where(fresh[:, None], 0.0, actions))
        reward, observation = step.reward.numpy(), step.observation.numpy()
        terminated, truncated = step.terminated.numpy() & ~fresh, step.truncated.numpy() & ~fresh
        if fresh.any():
            reward = np.where(fresh, 0.0, reward)
        self._resetting = terminated | truncated
        if self._resetting.any():
            assert step.final_observation is not None
            observation = np.where(self._resetting[:, None], step.final_observation.numpy(), observation)
        return observation, reward, terminated, truncated, {}


class StockRLlib:
    """RLlib's own PPO with its native vector entry point, and nothing of the product but the environment."""

    squash = staticmethod(lambda mean: mean.clamp(-1, 1))

    def __init__(self, setting: Arena, num_envs: int, key: int) -> None:
        from ray.rllib.algorithms.ppo import PPOConfig
        from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
        from ray.tune.registry import register_env

        run = setting.run
        name = f"pair_trading_{key}_{num_envs}_{run.ppo.minibatch_size}"
        register_env(name, lambda context: GymnasiumVector(setting, context["num_envs"], key))
        observation_space, action_space = spaces_of(setting)
        # RLlib adds a row to every piece of an episode; a little larger minibatches keep the number of gradient steps
        minibatch = -(-(setting.batch + 2 * num_envs) * run.ppo.minibatch_size // setting.batch)
        config = (
            PPOConfig()
            .environment(name, observation_space=observation_space, action_space=action_space)
            .env_runners(
                num_env_runners=0,
                num_envs_per_env_runner=num_envs,
                gym_env_vectorize_mode="vector_entry_point",
                rollout_fragment_length=setting.batch // num_envs,
            )
            .learners(num_learners=0)
            .training(
                lr=run.optimizer.learning_rate,
                gamma=run.ppo.gamma,
                lambda_=run.ppo.gae_lambda,
                clip_param=run.ppo.clip,
                entropy_coeff=run.ppo.entropy_coeff,
                vf_loss_coeff=run.ppo.value_coeff,
                vf_clip_param=1e9,
                use_kl_loss=False,
                grad_clip=run.optimizer.max_grad_norm,
                grad_clip_by="global_norm",
                num_epochs=run.ppo.epochs,
                minibatch_size=minibatch,
                train_batch_size_per_learner=setting.batch,
            )
            .rl_module(
                model_config=DefaultModelConfig(
                    fcnet_hiddens=list(run.network.hidden),
                    fcnet_activation=run.network.activation,
                    vf_share_layers=False,
                    free_log_std=True,
                )
            )
            .debugging(seed=derive_key(key) % 2**31, log_level="ERROR")
        )
        self._setting = setting
        self._algorithm = config.build_algo()
        learner: Any = self._algorithm.learner_group._learner
        (self.optimizer,) = (optimizer for _, optimizer in learner.get_optimizers_for_module("default_policy"))
        module = learner.module["default_policy"].unwrapped()
        self._pi, self._vf = (module.encoder.actor_encoder, module.pi), (module.encoder.critic_encoder, module.vf)
        (self._log_std,) = (p for name, p in module.named_parameters() if "log_std" in name)
        start = setting.network()
        copy_weights([start.pi], self._pi)
        copy_weights([start.vf], self._vf)
        self._log_std.data.copy_(start.log_std)
        self._algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=self._algorithm.learner_group)

    def update(self) -> None:
        """One iteration of ``Algorithm.train``."""
        self._algorithm.train()

    def network(self) -> Network:
        """Present weights."""
        return extract(self._setting, self._pi, self._vf, self._log_std)

    def close(self) -> None:
        """Stop the algorithm."""
        self._algorithm.stop()


class StableBaselines3:
    """Stable-Baselines3's PPO on the CPU."""

    squash = staticmethod(lambda mean: mean.clamp(-1, 1))

    def __init__(self, setting: Arena, num_envs: int, key: int) -> None:
        from stable_baselines3 import PPO

        run = setting.run
        activations = {"tanh": nn.Tanh, "silu": nn.SiLU}
        self._setting = setting
        self._model = PPO(
            "MlpPolicy",
            vec_env(setting, num_envs, key),
            learning_rate=run.optimizer.learning_rate,
            n_steps=setting.batch // num_envs,
            batch_size=run.ppo.minibatch_size,
            n_epochs=run.ppo.epochs,
            gamma=run.ppo.gamma,
            gae_lambda=run.ppo.gae_lambda,
            clip_range=run.ppo.clip,
            ent_coef=run.ppo.entropy_coeff,
            vf_coef=run.ppo.value_coeff,
            max_grad_norm=run.optimizer.max_grad_norm,
            policy_kwargs={
                "net_arch": {"pi": list(run.network.hidden), "vf": list(run.network.hidden)},
                "activation_fn": activations[run.network.activation],
                "log_std_init": run.network.initial_log_std,
            },
            device="cpu",
        )
        policy: Any = self._model.policy
        self.optimizer = policy.optimizer
        self._pi = (policy.mlp_extractor.policy_net, policy.action_net)
        self._vf = (policy.mlp_extractor.value_net, policy.value_net)
        self._log_std = policy.log_std
        start = setting.network()
        copy_weights([start.pi], self._pi)
        copy_weights([start.vf], self._vf)

    def update(self) -> None:
        """``learn`` for one batch."""
        self._model.learn(self._setting.batch, reset_num_timesteps=False)

    def network(self) -> Network:
        """Present weights."""
        return extract(self._setting, self._pi, self._vf, self._log_std)

    def close(self) -> None:
        """Nothing to stop."""


def extract(setting: Arena, pi: tuple[nn.Module, ...], vf: tuple[nn.Module, ...], log_std: nn.Parameter) -> Network:
    """A peer's weights in the common form."""
    network = setting.network()
    assert len(linear_layers(pi)) == len(setting.run.network.hidden) + 1
    copy_weights(pi, [network.pi])
    copy_weights(vf, [network.vf])
    network.log_std.data.copy_(log_std.detach())
    return network


def vec_env(setting: Arena, num_envs: int, key: int) -> Any:
    """The batched environment as a Stable-Baselines3 ``VecEnv``."""
    from stable_baselines3.common.vec_env import VecEnv

    class Accounts(VecEnv):
        def __init__(self) -> None:
            self._env = setting.env(num_envs, key)
            super().__init__(num_envs, *spaces_of(setting))
            self._nothing: list[dict[str, Any]] = [{} for _ in range(num_envs)]

        def reset(self) -> np.ndarray:
            return self._env.reset().numpy()

        def step_async(self, actions: np.ndarray) -> None:
            self._actions = actions

        def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
            step = take(self._env, self._actions)
            infos = self._nothing
            done = step.terminated.numpy() | step.truncated.numpy()
            if step.final_observation is not None:
                infos = infos.copy()
                for i in np.flatnonzero(done):
                    cut = bool(step.truncated[i])
                    final = step.final_observation[i].numpy()
                    infos[i] = {"terminal_observation": final, "TimeLimit.truncated": cut}
            return step.observation.numpy(), step.reward.numpy(), done, infos

        def close(self) -> None:
            pass

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * num_envs

    return Accounts()
