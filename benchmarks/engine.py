"""What the population engine itself costs: decisions without Tune, and many members under Tune that train nothing.

``python -m benchmarks.engine [--members N ...] [--trials N ...] [--out FOLDER]``

- *decisions*: ``pbt.decisions.decide`` on random standings of up to 100,000 members over pairs of ten, with lineage
  rows as the journal has them: decisions per second, memory per member, bytes per member and generation.
- *tune*: the product's scheduler, barriers, manifests and journals under real Tune, with members that write a small
  state and a return stream and compute nothing. What is left is bookkeeping: seconds and milliseconds per member and
  generation, the driver's memory, bytes on disk. It starts a Ray of its own. ``benchmarks.fleet`` fits what the
  driver's main thread, which nothing can be shared with, needs for the start, for a result and for a barrier.

Writes ``engine.parquet``, a row per size.
"""

import argparse
import json
import random
import tempfile
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import ray
import torch
from ray import tune

from analysis.frames import read_jsonl
from pbt.decisions import Decision, decide
from pbt.fitness import Calendar, Gap
from pbt.lineage import lineage_row
from pbt.manifest import Member
from pbt.population import PairPopulation, start
from pbt.run_dir import RunDir, member_name
from pbt.search import initial_values
from pbt.standings import Standing
from pbt.store import ReturnStore, StateStore
from pbt.training import train
from rayconf.keys import derive_key
from rayconf.loading import load_config
from rayconf.plan import plan
from rayconf.run_config import RunConfig
from rayconf.session import start_ray
from rayconf.storage import storage_at

PER_PAIR = 10
DAYS = 504


def engine_run(pairs: int, generations: int = 2) -> RunConfig:
    """Pairs of ten members."""
    names = ",".join(f"A{i}/B{i}" for i in range(pairs))
    settings = (
        f"data.pairs=[{names}]",
        f"pbt.population={PER_PAIR}",
        f"pbt.iterations={generations}",
        "pbt.interval=1",
    )
    return load_config("smoke", assignments=[*settings, "pbt.replace_z=1", "pbt.survivors=1"])


