"""Optimizers, the learning-rate schedule, and the moving average of weights used for evaluation."""

import math
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from rayconf.errors import UserError


def hidden_matrices(module: nn.Module) -> list[str]:
    """Names of the matrices between two hidden layers, the ones that Muon is made for.

    The first and the last matrix of each network are left to AdamW, as in Jordan's own recipe: their rows
    stand for features and actions, which have scales of their own. A module may name its own.
    """
    own: Any = getattr(module, "hidden_matrices", None)
    if own is not None:
        return list(own())
    names: list[str] = []
    for prefix, child in module.named_children():
        if isinstance(child, nn.Sequential):
            matrices = [f"{prefix}.{name}" for name, p in child.named_parameters() if p.ndim == 2]
            names += matrices[1:-1]
    return names


def build_optimizers(
    module: nn.Module,
    kind: str,
    learning_rate: float,
    muon_ratio: float,
    weight_decay: float,
    encoder_lr_factor: float = 1.0,
    critic_decay_factor: float = 1.0,
) -> dict[str, torch.optim.Optimizer]:
    """The optimizers of a module by name, their state allocated, so that it has the same names at any step.

    ``adamw``: AdamW for everything. ``muon_mix``: Muon for hidden matrices, its update scaled to AdamW's root
    mean square (Liu et al. 2025) so that one learning rate serves both, AdamW for the rest. Weight decay acts
    on matrices only, on the critic's by ``critic_decay_factor``. With an ``encoder_lr_factor`` other than 1 the
    module's ``encoder_parameters`` have groups of their own; a group's ``lr_factor`` says how its learning rate
    stands to the optimizer's.

    Raises:
        UserError: For ``muon_mix`` when the network has no matrix between two hidden layers.
    """
    named = dict(module.named_parameters())
    muon = hidden_matrices(module) if kind == "muon_mix" else []
    if kind == "muon_mix" and not muon:
        raise UserError("optimizer.kind: muon_mix needs network.hidden with two or more layers")
    whole: Any = module
    encoder: set[str] = set() if encoder_lr_factor == 1 else whole.encoder_parameters()

    critic = {name for name in named if critic_decay_factor != 1 and name.startswith(("vf.", "critic_encoder."))}

    def groups(names: list[str], rate: float, decay: float) -> list[dict[str, Any]]:
        found = []
        for (factor, inside), (share, of_critic) in product(
            ((1.0, False), (encoder_lr_factor, True)), ((1.0, False), (critic_decay_factor, True))
        ):
            part = [named[n] for n in names if (n in encoder) == inside and (n in critic) == of_critic]
            if part:
                found.append({"params": part, "lr": rate * factor, "lr_factor": factor, "weight_decay": decay * share})
        return found

    rest = [name for name in named if name not in muon]
    matrices, vectors = ([n for n in rest if (named[n].ndim >= 2) == many] for many in (True, False))
    both = [*groups(matrices, learning_rate, weight_decay), *groups(vectors, learning_rate, 0.0)]
    optimizers: dict[str, torch.optim.Optimizer] = {"adamw": torch.optim.AdamW(both, lr=learning_rate, fused=True)}
    if muon:
        rate = learning_rate * muon_ratio
        optimizers["muon"] = torch.optim.Muon(groups(muon, rate, weight_decay), lr=rate, adjust_lr_fn="match_rms_adamw")
    _allocate(optimizers)
    return optimizers


