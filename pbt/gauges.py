"""Gauges of the populations among Ray's own metrics, for Prometheus; ``rayconf/dashboards`` draws them.

Ray's agent on the driver's node exports them as ``ray_pairpbt_*``. What they count comes from the run's journals, so a
resumed run goes on where it was. All are gauges, totals too: a counter of a new driver would start from zero.
"""

import contextlib
import logging
import math
import statistics
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from analysis.frames import KEYS, keep_last, read_jsonl
from analysis.timing import actor_times
from pbt.decisions import Decision
from pbt.population import PairPopulation
from pbt.run_dir import RunDir
from rayconf.run_config import RunConfig
from rayconf.session import dashboard_installed

Row = Mapping[str, Any]
Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name and tags of a gauge."""

METRICS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "pairpbt_generation": ("Generations finished.", ("pair",)),
    "pairpbt_generations": ("Generations planned.", ("pair",)),
    "pairpbt_fitness_best": ("Fitness of the best member in the last generation.", ("pair",)),
    "pairpbt_fitness_median": ("Median fitness of the members in the last generation.", ("pair",)),
    "pairpbt_fitness": ("Fitness of a member in its last generation.", ("pair", "member")),
    "pairpbt_hyperparameter": (
        "A hyperparameter that the best member of the last generation trained with.",
        ("pair", "hyperparameter"),
    ),
    "pairpbt_steps_per_second": (
        "Environment steps of the pair's last generation by the time since the one before; 0 once it is trained.",
        ("pair",),
    ),
    "pairpbt_exploits": ("Members that took over a donor of their own group, over all generations.", ("pair",)),
    "pairpbt_failures": ("Failures of the whole run by kind of event.", ("pair", "kind")),
    "pairpbt_nodes_lost": ("Nodes of the cluster that were lost.", ()),
    "pairpbt_members_alive": ("Members whose latest generation ended with a result.", ("pair",)),
}
"""Gauges by name: what each says, and its tags beside ``run``."""
REFRESH_SECONDS = 2.0
"""Seconds between two settings of every gauge: Ray exports what was set since its last export (10 s) and forgets it."""
FAILURES = ("retry", "actor_lost", "nan", "corrupt")
"""Kinds of events that are failures of one pair."""

log = logging.getLogger("pbt")


class Gauges:
    """A listener that sets the gauges at every barrier; members alive and failures at once.

    Within a ``with`` block a thread keeps the gauges from being forgotten. Without Ray's export of metrics
    (``ray[default]``) nothing is done. What fails is told in an event and ends the gauges, never the run.

    Args:
        run: The run.
        directory: Its directory, which names it in the tag ``run``.
        populations: Its populations at their last commits.
    """

    def __init__(self, run: RunConfig, directory: RunDir, populations: Mapping[str, PairPopulation]) -> None:
        self._run, self._directory = run, directory
        self._gauges: dict[str, Any] = {}
        self._values: dict[Key, float] = {}
        self._failure: str | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._exploits: dict[str, Counter[int]] = defaultdict(Counter)  # by pair: of each generation
        self._absent: dict[str, set[str]] = defaultdict(set)  # members whose latest generation had no result
        self._ended: dict[str, float] = {}  # when a pair's last generation did, unix s
        self._on = dashboard_installed()
        self._guarded(partial(self._begin, populations))
        self._say()

    def __enter__(self) -> "Gauges":
        if self._on:
            self._thread = threading.Thread(target=self._guarded, args=(self._keep,), name="gauges", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(REFRESH_SECONDS)
        self._say()

    def __call__(self, event: str, population: PairPopulation, decisions: list[Decision] | None) -> None:
        """Listen to the scheduler."""
        self._guarded(partial(self._take, event, population, decisions or []))
        self._say()

    def _guarded(self, act: Callable[[], None]) -> None:
        if not self._on:
            return
        try:
            act()
        except Exception as error:
            self._on = False
            log.warning("gauges failed", exc_info=error)
            reason = " ".join(str(error).split()) or type(error).__name__
            self._failure = f"gauges: {reason}; none are set any further, the run goes on (see run.log)"

    def _say(self) -> None:
        """Tell of a failure, from the driver's own thread: it alone writes events."""
        line, self._failure = self._failure, None
        if line is not None:
            print(line, flush=True)
            with contextlib.suppress(OSError):  # a full disk: the run itself will say so
                self._directory.event("tracker_failed", line)

    def _keep(self) -> None:
        while self._on and not self._closed.wait(REFRESH_SECONDS):
            for (name, tags), value in list(self._values.items()):
                self._gauges[name].set(value, dict(tags))

    def _begin(self, populations: Mapping[str, PairPopulation]) -> None:
        from ray.util.metrics import Gauge

        for name, (text, tags) in METRICS.items():
            self._gauges[name] = Gauge(name, text, tag_keys=("run", *tags))
            self._gauges[name].set_default_tags({"run": self._directory.name})
        lineage, progress = (
            [row for row in keep_last(read_jsonl(journal), KEYS[name]) if row["window"] == self._directory.window]
            for journal, name in (
                (self._directory.lineage_journal, "lineage"),
                (self._directory.progress_journal, "progress"),
            )
        )
        for pair, population in populations.items():
            for row in lineage:
                if row["pair"] == pair:
                    self._exploits[pair][row["generation"]] += row["operation"] == "exploit"
            last = [row for row in progress if (row["pair"], row["generation"]) == (pair, population.generation)]
            self._settle(population, last)
        self._count_failures(populations)

    def _take(self, event: str, population: PairPopulation, decisions: Sequence[Decision]) -> None:
        pair = population.pair
        if event == "barrier":
            moves = Counter(decision.operation for decision in decisions)
            self._exploits[pair][population.generation] = moves["exploit"]
            self._settle(population, population.journaled)
            self._measure(population, population.journaled)
        self._count_alive(population)
        if event in ("barrier", "failure"):
            self._count_failures([pair])

    def _settle(self, population: PairPopulation, rows: Sequence[Row]) -> None:
        """What the last generation came to, from its progress rows."""
        pair = population.pair
        self._set("pairpbt_generation", population.generation, pair=pair)
        self._set("pairpbt_generations", self._run.pbt.generations, pair=pair)
        finished = (count for number, count in self._exploits[pair].items() if number <= population.generation)
        self._set("pairpbt_exploits", sum(finished), pair=pair)
        if population.generation > 0:
            self._absent[pair] = set(population.committed.members) - {row["member"] for row in rows}
            for member in self._absent[pair]:
                self._values.pop(_key("pairpbt_fitness", {"pair": pair, "member": member}), None)
        self._count_alive(population)
        ends = [row for row in rows if row.get("fitness") is not None]
        for row in ends:
            self._set("pairpbt_fitness", row["fitness"], pair=pair, member=row["member"])
        if ends:
            best = max(ends, key=lambda row: (row["fitness"], row["member"]))
            self._set("pairpbt_fitness_best", best["fitness"], pair=pair)
            self._set("pairpbt_fitness_median", statistics.median(row["fitness"] for row in ends), pair=pair)
            for name in self._run.search:
                self._set("pairpbt_hyperparameter", best[f"hp_{name}"], pair=pair, hyperparameter=name)

    def _measure(self, population: PairPopulation, rows: Sequence[Row]) -> None:
        """Speed since the barrier before; in the first generation of this driver since the pair's first step."""
        pair = population.pair
        ended = max(float(row["wall_time"]) for row in rows)
        seconds = ended - self._ended.get(pair, actor_times(rows)[0].began)
        self._ended[pair] = ended
        speed = 0.0 if population.complete else len(rows) * self._run.env_steps_per_update / max(seconds, 1e-9)
        self._set("pairpbt_steps_per_second", speed, pair=pair)

    def _count_alive(self, population: PairPopulation) -> None:
        absent = self._absent[population.pair]
        for member in population.committed.members:
            if population.lost(member):
                absent.add(member)
            elif population.reported(member):
                absent.discard(member)
        alive = len(population.committed.members) - len(absent)
        self._set("pairpbt_members_alive", alive, pair=population.pair)

    def _count_failures(self, pairs: Iterable[str]) -> None:
        events = read_jsonl(self._directory.events_journal)
        found = Counter((event.get("pair"), event["kind"]) for event in events)
        for pair in pairs:
            for kind in FAILURES:
                self._set("pairpbt_failures", found[pair, kind], pair=pair, kind=kind)
        self._set("pairpbt_nodes_lost", sum(event["kind"] == "node_lost" for event in events))

    def _set(self, name: str, value: float, **tags: str) -> None:
        if math.isfinite(value):
            self._values[_key(name, tags)] = float(value)
            self._gauges[name].set(float(value), tags)


def _key(name: str, tags: Mapping[str, str]) -> Key:
    return name, tuple(sorted(tags.items()))
