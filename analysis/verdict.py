"""The verdict on a pair: what its evidence allows to be said, as one sentence and no more.

The claim ``above`` is an intersection-union test (Berger 1982): the headline must beat every one of cash, equal
weight and ``vol_target`` on the test span, each by a paired test at 95 %, so that the level needs no correction for
the number of baselines. ``vol_target`` is among them because a policy that merely times volatility must not pass.
The p-values are adjusted for the pairs of the run (Holm 1979) and for the looks at the test span (Bonferroni), and
the deflated Sharpe ratio of the best survivor on validation must reach 0.95. ``below`` is claimed by the paired test
with equal weight, adjusted alike; the sentence may also say below the baseline that is hardest to beat, and below those
of ``OTHERS``. Where all survivors are idle it says that no policy beat cash, and where the pair trades its prior or its
base checkpoint it begins with that and the reason. Everything else is worded as noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from analysis.labels import plain, policy_label, probability

BARS = ("cash", "equal_weight", "vol_target")
"""Baselines that the headline must all beat before it is said to be above anything."""
OTHERS = ("static_gross", "zscore")
"""Baselines that claims do not ask for, yet a claim names those that beat the headline."""
SIGNIFICANCE = 0.05
"""Two-sided level of every paired test: one that is passed has a 95 % interval above 0."""
DEFLATED = 0.95
"""The deflated Sharpe ratio on validation from which a claim is allowed."""
IDLE_GROSS = 0.05
"""Mean gross exposure on validation below which a policy counts as idle."""
FALLBACKS = {"prior": "prior", "base": "base checkpoint"}
"""What a pair can fall back to, in words."""
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
    def noise(self) -> bool:
        """Whether 0 lies in the interval, or there is none."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high

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
        spa_p: p-value of Hansen's test that survivors and ensemble do not beat the best of cash, equal weight and
            ``vol_target``.
        superior_to: Baselines that the headline beats by the stepwise test.
        track_record: Sessions needed before the Sharpe ratio seen differs from 0; None where it is not positive.
        looks: Reads of the test span.
        deflated: Deflated Sharpe ratio on validation by policy: survivors and ensemble.
        between: Paired Sharpe difference of every two survivors, as ``survivor-1 less survivor-2``; p adjusted over
            them.
        detectable: True Sharpe difference to the binding baseline, per year, that this span finds four times in five.
        idle: Whether every survivor is idle: validation preferred cash.
        fallback: Why prior or base are judged, which no training of this run made; empty: survivors are.
        fallback_to: Which of them, ``prior`` or ``base``.
        pairs: Pairs of the run that p-values are adjusted for.
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
    between: Mapping[str, Difference] = field(default_factory=dict)
    detectable: float | None = None
    idle: bool = False
    fallback: str = ""
    fallback_to: str = ""
    pairs: int = 1
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


def judged(found: Sequence[Evidence]) -> list[Evidence]:
    """Adjust the p-values of all pairs of a run together, and decide every claim.

    Args:
        found: Evidence of each pair with p-values as tested, not adjusted.

    Returns:
        The same with adjusted p-values and claims. The p-value of ``above`` is the largest of the baselines to beat
        (intersection-union), adjusted over pairs (Holm) and times the looks; that of ``below`` is equal weight's.
    """
    looks = [one.looks for one in found]
    above = holm([_p_of_claim(one) for one in found], looks)
    below = holm(
        [one.against["equal_weight"].p_below if "equal_weight" in one.against else 1.0 for one in found], looks
    )
    against: list[dict[str, Difference]] = [dict(one.against) for one in found]
    for name in sorted({name for one in against for name in one}):
        tested = [i for i, one in enumerate(against) if name in one and one[name].p is not None]
        adjusted = holm([against[i][name].p or 0.0 for i in tested], [looks[i] for i in tested])
        for i, p in zip(tested, adjusted, strict=True):
            against[i][name] = replace(against[i][name], p=p)
    result = []
    for one, differences, p, p_below in zip(found, against, above, below, strict=True):
        changed = replace(one, against=differences, p=p, p_below=p_below, pairs=len(found))
        result.append(replace(changed, claim=_claim(changed)))
    return result


