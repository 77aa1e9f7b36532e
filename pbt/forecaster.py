"""Running a forecaster: a command in an environment of its own, between a Parquet of series and one of forecasts.

It is started as ``COMMAND --model DIR --input series.parquet --output forecasts.parquet --horizons 1,5 --quantiles
0.1,0.9 --context 512 --skip 249 --name OWNER/NAME --revision COMMIT``. The input has ``pair``, ``date`` and ``value``,
a log price or log-price spread per bar; the output is that of ``envs.forecasts``, for every bar but the first ``skip``
of each series. What it writes is used once the command, run again on series cut off at random dates, has written the
same up to there; it is then kept in the hub's cache by all that went in.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from envs.bars import Bars, join_bars
from envs.features import lookback
from envs.forecasts import Forecasts, read_forecasts, series_names
from pbt.hub_model import Model
from rayconf.errors import UserError
from rayconf.keys import derive_key
from rayconf.run_config import RunConfig
from rayconf.sections import ForecastConfig

TOTO = Path(__file__).parent / "forecasters" / "toto.py"
TOLERANCE = 1e-5
"""Difference that counts as none, in standard deviations of a horizon's forecasts: networks round differently when
batches differ, and nothing that small can be traded on."""
OWN = ("PYTHONPATH", "PYTHONHOME", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables that a command does not inherit: ours, not those of its environment."""

Series = Mapping[str, "pd.Series[float]"]
"""By pair or ticker, log values [N] by date."""


class UnavailableError(UserError):
    """Forecasts that cannot be had here and now, though nothing in the config is wrong."""


def series_of(legs: Mapping[str, tuple[Bars, Bars]], config: ForecastConfig) -> Series:
    """The series that a run needs forecasts of: log-price spreads on common bars, log prices on the ticker's own.

    Raises:
        UserError: A ticker has other prices in one pair than in another, as in the embedded market.
    """
    found: dict[str, pd.Series[float]] = {}
    for pair, both in legs.items():
        a, b, _ = join_bars(*both)
        spread = np.log(a.close) - np.log(b.close)
        made = {pair: pd.Series(spread, a.dates)}
        made |= {leg.ticker: pd.Series(np.log(leg.close), leg.dates) for leg in both}
        for name in series_names([pair], config):
            if name in found and not found[name].equals(made[name]):
                raise UserError(f"forecasts.series: {name} has other prices in {pair} than in another pair; use spread")
            found[name] = made[name]
    return found


