"""How far it scales: what a run on up to 1,000 nodes would be held up by, simulated with measured costs.

``python -m benchmarks.fleet [--run RUN ...] [--driver FILE] [--nodes N ...] [--storage-ms S] [--out FOLDER] ...``

Costs are measured on this machine: the driver's with thin members under real Tune (minutes; ``--driver`` takes them
from an earlier ``fleet_driver.parquet``), the members' from the frames of finished runs (``--run``; without, the preset
``demo`` is run, half its members for three generations, on one CPU and on two). Latency of the storage, losses of
nodes and their replacement are assumptions, and flags. First the simulation (``benchmarks.fleet_model``) is held
against the wall time of those runs and of the thin members. Then it predicts fleets of nodes with 16 slots
(c6i.4xlarge) and with one, two members to a slot: the share of the slots' time that makes progress, what most of the
rest goes to, and how long a generation must be for the slots to be 90 % busy. Driver costs beyond the measured number
of trials are extrapolated.

Writes ``fleet.parquet`` (a row per fleet), ``fleet_validation.parquet`` and ``fleet_driver.parquet``. The same costs
and seed give the same figures.
"""

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.fleet_costs import (
    driver_costs,
    measure_driver,
    start_seconds,
    validate_run,
    validate_thin,
    with_members,
)
from benchmarks.fleet_model import BUCKETS, DRIVER_REQUESTS, SLOT_GETS, SLOT_PUTS, VISITS, Costs, Fleet, simulate
from benchmarks.launches import launched
from pbt.knocker import PATIENCE

PER_PAIR = 8
SLOTS = (16, 1)
"""Of a node."""
EVEN_NODES = 10
"""The nodes of the fleet that has as many members as slots."""
BUSY = 0.9
SEARCH_TURNS = 4000
"""Generations times members of the runs that are tried; three generations at the least."""
STRIDE, PRECISION = 1.3, 1.07
"""Of the search for the generation that is needed."""
KNOCK, SILENCE = 0.0005, PATIENCE
"""Assumed: a connection to a living node, seconds; a dead one's, which is ``pbt.knocker``'s limit."""
MEASURED = ("pbt.population=4", "pbt.iterations=9", "tracking.tensorboard=false")


def measured_runs() -> dict[str, pd.DataFrame]:
    """The frame ``progress`` of a run of three generations on one CPU, and on two."""
    return {f"{cpus} CPU": launched([*MEASURED, f"resources.cpus={cpus}"], preset="demo")[0] for cpus in (1, 2)}


def scaled(costs: Costs, mean: float) -> Costs:
    """The same costs with generations of this mean, and of the same relative spread."""
    return dataclasses.replace(costs, generations=costs.generations * (mean / costs.generations.mean()))


def fleets(nodes: Sequence[int], generations: int, **terms: float) -> list[Fleet]:
    """Two members to a slot; in one of them one."""
    found = [Fleet(n, s, max(2, 2 * n * s), PER_PAIR, generations, **terms) for s in SLOTS for n in nodes]
    even = [Fleet(n, SLOTS[0], n * SLOTS[0], PER_PAIR, generations, **terms) for n in nodes if n == EVEN_NODES]
    return found + even


