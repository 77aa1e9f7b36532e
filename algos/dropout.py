"""Dropout (Srivastava et al. 2014) whose masks come from a keyed generator."""

from typing import Any

import torch
from torch import Tensor, nn


class KeyedDropout:
    """A forward hook that leaves out hidden units in training, and scales up the others so that sums keep their mean.

    As a hook it gives the network no layers: weights have the same names at any rate, and at rate 0, where none is
    registered, the network is what it was. Where a layer is not in training mode its output passes.

    PPO's ratio compares the thinned network to the whole one that acted, so that it is not 1 before the first step.

    Args:
        rate: Share of units that are left out, below 1.
        generator: Source of the masks, on the network's device.
        held: Keep a mask from call to call until ``renew``: where a network is run through time, units that come and
            go between two bars would be trades (Gal and Ghahramani 2016).
    """

    def __init__(self, rate: float, generator: torch.Generator, *, held: bool = False) -> None:
        self._kept, self._generator, self._held = 1 - rate, generator, held
        self._mask: Tensor | None = None

    def renew(self) -> None:
        """Draw a held mask anew at the next call."""
        self._mask = None

    def __call__(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """The output [.., H] with units left out; None leaves it as it is."""
        if not layer.training:
            return None
        mask = self._mask
        if mask is None:
            mask = torch.empty_like(output).bernoulli_(self._kept, generator=self._generator).div_(self._kept)
        if self._held:
            self._mask = mask
        return output * mask