def _allocate(optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Give every parameter the zero state that the optimizer itself would create at its first step."""
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            for p in group["params"]:
                if name == "muon":
                    optimizer.state[p] = {"momentum_buffer": torch.zeros_like(p)}
                else:
                    optimizer.state[p] = {
                        "step": torch.zeros((), dtype=torch.float32, device=p.device),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }


@torch.no_grad()
def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """One step that leaves weights and state as they are, to the bit, where ``skip`` is 1; the host does not ask.

    AdamW's fused kernel is told so itself, as ``torch.amp.GradScaler`` tells it; other optimizers step, and are put
    back.

    Args:
        optimizer: One of ``build_optimizers``.
        skip: 0-dim, 0.0 or 1.0, on the weights' device.
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = skip  # type: ignore[attr-defined]
        optimizer.step()
        return
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    live = [*weights, *(value for p in weights for value in optimizer.state[p].values())]
    kept = [tensor.clone() for tensor in live]
    optimizer.step()
    for tensor, before in zip(live, kept, strict=True):
        torch.where(skip > 0, before, tensor, out=tensor)


@torch.no_grad()
def pull_back(
    optimizers: Mapping[str, torch.optim.Optimizer],
    anchor: Mapping[nn.Parameter, Tensor],
    pull: float,
    skip: Tensor | None = None,
) -> None:
    """Move weights back towards where they started, the share learning rate x ``pull`` of the way, at most all of it.

    A gradient step on half the squared distance (L2-SP, Li, Grandvalet and Davoine 2018), decoupled as AdamW's weight
    decay is (Loshchilov and Hutter 2019): within the loss Adam would divide it by the size of the loss's own
    gradients, and clipping would trade the one for the other. Weights without gradient rest.

    Args:
        optimizers: Those of ``build_optimizers``, after a step of theirs.
        anchor: Where parameters started; others are left alone.
        pull: Weight of half the squared distance.
        skip: 0-dim, 0.0 or 1.0, on the weights' device: with 1 nothing moves, to the bit. None: as 0.
    """
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            share = min(1.0, group["lr"] * pull)
            for p in group["params"]:
                if p in anchor and p.grad is not None:
                    p.lerp_(anchor[p], share if skip is None else share * (1 - skip))


def optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer], module: nn.Module) -> dict[str, Tensor]:
    """The live state tensors by name ``<optimizer>/<kind of state>/<parameter>``; no hyperparameters."""
    names = {id(p): name for name, p in module.named_parameters()}
    return {
        f"{label}/{key}/{names[id(p)]}": value
        for label, optimizer in optimizers.items()
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def schedule_factor(step: float, total: int, warmup_fraction: float, floor_fraction: float, schedule: str) -> float:
    """Learning rate of step ``step`` (from 0, between two where gradient steps are coarser) as a share of its peak.

    Linear from 1/W to 1 over the first W = ``warmup_fraction * total`` steps, then constant, or a half cosine
    that reaches ``floor_fraction`` at ``total`` and stays there.
    """
    warmup = round(warmup_fraction * total)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor_fraction + (1 - floor_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


class WeightAverage:
    """Bias-corrected exponential moving average of weights (Kingma and Ba 2015, section 3).

    Starts from zero and remembers the total weight given so far, which corrects the start exactly, also when
    the half-life changes on the way. A half-life of 0 gives the newest weights.

    Args:
        parameters: The weights that are averaged.
        half_life: Gradient steps after which a weight counts half.
    """

    def __init__(self, parameters: Iterable[Tensor], half_life: float) -> None:
        self._live = [p.detach() for p in parameters]
        self.average = [torch.zeros_like(p) for p in self._live]
        self.weight = 0.0
        self._decay = 0.5 ** (1 / half_life) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the live weights after a gradient step."""
        torch._foreach_lerp_(self.average, self._live, 1 - self._decay)
        self.count(1)

    @torch.no_grad()
    def update_unless(self, skip: Tensor) -> None:
        """As ``update``, but for a step that was left out where ``skip`` (0-dim) is 1; ``count`` is left to the caller.

        Moved and unmoved average are mixed with weights 0 and 1, which loses no bit of either.
        """
        moved = torch._foreach_lerp(self.average, self._live, 1 - self._decay)
        torch._foreach_mul_(moved, 1 - skip)
        torch._foreach_mul_(self.average, skip)
        torch._foreach_add_(self.average, moved)

    def count(self, steps: int) -> None:
        """Add what ``steps`` updates weigh."""
        for _ in range(steps):
            self.weight = self._decay * self.weight + (1 - self._decay)

    def corrected(self) -> list[Tensor]:
        """The average of the weights seen so far; the live weights before the first step. Copies."""
        if self.weight == 0:
            return [p.clone() for p in self._live]
        return [average / self.weight for average in self.average]
