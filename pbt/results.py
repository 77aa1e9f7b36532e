"""From journals to frames: what a finished run leaves."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from analysis.diversity import diversity_rows
from analysis.frames import (
    KEYS,
    diversity_schema,
    events_schema,
    frame_block,
    keep_last,
    lineage_schema,
    progress_schema,
    read_jsonl,
    validation_schema,
    write_frame,
    write_text,
)
from analysis.metrics import METRICS
from analysis.verdict import Evidence
from envs.market import PairMarket
from pbt.manifest import Population
from pbt.run_dir import RunDir
from pbt.search import to_unit
from pbt.store import ReturnStore
from pbt.survivors import Survivor
from rayconf.run_config import RunConfig

SCHEMA = 1
NOTES = ("trials", "zscore", "static_gross")
"""Fields of a pair in ``summary.json``: the snapshots that validation saw, and what its baselines were fitted to."""


def write_training_frames(
    run: RunConfig, directory: RunDir, markets: Mapping[str, PairMarket], populations: Mapping[str, Population]
) -> list[dict[str, Any]]:
    """Write progress, lineage, diversity and validation; return the lineage rows."""
    names = list(run.search)
    progress = keep_last(read_jsonl(directory.progress_journal), KEYS["progress"])
    write_frame(progress, progress_schema(names), KEYS["progress"], directory.frame("progress"))
    lineage = [dict(row) for row in keep_last(read_jsonl(directory.lineage_journal), KEYS["lineage"])]
    write_frame(lineage, lineage_schema(names), KEYS["lineage"], directory.frame("lineage"))
    positions = {name: partial(to_unit, space=space) for name, space in run.search.items()}
    diversity = diversity_rows(lineage, positions)
    write_frame(diversity, diversity_schema(names), KEYS["diversity"], directory.frame("diversity"))
    write_frame(
        validation_rows(directory, markets, populations),
        validation_schema(),
        KEYS["validation"],
        directory.frame("validation"),
    )
    return lineage


def validation_rows(
    directory: RunDir, markets: Mapping[str, PairMarket], populations: Mapping[str, Population]
) -> pa.Table:
    """Net returns of every evaluation on validation, in the order of the frame's key."""
    schema = validation_schema()
    blocks = []
    for pair in sorted(populations):
        market, population = markets[pair], populations[pair]
        span = market.splits["validation"]
        dates = market.dates[span.start : span.stop - 1]
        members, generations = sorted(population.members), range(1, population.generation + 1)
        evaluations = [(pair, member, generation) for member in members for generation in generations]
        found = zip(evaluations, ReturnStore(directory.storage).load_each(evaluations), strict=True)
        for (_, member, generation), returns in found:
            if returns is not None:
                where = {"window": 0, "pair": pair, "member": member, "generation": generation}
                blocks.append(frame_block(schema, where, {"date": dates, "net_return": returns}))
    return pa.concat_tables(blocks) if blocks else schema.empty_table()


def write_events(directory: RunDir) -> None:
    """Write the events frame."""
    write_frame(read_jsonl(directory.events_journal), events_schema(), KEYS["events"], directory.frame("events"))


def known_notes(directory: RunDir, pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What ``summary.json`` says of pairs beyond what ``write_summary_json`` finds out by itself."""
    entries = json.loads(directory.summary_json.read_text())["pairs"]
    return {pair: {name: entries[pair][name] for name in NOTES} for pair in pairs}


def write_summary_json(
    directory: RunDir,
    summary: pa.Table,
    survivors: Mapping[str, Sequence[Survivor]],
    notes: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Evidence],
    status: str,
) -> None:
    """Write ``summary.json``: what a program reads.

    Args:
        directory: Where to.
        summary: The summary frame.
        survivors: Survivors by pair.
        notes: Further fields by pair: the number of trials, what the baselines were fitted to.
        found: The evidence by pair: its sentence is the verdict, and what it rests on stands under ``statistics``.
        status: complete or partial.
    """
    tests: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in summary.to_pylist():
        if row["split"] == "test":
            figures = {name: row[name] for name in METRICS}
            tests.setdefault((row["pair"], row["policy"]), {})[row["scenario"]] = figures
    pairs = {}
    for pair, ranked in survivors.items():
        names = {survivor.name for survivor in ranked}
        pairs[pair] = {
            "verdict": found[pair].sentence(),
            "statistics": found[pair].as_dict(),
            **notes.get(pair, {}),
            "survivors": [
                {
                    "rank": survivor.rank,
                    "member": survivor.snapshot.member,
                    "generation": survivor.snapshot.generation,
                    "path": str(directory.survivor(pair, survivor.rank).relative_to(directory.path)),
                    "fitness": survivor.snapshot.fitness,
                    "fitness_se": survivor.snapshot.fitness_se,
                    "idle": survivor.snapshot.idle,
                    "hyperparameters": survivor.snapshot.hyperparameters,
                    "test": tests.get((pair, survivor.name), {}),
                }
                for survivor in ranked
            ],
            "ensemble": {"test": tests.get((pair, "ensemble"), {})},
            "baselines": {
                policy: figures
                for (of, policy), figures in tests.items()
                if of == pair and policy not in names and policy != "ensemble"
            },
        }
    content = {
        "schema": SCHEMA,
        "run": directory.name,
        "identity": directory.identity,
        "status": status,
        "pairs": pairs,
    }
    write_text(directory.summary_json, json.dumps(content, indent=1, allow_nan=False) + "\n")
