"""The order in which samples form minibatches when samples of the same bar should meet."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on ``device``; the host does not wait until it has arrived."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class SlabOrder:
    """Orders of a batch's samples in which whole slabs of neighbouring bars follow each other at random.

    All samples of a slab stand together, sorted by bar, so that a bar is evaluated in one minibatch of an epoch
    (in two where a minibatch ends inside it). Slabs and, from epoch to epoch, their borders are random.

    Args:
        bars: [B] int64 bar of each sample, on the CPU: the sizes of slabs would be waited for elsewhere.
        width: Bars of a slab; 1 groups the samples of a bar and nothing else.
    """

    def __init__(self, bars: Tensor, width: int) -> None:
        self._by_bar = torch.argsort(bars, stable=True)
        self._bars = bars[self._by_bar]
        self._width = width

    def draw(self, generator: torch.Generator) -> Tensor:
        """[B] numbers of samples, every sample once.

        Args:
            generator: CPU generator of the slabs' borders and order.
        """
        border = int(torch.randint(self._width, (), generator=generator))
        slabs = (self._bars + border) // self._width
        counts = torch.unique_consecutive(slabs, return_counts=True)[1]
        order = torch.randperm(len(counts), generator=generator)
        counts, begins = counts[order], (counts.cumsum(0) - counts)[order]
        shift = begins - (counts.cumsum(0) - counts)  # from the place in the new order to the place by bar
        return self._by_bar[torch.arange(len(slabs)) + shift.repeat_interleave(counts)]
