"""Does PBT help? Populations against random search and fixed hyperparameters, on a market whose optimum is known.

``python -m benchmarks.study [--seeds N] [--arms pbt random fixed] [--cost-bps C] [--set a.b=value] [--out FOLDER]``

Every cell is a whole run of the preset ``study`` in one Ray session: training, survivors, backtest. Arms of one seed
see the same market, start from the same members and take the same number of steps; only what happens at barriers
differs. Survivors are chosen on validation as ever. Then the headline ensemble and the first survivor are measured
on the run's test span, and on a fresh path of the market of 100,000 bars beside the optimal policy: their share of the
optimal growth. Intervals are percentiles of medians over resampled seeds; differences are paired by seed.

Writes ``study.parquet``, a row per arm, seed and policy. Rows that are there are not run again.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from scipy.stats import wilcoxon

from algos.policy import EnsemblePolicy, Policy
from algos.stack import decide_on
from analysis.frames import read_frame
from benchmarks.optimality import FRESH_SEED, PIECES, PieceDecide, compare, fresh_market, optimal_policy, rows_of
from envs.market import PairMarket
from envs.optimum import solve_optimum
from envs.universe import listed
from pbt.fitness import pooled_score
from pbt.pipeline import begin, execute
from pbt.run_dir import RunDir
from pbt.windows import windows_of
from rayconf.keys import derive_key
from rayconf.loading import load_config
from rayconf.run_config import RunConfig
from rayconf.session import Machine, start_ray

ARMS = ("pbt", "random", "fixed")
METRICS = ("share", "test_growth", "test_sharpe")
POLICIES = ("ensemble", "survivor-1")
RESAMPLES = 9999


def study_run(arm: str, seed: int, cost_bps: float, assignments: Sequence[str]) -> RunConfig:
    """The preset ``study`` on the market of ``seed``; ``assignments`` (``path=value``) come last and win."""
    settings = (
        f"seed={seed}",
        f"synthetic.seed={seed}",
        f"pbt.arm={arm}",
        f"costs.commission_bps={cost_bps / 2}",
        f"costs.slippage_bps={cost_bps / 2}",
        "backtest.cost_bps=[]",
        "tracking.tensorboard=false",
    )
    return listed(load_config("study", assignments=[*settings, *assignments]))


def cell(run: RunConfig, machine: Machine, folder: Path) -> list[dict[str, object]]:
    """Run once and measure. A row per policy."""
    began = time.perf_counter()
    directory = RunDir(folder, run.identity)
    directory.create()
    windows = windows_of(run, directory)
    begin(run, directory, windows)
    execute(run, directory, windows, machine, Console(quiet=True))
    seconds = time.perf_counter() - began
    ((pair, market),) = windows[0].markets.items()
    shares = shares_of(run, market, directory, pair)
    daily = read_frame(directory.frame("daily"), split="test", scenario="base").to_pandas()
    lineage = read_frame(directory.frame("lineage")).to_pandas()
    rows: list[dict[str, object]] = []
    for name in POLICIES:
        returns = daily.net_return[daily.policy == name].to_numpy()
        growth = run.pbt.model_copy(update={"fitness": "growth"})
        sharpe = run.pbt.model_copy(update={"fitness": "sharpe"})
        rows.append(
            {
                "arm": run.pbt.arm,
                "seed": run.seed,
                "cost_bps": run.costs.real_bps,
                "policy": name,
                "test_growth": pooled_score(returns, market.sessions_per_year, growth),
                "test_sharpe": pooled_score(returns, market.sessions_per_year, sharpe),
                **shares[name],
                "exploits": int((lineage.operation == "exploit").sum()),
                "seconds": seconds,
            }
        )
    return rows


def shares_of(run: RunConfig, market: PairMarket, directory: RunDir, pair: str) -> dict[str, dict[str, float]]:
    """Share of the optimal growth on a fresh path, with its paired standard error, by policy."""
    survivors = [Policy.load(directory.survivor(pair, rank)) for rank in range(1, run.pbt.survivors + 1)]
    fresh, spread = fresh_market(market, run, FRESH_SEED + run.synthetic.seed)
    optimum = solve_optimum(run.synthetic, run.costs, run.env.lag)
    features = torch.tensor(fresh.features)

    def bound(policy: Policy | EnsemblePolicy) -> PieceDecide:
        answer = decide_on([policy], features).among(torch.arange(PIECES), range(len(features)))
        return lambda bars, _features, account: answer(bars, account)

    asked = {"ensemble": bound(EnsemblePolicy(survivors)), "survivor-1": bound(survivors[0])}
    records = compare({"optimum": optimal_policy(optimum, spread, PIECES), **asked}, fresh, run)
    table = {str(row["policy"]): row for row in rows_of(records, derive_key("study", "share", run.seed))}
    return {name: {key: float(table[name][key]) for key in ("share", "share_se")} for name in asked}


def median_interval(values: np.ndarray, key: int) -> tuple[float, float, float]:
    """Median [n] and the 95 % percentile interval of medians of resampled values."""
    draws = np.random.Generator(np.random.PCG64(key)).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def report(table: pd.DataFrame) -> str:
    """Medians by arm, and paired differences to the first arm."""
    lines = []
    key = derive_key("study", "intervals")
    for (policy, metric), cells in ((pm, table[table.policy == pm[0]]) for pm in _product(table)):
        by_arm = cells.pivot(index="seed", columns="arm", values=metric).dropna()
        lines.append(f"{policy}, {metric}, {len(by_arm)} seeds")
        arms = [arm for arm in ARMS if arm in by_arm]
        for arm in arms:
            middle, low, high = median_interval(by_arm[arm].to_numpy(), key)
            lines.append(f"  {arm:8s} {middle:+.3f}  [{low:+.3f}, {high:+.3f}]")
        for arm in arms[1:]:
            gap = (by_arm[arms[0]] - by_arm[arm]).to_numpy()
            middle, low, high = median_interval(gap, key)
            p = wilcoxon(gap).pvalue if len(gap) > 1 and np.any(gap) else float("nan")
            lines.append(f"  {arms[0]} - {arm:8s} {middle:+.3f}  [{low:+.3f}, {high:+.3f}]  Wilcoxon p {p:.3f}")
    return "\n".join(lines)


def _product(table: pd.DataFrame) -> list[tuple[str, str]]:
    return [(policy, metric) for policy in POLICIES if (table.policy == policy).any() for metric in METRICS]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.study", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="seeds per arm (default 10)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--cost-bps", type=float, default=10.0, help="real cost per side (default 10)")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", dest="assignments")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of study.parquet")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = arguments.out / "study.parquet"
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = pd.read_parquet(path) if path.exists() else pd.DataFrame()
    done = set(zip(table.arm, table.seed, table.cost_bps, strict=True)) if len(table) else set()
    todo = [(arm, seed) for seed in range(arguments.seeds) for arm in arguments.arms]
    todo = [(arm, seed) for arm, seed in todo if (arm, seed, arguments.cost_bps) not in done]
    if todo:
        resources = study_run(*todo[0], arguments.cost_bps, arguments.assignments).resources
        with start_ray(resources, None) as machine:
            for arm, seed in todo:
                folder = arguments.out / "study" / f"{arm}-{seed}"
                shutil.rmtree(folder, ignore_errors=True)
                rows = cell(study_run(arm, seed, arguments.cost_bps, arguments.assignments), machine, folder)
                table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
                table.to_parquet(path, index=False)
                shutil.rmtree(folder)
                print(f"{arm} {seed}: share {rows[0]['share']:.3f}  ({rows[0]['seconds']:.0f} s)", flush=True)
    print(report(table[table.cost_bps == arguments.cost_bps]))


if __name__ == "__main__":
    main()
