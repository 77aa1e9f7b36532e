"""Forecasts of a linear model: the mean change is a weighted sum of past changes, the deviation is their volatility.

The folder holds ``config.json``, ``{"format": "linear", "horizons": [...], "lags": L}``, and ``model.safetensors`` with
``weight`` [H, L], oldest lag first: the expected change over a horizon per past change of one bar; and ``spread`` [H],
the standard deviation of that change as a multiple of the root mean square of the last L changes. Quantiles are
Gaussian. It needs numpy, pyarrow and safetensors, and runs in the environment of pairpbt as well.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
from rolling import CannotForecastError, main
from safetensors import SafetensorError
from safetensors.numpy import load_file


class LinearModel:
    """The model of a folder."""

    def __init__(self, folder: Path) -> None:
        try:
            config = json.loads((folder / "config.json").read_text())
            tensors = load_file(folder / "model.safetensors")
            self._horizons, self._lags = list(config["horizons"]), int(config["lags"])
            self._weight, self._spread = (tensors[name].astype(np.float64) for name in ("weight", "spread"))
            rows = len(self._horizons)
            fits = self._weight.shape == (rows, self._lags) and self._spread.shape == (rows,)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CannotForecastError(f"{folder}: no linear model ({error})") from error
        if config.get("format") != "linear" or not fits:
            raise CannotForecastError(f"{folder}: no linear model: its tensors do not fit its config.json")

    def forecast(
        self, windows: np.ndarray, known: np.ndarray, horizons: Sequence[int], quantiles: Sequence[float], seed: int
    ) -> np.ndarray:
        """Quantiles of the change after each window, float64 [B, H, Q]; changes before a series began count as 0."""
        unknown = [horizon for horizon in horizons if horizon not in self._horizons]
        if unknown or windows.shape[1] <= self._lags:
            raise CannotForecastError(f"the model knows horizons {self._horizons} and needs {self._lags + 1} bars")
        rows = [self._horizons.index(horizon) for horizon in horizons]
        changes = np.diff(windows, axis=1)[:, -self._lags :]
        mean = changes @ self._weight[rows].T
        deviation = np.sqrt((changes**2).mean(axis=1))[:, None] * self._spread[rows]
        normal = np.array([NormalDist().inv_cdf(quantile) for quantile in quantiles])
        return mean[:, :, None] + deviation[:, :, None] * normal


if __name__ == "__main__":
    sys.exit(main(LinearModel))
