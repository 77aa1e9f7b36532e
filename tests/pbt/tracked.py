"""A rehearsed run with its trackers in a process of its own, which can be killed as a driver is.

``python -m tests.pbt.tracked FOLDER LAST [end|kill] [a.b=value ...]``: play generations up to LAST, from the last
commit if there is one. ``kill``: once the trackers have all but the last generation, commit that too and die.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pbt import wandb_runs
from pbt.manifest import Population
from pbt.population import PairPopulation
from pbt.recovery import recover
from pbt.run_dir import RunDir
from pbt.store import StateStore
from pbt.tracking import Tracking
from tests.pbt.rehearsal import PAIR, Rehearsal

STEPS = 64
"""Environment steps per generation."""


class Tracked(Rehearsal):
    """A rehearsal whose progress rows have what trackers read, and which can go on where it was killed."""

    def __init__(self, folder: Path, *assignments: str) -> None:
        if not (folder / "run").exists():
            super().__init__(folder, *assignments)
            return
        other = Rehearsal(folder / str(time.time_ns()), *assignments)
        self.run, self.calendar = other.run, other.calendar
        self.directory = RunDir(folder / "run", self.run.identity)
        self.store = StateStore(self.directory.storage)
        recover(self.directory, self.run)
        committed = Population.read(self.directory.manifest(PAIR))
        self.population = PairPopulation(self.run, self.directory, self.calendar, committed)

    def result(self, member: str, fitness: float, generation: int | None = None) -> dict[str, Any]:
        found = super().result(member, fitness, generation)
        row = found["iterations"][0]
        row |= {"env_steps": STEPS * row["iteration"], "wall_time": 1e9 + row["iteration"], "host": "here"}
        row |= {"reward_mean": fitness + row["iteration"], "kl": float("nan")}
        return found


def main(folder: str, last: str, how: str = "end", *assignments: str) -> None:
    wandb_runs.INIT_SECONDS = 3.0
    stage = Tracked(Path(folder), *assignments)
    tracking = Tracking(stage.run, stage.directory)
    while stage.population.generation < int(last):
        stage.play(0.1, 0.2, 0.3, 0.4)
        dying = how == "kill" and stage.population.generation == int(last)
        if not dying:
            tracking("barrier", stage.population, [])
    print("trained", flush=True)
    if how == "kill":
        while not tracking._work.empty():
            time.sleep(0.1)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    tracking.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
