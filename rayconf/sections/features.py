"""What policies see of the market, and the markets that they train on."""

import re
import shlex
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rayconf.sections.section import Count, Listed, NonNegative, Positive, Section

if TYPE_CHECKING:
    from rayconf.sections.learning import EnvConfig
    from rayconf.sections.running import BacktestConfig

UNAVAILABLE = "unavailable"
"""Digest of optional forecasts that were not to be had."""


class FeaturesConfig(Section):
    """Causal features of every bar. All windows are in bars."""

    return_horizons: tuple[Count, ...] = (1, 5, 21, 63, 126)
    """Horizons of past log returns, each divided by volatility times the root of the horizon."""
    z_windows: tuple[Annotated[int, Field(ge=5)], ...] = (10, 20, 60, 120, 250)
    """Windows of the z-score of the log-price spread."""
    volatility_window: Annotated[int, Field(ge=5)] = 21
    """Window of the realised volatility."""
    regime_window: Annotated[int, Field(ge=20)] = 240
    """Window of the long-run volatility that the regime is measured against."""
    hedge_window: Annotated[int, Field(ge=10)] = 60
    """Window of the rolling hedge ratio (regression slope) and correlation."""
    volume_window: Annotated[int, Field(ge=5)] = 60
    """Window of the mean log volume that volume is measured against."""
    calendar: bool = True
    """Add the day of the week, the gap in days since the last bar and, intraday, the time of day."""
    extremes: Literal["clip", "tanh"] = "clip"
    """What happens to standardised features beyond ``extreme_limit``: cut off, or squashed smoothly."""
    extreme_limit: Positive = 5.0
    """Bound on a standardised feature, in training standard deviations."""
    prior: Literal["flat", "vol_target", "spread"] | None = None
    """The rule that ``env.mapping: residual`` corrects, its weights two more features: ``vol_target``, equal weight
    brought to a volatility; ``spread``, a partial step towards the spread's z-score signal; ``flat``: cash, no feature.
    Null: ``vol_target`` with that mapping, else ``flat``."""
    prior_volatility: Positive | None = None
    """Volatility per year that ``vol_target`` aims at; null: ``backtest.vol_target``."""
    prior_half_life: Positive | None = None
    """Half-life in bars of its exponentially weighted volatility; null: ``backtest.vol_half_life``."""

    def with_prior(self, env: "EnvConfig", backtest: "BacktestConfig") -> "FeaturesConfig":
        """The same with the prior that is meant where none is named, and its numbers."""
        prior = self.prior or ("vol_target" if env.mapping == "residual" else "flat")
        update: dict[str, object] = {"prior": prior}
        if prior == "vol_target":
            update["prior_volatility"] = self.prior_volatility or backtest.vol_target
            update["prior_half_life"] = self.prior_half_life or backtest.vol_half_life
        return self.model_copy(update=update)


class UniverseConfig(Section):
    """Other pairs that training episodes are drawn from, evenly over their training bars; empty: the pair's own alone.

    A pair of the run is among them only where it is listed. Validation, test and scalers are the pair's own throughout.
    """

    tickers: Listed = ()
    """All ordered pairs of these tickers: N (N - 1) markets, each pair in both orders. ``*``: all tickers that
    ``data.dir`` has prices of, without one those of the run's pairs; written out when the run starts."""
    pairs: Listed = ()
    """Further pairs, each ``AAA/BBB``."""
    held_out: Listed = ()
    """Tickers that no training episode may hold, to see what a policy does on prices it never met."""

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return bool(self.tickers or self.pairs)

    @property
    def everything(self) -> bool:
        """Whether its tickers are still to be found."""
        return self.tickers == ("*",)

    @model_validator(mode="after")
    def _consistent(self) -> "UniverseConfig":
        left = [ticker for ticker in self.tickers if ticker not in self.held_out]
        if self.tickers and not self.everything and len(set(left)) < 2:
            raise ValueError(f"tickers {list(self.tickers)} leave no pair beside held_out {list(self.held_out)}")
        for pair in self.pairs:
            if set(pair.split("/")) & set(self.held_out):
                raise ValueError(f"pairs: {pair} has a ticker that is held out")
        return self


