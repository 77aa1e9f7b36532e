"""One cell of the ladder: train or look up its policies, run them over the spans, and keep what they did.

A cell is a folder that appears under its name when it is complete: ``cell.parquet``, a row of figures per policy;
``daily.parquet``, net return, turnover and gross of every session by policy, split and scenario; ``fitness.parquet``,
what validation said of every generation; ``config.yaml``; and a folder per learned policy. All statistics come from
``daily`` later.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from algos.config import PairPPOConfig
from algos.markets import forget, market_for
from algos.pair_ppo import PairPPO
from algos.policy import EnsemblePolicy, Policy
from analysis.metrics import sharpe
from benchmarks.ladder import AVERAGES, Row
from benchmarks.whole_runs import headlines
from envs.market import PairMarket
from pbt import fitness
from pbt.baselines import TEXTBOOK, baseline_targets, fit_z_score
from pbt.generation import enter, evaluate, initial_key, train_generation, training_key
from pbt.run_dir import member_name
from pbt.simulator import Batch, fitness_shares
from pbt.survivors import write_policy
from pbt.terms import BASE, Scenario, base_scenario
from rayconf.run_config import RunConfig
from rayconf.sections import AugmentConfig, UniverseConfig

SNAPSHOTS = ("best", "last")
FIGURES = ["fitness", "fitness_se", "val_sharpe", "train_sharpe"]
COSTS = (0.0, 5.0, 10.0)
"""Trading costs of the scenarios in bps a side, beside the run's own."""


@dataclass(frozen=True)
class Job:
    """Work that belongs together: one training, evaluated on its pairs."""

    row: Row
    fold: str
    run: RunConfig
    cells: Mapping[str, Path]
    """Folder of the cell by pair."""
    members: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """Cells whose policies an ensemble averages, or from whose policy a leash starts, by pair."""
    splits: tuple[str, ...] = ("test", "train", "validation")

    @property
    def done(self) -> bool:
        """Whether every cell is there."""
        return all(folder.is_dir() for folder in self.cells.values())


@dataclass(frozen=True)
class Learned:
    """What training leaves."""

    policies: dict[str, Policy]
    """By snapshot."""
    generations: pd.DataFrame
    """member, generation, fitness (mean over the run's pairs) and its error, smoothed, Sharpe ratios, best, last."""
    seconds: dict[str, float]
    """``construct_seconds`` (building algorithms), ``train_seconds`` (updates) and ``validate_seconds``."""
    env_steps: int


def market_of(run: RunConfig, pair: str) -> PairMarket:
    """The market of a pair of the run, read at most once per process."""
    return market_for({"run": run.model_dump(mode="json"), "pair": pair})


