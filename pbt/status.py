"""``python -m pbt.status RUN``: a run, live or finished, from what it has committed."""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from analysis.frames import read_jsonl
from analysis.timing import time_line, time_split
from pbt.manifest import Population
from pbt.run_dir import RunDir
from rayconf.errors import UserError
from rayconf.loading import build_config, load_file


def status_table(directory: RunDir) -> Table:
    """A row per pair: generations, best and median fitness of the last one, best of all, failures; where time went.

    Raises:
        UserError: If no run lies there, or its state is damaged.
    """
    directory.require()
    run = build_config(load_file(directory.config))
    events = read_jsonl(directory.events_journal)
    done = any(event["kind"] == "done" for event in events)
    table = Table(title=f"{directory.name}: {'complete' if done else 'not complete'}", title_justify="left")
    for column in ("pair", "generation", "best fitness", "median", "best of all", "retried", "lost"):
        table.add_column(column, justify="left" if column == "pair" else "right")
    progress = read_jsonl(directory.progress_journal)
    if progress:
        table.caption, table.caption_justify = time_line(time_split(progress)), "left"
    for pair in run.data.pairs:
        manifest = directory.manifest(pair)
        if not manifest.is_file():
            table.add_row(pair, f"0/{run.pbt.generations}")
            continue
        population = Population.read(manifest)
        last = [
            row["fitness"]
            for row in progress
            if row["pair"] == pair and row["generation"] == population.generation and row.get("fitness") is not None
        ]
        best = population.archive[0] if population.archive else None
        trouble = [event["kind"] for event in events if event.get("pair") == pair]
        table.add_row(
            pair,
            f"{population.generation}/{run.pbt.generations}",
            f"{max(last):+.2f}" if last else "",
            f"{statistics.median(last):+.2f}" if last else "",
            f"{best.fitness:+.2f} ({best.member} g{best.generation})" if best else "",
            str(trouble.count("retry")),
            str(trouble.count("actor_lost")),
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the status; 0, or 2 and one line on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m pbt.status", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run, e.g. runs/NAME")
    try:
        Console().print(status_table(RunDir(parser.parse_args(arguments).run)))
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