class AugmentConfig(Section):
    """Variation of training episodes. Validation, test and trading know none of it."""

    histories: Annotated[int, Field(ge=0)] = 0
    """Resampled histories beside each real one: the days of the training span, those of both legs together, in a
    stationary bootstrap."""
    block: Annotated[float, Field(ge=1)] = 63.0
    """Mean length in bars of the runs of days that stay together."""
    volatility: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Each resampled history's log moves, within days too and alike for both legs, are multiplied by one number, drawn
    log-uniformly from 1 / this to this. Most features are measured in volatilities and stay; costs, financing and a
    prior's target weigh more or less against the moves."""
    aggregation: Annotated[float, Field(ge=1, le=5)] = 1.0
    """Temporal aggregation: bars of a resampled history are joined in runs, of a mean length drawn log-uniformly from 1
    to this, so that it moves faster; less where about 252 bars of training, or two bars a session, would not be left.
    Open of the first, highest high, lowest low, close of the last, volume and time added up. Nothing slows a history
    down: bars between bars would be made up."""
    lags: Annotated[int, Field(ge=0)] = 0
    """A resampled history has 0 to this many bars more of lag than ``env.lag``, drawn evenly: its features are of so
    many bars earlier, the account is seen as it is."""
    noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise on standardised features, drawn anew for each step; not on a prior."""
    cost_factor: Annotated[float, Field(ge=1)] = 1.0
    """An episode's trading cost is ``env.train_cost_bps`` times a number drawn evenly from 1 to this."""

    @model_validator(mode="after")
    def _consistent(self) -> "AugmentConfig":
        for name in ("volatility", "aggregation", "lags"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and not self.histories:
                raise ValueError(f"{name} {value:g} varies resampled histories; set histories to 1 or more")
        return self


class ForecastConfig(Section):
    """Forecasts of a time-series model as features (docs/forecasts.md); without ``model`` and ``file`` there are none.

    A forecast is a quantile of the change of a log price, or of the log-price spread, over the next bars, made at a
    close from bars up to it. Its feature is that quantile / (volatility x sqrt(horizon)).
    """

    model: str | None = None
    """Model on the Hugging Face hub, ``OWNER/NAME``, downloaded when the run starts and run by ``command``; with
    ``file``, the model that must have made it."""
    revision: str | None = None
    """Branch, tag or commit of the model; null: ``main``. With ``file``, the revision that must be written in it."""
    file: str | None = None
    """Parquet of forecasts that were made before, a path or URI; null: they are made when the run starts."""
    command: tuple[str, ...] | None = None
    """Program and first arguments of the forecaster, in an environment of its own; null: the shipped command for Toto,
    run by ``python``."""
    python: str | None = None
    """Interpreter of the environment that has ``toto-ts``, for the shipped command; null: the one of this run."""
    series: tuple[Literal["spread", "a", "b"], ...] = ("spread",)
    """What is forecast per pair: ``spread``, and the log prices of leg ``a`` and of leg ``b``."""
    horizons: tuple[Count, ...] = (1, 5, 21)
    """Bars ahead."""
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.5, 0.9)
    """Quantiles of each forecast."""
    context: Annotated[int, Field(ge=2)] = 512
    """Bars up to a close that its forecast reads, at most."""
    checks: Annotated[int, Field(ge=0)] = 3
    """Random dates after which the prices are cut off and forecast again: forecasts up to there must stay the same."""
    optional: bool = False
    """Where network, model or command fail: true goes on without these features, and the report says so."""
    digest: str | None = None
    """Digest of the forecasts in use, or ``unavailable``; written, not set."""
    made_by: str | None = None
    """Model and revision that made them, ``NAME@REVISION``; written, not set."""

    @field_validator("command", mode="before")
    @classmethod
    def _words(cls, command: object) -> object:
        """One text is split as a shell would."""
        return tuple(shlex.split(command)) if isinstance(command, str) else command

    @model_validator(mode="after")
    def _complete(self) -> "ForecastConfig":
        if self.model is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.model):
            raise ValueError(
                f"model {self.model!r} must be OWNER/NAME of the hub; forecasts of a local model are a file"
            )
        if self.command is not None and (self.model is None or self.file is not None or not self.command):
            raise ValueError("command runs a model of the hub: give it with model, and without file")
        for name in ("series", "horizons", "quantiles"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} {list(values)} must name each value once, at least one")
        if list(self.quantiles) != sorted(self.quantiles):
            raise ValueError(f"quantiles {list(self.quantiles)} must rise, e.g. [0.1, 0.5, 0.9]")
        return self

    @property
    def wanted(self) -> bool:
        """Whether the run asks for forecasts, be they available or not."""
        return not (self.model is None and self.file is None and self.digest is None)

    @property
    def used(self) -> bool:
        """Whether features hold forecasts; known once the run has looked for them."""
        return self.digest not in (None, UNAVAILABLE)

    @property
    def content(self) -> dict[str, object] | None:
        """All that features depend on; None without forecasts. Where they lay and how they were made do not count."""
        if not self.used:
            return None
        return {name: getattr(self, name) for name in ("digest", "series", "horizons", "quantiles")}
