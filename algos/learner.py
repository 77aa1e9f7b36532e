"""The Learner: stock PPO's loss, our order of minibatches, learning rate, clipping and averaged weights."""

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY, VF_LOSS_KEY
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    WEIGHTS_SEQ_NO,
)
from torch import Tensor

from algos.bar_network import BAR_PLAN, BarActorCritic, plan_bars
from algos.distribution import SquashedGaussian
from algos.dropout import KeyedDropout
from algos.markets import market_for
from algos.minibatches import SlabOrder, to_device
from algos.module import ActorCritic
from algos.optimizers import (
    WeightAverage,
    build_optimizers,
    optimizer_tensors,
    pull_back,
    schedule_factor,
    step_unless,
)
from rayconf.keys import torch_seed

EXTRAS = "pair_ppo"
"""Component of the learner's state that holds the schedule's step and the averaged weights."""
KL, CLIP_FRACTION, GRAD_NORM, LR_FIRST_STEP = "kl", "clip_fraction", "grad_norm", "lr_first_step"
SKIPPED_STEPS = "skipped_steps"
"""Gradient steps left out because a gradient was not finite."""
ACTOR = ("pi.", "encoder.")
"""How the names of the actor's parameters begin: those that make the deterministic policy."""


class PairPPOLearner(PPOTorchLearner):
    """``PPOTorchLearner`` with its gradients unchanged.

    What differs from stock PPO, and why:

    - Every epoch, the first too, follows a permutation drawn from a keyed generator; the stock iterator leaves
      the first epoch in order and draws from numpy's global one. With a market encoder it permutes slabs of bars.
    - The learning rate comes from the config and the schedule's step, and is written into the optimizers before
      each gradient step. Stock RLlib restores the checkpoint's rate and keeps it for a whole update.
    - Gradients are clipped by the norm over the whole module, also with two optimizers.
    - A gradient that is not finite leaves weights and optimizers as they are and is counted. On an accelerator no
      gradient step waits for the device (``branchless``): it decides there, and the host, which counts at the end of
      the update, runs the schedule ahead by the steps left out until then.
    - Where the run says so the actor is pulled back after each step to the weights that the run started from, which
      then belong to the training state: its initial weights, unless a state brings others.
    - Evaluation weights are a bias-corrected moving average, moved after each gradient step.
    - Losses are kept as tensors and reported once per update.
    """

    metrics: Any
    holds_masks = False
    """Whether dropout keeps its masks within a gradient step."""

    def build(self) -> None:
        """Build module and optimizers, then what hangs on them."""
        if self._is_built:
            return
        torch.set_num_threads(self.config.torch_threads)
        self._own_optimizers: dict[str, torch.optim.Optimizer] = {}
        self._lr_first_step = math.nan
        super().build()
        self.branchless = self._device.type != "cpu"
        if isinstance(self._net, BarActorCritic):
            self._net.attach(market_for(self.config.env_config).training_features)
        self._weights = list(self._net.parameters())
        actor = [p for name, p in self._net.named_parameters() if name.startswith(ACTOR)]
        self._anchor = {p: p.detach().clone() for p in actor} if self.config.run.anchored else {}
        self._average = WeightAverage(self._weights, self.config.ema_half_life)
        self._schedule_steps = self.config.schedule_steps
        self._begun = self._step = 0  # the schedule's steps before this update, gradient steps in it
        self._order, self._masks = torch.Generator(), torch.Generator(self._device)
        self._hooks: list[KeyedDropout] = []
        if self.config.dropout:
            for layer in self._net.hidden_layers():
                self._hooks.append(KeyedDropout(self.config.dropout, self._masks, held=self.holds_masks))
                layer.register_forward_hook(self._hooks[-1])
        self._losses = _Losses()
        self._start_report()
        self.reseed(self.config.stream_key)

    @property
    def _net(self) -> ActorCritic:
        return self.module[DEFAULT_MODULE_ID].unwrapped()

    def reseed(self, key: int) -> None:
        """Restart the order of minibatches and the masks of dropout from ``key``."""
        self._order.manual_seed(torch_seed(key, "minibatches", self._learner_index))
        self._masks.manual_seed(torch_seed(key, "dropout", self._learner_index))

    def freeze(self, names: Collection[str]) -> None:
        """Leave the named parameters as they are: without gradient an optimizer neither decays nor counts them."""
        for name, p in self._net.named_parameters():
            p.requires_grad_(name not in names)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register the optimizers without a schedule of RLlib's: the rate is ours to set, see the class."""
        net = self.module[module_id].unwrapped()
        self._own_optimizers = build_optimizers(
            net,
            config.optimizer_kind,
            config.lr,
            config.muon_ratio,
            config.weight_decay,
            config.encoder_lr_factor,
            config.critic_decay_factor,
        )
        for name, optimizer in self._own_optimizers.items():
            params = [p for group in optimizer.param_groups for p in group["params"]]
            self.register_optimizer(module_id=module_id, optimizer_name=name, optimizer=optimizer, params=params)

    def _create_iterator_if_necessary(
        self,
        *,
        training_data: TrainingData,
        num_total_minibatches: int = 0,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = True,
        **kwargs: Any,
    ) -> Iterator[MultiAgentBatch]:
        columns = self._make_batch_if_necessary(training_data=training_data)[DEFAULT_MODULE_ID]
        rows = len(columns)
        parts = -(-rows // (minibatch_size or rows))
        slabs, bars, net = None, None, self._net
        if self.config.slab_bars:  # bars are the first column of such observations
            bars = columns[Columns.OBS][:, 0].long().cpu()
            slabs = SlabOrder(bars, self.config.slab_bars)
        for epoch in range(num_epochs):
            self._observed = epoch == num_epochs - 1 or bool(self.config.kl_stop)
            self._kl.clear()
            self._clipped.clear()
            # the old distribution is needed for its KL alone, which is that of the last epoch
            names = [
                name
                for name in columns
                if name != Columns.ACTION_DIST_INPUTS or self._observed or self.config.use_kl_loss
            ]
            order = torch.randperm(rows, generator=self._order) if slabs is None else slabs.draw(self._order)
            # parts equal to one row, so that no step is left a remnant
            there = to_device(order, self._device).tensor_split(parts)
            for here, index in zip(order.tensor_split(parts), there, strict=True):
                minibatch = {name: columns[name].index_select(0, index) for name in names}
                if self.branchless and bars is not None and isinstance(net, BarActorCritic):
                    plan = plan_bars(bars[here], net.encoder.window)
                    minibatch[BAR_PLAN] = tuple(to_device(part, self._device) for part in plan)
                yield MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(minibatch)}, env_steps=len(index))
            if self.config.kl_stop and float(torch.stack(self._kl).mean()) > self.config.kl_stop:
                self._step += parts * (num_epochs - 1 - epoch)  # to the schedule it is a whole update
                return

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """Stock PPO's loss to the bit of its gradients, without a graph for what has none.

        With ``use_kl_loss`` it is stock PPO's own code. Statistics are kept aside instead of logged one by one.
        """
        if config.use_kl_loss:
            return self._stock_loss(module_id, config, batch, fwd_out)
        net = self._net
        new = net.action_dist_cls.from_logits(fwd_out[Columns.ACTION_DIST_INPUTS])
        ratio = torch.exp(new.logp(batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP])
        gain, clip = batch[Postprocessing.ADVANTAGES], config.clip_param
        surrogate = torch.min(gain * ratio, gain * torch.clamp(ratio, 1 - clip, 1 + clip))
        target = batch[Postprocessing.VALUE_TARGETS]
        value = net.compute_values(batch, embeddings=fwd_out.get(Columns.EMBEDDINGS))
        error = torch.clamp(torch.pow(value - target, 2.0), 0, config.vf_clip_param)
        loss = -surrogate + config.vf_loss_coeff * error
        bonus = self.entropy_coeff_schedulers_per_module[module_id].get_current_value()
        with torch.set_grad_enabled(bonus != 0):
            entropy = new.entropy()
        if bonus != 0:
            loss = loss - bonus * entropy
        with torch.no_grad():
            self._losses.rows.append(
                [-surrogate.mean(), error.mean(), entropy.detach().mean(), _explained_variance(target, value)]
            )
            if self._observed:
                self._observe_change(clip, batch, new, ratio)
        return loss.mean()

    def _stock_loss(self, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]) -> Tensor:
        logger: Any = self.metrics
        self.metrics = self._losses
        try:
            loss = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        finally:
            self.metrics = logger
        if self._observed:
            new = self._net.action_dist_cls.from_logits(fwd_out[Columns.ACTION_DIST_INPUTS].detach())
            ratio = torch.exp(new.logp(batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP])
            self._observe_change(config.clip_param, batch, new, ratio)
        return loss

    @torch.no_grad()
    def _observe_change(self, clip: float, batch: dict[str, Any], new: SquashedGaussian, ratio: Tensor) -> None:
        old = self._net.action_dist_cls.from_logits(batch[Columns.ACTION_DIST_INPUTS])
        self._kl.append(old.kl(new).mean())
        self._clipped.append(((ratio - 1).abs() > clip).float().mean())

    def _compute_off_policyness(self, batch: dict[str, Any]) -> None:
        return  # batches carry no sequence number of the weights they were sampled with

    def compute_gradients(self, loss_per_module: dict[str, Tensor], **kwargs: Any) -> dict[Any, Tensor]:
        """Gradients of the summed losses."""
        for p in self._weights:
            p.grad = None
        total: Any = sum(loss_per_module.values())
        total.backward()
        return {name: p.grad for name, p in self._params.items()}

    def postprocess_gradients(self, gradients_dict: dict[Any, Tensor]) -> dict[Any, Tensor]:
        """Clip to ``grad_clip`` by the norm over all gradients of the module."""
        limit = self.config.grad_clip
        gradients = [p.grad for p in self._weights if p.grad is not None]
        self._norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if limit is not None:  # as torch.nn.utils.clip_grad_norm_, which sorts the tensors by device each time
            torch._foreach_mul_(gradients, torch.clamp(limit / (self._norm + 1e-6), max=1.0))
        return gradients_dict

    def apply_gradients(self, gradients_dict: dict[Any, Tensor]) -> None:
        """One gradient step at the rate that config and schedule ask for now."""
        self._norms.append(self._norm)
        if not self.branchless and not bool(torch.isfinite(self._norm)):
            return
        self._impose_learning_rate()
        if math.isnan(self._lr_first_step):
            self._lr_first_step = float(self._own_optimizers["adamw"].param_groups[0]["lr"])
        self._step += 1
        if self.branchless:
            skip = (~torch.isfinite(self._norm)).to(self._norm.dtype)
            for optimizer in self._own_optimizers.values():
                step_unless(optimizer, skip)
            if self.config.pull:
                pull_back(self._own_optimizers, self._anchor, self.config.pull, skip)
            self._average.update_unless(skip)
            return
        for optimizer in self._own_optimizers.values():
            optimizer.step()
        if self.config.pull:
            pull_back(self._own_optimizers, self._anchor, self.config.pull)
        self._average.update()

    def _count_steps(self) -> list[float]:
        """Norms of the gradients that were applied; counts the others, and corrects what was counted ahead of that."""
        norms: list[float] = torch.stack(self._norms).tolist()
        applied = [norm for norm in norms if math.isfinite(norm)]
        self._skipped = len(norms) - len(applied)
        if self.branchless:
            self._step -= self._skipped
            self._average.count(len(applied))
        return applied

    @property
    def _position(self) -> float:
        """Where the schedule stands, in its own steps: an update moves it as far however many steps it has."""
        return self._begun + self._step * self._schedule_steps / self.config.steps_per_update

    def _impose_learning_rate(self) -> None:
        config = self.config
        rate = config.lr * schedule_factor(
            self._position,
            config.total_updates * self._schedule_steps,
            config.warmup_fraction,
            config.floor_fraction,
            config.lr_schedule_kind,
        )
        for name, optimizer in self._own_optimizers.items():
            own = rate * config.muon_ratio if name == "muon" else rate
            for group in optimizer.param_groups:
                group["lr"] = own * group["lr_factor"]

    def _start_report(self) -> None:
        self._losses.rows.clear()
        self._kl: list[Tensor] = []
        self._clipped: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._skipped, self._trained, self._observed = 0, 0, False
        self._lr_first_step = math.nan

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Begin the report and put the config's learning rate in force."""
        super().before_gradient_based_update(timesteps=timesteps)
        self._start_report()
        self._impose_learning_rate()

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Report the update: means over its minibatches."""
        super().after_gradient_based_update(timesteps=timesteps)
        applied = self._count_steps()
        self._begun, self._step = round(self._position), 0
        report = self._loss_report()
        report[GRAD_NORM] = sum(applied) / len(applied) if applied else 0.0
        report[LR_FIRST_STEP] = self._lr_first_step
        report[SKIPPED_STEPS] = self._skipped
        report[WEIGHTS_SEQ_NO] = self._weights_seq_no
        self.metrics.log_dict(report, key=DEFAULT_MODULE_ID, window=1)
        for name in (NUM_MODULE_STEPS_TRAINED, NUM_ENV_STEPS_TRAINED):
            self.metrics.log_value((ALL_MODULES, name), self._trained, reduce="sum")
        for name in (NUM_MODULE_STEPS_TRAINED_LIFETIME, NUM_ENV_STEPS_TRAINED_LIFETIME):
            self.metrics.log_value((ALL_MODULES, name), self._trained, reduce="lifetime_sum")

    def _loss_report(self) -> dict[str, Any]:
        """Losses and what else only this way of training knows."""
        change = {KL: torch.stack(self._kl).mean(), CLIP_FRACTION: torch.stack(self._clipped).mean()}
        return {**self._losses.means(), **change}

    def _log_metrics(self, batch: MultiAgentBatch) -> None:
        return  # once per update is enough, see after_gradient_based_update

    def _log_steps_trained_metrics(self, batch: MultiAgentBatch) -> None:
        self._trained += batch.env_steps()

    def training_tensors(self) -> dict[str, Tensor]:
        """The live tensors that training goes on from, by name: weights, optimizers, averaged weights, anchor."""
        names = [name for name, _ in self._net.named_parameters()]
        tensors = {f"module/{name}": p.detach() for name, p in zip(names, self._weights, strict=True)}
        for name, tensor in optimizer_tensors(self._own_optimizers, self._net).items():
            tensors[f"optimizer/{name}"] = tensor
        for name, tensor in zip(names, self._average.average, strict=True):
            tensors[f"ema/{name}"] = tensor
        return tensors | {f"anchor/{name}": tensor for name, tensor in self._anchored().items()}

    def _anchored(self) -> dict[str, Tensor]:
        return {name: self._anchor[p] for name, p in self._net.named_parameters() if p in self._anchor}

    def anchor_weights(self) -> dict[str, Tensor]:
        """The actor's weights that the run started from by parameter name, CPU copies; none unless it needs them."""
        return {name: tensor.cpu().clone() for name, tensor in self._anchored().items()}

    def export_training_state(self) -> dict[str, Tensor]:
        """``training_tensors`` and the counters as CPU copies."""
        state = {name: tensor.cpu().clone() for name, tensor in self.training_tensors().items()}
        state["schedule/steps"] = torch.tensor(round(self._position), dtype=torch.int64)
        state["ema_weight"] = torch.tensor(self._average.weight, dtype=torch.float64)
        return state

    @torch.no_grad()
    def import_training_state(self, state: dict[str, Tensor]) -> None:
        """Go on from another learner's ``export_training_state``, under this learner's hyperparameters.

        Raises:
            ValueError: If names or shapes differ from this learner's own, naming one.
        """
        own = self.training_tensors()
        expected = {*own, "schedule/steps", "ema_weight"}
        if odd := sorted(expected ^ set(state)):
            raise ValueError(
                f"training state does not fit: {odd[0]} is {'missing' if odd[0] in expected else 'not expected'}"
            )
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"training state does not fit: {name} has shape {tuple(state[name].shape)}")
            tensor.copy_(state[name])
        self._begun, self._step = int(state["schedule/steps"]), 0
        self._average.weight = float(state["ema_weight"])

    def evaluation_weights(self) -> dict[str, Tensor]:
        """Bias-corrected averaged weights by parameter name, CPU copies."""
        names = [name for name, _ in self._net.named_parameters()]
        return {name: w.cpu() for name, w in zip(names, self._average.corrected(), strict=True)}

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state and, unless excluded, the schedule's step and the averaged weights."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(EXTRAS, components, not_components):
            own = self.export_training_state()
            state[EXTRAS] = {
                name: tensor.numpy() for name, tensor in own.items() if not name.startswith(("module/", "optimizer/"))
            }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over a state. Weights always, also from a checkpoint of fewer updates than one's own."""
        self._weights_seq_no = 0
        super().set_state(state)
        extras = state.get(EXTRAS)
        if extras is not None:
            own = self.training_tensors()
            loaded = {name: torch.as_tensor(value) for name, value in extras.items()}
            self.import_training_state({**{k: v.clone() for k, v in own.items()}, **loaded})

    def _set_optimizer_state(self, state: dict[str, Any]) -> None:
        own = {
            name: [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            for name, optimizer in self._own_optimizers.items()
        }
        super()._set_optimizer_state(state)
        for name, groups in own.items():  # a checkpoint brings moments, never hyperparameters
            for group, mine in zip(self._own_optimizers[name].param_groups, groups, strict=True):
                group.update(mine)


def _explained_variance(target: Tensor, value: Tensor) -> Tensor:
    """RLlib's ``explained_variance`` to the bit, without its constant that travels to the device each time."""
    return (1 - (target - value).var() / (target.var() + 1e-6)).clamp(min=-1.0)


class _Losses:
    """Stands in for the metrics logger while stock PPO computes its loss: keeps tensors, reduces once."""

    NAMES = (POLICY_LOSS_KEY, VF_LOSS_KEY, ENTROPY_KEY, "vf_explained_var")

    def __init__(self) -> None:
        self.rows: list[list[Tensor]] = []

    def log_dict(self, values: dict[str, Any], **kwargs: Any) -> None:
        self.rows.append([values[name].detach() for name in self.NAMES])

    def means(self) -> dict[str, Tensor]:
        columns = torch.stack([torch.stack(row) for row in self.rows]).mean(dim=0)
        return dict(zip(self.NAMES, columns.unbind(), strict=True))
