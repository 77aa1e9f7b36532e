"""The search space: which numbers of a run PBT may mutate, between which bounds, on which scale."""

from typing import Literal

from pydantic import model_validator

from rayconf.sections import NonNegative, Positive, Section

MUTABLE = (
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.critic_decay_factor",
    "optimizer.pull",
    "optimizer.encoder_lr_factor",
    "optimizer.muon_ratio",
    "optimizer.max_grad_norm",
    "optimizer.ema_half_life",
    "optimizer.warmup_fraction",
    "optimizer.floor_fraction",
    "ppo.entropy_coeff",
    "ppo.clip",
    "ppo.kl_stop",
    "ppo.gamma",
    "ppo.gae_lambda",
    "ppo.epochs",
    "ppo.minibatch_size",
    "direct.worst_window",
    "network.dropout",
    "env.risk_penalty",
    "env.turnover_penalty",
    "env.train_cost_bps",
    "env.cvar_weight",
    "env.leverage_cap",
    "env.reach",
    "env.adjustment",
    "env.no_trade_band",
)
"""Every field that PBT can mutate. ``tests/algos/test_mutables.py`` holds a proof for each that a new value is in force
at the first step after an exploit; a field without a proof fails it."""

OF_SHAPE = (
    "network.hidden",
    "network.layer_norm",
    "network.legs",
    "network.encoder",
    "network.encoder_window",
    "network.encoder_width",
    "network.encoder_layers",
    "network.encoder_sharing",
)
"""Fields that decide which weights a network has, and of what shape. All members of a population have them alike."""

OF_POLICY = ("env.leverage_cap", "env.reach", "env.adjustment", "env.no_trade_band")
"""Those of ``MUTABLE`` that are part of a policy, beside its weights."""


def idle_fields(algo: str, objective: str) -> dict[str, str]:
    """Fields of ``MUTABLE`` that change nothing under a learner and its objective, each with the reason."""
    if algo == "ppo":
        return {path: "algo is ppo" for path in MUTABLE if path.startswith("direct.")}
    idle = {path: "algo is direct" for path in MUTABLE if path.startswith("ppo.") or "critic" in path}
    unseen = ("env.risk_penalty", "env.cvar_weight") if objective == "sharpe" else ("direct.worst_window",)
    return idle | dict.fromkeys(unseen, f"direct.objective is {objective}")


class Range(Section):
    """What PBT may do to one number."""

    path: str
    """Field of the run that it replaces, e.g. ``optimizer.learning_rate``; one of ``MUTABLE``."""
    low: NonNegative | None = None
    """Smallest value; all scales but ``categorical`` need it."""
    high: Positive | None = None
    """Largest value; all scales but ``categorical`` need it."""
    scale: Literal["log", "linear", "logit", "integer", "categorical"] = "log"
    """Space in which values are drawn and moved. ``logit``: log-odds, for numbers between 0 and 1; ``integer``: whole
    numbers; ``categorical``: one of ``choices``."""
    step: Positive = 2.0
    """Largest move of one explore step: a factor on the log scale, a factor on the odds x / (1 - x) on the logit scale,
    an addend on the linear and integer scales (whole, at least 1). Choices move to a neighbour or are drawn anew."""
    choices: tuple[NonNegative, ...] = ()
    """Values of the ``categorical`` scale, ascending; no other scale has any."""

    @model_validator(mode="after")
    def _consistent(self) -> "Range":
        if self.scale == "categorical":
            if len(self.choices) < 2 or list(self.choices) != sorted(set(self.choices)):
                raise ValueError(f"choices {list(self.choices)} must be two or more numbers that rise")
            if self.low is not None or self.high is not None:
                raise ValueError("low and high: a categorical scale has choices instead")
            return self
        if self.choices:
            raise ValueError(
                f"choices: the {self.scale} scale has low and high instead; choices need scale categorical"
            )
        for name, value in (("low", self.low), ("high", self.high)):
            if value is None:
                raise ValueError(f"{name}: missing; the {self.scale} scale needs low and high")
            if self.scale == "integer" and value != round(value):
                raise ValueError(f"{name} {value} must be a whole number on the integer scale")
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"low {low} must be below high {high}")
        if self.scale == "log" and low <= 0:
            raise ValueError(f"low {low} must be above 0 on the log scale")
        if self.scale == "logit" and not 0 < low < high < 1:
            raise ValueError(f"low {low} and high {high} must lie between 0 and 1, without them, on the logit scale")
        if self.scale in ("log", "logit") and self.step <= 1:
            raise ValueError(f"step {self.step} must be above 1 on the {self.scale} scale, where it is a factor")
        if self.scale == "integer" and (self.step < 1 or self.step != round(self.step)):
            raise ValueError(f"step {self.step} must be a whole number of at least 1 on the integer scale")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value."""
        if self.low is None or self.high is None:
            return self.choices[0], self.choices[-1]
        return self.low, self.high

    @property
    def corners(self) -> list[tuple[str, float]]:
        """The values that stand for all others when the range is checked, each with the field that holds it."""
        if self.scale == "categorical":
            return [("choices", value) for value in self.choices]
        return list(zip(("low", "high"), self.bounds, strict=True))