@dataclass(frozen=True)
class Forecaster:
    """A model, the command that runs it, and how."""

    model: Model
    config: ForecastConfig
    skip: int
    """Bars at the start of each series that need no forecast."""

    @classmethod
    def of(cls, run: RunConfig, model: Model) -> "Forecaster":
        """The forecaster of a run's config."""
        return cls(model, run.forecasts, lookback(run.features) - 1)

    @property
    def command(self) -> tuple[str, ...]:
        """Program and first arguments."""
        return self.config.command or (self.config.python or sys.executable, str(TOTO))

    def forecasts(self, series: Series) -> Forecasts:
        """Forecasts of all series that are long enough, from the cache where nothing that they depend on has changed.

        Raises:
            UnavailableError: The command cannot be run, or fails.
            UserError: What it writes is not what was asked for, or depends on later bars.
        """
        from huggingface_hub import cached_assets_path

        series = {name: values for name, values in series.items() if len(values) > self.skip}
        if not series:
            raise UserError(f"forecasts: no pair has more than the {self.skip} bars before the first forecast")
        kept = cached_assets_path("pairpbt", "forecasts", self.key(series)) / "forecasts.parquet"
        if kept.is_file():
            return self._read(kept, list(series))
        print(f"forecasts  {self.model.name} forecasts {len(series)} series", flush=True)
        with tempfile.TemporaryDirectory(prefix="pairpbt-") as folder:
            found = self._run(series, Path(folder))
            for cut in self._cuts(series):
                until = {name: values[:cut] for name, values in series.items() if len(values[:cut]) > self.skip}
                self._compare(found, self._run(until, Path(folder)), cut)
        kept.parent.mkdir(parents=True, exist_ok=True)
        found.write(kept)
        return self._read(kept, list(series))

    def key(self, series: Series) -> str:
        """Digest of all that the forecasts depend on: series, model, settings, command, and code beside the command."""
        asked = self.config.model_dump(include={"horizons", "quantiles", "context", "checks"})
        sha = hashlib.sha256(f"{self.model.name}|{self.model.commit}|{self.skip}|{asked}|{self.command}".encode())
        folders = dict.fromkeys(Path(word).resolve().parent for word in self.command if word.endswith(".py"))
        for path in (path for folder in folders for path in sorted(folder.glob("*.py"))):
            sha.update(f"|{path.name}|".encode() + path.read_bytes())
        for name, values in sorted(series.items()):
            sha.update(f"|{name}|".encode() + values.index.to_numpy().astype("<M8[us]").tobytes())
            sha.update(values.to_numpy().astype("<f8").tobytes())
        return sha.hexdigest()[:32]

    def _run(self, series: Series, folder: Path) -> Forecasts:
        """Run the command once, and read what it wrote."""
        given, written = folder / "series.parquet", folder / "forecasts.parquet"
        frames = [pd.DataFrame({"pair": k, "date": v.index, "value": v.to_numpy()}) for k, v in series.items()]
        pd.concat(frames).to_parquet(given, index=False)
        written.unlink(missing_ok=True)
        flags = {
            "model": self.model.folder,
            "input": given,
            "output": written,
            "horizons": ",".join(map(str, self.config.horizons)),
            "quantiles": ",".join(map(str, self.config.quantiles)),
            "context": self.config.context,
            "skip": self.skip,
            "name": self.model.name,
            "revision": self.model.commit,
        }
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        environment = {name: value for name, value in os.environ.items() if name not in OWN}
        environment["HF_HUB_OFFLINE"] = "1"  # the model is what was downloaded and checked, nothing else
        try:
            done = subprocess.run([*self.command, *words], env=environment, capture_output=True, text=True, check=False)
        except OSError as error:
            raise UnavailableError(
                f"forecasts.command: cannot start {self.command[0]}: {error.strerror}; make its environment, see "
                "docs/forecasts.md"
            ) from error
        if done.returncode:
            said = (done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["it says nothing"])[-1]
            raise UnavailableError(
                f"forecasts.command: {' '.join(self.command)} ended with status {done.returncode}: {said[:300]}"
            )
        if not written.is_file():
            raise UserError(f"forecasts.command: {' '.join(self.command)} ended well and wrote no {written.name}")
        found = self._read(written, list(series))
        for name, values in series.items():
            if not np.array_equal(found.dates[name], values.index[self.skip :].to_numpy()):
                raise UserError(
                    f"forecasts.command: {' '.join(self.command)} wrote forecasts of {name} at other dates than its "
                    f"bars from number {self.skip + 1} on"
                )
        return found

    def _read(self, path: Path, names: Sequence[str]) -> Forecasts:
        exactly = {"model": self.model.name, "revision": self.model.commit}
        try:
            return read_forecasts(path, names, self.config.model_copy(update=exactly))
        except UserError as error:
            raise UserError(f"forecasts.command: {' '.join(self.command)}: {error}") from error

    def _cuts(self, series: Series) -> list[pd.Timestamp]:
        """Dates after which the series are cut off, the last bars that remain; the same for the same input."""
        dates = np.unique(np.concatenate([values.index[self.skip : -1].to_numpy() for values in series.values()]))
        rng = np.random.default_rng(derive_key(self.key(series), "cuts"))
        return sorted(map(pd.Timestamp, rng.choice(dates, min(self.config.checks, len(dates)), replace=False)))

    def _compare(self, whole: Forecasts, cut: Forecasts, date: pd.Timestamp) -> None:
        """Refuse a forecaster whose forecasts up to a date depend on bars after it."""
        for name, again in cut.values.items():
            before = whole.values[name][: len(again)]
            wrong = np.abs(again - before) > TOLERANCE * whole.values[name].std(axis=(0, 2))[:, None]
            if wrong.any():
                n, h, q = (int(i[0]) for i in np.nonzero(wrong))
                raise UserError(
                    f"forecasts.command: {' '.join(self.command)} is not causal: {name} at {_day(cut.dates[name][n])}, "
                    f"horizon {whole.horizons[h]}, quantile {whole.quantiles[q]:g} is {before[n, h, q]:.6g}, and "
                    f"{again[n, h, q]:.6g} once the bars after {_day(date.to_datetime64())} are taken away"
                )


def _day(date: np.datetime64) -> str:
    return str(date.astype("datetime64[s]")).removesuffix("T00:00:00")
