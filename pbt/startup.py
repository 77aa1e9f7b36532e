"""How long a command takes until its run trains."""

import psutil

from analysis.timing import actor_times, first_gradient
from pbt.decisions import Decision
from pbt.population import PairPopulation
from pbt.run_dir import RunDir


class StartUp:
    """A listener that notes once, at the first barrier, when the first steps were taken after the command."""

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory
        self._noted = False

    def __call__(self, event: str, population: PairPopulation, decisions: list[Decision] | None) -> None:
        """Listen to the scheduler."""
        if event != "barrier" or self._noted:
            return
        self._noted = True
        command = psutil.Process().create_time()
        rows = population.journaled
        step, gradient = actor_times(rows)[0].began - command, first_gradient(rows) - command
        detail = f"first environment step {step:.1f} s after the command's start, first gradient step {gradient:.1f} s"
        self._directory.event("first_step", detail)
