"""Environment steps per second of PairPPO, of a plain torch loop and of other frameworks' PPO, on one core.

``python -m benchmarks.throughput [--rounds K] [--quick] [--no-peers] [--out FOLDER] [--chart FILE]``

All arms train the same network (2 x 64 tanh, actor and critic apart) from the same weights on the same accounts of the
plain synthetic market, 32,768 samples and 4 epochs an update, with one torch thread. Rounds are interleaved: every
round times every arm, in turn, and begins with another one. A run is one update. Wall seconds decide; the CPU seconds
of the thread beside them tell how much of the time the machine gave. After the same number of updates each arm's
policy is run on the same accounts and its critic judged there, so that a fast loop that does not learn is seen.

Writes ``throughput.parquet`` (a row per timed run) and ``throughput_arms.parquet`` (a row per arm).
"""

import argparse
import importlib.util
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.arena import Arena, arena
from benchmarks.arms import Arm, environment_arm, ledger_arm, peer_arms, plain_arm, product_arm, rollout_arm
from benchmarks.backtest_arms import backtest_arms, grid_arm
from benchmarks.chart import Bar, write_chart

MINIBATCHES = (8192, 1024)
CEILING = "plain torch loop"
PRODUCT = "PairPPO"
QUANTILES = {"low": 0.25, "median": 0.5, "high": 0.75}


def build_arms(settings: Sequence[Arena], peers: bool, ledger_steps: int) -> list[Arm]:
    """All arms: the ledger, the environment, rollouts and backtests once, training for every setting."""
    first = settings[0]
    arms = [
        ledger_arm(first, 8192, ledger_steps),
        ledger_arm(first, 512, 8 * ledger_steps),
        environment_arm(first, 2 * ledger_steps),
        rollout_arm(first),
    ]
    arms.append(grid_arm(first, 20 * ledger_steps, 2 * ledger_steps))
    arms += backtest_arms(2 * ledger_steps, 512) if peers else []
    for setting in settings:
        arms += [plain_arm(setting), product_arm(setting, whole=True), product_arm(setting, whole=False)]
        arms += peer_arms(setting) if peers else []
    return arms


def in_turn(arms: Sequence[Arm], round_: int) -> Iterator[Arm]:
    """Arms in the order of a round: another one begins each time, and those with several passes come again."""
    for turn in range(max(arm.passes for arm in arms)):
        shift = (7 * round_ + turn) % len(arms)
        for arm in [*arms[shift:], *arms[:shift]]:
            if turn < arm.passes:
                yield arm


def measure(arms: Sequence[Arm], rounds: int) -> pd.DataFrame:
    """Time all arms, and judge those that train after ``rounds + 1`` updates each. A row per timed run."""
    rows = []
    for arm in arms:
        arm.run()
        arm.ran(rounds + 1)
    for round_ in range(rounds):
        for arm in in_turn(arms, round_):
            wall, cpu = time.perf_counter(), time.thread_time()
            arm.run()
            wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
            arm.ran(rounds + 1)
            rows.append(
                {
                    "round": round_,
                    "arm": arm.name,
                    "framework": arm.framework,
                    "what": arm.what,
                    "envs": arm.envs,
                    "minibatch": arm.minibatch,
                    "steps": arm.steps,
                    "seconds": wall,
                    "cpu_seconds": cpu,
                    "steps_per_second": arm.steps / wall,
                }
            )
    return pd.DataFrame(rows)