def learn(run: RunConfig) -> Learned:
    """Train the run's members at its own hyperparameters and keep the best and the last snapshot.

    The algorithm stands on the run's first pair; validation is asked on all of them, and a snapshot's fitness is the
    mean over the pairs. Best: the highest smoothed fitness of any member's generation. Last: the last generation of
    the member whose smoothed fitness ended highest.
    """
    host, *others = run.data.pairs
    markets = {pair: market_of(run, pair) for pair in run.data.pairs}
    enter(run, host, markets[host])
    rows: list[dict[str, Any]] = []
    policies: list[Policy] = []
    seconds = dict.fromkeys(("construct_seconds", "train_seconds", "validate_seconds"), 0.0)
    for number in range(run.pbt.population):
        name, history = member_name(number), []
        began = time.perf_counter()
        algorithm = PairPPO(config=PairPPOConfig.from_run(run, host, key=initial_key(run, host, name)))
        seconds["construct_seconds"] += time.perf_counter() - began
        try:
            if run.pbt.fitness_over == "prior":  # which the untrained policy is, and may remain
                policies.append(algorithm.evaluation_policy())
                found = [evaluate(run, market, policies[-1], 0).figures for market in markets.values()]
                figures = pd.DataFrame(found)[FIGURES].astype(float).mean()
                rows.append({"member": name, "generation": 0, "smoothed": float(figures.fitness), **figures})
            for generation in range(1, run.pbt.generations + 1):
                began = time.perf_counter()
                trained = train_generation(
                    algorithm, markets[host], None, training_key(run, host, name, generation), generation
                )
                policy = algorithm.evaluation_policy()
                found = [trained.evaluation.figures]
                found += [evaluate(run, markets[pair], policy, generation).figures for pair in others]
                updating = sum(iteration.seconds for iteration in trained.iterations)
                seconds["train_seconds"] += updating
                seconds["validate_seconds"] += time.perf_counter() - began - updating
                figures = pd.DataFrame(found)[FIGURES].astype(float).mean()
                history.append(float(figures.fitness))
                smooth = fitness.smoothed(history, run.pbt.fitness_smoothing)
                rows.append({"member": name, "generation": generation, "smoothed": smooth, **figures})
                policies.append(policy)
        finally:
            began = time.perf_counter()
            algorithm.stop()
            seconds["construct_seconds"] += time.perf_counter() - began
    table = pd.DataFrame(rows)
    ends = table[table.generation == run.pbt.generations]
    chosen = {"best": int(table.smoothed.argmax()), "last": int(ends.index.to_numpy()[ends.smoothed.argmax()])}
    for snapshot, at in chosen.items():
        table[snapshot] = table.index == at
    steps = run.pbt.population * run.pbt.iterations * run.env_steps_per_update
    return Learned({name: policies[at] for name, at in chosen.items()}, table, seconds, steps)


def scenarios(run: RunConfig) -> list[Scenario]:
    """The run's own terms, other costs, and one bar more from decision to fill."""
    own = base_scenario(run)
    costs = [Scenario(f"cost{bps:g}", bps, own.lag) for bps in COSTS]
    return [own, *costs, Scenario(f"lag{own.lag + 1}", own.cost_bps, own.lag + 1)]


def played(
    market: PairMarket,
    run: RunConfig,
    policies: Mapping[str, Policy | EnsemblePolicy],
    targets: Mapping[str, np.ndarray],
    splits: Sequence[str],
) -> pd.DataFrame:
    """Daily rows of policies and fixed targets: test under every scenario, the other splits under the run's terms."""
    parts = []
    for split in splits:
        terms = scenarios(run) if split == "test" else [base_scenario(run)]
        batch = Batch(policies, targets, terms)
        record = batch.run(market, run, split)
        gross = record.gross
        rows = [(name, scenario.name) for name in batch.names for scenario in terms]
        for i, (name, scenario) in enumerate(rows):
            parts.append(
                pd.DataFrame(
                    {
                        "policy": name,
                        "split": split,
                        "scenario": scenario,
                        "date": market.dates[record.fill_bar[:, i]],
                        "net_return": record.net_return[:, i],
                        "turnover": record.turnover[:, i],
                        "gross": gross[:, i],
                    }
                )
            )
    daily = pd.concat(parts, ignore_index=True)
    return daily.astype({"policy": "category", "split": "category", "scenario": "category"})


