"""A population without Tune, whose members report what a script says."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.frames import read_jsonl
from pbt import population as populations_of
from pbt.fitness import Calendar
from pbt.mirror import Mirror
from pbt.population import PairPopulation
from pbt.run_dir import RunDir
from pbt.store import ReturnStore, StateStore
from rayconf import load_config

PAIR = "SYNA/SYNB"
DATES = np.arange("2000-01-03", "2001-06-01", dtype="datetime64[D]").astype("datetime64[us]")[:300]


class Rehearsal:
    """A population whose members report what a script says instead of training."""

    def __init__(self, folder: Path, *assignments: str) -> None:
        self.run = load_config(
            "smoke",
            assignments=[
                "data.pairs=[SYNA/SYNB]",
                "pbt.population=4",
                "pbt.iterations=5",
                "pbt.archive=2",
                "pbt.survivors=2",
                *assignments,
            ],
        )
        self.directory = RunDir(folder / "run", self.run.identity, self.mirror_of(folder / "run"))
        self.directory.create()
        self.store = StateStore(self.directory.storage)
        self.calendar = Calendar([DATES], [252.0])
        committed = populations_of.start(self.run, PAIR, self.directory)
        self.population = PairPopulation(self.run, self.directory, self.calendar, committed)

    def mirror_of(self, path: Path) -> Mirror | None:
        """Where the run lies, if that is elsewhere."""
        return None

    def result(self, member: str, fitness: float, generation: int | None = None) -> dict[str, Any]:
        generation = generation or self.population.generation + 1
        start = self.population.committed.members[member].state
        root = torch.tensor(int(member[1:])) if start is None else self.store.load(start)["root"]
        weights = {"w": torch.tensor([hash((start, member, generation)) % 10**6, generation]), "root": root}
        rng = np.random.Generator(np.random.PCG64([generation, int(member[1:])]))
        returns = fitness / 100 + 0.01 * rng.standard_normal(len(DATES))
        ReturnStore(self.directory.storage).save((PAIR, member, generation), returns)
        return {
            "generation": generation,
            "state": self.store.save(weights),
            "fitness": fitness,
            "fitness_se": 0.1,
            "idle": False,
            "iterations": [
                {
                    "pair": PAIR,
                    "member": member,
                    "generation": generation,
                    "iteration": generation,
                    "skipped_steps": 0.0,
                    "fitness": fitness,
                }
            ],
        }

    def play(self, *fitness: float | None, idle: tuple[int, ...] = ()) -> dict[str, str]:
        """One generation; None: the member is lost. Returns the state each member ended with."""
        ended = {}
        for i, value in enumerate(fitness):
            member = f"m{i:02d}"
            if value is None:
                for _ in range(self.run.pbt.max_failures):
                    self.population.fail(member, "killed")
                continue
            result = {**self.result(member, value), "idle": i in idle}
            ended[member] = result["state"]
            self.population.report(member, result)
        assert self.population.ready
        self.population.commit()
        return ended

    def rows(self, generation: int) -> dict[str, dict[str, Any]]:
        """Lineage rows of a generation by member."""
        rows = read_jsonl(self.directory.lineage_journal)
        return {row["member"]: row for row in rows if row["generation"] == generation}
