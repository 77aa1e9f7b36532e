"""The population, the backtest, the machine and the stages of a run."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rayconf.sections.section import Count, Fraction, NonNegative, Positive, Section, split_text

STAGES = ("base", "specialists", "population")
"""Stages of a run, in order."""


class PBTConfig(Section):
    """Population-based training (Jaderberg et al. 2017), one sub-population per pair unless ``pooled``."""

    arm: Literal["pbt", "random", "fixed"] = "pbt"
    """``pbt``; or, with the same budget, ``random``: every member keeps its first draw for the whole run; ``fixed``:
    every member trains at the run's own values. In both nothing is copied or moved, whatever the settings below say."""
    population: Count = 8
    """Members per pair, or in all where ``pooled``."""
    pooled: bool = False
    """One population for all pairs of the run, which trains on the universe under the first pair's name: fitness is the
    mean of the metric over the pairs, less the error of that mean. Needs ``universe.tickers`` or ``universe.pairs``.
    Back-tests, verdicts and ``max_overfitting`` stay those of each pair; ``min_gain`` asks the mean, for all alike."""
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
    fitness_over: Literal["cash", "prior", "base"] | None = None
    """``prior``: fitness is what the metric gains over the account of ``features.prior``, less the error of the paired
    difference; ``base``: the same over the policy of the base checkpoint (``stages.base``) that the pair started from;
    ``cash``: the metric itself. Null: ``prior`` with ``env.mapping: residual``, else ``cash``."""
    min_gain: NonNegative | None = None
    """Least smoothed fitness over the prior, or over the base, that a pair's best snapshot must have; below it prior or
    base are what the run trades and reports. Null: none is asked for."""
    max_overfitting: Fraction | None = None
    """Probability of overfitting on validation (CSCV) above which the prior, or under ``fitness_over: base`` the base,
    is what the run trades and reports; null: whatever it is."""
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
    archive_of: Literal["all", "last"] = "all"
    """Generations whose snapshots may survive: ``all``, or the ``last`` alone. Choosing among many on a short
    validation span is mostly luck; what is trained for a fixed time needs no choice."""
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
    object_store_mb: Annotated[int, Field(ge=80)] | None = None
    """Size of Ray's object store in MiB; null: 512, and what a universe or resampled histories take of it."""
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

    run: Annotated[tuple[Literal["base", "specialists", "population"], ...], BeforeValidator(split_text)] = (
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
    def fine_tunes(self) -> bool:
        """Whether populations start from the actor of a base checkpoint."""
        return not self.pretrain and (self.base is not None or self.base_digest is not None)

    @property
    def freezes(self) -> bool:
        """Whether the encoder rests while populations train."""
        return self.pretrain and self.encoder == "frozen"