def work(job: Job) -> dict[str, float]:
    """Compute the cells of a job that are not there.

    Returns:
        Seconds of the whole and of its parts, and environment steps.
    """
    torch.set_num_threads(job.run.resources.torch_threads)
    began = time.perf_counter()
    headline: dict[str, EnsemblePolicy] = {}
    ran: dict[str, float] = {}
    learned: Learned | None = None
    if job.row.kind == "run":
        headline, ran = headlines(job.run)
    elif job.row.learns:
        learned = learn(job.run)
    facts: dict[str, float] = {"env_steps": 0, **ran}
    if learned is not None:
        facts |= {"env_steps": learned.env_steps, **learned.seconds}
    replaying = time.perf_counter()
    run = job.run
    if job.row.kind == "run" and job.row.together:  # what its processes trained on need not be built here again
        pbt = run.pbt.model_copy(update={"pooled": False})
        run = run.model_copy(update={"universe": UniverseConfig(), "augment": AugmentConfig(), "pbt": pbt})
    for pair, folder in job.cells.items():
        if folder.is_dir():
            continue
        market = market_of(run, pair)
        policies: dict[str, Any] = {}
        targets: dict[str, np.ndarray] = {}
        if learned is not None:
            policies = dict(learned.policies)
        elif headline:
            policies = {job.row.policy: headline[pair]}
        elif job.row.kind in AVERAGES:
            policies = {name: average(job, pair, name) for name in SNAPSHOTS}
        else:
            rule = fit_z_score(market, job.run) if job.row.of == "zscore" else TEXTBOOK
            targets = {"rule": baseline_targets(market, job.run, rule, (0.0, 0.0))[job.row.of]}
        daily = played(market, run, policies, targets, job.splits)
        _keep(job, pair, folder, market, daily, learned, facts)
    if job.run.augment.histories:  # they are of this seed alone
        forget(job.run)
    return {**facts, "replay_seconds": time.perf_counter() - replaying, "seconds": time.perf_counter() - began}


def average(job: Job, pair: str, snapshot: str) -> EnsemblePolicy:
    """The ensemble of a snapshot of the job's members."""
    cells = job.members[pair]
    members = [Policy.load(cell / snapshot) for cell in cells]
    if job.row.kind == "ensemble":
        return EnsemblePolicy(members)
    tables = [pd.read_parquet(cell / "fitness.parquet") for cell in cells]
    chosen = [table[table[snapshot]].iloc[0] for table in tables]
    return EnsemblePolicy(members, fitness_shares([(row.smoothed, row.fitness_se) for row in chosen]))


def _keep(
    job: Job,
    pair: str,
    folder: Path,
    market: PairMarket,
    daily: pd.DataFrame,
    learned: Learned | None,
    facts: Mapping[str, float],
) -> None:
    """Write a cell; its folder gets its name last, and what a killed process left of it goes."""
    for left in folder.parent.glob(f"{folder.name}.*"):
        if not psutil.pid_exists(int(left.suffix[1:])):
            shutil.rmtree(left)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    daily.to_parquet(temporary / "daily.parquet", index=False, compression="zstd")
    _figures(job, market, daily, learned, facts).to_parquet(temporary / "cell.parquet", index=False)
    (temporary / "config.yaml").write_text(job.run.to_yaml())
    if learned is not None:
        learned.generations.to_parquet(temporary / "fitness.parquet", index=False)
        for name, policy in learned.policies.items():
            write_policy(temporary / name, policy, market, job.run)  # as a base for others
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(temporary)  # another command kept the same cell meanwhile


def _figures(
    job: Job, market: PairMarket, daily: pd.DataFrame, learned: Learned | None, facts: Mapping[str, float]
) -> pd.DataFrame:
    """A row per policy: what it is, its Sharpe ratio by split, its validation fitness, and what it cost."""
    rows = []
    base = daily[daily.scenario == BASE]
    for name, own in base.groupby("policy", observed=True):
        found = {
            f"{split}_sharpe": sharpe(part.net_return.to_numpy(), market.sessions_per_year)
            for split, part in own.groupby("split", observed=True)
        }
        if learned is not None:
            (chosen,) = learned.generations[learned.generations[str(name)]].to_dict("records")
            found |= {key: chosen[key] for key in ("member", "generation", "fitness", "smoothed")}
        rows.append(
            {
                "kind": job.row.kind,
                "pair": market.pair,
                "fold": job.fold,
                "seed": job.run.seed,
                "policy": str(name),
                "train_bars": market.splits["train"].rows,
                "first_train_date": market.dates[market.splits["train"].start],
                **found,
                **facts,
            }
        )
    return pd.DataFrame(rows)
