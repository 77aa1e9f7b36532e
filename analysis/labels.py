"""How policies and figures are ordered, named and printed, in the terminal and in the report alike."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

BASELINES = (
    "equal_weight",
    "vol_target",
    "hold_a",
    "hold_b",
    "zscore",
    "zscore_gross1",
    "zscore_textbook",
    "static_gross",
    "cash",
)

_NAMES = {
    "ensemble": "ensemble (headline)",
    "ensemble_weighted": "ensemble by fitness",
    "equal_weight": "equal weight",
    "vol_target": "vol-targeted EW",
    "zscore": "z-score rule",
    "zscore_gross1": "z-score, gross 1",
    "zscore_textbook": "z-score, 60/2/0.5",
    "static_gross": "static same gross",
}

NOTHING = "-"


def percent(value: float) -> str:
    """A fraction as a percentage with one digit."""
    return f"{100 * value:.1f}%"


def plain(value: float) -> str:
    """A number with two digits; never a negative zero."""
    return f"{value + 0.0:.2f}" if abs(value) >= 0.005 else "0.00"


def probability(value: float, digits: int = 3) -> str:
    """A probability that an estimate gives: never certain, however it is rounded."""
    smallest = 10.0**-digits
    if value < smallest / 2:
        return f"< {smallest:.{digits}f}"
    return f"> {1 - smallest:.{digits}f}" if value >= 1 - smallest / 2 else f"{value:.{digits}f}"


def shown(value: float | None, form: Callable[[float], str]) -> str:
    """The value in a form, or a dash for null."""
    return NOTHING if value is None else form(value)


def interval(low: float | None, high: float | None) -> str:
    """Both ends of an interval, signed, so that zero inside is seen at a glance."""
    return NOTHING if low is None or high is None else f"[{low:+.2f}, {high:+.2f}]"


def policy_label(policy: str, pair: str = "", member: str | None = None, generation: int | None = None) -> str:
    """A policy in words: legs by their ticker, survivors with member and generation where known."""
    first, _, second = pair.partition("/")
    if policy in ("hold_a", "hold_b"):
        ticker = first if policy == "hold_a" else second
        return f"hold {ticker or policy[-1]}"
    if policy.startswith("survivor-"):
        origin = f" ({member} g{generation})" if member is not None else ""
        return f"survivor {policy.removeprefix('survivor-')}{origin}"
    return _NAMES.get(policy, policy.replace("_", " "))


def order(policy: str) -> tuple[int, int, str]:
    """Sort key of policies: ensembles, survivors by rank, known baselines, others by name."""
    if policy.startswith("ensemble"):
        return 0, 0, policy
    if policy.startswith("survivor-"):
        rank = policy.removeprefix("survivor-")
        return 1, int(rank) if rank.isdigit() else 0, policy
    if policy in BASELINES:
        return 2, BASELINES.index(policy), policy
    return 3, 0, policy


def in_order(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Summary rows in the order in which policies are shown."""
    return sorted(rows, key=lambda row: order(row["policy"]))


FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("cagr", "CAGR", percent),
    ("max_drawdown", "drawdown", percent),
    ("volatility", "vol", percent),
    ("avg_turnover", "turnover", percent),
    ("gross_exposure", "gross", plain),
    ("cost_paid", "cost/yr", percent),
    ("alpha", "alpha", percent),
    ("beta", "beta", plain),
)
"""Summary column, heading and form of the figures beside the Sharpe ratio."""
