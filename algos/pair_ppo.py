"""``PairPPO``: RLlib's PPO on batched rollouts of one pair."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY, VF_LOSS_KEY
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from torch import Tensor

from algos.bar_policy import build_policy
from algos.config import PairPPOConfig
from algos.env_runner import ENV_SECONDS, POLICY_SECONDS, REWARD_MEAN, TAIL_QUANTILE
from algos.learner import CLIP_FRACTION, GRAD_NORM, KL, LR_FIRST_STEP, SKIPPED_STEPS
from algos.markets import market_for
from algos.policy import Policy
from rayconf.keys import derive_key, torch_seed

_FROM_RUNNERS = (REWARD_MEAN, ENV_SECONDS)
_FROM_LEARNER = {
    "policy_loss": POLICY_LOSS_KEY,
    "value_loss": VF_LOSS_KEY,
    "entropy": ENTROPY_KEY,
    "explained_variance": "vf_explained_var",
    **{name: name for name in (KL, CLIP_FRACTION, GRAD_NORM, LR_FIRST_STEP, SKIPPED_STEPS)},
}
_OF_PPO = ("value_loss", "entropy", "explained_variance", KL, CLIP_FRACTION)
"""Figures that ``algo: direct`` does not have."""


class PairPPO(PPO):
    """PPO (Schulman et al. 2017) for one pair, a genuine RLlib Algorithm.

    Where the run says ``algo: direct``, an update ascends the exact gradient instead, see ``algos.direct``; network,
    optimizers and states are the same.

    Beside RLlib's own interface it offers what population-based training needs: a *boundary state*, one flat
    dict of tensors that holds everything training goes on from, and ``reseed``. Training from a boundary state
    after ``reseed(key)`` is a pure function of the state, the config and the key on one CPU.
    """

    config: PairPPOConfig

    @classmethod
    def get_default_config(cls) -> PairPPOConfig:
        """The ``smoke`` preset's first pair."""
        return PairPPOConfig(algo_class=cls)

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: AlgorithmConfig) -> bool:
        return False  # evaluation replays one account and never samples, see algos.evaluation

    def setup(self, config: PairPPOConfig) -> None:
        """Build runners and learner."""
        torch.set_num_threads(self.config.torch_threads)
        self._last: dict[str, float | None] = {}
        self._direct = self.config.run.algo == "direct"
        self._shuffle = torch.Generator().manual_seed(torch_seed(self.config.stream_key, "shards"))
        super().setup(config)

    def training_step(self) -> None:
        """One update of the learner; send the weights to the runners."""
        if self._direct:
            self._ascend()
        else:
            self._sample_and_improve()

    def _ascend(self) -> None:
        """Update the learner on windows that it draws itself."""
        began = time.perf_counter()
        steps, key = self.config.total_train_batch_size, (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
        self.metrics.log_value(key, steps, reduce="lifetime_sum")
        timesteps, tail = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(key)}, self._tail()
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results, figures = self._each_learner(lambda learner: learner.ascend(timesteps, tail))[0]
            self.metrics.aggregate([results], key=LEARNER_RESULTS)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self._sync_weights()
            self._set_tail(figures.pop(TAIL_QUANTILE))
        self._last = {"env_steps": float(steps), **figures, **self._learner_figures()}
        rest = time.perf_counter() - began
        self._last["learner_seconds"] = rest - figures[ENV_SECONDS] - figures[POLICY_SECONDS]

    def _learner_figures(self) -> dict[str, float | None]:
        """The learner's figures of the newest update; None for those that only PPO has."""
        found = {}
        for name, key in _FROM_LEARNER.items():
            own = not self._direct or name not in _OF_PPO
            found[name] = float(self.metrics.peek((LEARNER_RESULTS, DEFAULT_MODULE_ID, key))) if own else None
        return found

    def _sample_and_improve(self) -> None:
        """Sample one batch, update on it."""
        began = time.perf_counter()
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            batches, runner_results = synchronous_parallel_sample(
                worker_set=self.env_runner_group,
                max_env_steps=self.config.total_train_batch_size,
                sample_timeout_s=self.config.sample_timeout_s,
                _uses_new_env_runners=True,
                _return_metrics=True,
            )
            if not batches:
                return
            self.metrics.aggregate(runner_results, key=ENV_RUNNER_RESULTS)
        sampled = time.perf_counter()
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            batch = self._join(batches)
            steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))
            results = self.learner_group.update(
                training_data=TrainingData(batch=batch),
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps},
                num_epochs=self.config.num_epochs,
                minibatch_size=self.config.minibatch_size,
            )
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self._sync_weights()
            if self.env_runner_group.num_remote_env_runners():
                self._set_tail(self._tail())  # remote runners saw different accounts
        self._last = {"env_steps": float(batch.env_steps())}
        for name in _FROM_RUNNERS:
            self._last[name] = float(self.metrics.peek((ENV_RUNNER_RESULTS, name)))
        self._last |= self._learner_figures()
        self._last["policy_seconds"] = sampled - began - float(self.metrics.peek((ENV_RUNNER_RESULTS, ENV_SECONDS)))
        self._last["learner_seconds"] = time.perf_counter() - sampled

    def _join(self, batches: list[MultiAgentBatch]) -> MultiAgentBatch:
        """One batch of tensors with standardised advantages."""
        parts = [batch[DEFAULT_MODULE_ID] for batch in batches]
        if len(parts) == 1 and isinstance(parts[0][Columns.OBS], Tensor):
            columns = dict(parts[0])
        else:
            columns = {
                name: torch.from_numpy(np.concatenate([np.asarray(part[name]) for part in parts])) for name in parts[0]
            }
        advantage = columns[Postprocessing.ADVANTAGES]
        columns[Postprocessing.ADVANTAGES] = (advantage - advantage.mean()) / advantage.std().clamp(min=1e-4)
        rows = len(advantage)
        if self.config.num_learners > 1:  # shards are cut in order; a learner permutes only its own
            order = torch.randperm(rows, generator=self._shuffle).to(advantage.device)
            columns = {name: column[order] for name, column in columns.items()}
        return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=rows)

    def _sync_weights(self) -> None:
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, policies=[DEFAULT_MODULE_ID]
        )

    def _tail(self) -> float:
        """The running tail quantile, the mean over remote runners where there are any."""
        remote = self.env_runner_group.num_remote_env_runners() > 0
        tails = self.env_runner_group.foreach_env_runner(
            lambda runner: runner.tail_quantile, local_env_runner=not remote
        )
        return sum(tails) / len(tails)

    def _set_tail(self, value: float) -> None:
        def put(runner: Any) -> None:
            runner.tail_quantile = value

        self.env_runner_group.foreach_env_runner(put)

    def _each_learner(self, call: Any) -> list[Any]:
        return [result.get() for result in self.learner_group.foreach_learner(call)]

    def reseed(self, key: int) -> None:
        """Restart every random stream from ``key`` and begin fresh episodes; torch's global one is not used."""
        self._shuffle.manual_seed(torch_seed(key, "shards"))
        self.env_runner_group.foreach_env_runner(lambda runner: runner.reseed(key))
        self._each_learner(lambda learner: learner.reseed(key))

    def freeze_encoder(self) -> None:
        """Train everything but the market encoder from here on, see ``ActorCritic.encoder_parameters``."""
        self._each_learner(lambda learner: learner.freeze(learner._net.encoder_parameters()))

    def boundary_state(self) -> dict[str, Tensor]:
        """Everything that training goes on from, by name, as CPU copies.

        ``module/*`` weights, ``optimizer/<name>/*`` moments, ``ema/*`` and ``ema_weight`` averaged weights,
        ``schedule/steps`` the schedule's own, ``tail_quantile``; where the run needs it (``RunConfig.anchored``),
        ``anchor/*``, the actor's weights that it started from. No hyperparameters, episodes or random
        streams: those come from the config and ``reseed``.
        """
        state = self._each_learner(lambda learner: learner.export_training_state())[0]
        state[TAIL_QUANTILE] = torch.tensor(self._tail(), dtype=torch.float64)
        return dict(sorted(state.items()))

    def load_boundary_state(self, state: dict[str, Tensor]) -> None:
        """Go on from another algorithm's boundary state under this one's hyperparameters.

        The config's learning rate is in force at the first minibatch. Call ``reseed`` before training.

        Raises:
            ValueError: If an entry is missing, unknown or of another shape, naming it.
        """
        if TAIL_QUANTILE not in state:
            raise ValueError(f"training state does not fit: {TAIL_QUANTILE} is missing")
        learner_state = {name: tensor for name, tensor in state.items() if name != TAIL_QUANTILE}
        self._each_learner(lambda learner: learner.import_training_state(learner_state))
        self._set_tail(float(state[TAIL_QUANTILE]))
        self._sync_weights()

    def reset_config(self, new_config: Any) -> bool:
        """Rebuild everything for a new config, so that nothing of the old one survives in this process.

        Args:
            new_config: A ``PairPPOConfig``, or a dict of changes to the default one.
        """
        self.cleanup()
        if isinstance(new_config, AlgorithmConfig):
            config = new_config.copy(copy_frozen=False)
        else:
            config = self.get_default_config().update_from_dict(new_config)
        config.validate()
        config.freeze()
        self.config = config
        self.metrics = MetricsLogger(root=True, stats_cls_lookup=config.stats_cls_lookup)
        self._counters.clear()
        self.evaluation_config = None
        self.eval_env_runner_group = None
        self.setup(config)
        return True

    def evaluation_policy(self) -> Policy:
        """The deterministic policy of the averaged weights."""
        run = self.config.run
        weights = self._each_learner(lambda learner: learner.evaluation_weights())[0]
        return build_policy(weights, run, market_for(self.config.env_config).scaler.names)

    def anchor_weights(self) -> dict[str, Tensor]:
        """The actor's weights that the run started from, by parameter name; empty unless it is ``anchored``."""
        return self._each_learner(lambda learner: learner.anchor_weights())[0]

    def last_iteration(self) -> dict[str, float | None]:
        """Figures of the last ``train()``: environment steps, losses, seconds; empty before the first.

        With ``algo: direct`` the policy loss is the negative of the objective, and what only PPO has is None.

        ``env_seconds``, ``policy_seconds`` and ``learner_seconds`` are the whole of ``training_step``: the environment,
        the rest of sampling, and the rest.
        ``kl`` and ``clip_fraction`` are means over the last epoch, the other learner figures over all
        minibatches; ``lr_first_step`` is the rate that was in the optimizer at the first gradient step.
        """
        return dict(self._last)

    def set_state(self, state: dict[str, Any]) -> None:
        """RLlib's, then fresh random streams, so that restored training does not repeat old numbers."""
        super().set_state(state)
        self._after_restore()

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """RLlib's, then as in ``set_state``."""
        super().restore_from_path(path, *args, **kwargs)
        self._after_restore()

    def _after_restore(self) -> None:
        tail = self.env_runner.tail_quantile
        if tail is not None:
            self._set_tail(tail)
        self.reseed(derive_key(self.config.stream_key, "restored", self.iteration))
