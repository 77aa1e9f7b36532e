"""How steps per second and memory grow with accounts, bars, features, members and pairs, and where the slopes bend.

``python -m benchmarks.scaling [--rounds K] [--axes NAME ...] [--quick] [--out FOLDER] [--chart FILE]``

One size moves at a time. Accounts, bars and features: PairPPO on one thread, rollouts alone and whole updates of
32,768 samples, whatever the number of accounts (512 accounts, 5,294 bars and the product's features where they do not
move; other widths are noise). Members and pairs: whole runs through the command, updates of 32,768 samples on all
slots of the machine. Every measurement is a process of its own, so that memory does not add up: peak resident memory,
imports and shared pages included. Rounds are interleaved: every round measures every setting, in turn, and begins
with another one. Slopes on log-log axes and bends are those of the medians over rounds (``benchmarks.bend``).

Writes ``scaling.parquet`` (a row per round, setting and quantity) and ``scaling_growth.parquet`` (a row per curve).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import linregress

from benchmarks.arena import BATCH
from benchmarks.bend import growth
from benchmarks.launches import measure_launch
from benchmarks.panels import Line, Panel, Row, short, write_panels
from benchmarks.scaling_worker import MINIBATCH
from benchmarks.throughput import cpu_name
from rayconf.origins import HOME

ACCOUNTS, BARS, QUICK_BARS, MEMBERS = 512, 5294, 1500, 4
TURNS = 48
"""Generations times members that a small population trains at least, so that start-up and the end weigh little."""
SPEED, MEMORY = "steps per second", "peak memory, MB"
OURS = ("training", "population", "process", "driver")
LEGEND = {
    SPEED: {"ours": "training; members and pairs: all slots together", "ceiling": "rollouts alone"},
    MEMORY: {"ours": "process; members and pairs: driver", "ceiling": "largest slot"},
}
TITLE = {"members": "members of a pair", "pairs": f"pairs x {MEMBERS} members"}
KEYS = ["axis", "quantity", "series"]

SIZES: dict[str, tuple[int, ...]] = {
    "accounts": tuple(2**k for k in range(6, 15)),
    "bars": (1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000),
    "features": (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
    "members": (4, 8, 12, 16, 24, 32, 64),
    "pairs": (1, 2, 3, 4, 6, 8),
}
QUICK_SIZES: dict[str, tuple[int, ...]] = {
    "accounts": (64, 512),
    "bars": (1000, 2000),
    "features": (8, 64),
    "members": (1, 2),
    "pairs": (1, 2),
}
UNITS = {axis: axis.removesuffix("s") for axis in SIZES}


def measure(axis: str, size: int, quick: bool) -> dict[tuple[str, str], float]:
    """One setting in a fresh process: values by quantity and series."""
    if axis in ("members", "pairs"):
        found = measure_launch(launch_settings(axis, size, quick))
        return {
            (SPEED, "population"): found["population"],
            (MEMORY, "driver"): found["driver_mb"],
            (MEMORY, "slot"): found["slot_mb"],
            ("count", "slots"): found["slots"],
        }
    asked = {
        "num_envs": size if axis == "accounts" else ACCOUNTS,
        "bars": size if axis == "bars" else QUICK_BARS if quick else BARS,
        "features": size if axis == "features" else None,
        "updates": 1 if quick else 5,
    }
    command = [sys.executable, "-m", "benchmarks.scaling_worker", json.dumps(asked)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        (SPEED, "training"): found["training"],
        (SPEED, "rollouts"): found["rollouts"],
        (MEMORY, "process"): found["process_mb"],
        ("memory after imports, MB", "process"): found["imports_mb"],
    }


def launch_settings(axis: str, size: int, quick: bool) -> list[str]:
    """Settings of a thin run: little validation and backtest, so that training is what lasts."""
    pairs = [f"SYN{chr(65 + 2 * i)}/SYN{chr(66 + 2 * i)}" for i in range(size if axis == "pairs" else 1)]
    members = size if axis == "members" else (2 if quick else MEMBERS)
    num_envs, rollout_steps, minibatch = (64, 32, 1024) if quick else (ACCOUNTS, BATCH // ACCOUNTS, MINIBATCH)
    generations = 2 if quick else max(3, TURNS // (members * len(pairs)))
    interval = 1 if quick else 2
    tiny = [f"synthetic.bars={QUICK_BARS}", "network.hidden=[16, 16]", "resources.object_store_mb=100"]
    return [
        *(tiny if quick else ()),
        f"data.pairs=[{','.join(pairs)}]",
        f"pbt.population={members}",
        f"pbt.iterations={generations * interval}",
        f"pbt.interval={interval}",
        f"ppo.num_envs={num_envs}",
        f"ppo.rollout_steps={rollout_steps}",
        f"ppo.minibatch_size={minibatch}",
        "backtest.cost_bps=[2]",
        "backtest.lags=[1]",
        "tracking.tensorboard=false",
    ]


def measure_all(axes: Sequence[str], rounds: int, quick: bool) -> pd.DataFrame:
    """A row per round, setting and quantity."""
    settings = [(name, size) for name in axes for size in (QUICK_SIZES if quick else SIZES)[name]]
    rows = []
    for round_ in range(rounds):
        print(f"round {round_ + 1} of {rounds}: {len(settings)} settings", flush=True)
        shift = 7 * round_ % len(settings)
        for axis, size in [*settings[shift:], *settings[:shift]]:
            for (quantity, series), value in measure(axis, size, quick).items():
                row = {"round": round_, "axis": axis, "size": size, "quantity": quantity, "series": series}
                rows.append({**row, "value": value})
    return pd.DataFrame(rows)


def growth_of(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per curve: slopes and bend of the medians over rounds, and for memory MB per unit (straight line) +- SE."""
    rows = []
    for key, curve in runs[runs.quantity.isin([SPEED, MEMORY])].groupby(KEYS, sort=False):
        medians = curve.groupby("size").value.median()
        own = growth(medians.index.to_numpy(), medians.to_numpy())
        row = dict(zip(KEYS, key, strict=True)) | asdict(own)
        row["bend"] = float("nan") if own.bend is None else own.bend
        if row["quantity"] == MEMORY:
            line = linregress(medians.index, medians)
            row |= {"mb_per_unit": line.slope, "mb_per_unit_se": line.stderr}
        rows.append(row)
    facts = {"cpu": cpu_name(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    return pd.DataFrame(rows).assign(**facts)


def slopes(curve: Any) -> str:
    """Slopes of a row of ``growth_of`` in words; two only where there clearly is a bend."""
    if np.isnan(curve.bend):
        return f"slope {curve.slope:+.2f}"
    return f"slope {curve.before:+.2f}, then {curve.after:+.2f}"


def report(runs: pd.DataFrame, curves: pd.DataFrame) -> str:
    """A table per axis, medians over rounds, with the curves' slopes under it."""
    blocks = [f"medians over {runs['round'].max() + 1} rounds; memory: peak resident, imports included"]
    for axis, group in runs.groupby("axis", sort=False):
        table = group.pivot_table(index="size", columns=["quantity", "series"], values="value", aggfunc="median")
        table.columns = [f"{series}: {quantity}" for quantity, series in table.columns]
        table = table.rename_axis(axis).reset_index()
        lines = [table.to_string(index=False, float_format="{:,.0f}".format)]
        for curve in curves[curves.axis == axis].itertuples():
            line = f"{curve.series}, {curve.quantity}: {slopes(curve)}"
            if not np.isnan(curve.bend):
                line += f", from {short(curve.bend)} {axis}"
            if not np.isnan(curve.p):
                line += f"; a second segment by chance: p {curve.p:.4f}"
            if curve.quantity == MEMORY and not np.isnan(curve.p):
                line += f"; {1e3 * curve.mb_per_unit:,.1f} kB (SE {1e3 * curve.mb_per_unit_se:,.1f}) per {UNITS[axis]}"
            lines.append(line)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def draw(runs: pd.DataFrame, curves: pd.DataFrame, path: Path) -> None:
    """The picture: a row for speed and one for memory, a panel per axis, medians with quartiles over rounds."""
    rows = []
    for quantity in (SPEED, MEMORY):
        panels = []
        for axis, group in runs[runs.quantity == quantity].groupby("axis", sort=False):
            lines = [
                Line(
                    "ours" if series in OURS else "ceiling",
                    [(size, *values.quantile([0.25, 0.5, 0.75])) for size, values in own.groupby("size").value],
                )
                for series, own in group.groupby("series", sort=False)
            ]
            chosen = (curves.axis == axis) & (curves.quantity == quantity) & curves.series.isin(OURS)
            ours = next(curves[chosen].itertuples())
            panels.append(Panel(TITLE.get(axis, axis), slopes(ours), lines, ours.bend))
        rows.append(Row(quantity, LEGEND[quantity], panels))
    slots = runs[runs.series == "slots"].value
    note = f"log-log; one thread, updates of 32,768 samples; medians and quartiles of {runs['round'].max() + 1} rounds"
    if len(slots):
        note += f"; members and pairs on {slots.max():.0f} slots"
    write_panels(path, "Growth with accounts, bars, features, members and pairs", note, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 3, with --quick 1)")
    parser.add_argument("--axes", nargs="+", default=list(SIZES), choices=list(SIZES), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="two small sizes of each axis: a smoke test, no figures")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the Parquet files")
    parser.add_argument("--chart", type=Path, help="SVG file (default docs/scaling.svg, with --quick in --out)")
    arguments = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come

    runs = measure_all(arguments.axes, arguments.rounds or (1 if arguments.quick else 3), arguments.quick)
    curves = growth_of(runs)
    print(report(runs, curves))
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs.to_parquet(arguments.out / "scaling.parquet", index=False)
    curves.to_parquet(arguments.out / "scaling_growth.parquet", index=False)
    draw(runs, curves, arguments.chart or (arguments.out if arguments.quick else Path("docs")) / "scaling.svg")


if __name__ == "__main__":
    main()
