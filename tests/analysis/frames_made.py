"""Frames of an invented run: random returns, real Parquet."""

import json
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
    validation_schema,
    write_frame,
)
from analysis.summary import build_summary, scenario_id, write_summary

NAMES = ("learning_rate", "risk_penalty")
SPANS = {"train": ("2015-01-01", 600), "validation": ("2017-06-01", 260), "test": ("2018-07-02", 300)}
POLICIES = (
    "ensemble",
    "survivor-1",
    "survivor-2",
    "cash",
    "equal_weight",
    "vol_target",
    "hold_a",
    "hold_b",
    "zscore",
    "static_gross",
)


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


def daily_table(pairs: tuple[str, ...] = ("AAA/BBB", "CCC/DDD"), seed: int = 1) -> pa.Table:
    rng = np.random.default_rng(seed)
    parts = []
    grid = ["base", *[scenario_id(cost, lag) for cost in (1.0, 5.0, 10.0) for lag in (1, 2)]]
    for pair in pairs:
        for split, (start, count) in SPANS.items():
            dates = business_days(start, count)
            market = rng.normal(4e-4, 0.01, count)
            for scenario in grid if split == "test" else ["base"]:
                for policy in POLICIES:
                    own = np.zeros(count) if policy == "cash" else 0.7 * market + rng.normal(2e-4, 0.004, count)
                    if policy == "equal_weight":
                        own = market
                    parts.append(account(policy, pair, split, scenario, own, dates, rng))
    return pa.concat_tables(parts)


def survivors_of(pairs: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"pair": pair, "policy": f"survivor-{rank}", "rank": rank, "member": f"m0{rank}", "generation": rank}
        for pair in pairs
        for rank in (1, 2)
    ]


def lineage_rows(pairs: tuple[str, ...], members: int = 4, generations: int = 3) -> list[dict[str, Any]]:
    return [
        {
            "run": "made",
            "arm": "pbt",
            "window": 0,
            "pair": pair,
            "generation": generation,
            "member": f"m0{member}",
            "operation": "keep" if generation else "start",
            "fitness": 0.1 * member if generation else None,
        }
        for pair in pairs
        for generation in range(generations + 1)
        for member in range(members)
    ]


def validation_table(pairs: tuple[str, ...], members: int = 4, generations: int = 3, seed: int = 9) -> pa.Table:
    rng = np.random.default_rng(seed)
    start, count = SPANS["validation"]
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


def make_run(folder: Path, pairs: tuple[str, ...] = ("AAA/BBB", "CCC/DDD"), note: str = "9 bars dropped") -> Path:
    """Frames of a whole run; ``note`` stands in the plan event."""
    run = folder / "made"
    daily = write_frame(daily_table(pairs), daily_schema(), KEYS["daily"], frame_path(run, "daily"))
    write_summary(build_summary(daily, survivors_of(pairs), base_cost_bps=2.0, base_lag=1), run)
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
            "hp_learning_rate": 10 ** rng.uniform(-5, -3),
            "hp_risk_penalty": 1.0,
            "learner_seconds": 0.75,
            "env_seconds": 0.25,
            "wall_time": 1.7e9 + iteration,
        }
        for pair in pairs
        for member in range(4)
        for iteration in range(8)
    ]
    write_frame(progress, progress_schema(NAMES), KEYS["progress"], frame_path(run, "progress"))
    write_frame(lineage_rows(pairs), lineage_schema(NAMES), KEYS["lineage"], frame_path(run, "lineage"))
    write_frame(validation_table(pairs), validation_schema(), KEYS["validation"], frame_path(run, "validation"))
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
    return run
