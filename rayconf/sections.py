"""The sections of a run's description. The docstring under a field is its documentation, everywhere."""

import re
import shlex
from datetime import date, datetime
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _split_text(value: object) -> object:
    """One text, as flags give it, lists items separated by commas."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


Listed = Annotated[tuple[str, ...], BeforeValidator(_split_text)]

DEFAULT_FRACTIONS = (0.6, 0.2, 0.2)
"""Shares of train, validation and test of one's own prices."""
MOST_WALKS = 99
"""Windows of a walk-forward at most."""
STAGES = ("base", "specialists", "population")
"""Stages of a run, in order."""
ENCODERS = ("factored", "conv", "gru", "transformer")
"""Networks that evaluate what reads only the market once per bar."""
UNAVAILABLE = "unavailable"
"""Digest of optional forecasts that were not to be had."""


class Section(BaseModel):
    """Base of all sections: immutable, unknown fields refused, NaN and infinity refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where prices come from. Without a directory the embedded synthetic market is used."""

    dir: str | None = None
    """Directory or ``hf://datasets/OWNER/NAME`` with one CSV or Parquet file per ticker; null: synthetic."""
    pairs: Listed = ("SYNA/SYNB", "SYNC/SYND")
    """Pairs to train, each ``AAA/BBB``; every pair has its own population."""
    transferred: tuple[str, ...] = ()
    """Those of the pairs that joined with --extend, starting from the archives of the others; written, not set."""
    fill: Literal["open", "close"] = "open"
    """Price at which orders fill: the next ``open``; ``close`` for data sets that have closes only."""
    adjust: bool = True
    """Scale prices by ``Adj Close / Close`` where a file has it (total returns); false ignores the column."""
    bars_per_year: Positive | None = None
    """Bars per year; null: inferred from the dates (252 sessions, or 365 for a market that never closes)."""

    placebo: Literal["none", "shuffled_days"] = "none"
    """``shuffled_days``: the days of the prices in another order, alike for all tickers, so that no day says anything
    about a later one: a run that still finds an edge there is broken."""
    placebo_seed: int = 0
    """Seed of that order."""


class SyntheticConfig(Section):
    """The embedded market: two legs, a common factor and a mean-reverting spread."""

    form: Literal["plain", "full", "walk"] = "full"
    """``plain``: one regime, Gaussian, optimum known; ``full``: regimes, fat tails, moving mean of the spread;
    ``walk``: as plain, but the spread is a random walk with changes of the same size: nothing can be predicted."""
    bars: Count = 65_252
    """Number of daily bars generated per pair."""
    half_life: Positive = 20.0
    """Half-life of the spread in bars."""
    spread_sd: Positive = 0.0460
    """Stationary standard deviation of the log spread."""
    factor_sd: Positive = 0.01
    """Standard deviation of the common factor per bar."""
    overnight: Fraction = 0.3
    """Share of each bar's time and variance that falls between close and the next open."""
    seed: int = 0
    """Seed of the market itself, so that training seeds can vary on one market."""
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS
    """Shares of train, validation and test on this market, unless ``split.fractions`` is given."""


