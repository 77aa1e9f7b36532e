"""Members that share one GPU against one member on one CPU core: steps per second of PairPPO end to end.

``make bench-gpu`` or ``python -m benchmarks.gpu [--compiled] [--dry-run] [--rounds K] [--updates K] [--envs N ...]``

Every member is an actor of its own with its share of the GPU, as in a run of the product; the market is put into the
object store once. Arms run one after the other, the CPU core before and after the GPU, in rounds of several updates
that all members of an arm begin together. ``--compiled`` also times the rollout step and the gradient step in one
actor: eager, under ``torch.compile``, as a CUDA graph, and both. ``--dry-run`` runs the same code on a CPU with tiny
sizes; its figures mean nothing.

Writes ``gpu.parquet`` (a row per member and round), ``gpu_arms.parquet`` (a row per arm) and, with ``--compiled``,
``gpu_compiled.parquet`` (a row per timed call).
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch

from algos.markets import market_for
from benchmarks.arena import PAIR
from benchmarks.gpu_compiled import compare
from benchmarks.gpu_member import Member
from benchmarks.throughput import cpu_name
from rayconf import RunConfig, load_config
from rayconf.session import available_cpus

MEMBERS, DRY_MEMBERS = (1, 4, 16), (1, 2)
ENVS, DRY_ENVS = (512, 4096), (16,)
STEPS, DRY_STEPS = 64, 8
GRADIENT_STEPS = 4
"""Minibatches of an epoch, as in the product's default of 512 accounts."""
CPU_CORE = "one CPU core"
SAMPLE_SECONDS = 0.25
DRY_RUN = "dry run on CPU: no GPU measured"


def setting(envs: int, gpu_share: float, dry: bool) -> RunConfig:
    """The run of a member with so many accounts: the product's defaults on a market of 3,000 training bars."""
    steps = DRY_STEPS if dry else STEPS
    return load_config(
        "smoke",
        assignments=[
            f"data.pairs=[{PAIR}]",
            "synthetic.form=plain",
            f"ppo.num_envs={envs}",
            f"ppo.rollout_steps={steps}",
            f"ppo.minibatch_size={envs * steps // GRADIENT_STEPS}",
            "optimizer.schedule=constant",
            "optimizer.warmup_fraction=0",
            f"resources.gpus_per_member={gpu_share}",
            "resources.torch_threads=1",
        ],
    )


