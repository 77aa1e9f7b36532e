"""Forecasts of Toto (Cohen et al. 2025, "This Time is Different", arXiv 2505.14766), a transformer for time series.

``toto-ts`` pins another torch than pairpbt, so that this program runs in an environment of its own::

    python3 -m venv venv-toto
    venv-toto/bin/pip install toto-ts pyarrow

and the run names it: ``--set forecasts.model=Datadog/Toto-Open-Base-1.0 --set forecasts.python=venv-toto/bin/python``.
A GPU is used where torch finds one. Each window is a series of one variate; its quantiles are those of samples.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rolling import CannotForecastError, main

SAMPLES = 256
"""Sampled paths per window."""
SIDE_BY_SIDE = 16
"""Of these, sampled at a time."""


class TotoModel:
    """Toto behind what ``rolling`` asks of a model."""

    def __init__(self, folder: Path) -> None:
        try:
            import torch
            from toto.inference.forecaster import TotoForecaster
            from toto.model.toto import Toto
        except ImportError as error:
            raise CannotForecastError(
                f"{error.name} is not installed for {sys.executable}: make an environment of its own (python3 -m venv "
                "venv-toto; venv-toto/bin/pip install toto-ts pyarrow) and set forecasts.python=venv-toto/bin/python"
            ) from error
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._forecaster = TotoForecaster(Toto.from_pretrained(str(folder)).to(self._device).eval().model)

    def forecast(
        self, windows: np.ndarray, known: np.ndarray, horizons: Sequence[int], quantiles: Sequence[float], seed: int
    ) -> np.ndarray:
        """Quantiles of the change after each window, float64 [B, H, Q]."""
        import torch
        from toto.data.util.dataset import MaskedTimeseries

        torch.manual_seed(seed)
        last = windows[:, -1:]
        # Changes to the window's last value keep the digits that single precision has where the values move.
        series = torch.from_numpy((windows - last).astype(np.float32)).to(self._device)[:, None]
        inputs = MaskedTimeseries(
            series=series,
            padding_mask=torch.from_numpy(known).to(self._device)[:, None],
            id_mask=torch.zeros_like(series),
            timestamp_seconds=torch.zeros_like(series),
            time_interval_seconds=torch.full(series.shape[:2], 86_400.0, device=self._device),
        )
        with torch.no_grad():
            made = self._forecaster.forecast(
                inputs, prediction_length=max(horizons), num_samples=SAMPLES, samples_per_batch=SIDE_BY_SIDE
            )
        ahead = [horizon - 1 for horizon in horizons]
        columns = [made.quantile(quantile)[:, 0, ahead].double().cpu().numpy() for quantile in quantiles]
        return np.stack(columns, axis=2)


if __name__ == "__main__":
    sys.exit(main(TotoModel))