class SplitConfig(Section):
    """Chronological train / validation / test, common to all pairs of a run."""

    fractions: tuple[float, float, float] | None = None
    """Shares of train, validation and test in the longest pair's bars; null: 0.6, 0.2, 0.2 (or the synthetic's own)."""
    validation_start: str | None = None
    """First date of validation (ISO); give both dates or none."""
    test_start: str | None = None
    """First date of test (ISO); give both dates or none."""
    test_end: str | None = None
    """First date after test (ISO), with the other two dates; null: test reaches to the end of the data."""
    walk_forward: tuple[str, ...] = ()
    """First dates of test (ISO, rising) of a walk-forward over expanding windows, each trained on all that lies before
    its validation; a test ends where the next begins. A whole number N: N tests of equal length after the training
    share of ``fractions``. Empty: one training, one test."""
    walk_validation: Count = 504
    """Bars of the longest pair before each test of a walk-forward that are its validation."""
    burn: Count = 252
    """Bars consumed once at the start by the longest feature window."""
    embargo: Annotated[int, Field(ge=0)] | None = None
    """Bars left out at the start of validation and of test; null: 21 daily bars, or 5 sessions of intraday bars."""

    @model_validator(mode="after")
    def _shares(self) -> "SplitConfig":
        if self.fractions is not None and (min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-9):
            raise ValueError("fractions must be three positive shares that sum to 1, e.g. [0.6, 0.2, 0.2]")
        if (self.validation_start is None) != (self.test_start is None):
            raise ValueError("validation_start and test_start must be given together")
        if self.test_end is not None and self.test_start is None:
            raise ValueError("test_end needs validation_start and test_start beside it")
        return self

    @field_validator("walk_forward", mode="before")
    @classmethod
    def _listed(cls, starts: object) -> object:
        """One text, as flags give it, lists dates separated by commas; a number stands alone; YAML knows dates."""
        if isinstance(starts, str):
            starts = [start.strip() for start in starts.split(",") if start.strip()]
        if isinstance(starts, int) and not isinstance(starts, bool):
            starts = [str(starts)]
        if isinstance(starts, list | tuple):
            starts = tuple(start.isoformat() if isinstance(start, date) else start for start in starts)
        return starts

    @model_validator(mode="after")
    def _walk(self) -> "SplitConfig":
        if not self.walk_forward:
            return self
        if self.test_start is not None:
            raise ValueError("walk_forward makes its own borders; leave validation_start and test_start out")
        if self.walks is not None:
            if not 1 <= self.walks <= MOST_WALKS:
                raise ValueError(f"walk_forward: {self.walks} windows; give 1 to {MOST_WALKS}, or dates as 2010-01-01")
            return self
        try:
            starts = [datetime.fromisoformat(start).replace(tzinfo=None) for start in self.walk_forward]
        except ValueError as error:
            raise ValueError(
                f"walk_forward: {error}; list ISO dates, e.g. 2010-01-01,2013-01-01, or give one whole number"
            ) from error
        for before, after in pairwise(starts):
            if not before < after:
                raise ValueError(f"walk_forward: dates must rise, but {after:%Y-%m-%d} follows {before:%Y-%m-%d}")
        return self

    @property
    def walks(self) -> int | None:
        """The number of windows where ``walk_forward`` gives that alone and their dates are still to be found."""
        (only,) = self.walk_forward if len(self.walk_forward) == 1 else ("",)
        return int(only) if only.isdecimal() else None


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
    """All ordered pairs of these tickers: N (N - 1) markets, each pair in both orders."""
    pairs: Listed = ()
    """Further pairs, each ``AAA/BBB``."""
    held_out: Listed = ()
    """Tickers that no training episode may hold, to see what a policy does on prices it never met."""

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return bool(self.tickers or self.pairs)

    @model_validator(mode="after")
    def _consistent(self) -> "UniverseConfig":
        left = [ticker for ticker in self.tickers if ticker not in self.held_out]
        if self.tickers and len(set(left)) < 2:
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
    noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise on standardised features, drawn anew for each step; not on a prior."""
    cost_factor: Annotated[float, Field(ge=1)] = 1.0
    """An episode's trading cost is ``env.train_cost_bps`` times a number drawn evenly from 1 to this."""


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


class CostsConfig(Section):
    """The real, fixed terms of trading: what fitness, backtest and report always use."""

    commission_bps: NonNegative = 1.0
    """Commission per side in basis points of the traded value."""
    slippage_bps: NonNegative = 1.0
    """Slippage per side in basis points of the traded value."""
    leverage: Positive = 1.5
    """Upper bound on gross exposure as a multiple of equity."""
    borrow_rate: NonNegative = 0.0675
    """Interest per year on borrowed cash."""
    short_rate: NonNegative = 0.005
    """Fee per year on the value sold short."""
    financing: Literal["longs", "gross"] = "longs"
    """``longs``: interest on longs beyond equity; ``gross``: on gross exposure beyond equity."""
    ruin_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """An account at or below this fraction of its start is closed for good."""

    @property
    def real_bps(self) -> float:
        """Total trading cost per side, in basis points."""
        return self.commission_bps + self.slippage_bps