def needed_seconds(fleet: Fleet, costs: Costs, seed: int) -> float:
    """Mean seconds of a generation from which the slots of a fleet that loses no node are ``BUSY``; inf: none is.

    Start and end of the run, which depend on how many generations it has, do not count.
    """
    generations = min(24, max(3, SEARCH_TURNS // fleet.members))
    short = dataclasses.replace(fleet, generations=generations, losses_per_hour=0.0)

    def enough(mean: float) -> bool:
        return simulate(short, scaled(costs, mean), seed).steady >= BUSY

    handled = VISITS * costs.visit_seconds(fleet.members, fleet.slots) + costs.barrier_per_member
    handled += DRIVER_REQUESTS * fleet.storage / fleet.per_pair
    requests = SLOT_GETS + SLOT_PUTS
    alone = VISITS * costs.round_trip + costs.pointer + float(costs.rebuilds.mean()) + requests * fleet.storage
    low = high = max(fleet.slots * handled, alone * BUSY / (1 - BUSY)) or float(costs.generations.mean())
    least, most = high / 1000, high * 100
    while not enough(high):
        low, high = high, high * STRIDE
        if high > most:
            return math.inf
    while low > least and (low == high or enough(low)):
        low, high = low / STRIDE, low
    while high / low > PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def predict(fleet: Fleet, costs: Costs, starting: float, iteration: float, seed: int) -> dict[str, Any]:
    """A row: the fleet, what became of its run, and the generation that it needs.

    Args:
        fleet: The fleet.
        costs: Its costs.
        starting: Seconds until Tune has all trials.
        iteration: Seconds of a PPO update, to say the needed generation as ``pbt.interval``.
        seed: Of what is drawn.
    """
    outcome = simulate(fleet, costs, seed)
    needed = needed_seconds(fleet, costs, seed)
    whole = sum(outcome.buckets.values())
    return {
        **dataclasses.asdict(fleet),
        "slots": fleet.slots,
        "generation_seconds": float(costs.generations.mean()),
        "efficiency": outcome.efficiency,
        "driver_utilisation": outcome.utilisation,
        "bottleneck": outcome.bottleneck,
        "wall_seconds": outcome.wall,
        "start_seconds": starting + outcome.first_step,
        "results_per_second": len(outcome.results) / outcome.wall,
        "losses": outcome.losses,
        "needed_seconds": needed,
        "needed_interval": math.ceil(needed / iteration) if math.isfinite(needed) else None,
        **{f"share_{name.replace(' ', '_')}": outcome.buckets[name] / whole for name in BUCKETS},
    }


def table(rows: pd.DataFrame) -> str:
    """The rows for people."""
    shown = pd.DataFrame(
        {
            "nodes": rows.nodes,
            "slots": rows.slots,
            "members": rows.members,
            "busy": rows.efficiency.map("{:.0%}".format),
            "driver at work": rows.driver_utilisation.map("{:.0%}".format),
            "bottleneck": rows.bottleneck,
            "start-up, s": rows.start_seconds.map("{:,.0f}".format),
            f"{BUSY:.0%} busy from, s": rows.needed_seconds.map("{:,.1f}".format),
            "pbt.interval": rows.needed_interval.map(lambda n: "-" if pd.isna(n) else f"{n:,.0f}"),
        }
    )
    return shown.to_string(index=False)


def progress_of(run: Path) -> pd.DataFrame:
    """The frame ``progress`` of a finished run."""
    return pd.read_parquet(run / "frames" / "progress.parquet")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 2 where a file is missing."""
    parser = argparse.ArgumentParser(prog="benchmarks.fleet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="finished runs; the first predicts")
    parser.add_argument("--driver", type=Path, help="fleet_driver.parquet of an earlier call, instead of measuring")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--seconds", type=float, help="mean of a generation; default: the run's")
    parser.add_argument("--storage-ms", type=float, default=50.0, help="a request to the storage; 0: a local disk")
    parser.add_argument("--losses", type=float, default=0.01, help="of a node per hour")
    parser.add_argument("--detection", type=float, default=15.0, help="seconds until the driver knows of a loss")
    parser.add_argument("--replacement", type=float, default=300.0, help="seconds from a loss to another node")
    parser.add_argument("--joining", type=float, default=0.0, help="seconds over which nodes join")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of fleet.parquet")
    args = parser.parse_args(argv)
    for path in [*([args.driver] if args.driver else []), *(run / "frames" / "progress.parquet" for run in args.run)]:
        if not path.is_file():
            print(f"benchmarks.fleet: {path} is missing; see --driver and --run in --help", file=sys.stderr)
            return 2
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    driver = measure_driver() if args.driver is None else pd.read_parquet(args.driver)
    runs = {run.name: progress_of(run) for run in args.run} or measured_runs()
    args.out.mkdir(parents=True, exist_ok=True)
    driver.to_parquet(args.out / "fleet_driver.parquet", index=False)

    base = dataclasses.replace(driver_costs(driver), knock=KNOCK, silence=SILENCE)
    print(describe(base))
    checks = [validate_run(name, base, frame) for name, frame in runs.items()] + validate_thin(base, driver)
    validation = pd.DataFrame(checks)
    validation.to_parquet(args.out / "fleet_validation.parquet", index=False)
    print(validation.to_string(index=False, float_format="{:.2f}".format), flush=True)

    first = next(iter(runs.values()))
    costs = with_members(base, first)
    iteration = float(costs.generations.mean()) / (first.iteration.max() / first.generation.max())
    costs = costs if args.seconds is None else scaled(costs, args.seconds)
    terms = {
        "storage": args.storage_ms / 1000,
        "losses_per_hour": args.losses,
        "detection": args.detection,
        "replacement": args.replacement,
        "joining": args.joining,
    }
    rows = pd.DataFrame(
        [
            predict(fleet, costs, start_seconds(driver, fleet.members), iteration, args.seed)
            for fleet in fleets(args.nodes, args.generations, **terms)
        ]
    )
    rows.to_parquet(args.out / "fleet.parquet", index=False)
    print(
        f"generations of {costs.generations.mean():.2f} s (coefficient of variation "
        f"{costs.generations.std() / costs.generations.mean():.2f}), storage {args.storage_ms:g} ms a request, "
        f"{args.losses:g} losses per node and hour; driver extrapolated beyond {driver.members.max():.0f} trials"
    )
    print(table(rows))
    return 0


def describe(costs: Costs) -> str:
    """The driver's costs in a line."""
    return (
        f"driver, CPU: {4000 * costs.visit:.2f} ms a result + {4e6 * costs.visit_per_trial:.2f} us per trial "
        f"+ {4e6 * costs.visit_per_slot:.1f} us per slot; barrier {1000 * costs.barrier_per_member:.2f} ms per member; "
        f"call {1000 * costs.round_trip:.2f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
