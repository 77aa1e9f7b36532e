"""How two action numbers become target weights."""

import torch
from torch import Tensor


def target_weights(action: Tensor, mapping: str, leverage: float, cap: float | None = None) -> Tensor:
    """Target weights [N, 2] (signed fractions of equity, before the ledger's cap) of actions [N, 2] in [-1, 1].

    ``direct``: each leg gets its action times the leverage limit. ``neutral``: half the difference of the
    actions is a dollar-neutral tilt of at most half the limit per leg.

    Args:
        action: [N, 2] in [-1, 1].
        mapping: ``direct`` or ``neutral``.
        leverage: The run's gross limit, which the ledger keeps.
        cap: The policy's own, smaller limit: actions scale to it instead, and targets of more gross shrink to it, as
            the ledger would shrink them; None: the ledger's alone.

    Raises:
        ValueError: If the mapping is unknown.
    """
    if cap is not None:
        target = target_weights(action, mapping, cap)
        gross = target[:, 0].abs() + target[:, 1].abs()
        return target / (gross / cap).clamp(min=1).unsqueeze(1)
    if mapping == "direct":
        return action * leverage
    if mapping == "neutral":
        tilt = (action[:, 0] - action[:, 1]) * (0.25 * leverage)
        return torch.stack((tilt, -tilt), dim=1)
    raise ValueError(f"unknown mapping {mapping!r}: direct or neutral")


WEIGHT_STEPS = 1e4
"""Evaluation rounds target weights to multiples of 1 / WEIGHT_STEPS."""


def round_targets(target: Tensor) -> Tensor:
    """Target weights [N, 2] rounded to 1e-4, so that the last bits of a network never reach an account."""
    return torch.round(target * WEIGHT_STEPS) / WEIGHT_STEPS
