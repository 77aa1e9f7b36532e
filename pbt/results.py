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
    part_of,
    progress_schema,
    read_jsonl,
    validation_schema,
    write_frame,
    write_text,
)
from analysis.metrics import METRICS
from analysis.summary import headline_window
from analysis.verdict import Evidence
from pbt.manifest import Population
from pbt.run_dir import RunDir
from pbt.search import to_unit
from pbt.simulator import ENSEMBLE, WEIGHTED
from pbt.store import ReturnStore
from pbt.survivors import Survivor
from pbt.windows import Window
from rayconf.run_config import RunConfig

SCHEMA = 1
Trained = tuple[Window, Mapping[str, Population]]
"""A window and its trained populations by pair."""
NOTES = ("trials", "zscore", "static_gross")
"""Fields of a pair in ``summary.json``: the snapshots that validation saw, and what its baselines were fitted to."""


def write_training_frames(run: RunConfig, directory: RunDir, trained: Sequence[Trained]) -> list[dict[str, Any]]:
    """Write progress, lineage, diversity and validation of all windows; return the lineage rows.

    The lineage of a population that is pooled over pairs is the lineage of each; its training is told once.
    """
    names = list(run.search)
    progress = keep_last(read_jsonl(directory.progress_journal), KEYS["progress"])
    write_frame(progress, progress_schema(names), KEYS["progress"], directory.frame("progress"))
    journaled = keep_last(read_jsonl(directory.lineage_journal), KEYS["lineage"])
    lineage = [{**row, "pair": pair} for row in journaled for pair in run.judges(row["pair"])]
    write_frame(lineage, lineage_schema(names), KEYS["lineage"], directory.frame("lineage"))
    positions = {name: partial(to_unit, space=space) for name, space in run.search.items()}
    diversity = diversity_rows(lineage, positions)
    write_frame(diversity, diversity_schema(names), KEYS["diversity"], directory.frame("diversity"))
    write_frame(
        validation_rows(trained),
        validation_schema(),
        KEYS["validation"],
        directory.frame("validation"),
    )
    return lineage


def validation_rows(trained: Sequence[Trained]) -> pa.Table:
    """Net returns of every evaluation on validation, in the order of the frame's key."""
    schema = validation_schema()
    blocks = []
    for window, populations in trained:
        store = ReturnStore(window.directory.storage)
        for pair in sorted(populations):
            market, population = window.markets[pair], populations[pair]
            span = market.splits["validation"]
            dates = market.dates[span.start : span.stop - 1]
            members, generations = sorted(population.members), range(1, population.generation + 1)
            evaluations = [(pair, member, generation) for member in members for generation in generations]
            for (_, member, generation), returns in zip(evaluations, store.load_each(evaluations), strict=True):
                if returns is not None:
                    where = {"window": window.number, "pair": pair, "member": member, "generation": generation}
                    blocks.append(frame_block(schema, where, {"date": dates, "net_return": returns}))
    return pa.concat_tables(blocks) if blocks else schema.empty_table()


def write_events(directory: RunDir) -> None:
    """Write the events frame."""
    write_frame(read_jsonl(directory.events_journal), events_schema(), KEYS["events"], directory.frame("events"))


def known_notes(directory: RunDir, pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What ``summary.json`` says of pairs beyond what ``write_summary_json`` finds out by itself."""
    entries = json.loads(directory.summary_json.read_text())["pairs"]
    return {pair: {name: entries[pair][name] for name in NOTES} for pair in pairs}


def figures_on_test(summary: pa.Table, window: int) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Every metric on test in a window, by (pair, policy) and scenario."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in part_of(summary, window=window, split="test").to_pylist():
        figures = {name: row[name] for name in METRICS}
        found.setdefault((row["pair"], row["policy"]), {})[row["scenario"]] = figures
    return found


def window_entries(windows: Sequence[Window], summary: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """What ``summary.json`` says of the windows of a walk-forward, by pair: seed, first and last fills, test figures.

    Empty without a walk-forward.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for window in windows if windows[-1].number else ():
        figures = figures_on_test(summary, window.number)
        for pair, market in window.markets.items():
            ends = {split: (span.start, span.stop - 2) for split, span in market.splits.items()}
            entry = {
                "window": window.number,
                "seed": window.run.seed,
                "splits": {split: [str(market.dates[bar]) for bar in bars] for split, bars in ends.items()},
                "ensemble": {"test": figures[pair, "ensemble"]},
            }
            found.setdefault(pair, []).append(entry)
    return found


def write_summary_json(
    directory: RunDir,
    summary: pa.Table,
    survivors: Mapping[str, Sequence[Survivor]],
    notes: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Evidence],
    status: str,
) -> None:
    """Write ``summary.json``: what a program reads.

    Of a walk-forward the survivors are the last window's, with their own figures; verdict, statistics, ensemble and
    baselines are those of the windows strung together.

    Args:
        directory: Where to.
        summary: The summary frame.
        survivors: Survivors by pair.
        notes: Further fields by pair: the number of trials, what the baselines were fitted to.
        found: The evidence by pair: its sentence is the verdict, and what it rests on stands under ``statistics``.
        status: complete or partial.
    """
    headline = figures_on_test(summary, headline_window(summary))
    own = figures_on_test(summary, max(summary.column("window").to_pylist()))
    pairs = {}
    for pair, ranked in survivors.items():
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
                    "test": own.get((pair, survivor.name), {}),
                }
                for survivor in ranked
            ],
            **{name: {"test": headline[pair, name]} for name in (ENSEMBLE, WEIGHTED) if (pair, name) in headline},
            "baselines": {
                policy: figures
                for (of, policy), figures in headline.items()
                if of == pair and not policy.startswith(("survivor-", "ensemble"))
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