def summarise(runs: pd.DataFrame, arms: Sequence[Arm]) -> pd.DataFrame:
    """A row per arm: quartiles of steps per second over rounds, ratios to the plain loop, and what it learnt.

    A round counts by its median run. ``to_plain`` is the ratio of medians; ``to_plain_low`` and ``_high`` are the
    quartiles of the rounds' own ratios.
    """
    runs = runs.assign(steps_per_cpu_second=runs.steps / runs.cpu_seconds)
    rounds = runs.groupby(["arm", "minibatch", "round"])[["steps_per_second", "steps_per_cpu_second"]].median()
    rows = []
    for arm in arms:
        own = rounds.loc[(arm.name, arm.minibatch)]
        row = {name: getattr(arm, name) for name in ("name", "framework", "what", "envs", "minibatch", "steps")}
        row |= {name: own.steps_per_second.quantile(q) for name, q in QUANTILES.items()}
        row["cpu_median"] = own.steps_per_cpu_second.median()
        if arm.what == "training":
            ceiling = rounds.loc[(CEILING, arm.minibatch)]
            row["to_plain"] = row["median"] / ceiling.steps_per_second.median()
            ratios = own.steps_per_second / ceiling.steps_per_second
            row["to_plain_low"], row["to_plain_high"] = ratios.quantile(0.25), ratios.quantile(0.75)
            row["cpu_to_plain"] = row["cpu_median"] / ceiling.steps_per_cpu_second.median()
            row |= {"gradient_steps": arm.judged_gradient_steps, "reward": arm.reward, "value_loss": arm.value_loss}
        rows.append(row)
    facts = {"cpu": cpu_name(), "cores": os.cpu_count(), "torch": torch.__version__, "load": os.getloadavg()[0]}
    return pd.DataFrame(rows).rename(columns={"name": "arm"}).assign(**facts)


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def report(summary: pd.DataFrame, rounds: int) -> str:
    """The tables and ratios in words."""
    speeds = ["median", "low", "high", "cpu_median"]
    parity = ["gradient_steps", "reward", "value_loss"]
    formats = dict.fromkeys(speeds, "{:,.0f}".format) | dict.fromkeys(["to_plain", "cpu_to_plain"], "{:.2f}".format)
    formats |= dict.fromkeys(parity[1:], "{:.4f}".format) | {"gradient_steps": "{:.0f}".format}
    columns = ["arm", *speeds[:3], "to_plain", "cpu_median", "cpu_to_plain", *parity]
    alone = summary[summary.what != "training"][["arm", *speeds]].to_string(index=False, formatters=formats)
    blocks = [f"steps/s, quartiles over {rounds} rounds; cpu: per second of CPU time\n{alone}"]
    for minibatch, group in summary[summary.what == "training"].groupby("minibatch", sort=False):
        table = group[columns].to_string(index=False, formatters=formats)
        blocks.append(f"training, minibatch {minibatch:,}; steps/s, quartiles over {rounds} rounds\n{table}")
        ours = group[group.arm == PRODUCT].iloc[0]
        for _, peers in group[~group.framework.isin(["pairpbt", "torch"])].groupby("framework", sort=False):
            best = peers.loc[peers["median"].idxmax()]
            wall, cpu = ours["median"] / best["median"], ours["cpu_median"] / best["cpu_median"]
            blocks.append(f"{PRODUCT} is {wall:.1f} times as fast as {best.arm} ({cpu:.1f} by CPU time)")
    return "\n\n".join(blocks)


def draw(summary: pd.DataFrame, path: Path, rounds: int) -> None:
    """The picture: the ceiling, PairPPO and the best setting of every peer, for each minibatch."""
    groups = []
    for minibatch, group in summary[summary.what == "training"].groupby("minibatch", sort=False):
        best = group.loc[group.groupby("framework")["median"].idxmax()]
        shown = pd.concat([group[group.arm.isin([CEILING, PRODUCT])], best[~best.framework.isin(["pairpbt", "torch"])]])
        roles = {CEILING: "ceiling", PRODUCT: "ours"}
        columns = zip(*(shown[name] for name in ("arm", "low", "median", "high")), strict=True)
        bars = [Bar(arm, low, middle, high, roles.get(arm, "peer")) for arm, low, middle, high in columns]
        groups.append((f"minibatch {minibatch:,}", bars))
    note = (
        f"2 x 64 tanh, {summary.steps[summary.what == 'training'].iloc[0]:,} samples and 4 epochs an update, one core"
    )
    note += f"; median and quartiles of {rounds} rounds"
    write_chart(path, "Environment steps per second, end to end", note, groups)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.throughput", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 7, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="small batches, one minibatch: a smoke test, no figures")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="only the product and the plain loop")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the Parquet files")
    parser.add_argument("--chart", type=Path, help="SVG file (default docs/throughput.svg, with --quick in --out)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)

    rounds = arguments.rounds or (1 if arguments.quick else 7)
    if arguments.quick:
        settings, ledger_steps = [arena(512, batch=2048, num_envs=128)], 4
    else:
        settings, ledger_steps = [arena(minibatch) for minibatch in MINIBATCHES], 150
    arms = build_arms(settings, arguments.peers, ledger_steps)
    try:
        runs = measure(arms, rounds)
    finally:
        for arm in arms:
            arm.close()
    summary = summarise(runs, arms)
    print(report(summary, rounds))
    if arguments.peers:
        for line in missing_peers():
            print(line)
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs.to_parquet(arguments.out / "throughput.parquet", index=False)
    summary.to_parquet(arguments.out / "throughput_arms.parquet", index=False)
    quick_chart = arguments.out / "throughput.svg"
    draw(summary, arguments.chart or (quick_chart if arguments.quick else Path("docs/throughput.svg")), rounds)


def missing_peers() -> list[str]:
    """What could not be measured, and why."""
    lines = [
        f"{name}: not measured, not installed here (make bench installs it into .venv-bench)"
        for name, module in (("Stable-Baselines3", "stable_baselines3"), ("vectorbt", "vectorbt"))
        if not importlib.util.find_spec(module)
    ]
    lines.append(
        "PufferLib: not measured; 3.0.0, 2.0.6 and 2.0.0 download while they build, which failed without network; "
        "1.0.1 needs numpy 1.23 and its package holds no PPO"
    )
    return lines


if __name__ == "__main__":
    main()
