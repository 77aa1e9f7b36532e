"""Standardising features with the statistics of the training span alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.prior import PRIOR_COLUMNS
from rayconf.sections import FeaturesConfig

Floats = NDArray[np.float64]

# One bad print or crash among thousands of bars must not set the scale of all the others; beyond the limit
# it is cut off (or squashed) anyway when applied.
WINSOR = (0.01, 0.99)
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Scaler:
    """Maps features to ``(x - mean) / scale``, bounded by ``limit``. The weights of a prior stay what they are.

    Attributes:
        names: Names of the F features.
        mean: float64 [F].
        scale: float64 [F], positive; 1 for a feature that never moves in training.
        extremes: ``clip`` cuts off at the limit; ``tanh`` gives ``limit * tanh(z / limit)``.
        limit: Bound in training standard deviations.
    """

    names: tuple[str, ...]
    mean: Floats
    scale: Floats
    extremes: str
    limit: float

    def __post_init__(self) -> None:
        if not (len(self.names) == len(self.mean) == len(self.scale)):
            raise ValueError(f"{len(self.names)} names, {len(self.mean)} means and {len(self.scale)} scales")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("a scaler needs finite means and positive finite scales")
        if self.extremes not in ("clip", "tanh") or not self.limit > 0:
            raise ValueError(f"extremes {self.extremes!r} must be clip or tanh, and limit {self.limit} positive")

    @classmethod
    def fit(cls, values: Floats, names: Sequence[str], config: FeaturesConfig) -> "Scaler":
        """Mean and population standard deviation of training rows winsorised at 1 % and 99 % per feature.

        A feature whose winsorised values do not move (a rare event) falls back to its plain mean and deviation.

        Args:
            values: float64 [T, F], the training rows and no others, all finite.
            names: Names of the features.
            config: ``extremes`` and ``extreme_limit``.
        """
        if values.ndim != 2 or not len(values) or values.shape[1] != len(names):
            raise ValueError(f"training features of shape {values.shape} do not fit {len(names)} names")
        if not np.isfinite(values).all():
            raise ValueError("training features must be finite: begin after the lookback")
        low, high = np.quantile(values, WINSOR, axis=0)
        bounded = np.clip(values, low, high)
        mean, scale = bounded.mean(axis=0), bounded.std(axis=0)
        still = _constant(mean, scale)
        mean = np.where(still, values.mean(axis=0), mean)
        scale = np.where(still, values.std(axis=0), scale)
        scale = np.where(_constant(mean, scale), 1.0, scale)
        prior = np.isin(names, PRIOR_COLUMNS)
        mean, scale = np.where(prior, 0.0, mean), np.where(prior, 1.0, scale)
        return cls(tuple(names), mean, scale, config.extremes, config.extreme_limit)

    def apply(self, values: Floats) -> NDArray[np.float32]:
        """Scaled features, float32 [..., F] in [-limit, limit]; NaN (rows before the lookback) stays NaN."""
        if values.shape[-1] != len(self.names):
            raise ValueError(f"features of shape {values.shape} do not fit {len(self.names)} names")
        z = (values - self.mean) / self.scale
        if self.extremes == "tanh":
            z = self.limit * np.tanh(z / self.limit)
        bound = np.float32(self.limit)
        if float(bound) > self.limit:  # rounding to float32 must not lift the bound
            bound = np.nextafter(bound, np.float32(0))
        # the limit is applied before the cast as well: a huge float64 would overflow to infinity with a warning
        bounded = np.clip(np.clip(z, -self.limit, self.limit).astype(np.float32), -bound, bound)
        prior = np.isin(self.names, PRIOR_COLUMNS)
        if prior.any():
            bounded[..., prior] = values[..., prior]
        return bounded

    def to_json(self) -> str:
        """JSON text from which ``from_json`` restores the same bits."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "names": list(self.names),
                "mean": self.mean.tolist(),
                "scale": self.scale.tolist(),
                "extremes": self.extremes,
                "limit": self.limit,
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> "Scaler":
        """The scaler that ``to_json`` wrote.

        Raises:
            ValueError: The text is no scaler of this schema.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(f"not a scaler of schema {SCHEMA}")
        try:
            mean, scale = np.asarray(data["mean"], np.float64), np.asarray(data["scale"], np.float64)
            return cls(tuple(data["names"]), mean, scale, data["extremes"], float(data["limit"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the scaler lacks or mistypes a field: {error}") from error


def _constant(mean: Floats, deviation: Floats) -> NDArray[np.bool_]:
    """Where a feature does not move, up to the rounding of its mean."""
    return deviation <= 1e-12 * np.maximum(1.0, np.abs(mean))
