"""What a run will do and take, known before anything starts."""

import math
from dataclasses import dataclass

from rayconf.errors import UserError
from rayconf.run_config import RunConfig
from rayconf.sections import ResourcesConfig
from rayconf.session import Machine, store_mb

DRIVER_MB = 1000
SLOT_MB = 800
STORE_SHARE = 0.75
"""Share of a named object store that may hold what policies train on."""


@dataclass(frozen=True)
class TrainingMemory:
    """MiB that hold what policies train on, where that is more than their pair's own span."""

    driver: int = 0
    """In the driver, which builds it."""
    store: int = 0
    """In the object store, once per machine for all that train there."""
    slot: int = 0
    """In each slot, beside what it reads from the object store."""


@dataclass(frozen=True)
class Plan:
    """What a run will do and take, known before anything starts."""

    pairs: int
    """Number of pairs."""
    populations: int
    """Number of populations: one per pair, or one that is pooled over all."""
    members: int
    """Members over all populations."""
    slots: int
    """Actors that train side by side, each hosting members in turn."""
    wanted: int
    """Slots that the run would use if a cluster brought them; ``slots`` where none can."""
    generations: int
    """Generations per member."""
    updates: int
    """Updates over all members."""
    batch: int
    """Environment steps per update."""
    env_steps: int
    """Environment steps of the whole run."""
    idle_share: float
    """Share of the slots' time spent waiting where one pair trains alone."""
    memory_mb: int
    """Estimated memory of driver, slots and object store in MB."""
    training: TrainingMemory
    """What of it holds a universe or resampled histories."""

    def lines(self) -> tuple[str, ...]:
        """The plan as text, one fact a line."""
        pairs = f"{self.pairs} {_plural('pair', self.pairs)}"
        pooled = self.populations < self.pairs
        split = f"one population for {pairs}" if pooled else f"{pairs} x {self.members // self.pairs}"
        more = f" of {self.wanted} that are asked for" if self.wanted > self.slots else ""
        held, shared = self.training, ""
        if held.store:
            shared = (
                f"; what is trained on takes {held.store:,} MB of the object store, which all slots read, and "
                f"{held.slot:,} MB more in each"
            )
        return (
            f"members    {self.members} ({split})",
            f"slots      {self.slots}{more} training side by side; "
            f"{self.idle_share:.0%} idle where one pair trains alone",
            f"steps      {self.env_steps / 1e6:.1f} M ({self.generations} {_plural('generation', self.generations)}, "
            f"{self.updates} updates of {self.batch:,})",
            f"memory     about {self.memory_mb / 1000:.1f} GB{shared}",
        )


def plan(run: RunConfig, machine: Machine, training: TrainingMemory = TrainingMemory()) -> Plan:
    """What ``run`` will do on a machine or cluster.

    Args:
        run: The run.
        machine: Where.
        training: What holds that which its policies train on.

    Raises:
        UserError: when not a single member fits on this machine (a cluster without room may grow), or what policies
            train on does not fit the object store.
    """
    members = len(run.leaders) * run.pbt.population
    slots = min(members, machine.slots(run.resources))
    if slots < 1 and not machine.joined:
        raise UserError(
            f"resources: no member fits on {machine.cpus} CPUs and {machine.gpus:g} GPUs; a member needs "
            f"resources.cpus_per_member {run.resources.cpus_per_member:g} and resources.gpus_per_member "
            f"{run.resources.gpus_per_member:g} on one node"
        )
    named = run.resources.object_store_mb
    if named is not None and not machine.joined and training.store > STORE_SHARE * named:
        raise UserError(
            f"resources.object_store_mb: {named} cannot hold the {training.store} MiB that policies train on; set it "
            f"to {math.ceil(training.store / STORE_SHARE)} or more, or to null"
        )
    wanted = wanted_slots(run.resources, members) if machine.joined else slots
    slots = min(slots, wanted)
    rounds = -(-run.pbt.population // (slots or wanted))
    batch = run.env_steps_per_update
    updates = members * run.pbt.iterations
    return Plan(
        pairs=len(run.data.pairs),
        populations=len(run.leaders),
        members=members,
        slots=slots,
        wanted=wanted,
        generations=run.pbt.generations,
        updates=updates,
        batch=batch,
        env_steps=updates * batch,
        idle_share=1 - run.pbt.population / (rounds * (slots or wanted)),
        memory_mb=DRIVER_MB
        + training.driver
        + slots * (SLOT_MB + training.slot)
        + store_mb(run.resources, training.store),
        training=training,
    )


def wanted_slots(resources: ResourcesConfig, members: int) -> int:
    """Slots that ``members`` would use on a cluster that brings them: one each, within ``resources.cpus``."""
    most = members if resources.cpus is None else int(resources.cpus / resources.cpus_per_member + 1e-9)
    return max(1, min(members, most))


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else noun + "s"
