"""How well a population keeps the cores busy, measured from outside the run.

``python -m benchmarks.population [--preset demo] [--set a.b=value ...] [--starts 5] [--out FOLDER]``

Runs ``python -m pbt.launch`` and looks at its processes through the operating system: CPU time and memory of the
slot actors, memory of the driver and of the object store. CPU time counts from an actor's first environment step, the
wall from the run's first one to the last moment of training. Beside it stand the run's own timers, held against the
wall. Then ``--starts`` launches of ``smoke`` are timed from the command to their first gradient step and ended there.

Writes ``population.parquet`` (a row per figure).
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from analysis.frames import read_jsonl
from analysis.timing import actor_times, first_gradient, time_line, time_split
from benchmarks.throughput import cpu_name
from pbt.run_dir import RunDir
from rayconf.loading import build_config, load_file
from rayconf.session import available_cpus, store_mb

EVERY = 0.2
"""Seconds between two looks at the processes."""


@dataclass
class Usage:
    """What the operating system said of one process."""

    name: str
    at: list[float] = field(default_factory=list)
    """Unix s of each look."""
    cpu: list[float] = field(default_factory=list)
    """CPU seconds, user and system, used until then."""
    rss: int = 0
    """Peak resident bytes."""
    shared: int = 0
    """Peak resident bytes that are shared with other processes."""

    def look(self, process: psutil.Process) -> None:
        """Take one more sample."""
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
        self.at.append(time.time())
        self.cpu.append(times.user + times.system)
        self.rss, self.shared = max(self.rss, memory.rss), max(self.shared, getattr(memory, "shared", 0))

    def cpu_between(self, begin: float, end: float) -> float:
        """CPU seconds between two moments in unix s, by straight lines between looks."""
        low, high = np.interp([begin, end], self.at, self.cpu)
        return float(high - low)


def launched(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the command quietly; its run is ``folder/run``."""
    return subprocess.Popen(
        [sys.executable, "-m", "pbt.launch", "--run-dir", str(folder), "--name", "run", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave no run behind: on every way out the command is interrupted, which takes its Ray down, and awaited."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate()


def watch(process: subprocess.Popen[bytes]) -> dict[int, Usage]:
    """Look at a command and all its descendants until it ends.

    Raises:
        RuntimeError: If the command fails, with its last words.
    """
    driver = psutil.Process(process.pid)
    known: dict[int, psutil.Process] = {driver.pid: driver}
    usage: dict[int, Usage] = {driver.pid: Usage("driver")}
    with ended(process):
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in driver.children(recursive=True):
                    if child.pid not in known:
                        known[child.pid], usage[child.pid] = child, Usage(child.name())
            for pid, found in known.items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    usage[pid].look(found)
            time.sleep(EVERY)
        if process.returncode != 0:
            raise RuntimeError(f"the run failed: {last_words(process)}")
    return usage


def last_words(process: subprocess.Popen[bytes]) -> str:
    """What a command that ended has said on its way."""
    assert process.stderr is not None
    return process.stderr.read().decode().strip()


def figures(directory: RunDir, usage: Mapping[int, Usage]) -> list[dict[str, Any]]:
    """The figures of a finished run, a row each: figure, value, unit."""
    run = build_config(load_file(directory.config))
    rows = read_jsonl(directory.progress_journal)
    actors = actor_times(rows)
    cores = run.resources.cpus or available_cpus()
    begin, end = min(actor.began for actor in actors), max(actor.ended for actor in actors)
    capacity = cores * (end - begin)
    missing = [actor.pid for actor in actors if actor.pid not in usage]
    if missing:  # on another machine, or gone between two looks
        raise RuntimeError(f"slot actors {missing} were not among the descendants of the command")
    # What an actor uses to start up while others train is no training.
    busy = sum(usage[actor.pid].cpu_between(actor.began, end) for actor in actors)
    switches = pd.DataFrame(rows).dropna(subset=["switch_seconds"])
    rebuilt = switches.switch_seconds - switches.wait_seconds
    each = [100 * actor.seconds / (actor.ended - actor.began) for actor in actors]
    split = time_split(rows)
    driver = next(found for found in usage.values() if found.name == "driver")
    stores = [found.shared for found in usage.values() if found.name == "raylet"]
    found: list[tuple[str, Any, str]] = [
        ("members", len({(row["pair"], row["member"]) for row in rows}), ""),
        ("cores", cores, ""),
        ("slot actors", len(actors), ""),
        ("first step to last", end - begin, "s"),
        ("CPU of the slot actors / (cores x wall)", 100 * busy / capacity, "%"),
        ("timers / wall, least of the actors", min(each), "%"),
        ("timers / wall, most of the actors", max(each), "%"),
        ("timers / (cores x wall)", 100 * sum(actor.seconds for actor in actors) / capacity, "%"),
        ("switch, median", switches.switch_seconds.median(), "s"),
        ("switch, p90", switches.switch_seconds.quantile(0.9), "s"),
        ("switch without waiting, median", rebuilt.median(), "s"),
        ("switch without waiting, p90", rebuilt.quantile(0.9), "s"),
        ("peak RSS, largest slot actor", max(usage[actor.pid].rss for actor in actors) / 1e6, "MB"),
        ("peak RSS, driver", driver.rss / 1e6, "MB"),
        ("object store, without a universe", store_mb(run.resources) * 2**20 / 1e6, "MB"),
        ("object store, peak in use", max(stores, default=0) / 1e6, "MB"),
        *((f"time in {part}", seconds, "actor s") for part, seconds in split.items()),
    ]
    return [{"figure": name, "value": float(value), "unit": unit} for name, value, unit in found]


def start_seconds(arguments: Sequence[str]) -> float:
    """Seconds from the command to the first gradient step of a run, which is ended after its first barrier.

    Raises:
        RuntimeError: If the command ends before that.
    """
    with tempfile.TemporaryDirectory() as folder:
        journal = RunDir(Path(folder) / "run").progress_journal
        began = time.time()
        process = launched(Path(folder), *arguments)
        with ended(process):
            while not read_jsonl(journal):
                if process.poll() is not None:
                    raise RuntimeError(f"the run ended before it trained: {last_words(process)}")
                time.sleep(EVERY)
            time.sleep(EVERY)  # the barrier's rows may still be on their way
            return first_gradient(read_jsonl(journal)) - began


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.population", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="demo", help="preset of the run that is watched (default: demo)")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", dest="assignments", help="any field")
    parser.add_argument("--starts", type=int, default=5, help="launches of smoke timed to their first gradient step")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the Parquet file")
    arguments = parser.parse_args(argv)
    settings = [argument for text in arguments.assignments for argument in ("--set", text)]
    load = os.getloadavg()[0]

    with tempfile.TemporaryDirectory() as folder:
        usage = watch(launched(Path(folder), "--preset", arguments.preset, *settings))
        directory = RunDir(Path(folder) / "run")
        rows = figures(directory, usage)
        line = time_line(time_split(read_jsonl(directory.progress_journal)))
    starts = [start_seconds(["--preset", "smoke", *settings]) for _ in range(arguments.starts)]
    if starts:
        named = {"median": np.median(starts), "least": min(starts), "most": max(starts)}
        rows += [
            {"figure": f"command to first gradient step, {name} of {len(starts)}", "value": float(value), "unit": "s"}
            for name, value in named.items()
        ]
    table = pd.DataFrame(rows).assign(preset=arguments.preset, cpu=cpu_name(), load=load)
    print(f"preset {arguments.preset}, {cpu_name()}, load before {load:.2f}")
    print(table[["figure", "value", "unit"]].to_string(index=False, header=False, float_format="{:,.2f}".format))
    print(line)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table.to_parquet(arguments.out / "population.parquet", index=False)


if __name__ == "__main__":
    main()
