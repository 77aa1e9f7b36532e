"""Does the verdict tell skill from luck? Whole runs on prices without structure and on prices with a known optimum.

``python -m benchmarks.honesty [--runs N] [--markets walk plain] [--set a.b=value] [--out FOLDER]``

Every run is a launch of its own on a market of its own, at half the population of the preset ``study``: training,
survivors, backtest, statistics. On the form ``walk`` both prices are martingales and a claim of skill is a false alarm;
on ``plain`` the spread reverts and 10,000 test bars should show it. At the nominal level of at most 2.5 % one
false alarm in 40 runs is expected, 6 have a chance under 1 in 1,000; with a power of 0.9 fewer than 32 finds of 40 have
1.5 %. The interval beside each rate is Clopper and Pearson's (1934).

A run takes about 20 seconds of two quiet cores. Runs stay in FOLDER and are not trained again;
their frames are judged anew every time. Writes ``honesty.parquet``, a row per run.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from scipy.stats import binomtest

from analysis.statistics import evidence
from envs.universe import listed
from pbt.pipeline import begin, execute
from pbt.run_dir import RunDir
from pbt.windows import windows_of
from rayconf.loading import load_config
from rayconf.run_config import RunConfig
from rayconf.session import Machine, start_ray

MARKETS = ("walk", "plain")
MOST_ALARMS, FEWEST_FINDS, PLANNED = 5, 32, 40
"""What the default of 40 runs a market must keep to."""


def honest_run(market: str, seed: int, assignments: Sequence[str]) -> RunConfig:
    """The preset ``study`` with four members and the usual fitness, on market number ``seed``."""
    settings = (
        f"seed={seed}",
        f"synthetic.seed={seed}",
        f"synthetic.form={market}",
        "pbt.population=4",
        "pbt.fitness=sharpe",
        "backtest.cost_bps=[]",
        "tracking.tensorboard=false",
    )
    return listed(load_config("study", assignments=[*settings, *assignments]))


def train(run: RunConfig, machine: Machine, folder: Path) -> None:
    """One run into ``folder``, which appears under its name when it is complete."""
    temporary = RunDir(folder.with_name(f"{folder.name}-{time.time_ns()}"), run.identity)
    temporary.create()
    windows = windows_of(run, temporary)
    begin(run, temporary, windows)
    execute(run, temporary, windows, machine, Console(quiet=True))
    temporary.path.rename(folder)


def judge(market: str, seed: int, folder: Path) -> dict[str, Any]:
    """The verdict on a finished run, as a row."""
    ((pair, found),) = evidence(folder).items()
    return {
        "market": market,
        "seed": seed,
        "pair": pair,
        "claim": found.claim,
        "sharpe": found.sharpe.value,
        "sharpe_low": found.sharpe.low,
        "sharpe_high": found.sharpe.high,
        "deflated_sharpe": found.deflated_sharpe,
        "trials": found.trials,
        "effective_trials": found.effective_trials,
        "overfitting": found.overfitting,
        "verdict": found.sentence(),
    }


def report(table: pd.DataFrame) -> str:
    """Claims of skill by market, with the interval of their rate."""
    lines = []
    for market, rows in table.groupby("market", sort=False):
        claims = int((rows.claim == "above").sum())
        interval = binomtest(claims, len(rows)).proportion_ci(method="exact")
        what = "false alarms" if market == "walk" else "finds"
        line = (
            f"{market:6s} {what} {claims} of {len(rows)}  rate 95 % interval {interval.low:.3f} .. {interval.high:.3f}"
        )
        line += f"  median Sharpe on test {rows.sharpe.median():+.2f}  median PBO {rows.overfitting.median():.2f}"
        if len(rows) == PLANNED:
            kept = claims <= MOST_ALARMS if market == "walk" else claims >= FEWEST_FINDS
            bound = f"at most {MOST_ALARMS}" if market == "walk" else f"at least {FEWEST_FINDS}"
            line += f"  {'kept' if kept else 'MISSED'}: {bound}"
        lines.append(line)
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.honesty", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=PLANNED, help=f"runs per market (default {PLANNED})")
    parser.add_argument("--markets", nargs="+", choices=MARKETS, default=list(MARKETS))
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", dest="assignments")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of honesty.parquet")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    cells = [(market, seed) for seed in range(arguments.runs) for market in arguments.markets]
    folders = {cell: arguments.out / "honesty" / f"{cell[0]}-{cell[1]}" for cell in cells}
    todo = [cell for cell in cells if not folders[cell].is_dir()]
    if todo:
        with start_ray(honest_run(*todo[0], arguments.assignments).resources, None) as machine:
            for cell in todo:
                began = time.perf_counter()
                train(honest_run(*cell, arguments.assignments), machine, folders[cell])
                print(f"{cell[0]} {cell[1]}: {time.perf_counter() - began:.0f} s", flush=True)
    table = pd.DataFrame([judge(*cell, folders[cell]) for cell in cells])
    table.to_parquet(arguments.out / "honesty.parquet", index=False)
    print(report(table))


if __name__ == "__main__":
    main()
