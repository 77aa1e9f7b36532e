"""Trackers beside the run's own frames: what every barrier commits goes to them from a thread of their own.

A tracker never holds up or ends a run: one that fails is left out from then on, which an event says. Rows that it
missed because the run was killed, or because it was off, come from the journal when the run is resumed.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue

from pbt.decisions import Decision
from pbt.manifest import Population
from pbt.population import PairPopulation
from pbt.run_dir import RunDir
from pbt.streams import Row, Stream, Streams, Tracker
from pbt.tensorboard_logs import TensorBoardLogs
from pbt.wandb_runs import WandbRuns
from rayconf.run_config import RunConfig

CLOSE_SECONDS = 120.0
"""How long the run waits for its trackers, after training and for the results each."""

log = logging.getLogger("pbt")


class Tracking:
    """A listener that passes progress rows on to TensorBoard and Weights & Biases, as the run's config says."""

    def __init__(self, run: RunConfig, directory: RunDir) -> None:
        self._directory = directory
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._work: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        self._streams = Streams(directory)
        self._trackers: list[Tracker] = []
        self._failed: list[Tracker] = []
        self._wandb: WandbRuns | None = None
        if run.tracking.tensorboard:
            self._trackers.append(TensorBoardLogs(directory.tensorboard))
        if run.tracking.wandb in ("online", "offline"):
            self._wandb = WandbRuns(run, directory, self._streams, self._lines.put)
            self._trackers.append(self._wandb)
        self._say()
        for stream, rows in self._streams.so_far().items():
            done = stream.staged or Population.read(directory.manifest(stream.pair)).status == "complete"
            self._pass_on(stream, rows, done)
        self._thread = threading.Thread(target=self._serve, name="trackers", daemon=True)
        self._thread.start()

    def __call__(self, event: str, population: PairPopulation, decisions: list[Decision] | None) -> None:
        """Listen to the scheduler: pass on the rows of a barrier."""
        if event != "barrier":
            return
        for stream, rows in self._streams.split(population.journaled).items():
            self._pass_on(stream, rows, population.complete)
        self._say()

    def log(self, stream: Stream, rows: list[Row], *, complete: bool = False) -> None:
        """Pass on rows of a stage before populations."""
        self._pass_on(stream, rows, complete)
        self._say()

    def close(self) -> None:
        """Wait until all is logged, no longer than ``CLOSE_SECONDS``; the trackers end."""
        self._work.put(None)
        self._wait(self._thread)

    def results(self, verdicts: Mapping[str, str]) -> None:
        """Log what the run found, with its survivors and frames, once these are written.

        Args:
            verdicts: The plain sentence of the final table by pair.
        """
        wandb = self._wandb
        if wandb is None or wandb in self._failed or self._thread.is_alive():
            return
        task = partial(self._guarded, wandb, lambda _: wandb.results(verdicts))
        thread = threading.Thread(target=task, name="results", daemon=True)
        thread.start()
        self._wait(thread)

    def _pass_on(self, stream: Stream, rows: list[Row], complete: bool) -> None:
        self._work.put(lambda tracker: tracker.log(stream, rows))
        if complete:
            self._work.put(lambda tracker: tracker.finish(stream))

    def _serve(self) -> None:
        while (act := self._work.get()) is not None:
            for tracker in self._trackers:
                if tracker not in self._failed:
                    self._guarded(tracker, act)
        for tracker in self._trackers:
            self._guarded(tracker, lambda tracker: tracker.close())

    def _guarded(self, tracker: Tracker, act: Callable[[Tracker], None]) -> None:
        try:
            act(tracker)
        except Exception as error:
            log.warning("%s failed", tracker.name, exc_info=error)
            if tracker not in self._failed:
                self._failed.append(tracker)
                reason = " ".join(str(error).split()) or type(error).__name__
                self._lines.put(f"{tracker.name}: {reason}; it logs no further, the run goes on (see run.log)")

    def _wait(self, thread: threading.Thread) -> None:
        thread.join(CLOSE_SECONDS)
        if thread.is_alive():
            self._lines.put(f"trackers: not done after {CLOSE_SECONDS:g} s; the run goes on without them")
        self._say()

    def _say(self) -> None:
        """Print what trackers have to tell, and note it among the run's events."""
        while not self._lines.empty():
            line = self._lines.get()
            print(line, flush=True)
            try:
                self._directory.event("tracker_failed", line)
            except OSError:  # a full disk: the run itself will say so
                log.warning("%s", line)