class EnvConfig(Section):
    """The environment: timing, action mapping, episodes and the shaped training reward."""

    lag: Annotated[int, Field(ge=1, le=20)] = 1
    """Bars between the close a decision sees and its fill; 0 would be look-ahead."""
    mapping: Literal["direct", "neutral", "residual"] = "direct"
    """``direct``: one weight per leg; ``neutral``: one dollar-neutral tilt; ``residual``: a correction of the weights
    that ``features.prior`` gives, zero at the start, so that an untrained policy is the prior."""
    reach: Annotated[float, Field(gt=0, le=2)] = 0.25
    """Largest correction of a leg by ``residual``, as a multiple of the gross limit."""
    adjustment: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the way from the held to the wanted weights that one decision goes (partial adjustment)."""
    no_trade_band: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Half-width of the no-trade band as a fraction of equity: a leg nearer than this to its wanted weight is left
    alone, beyond it is traded to the band's edge."""
    episode_bars: Annotated[int, Field(ge=2)] = 256
    """Length of a training episode in bars; its end is a truncation."""
    risk_measure: Literal["variance", "downside", "drawdown"] = "variance"
    """What ``risk_penalty`` multiplies: squared log-growth, squared losses, or new maximum drawdown."""
    risk_penalty: NonNegative | None = None
    """Weight of the risk term; null: 1, or 0.05 for ``drawdown``."""
    turnover_penalty: NonNegative = 0.5
    """Extra cost in basis points at a squared turnover of 1."""
    train_cost_bps: NonNegative | None = None
    """Trading cost per side in training, never below the real cost; null: the real cost."""
    cvar_weight: NonNegative = 0.003
    """Weight of the tail term (95 % CVaR of the per-bar loss)."""
    leverage_cap: Positive | None = None
    """Gross limit of the policy itself, in training and wherever it trades: actions scale to it, and targets beyond it
    shrink to it. Never above ``costs.leverage``, which stays the ledger's limit; null: that limit alone."""

    @property
    def default_risk_penalty(self) -> float:
        """The default of ``risk_penalty`` for this risk measure."""
        return 0.05 if self.risk_measure == "drawdown" else 1.0


class NetworkConfig(Section):
    """Actor and critic: separate networks of the same shape.

    With an encoder everything that reads only the market is evaluated once per bar, however many accounts look at it:
    the encoder and all hidden layers up to the sums of the last, which the account joins.
    """

    hidden: tuple[Count, ...] = (64, 64)
    """Widths of the hidden layers; with an encoder the layers after it, and the account enters at the last one."""
    activation: Literal["tanh", "silu"] = "tanh"
    """Nonlinearity of the hidden layers, and of ``conv`` and ``transformer``."""
    initial_log_std: float = -0.5
    """Initial log standard deviation of the action before squashing."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the hidden units of actor and critic that are left out, drawn anew for each gradient step, and in
    gradient steps alone: rollouts, advantages and evaluation see the whole network. With an encoder, units of layers
    that are evaluated once per bar are left out for all samples of the bar."""
    encoder: Literal["mlp", "factored", "conv", "gru", "transformer"] = "mlp"
    """``mlp``: features and account enter together, per sample. Per bar: ``factored`` reads the bar's own features;
    ``conv``, ``gru`` and ``transformer`` read the last ``encoder_window`` bars."""
    encoder_window: Annotated[int, Field(ge=2, le=512)] = 60
    """Bars that ``conv``, ``gru`` and ``transformer`` read, the present one included; zeros before the first bar."""
    encoder_width: Count = 32
    """Width of ``conv``, ``gru`` and ``transformer`` and of their embedding."""
    encoder_layers: Annotated[int, Field(ge=1, le=16)] = 2
    """Layers of ``transformer``, which share the window among them; ``conv`` takes as many as cover the window."""
    encoder_heads: Count = 4
    """Attention heads of ``transformer``; must divide ``encoder_width``."""
    encoder_sharing: Literal["separate", "shared", "detached"] = "separate"
    """The critic's encoder: its own, or the actor's, trained by both (``shared``) or by the actor alone."""

    @model_validator(mode="after")
    def _shapes(self) -> "NetworkConfig":
        if self.dropout and not self.hidden:
            raise ValueError(f"dropout {self.dropout} needs hidden with at least one layer")
        if self.encoder == "mlp":
            return self
        if not self.hidden:
            raise ValueError(
                f"hidden must name at least one layer with encoder {self.encoder}: the account enters there"
            )
        if self.encoder == "transformer":
            if self.encoder_width % self.encoder_heads:
                raise ValueError(f"encoder_heads {self.encoder_heads} must divide encoder_width {self.encoder_width}")
            if self.encoder_layers >= self.encoder_window:
                raise ValueError(
                    f"encoder_layers {self.encoder_layers} must be below encoder_window {self.encoder_window}"
                )
        return self


