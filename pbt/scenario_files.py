"""The files of a backtest over scenarios beside its frames: ``scenarios.json`` and the decisions as CSV."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.frames import part_of, write_text
from analysis.log_csv import write_decisions
from analysis.stress import stress_rows
from pbt.run_dir import folder_name
from pbt.scenarios import HIGHEST, Probe
from pbt.simulator import ENSEMBLE
from rayconf.run_config import RunConfig

SCHEMA = 1


def content_of(
    run: RunConfig,
    name: str,
    of: str,
    data_dir: str | None,
    splits: Sequence[str],
    found: Mapping[tuple[str, str], Probe],
    base: pa.Table,
) -> dict[str, Any]:
    """What ``scenarios.json`` says.

    Args:
        run: The run with the grid.
        name: Identity that the rows carry.
        of: Name of the run's directory.
        data_dir: Where other prices than the run's own came from; None: its own.
        splits: The splits that were run.
        found: What the probes found by pair and split.
        base: Rows of the ``daily`` frame under the run's own terms, sorted by its key.
    """
    stress = stress_rows(base)
    pairs: dict[str, dict[str, Any]] = {}
    for (pair, split), one in found.items():
        policies = {
            policy: {
                "breakeven": str(breakeven),
                "breakeven_bps": breakeven.bps,
                "breakeven_known": breakeven.known,
                "delay": {
                    str(lag): dict(zip(("annualised_sharpe", "cagr"), figures, strict=True))
                    for lag, figures in one.delays[policy].items()
                },
            }
            for policy, breakeven in one.breakeven.items()
        }
        own = [
            {key: value for key, value in row.items() if key not in ("pair", "split", "scenario")}
            for row in stress
            if (row["pair"], row["split"]) == (pair, split)
        ]
        pairs.setdefault(pair, {})[split] = {"policies": policies, "stress": own}
    return {
        "schema": SCHEMA,
        "run": name,
        "of": of,
        "data_dir": data_dir,
        "splits": list(splits),
        "base": {"cost_bps": run.costs.real_bps, "lag": run.env.lag, **_limits(run)},
        "grid": run.backtest.model_dump(mode="json", include={"cost_bps", "lags", "leverages", "borrow_rates"}),
        "breakeven_searched_bps": HIGHEST,
        "pairs": pairs,
    }


def _limits(run: RunConfig) -> dict[str, float]:
    return {"leverage": run.costs.leverage, "borrow_rate": run.costs.borrow_rate}


def write_json(content: Mapping[str, Any], folder: Path) -> None:
    """Write ``scenarios.json``: what a program reads."""
    write_text(folder / "scenarios.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_csv(base: pa.Table, splits: Sequence[str], policy: str, folder: Path) -> None:
    """Write a CSV of decisions per pair and split; what is not the headline on test has it in its name."""
    for pair in sorted(set(base.column("pair").to_pylist())):
        for split in splits:
            rows = part_of(base, pair=pair, split=split, policy=policy)
            if rows.num_rows:
                parts = [folder_name(pair), *([policy] if policy != ENSEMBLE else [])]
                parts += [split] if split != "test" else []
                write_decisions(rows, pair, folder / f"decisions-{'-'.join(parts)}.csv")
