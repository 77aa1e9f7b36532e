"""The watchdog: retries members that hang. It never opens a barrier."""

import statistics
import time
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial

from pbt.scheduler import PairPBT
from rayconf.run_config import RunConfig

STALL_SECONDS = 1.0
"""Seconds between two turns of Tune's loop beyond which the driver was busy or stopped."""


class Watchdog(Callback):
    """Kills the actor of a member whose generation takes far longer than its peers'.

    Tune's loop turns at least ten times a second, whether or not anything happens, and calls ``on_step_begin`` each
    time. The clock of a generation runs from when its member was given a live actor until its result. The member is
    then retried from its boundary like after any other failure, so that results do not depend on the clock unless it
    hangs ``pbt.max_failures`` times.
    """

    def __init__(self, run: RunConfig, scheduler: PairPBT) -> None:
        self._factor, self._floor = run.pbt.straggler_factor, run.pbt.straggler_seconds
        self._scheduler = scheduler
        self._since: dict[Trial, tuple[Any, float]] = {}
        self._durations: list[float] = []
        self._stepped = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look after the members."""
        now = time.monotonic()
        stalled, self._stepped = now - self._stepped, now
        if stalled > STALL_SECONDS:  # the driver itself was held up, so results may be waiting: that counts for nobody
            self._since = {trial: (work, since + stalled) for trial, (work, since) in self._since.items()}
        limit = self._limit()
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            if actor is None:
                self._since.pop(trial, None)
                continue
            known, since = self._since.get(trial, (None, now))
            if known != self._work(trial):
                self._since[trial] = (self._work(trial), now)
            elif limit is not None and now - since > limit:
                typical = statistics.median(self._durations)
                self._scheduler.explain(trial, f"hung for {now - since:.0f} s, where others take {typical:.1f} s")
                ray.kill(actor)
                self._since[trial] = (None, now)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: Any, **info: Any) -> None:
        """Learn how long a generation takes."""
        known = self._since.pop(trial, None)
        if known is not None:
            self._durations.append(time.monotonic() - known[1])

    def _limit(self) -> float | None:
        if self._factor is None or not self._durations:
            return None
        return max(self._floor, self._factor * statistics.median(self._durations))

    @staticmethod
    def _work(trial: Trial) -> Any:
        return trial.temporary_state.ray_actor._actor_id, trial.config["ticket"]["generation"]