class PPOConfig(Section):
    """Proximal policy optimisation (Schulman et al. 2017) with generalised advantage estimation."""

    num_envs: Count = 512
    """Accounts stepped side by side."""
    rollout_steps: Count = 64
    """Bars per account and PPO update; num_envs x rollout_steps samples are one batch."""
    epochs: Count = 4
    """Passes over the batch per update."""
    minibatch_size: Count = 8192
    """Samples per gradient step."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Discount per bar."""
    gae_lambda: Fraction = 0.9
    """Lambda of generalised advantage estimation."""
    clip: Positive = 0.2
    """Clip range of the probability ratio."""
    entropy_coeff: NonNegative = 0.0
    """Weight of the entropy bonus."""
    kl_stop: NonNegative = 0.0
    """An update ends with the epoch whose mean KL divergence from the policy that acted exceeds this; 0: never."""
    value_coeff: NonNegative = 0.5
    """Weight of the value loss."""
    accounts_per_start: Count = 1
    """Accounts that begin their episodes at the same bars and so share market rows; must divide ``num_envs``."""
    slab_bars: Count | None = None
    """With an encoder, minibatches hold all samples of randomly drawn slabs of this many bars, so that samples share
    bars; null: single bars for ``factored``, else 64. The network ``mlp`` draws single samples and ignores it."""

    @model_validator(mode="after")
    def _fits(self) -> "PPOConfig":
        if self.minibatch_size > self.num_envs * self.rollout_steps:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} exceeds the batch num_envs x rollout_steps = "
                f"{self.num_envs * self.rollout_steps}"
            )
        if self.num_envs % self.accounts_per_start:
            raise ValueError(f"accounts_per_start {self.accounts_per_start} must divide num_envs {self.num_envs}")
        return self


class DirectConfig(Section):
    """Ascent of the exact gradient of what the accounts earn (Moody and Saffell 2001; Lim, Zohren and Roberts 2019).

    The market does not answer and the ledger is differentiable, so the deterministic policy is run through windows of
    the training span and its objective differentiated back through the accounts. An update is ``steps`` gradient steps,
    each on windows drawn anew. ``env.episode_bars`` and the section ``ppo`` play no part.

    Without sampled actions little keeps it from fitting the noise of the span: ``network.dropout``, whose masks a
    window keeps, matters more than under PPO. Within a no-trade band there is no gradient, so ``env.no_trade_band``
    must be narrower than the moves of an untrained policy.
    """

    objective: Literal["sharpe", "reward"] = "sharpe"
    """``sharpe``: Sharpe ratio of net returns per bar, pooled over all windows, each in units of its market's noise,
    under the training costs and less 1e-4 x ``env.turnover_penalty`` x squared turnover; ``reward``: mean of the shaped
    reward that PPO sees."""
    windows: Annotated[int, Field(ge=2)] = 128
    """Windows per gradient step, drawn uniformly; each is an account that starts in cash."""
    window_bars: Annotated[int, Field(ge=2)] = 84
    """Bars of a window."""
    burn_bars: Annotated[int, Field(ge=0)] = 21
    """First bars of a window that do not count: the account only moves to where it wants to be."""
    steps: Count = 8
    """Gradient steps per update."""
    floor: Positive = 0.1
    """Standard deviation added in quadrature under the Sharpe ratio, as a share of equal weight's on the training span,
    so that cash is not a singularity."""
    worst_window: NonNegative = 0.0
    """Weight of the worst windows beside the pooled Sharpe ratio: of the smooth minimum over the windows' own."""

    @model_validator(mode="after")
    def _acts(self) -> "DirectConfig":
        if self.burn_bars > self.window_bars - 2:
            raise ValueError(f"burn_bars {self.burn_bars} must leave two bars of window_bars {self.window_bars}")
        if self.worst_window and self.objective != "sharpe":
            raise ValueError(f"worst_window {self.worst_window} needs objective sharpe")
        return self

    @property
    def bars_per_step(self) -> int:
        """Environment steps of one gradient step."""
        return self.windows * self.window_bars


