"""The verdict on a pair: what its evidence allows to be said, as one sentence and no more.

The claim ``above`` is an intersection-union test (Berger 1982): the headline must beat every one of cash, equal
weight and ``vol_target`` on the test span, each by a paired test at 95 %, so that the level needs no correction for
the number of baselines. ``vol_target`` is among them because a policy that merely times volatility must not pass.
The p-values are adjusted for the pairs of the run (Holm 1979) and for the looks at the test span (Bonferroni), and
the deflated Sharpe ratio of the best survivor on validation must reach 0.95. Everything else is worded as noise.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


BARS = ("cash", "equal_weight", "vol_target")
"""Baselines that the headline must all beat before it is said to be above anything."""
SIGNIFICANCE = 0.05
"""Two-sided level of every paired test: one that is passed has a 95 % interval above 0."""
DEFLATED = 0.95
"""The deflated Sharpe ratio on validation from which a claim is allowed."""
ABOVE, BELOW, NOISE, IDLE, SHORT = "above", "below", "not distinguishable", "idle", "too short"


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; the ends are None where there is too little data for one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Sharpe ratio of one policy less another's, paired by session, per year.

    Attributes:
        value: The difference.
        low: Lower end of its 95 % interval, of this comparison alone; None under 20 sessions.
        high: Upper end.
        p: Two-sided p-value; in ``Evidence`` adjusted over the pairs of the run and for the looks at test.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None

    @property
    def p_above(self) -> float:
        """The p-value as evidence that the difference is positive; 1 where it is not."""
        return self.p if self.p is not None and self.value > 0 else 1.0

    @property
    def p_below(self) -> float:
        """The p-value as evidence that the difference is negative; 1 where it is not."""
        return self.p if self.p is not None and self.value < 0 else 1.0


@dataclass(frozen=True)
class Evidence:
    """What the statistics say of the headline of one pair, on test under base terms unless said otherwise.

    Attributes:
        pair: The pair, AAA/BBB.
        policy: The headline: ``ensemble``, or ``survivor-1`` where there is none.
        sessions: Sessions of the test span.
        sharpe: Annualised Sharpe ratio, stationary bootstrap.
        cagr: Compound growth per year.
        max_drawdown: Maximum drawdown, from -1 to 0.
        probabilistic_sharpe: Probability that the true Sharpe ratio is positive.
        against: Paired Sharpe difference by baseline, p adjusted.
        deflated_sharpe: Deflated Sharpe ratio of the first survivor on validation.
        trials: Snapshots that selection saw on validation.
        effective_trials: Clusters of their return streams.
        overfitting: Probability of backtest overfitting on the archive: under PBT a lower bound.
        spa_p: Largest p-value of Hansen's test of survivors and ensemble against the baselines to beat.
        superior_to: Baselines that the headline beats by the stepwise test.
        track_record: Sessions needed before the Sharpe ratio seen differs from 0; None where it is not positive.
        looks: Reads of the test span.
        deflated: Deflated Sharpe ratio on validation by policy: survivors and ensemble.
        p: p-value of the claim ``above``, adjusted over pairs and for looks.
        p_below: p-value of the claim ``below``, adjusted alike.
        claim: ``above``, ``not distinguishable``, ``below``, ``idle`` or ``too short``.
    """

    pair: str
    policy: str
    sessions: int
    sharpe: Interval
    cagr: Interval
    max_drawdown: Interval
    probabilistic_sharpe: float | None
    against: Mapping[str, Difference]
    deflated_sharpe: float | None
    trials: int
    effective_trials: int
    overfitting: float | None
    spa_p: float | None
    superior_to: tuple[str, ...]
    track_record: float | None
    looks: int
    deflated: Mapping[str, float] = field(default_factory=dict)
    p: float | None = None
    p_below: float | None = None
    claim: str = NOISE

    def binding(self) -> str | None:
        """The baseline that is hardest to beat, by the lower end of the difference; None without a comparison."""
        compared = [name for name in BARS if name in self.against]
        return min(compared, key=lambda name: (_end(self.against[name]), name), default=None)

    def sentence(self) -> str:
        """The verdict: one plain sentence that says what the claim allows, and no more."""
        return _sentence(self)

    def as_dict(self) -> dict[str, Any]:
        """Every field by name, JSON-ready; the sentence is not among them."""
        fields = asdict(self)
        fields["superior_to"] = list(self.superior_to)
        fields["binding"] = self.binding()
        return fields


def _end(difference: Difference) -> float:
    return difference.value if difference.low is None else difference.low


def _sentence(found: Evidence) -> str:
    low, high = found.sharpe.low, found.sharpe.high
    span = "" if low is None or high is None else f", 95 % interval {low:.2f} … {high:.2f}"
    return f"{found.claim} ({found.binding()}): Sharpe {found.sharpe.value:.2f}{span}"
