"""The hyperbolic tangent through the logistic function, which torch computes several times faster on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn


class FastTanh(nn.Module):
    """tanh(x) = 2 * sigmoid(2x) - 1, with torch's own gradient of tanh.

    Equal to ``torch.tanh`` within two units in the last place of 1; close to zero the error is absolute, not
    relative (6e-8 in float32), which a layer that adds its inputs does not notice.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The tangent of every element."""
        out: Tensor = _Tanh.apply(x)
        return out


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.sigmoid(2 * x).mul_(2).sub_(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradients[0], y)
