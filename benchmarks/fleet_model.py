"""A run on many nodes as a queue of events: slots that train members, barriers per pair, and one driver for everything.

What is modelled is the way of a member through Tune as the product uses it. A slot's actor is told to become the
member (*reset*), to load its pointer (*restore*, from the second generation on), to train, and to save its pointer;
each of the four ends in a visit to the driver, which serves one visit at a time, first come first served. Once a turn
the driver also gives one waiting member to one idle slot; without news a turn lasts ``Costs.turn`` seconds. A pair
whose members have all saved is decided by the driver, then its members wait for slots again, those with the fewest
generations first. A lost node takes the work since its members' last boundary with it.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

BUCKETS = ("busy", "driver", "switch", "storage", "barrier", "start", "node loss", "end")
"""What a slot's time goes to. driver: waits for the driver; barrier: no member may run; end: none is left to run."""
VISITS = 4
"""Visits to the driver per member and generation."""
SLOT_GETS, SLOT_PUTS = 1, 4
"""Requests to the storage per member and generation by its actor, one after the other: the state that it starts from;
whether its new state is there, that state, returns, and a pointer."""
DRIVER_REQUESTS = 6
"""By the driver per barrier, those at once counted as one: two to commit, one to delete, three to compare returns."""

ARRIVES, SERVED, TIMEOUT, DIES = range(4)
STARTED, RESET, RESTORED, RESULT, SAVED, FAILED, BARRIER = range(7)


@dataclass(frozen=True)
class Costs:
    """Seconds. The three samples are drawn from with replacement."""

    generations: np.ndarray
    """Of a member's generation, from its first step to its saved state."""
    rebuilds: np.ndarray = field(default_factory=lambda: np.zeros(1))
    """Of an actor that becomes another member."""
    cold_starts: np.ndarray = field(default_factory=lambda: np.zeros(1))
    """From asking for an actor to its first step."""
    visit: float = 0.0
    """Of the driver, per visit; with ``visit_per_trial`` times trials and ``visit_per_slot`` times slots."""
    visit_per_trial: float = 0.0
    visit_per_slot: float = 0.0
    barrier_per_member: float = 0.0
    """Of the driver, to decide and to commit."""
    pointer: float = 0.0
    """Of an actor, to save Tune's pointer."""
    round_trip: float = 0.0
    """Between driver and actor."""
    knock: float = 0.0
    """Of the driver, for every node that it asks for life after a failure."""
    silence: float = 0.0
    """Until a dead node counts as one that does not answer."""
    turn: float = 0.1

    def visit_seconds(self, trials: int, slots: int) -> float:
        """What one visit takes of the driver."""
        return self.visit + self.visit_per_trial * trials + self.visit_per_slot * slots


@dataclass(frozen=True)
class Fleet:
    """A run and the machines that it runs on."""

    nodes: int
    slots_per_node: int
    members: int
    per_pair: int
    generations: int
    storage: float = 0.0
    """Seconds per request beyond those of a local disk."""
    losses_per_hour: float = 0.0
    """Of a node."""
    detection: float = 0.0
    """Seconds until the driver knows of a loss."""
    replacement: float = 0.0
    """Seconds from a node's loss to its successor."""
    joining: float = 0.0
    """Nodes join evenly over so many seconds from the start on."""

    @property
    def slots(self) -> int:
        """Actors side by side."""
        return self.nodes * self.slots_per_node


