"""One pair's population between barriers: collects results, decides, commits. Knows nothing of Tune."""

from dataclasses import replace
from typing import Any

import numpy as np

from analysis.frames import append_jsonl
from pbt import fitness
from pbt.decisions import decide
from pbt.lineage import lineage_row, progress_rows
from pbt.manifest import Member, Observation, Peak, Population, Snapshot
from pbt.recovery import step_back
from pbt.run_dir import RunDir, member_name
from pbt.search import initial_values
from pbt.standings import LOST, Decision, Standing
from pbt.store import Evaluated, ReturnStore, StateStore
from rayconf.run_config import RunConfig

HISTORY = 512
"""Observations kept for PB2, the latest; older ones say little of the present and fits cost their cube."""


def start(
    run: RunConfig, pair: str, directory: RunDir, members: dict[str, Member] | None = None, copied: str = "none"
) -> Population:
    """A population before its first generation; committed, with its lineage rows.

    ``members`` come from elsewhere, with states that are kept for good; None: hyperparameters drawn, nothing trained.
    ``copied`` is what the lineage says that they took from there.
    """
    if members is None:
        names = [member_name(index) for index in range(run.pbt.population)]
        members = {name: Member(None, initial_values(run, pair, i), name) for i, name in enumerate(names)}
    bases = {member.state: member.parent for member in members.values() if member.state is not None}
    population = Population(pair, 0, "running", members, bases=bases)
    rows = [
        lineage_row(run, directory.identity, pair, 0, decision, members[decision.member], window=directory.window)
        for decision in (Decision(n, "start", n, m.hyperparameters, copied=copied) for n, m in members.items())
    ]
    append_jsonl(directory.lineage_journal, rows)
    population.write(directory.manifest(pair))
    return population


