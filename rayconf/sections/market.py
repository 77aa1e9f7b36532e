"""Where prices come from, how they are split, and what trading costs."""

from datetime import date, datetime
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rayconf.sections.section import Count, Fraction, Listed, NonNegative, Positive, Section

DEFAULT_FRACTIONS = (0.6, 0.2, 0.2)
"""Shares of train, validation and test of one's own prices."""

MOST_WALKS = 99
"""Windows of a walk-forward at most."""


class DataConfig(Section):
    """Where prices come from. Without a directory the embedded synthetic market is used."""

    dir: str | None = None
    """Directory or ``hf://datasets/OWNER/NAME`` with one CSV or Parquet file per ticker; null: synthetic."""
    pairs: Listed = ("SYNA/SYNB", "SYNC/SYND")
    """Pairs to train, each ``AAA/BBB``; every pair has its own population, unless ``pbt.pooled``."""
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