class OptimizerConfig(Section):
    """How gradients become weights."""

    kind: Literal["adamw", "muon_mix"] = "adamw"
    """``adamw``, or ``muon_mix``: Muon for hidden matrices and AdamW for the rest."""
    learning_rate: Positive = 3e-4
    """Learning rate of AdamW; mutated by PBT."""
    muon_ratio: Positive = 1.0
    """Learning rate of Muon as a multiple of ``learning_rate`` (Muon's update is scaled to AdamW's RMS)."""
    encoder_lr_factor: Positive = 1.0
    """Learning rate of the market encoder as a multiple of everything else's (where an encoder has no weights, as in
    ``mlp`` and ``factored``, that of the first layers of actor and critic)."""
    weight_decay: NonNegative = 1e-4
    """Decoupled weight decay of the matrices."""
    critic_decay_factor: NonNegative = 1.0
    """Weight decay of the critic as a multiple of ``weight_decay``; 0: the actor alone decays (Liu et al. 2021)."""
    schedule: Literal["auto", "cosine", "constant"] = "auto"
    """After warm-up. ``auto``: ``constant`` where PBT mutates the learning rate, else ``cosine`` to the floor."""
    warmup_fraction: Fraction = 0.02
    """Share of all updates over which the learning rate rises linearly."""
    floor_fraction: Fraction = 0.1
    """Learning rate at the end of the cosine, as a share of its peak."""
    max_grad_norm: Positive = 0.5
    """Global-norm bound over all gradients of the module."""
    ema_half_life: NonNegative = 0.1
    """Half-life of the evaluation weights' moving average, as a share of a generation; 0 evaluates the raw weights."""


