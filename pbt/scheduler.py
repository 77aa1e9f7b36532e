"""``PairPBT``: the Tune scheduler. Trial = member, actor = slot; every decision is taken at a pair's barrier.

Tune keeps one trial per member and pauses it at the end of every generation; ``slots`` actors host the members
in turn. When the last member of a pair has paused, its population decides, and new tickets are written into
the trials' configs. Nothing here depends on the order or the time of events.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers.trial_scheduler import FIFOScheduler, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from pbt.decisions import Decision
from pbt.member import ticket
from pbt.population import PairPopulation
from rayconf.run_config import RunConfig

Listener = Callable[[str, PairPopulation, list[Decision] | None], None]
"""Called with the event (result, failure, barrier), its population and, at a barrier, the decisions."""


class KeepActors(BasicVariantGenerator):
    """Grid of members that counts as finished only when no trial lives, so that Tune keeps paused actors."""

    def is_finished(self) -> bool:
        """Whether every trial was created and ended."""
        return bool(self._finished and not self._live_trials)


class PairPBT(FIFOScheduler):
    """Synchronous PBT with one barrier per pair.

    Args:
        run: The run.
        directory: The run's directory, for tickets.
        populations: Committed population per pair; complete ones get no trials.
        slots: Actors that may live at once.
    """

    metric = "fitness"

    def __init__(self, run: RunConfig, directory: Path, populations: Mapping[str, PairPopulation], slots: int) -> None:
        super().__init__()
        self._run, self._directory, self._slots = run, directory, slots
        self.populations = dict(populations)
        self._trials: dict[tuple[str, str], Trial] = {}
        self._controller: TuneController | None = None
        self._reviving: Trial | None = None
        self.listeners: list[Listener] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without what lives in the driver alone: Tune pickles the scheduler when it starts."""
        return {**self.__dict__, "listeners": [], "_trials": {}, "_controller": None}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """The metric is the scheduler's own."""
        return True

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Register a new trial; keep an actor cached per slot. A lost member waits for its pair's barrier."""
        key = _key(trial)
        if key not in self._trials:
            self._trials[key] = trial
            if len(self._trials) <= self._slots:
                tune_controller._actor_cache.increase_max(trial.placement_group_factory)
        elif self.populations[key[0]].lost(key[1]):
            tune_controller._set_trial_status(trial, Trial.PAUSED)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Take a generation's result; pause, or stop after the last generation."""
        pair, member = _key(trial)
        population = self.populations[pair]
        population.report(member, result)
        self._tell("result", population)
        if result["generation"] < self._run.pbt.generations:
            return str(TrialScheduler.PAUSE)
        if population.ready:
            self._barrier(population)
        return str(TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Count a failed attempt; Tune, or ``revive``, queues the trial again."""
        self._controller = tune_controller
        # An actor that dies while it takes a ticket leaves its trial marked as being reset, which blocks it for good.
        tune_controller._resetting_trials.discard(trial)
        staged = trial in tune_controller._staged_trials
        if staged:
            tune_controller._unstage_trial_with_resources(trial)
        pair, member = _key(trial)
        population = self.populations[pair]
        # The death of such an actor is told twice, by the actor and by the task it was given: once is a failure.
        echo = trial.status == Trial.PENDING and not staged
        if population.complete or echo or trial is self._reviving:
            return
        population.fail(member, f"trial failed {trial.num_failures} times so far; see {trial.error_file or 'run.log'}")
        self._tell("failure", population)

    def revive(self, trial: Trial) -> None:
        """Queue a trial again that Tune gave up.

        Tune retries trials that fail while running. One whose actor dies between generations, while it is handed its
        next ticket, would end for good and its pair would wait forever.
        """
        if self._controller is not None and not self.populations[_key(trial)[0]].complete:
            self._reviving = trial
            self._controller._requeue_trial(trial)
            self._reviving = None

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Close barriers that are ready, then the waiting member with the fewest generations, if a slot is free.

        Tune would hand a freed actor to a trial whose own actor is still starting, and lose a slot for good, if
        more trials were offered than slots exist.
        """
        for population in self.populations.values():
            if not population.complete and population.ready and self._all_paused(population):
                self._barrier(population)
            self._stop_idle(tune_controller, population)
        waiting = [
            ((self.populations[pair].generation, pair, member), trial)
            for (pair, member), trial in self._trials.items()
            if trial.status in (Trial.PENDING, Trial.PAUSED)
            and trial not in tune_controller._staged_trials
            and not self.populations[pair].complete
            and not self.populations[pair].reported(member)
        ]
        if not waiting:
            return None
        chosen = min(waiting, key=lambda item: item[0])[1]
        status = Counter(trial.status for trial in self._trials.values())
        busy = status[Trial.RUNNING] + status[Trial.PENDING]
        cached = tune_controller._actor_cache.has_cached_object(chosen.placement_group_factory)
        return chosen if busy < self._slots or cached else None

    def _all_paused(self, population: PairPopulation) -> bool:
        """Whether every member's trial exists and has finished saving."""
        trials = [self._trials.get((population.pair, member)) for member in population.committed.members]
        return all(trial is not None and trial.status in (Trial.PAUSED, Trial.TERMINATED) for trial in trials)

    def _barrier(self, population: PairPopulation) -> None:
        decisions = population.commit()
        for decision in decisions:
            trial = self._trials.get((population.pair, decision.member))
            if trial is not None and not population.complete:
                member = population.committed.members[decision.member]
                trial.set_config(
                    ticket(
                        self._run,
                        self._directory,
                        population.pair,
                        decision.member,
                        population.generation,
                        member.hyperparameters,
                        member.state,
                        member.frozen,
                    )
                )
        self._tell("barrier", population, decisions)

    def _stop_idle(self, tune_controller: TuneController, population: PairPopulation) -> None:
        """End trials that wait although their pair is complete: it ended early, or they were lost at its end."""
        if population.complete:
            for member in population.committed.members:
                trial = self._trials.get((population.pair, member))
                if trial is not None and trial.status == Trial.PAUSED:
                    tune_controller.stop_trial(trial)

    def _tell(self, event: str, population: PairPopulation, decisions: list[Decision] | None = None) -> None:
        for listener in self.listeners:
            listener(event, population, decisions)


class Revival(Callback):
    """Hands trials that Tune gave up back to the scheduler."""

    def __init__(self, scheduler: PairPBT) -> None:
        self._scheduler = scheduler

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Tune once the trial has its final error."""
        self._scheduler.revive(trial)


def _key(trial: Trial) -> tuple[str, str]:
    return trial.config["ticket"]["pair"], trial.config["ticket"]["member"]
