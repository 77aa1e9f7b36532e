"""``PairPBT``: the Tune scheduler. Trial = member, actor = slot; every decision is taken at a pair's barrier.

Tune keeps one trial per member and pauses it at the end of every generation; ``slots`` actors host the members
in turn. When the last member of a pair has paused, its population decides, and new tickets are written into
the trials' configs. Nothing here depends on the order or the time of events.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.tune import Callback
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers.trial_scheduler import FIFOScheduler, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.utils.object_cache import _ObjectCache

from pbt.decisions import Decision
from pbt.disk import DiskFullError, is_full
from pbt.member import UNFIT, UnfitNodeError, ticket
from pbt.population import PairPopulation
from rayconf.run_config import RunConfig

START_PATIENCE = 60.0
"""Seconds that a member waits for an actor of its own while there is room, before it takes another one's."""
Listener = Callable[[str, PairPopulation, list[Decision] | None], None]
"""Called with the event (result, failure, barrier), its population and, at a barrier, the decisions."""


class KeepActors(BasicVariantGenerator):
    """Grid of members that counts as finished only when no trial lives, so that Tune keeps paused actors.

    Members come one by one, as slots get free for them: Tune asks for the room of every trial that it has, and a
    cluster would bring machines that nobody needs.
    """

    def __init__(self, free: Callable[[], bool]) -> None:
        super().__init__()
        self._free = free

    def next_trial(self) -> Trial | None:
        """The next member, if a slot is free."""
        return super().next_trial() if self._free() else None

    def is_finished(self) -> bool:
        """Whether every trial was created and ended."""
        return bool(self._finished and not self._live_trials)


class Reserve(_ObjectCache):
    """Tune's cache of actors between two members, which gives one out only where the scheduler says so.

    Tune itself would hand a freed actor to a member whose own is still starting, and end the start. Where generations
    are shorter than a start, a node that joined, or an actor that died, would never become a slot again.
    """

    def __init__(self) -> None:
        super().__init__(may_keep_one=True)
        self.granted = 0

    def has_cached_object(self, key: Any) -> bool:
        """Whether an actor may be taken now."""
        return self.granted > 0 and bool(super().has_cached_object(key))

    def pop_cached_object(self, key: Any) -> Any:
        """Take an actor."""
        taken = super().pop_cached_object(key)
        self.granted -= 1
        return taken


