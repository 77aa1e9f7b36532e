"""The forecasts of a run: found or made when it is launched, kept in its directory, and read from there ever after."""

from dataclasses import dataclass
from pathlib import Path

from envs.forecasts import Forecasts, read_forecasts, series_names
from envs.market import load_legs
from envs.universe import universe_pairs
from pbt.forecaster import Forecaster, UnavailableError, series_of
from pbt.run_dir import RunDir
from rayconf.errors import UserError
from rayconf.run_config import RunConfig
from rayconf.sections import UNAVAILABLE, ForecastConfig

MAKE = "make them with python -m pbt.forecast, see docs/forecasts.md"


@dataclass(frozen=True)
class Found:
    """What looking for a run's forecasts came to."""

    forecasts: Forecasts | None = None
    why_not: str | None = None
    """Why optional ones are not there."""

    def recorded(self, run: RunConfig) -> RunConfig:
        """The run's config with what was found.

        Raises:
            UserError: The config was made with other forecasts.
        """
        if not run.forecasts.wanted:
            return run
        was = run.forecasts.digest
        now = UNAVAILABLE if self.forecasts is None else self.forecasts.digest
        if was not in (None, now):
            raise UserError(
                f"forecasts.digest: they are {now} now, this config was made with {was}; null takes them as they are"
            )
        update = {"digest": now, "made_by": None if self.forecasts is None else self.forecasts.made_by}
        return run.model_copy(update={"forecasts": run.forecasts.model_copy(update=update)})

    def warnings(self) -> list[str]:
        """What the log and the report must say."""
        return [] if self.why_not is None else [f"without forecast features, which are optional: {self.why_not}"]

    def keep(self, directory: RunDir) -> None:
        """Write them into the run's directory."""
        if self.forecasts is not None:
            self.forecasts.write(directory.forecasts)


def find_forecasts(run: RunConfig) -> Found:
    """The forecasts that a config asks for: read from its file, or made by its model.

    Raises:
        UserError: They cannot be had and are not optional, or break a rule, which no config may overlook.
    """
    config = run.forecasts
    if not config.wanted:
        return Found()
    if config.file is None and config.model is None:  # a published config does not say where they lay
        raise UserError(f"forecasts.file: missing; this config was made with forecasts ({config.digest}); {MAKE}")
    try:
        return Found(_made(run) if config.file is None else _filed(run, config.file))
    except UnavailableError as error:
        if config.optional:
            return Found(why_not=str(error))
        raise UserError(
            f"{error}; or set forecasts.file to forecasts made elsewhere, or forecasts.optional=true to run without"
        ) from error


def kept_forecasts(run: RunConfig, directory: RunDir) -> Forecasts | None:
    """The forecasts of a run as they lie in its directory; None for a run without.

    Raises:
        UserError: They are gone or altered.
    """
    if not run.forecasts.used:
        return None
    path = directory.forecasts
    try:
        found = read_forecasts(path, *_read_by(run, _of_maker(run)))
    except FileNotFoundError as error:
        raise UserError(
            f"{directory.shown(path)}: missing, though features of this run hold forecasts of "
            f"{run.forecasts.made_by}; restore it from a copy of the run (published runs are without)"
        ) from error
    if found.digest != run.forecasts.digest:
        raise UserError(
            f"{directory.shown(path)}: is not what the run was trained with; restore it from a copy of the run"
        )
    return found


def given_forecasts(run: RunConfig, place: str | Path, pairs: tuple[str, ...]) -> Forecasts:
    """Forecasts of other bars for what a run trained: of the same model and revision.

    Raises:
        UserError: There are none, or others.
    """
    if not run.forecasts.used:
        raise UserError(f"--forecasts: {', '.join(pairs)} was trained without; leave it out")
    try:
        return read_forecasts(place, series_names(pairs, run.forecasts), _of_maker(run))
    except FileNotFoundError as error:
        raise UserError(f"--forecasts: there is no {place}; {MAKE}") from error


def _of_maker(run: RunConfig) -> ForecastConfig:
    model, _, revision = str(run.forecasts.made_by).rpartition("@")
    return run.forecasts.model_copy(update={"model": model, "revision": revision})


def _read_by(run: RunConfig, config: ForecastConfig) -> tuple[list[str], ForecastConfig, list[str]]:
    """Arguments of ``read_forecasts``: of a universe's pairs, those too short to train on may be missing."""
    return series_names(run.data.pairs, config), config, series_names(universe_pairs(run), config)


def _made(run: RunConfig) -> Forecasts:
    from pbt.hub_model import fetch_model

    wanted = tuple(dict.fromkeys((*run.data.pairs, *universe_pairs(run))))
    # a mistake in the data comes before a download
    legs = load_legs(run.model_copy(update={"data": run.data.model_copy(update={"pairs": wanted})}))
    series = series_of(legs, run.forecasts)
    try:
        model = fetch_model(str(run.forecasts.model), run.forecasts.revision)
    except UserError as error:
        raise UnavailableError(f"forecasts.model: {error}") from error
    return Forecaster.of(run, model).forecasts(series)


def _filed(run: RunConfig, place: str) -> Forecasts:
    if run.data.placebo != "none":
        raise UserError("forecasts.file: was made of days in their own order; with data.placebo give forecasts.model")
    try:
        return read_forecasts(place, *_read_by(run, run.forecasts))
    except FileNotFoundError as error:
        raise UnavailableError(f"forecasts.file: there is no {place}; {MAKE}") from error
