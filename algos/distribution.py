"""The action distribution: a Gaussian squashed by tanh, handled through its latent."""

import math
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.distribution.torch.torch_distribution import TorchDeterministic, TorchDistribution
from torch import Tensor

_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
# Three-point Gauss-Hermite rule for a standard normal: exact for polynomials up to degree five.
_NODES = ((math.sqrt(3.0), 1 / 6), (-math.sqrt(3.0), 1 / 6), (0.0, 2 / 3))


class SquashedGaussian(TorchDistribution):
    """Independent Gaussians over latents u; the action is tanh(u), inside (-1, 1).

    Samples, stored actions and the arguments of ``logp`` are the latents, not the actions. The density of an
    action differs from that of its latent by the Jacobian of tanh, which does not depend on the parameters: it
    cancels in PPO's probability ratio and in the KL divergence. Leaving it out loses nothing and keeps both
    finite at the bounds, where atanh of a rounded action would not be.

    The entropy is that of the action, H(u) + E[log(1 - tanh(u)^2)], the expectation by three-point
    Gauss-Hermite quadrature: a bonus on the latent's own entropy would drive actions to the bounds.

    Args:
        loc: [B, A] mean of the latent.
        log_std: [B, A] log standard deviation of the latent.
    """

    def __init__(self, loc: Tensor, log_std: Tensor) -> None:
        self.loc = loc
        self.log_std = log_std
        super().__init__()

    def _get_torch_distribution(self, *args: Any, **kwargs: Any) -> None:
        return None  # torch's Normal is not needed; its argument handling costs more than the formulas

    @classmethod
    def from_logits(cls, logits: Tensor, **kwargs: Any) -> "SquashedGaussian":
        """From [B, 2A]: means, then log standard deviations."""
        loc, log_std = logits.chunk(2, dim=-1)
        return cls(loc, log_std)

    @staticmethod
    def required_input_dim(space: gym.Space, **kwargs: Any) -> int:
        """Two numbers per action component."""
        return 2 * int(math.prod(space.shape or (1,)))

    def logp(self, value: Tensor, **kwargs: Any) -> Tensor:
        """Log density [B] of latents [B, A]."""
        scaled = (value - self.loc) * torch.exp(-self.log_std)
        return (-0.5 * scaled.square() - self.log_std - _HALF_LOG_TAU).sum(-1)

    def entropy(self, **kwargs: Any) -> Tensor:
        """Entropy [B] of the squashed action in nats; at most A log 2, that of the uniform."""
        std = self.log_std.exp()
        gaussian = 0.5 + _HALF_LOG_TAU + self.log_std
        squash = torch.zeros_like(gaussian)
        for node, weight in _NODES:
            squash = squash + weight * _log_slope(self.loc + node * std if node else self.loc)
        return (gaussian + squash).sum(-1)

    def kl(self, other: "SquashedGaussian", **kwargs: Any) -> Tensor:
        """KL divergence [B] from this distribution to ``other``; the same for latents and actions."""
        variance_ratio = torch.exp(2 * (self.log_std - other.log_std))
        distance = (self.loc - other.loc).square() * torch.exp(-2 * other.log_std)
        return (0.5 * (variance_ratio + distance - 1) - self.log_std + other.log_std).sum(-1)

    def sample(self, *, sample_shape: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Latents [B, A], drawn from the given generator."""
        noise = torch.randn(
            (*(sample_shape or ()), *self.loc.shape),
            generator=generator,
            dtype=self.loc.dtype,
            device=self.loc.device,
        )
        return (self.loc + noise * self.log_std.exp()).detach()

    def rsample(self, *, sample_shape: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Latents [B, A] through which gradients reach the parameters."""
        noise = torch.randn(
            (*(sample_shape or ()), *self.loc.shape),
            generator=generator,
            dtype=self.loc.dtype,
            device=self.loc.device,
        )
        return self.loc + noise * self.log_std.exp()

    def to_deterministic(self) -> TorchDeterministic:
        """The mean latent."""
        return TorchDeterministic(loc=self.loc)


def _log_slope(latent: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), written so that it neither overflows nor vanishes for large u."""
    return 2 * (math.log(2.0) - latent - torch.nn.functional.softplus(-2 * latent))