class PBTConfig(Section):
    """Population-based training (Jaderberg et al. 2017), one sub-population per pair."""

    arm: Literal["pbt", "random", "fixed"] = "pbt"
    """``pbt``; or, with the same budget, ``random``: every member keeps its first draw for the whole run; ``fixed``:
    every member trains at the run's own values. In both nothing is copied or moved, whatever the settings below say."""
    population: Count = 8
    """Members per pair."""
    reference: bool = True
    """In arm ``pbt`` the first member trains at the run's own values throughout: never replaced or moved, though it may
    be donor and may be archived. Alone (population 1) it is plain PPO; of two, the other is challenged by it."""
    iterations: Count = 24
    """Updates per member over the whole run."""
    interval: Count = 3
    """Updates per generation; must divide ``iterations``."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of a pair's members at the bottom that may be replaced, and at the top that may be donors."""
    replace_z: NonNegative = 1.0
    """A member is replaced when its paired gap to the donor exceeds this many standard errors."""
    frequencies: tuple[Count, ...] = (1,)
    """Multiple frequencies (MF-PBT, Doulazmi et al. 2025): the members but the reference are dealt into as many groups,
    and a group decides only at generations divisible by its number; e.g. [1, 4]. Weights migrate between groups."""
    explore: Literal["perturb", "pb2"] = "perturb"
    """How hyperparameters move: ``perturb``: at random by at most one step; ``pb2``: to where a Gaussian process of the
    fitness gained per generation promises most (Parker-Holder et al. 2020); it perturbs until it has enough rows, two
    per hyperparameter and two more."""
    on_drop: Literal["none", "rollback", "freeze"] = "none"
    """When a member falls below the best that its weights ever scored: ``rollback``: back to that state, with
    hyperparameters explored; ``freeze``: its market encoder rests for a generation (where an encoder has no weights,
    as in ``mlp`` and ``factored``, the first layers of actor and critic). Members just exploited are left alone."""
    drop_z: NonNegative = 1.0
    """A fall counts when its paired gap exceeds this many standard errors."""
    fitness: Literal["sharpe", "growth"] = "sharpe"
    """``sharpe``: floored Sharpe, median of rolling windows less one error; ``growth``: log growth less one."""
    fitness_over: Literal["cash", "prior"] | None = None
    """``prior``: fitness is what the metric gains over the account of ``features.prior``, less the error of the paired
    difference; ``cash``: the metric itself. Null: ``prior`` with ``env.mapping: residual``, else ``cash``."""
    min_gain: NonNegative | None = None
    """Least smoothed fitness over the prior that a pair's best snapshot must have; below it the prior is what the run
    trades and reports. Null: none is asked for."""
    max_overfitting: Fraction | None = None
    """Probability of overfitting on validation (CSCV) above which the prior is what the run trades and reports; null:
    whatever it is."""
    fitness_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Weight of the past in the exponential mean of fitness that ranks members; 0 ranks by the last evaluation."""
    window: Annotated[int, Field(ge=21)] = 126
    """Length of a rolling validation window in sessions."""
    window_step: Count = 21
    """Distance between rolling windows in sessions."""
    block: Count = 21
    """Block length of the circular block bootstrap in sessions."""
    bootstrap: Annotated[int, Field(ge=99)] = 499
    """Bootstrap resamples per standard error."""
    floor_volatility: NonNegative = 0.05
    """Volatility per year added in quadrature under the Sharpe ratio, so that tiny positions score near zero."""
    archive: Count = 8
    """Best snapshots kept per pair, of everything validation has seen."""
    survivors: Count = 3
    """Snapshots per pair that are back-tested; their equal-weight ensemble is the run's headline."""
    survivor_correlation: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Best first, streams that correlate this much with one already taken wait until no others remain."""
    patience: Count | None = None
    """A pair ends early when its best smoothed fitness has not risen by more than its own standard error for this many
    generations; null: never."""
    max_failures: Count = 3
    """Failures of one member in one generation after which it is lost and replaced by the ordinary rule."""
    straggler_factor: Annotated[float, Field(ge=1)] | None = 10.0
    """A member whose generation takes this many times the median of the finished ones counts as hung: its process is
    killed and the generation tried again; null: never. Barriers always wait."""
    straggler_seconds: NonNegative = 60.0
    """Seconds that no generation counts as hung before."""

    @model_validator(mode="after")
    def _divides(self) -> "PBTConfig":
        if self.iterations % self.interval:
            raise ValueError(f"interval {self.interval} must divide iterations {self.iterations}")
        if self.survivors > self.archive:
            raise ValueError(f"survivors {self.survivors} must not exceed archive {self.archive}")
        return self

    @model_validator(mode="after")
    def _grouped(self) -> "PBTConfig":
        groups = len(self.frequencies)
        if not groups or list(self.frequencies) != sorted(set(self.frequencies)):
            raise ValueError(f"frequencies {list(self.frequencies)} must rise, e.g. [1, 4]")
        dealt = self.population - self.reference
        if groups > 1 and dealt < 2 * groups:
            raise ValueError(
                f"frequencies {list(self.frequencies)} make {groups} groups of two members at least; population "
                f"{self.population} has {dealt} to deal{' beside the reference' if self.reference else ''}"
            )
        return self

    @property
    def generations(self) -> int:
        """Number of generations in the run."""
        return self.iterations // self.interval


class BacktestConfig(Section):
    """Scenarios in which survivors and baselines are run over the test span, beside the run's own terms."""

    cost_bps: tuple[NonNegative, ...] = (1.0, 5.0, 10.0)
    """Total trading costs per side in basis points."""
    lags: tuple[Annotated[int, Field(ge=1, le=20)], ...] = (1, 2)
    """Execution lags in bars."""
    leverages: tuple[Positive, ...] = ()
    """Gross limits of the ledger; empty: the run's own alone. The policies stay as they were trained."""
    borrow_rates: tuple[NonNegative, ...] = ()
    """Interest per year on borrowed cash; empty: the run's own alone."""
    vol_target: Positive = 0.15
    """Volatility per year that the volatility-targeted baseline aims at."""
    vol_half_life: Positive = 20.0
    """Half-life in days of its exponentially weighted volatility."""

    @field_validator("cost_bps", "lags", "leverages", "borrow_rates")
    @classmethod
    def _once(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        """Two scenarios of the same terms would be one row of the frames twice."""
        if len(set(values)) != len(values):
            raise ValueError("give each value once")
        return values


class ResourcesConfig(Section):
    """What the run may use of the machine. On CPU only ``torch_threads`` changes results, in their last bits."""

    dashboard: bool = False
    """Start Ray's dashboard on this machine's loopback, with what Prometheus needs; a cluster brings its own."""
    cpus: Count | None = None
    """CPUs given to Ray, on a cluster the most that the run asks it for; null: all, on a cluster a slot per member."""
    cpus_per_member: Positive = 1.0
    """CPUs that a training member occupies: a share of one, or whole ones."""
    gpus_per_member: Fraction = 0.0
    """Share of a GPU per member; 0 trains on CPU."""
    object_store_mb: Annotated[int, Field(ge=80)] = 512
    """Size of Ray's object store in MiB."""
    torch_threads: Count = 1
    """Torch threads per member."""
    usd_per_cpu_hour: NonNegative | None = None
    """Price of a CPU in USD per hour, for the estimate of ``--dry-run``; null: hours alone."""
    usd_per_gpu_hour: NonNegative | None = None
    """Price of a whole GPU with its machine in USD per hour; where GPUs are used it stands in for that of the CPUs."""

    @field_validator("cpus_per_member")
    @classmethod
    def _share_or_whole(cls, value: float) -> float:
        """Ray hands out shares of one CPU, or whole ones."""
        if value > 1 and value != int(value):
            raise ValueError(f"{value:g} must be a share of one CPU, or a whole number of them")
        return value

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray must have free for one member."""
        gpu = {"GPU": self.gpus_per_member} if self.gpus_per_member else {}
        return {"CPU": self.cpus_per_member, **gpu}


class StagesConfig(Section):
    """What training starts from.

    The stage ``base`` pre-trains the market encoder on the training spans of all pairs, or of the universe: quantiles
    of what both legs and the spread do after the fill of a decision, by the pinball loss. ``specialists`` go on from it
    on each pair's own training span. ``population`` is PBT, whose members start from that encoder. Neither reads a bar
    from validation on; what they forecast is no feature, and their output layer is left behind.
    """

    run: Annotated[tuple[Literal["base", "specialists", "population"], ...], BeforeValidator(_split_text)] = (
        "population",
    )
    """Stages of the run, in this order. ``population`` alone starts from random weights, or from ``base``."""
    base: str | None = None
    """Where the weights come from: a run's directory, its URI or ``hf://user/name``. With ``base`` or ``specialists``
    among the stages its encoder (or that of a folder RUN/base), so that the stage ``base`` is skipped. Without them a
    survivor's actor, with a critic and optimizer of its own: per pair that of rank 1, or one survivor's folder for all
    pairs. Features keep the scale of what was found there; null: from nothing."""
    base_digest: str | None = None
    """Digest of what ``base`` was; written, not set."""
    encoder: Literal["frozen", "tuned"] = "tuned"
    """What populations do with a pre-trained encoder: ``frozen``: it rests throughout, also the critic's; ``tuned``:
    it trains on, at ``optimizer.encoder_lr_factor`` times the learning rate, which PBT may move."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training span, from its start, that the encoder is pre-trained on; below 1 populations train on the
    rest alone, so that no policy learns from embeddings of bars whose future the encoder was fitted to (Bursa et al.
    2023). 1: both train on all of it."""
    horizons: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5, 21)
    """Bars after the fill over which returns are forecast, in units of trailing volatility; beside them the realised
    volatility of the next 21 bars."""
    epochs: Count = 20
    """Most passes of the base stage over its bars."""
    patience: Count = 3
    """Passes without a better loss on the last 15 % of the training span after which the base stage ends; the weights
    of the best pass are kept."""
    learning_rate: Positive = 1e-3
    """Learning rate of AdamW in the base stage."""
    weight_decay: NonNegative = 1e-2
    """Its decoupled weight decay, on matrices."""
    batch_bars: Count = 2048
    """Bars per gradient step."""
    specialist_epochs: Count = 5
    """Passes of a specialist over its pair's bars."""
    specialist_lr_factor: Positive = 0.1
    """Learning rate of specialists as a multiple of ``learning_rate``."""
    pull: NonNegative = 1e-2
    """Weight of half the squared distance to the base's weights in a specialist's loss."""

    @model_validator(mode="after")
    def _ordered(self) -> "StagesConfig":
        order = [stage for stage in STAGES if stage in self.run]
        if not order or list(self.run) != order:
            raise ValueError(
                f"run: {', '.join(self.run) or 'no stage'}: give each of {', '.join(STAGES)} once at most, "
                "in this order"
            )
        if "specialists" in self.run and "base" not in self.run and self.base is None and self.base_digest is None:
            raise ValueError(
                "run: specialists go on from a base: put base before them, or name one (--base-checkpoint)"
            )
        if self.share < 1 and not self.pretrain:
            raise ValueError(f"share {self.share}: needs the stage base before population")
        if list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(f"horizons {list(self.horizons)} must rise, e.g. [1, 5, 21]")
        return self

    @property
    def pretrain(self) -> bool:
        """Whether populations start from a pre-trained encoder."""
        return self.run != ("population",)

    @property
    def freezes(self) -> bool:
        """Whether the encoder rests while populations train."""
        return self.pretrain and self.encoder == "frozen"
