"""The nodes that a run trains on: lost ones are told of, new ones are used, and more are asked for where it can be."""

import time
from typing import Any

import ray
import ray._private.state
from ray.tune import Callback
from ray.tune.experiment import Trial

from pbt.knocker import Knocker, Place, answers_at
from pbt.run_dir import RunDir
from pbt.scheduler import PairPBT
from rayconf.demand import Demand
from rayconf.plan import wanted_slots
from rayconf.run_config import RunConfig
from rayconf.session import offered

LOOK_EVERY = 2.0
"""Seconds between two looks at the nodes."""
KNOCK_EVERY = 1.0
"""Seconds between two rounds of knocking after failures at least."""


class Fleet(Callback):
    """Keeps the scheduler's slots equal to what the nodes can hold.

    Results do not depend on it: a generation is the same wherever and whenever it is trained.

    Args:
        run: The run.
        directory: Where nodes that come and go are told of.
        scheduler: What the slots belong to.
        elastic: Whether the nodes are those of a cluster, which may come and go; then the cluster is asked for a slot
            per member, within ``resources.cpus``.
    """

    def __init__(self, run: RunConfig, directory: RunDir, scheduler: PairPBT, elastic: bool) -> None:
        self._resources, self._directory, self._scheduler = run.resources, directory, scheduler
        self._demand = Demand(run.resources.bundle) if elastic else None
        self._elastic = elastic
        self._knocker: Knocker | None = None  # Tune pickles what it is given, before it starts
        self._nodes: dict[str, Place] = {}
        self._lost: set[str] = set()
        self._looked = self._knocked = float("-inf")

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look at the nodes now and then."""
        if self._elastic and self._knocker is None:
            self._knocker = Knocker()
        if time.monotonic() - self._looked >= LOOK_EVERY:
            self._look()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """After a failure: did the member's node die?"""
        self._look(knock=True)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The same, where the member was between two generations."""
        self._look(knock=True)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """A node may have died since the last result without any member's noticing."""
        self._knocked = float("-inf")
        self._look(knock=True)
        self.close()

    def close(self) -> None:
        """Ask for no more room, and knock no more."""
        if self._demand is not None:
            self._demand.close()
            self._demand = None
        if self._knocker is not None:
            self._knocker.close()

    def _look(self, knock: bool = False) -> None:
        """Tell of nodes that came or went; knock: at each, for Ray needs many seconds to find that one is dead."""
        self._looked = time.monotonic()
        if knock:
            # A node that dies takes many members with it, each of which is told of.
            knock = self._looked - self._knocked >= KNOCK_EVERY
            self._knocked = self._looked if knock else self._knocked
        alive = {
            node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"])
            for node in ray.nodes()
            if node["Alive"] and node["NodeID"] not in self._lost
        }
        silent = {name for name in alive if knock and len(alive) > 1 and not answers_at(alive[name])}
        if self._knocker is not None:
            silent |= self._knocker.silent() & alive.keys()
        gone = [*sorted(silent), *(name for name in self._nodes if name not in alive)]
        self._lost.update(gone)
        came = [name for name in alive if self._nodes and name not in self._nodes and name not in gone]
        for name in gone:
            address = (self._nodes | alive)[name][0]
            self._directory.event("node_lost", f"node {name[:12]} at {address}; its members are retried")
        self._nodes = {name: place for name, place in alive.items() if name not in gone}
        if silent:
            self._end_actors(silent)
        if self._knocker is not None:
            self._knocker.watch(self._nodes)
        if self._demand is not None:
            self._resize(self._demand)
        for name in came:
            detail = f"node {name[:12]} at {alive[name][0]}; slots now {self._scheduler.slots}"
            self._directory.event("node_joined", detail)

    def _end_actors(self, nodes: set[str]) -> None:
        """Give up the actors of nodes that do not answer, so that their members are retried now and not in a minute."""
        table = ray._private.state.actors()
        for actor in self._scheduler.live_actors:
            if table.get(actor._actor_id.hex(), {}).get("Address", {}).get("NodeID") in nodes:
                ray.kill(actor)

    def _resize(self, demand: Demand) -> None:
        """Fit the slots to the nodes, and ask for what is missing once every slot has its actor.

        Before, what asks for room would take it from the members that are about to start there.
        """
        wanted = wanted_slots(self._resources, self._scheduler.unfinished)
        room = offered(self._lost).slots(self._resources)
        self._scheduler.slots = min(wanted, room)
        started = len(self._scheduler.live_actors) >= self._scheduler.slots
        # Members without an actor of their own ask for one already.
        demand.ask(max(0, wanted - room - self._scheduler.starting) if started else 0)
