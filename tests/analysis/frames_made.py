"""Frames of an invented run: random returns, real Parquet."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.columns import KEYS
from analysis.frames import (
    daily_schema,
    events_schema,
    frame_block,
    frame_path,
    lineage_schema,
    progress_schema,
    summary_schema,
    validation_schema,
    write_frame,
)
from analysis.summary import build_summary, scenario_id, write_summary

NAMES = ("learning_rate", "risk_penalty")
Spans = Mapping[str, tuple[str, int]]
SPANS: Spans = {"train": ("2015-01-01", 600), "validation": ("2017-06-01", 260), "test": ("2018-07-02", 300)}
BASELINES = ("cash", "equal_weight", "vol_target", "hold_a", "hold_b", "zscore", "static_gross")
POLICIES = ("ensemble", "survivor-1", "survivor-2", *BASELINES)
GRID = tuple(scenario_id(cost, lag) for cost in (1.0, 5.0, 10.0) for lag in (1, 2))


def business_days(start: str, count: int) -> np.ndarray:
    days = np.arange(np.datetime64(start), np.datetime64(start) + 2 * count + 10)
    return days[np.is_busday(days)][:count].astype("datetime64[us]")


def account(
    policy: str,
    pair: str,
    split: str,
    scenario: str,
    returns: np.ndarray,
    dates: np.ndarray,
    rng: np.random.Generator,
    run: str = "made",
) -> pa.Table:
    size = len(returns)
    weights = np.zeros((2, size)) if policy == "cash" else rng.uniform(-0.5, 0.5, (2, size))
    turnover = np.abs(np.diff(weights, prepend=0)).sum(axis=0)
    gross = np.abs(weights).sum(axis=0)
    return frame_block(
        daily_schema(),
        {"run": run, "window": 0, "split": split, "scenario": scenario, "pair": pair, "policy": policy},
        {
            "decision_date": dates - np.timedelta64(1, "D"),
            "date": dates,
            "target_weight_a": weights[0],
            "target_weight_b": weights[1],
            "weight_a": weights[0],
            "weight_b": weights[1],
            "gross": gross,
            "turnover": turnover,
            "trading_cost": turnover * 2e-4,
            "financing": gross * 1e-6,
            "net_return": returns,
            "equity": np.cumprod(1 + returns),
        },
    )


def daily_table(
    pairs: tuple[str, ...] = ("AAA/BBB", "CCC/DDD"),
    seed: int = 1,
    *,
    policies: Sequence[str] = POLICIES,
    spans: Spans = SPANS,
    grid: Sequence[str] = GRID,
) -> pa.Table:
    rng = np.random.default_rng(seed)
    parts = []
    for pair in pairs:
        for split, (start, count) in spans.items():
            dates = business_days(start, count)
            market = rng.normal(4e-4, 0.01, count)
            for scenario in ["base", *grid] if split == "test" else ["base"]:
                for policy in policies:
                    own = np.zeros(count) if policy == "cash" else 0.7 * market + rng.normal(2e-4, 0.004, count)
                    if policy == "equal_weight":
                        own = market
                    parts.append(account(policy, pair, split, scenario, own, dates, rng))
    return pa.concat_tables(parts)


def survivors_of(pairs: tuple[str, ...], count: int = 2) -> list[dict[str, Any]]:
    return [
        {"pair": pair, "policy": f"survivor-{rank}", "rank": rank, "member": f"m0{rank % 4}", "generation": rank}
        for pair in pairs
        for rank in range(1, count + 1)
    ]


def lineage_rows(
    pairs: tuple[str, ...], members: int = 4, generations: int = 3, names: Sequence[str] = NAMES
) -> list[dict[str, Any]]:
    """Every member keeps its state, but after generation 1 the last one copies m01 and doubles its values."""
    rows = []
    for pair in pairs:
        values = {member: 1e-4 * (1 + member) for member in range(members)}
        for generation, member in itertools.product(range(generations + 1), range(members)):
            copies = generation == 1 and member == members - 1
            if copies:
                values[member] = 2 * values[1]
            operation = "exploit" if copies else "stop" if generation == generations else "keep"
            rows.append(
                {
                    "run": "made",
                    "arm": "pbt",
                    "window": 0,
                    "pair": pair,
                    "generation": generation,
                    "member": f"m0{member}",
                    "operation": operation if generation else "start",
                    "parent_member": "m01" if copies else f"m0{member}",
                    "parent_generation": generation,
                    "fitness": 0.1 * member if generation else None,
                    **{f"hp_{name}": values[member] for name in names},
                }
            )
    return rows


def validation_table(
    pairs: tuple[str, ...], members: int = 4, generations: int = 3, seed: int = 9, spans: Spans = SPANS
) -> pa.Table:
    rng = np.random.default_rng(seed)
    start, count = spans["validation"]
    dates = business_days(start, count)
    parts = []
    for pair in pairs:
        market = rng.normal(3e-4, 0.01, count)
        for member in range(members):
            for generation in range(1, generations + 1):
                where = {"window": 0, "pair": pair, "member": f"m0{member}", "generation": generation}
                own = 0.5 * market + rng.normal(1e-4, 0.006, count)
                parts.append(frame_block(validation_schema(), where, {"date": dates, "net_return": own}))
    return pa.concat_tables(parts)


def with_scenarios(summary: pa.Table, scenarios: Sequence[str]) -> pa.Table:
    """A summary that also holds test rows for scenarios that were never played: the base figures, a little lower."""
    base = [row for row in summary.to_pylist() if row["split"] == "test" and row["scenario"] == "base"]
    rows = [
        {
            **row,
            "scenario": scenario,
            "cost_bps": float(1 + at % 6),
            "lag": 1 + at % 2,
            "annualised_sharpe": row["annualised_sharpe"] - 0.01 * at,
        }
        for at, scenario in enumerate(scenarios)
        for row in base
    ]
    return pa.concat_tables([summary, pa.Table.from_pylist(rows, schema=summary_schema())])


def make_run(
    folder: Path,
    pairs: tuple[str, ...] = ("AAA/BBB", "CCC/DDD"),
    note: str = "9 bars dropped",
    *,
    name: str = "made",
    names: Sequence[str] = NAMES,
    survivors: int = 2,
    spans: Spans = SPANS,
    unplayed: Sequence[str] = (),
    config: str = "",
) -> Path:
    """Frames of a whole run.

    Args:
        folder: Where the run's directory is made.
        pairs: Its pairs.
        note: Stands in the plan event.
        name: Its name.
        names: Its hyperparameters.
        survivors: Survivors per pair.
        spans: First day and number of days of each split.
        unplayed: Scenarios that stand in summary alone, instead of the grid.
        config: What config.yaml holds; none without.
    """
    run = folder / name
    policies = ("ensemble", *[f"survivor-{rank}" for rank in range(1, survivors + 1)], *BASELINES)
    made = daily_table(pairs, policies=policies, spans=spans, grid=() if unplayed else GRID)
    daily = write_frame(made, daily_schema(), KEYS["daily"], frame_path(run, "daily"))
    summary = build_summary(daily, survivors_of(pairs, survivors), base_cost_bps=2.0, base_lag=1)
    write_summary(with_scenarios(summary, unplayed), run)
    rng = np.random.default_rng(5)
    progress = [
        {
            "run": "made",
            "arm": "pbt",
            "window": 0,
            "pair": pair,
            "member": f"m0{member}",
            "generation": iteration // 2,
            "iteration": iteration,
            "env_steps": 100 * (iteration + 1),
            "fitness": float(rng.normal()) if iteration % 2 else None,
            "fitness_se": 0.3 if iteration % 2 else None,
            **{f"hp_{item}": 10 ** rng.uniform(-5, -3) for item in names},
            "learner_seconds": 0.75,
            "env_seconds": 0.25,
            "wall_time": 1.7e9 + iteration,
        }
        for pair in pairs
        for member in range(4)
        for iteration in range(8)
    ]
    write_frame(progress, progress_schema(names), KEYS["progress"], frame_path(run, "progress"))
    lineage = lineage_rows(pairs, names=names)
    write_frame(lineage, lineage_schema(names), KEYS["lineage"], frame_path(run, "lineage"))
    validation = validation_table(pairs, spans=spans)
    write_frame(validation, validation_schema(), KEYS["validation"], frame_path(run, "validation"))
    detail = json.dumps({"dropped": note, "splits": {"train": ["2015-01-01", "2017-04-19"]}})
    events = [
        {"run": "made", "wall_time": 1.7e9, "seq": 0, "kind": "start"},
        *[
            {"run": "made", "wall_time": 1.7e9, "seq": 1 + i, "kind": "plan", "pair": pair, "detail": detail}
            for i, pair in enumerate(pairs)
        ],
        {"run": "made", "wall_time": 1.7e9 + 60, "seq": 50, "kind": "look", "detail": "launch"},
        {"run": "made", "wall_time": 1.7e9 + 61, "seq": 51, "kind": "done"},
    ]
    write_frame(events, events_schema(), KEYS["events"], frame_path(run, "events"))
    if config:
        (run / "config.yaml").write_text(config, encoding="utf-8")
    return run
