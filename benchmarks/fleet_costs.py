"""What a fleet's simulation needs to know, measured: the driver under Tune, and the members of real runs.

The driver's cost is the CPU time of its main thread, through which every result, save, reset and barrier passes:
thin members (``benchmarks.engine``) under real Tune, at several numbers of trials, and a straight line through them;
what a slot adds is what waiting for one task of many costs. What members cost is in the frame ``progress`` of a run:
the seconds of a generation, of an actor that becomes another member, of an actor's start.
"""

import dataclasses
import random
import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import ray
from scipy.optimize import nnls

from analysis.timing import WORK, actor_times
from benchmarks.engine import PER_PAIR, under_tune
from benchmarks.fleet_model import VISITS, Costs, Fleet, Outcome, simulate
from rayconf.sections import ResourcesConfig
from rayconf.session import start_ray

SIZES = ((60, 2), (250, 2), (500, 2), (1000, 2))
"""Trials and slots at which the driver is measured."""
FUTURES = (64, 1024)
"""Tasks that the driver waits for, to see what each adds."""
THIN_GENERATIONS = 3
PINGS = 300
SEEDS = 5
"""Simulations whose median is held against a real run."""


def measure_driver(sizes: Sequence[tuple[int, int]] = SIZES) -> pd.DataFrame:
    """A row per number of trials and slots, as ``benchmarks.engine`` has them, with a call's ``round_trip_ms``."""
    rows = [under_tune(trials, THIN_GENERATIONS, slots) for trials, slots in sizes]
    call, wait = calls()
    return pd.DataFrame(rows).assign(round_trip_ms=1000 * call, wait_us_per_slot=1e6 * wait)


class Echo:
    """An actor that answers."""

    def answer(self, seconds: float = 0.0) -> None:
        """Return, after a while."""
        time.sleep(seconds)


