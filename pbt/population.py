"""One pair's population between barriers: collects results, decides, commits. Knows nothing of Tune."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.frames import append_jsonl
from pbt import fitness
from pbt.decisions import Decision, Standing, decide
from pbt.generation import training_key
from pbt.manifest import Member, Population, Snapshot
from pbt.run_dir import RunDir, member_name
from pbt.search import initial_values
from pbt.store import StateStore
from rayconf.run_config import RunConfig

LOST = float("-inf")


@dataclass(frozen=True)
class PairClock:
    """What the statistics need to know of a pair's validation span."""

    dates: np.ndarray
    """[K] label of each validation fill."""
    sessions_per_year: float


def start(run: RunConfig, pair: str, directory: RunDir, members: dict[str, Member] | None = None) -> Population:
    """A population before its first generation; committed, with its lineage rows.

    ``members`` come from elsewhere, with states that are kept for good; None: hyperparameters drawn, nothing trained.
    """
    if members is None:
        names = [member_name(index) for index in range(run.pbt.population)]
        members = {name: Member(None, initial_values(run, pair, i), name) for i, name in enumerate(names)}
    bases = {member.state: member.parent for member in members.values() if member.state is not None}
    population = Population(pair, 0, "running", members, bases=bases)
    rows = [
        _lineage_row(run, directory, pair, 0, Decision(name, "start", name, member.hyperparameters), member, None)
        for name, member in members.items()
    ]
    append_jsonl(directory.lineage_journal, rows)
    population.write(directory.manifest(pair))
    return population


