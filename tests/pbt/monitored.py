"""A tiny population trained for real with Ray's dashboard and the gauges on, in a process of its own.

``python -m tests.pbt.monitored FOLDER``: train a run in FOLDER/run. Once every pair has ended its first generation, and
at the end, say in one line of JSON what Ray knows by then, and wait for a line on standard input.
"""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.state import list_actors

from pbt.decisions import Decision
from pbt.gauges import Gauges
from pbt.pipeline import begin, load_population
from pbt.population import PairPopulation
from pbt.run_dir import RunDir
from pbt.training import train
from pbt.windows import windows_of
from rayconf import load_config
from rayconf.session import Machine, start_ray
from tests.pbt.conftest import TINY


class Pauses:
    """A listener that stops the driver once, its actors alive and idle."""

    def __init__(self, pairs: int, say: Callable[[], None]) -> None:
        self._waiting, self._say = pairs, say

    def __call__(self, event: str, population: PairPopulation, decisions: list[Decision] | None) -> None:
        if event == "barrier" and population.generation == 1:
            self._waiting -= 1
            if self._waiting == 0:
                self._say()


def watch(titles: set[str], ended: threading.Event) -> None:
    """Collect the names of Ray's workers."""
    while not ended.wait(0.02):
        for child in psutil.Process().children(recursive=True):
            try:
                titles.add(child.cmdline()[0].strip())
            except (psutil.Error, IndexError):
                continue


def main(folder: str) -> None:
    settings = [*TINY, "seed=7", "name=run", "pbt.iterations=3", "resources.cpus=2", "resources.dashboard=true"]
    run = load_config("smoke", assignments=settings)
    directory = RunDir(Path(folder) / "run", run.identity)
    directory.create()
    (window,) = windows_of(run, directory)
    begin(run, directory, [window])
    markets = window.markets
    titles, ended = set[str](), threading.Event()

    with start_ray(run.resources) as machine:

        def say() -> None:
            print(json.dumps(told(machine, titles)), flush=True)
            sys.stdin.readline()

        threading.Thread(target=watch, args=(titles, ended), daemon=True).start()
        references = {pair: ray.put(market) for pair, market in markets.items()}
        populations = {pair: load_population(run, directory, market) for pair, market in markets.items()}
        with Gauges(run, directory, populations) as gauges:
            train(run, directory, references, populations, 2, [gauges, Pauses(len(populations), say)])
            say()
    ended.set()


def told(machine: Machine, titles: set[str]) -> dict[str, Any]:
    """Where things are found, and what actors and processes are called."""
    session = ray._private.worker._global_node.get_session_dir_path()
    actors = [[actor.class_name, actor.repr_name, actor.state] for actor in list_actors(machine.dashboard, detail=True)]
    named = sorted(title for title in titles if title.startswith("ray::PairMember"))
    return {"session": session, "dashboard": machine.dashboard, "actors": actors, "titles": named}


if __name__ == "__main__":
    main(sys.argv[1])
