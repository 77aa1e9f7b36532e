"""``PairPPOConfig``: RLlib's PPO config, filled from a run, with the settings that PPO has not."""

import copy
from functools import lru_cache
from typing import Any, Self

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.from_config import NotProvided

from algos.bar_network import BarActorCritic
from algos.direct import DirectLearner
from algos.env_runner import BatchedEnvRunner
from algos.evaluation import evaluate_on_validation
from algos.learner import PairPPOLearner
from algos.markets import market_for
from algos.module import ACTION_DIM, POLICY_GAIN, ActorCritic
from envs.batched import observation_names
from envs.legs import swap_legs
from rayconf.errors import UserError
from rayconf.keys import derive_key
from rayconf.loading import load_config
from rayconf.run_config import RunConfig

SLAB_BARS = 64
"""Width of slabs for encoders of windows: about a window, so that context costs no more than the bars themselves."""
VF_CLIP_OFF = 1e9
"""Larger than any squared error of the critic: stock PPO's value clipping never acts."""

_OWN = (
    "optimizer_kind",
    "muon_ratio",
    "weight_decay",
    "critic_decay_factor",
    "pull",
    "kl_stop",
    "encoder_lr_factor",
    "dropout",
    "lr_schedule_kind",
    "total_updates",
    "warmup_fraction",
    "floor_fraction",
    "ema_half_life",
    "key",
    "torch_threads",
    "slab_bars",
    "runner_device",
)


@lru_cache(maxsize=1)
def _smoke_run() -> RunConfig:
    return load_config("smoke")


def _slab_bars(run: RunConfig) -> int:
    if run.network.encoder == "mlp":
        return 0
    return run.ppo.slab_bars or (1 if run.network.encoder == "factored" else SLAB_BARS)