def calls() -> tuple[float, float]:
    """Median seconds of a call to an actor of this machine, and CPU seconds that each slot adds to the driver's waits.

    Tune waits for one of as many tasks as slots are at work, in random order, at every visit.
    """
    with start_ray(ResourcesConfig(cpus=1, object_store_mb=80)):
        actor = ray.remote(Echo).remote()
        taken = []
        for _ in range(PINGS):
            began = time.perf_counter()
            ray.get(actor.answer.remote())
            taken.append(time.perf_counter() - began)
        waits = []
        tasks = {actor.answer.remote(3600.0): None}
        for count in FUTURES:
            tasks |= {actor.answer.remote(): None for _ in range(count - len(tasks))}
            each = []
            for _ in range(PINGS // 5):
                cpu = time.thread_time()
                shuffled = list(tasks)
                random.shuffle(shuffled)
                ray.wait(shuffled, num_returns=1, timeout=0)
                each.append(time.thread_time() - cpu)
            waits.append(statistics.median(each))
        ray.kill(actor)
    return statistics.median(taken), max(0.0, (waits[1] - waits[0]) / (FUTURES[1] - FUTURES[0]))


def driver_costs(driver: pd.DataFrame) -> Costs:
    """The driver's costs, without any member's: a cost per visit that grows evenly with trials and slots."""
    per_slot = float(driver.wait_us_per_slot.median()) / 1e6
    per_result = driver.thread_ms_per_result.to_numpy() / 1000 - VISITS * per_slot * driver.slots.to_numpy()
    columns = np.column_stack([np.ones(len(driver)), driver.members])
    (base, per_trial), _ = nnls(columns / per_result[:, None], np.ones(len(driver)))  # least relative error
    return Costs(
        generations=np.zeros(1),
        visit=base / VISITS,
        visit_per_trial=per_trial / VISITS,
        visit_per_slot=per_slot,
        barrier_per_member=float(driver.barrier_ms_per_member.median()) / 1000,
        round_trip=float(driver.round_trip_ms.median()) / 1000,
    )


def start_seconds(driver: pd.DataFrame, trials: int) -> float:
    """Driver CPU from the start of training until the first member trains: Tune's trials, at the cost of a square."""
    columns = np.column_stack([np.ones(len(driver)), driver.members**2])
    (base, square), _ = nnls(columns / driver.start_cpu_seconds.to_numpy()[:, None], np.ones(len(driver)))
    return float(base + square * trials**2)


def with_members(costs: Costs, progress: pd.DataFrame) -> Costs:
    """The driver's costs together with what the members of a run cost, by its frame ``progress``."""
    work = [f"{part}_seconds" for part in WORK]
    generations = progress.groupby(["pair", "member", "generation"])[work].sum().sum(axis=1)
    switched = progress[progress.wait_seconds.notna()]
    slots = progress.groupby(["host", "actor_pid"]).ngroups
    own = costs.visit_seconds(progress.groupby(["pair", "member"]).ngroups, slots) + costs.round_trip
    starts = progress.startup_seconds.dropna()
    # A wait is a barrier's or, at the least, that of a result and a save; a rebuild is seen with a reset and a restore.
    pointer = max(0.0, float(switched.wait_seconds.quantile(0.25)) - 2 * own)
    rebuilds = np.maximum(0.0, (switched.switch_seconds - switched.wait_seconds).to_numpy() - 2 * own)
    return _replaced(costs, generations.to_numpy(), rebuilds, starts.to_numpy(), pointer)


def thin_members(costs: Costs, row: Mapping[str, float]) -> Costs:
    """The same for the thin members of a row of ``measure_driver``."""
    own = costs.visit_seconds(int(row["members"]), int(row["slots"])) + costs.round_trip
    pointer = max(0.0, row["wait_ms"] / 1000 - 2 * own)
    rebuild = max(0.0, (row["switch_ms"] - row["wait_ms"]) / 1000 - 2 * own)
    return _replaced(costs, np.array([row["work_ms"] / 1000]), np.array([rebuild]), np.zeros(1), pointer)


def validate_run(name: str, costs: Costs, progress: pd.DataFrame) -> dict[str, object]:
    """A run's seconds from its first step to its last, and those that its simulation says."""
    members = progress.groupby(["pair", "member"]).ngroups
    slots = progress.groupby(["host", "actor_pid"]).ngroups
    fleet = Fleet(1, slots, members, members // progress.pair.nunique(), int(progress.generation.max()))
    columns = progress.astype(object).where(progress.notna(), None)
    actors = actor_times([dict(row) for _, row in columns.iterrows()])
    real = max(actor.ended for actor in actors) - min(actor.began for actor in actors)
    own = with_members(costs, progress)
    predicted = statistics.median(simulate(fleet, own, seed).wall for seed in range(SEEDS))
    return _validation(name, fleet, real, predicted)


def validate_thin(costs: Costs, driver: pd.DataFrame) -> list[dict[str, object]]:
    """Seconds from the end of the first generation to the last result of thin members; all as the smallest run's."""
    rows = [dict(row) for _, row in driver.iterrows()]
    members = thin_members(costs, rows[0])
    found = []
    for row in rows:
        fleet = Fleet(1, int(row["slots"]), int(row["members"]), PER_PAIR, int(row["generations"]))
        predicted = _steady(simulate(fleet, members))
        found.append(_validation("thin members", fleet, row["steady_seconds"], predicted))
    return found


def _steady(outcome: Outcome) -> float:
    return float(outcome.results[-1] - outcome.results[outcome.seconds.shape[1] - 1])


def _validation(name: str, fleet: Fleet, real: float, predicted: float) -> dict[str, object]:
    what = {"run": name, "slots": fleet.slots, "members": fleet.members, "generations": fleet.generations}
    return what | {"real_seconds": real, "predicted_seconds": predicted, "error": predicted / real - 1}


def _replaced(
    costs: Costs, generations: np.ndarray, rebuilds: np.ndarray, cold_starts: np.ndarray, pointer: float
) -> Costs:
    return dataclasses.replace(
        costs, generations=generations, rebuilds=rebuilds, cold_starts=cold_starts, pointer=pointer
    )