class PairPopulation:
    """The members of one pair, their results since the last barrier, and what a barrier does with them.

    One that is pooled over the pairs of a run is that of the first of them: its results count once, and its gaps are
    means over all pairs.

    Args:
        run: The run.
        directory: Its directory.
        calendar: Of the validation fills of the pairs that the population is evaluated on.
        committed: Its last commit.
    """

    def __init__(self, run: RunConfig, directory: RunDir, calendar: fitness.Calendar, committed: Population) -> None:
        self._run, self._directory, self._calendar = run, directory, calendar
        self._store, self._returns = StateStore(directory.storage), ReturnStore(directory.storage)
        self.committed = committed
        self._results: dict[str, dict[str, Any] | None] = {}
        self._failures: dict[str, int] = {}
        self._strays: set[str] = set()  # states of generations that were taken back
        self._read: dict[Evaluated, np.ndarray] = {}  # returns on validation, while a barrier is decided
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
        """Take the result of a finished generation; that of a generation taken back meanwhile is void."""
        if result["generation"] != self.generation + 1:
            self._strays.add(result["state"])
            return
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
        generation, before, pbt = self.generation + 1, self.committed, self._run.pbt
        standings = [self._standing(name) for name in sorted(before.members)]
        if all(standing.lost for standing in standings):
            raise RuntimeError(f"{self.pair}: every member was lost in generation {generation}; see run.log")
        snapshots = [self._snapshot(s) for s in standings if not s.broken]
        patience, mark = before.progress(snapshots)
        stop = generation >= pbt.generations or (pbt.patience is not None and patience >= pbt.patience)
        observations = self._observations(standings)
        self._read = self._read_returns(generation)
        decisions = decide(
            self._run,
            self.pair,
            generation,
            standings,
            lambda donor, member: self._gap((donor, generation), (member, generation)),
            fall=self._fall,
            observations=observations,
            stop=stop,
        )
        earlier = before if pbt.archive_of == "all" else replace(before, archive=())
        by_name = {standing.member: standing for standing in standings}
        members = {d.member: self._member(d, by_name) for d in decisions}
        self._journal(generation, decisions, members, by_name)

        seen = {result["state"] for result in self._results.values() if result is not None}
        self.committed = before.advanced(
            generation=generation,
            status="complete" if stop else "running",
            members=members,
            archive=earlier.archived(snapshots, pbt.archive),
            patience=patience,
            mark=mark,
            observations=observations,
            previous=tuple(sorted(before.own_states())),
        )
        before.write(self._directory.manifest_before(self.pair))
        self.committed.write(self._directory.manifest(self.pair))
        self._directory.push()
        self._store.discard((before.states() | seen | self._strays) - self.committed.states())
        self._results, self._failures, self._strays, self._read = {}, {}, set(), {}
        return decisions

    def mend(self) -> bool:
        """Whether a state of the commit was found damaged; the pair has then gone back by one generation.

        Raises:
            DamagedRunError: It cannot go back.
        """
        damaged = self._store.damaged(self.committed.own_states())
        if damaged:
            self._strays |= self.committed.states() | {r["state"] for r in self._results.values() if r is not None}
            self.committed = step_back(self._directory, self.committed, damaged)
            self._directory.push()
            self._results, self._failures = {}, {}
        return bool(damaged)

    def _standing(self, name: str) -> Standing:
        member, result = self.committed.members[name], self._results[name]
        if result is None:
            return Standing(name, LOST, 0.0, LOST, member.hyperparameters, peak=member.peak)
        score = fitness.smoothed((*member.fitness_history, result["fitness"]), self._run.pbt.fitness_smoothing)
        idle = bool(result["idle"])
        return Standing(name, result["fitness"], result["fitness_se"], score, member.hyperparameters, idle, member.peak)

    def _observations(self, standings: list[Standing]) -> tuple[Observation, ...]:
        """The history for PB2 with this generation's rows: of members whose start has a fitness to compare with."""
        if self._run.pbt.arm != "pbt" or self._run.pbt.explore != "pb2":
            return ()
        rows = [*self.committed.observations]
        for standing in standings:
            past = self.committed.members[standing.member].fitness_history
            if not standing.lost and past and past[-1] > fitness.BROKEN:
                change = None if standing.broken else standing.fitness - past[-1]
                rows.append(Observation(self.generation + 1, standing.member, standing.values, change))
        return tuple(rows[-HISTORY:])

    def _member(self, decision: Decision, standings: dict[str, Standing]) -> Member:
        """The member as the decision leaves it."""
        old, values = self.committed.members[decision.member], decision.values
        if decision.operation == "lost":
            return replace(old, hyperparameters=values, frozen=False)
        if decision.operation == "rollback":
            assert old.peak is not None
            peak, history = old.peak, old.fitness_history[: old.peak.evaluations]
            return Member(peak.state, values, peak.member, peak.generation, history, peak)
        result = self._results[decision.parent]
        assert result is not None, "nobody continues from a member without a result"
        parent, standing = self.committed.members[decision.parent], standings[decision.parent]
        return Member(
            state=result["state"],
            hyperparameters=values,
            parent=decision.parent,
            trained=self.generation + 1,
            fitness_history=(*parent.fitness_history, standing.fitness),
            peak=self._peak(parent, standing, result["state"]),
            frozen=decision.operation == "freeze",
        )

    def _peak(self, parent: Member, standing: Standing, state: str) -> Peak | None:
        if self._run.pbt.arm != "pbt" or self._run.pbt.on_drop == "none":
            return None
        if not standing.eligible or (parent.peak is not None and parent.peak.fitness >= standing.fitness):
            return parent.peak
        evaluations = len(parent.fitness_history) + 1
        return Peak(state, standing.member, self.generation + 1, standing.fitness, evaluations)

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

    def _read_returns(self, generation: int) -> dict[Evaluated, np.ndarray]:
        """Returns of this generation's evaluations, read side by side where they are far."""
        reported = [name for name, result in sorted(self._results.items()) if result is not None]
        evaluations = [(pair, name, generation) for name in reported for pair in self._run.judges(self.pair)]
        read = zip(evaluations, self._returns.load_each(evaluations), strict=True)
        return {of: returns for of, returns in read if returns is not None}

    def _gap(self, donor: tuple[str, int], member: tuple[str, int]) -> fitness.Gap:
        """Paired gap between two evaluations, each named by (member, generation)."""
        theirs, ours = (
            [
                self._read[of] if (of := (pair, *which)) in self._read else self._returns.load(of)
                for pair in self._run.judges(self.pair)
            ]
            for which in (donor, member)
        )
        key = (self._run.seed, self.pair, self.generation + 1)
        return fitness.paired_gap(theirs, ours, self._calendar, self._run.pbt, *key)

    def _fall(self, name: str) -> fitness.Gap | None:
        peak = self.committed.members[name].peak
        if peak is None:
            return None
        return self._gap((peak.member, peak.generation), (name, self.generation + 1))

    def _journal(
        self,
        generation: int,
        decisions: list[Decision],
        members: dict[str, Member],
        standings: dict[str, Standing],
    ) -> None:
        run, identity, window = self._run, self._directory.identity, self._directory.window
        progress = [
            row
            for name, result in sorted(self._results.items())
            if result is not None
            for row in progress_rows(run, identity, standings[name], result["iterations"], window)
        ]
        append_jsonl(self._directory.progress_journal, progress)
        self.journaled = progress
        rows = [
            lineage_row(run, identity, self.pair, generation, d, members[d.member], standings[d.member], window)
            for d in decisions
        ]
        append_jsonl(self._directory.lineage_journal, rows)