class PairPopulation:
    """The members of one pair, their results since the last barrier, and what a barrier does with them."""

    def __init__(self, run: RunConfig, directory: RunDir, clock: PairClock, committed: Population) -> None:
        self._run, self._directory, self._clock = run, directory, clock
        self._store = StateStore(directory.states)
        self.committed = committed
        self._results: dict[str, dict[str, Any] | None] = {}
        self._failures: dict[str, int] = {}
        self.journaled: list[dict[str, Any]] = []
        """Progress rows of the last barrier."""

    @property
    def pair(self) -> str:
        """The pair."""
        return self.committed.pair

    @property
    def generation(self) -> int:
        """Generations finished."""
        return self.committed.generation

    @property
    def complete(self) -> bool:
        """Whether the last generation is committed."""
        return self.committed.status == "complete"

    @property
    def ready(self) -> bool:
        """Whether every member has reported or is lost."""
        return len(self._results) == len(self.committed.members)

    def reported(self, member: str) -> bool:
        """Whether the member needs no further work in this generation."""
        return member in self._results

    def lost(self, member: str) -> bool:
        """Whether the member failed too often in this generation."""
        return member in self._results and self._results[member] is None

    def report(self, member: str, result: dict[str, Any]) -> None:
        """Take the result of a finished generation."""
        attempt = self._failures.get(member, 0) + 1
        skipped = 0
        for row in result["iterations"]:
            row["attempt"] = attempt
            skipped += int(row.pop("skipped_steps"))
        if skipped:
            where = {"pair": self.pair, "member": member, "generation": result["generation"]}
            self._directory.event("nan", f"{skipped} gradient steps were not finite and were skipped", **where)
        self._results[member] = result

    def fail(self, member: str, reason: str) -> None:
        """Count a failure; a result whose save never finished is void. Beyond the limit the member is lost."""
        self._results.pop(member, None)
        self._failures[member] = self._failures.get(member, 0) + 1
        lost = self._failures[member] >= self._run.pbt.max_failures
        if lost:
            self._results[member] = None
        where = {"pair": self.pair, "member": member, "generation": self.generation + 1}
        self._directory.event("actor_lost" if lost else "retry", reason, **where)

    def commit(self) -> list[Decision]:
        """Close the barrier: decide, journal, write the manifest (the commit point), sweep old states."""
        generation = self.generation + 1
        standings = [self._standing(name) for name in sorted(self.committed.members)]
        decisions = decide(self._run, self.pair, generation, standings, lambda d, m: self._gap(d, m, generation))
        if all(self._results[name] is None for name in self._results):
            raise RuntimeError(f"{self.pair}: every member was lost in generation {generation}; see run.log")
        decisions = [self._without_lost_parent(decision) for decision in decisions]
        by_name = {standing.member: standing for standing in standings}
        members = {d.member: self._member(d, by_name) for d in decisions}
        snapshots = [self._snapshot(s) for s in standings if self._results[s.member] is not None and not s.broken]
        archive = self.committed.archived(snapshots, self._run.pbt.archive)
        self._journal(generation, decisions, members, by_name)

        before = self.committed
        seen = {result["state"] for result in self._results.values() if result is not None}
        self.committed = before.advanced(
            generation=generation,
            status="complete" if generation >= self._run.pbt.generations else "running",
            members=members,
            archive=archive,
            previous=tuple(sorted({m.state for m in before.members.values() if m.state is not None})),
        )
        self.committed.write(self._directory.manifest(self.pair))
        self._store.discard((before.states() | seen) - self.committed.states())
        self._results, self._failures = {}, {}
        return decisions

    def _standing(self, name: str) -> Standing:
        member, result = self.committed.members[name], self._results[name]
        if result is None:
            return Standing(name, LOST, 0.0, LOST, member.hyperparameters)
        score = self._smoothed((*member.fitness_history, result["fitness"]))
        return Standing(
            name, result["fitness"], result["fitness_se"], score, member.hyperparameters, bool(result["idle"])
        )

    def _smoothed(self, history: tuple[float, ...]) -> float:
        past = self._run.pbt.fitness_smoothing
        score = history[0]
        for value in history[1:]:
            score = past * score + (1 - past) * value
        return score

    def _without_lost_parent(self, decision: Decision) -> Decision:
        """A lost member without donor goes on from where it started; its operation says that it was lost."""
        if self._results[decision.parent] is not None:
            return decision
        return Decision(decision.member, "lost", decision.parent, decision.values)

    def _member(self, decision: Decision, standings: dict[str, Standing]) -> Member:
        result = self._results[decision.parent]
        parent = self.committed.members[decision.parent]
        if result is None:
            return Member(parent.state, decision.values, parent.parent, parent.fitness_history)
        history = (*parent.fitness_history, standings[decision.parent].fitness)
        return Member(result["state"], decision.values, decision.parent, history)

    def _snapshot(self, standing: Standing) -> Snapshot:
        result = self._results[standing.member]
        assert result is not None
        return Snapshot(
            state=result["state"],
            member=standing.member,
            generation=self.generation + 1,
            fitness=standing.fitness,
            fitness_se=standing.fitness_se,
            score=standing.score,
            idle=standing.idle,
            hyperparameters=standing.values,
        )

    def _gap(self, donor: str, member: str, generation: int) -> fitness.Gap:
        returns = [np.load(self._directory.validation_file(self.pair, name, generation)) for name in (donor, member)]
        key = (self._run.seed, self.pair, generation)
        clock = self._clock
        return fitness.paired_gap(*returns, clock.dates, clock.sessions_per_year, self._run.pbt, *key)

    def _journal(
        self,
        generation: int,
        decisions: list[Decision],
        members: dict[str, Member],
        standings: dict[str, Standing],
    ) -> None:
        progress = []
        for name in sorted(self._results):
            result = self._results[name]
            if result is not None:
                rows = [
                    {"run": self._directory.identity, "arm": "pbt", "window": 0, **row} for row in result["iterations"]
                ]
                rows[-1]["fitness_smoothed"] = standings[name].score
                progress += rows
        append_jsonl(self._directory.progress_journal, progress)
        self.journaled = progress
        rows = [
            _lineage_row(self._run, self._directory, self.pair, generation, d, members[d.member], standings[d.member])
            for d in decisions
        ]
        append_jsonl(self._directory.lineage_journal, rows)


def _lineage_row(
    run: RunConfig,
    directory: RunDir,
    pair: str,
    generation: int,
    decision: Decision,
    member: Member,
    standing: Standing | None,
) -> dict[str, Any]:
    """The decision at the end of ``generation``; hp_* and key are those of the generation that follows."""
    measured = standing is not None and standing.fitness > LOST
    row: dict[str, Any] = {
        "run": directory.identity,
        "arm": "pbt",
        "window": 0,
        "pair": pair,
        "generation": generation,
        "member": decision.member,
        "operation": decision.operation,
        "parent_member": decision.parent,
        "parent_generation": generation,
        "copied": "all" if decision.operation == "exploit" else "none",
        "fitness": standing.fitness if measured and standing else None,
        "fitness_se": standing.fitness_se if measured and standing else None,
        "parent_fitness": decision.parent_fitness,
        "gap": decision.gap.value if decision.gap else None,
        "gap_se": decision.gap.se if decision.gap else None,
        "key": f"{training_key(run, pair, decision.member, generation + 1):016x}",
        "state": member.state,
    }
    row.update({f"hp_{name}": value for name, value in decision.values.items()})
    if standing is not None:
        row.update({f"old_hp_{name}": value for name, value in standing.values.items()})
    return row