def holm(p_values: Sequence[float], looks: Sequence[int] | None = None) -> list[float]:
    """p-values adjusted for their number (Holm 1979), each times its number of looks (Bonferroni), at most 1."""
    from statsmodels.stats.multitest import multipletests

    # One p-value is its own; statsmodels would collect garbage for it all the same.
    adjusted = multipletests(list(p_values), method="holm")[1] if len(p_values) > 1 else p_values
    return [min(1.0, float(p) * max(1, n)) for p, n in zip(adjusted, looks or [1] * len(p_values), strict=True)]


def _p_of_claim(found: Evidence) -> float:
    if any(name not in found.against for name in BARS):
        return 1.0
    return max(found.against[name].p_above for name in BARS)


def _claim(found: Evidence) -> str:
    if found.sharpe.low is None:
        return SHORT
    if found.idle:
        return IDLE
    if found.p is not None and found.p <= SIGNIFICANCE and (found.deflated_sharpe or 0.0) >= DEFLATED:
        return ABOVE
    if found.p_below is not None and found.p_below <= SIGNIFICANCE:
        return BELOW
    return NOISE


def _sentence(found: Evidence) -> str:
    name = found.binding()
    figures = [f"Sharpe {plain(found.sharpe.value)}{_interval(found.sharpe.low, found.sharpe.high)}"]
    if name is not None and name != "cash":
        bar = found.against[name]
        figures.append(f"difference to {_name(name)} {bar.value:+.2f}{_interval(bar.low, bar.high)}")
    if found.deflated_sharpe is not None:
        trials = f"{found.effective_trials} effective of {found.trials} trials"
        figures.append(f"validation deflated Sharpe {probability(found.deflated_sharpe, 2)} over {trials}")
    worse = [_name(other) for other in OTHERS if other in found.against and _beaten(found.against[other])]
    but = f", but below {' and '.join(worse)}" if worse and found.claim in (ABOVE, NOISE) else ""
    told = f"{_words(found, name)}{but}: {'; '.join(figures)}"
    if not found.fallback:
        return told
    return f"trades its {FALLBACKS[found.fallback_to]}, because {found.fallback}; {told}"


def _beaten(difference: Difference) -> bool:
    return difference.value < 0 and not difference.noise and (difference.p is not None and difference.p <= SIGNIFICANCE)


def _words(found: Evidence, binding: str | None) -> str:
    """What may be said, before the figures."""
    if found.claim == SHORT:
        return f"not distinguishable from anything over {found.sessions} sessions"
    if found.claim == IDLE:
        return "no policy beat cash on validation"
    if found.claim == ABOVE:
        return f"above {_listed(BARS)}"
    if found.claim == BELOW:
        return "below equal weight"
    if binding is None:
        return "not distinguishable from luck, for there is no baseline to compare with"
    bar = found.against[binding]
    if bar.noise:
        return f"not distinguishable from {_name(binding)}"
    if bar.value < 0:
        if bar.p is not None and bar.p <= SIGNIFICANCE and binding != "equal_weight":
            return f"below {_name(binding)}"
        return f"not distinguishable from {_name(binding)} after correction for {_multiplicity(found)}"
    if found.p is None or found.p > SIGNIFICANCE:
        return f"not distinguishable from {_name(binding)} after correction for {_multiplicity(found)}"
    return f"not distinguishable from the luck of selection, though above {_listed(BARS)} on test"


def _multiplicity(found: Evidence) -> str:
    looks = "1 look" if found.looks == 1 else f"{found.looks} looks"
    return f"{found.pairs} {'pair' if found.pairs == 1 else 'pairs'} and {looks} at test"


def _name(policy: str) -> str:
    return policy_label(policy)


def _listed(policies: Sequence[str]) -> str:
    names = [_name(policy) for policy in policies]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f", 95 % interval {plain(low)} to {plain(high)}"