def decisions(members: int) -> dict[str, float]:
    """Decide one barrier of every pair."""
    run = engine_run(max(1, members // PER_PAIR))
    rng = random.Random(0)
    standings = {
        pair: [
            Standing(member_name(i), rng.gauss(0, 1), 0.3, rng.gauss(0, 1), initial_values(run, pair, i))
            for i in range(PER_PAIR)
        ]
        for pair in run.data.pairs
    }
    began, size = time.perf_counter(), 0
    for pair, own in standings.items():
        by_name = {standing.member: standing for standing in own}
        for decision in decide(run, pair, 1, own, lambda donor, member: Gap(1.0, 0.5)):
            after = Member("0" * 16, decision.values, decision.parent, 1)
            row = lineage_row(run, "engine", pair, 1, decision, after, by_name[decision.member])
            size += len(json.dumps(row)) + 1
    seconds = time.perf_counter() - began
    tracemalloc.start()
    pair, own = next(iter(standings.items()))
    kept = [decide(run, pair, 1, own, lambda donor, member: Gap(1.0, 0.5)) for _ in range(100)]
    memory = tracemalloc.get_traced_memory()[0] / (len(kept) * PER_PAIR)
    tracemalloc.stop()
    return {
        "members": members,
        "seconds": seconds,
        "decisions_per_second": members / seconds,
        "bytes_per_member": memory,
        "journal_bytes_per_member": size / members,
    }


class ThinMember(tune.Trainable):
    """A member that trains nothing: its fitness is a number of its key."""

    _idle_since: float | None = None  # when this process last finished work
    _wait_seconds: float | None = None  # from then to its next ticket

    def setup(self, config: dict[str, Any], markets: Mapping[str, Any] | None = None) -> None:
        """Take the first ticket."""
        self._ticket = config["ticket"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next ticket."""
        if ThinMember._idle_since is not None:
            self._wait_seconds = time.time() - ThinMember._idle_since
        self._ticket = new_config["ticket"]
        return True

    def step(self) -> dict[str, Any]:
        """A state, a return stream and a result, as a real member leaves them."""
        place, began = self._ticket, time.time()
        generation = place["generation"] + 1
        rng = np.random.Generator(np.random.PCG64(derive_key(place["pair"], place["member"], generation)))
        run = storage_at(place["place"])
        stream = 0.01 * rng.standard_normal(DAYS)
        ReturnStore(run).save((place["pair"], place["member"], generation), stream)
        state = StateStore(run).save({"weights": torch.from_numpy(stream[:64])})
        fitness = float(stream.mean() / stream.std())
        row = {name: place[name] for name in ("pair", "member")}
        row |= {"generation": generation, "iteration": generation, "env_steps": generation, "skipped_steps": 0}
        row |= {"fitness": fitness, "fitness_se": 0.1}
        if ThinMember._idle_since is not None:
            row |= {"wait_seconds": self._wait_seconds, "switch_seconds": began - ThinMember._idle_since}
        ThinMember._idle_since = row["wall_time"] = time.time()
        row["checkpoint_seconds"] = row["wall_time"] - began  # all that it did
        measured = {"fitness": fitness, "fitness_se": 0.1, "idle": False, "val_sharpe": fitness, "train_sharpe": None}
        return {"generation": generation, "state": state, "iterations": [row], **measured}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A pointer."""
        (Path(checkpoint_dir) / "pointer.json").write_text("{}")

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to do."""


class TimedPopulation(PairPopulation):
    """A population that adds up what its barriers take of the driver's main thread."""

    cpu_seconds = wall_seconds = 0.0

    def commit(self) -> list[Decision]:
        """Close the barrier."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return super().commit()
        finally:
            self.cpu_seconds += time.thread_time() - cpu
            self.wall_seconds += time.perf_counter() - wall


def under_tune(members: int, generations: int = 2, cpus: int | None = None) -> dict[str, float]:
    """Thin members under real Tune.

    Args:
        members: Trials.
        generations: Of each, two or more; the first, in which actors and trials start, is no part of the driver's time
            per result.
        cpus: What Ray takes the machine to have, hence actors side by side; None: what it has.
    """
    run = engine_run(members // PER_PAIR, generations)
    run = run.model_copy(update={"resources": run.resources.model_copy(update={"cpus": cpus})})
    marks: list[tuple[float, float]] = []  # wall and main thread's CPU at every result

    def mark(event: str, population: PairPopulation, decisions: list[Decision] | None) -> None:
        if event == "result":
            marks.append((time.perf_counter(), time.thread_time()))

    with tempfile.TemporaryDirectory() as folder, start_ray(run.resources, None) as machine:
        directory = RunDir(Path(folder) / "run", run.identity)
        directory.create()
        calendar = Calendar([np.datetime64("2000-01-03") + np.arange(DAYS)], [252.0])
        populations = {p: TimedPopulation(run, directory, calendar, start(run, p, directory)) for p in run.data.pairs}
        markets = {pair: ray.put(None) for pair in run.data.pairs}
        slots = plan(run, machine).slots
        began, own, cpu = time.perf_counter(), time.thread_time(), time.process_time()
        train(run, directory, markets, populations, slots, [mark], trainable=ThinMember)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        disk = sum(file.stat().st_size for file in directory.path.rglob("*") if file.is_file())
        rows = [row for row in read_jsonl(directory.progress_journal) if row["generation"] > 1]
        work, wait, switch = (
            np.array([row[f"{part}_seconds"] for row in rows]) for part in ("checkpoint", "wait", "switch")
        )
    results = members * (generations - 1)
    barriers = sum(p.cpu_seconds for p in populations.values()) / (members * generations)
    steady = marks[members - 1]  # the end of the first generation
    return {
        "members": members,
        "slots": slots,
        "generations": generations,
        "seconds": seconds,
        "ms_per_member_generation": 1000 * seconds / (generations * members),
        "driver_cpu_ms_per_member_generation": 1000 * cpu / (generations * members),
        "start_cpu_seconds": marks[0][1] - own,
        "start_seconds": marks[0][0] - began,
        "steady_seconds": marks[-1][0] - steady[0],
        "thread_ms_per_result": 1000 * ((marks[-1][1] - steady[1]) / results - barriers),
        "barrier_ms_per_member": 1000 * barriers,
        "work_ms": 1000 * float(np.mean(work)),
        "wait_ms": 1000 * float(np.median(wait)),
        "switch_ms": 1000 * float(np.median(switch)),
        "driver_mb": psutil.Process().memory_info().rss / 2**20,
        "disk_bytes_per_member": disk / members,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.engine", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--members", type=int, nargs="*", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--trials", type=int, nargs="*", default=[20, 100, 300, 1_000])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of engine.parquet")
    arguments = parser.parse_args(argv)
    rows = []
    for what, measure, sizes in (
        ("decisions", decisions, arguments.members),
        ("tune", under_tune, arguments.trials),
    ):
        for size in sizes:
            rows.append({"what": what, **measure(size)})
            print(
                ", ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()),
                flush=True,
            )
    arguments.out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(arguments.out / "engine.parquet", index=False)


if __name__ == "__main__":
    main()