class PairPPOConfig(PPOConfig):
    """Config of ``PairPPO``.

    ``env_config`` holds the run and the pair. Everything else is derived from them, unless it is set
    afterwards: ``PairPPOConfig.from_run(run, pair).training(lr=1e-3)``. Without arguments: the ``smoke``
    preset's first pair.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        if algo_class is None:
            from algos.pair_ppo import PairPPO  # the two name each other

            algo_class = PairPPO
        super().__init__(algo_class=algo_class)
        self.optimizer_kind: str = "adamw"
        """``adamw`` or ``muon_mix``."""
        self.muon_ratio: float = 1.0
        """Learning rate of Muon as a multiple of ``lr``."""
        self.critic_decay_factor: float = 1.0
        """Weight decay of the critic as a multiple of ``weight_decay``."""
        self.pull: float = 0.0
        """Share, per learning rate, of the way back to where the run started that the actor goes after each step."""
        self.kl_stop: float = 0.0
        """Mean KL divergence of an epoch that ends the update; 0: none."""
        self.weight_decay: float = 0.0
        """Decoupled weight decay, on matrices."""
        self.encoder_lr_factor: float = 1.0
        """Learning rate of the market encoder as a multiple of everything else's."""
        self.dropout: float = 0.0
        """Share of hidden units that a gradient step leaves out."""
        self.lr_schedule_kind: str = "constant"
        """``cosine`` or ``constant`` after warm-up."""
        self.total_updates: int = 1
        """Updates over which the schedule runs."""
        self.warmup_fraction: float = 0.0
        """Share of all gradient steps over which the learning rate rises."""
        self.floor_fraction: float = 1.0
        """Learning rate at the end of the cosine, as a share of ``lr``."""
        self.ema_half_life: float = 0.0
        """Half-life of the evaluation weights in gradient steps; 0: the raw weights."""
        self.key: int = 0
        """Key of the initial weights and of every random stream until ``PairPPO.reseed``."""
        self.torch_threads: int = 1
        """Torch threads of this process and of remote runners and learners."""
        self.slab_bars: int = 0
        """Width in bars of the slabs that minibatches are drawn in; 0: samples one by one. Needs a market encoder."""
        self.runner_device: str = "cpu"
        """Where rollouts run, ``cpu`` or a CUDA device; the learner has its own (``num_gpus_per_learner``)."""

        self.environment(
            "pair_trading", action_space=gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32), env_config={}
        )
        self.env_runners(
            env_runner_cls=BatchedEnvRunner,
            num_env_runners=0,
            rollout_fragment_length="auto",
            merge_env_runner_states=False,
        )
        self.learners(
            num_learners=0,
            add_default_connectors_to_learner_pipeline=False,
        )
        self.evaluation(custom_evaluation_function=evaluate_on_validation)
        self.training(use_kl_loss=False, vf_clip_param=VF_CLIP_OFF)
        run = _smoke_run()
        self.use_run(run, run.data.pairs[0])

    @classmethod
    def from_run(cls, run: RunConfig, pair: str, *, key: int | None = None) -> "PairPPOConfig":
        """The config that trains ``pair`` as ``run`` says.

        Args:
            run: The run, hyperparameters included.
            pair: One of the run's pairs.
            key: Key of the initial weights and random streams; default: from the run's seed and the pair.

        Raises:
            UserError: If the run asks for what cannot be trained.
        """
        return cls().use_run(run, pair, key=key)

    def use_run(self, run: RunConfig, pair: str, *, key: int | None = None) -> Self:
        """Set everything that a run decides, see ``from_run``."""
        ppo, optimizer = run.ppo, run.optimizer
        batch, epochs, minibatch = run.env_steps_per_update, ppo.epochs, ppo.minibatch_size
        if run.algo == "direct":  # every gradient step has windows of its own
            epochs, minibatch = 1, run.direct.bars_per_step
        steps_per_update = epochs * -(-batch // minibatch)
        self.env_config: dict[str, Any] = {"run": run.model_dump(mode="json"), "pair": pair}
        self.env_runners(num_envs_per_env_runner=ppo.num_envs)
        schedule = optimizer.schedule
        if schedule == "auto":
            schedule = "constant" if run.mutates_learning_rate else "cosine"
        self.training(
            lr=optimizer.learning_rate,
            gamma=ppo.gamma,
            lambda_=ppo.gae_lambda,
            clip_param=ppo.clip,
            entropy_coeff=ppo.entropy_coeff,
            vf_loss_coeff=ppo.value_coeff,
            grad_clip=optimizer.max_grad_norm,
            num_epochs=epochs,
            minibatch_size=minibatch,
            train_batch_size_per_learner=batch,
            optimizer_kind=optimizer.kind,
            muon_ratio=optimizer.muon_ratio,
            weight_decay=optimizer.weight_decay,
            critic_decay_factor=optimizer.critic_decay_factor,
            pull=optimizer.pull,
            kl_stop=ppo.kl_stop,
            encoder_lr_factor=optimizer.encoder_lr_factor,
            dropout=run.network.dropout,
            lr_schedule_kind=schedule,
            total_updates=run.pbt.iterations,
            warmup_fraction=optimizer.warmup_fraction,
            floor_fraction=optimizer.floor_fraction,
            ema_half_life=optimizer.ema_half_life * run.pbt.interval * steps_per_update,
            key=derive_key(run.seed, pair, "member") if key is None else key,
            torch_threads=run.resources.torch_threads,
            slab_bars=_slab_bars(run),
        )
        share = run.resources.gpus_per_member  # of this process's GPU, the one that Ray shows it
        self.runner_device = "cuda" if share else "cpu"
        learner = DirectLearner if run.algo == "direct" else PairPPOLearner
        return self.learners(num_gpus_per_learner=share, learner_class=learner)

    def training(
        self,
        *,
        optimizer_kind: str = NotProvided,
        muon_ratio: float = NotProvided,
        weight_decay: float = NotProvided,
        critic_decay_factor: float = NotProvided,
        pull: float = NotProvided,
        kl_stop: float = NotProvided,
        encoder_lr_factor: float = NotProvided,
        dropout: float = NotProvided,
        lr_schedule_kind: str = NotProvided,
        total_updates: int = NotProvided,
        warmup_fraction: float = NotProvided,
        floor_fraction: float = NotProvided,
        ema_half_life: float = NotProvided,
        key: int = NotProvided,
        torch_threads: int = NotProvided,
        slab_bars: int = NotProvided,
        runner_device: str = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """RLlib's ``training`` with the attributes documented in the constructor."""
        given = locals()
        super().training(**kwargs)
        for name in _OWN:
            if given[name] is not NotProvided:
                setattr(self, name, given[name])
        return self

    def update_from_dict(self, config_dict: dict[str, Any]) -> Self:
        """Like RLlib's; a run or pair in ``env_config`` sets all it decides, before the other entries do."""
        rest = dict(config_dict)
        env_config = rest.pop("env_config", None)
        if env_config:
            self.environment(env_config=copy.deepcopy(dict(env_config)))
            run = RunConfig.model_validate(self.env_config["run"])
            extra = {k: v for k, v in self.env_config.items() if k not in ("run", "pair")}
            self.use_run(run, self.env_config["pair"])
            self.env_config.update(extra)
        return super().update_from_dict(rest)

    @property
    def run(self) -> RunConfig:
        """The run that ``env_config`` describes."""
        return RunConfig.model_validate(self.env_config["run"])

    @property
    def stream_key(self) -> int:
        """Key of all random streams: ``key``, and RLlib's ``seed`` where one is set."""
        return self.key if self.seed is None else derive_key(self.key, self.seed)

    @property
    def steps_per_update(self) -> int:
        """Gradient steps of one update."""
        return self.num_epochs * -(-self.train_batch_size_per_learner // self.minibatch_size)

    @property
    def schedule_steps(self) -> int:
        """Steps that the schedule counts per update: the most gradient steps that one may have in this run.

        Where PBT moves epochs or minibatches, all members count alike, so that a state means the same share of
        progress to whoever goes on from it.
        """
        bounds = {space.path: space.bounds for space in self.run.search.values()}
        epochs = int(bounds["ppo.epochs"][1]) if "ppo.epochs" in bounds else self.num_epochs
        smallest = int(bounds["ppo.minibatch_size"][0]) if "ppo.minibatch_size" in bounds else self.minibatch_size
        return epochs * -(-self.train_batch_size_per_learner // smallest)

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Actor and critic as the run's network section says."""
        network = self.env_config["run"]["network"]
        config = {
            "hidden": tuple(network["hidden"]),
            "activation": network["activation"],
            "layer_norm": network["layer_norm"],
            "initial_log_std": network["initial_log_std"],
            "policy_gain": 0.0 if self.env_config["run"]["env"]["mapping"] == "residual" else POLICY_GAIN,
            "key": self.stream_key,
        }
        if network["legs"] == "shared":
            config["swap"] = swap_legs(observation_names(market_for(self.env_config).scaler.names, self.run))
        if network["encoder"] == "mlp":
            return RLModuleSpec(module_class=ActorCritic, model_config=config)
        config |= {name: value for name, value in network.items() if name.startswith("encoder")}
        config["features"] = market_for(self.env_config).features.shape[1]
        return RLModuleSpec(module_class=BarActorCritic, model_config=config)

    def validate(self) -> None:
        """RLlib's checks and our own.

        Raises:
            UserError: If a setting cannot work with batched rollouts or with the optimizers.
        """
        super().validate()
        if not isinstance(self.lr, float | int):
            raise UserError("lr: give one number; warm-up and decay are set by lr_schedule_kind")
        if self.optimizer_kind not in ("adamw", "muon_mix"):
            raise UserError(f"optimizer_kind: {self.optimizer_kind!r} must be adamw or muon_mix")
        if self.lr_schedule_kind not in ("cosine", "constant"):
            raise UserError(f"lr_schedule_kind: {self.lr_schedule_kind!r} must be cosine or constant")
        if self.env_config["run"]["algo"] == "direct" and self.num_learners > 1:
            raise UserError(f"num_learners: {self.num_learners} learners cannot share algo direct; use 0 or 1")
        if self.runner_device != "cpu" and self.num_env_runners > 0 and self.num_gpus_per_env_runner == 0:
            raise UserError(
                f"runner_device: {self.runner_device!r} for remote runners needs num_gpus_per_env_runner; or use 'cpu'"
            )
        if self.pull and not self.run.anchored:
            raise UserError(
                f"pull: {self.pull} needs optimizer.pull in the run, whose states then know where it started"
            )
        network = self.env_config["run"]["network"]
        shallow = len(network["hidden"]) < 2 and network["encoder"] in ("mlp", "factored")
        if self.optimizer_kind == "muon_mix" and shallow:
            raise UserError("optimizer.kind: muon_mix needs network.hidden with two or more layers")
