"""Generalised advantage estimation over rollouts of many accounts."""

import torch
from torch import Tensor


def next_values(value: Tensor, last_value: Tensor, final_value: Tensor, truncated: Tensor) -> Tensor:
    """Value of the state each step led to, [T, N].

    Args:
        value: [T, N] value of the observation before each step.
        last_value: [N] value of the observation after the last step.
        final_value: [T, N] value of the final observation of truncated episodes, anything elsewhere.
        truncated: [T, N] bool.
    """
    following = torch.cat((value[1:], last_value.unsqueeze(0)))
    return torch.where(truncated, final_value, following)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    lambda_: float,
) -> Tensor:
    """Advantages [T, N] (Schulman et al. 2016, eq. 16), vectorised over accounts.

    A termination (ruin) has no future; a truncation bootstraps from ``next_value``, the value of the
    episode's own final observation. Neither lets later rewards flow back over the episode's end.

    Args:
        reward: [T, N].
        value: [T, N] value of the observation before each step.
        next_value: [T, N] value after each step, see ``next_values``.
        terminated: [T, N] bool.
        truncated: [T, N] bool.
        gamma: Discount per step.
        lambda_: Decay of the n-step mixture.
    """
    delta = reward + gamma * next_value.masked_fill(terminated, 0.0) - value
    carry = (gamma * lambda_) * (~(terminated | truncated)).to(reward.dtype)
    advantage = torch.empty_like(delta)
    running = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        running = torch.addcmul(delta[t], carry[t], running)
        advantage[t] = running
    return advantage
