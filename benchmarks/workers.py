"""Two workers against one: whole runs on a Ray cluster beside plain torch loops in the same minutes.

``python -m benchmarks.workers [--rounds K] [--seconds S] [--out FOLDER]``

A worker is a node of a local Ray cluster with one CPU; the head has none. One cluster has one, another has two. Every
round trains the same population by ``pbt.launch --address`` on one worker and on two, and runs one plain PPO loop
(``benchmarks.plain_loop``) and two at once, each in a process of its own with one thread; every other round begins
with the two. The machine's own ratio from one loop to two is what two workers could reach at best: the figure is
theirs divided by it. Speed of a run: all its slots from the first update of each to the last, so start-up and backtest
are left out, evaluation, switches and barriers count.

Writes ``workers.parquet``, a row per round, arm and number of workers.
"""

import argparse
import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pandas as pd
import torch

from benchmarks.arena import BATCH, arena
from benchmarks.launches import launched, population_speed
from benchmarks.plain_loop import PlainLoop
from benchmarks.scaling_worker import MINIBATCH
from rayconf.origins import HOME

ACCOUNTS = 512
POPULATION = (
    "pbt.population=4",
    "pbt.iterations=6",
    "pbt.interval=2",
    f"ppo.num_envs={ACCOUNTS}",
    f"ppo.rollout_steps={BATCH // ACCOUNTS}",
    f"ppo.minibatch_size={MINIBATCH}",
    "backtest.cost_bps=[2]",
    "backtest.lags=[1]",
    "tracking.tensorboard=false",
)
"""Two pairs of four members, three generations of two updates: another pair fills a pair's barrier."""
QUICK = (
    *POPULATION,
    "pbt.population=2",
    "pbt.iterations=2",
    "pbt.interval=1",
    "ppo.num_envs=64",
    "ppo.minibatch_size=512",
    "network.hidden=[16, 16]",
    "synthetic.bars=1600",
)


# A cluster that lives until its input ends, also where whoever holds the other end is killed.
HOLD = """
import sys
from ray.cluster_utils import Cluster

small = dict(include_dashboard=False, object_store_memory=80 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, **small))
for _ in range(int(sys.argv[1])):
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[str]:
    """The address of a local cluster: a head without CPUs and ``workers`` nodes with one each."""
    command = [sys.executable, "-c", HOLD, str(workers)]
    holder = subprocess.Popen(command, cwd=HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        address = holder.stdout.readline().strip()
        if not address:
            raise RuntimeError("no Ray cluster came up")
        yield address
    finally:
        holder.communicate()


def population(address: str, settings: Sequence[str]) -> tuple[float, int]:
    """Steps per second of a run on the cluster at ``address``, and on how many slots members trained."""
    progress, _, _ = launched(settings, "--address", address, report=False)
    return population_speed(progress), progress.groupby(["host", "actor_pid"]).ngroups


def loops(count: int, seconds: float) -> float:
    """Steps per second of this many plain loops at once."""
    context = multiprocessing.get_context("spawn")
    ready, speeds = context.Barrier(count), context.SimpleQueue()
    processes = [context.Process(target=_loop, args=(key, seconds, ready, speeds)) for key in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a plain loop ended with status {process.exitcode}")
    return sum(speeds.get() for _ in processes)


def _loop(key: int, seconds: float, ready: Barrier, speeds: "multiprocessing.SimpleQueue[float]") -> None:
    torch.set_num_threads(1)
    loop = PlainLoop(arena(MINIBATCH, BATCH, ACCOUNTS), key)
    loop.update()
    ready.wait()
    began, updates = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        loop.update()
        updates += 1
    speeds.put(updates * BATCH / (time.perf_counter() - began))


def measure_all(rounds: int, seconds: float, settings: Sequence[str]) -> pd.DataFrame:
    """A row per round, arm and number of workers."""
    rows = []
    with cluster(1) as one, cluster(2) as two:
        for round_ in range(rounds):
            for count, address in ((1, one), (2, two)) if round_ % 2 == 0 else ((2, two), (1, one)):
                measured = {"loop": (loops(count, seconds), count), "population": population(address, settings)}
                load = os.getloadavg()[0]
                for arm, (speed, slots) in measured.items():
                    row = {"round": round_, "arm": arm, "workers": count, "slots": slots, "steps_per_second": speed}
                    rows.append({**row, "load": load})
                    print(f"round {round_ + 1}: {arm}, {count}: {speed:,.0f} steps/s, load {load:.1f}", flush=True)
    return pd.DataFrame(rows)


def ratios(runs: pd.DataFrame) -> pd.DataFrame:
    """One worker to two, a row per round: of the loops, of the population, and the second divided by the first."""
    speed = runs.pivot_table(index="round", columns=["arm", "workers"], values="steps_per_second")
    found = pd.DataFrame({arm: speed[arm, 2] / speed[arm, 1] for arm in ("loop", "population")})
    return found.assign(figure=found.population / found.loop)


def report(runs: pd.DataFrame) -> str:
    """The ratios of the medians, with the least and the largest of the rounds."""
    medians = runs.groupby(["arm", "workers"]).steps_per_second.median()
    whole = {arm: medians[arm, 2] / medians[arm, 1] for arm in ("loop", "population")}
    whole["figure"] = whole["population"] / whole["loop"]
    each = ratios(runs)
    names = {"loop": "plain loops, 1 to 2", "population": "workers, 1 to 2", "figure": "workers / plain loops"}
    lines = [
        f"{text:22} {whole[name]:.2f}   rounds {each[name].min():.2f} to {each[name].max():.2f}, "
        f"median {each[name].median():.2f}"
        for name, text in names.items()
    ]
    late = sorted(runs[runs.slots != runs.workers]["round"].unique() + 1)
    if late:  # a worker that starts slowly may find all work done; the figure then says nothing
        lines.append(f"round {', '.join(map(str, late))}: not every worker trained")
    return "\n".join([*lines, f"load average {runs.load.min():.1f} to {runs.load.max():.1f} on {os.cpu_count()} cores"])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.workers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of the plain loops")
    parser.add_argument("--quick", action="store_true", help="try the code: tiny runs, no figure")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of workers.parquet")
    arguments = parser.parse_args(argv)
    runs = measure_all(arguments.rounds, arguments.seconds, QUICK if arguments.quick else POPULATION)
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs.to_parquet(arguments.out / "workers.parquet", index=False)
    print(report(runs))


if __name__ == "__main__":
    main()
