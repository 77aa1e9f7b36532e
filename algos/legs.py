"""Networks whose legs share their weights: swapping the legs swaps the actions and leaves the value alone.

With S the swap of the legs on observations (``envs.legs``), a perceptron g gives the actor pi(x) = [g(x), g(S x)], and
another, h, the critic v(x) = (h(x) + h(S x)) / 2. So pi(S x) is pi(x) with its numbers swapped, and v(S x) = v(x):
equivariance by sharing weights (Ravanbakhsh, Schneider and Poczos 2017). Under ``neutral`` the tilt, a difference of
the actions, changes its sign; under ``residual`` the prior's weights swap as well.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Swap = tuple[Sequence[int], Sequence[float]]
"""Index and sign, see ``envs.legs.swap_legs``."""


class SharedLegs(nn.Sequential):
    """The layers of g, with one output, asked about both orders of the legs in one pass: [B, D] to [B, 2].

    The first layer reads S x by weights whose columns are swapped instead, so that no observation is copied; hidden
    layers hold [B, 2, H].
    """

    def __init__(self, layers: nn.Sequential, swap: Swap) -> None:
        super().__init__(*layers)
        index, sign = swap
        self.register_buffer("index", torch.tensor(index), persistent=False)
        self.register_buffer("sign", torch.tensor(sign), persistent=False)
        self.index: Tensor
        self.sign: Tensor

    def forward(self, observation: Tensor) -> Tensor:
        """g(x) and g(S x), [B, 2]."""
        first, *later = self
        assert isinstance(first, nn.Linear)
        both = linear(observation, _both_orders(first.weight, self.index, self.sign), first.bias.repeat(2))
        hidden = both.unflatten(-1, (2, -1))
        for layer in later:
            hidden = layer(hidden)
        return hidden.squeeze(-1)


class MeanOverLegs(SharedLegs):
    """(g(x) + g(S x)) / 2, [B, D] to [B, 1]."""

    def forward(self, observation: Tensor) -> Tensor:
        """The mean over both orders of the legs, [B, 1]."""
        return super().forward(observation).mean(dim=-1, keepdim=True)


def doubled(weights: Mapping[str, Tensor], swap: Swap) -> dict[str, Tensor]:
    """The parameters of an actor with shared legs as those of a plain perceptron of twice the width.

    The first layer is g's over g's with swapped columns, the later ones are block-diagonal. A norm stays as it is: one
    narrower than its layer norms each half by itself (``algos.policy.Policy``).

    Args:
        weights: Parameters of ``ActorCritic`` by name; only the actor's are used.
        swap: That of the observation's columns.
    """
    index, sign = torch.tensor(swap[0]), torch.tensor(swap[1])
    plain = {}
    for name, p in weights.items():
        if name == "pi.0.weight":
            plain[name] = _both_orders(p, index, sign)
        elif _of_norm(name):
            plain[name] = p
        elif name.startswith("pi."):
            plain[name] = p.repeat(2) if p.ndim == 1 else torch.block_diag(p, p)
    return plain


def folded(plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``doubled`` made the parameters of."""
    weights = {}
    for name, p in plain.items():
        if _of_norm(name):
            weights[name] = p
        elif p.ndim == 1 or name == "pi.0.weight":
            weights[name] = p[: len(p) // 2]
        else:
            weights[name] = p[: len(p) // 2, : p.shape[1] // 2]
    return weights


def _of_norm(name: str) -> bool:
    return name.startswith("pi.") and name.count(".") == 3


def _both_orders(weight: Tensor, index: Tensor, sign: Tensor) -> Tensor:
    """[2H, D]: the first layer's weight W, then W S; S swaps columns as it does inputs, being its own inverse."""
    return torch.cat((weight, weight.index_select(1, index) * sign))
