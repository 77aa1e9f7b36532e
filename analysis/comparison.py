"""Runs grouped by what differs in their configs, and the difference between two groups, paired by seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.collection import FinishedRun
from analysis.labels import NOTHING
from analysis.paired import SeedComparison, between_seeds

PRICES = ("data", "synthetic", "split")
"""Sections of a config that decide which prices and which days the test span has."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        label: ``A``, ``B`` and so on, the reference first.
        settings: Where this group's settings differ from another group's, by dotted path.
        runs: Its runs, one per seed, by seed.
        repeats: Runs that repeat a seed of the group; they are listed and count in no mean.
    """

    label: str
    settings: Mapping[str, str]
    runs: tuple[FinishedRun, ...]
    repeats: tuple[FinishedRun, ...]

    @property
    def title(self) -> str:
        """The label, with the settings where they are few."""
        if not 0 < len(self.settings) <= 2:
            return self.label
        return f"{self.label} ({', '.join(f'{path}={value}' for path, value in self.settings.items())})"

    def rows(self, pair: str, policy: str | None = None) -> dict[int, dict[str, Any]]:
        """By seed, the row of a pair on test under base terms: the headline's, or a policy's by name."""
        found = {}
        for run in self.runs:
            rows = run.headline() if policy is None else {row["pair"]: row for row in run.on_test(policy)}
            if pair in rows:
                found[run.seed] = rows[pair]
        return found


def seed_difference(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[SeedComparison, int] | None:
    """First less second, paired by seed, and in how many seeds first is better; None without a common seed."""
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    better = sum(first[seed] > second[seed] for seed in seeds)
    return between_seeds([first[seed] for seed in seeds], [second[seed] for seed in seeds]), better


def market_follows_seed(runs: Iterable[FinishedRun]) -> bool:
    """Whether several seeds each have a synthetic market of their own."""
    seeds = {(run.seed, run.settings.get("synthetic.seed")) for run in runs if run.settings.get("data.dir") == "null"}
    return len(seeds) > 1 and all(str(seed) == market for seed, market in seeds)


def name_of(index: int) -> str:
    """0 is A, 25 is Z, 26 is AA."""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return letters


def group_runs(runs: Sequence[FinishedRun], reference: str | None = None) -> tuple[list[Group], list[str]]:
    """Put runs that differ in their seed alone together.

    Args:
        runs: Complete runs.
        reference: Name of a run whose group comes first; None: the first run by name.

    Returns:
        The groups, and the dotted paths in which they differ. A ``synthetic.seed`` that follows the seed counts as one.
    """
    aside = {"synthetic.seed"} if market_follows_seed(runs) else set()
    paths = sorted({path for run in runs for path in run.settings} - aside)
    differing = [path for path in paths if len({run.settings.get(path) for run in runs}) > 1]
    found: dict[tuple[str, ...], list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.name != reference, run.name)):
        found.setdefault(tuple(run.settings.get(path, NOTHING) for path in differing), []).append(run)
    groups = []
    for index, (values, members) in enumerate(found.items()):
        firsts: dict[int, FinishedRun] = {}
        for run in members:
            firsts.setdefault(run.seed, run)
        own = tuple(firsts[seed] for seed in sorted(firsts))
        repeats = tuple(run for run in members if firsts[run.seed] is not run)
        groups.append(Group(name_of(index), dict(zip(differing, values, strict=True)), own, repeats))
    return groups, differing


def same_prices(first: Group, second: Group) -> bool:
    """Whether two configurations were tested on the same prices and days, so that their figures can be paired."""
    for path in first.settings:
        section, _, leaf = path.partition(".")
        if section in PRICES and leaf not in ("pairs", "transferred") and first.settings[path] != second.settings[path]:
            return False
    return True
