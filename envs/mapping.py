"""How two action numbers become target weights."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rayconf.run_config import RunConfig

MAPPINGS = ("direct", "neutral", "residual")


@dataclass(frozen=True)
class ActionMap:
    """What an action asks for; part of a policy, which trades by it wherever it trades.

    ``direct``: each leg gets its action times the leverage limit. ``neutral``: half the difference of the actions is a
    dollar-neutral tilt of at most half the limit per leg. ``residual``: the prior's weights (``envs.prior``) plus the
    action times ``reach`` times the limit, so that an action of zero is the prior.

    From there two brakes on trading, both measured from the weights held at the close that is decided on. Partial
    adjustment goes the share ``adjustment`` of the way (Garleanu and Pedersen 2013). The no-trade band leaves a leg
    alone within ``band`` of what it should be, and trades it to the band's edge beyond, which is the optimal form under
    proportional costs (Davis and Norman 1990).

    Attributes:
        mapping: One of ``MAPPINGS``.
        leverage: The run's gross limit, which the ledger keeps.
        cap: The policy's own, smaller limit: actions scale to it instead, and targets of more gross shrink to it, as
            the ledger would shrink them; None: the ledger's alone.
        reach: Largest correction of a leg by ``residual``, as a share of the limit.
        adjustment: Share of the way to the target that one decision goes, above 0; 1: all.
        band: Half-width of the no-trade band, a fraction of equity.
    """

    mapping: str
    leverage: float
    cap: float | None = None
    reach: float = 0.25
    adjustment: float = 1.0
    band: float = 0.0

    def __post_init__(self) -> None:
        if self.mapping not in MAPPINGS:
            raise ValueError(f"unknown mapping {self.mapping!r}: one of {', '.join(MAPPINGS)}")

    @classmethod
    def of(cls, run: RunConfig) -> Self:
        """That of a run's policies."""
        env = run.env
        return cls(
            env.mapping, float(run.costs.leverage), env.leverage_cap, env.reach, env.adjustment, env.no_trade_band
        )

    @property
    def brakes(self) -> bool:
        """Whether targets depend on the weights that are held."""
        return self.adjustment < 1 or self.band > 0

    def targets(self, action: Tensor, prior: Tensor | None = None, held: Tensor | None = None) -> Tensor:
        """Target weights [N, 2] (signed fractions of equity, before the ledger's cap).

        Args:
            action: [N, 2] in [-1, 1].
            prior: [N, 2] weights of the prior, for ``residual``; None: flat.
            held: [N, 2] weights held at the close decided on; read where there are ``brakes``.
        """
        limit = self.leverage if self.cap is None else self.cap
        if self.mapping == "neutral":
            tilt = (action[:, 0] - action[:, 1]) * (0.25 * limit)
            target = torch.stack((tilt, -tilt), dim=1)
        elif self.mapping == "residual":
            target = action * (self.reach * limit)
            target = target if prior is None else prior + target
        else:
            target = action * limit
        if self.brakes:
            assert held is not None
            move = (target - held) * self.adjustment
            target = held + torch.sign(move) * (move.abs() - self.band).clamp(min=0) if self.band else held + move
        if self.cap is not None:
            gross = target[:, 0].abs() + target[:, 1].abs()
            target = target / (gross / self.cap).clamp(min=1).unsqueeze(1)
        return target


WEIGHT_STEPS = 1e4
"""Evaluation rounds target weights to multiples of 1 / WEIGHT_STEPS."""


def round_targets(target: Tensor) -> Tensor:
    """Target weights [N, 2] rounded to 1e-4, so that the last bits of a network never reach an account."""
    return torch.round(target * WEIGHT_STEPS) / WEIGHT_STEPS