@dataclass(frozen=True)
class Outcome:
    """What became of a run between its first and its last step."""

    wall: float
    first_step: float
    """Seconds before that."""
    buckets: dict[str, float]
    """Slot seconds by what they went to; they add up to slots x wall."""
    driver_seconds: float
    results: np.ndarray
    """Seconds from the first step to every result, in order of time."""
    losses: int
    seconds: np.ndarray
    """[generations, members]: what was drawn for each member's generations."""
    steady: float
    """Efficiency of all generations but the first and the last, with the idle time before them; nan: none is left."""

    @property
    def efficiency(self) -> float:
        """Share of the slots' time in which a member made progress that lasted."""
        return self.buckets["busy"] / sum(self.buckets.values())

    @property
    def utilisation(self) -> float:
        """Share of the driver's time in which it was at work."""
        return self.driver_seconds / self.wall if self.wall else 0.0

    @property
    def bottleneck(self) -> str:
        """The driver where it has no time left, else what most of the slots' lost time goes to.

        The end of the run, which more generations thin out, is left aside.
        """
        if self.utilisation > 0.9:
            return "driver"
        lost = {name: seconds for name, seconds in self.buckets.items() if name not in ("busy", "end")}
        return max(lost, key=lambda name: lost[name])


class Simulation:
    """One run; ``run`` may be called once.

    Args:
        fleet: Run and machines.
        costs: What things take.
        seed: Of everything drawn.
    """

    def __init__(self, fleet: Fleet, costs: Costs, seed: int = 0) -> None:
        self.fleet, self.costs = fleet, costs
        self.rng = np.random.default_rng(seed)
        shape = (fleet.generations, fleet.members)
        self.seconds = self.rng.choice(costs.generations, shape)
        self.train = self.seconds.tolist()
        self.rebuild = self.rng.choice(costs.rebuilds, shape).tolist()
        self.visit = costs.visit_seconds(fleet.members, fleet.slots)
        self.heap: list[tuple[float, int, int, int, int, int]] = []  # time, order, kind, what, slot or pair, epoch
        self.order = 0
        self.queue: deque[tuple[int, int, int]] = deque()
        self.waiting, self.turns = True, 0  # whether the driver waits for news, and in which turn
        self.driver_seconds = self.hold = self.noted = 0.0
        self.held = False  # whether something waits for the driver
        slots = fleet.slots
        self.member: list[int | None] = [None] * slots
        self.epoch, self.since = [0] * slots, [0.0] * slots
        self.mark = [0.0] * slots  # of ``hold``, when the slot became idle
        self.gain = [0.0] * slots  # trained, not yet saved for good
        self.up = [False] * slots
        self.idle: deque[int] = deque()  # may hold slots that have died since
        self.resting = [False] * slots
        self.finished = [0] * fleet.members
        self.missing = [self._size(pair) for pair in range(-(-fleet.members // fleet.per_pair))]
        self.pairs_left = len(self.missing)
        self.runnable: list[tuple[int, int]] = []
        self.buckets = dict.fromkeys(BUCKETS, 0.0)
        self.spent, self.worked = [0.0] * fleet.generations, [0.0] * fleet.generations
        self.began: float | None = None
        self.results: list[float] = []
        self.losses = 0

    def run(self) -> Outcome:
        """From the first actor asked for to the last commit."""
        fleet = self.fleet
        for slot in range(fleet.slots):
            if slot < fleet.members:
                self.member[slot] = slot
            node = slot // fleet.slots_per_node
            self._start(slot, max((slot + 1) * self.visit, fleet.joining * node / fleet.nodes))
        self.runnable = [(0, member) for member in range(fleet.slots, fleet.members)]
        for node in range(fleet.nodes):
            self._fate(node, 0.0)
        now = 0.0
        while self.pairs_left:
            now, _, kind, what, where, epoch = heapq.heappop(self.heap)
            if kind == ARRIVES:
                self._arrive(now, what, where, epoch)
            elif kind == SERVED:
                pair = self._follow(now, what, where, epoch)
                if pair is None:
                    self._turn(now)
                else:
                    self._begin(now, BARRIER, pair, 0)
            elif kind == TIMEOUT:
                if self.waiting and epoch == self.turns:
                    self._turn(now)
            else:
                self._die(now, where)
        for slot in range(fleet.slots):
            self._spend(slot, now, "end" if self.up[slot] else self._absence(slot))
        began = now if self.began is None else self.began
        results = np.array(self.results) - began
        spent = sum(self.spent[1:-1])
        steady = sum(self.worked[1:-1]) / spent if spent else math.nan
        return Outcome(
            now - began, began, self.buckets, self.driver_seconds, results, self.losses, self.seconds, steady
        )

    def _push(self, when: float, kind: int, what: int, where: int, epoch: int) -> None:
        self.order += 1
        heapq.heappush(self.heap, (when, self.order, kind, what, where, epoch))

    def _send(self, slot: int, when: float, what: int) -> None:
        """The slot's next news to the driver."""
        self._push(when, ARRIVES, what, slot, self.epoch[slot])

    def _spend(self, slot: int, now: float, bucket: str) -> None:
        """The slot's time since its last entry goes to this bucket, as far as it lies after the first step."""
        if self.began is not None:
            seconds = max(0.0, now - max(self.since[slot], self.began))
            self.buckets[bucket] += seconds
            member = self.member[slot]
            if member is not None:
                generation = self.finished[member]
                self.spent[generation] += seconds
                if bucket == "busy":
                    self.worked[generation] += seconds
        self.since[slot] = now

    def _note(self, now: float) -> None:
        """Keep count of the time in which something waited for the driver."""
        if self.held:
            self.hold += now - self.noted
        self.noted, self.held = now, bool(self.queue or (self.idle and self.runnable))

    def _arrive(self, now: float, what: int, where: int, epoch: int) -> None:
        """News for the driver. A slot's own times end here, those of a slot that died are void."""
        if what != FAILED:
            if epoch != self.epoch[where]:
                return
            self._account(now, what, where)
        if self.waiting:
            self._begin(now, what, where, epoch)
        else:
            self.queue.append((what, where, epoch))
            self._note(now)

    def _account(self, now: float, what: int, slot: int) -> None:
        """Put what the actor did until its news into buckets."""
        fleet = self.fleet
        if what == STARTED:
            self._spend(slot, now, self._absence(slot))
            self.up[slot] = True
        elif what == RESULT:
            member = self.member[slot]
            assert member is not None
            self._spend(slot, self.since[slot] + self.costs.round_trip, "switch")
            self.gain[slot] = self.train[self.finished[member]][member]
            self._spend(slot, now - (SLOT_PUTS - 1) * fleet.storage, "busy")
            self._spend(slot, now, "storage")
        else:
            requests = {RESET: SLOT_GETS, RESTORED: 0, SAVED: 1}[what]
            self._spend(slot, now - requests * fleet.storage, "switch")
            self._spend(slot, now, "storage")

    def _begin(self, now: float, what: int, where: int, epoch: int) -> None:
        """The driver takes up a visit, which ends when its cost is over."""
        self.waiting = False
        cost, fleet, costs = self.visit, self.fleet, self.costs
        if what == BARRIER:
            size = self._size(where)
            cost = costs.barrier_per_member * size + fleet.storage * DRIVER_REQUESTS
        elif what == FAILED:
            cost += costs.knock * fleet.nodes + epoch * costs.silence  # the first of a node has to wait for it
        if self.began is not None:
            self.driver_seconds += cost
        self._push(now + cost, SERVED, what, where, epoch)

    def _turn(self, now: float) -> None:
        """Give a waiting member to an idle slot, then take the next visit or wait for one."""
        while self.idle and not self.resting[self.idle[0]]:
            self.idle.popleft()
        if self.idle and self.runnable:
            slot = self.idle.popleft()
            generation, member = heapq.heappop(self.runnable)
            self.member[slot], self.resting[slot] = member, False
            # An idle slot waited for the driver while anything did, else for a barrier.
            held = self.hold - self.mark[slot] + (now - self.noted if self.held else 0.0)
            self._spend(slot, now - min(held, now - self.since[slot]), "barrier")
            self._spend(slot, now, "driver")
            took = self.costs.round_trip + self.rebuild[generation][member] + SLOT_GETS * self.fleet.storage
            self._send(slot, now + took, RESET)
        if self.queue:
            what, where, epoch = self.queue.popleft()
            self._begin(now, what, where, epoch)
        else:
            self.waiting = True
            self.turns += 1
            if self.idle and self.runnable:
                self._push(now + self.costs.turn, TIMEOUT, 0, 0, self.turns)
        self._note(now)

    def _follow(self, now: float, what: int, where: int, epoch: int) -> int | None:
        """What a visit leads to; the pair that may be decided now, if there is one."""
        if what == BARRIER:
            self._open(where)
        elif what == FAILED:
            heapq.heappush(self.runnable, (self.finished[where], where))
        elif epoch == self.epoch[where]:
            self._spend(where, now, "driver")
            return self._go_on(now, what, where)
        return None

    def _go_on(self, now: float, what: int, slot: int) -> int | None:
        """The slot's next step."""
        member, costs = self.member[slot], self.costs
        if member is None:
            self._rest(slot, now)
            return None
        generation = self.finished[member]
        if what == RESET and generation > 0:
            self._send(slot, now + costs.round_trip, RESTORED)
        elif what in (STARTED, RESET, RESTORED):
            if self.began is None:
                self.began = self.since[slot] = now
            puts = (SLOT_PUTS - 1) * self.fleet.storage
            self._send(slot, now + costs.round_trip + self.train[generation][member] + puts, RESULT)
        elif what == RESULT:
            self.results.append(now)
            self._send(slot, now + costs.round_trip + costs.pointer + self.fleet.storage, SAVED)
        else:
            self.finished[member] += 1
            self.member[slot], self.gain[slot] = None, 0.0
            self._rest(slot, now)
            pair = member // self.fleet.per_pair
            self.missing[pair] -= 1
            return pair if self.missing[pair] == 0 else None
        return None

    def _open(self, pair: int) -> None:
        """The pair's next generation, if there is one."""
        first, size = pair * self.fleet.per_pair, self._size(pair)
        if self.finished[first] == self.fleet.generations:
            self.pairs_left -= 1
            return
        self.missing[pair] = size
        for member in range(first, first + size):
            heapq.heappush(self.runnable, (self.finished[member], member))

    def _rest(self, slot: int, now: float) -> None:
        self._note(now)
        self.mark[slot] = self.hold
        self.idle.append(slot)
        self.resting[slot] = True

    def _size(self, pair: int) -> int:
        return min(self.fleet.per_pair, self.fleet.members - pair * self.fleet.per_pair)

    def _absence(self, slot: int) -> str:
        return "node loss" if self.epoch[slot] else "start"

    def _start(self, slot: int, when: float) -> None:
        """Ask for the slot's actor; it will tell that it is there."""
        self._send(slot, when + float(self.rng.choice(self.costs.cold_starts)), STARTED)

    def _fate(self, node: int, now: float) -> None:
        """When the node will be lost."""
        if self.fleet.losses_per_hour > 0:
            self._push(now + self.rng.exponential(3600 / self.fleet.losses_per_hour), DIES, 0, node, 0)

    def _die(self, now: float, node: int) -> None:
        """A node is lost; the driver will know of the members on it, and a successor comes."""
        fleet = self.fleet
        self.losses += 1
        first = 1
        for slot in range(node * fleet.slots_per_node, (node + 1) * fleet.slots_per_node):
            member, was_up = self.member[slot], self.up[slot]
            self._spend(slot, now, "node loss" if was_up else self._absence(slot))
            self.buckets["busy"] -= self.gain[slot]
            self.buckets["node loss"] += self.gain[slot]
            self.epoch[slot] += 1
            self.gain[slot] = 0.0
            self.up[slot], self.resting[slot], self.member[slot] = False, False, None
            if member is not None:
                self._push(now + fleet.detection, ARRIVES, FAILED, member, first)
                first = 0
            self._start(slot, now + fleet.replacement)
        self._fate(node, now + fleet.replacement)


def simulate(fleet: Fleet, costs: Costs, seed: int = 0) -> Outcome:
    """One run of the fleet, the same for the same seed."""
    return Simulation(fleet, costs, seed).run()
