"""One setting of the scaling benchmark in a process of its own: ``python -m benchmarks.scaling_worker JSON``.

Prints one line of JSON: peak resident memory after imports and at the end in MB, and the median steps per second of
rollouts alone and of whole PPO updates, on one thread.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from algos.config import PairPPOConfig
from algos.markets import provide
from algos.pair_ppo import PairPPO
from benchmarks.arena import BATCH, PAIR, Arena, arena
from envs.market import PairMarket
from envs.scaler import Scaler
from rayconf.sections import ResourcesConfig
from rayconf.session import start_ray

MINIBATCH = 8192
KEY = 11


def peak_mb(pid: int | str = "self") -> float:
    """Largest resident memory that a process has had, in MB of 10^6 bytes (Linux).

    ``getrusage`` would count what the process was before its ``exec`` too, that is its parent.
    """
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 / 1e6 if lines else 0.0  # a process that is ending has no memory left


def setting_of(num_envs: int, bars: int, features: int | None) -> Arena:
    """The arena with this many accounts and bars, and with ``features`` columns of noise instead of the product's.

    Speed and memory depend on the width of the features only; those of the product come in some widths alone.
    """
    setting = arena(MINIBATCH, BATCH, num_envs, [f"synthetic.bars={bars}"])
    if features is None:
        return setting
    market = widened(setting.market, features)
    provide(setting.run, PAIR, market)
    return Arena(setting.run, market)


def widened(market: PairMarket, features: int) -> PairMarket:
    """The market with ``features`` columns of standard normal noise in the place of its features."""
    noise = np.random.default_rng(KEY).standard_normal((len(market.dates), features), dtype=np.float32)
    names = tuple(f"noise_{i}" for i in range(features))
    scaler = Scaler(names, np.zeros(features), np.ones(features), market.scaler.extremes, market.scaler.limit)
    return dataclasses.replace(market, features=noise, scaler=scaler)


def measure(setting: Arena, updates: int) -> dict[str, float]:
    """Median steps per second of ``updates`` rollouts and of as many whole updates, in turn, after one of each."""
    algorithm: PairPPO = PairPPOConfig.from_run(setting.run, PAIR, key=KEY).build_algo()
    runner = algorithm.env_runner

    def rollout() -> None:
        runner.sample()
        runner.get_metrics()

    parts: dict[str, Callable[[], object]] = {"rollouts": rollout, "training": algorithm.train}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(updates + 1):
        for name, run in parts.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    algorithm.stop()
    return {name: setting.batch / statistics.median(taken[1:]) for name, taken in seconds.items()}


def main() -> None:
    """Measure the setting that the one argument describes."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    imports = peak_mb()
    setting = setting_of(asked["num_envs"], asked["bars"], asked["features"])
    with start_ray(ResourcesConfig(cpus=1, object_store_mb=80)):  # RLlib starts a larger one otherwise
        speeds = measure(setting, asked["updates"])
    print(json.dumps({**speeds, "imports_mb": imports, "process_mb": peak_mb()}))


if __name__ == "__main__":
    main()