class Watch:
    """Utilisation and used memory of the GPU while a ``with`` block runs, as nvidia-smi tells them.

    Args:
        gpu: The GPU's identifier for ``nvidia-smi -i``; None: nothing is watched and the figures are NaN.
    """

    def __init__(self, gpu: str | None) -> None:
        program = shutil.which("nvidia-smi")
        fields = ["--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        self._command = [program, "-i", gpu, *fields] if program and gpu else None
        self._samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while self._command and not self._over.wait(SAMPLE_SECONDS):
            told = subprocess.run(self._command, capture_output=True, text=True, timeout=30)
            if told.returncode:
                return  # a container may hide the GPU's counters
            utilisation, used = told.stdout.strip().split(", ")
            if utilisation.isdecimal():  # "[N/A]" where the GPU does not count
                self._samples.append((float(utilisation), float(used)))

    @property
    def utilisation(self) -> float:
        """Mean share of time in percent in which a kernel ran; NaN if not told."""
        return float(np.mean([u for u, _ in self._samples])) if self._samples else float("nan")

    @property
    def used_mib(self) -> float:
        """Largest memory used on the GPU by all processes in MiB; NaN if not told."""
        return max((used for _, used in self._samples), default=float("nan"))


def start(run: RunConfig, members: int, gpu_share: float, market: ray.ObjectRef) -> list[Any]:
    """Actors of an arm, each with its share of the GPU, warmed up by an update."""
    actor = ray.remote(Member).options(num_cpus=1, num_gpus=gpu_share)
    actors = [actor.remote(run.model_dump(mode="json"), [market], key) for key in range(members)]
    ray.get([member.train.remote(1) for member in actors])
    return actors


def train(actors: Sequence[Any], arm: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Let the members of an arm train together for some rounds. A row per member and round."""
    rows = []
    for round_ in range(args.rounds):
        with Watch(args.gpu if arm["arm"] != CPU_CORE else None) as watch:
            trained = ray.get([member.train.remote(args.updates) for member in actors])
        wall = max(t.ended for t in trained) - min(t.began for t in trained)
        for number, t in enumerate(trained):
            own = {"member": number, **asdict(t), "steps_per_second": t.steps / (t.ended - t.began)}
            whole = {"arm_seconds": wall, "utilisation": watch.utilisation, "used_mib": watch.used_mib}
            rows.append({**arm, "members": len(actors), "round": round_, **own, **whole})
    return rows


def measure(args: argparse.Namespace) -> pd.DataFrame:
    """All arms at every number of accounts, the CPU core first and last. A row per member and round."""
    rows = []
    for envs in args.envs:
        on_cpu = setting(envs, 0.0, args.dry_run)
        market = ray.put(market_for({"run": on_cpu.model_dump(mode="json"), "pair": PAIR}))
        core = start(on_cpu, 1, 0.0, market)
        rows += train(core, {"envs": envs, "arm": CPU_CORE}, args)
        for members in args.members:
            # a dry run places its members by shares of a GPU that only Ray believes in, and trains them on the CPU
            run = on_cpu if args.dry_run else setting(envs, 1 / members, args.dry_run)
            actors = start(run, members, 1 / members, market)
            rows += train(actors, {"envs": envs, "arm": f"GPU, {members} sharing"}, args)
            for member in actors:
                ray.kill(member)
        rows += train(core, {"envs": envs, "arm": CPU_CORE}, args)
        ray.kill(core[0])
    return pd.DataFrame(rows)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per arm: medians over rounds of steps per second, all members together and each; memory; utilisation."""
    rounds = rows.groupby(["envs", "arm", "members", "round", "arm_seconds"], sort=False)
    each = rounds.agg(
        steps=("steps", "sum"),
        per_member=("steps_per_second", "mean"),
        allocated_mib=("allocated_mib", "max"),
        reserved_mib=("reserved_mib", "max"),
        used_mib=("used_mib", "max"),
        utilisation=("utilisation", "mean"),
    ).reset_index()
    each["steps_per_second"] = each.steps / each.arm_seconds
    arms = each.groupby(["envs", "arm", "members"], sort=False)
    table = arms.agg(
        rounds=("steps_per_second", "size"),
        steps_per_second=("steps_per_second", "median"),
        low=("steps_per_second", "min"),
        high=("steps_per_second", "max"),
        per_member=("per_member", "median"),
        allocated_mib=("allocated_mib", "max"),
        reserved_mib=("reserved_mib", "max"),
        used_mib=("used_mib", "max"),
        utilisation=("utilisation", "mean"),
    ).reset_index()
    core = table[table.arm == CPU_CORE].set_index("envs").steps_per_second
    table["to_one_core"] = table.steps_per_second / table.envs.map(core)
    return table


def hardware(dry: bool) -> dict[str, Any]:
    """What was measured on."""
    facts = {"cpu": cpu_name(), "cores": available_cpus(), "torch": torch.__version__, "cuda": torch.version.cuda}
    return {**facts, "gpu": DRY_RUN if dry else torch.cuda.get_device_name(0), "load": os.getloadavg()[0]}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="the same code on the CPU, tiny: a test, no figures")
    parser.add_argument("--compiled", action="store_true", help="also eager against torch.compile and CUDA graphs")
    parser.add_argument("--members", type=int, nargs="+", help="members that share the GPU (default 1 4 16)")
    parser.add_argument("--envs", type=int, nargs="+", help="accounts per member (default 512 4096)")
    parser.add_argument("--rounds", type=int, help="timed rounds of an arm (default 5)")
    parser.add_argument("--updates", type=int, help="PPO updates of a round (default 10)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the Parquet files")
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        print(
            f"benchmarks.gpu: torch {torch.__version__} finds no GPU; --dry-run tries the code on CPU", file=sys.stderr
        )
        return 2
    args.members = args.members or (DRY_MEMBERS if args.dry_run else MEMBERS)
    args.envs = args.envs or (DRY_ENVS if args.dry_run else ENVS)
    args.rounds = args.rounds or (2 if args.dry_run else 5)
    args.updates = args.updates or (1 if args.dry_run else 10)
    args.gpu = None if args.dry_run else f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    facts = hardware(args.dry_run)

    if args.dry_run:  # Ray refuses to count a GPU that this hides; nothing here uses one
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cpus = max(facts["cores"], 1 + max(args.members))  # the idle member of the CPU core keeps its own
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=cpus, num_gpus=1, object_store_memory=200 * 2**20, **options)
    compiled = None
    try:
        rows = measure(args)
        if args.compiled:
            one = setting(max(args.envs), 0.0 if args.dry_run else 1.0, args.dry_run)
            task = ray.remote(compare).options(num_cpus=1, num_gpus=1, max_retries=0)
            compiled = pd.DataFrame(ray.get(task.remote(one.model_dump(mode="json"), args.rounds)))
    finally:
        ray.shutdown()
    summary = summarise(rows).assign(**facts)
    args.out.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(args.out / "gpu.parquet", index=False)
    summary.to_parquet(args.out / "gpu_arms.parquet", index=False)
    if compiled is not None:
        compiled = compiled.assign(**facts)
        compiled.to_parquet(args.out / "gpu_compiled.parquet", index=False)
    print(report(summary, compiled, facts))
    return 0


def report(summary: pd.DataFrame, compiled: pd.DataFrame | None, facts: dict[str, Any]) -> str:
    """The tables in words."""
    lines = [facts["gpu"], f"{facts['cpu']}, {facts['cores']} cores; torch {facts['torch']}, CUDA {facts['cuda']}"]
    if facts["cores"] < summary.members.max():
        lines.append(f"{summary.members.max()} members share {facts['cores']} cores, too few for one each")
    whole = ["steps_per_second", "low", "high", "per_member", "allocated_mib", "reserved_mib", "used_mib"]
    formats = dict.fromkeys(whole, "{:,.0f}".format) | {"utilisation": "{:.0f}".format, "to_one_core": "{:.2f}".format}
    shown = ["envs", "arm", *whole[:4], "to_one_core", *whole[4:], "utilisation"]
    lines.append("steps/s of an arm and of each member, medians, smallest and largest round; largest MiB; percent busy")
    lines.append(summary[shown].to_string(index=False, formatters=formats, na_rep="-"))
    if compiled is not None:
        table = compiled.groupby(["what", "arm"], sort=False).agg(
            microseconds=("microseconds", "median"), difference=("difference", "max"), note=("note", "first")
        )
        lines.append("\nmicroseconds of one step, median over rounds; largest difference from eager results")
        lines.append(table.reset_index().to_string(index=False, na_rep="-"))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