class PairPBT(FIFOScheduler):
    """Synchronous PBT with one barrier per pair.

    Args:
        run: The run.
        place: Where the run lies, for tickets.
        populations: Committed population per pair; complete ones get no trials.
        slots: Actors that may live at once, to begin with.
    """

    metric = "fitness"

    def __init__(self, run: RunConfig, place: str, populations: Mapping[str, PairPopulation], slots: int) -> None:
        super().__init__()
        self._run, self._place = run, place
        self.slots = slots
        """Actors that may live at once; may change at any time."""
        self._asked: dict[Trial, float] = {}  # since when members wait for actors of their own
        self._ended: set[str] = set()  # complete pairs whose trials have ended
        self._cached = 0  # actors that Tune keeps between two members
        self.populations = dict(populations)
        self._trials: dict[tuple[str, str], Trial] = {}
        self._controller: TuneController | None = None
        self._reviving: Trial | None = None
        self._reasons: dict[Trial, str] = {}
        self.fatal: Exception | None = None
        """What ended training early; Tune passes on its text only."""
        self.listeners: list[Listener] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without what lives in the driver alone: Tune pickles the scheduler when it starts."""
        return {**self.__dict__, "listeners": [], "_trials": {}, "_reasons": {}, "_asked": {}, "_controller": None}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """The metric is the scheduler's own."""
        return True

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Register a new trial; keep an actor cached per slot. A lost member waits for its pair's barrier."""
        key = _key(trial)
        if not self._trials:
            tune_controller._tune_controller._actor_cache = Reserve()
        if key not in self._trials:
            self._trials[key] = trial
            self._keep_actors(tune_controller)
        elif self.populations[key[0]].lost(key[1]):
            tune_controller._set_trial_status(trial, Trial.PAUSED)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Take a generation's result and pause; trials end when their pair is complete."""
        pair, member = _key(trial)
        population = self.populations[pair]
        self._asked.pop(trial, None)
        with self._fatal():
            population.report(member, result)
            self._tell("result", population)
        return str(TrialScheduler.PAUSE)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Count a failed attempt; Tune, or ``revive``, queues the trial again.

        A start that turns out damaged sends the pair back by one generation instead, and a full disk ends training:
        neither is the member's fault.
        """
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
        with self._fatal():
            told = _last_words(trial)
            if is_full(told):
                raise DiskFullError(told)
            if UNFIT in told:
                raise UnfitNodeError(told.rpartition(UNFIT)[2].splitlines()[0])
            if population.mend():
                self._hand_out(population)
                return
            reason = self._reasons.pop(trial, None) or f"trial failed {trial.num_failures} times so far; see run.log"
            population.fail(member, reason)
            self._tell("failure", population)

    def explain(self, trial: Trial, reason: str) -> None:
        """Say why the trial's actor is about to be killed."""
        self._reasons[trial] = reason

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
        """Close barriers that are ready, then the waiting member with the fewest generations, if a slot is free."""
        self._controller = tune_controller
        self._keep_actors(tune_controller)
        for population in self.populations.values():
            if not population.complete and population.ready and self._all_paused(population):
                with self._fatal():
                    self._barrier(population)
            if population.complete and population.pair not in self._ended:
                self._stop_idle(tune_controller, population)
        # Tune asks several times per result, mostly while nothing is free.
        reserve: Reserve = tune_controller._actor_cache
        cached = reserve.num_cached_objects
        reserve.granted = 0
        if not cached and not self.free():
            return None
        waiting = [
            ((self.populations[pair].generation, pair, member), trial)
            for (pair, member), trial in self._trials.items()
            if trial.status in (Trial.PENDING, Trial.PAUSED)
            and trial not in tune_controller._resetting_trials
            and not self.populations[pair].complete
            and not self.populations[pair].reported(member)
            and (trial not in tune_controller._staged_trials or not self._starts(trial))
        ]
        if not waiting:
            return None
        reserve.granted = min(1, cached)
        return min(waiting, key=lambda item: item[0])[1]

    def _starts(self, trial: Trial) -> bool:
        """Whether a member's own actor is starting, or can be expected to: there is room, and it did not wait long."""
        assert self._controller is not None
        live = self._controller._actor_manager._live_actors_to_ray_actors_resources
        coming = self._controller._trial_to_actor.get(trial) in live or len(live) < self.slots
        return coming and time.monotonic() - self._asked.setdefault(trial, time.monotonic()) < START_PATIENCE

    def free(self) -> bool:
        """Whether fewer members train, or wait for an actor of their own, than there are slots."""
        return self._controller is None or self._busy(self._controller) < self.slots

    @staticmethod
    def _busy(tune_controller: TuneController) -> int:
        return len(tune_controller._running_trials) + len(tune_controller._pending_trials)

    @property
    def unfinished(self) -> int:
        """Members of pairs that are not complete."""
        return sum(len(p.committed.members) for p in self.populations.values() if not p.complete)

    @property
    def live_actors(self) -> list[ActorHandle]:
        """Actors alive, whether they train or wait for their next member."""
        if self._controller is None:
            return []
        return [actor for actor, _ in self._controller._actor_manager._live_actors_to_ray_actors_resources.values()]

    @property
    def starting(self) -> int:
        """Members whose actors have been asked for and are not there yet."""
        return 0 if self._controller is None else len(self._controller._pending_trials)

    def _keep_actors(self, tune_controller: TuneController) -> None:
        """Let Tune start as many actors at once, and keep as many, as there are slots now."""
        tune_controller.update_max_pending_trials(max(1, self.slots))
        if self._cached < min(self.slots, len(self._trials)):
            for trial in list(self._trials.values())[self._cached : self.slots]:
                tune_controller._actor_cache.increase_max(trial.placement_group_factory)
                self._cached += 1

    def _all_paused(self, population: PairPopulation) -> bool:
        """Whether every member's trial exists and has finished saving."""
        trials = [self._trials.get((population.pair, member)) for member in population.committed.members]
        return all(trial is not None and trial.status in (Trial.PAUSED, Trial.TERMINATED) for trial in trials)

    def _barrier(self, population: PairPopulation) -> None:
        decisions = population.commit()
        if not population.complete:
            self._hand_out(population)
        self._tell("barrier", population, decisions)

    def _hand_out(self, population: PairPopulation) -> None:
        """Give every member its ticket for the next generation."""
        run, generation = self._run, population.generation
        for name, member in population.committed.members.items():
            trial = self._trials.get((population.pair, name))
            if trial is not None:
                values, state = member.hyperparameters, member.state
                trial.set_config(
                    ticket(run, self._place, population.pair, name, generation, values, state, member.frozen)
                )

    @contextlib.contextmanager
    def _fatal(self) -> Iterator[None]:
        """Keep an error that ends training."""
        try:
            yield
        except Exception as error:
            self.fatal = self.fatal or error
            raise

    def _stop_idle(self, tune_controller: TuneController, population: PairPopulation) -> None:
        """End the trials of a pair that is complete."""
        trials = [self._trials.get((population.pair, member)) for member in population.committed.members]
        for trial in trials:
            if trial is not None and trial.status == Trial.PAUSED:
                tune_controller.stop_trial(trial)
        if all(trial is None or trial.is_finished() for trial in trials):
            self._ended.add(population.pair)

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


def _last_words(trial: Trial) -> str:
    """The text of the trial's last failure, from the file that Tune keeps on the driver."""
    with contextlib.suppress(OSError, TypeError):
        return Path(trial.error_file).read_text(errors="replace").rpartition("Failure # ")[2]
    return ""
