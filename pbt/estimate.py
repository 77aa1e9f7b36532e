"""How long a run will take, and what it will cost, from the speed of its own training as measured before it starts."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from envs.market import PairMarket
from pbt.generation import initial_key, train_segment, training_key
from pbt.run_dir import member_name
from pbt.windows import window_numbers
from rayconf.plan import Plan
from rayconf.run_config import RunConfig

MOST = 64
"""Slots that are measured side by side at most."""


@dataclass(frozen=True)
class Pace:
    """What one slot does while all of them are busy."""

    steps_per_second: float
    """Environment steps per second of training, evaluation left out."""
    generation_seconds: float
    """Time of a whole generation: updates, evaluation on validation, state."""
    slots: int
    """Slots that were measured side by side."""


def measure(run: RunConfig, markets: Sequence[PairMarket], slots: int) -> Pace:
    """Train ``slots`` members side by side for two updates, the first of which only warms up; Ray is up.

    Nothing is written, and the test span is not read.

    Args:
        run: The run.
        markets: Of the pair that they train under, then of the others that its population is evaluated on.
        slots: How many.
    """
    reference = ray.put(list(markets))
    bundle = run.resources.bundle
    task = _attempt.options(num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0.0))
    count = min(slots, MOST)
    found = ray.get([task.remote(run.model_dump_json(), reference, index) for index in range(count)])
    update, rest = (statistics.median(seconds[part] for seconds in found) for part in (0, 1))
    batch = run.env_steps_per_update
    return Pace(batch / update, run.pbt.interval * update + rest, count)


@ray.remote
def _attempt(run_json: str, markets: list[PairMarket], index: int) -> tuple[float, float]:
    """Seconds of one update, and of what a generation needs beside its updates."""
    run = RunConfig.model_validate_json(run_json)
    run = run.model_copy(update={"pbt": run.pbt.model_copy(update={"interval": 1})})
    market, *others = markets
    member, pair = member_name(index), market.pair
    init_key = initial_key(run, pair, member)
    for generation in (1, 2):
        key = training_key(run, pair, member, generation)
        done = train_segment(run, market, {}, None, key, generation, init_key=init_key, others=others)
    return done.iterations[0].seconds, done.evaluation_seconds + done.state_seconds


def training_hours(run: RunConfig, planned: Plan, pace: Pace, slots: int) -> float:
    """Hours of training on ``slots`` slots.

    A pair's generation ends with its slowest member, so a lone pair needs whole rounds; several pairs fill each
    other's gaps.
    """
    rounds = max(planned.members / slots, math.ceil(run.pbt.population / slots))
    return rounds * planned.generations * pace.generation_seconds / 3600


def estimate_lines(run: RunConfig, planned: Plan, pace: Pace) -> Sequence[str]:
    """The estimate as text, one fact a line: on the slots that are there and, on a cluster, on those asked for."""
    side = f"{pace.slots} {'member' if pace.slots == 1 else 'members side by side'}"
    lines = [f"speed      {pace.steps_per_second:,.0f} steps/s a slot, measured on {side}"]
    for slots in sorted({planned.slots, planned.wanted}):
        hours = training_hours(run, planned, pace, slots) * len(window_numbers(run))
        spent = hours * slots
        resources, price, what = run.resources, run.resources.usd_per_cpu_hour, "CPU"
        units = spent * resources.cpus_per_member
        if resources.gpus_per_member:
            price, what, units = resources.usd_per_gpu_hour, "GPU", spent * resources.gpus_per_member
        field = f"resources.usd_per_{what.lower()}_hour"
        cost = f"set {field} for the cost" if price is None else f"about ${units * price:.2f} of workers"
        lines.append(f"time       about {_span(hours)} of training on {slots} slots, {units:.2f} {what}-hours; {cost}")
    return lines


def _span(hours: float) -> str:
    if hours < 1 / 30:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"
