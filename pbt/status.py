"""``python -m pbt.status RUN``: a run, live or finished, from what it has committed."""

import contextlib
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from analysis.frames import read_jsonl
from analysis.timing import time_line, time_split
from pbt.leaderboard import Status, leaderboard, pair_lines, run_status, summary_line
from pbt.manifest import Population
from pbt.mirror import committed, refusing
from pbt.run_dir import RunDir, open_run
from pbt.windows import current_window
from rayconf.errors import OneLineParser, UserError
from rayconf.loading import build_config, load_file
from rayconf.storage import place


def status_table(directory: RunDir) -> Table:
    """A row per pair: generations, best and median fitness of the last one, best of all, failures; where time went.

    Raises:
        UserError: If no run lies there, or its state is damaged.
    """
    directory.require()
    run = build_config(load_file(directory.config_in_force))
    events = read_jsonl(directory.events_journal)
    done = any(event["kind"] == "done" for event in events) and not directory.extension.is_file()
    directory, count = current_window(directory, run), len(run.split.walk_forward)
    where = f", window {directory.window} of {count}" if count else ""
    where += f", one population for {', '.join(run.data.pairs)}" if run.pbt.pooled else ""
    table = Table(title=f"{directory.name}: {'complete' if done else 'not complete'}{where}", title_justify="left")
    for column in ("pair", "generation", "best fitness", "median", "best of all", "retried", "lost"):
        table.add_column(column, justify="left" if column == "pair" else "right")
    progress = read_jsonl(directory.progress_journal)
    if progress:
        table.caption, table.caption_justify = time_line(time_split(progress)), "left"
    for pair in run.leaders:
        manifest = directory.manifest(pair)
        if not manifest.is_file():
            table.add_row(pair, f"0/{run.pbt.generations}")
            continue
        population = Population.read(manifest)
        last = [
            row["fitness"]
            for row in progress
            if (row["window"], row["pair"], row["generation"]) == (directory.window, pair, population.generation)
            and row.get("fitness") is not None
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
    """Print the status; 0, or 2 and one line on a user's mistake, 130 when a watch is interrupted."""
    parser = OneLineParser(prog="python -m pbt.status", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=place, metavar="RUN", help="directory of a run, e.g. runs/NAME, or s3://...")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.add_argument(
        "--watch", type=float, nargs="?", const=2.0, metavar="SECONDS", help="repaint (every 2 s) until the run ends"
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows ? for blocks
    try:
        args = parser.parse_args(arguments)
        if args.watch is not None and not args.watch > 0:
            raise UserError(f"--watch: {args.watch:g} must be above 0 seconds")
        directory = open_run(args.run, committed)
        if args.watch is not None:
            _watch(directory, args.watch, args.json)
        elif args.json:
            print(json.dumps(run_status(directory), allow_nan=False))
        else:
            Console().print(page(directory, run_status(directory)))
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def page(directory: RunDir, status: Status) -> RenderableType:
    """A status as text: an overview of the pairs, then each by itself."""
    search = build_config(load_file(directory.config_in_force)).search
    return Group(status_table(directory), leaderboard(status, search))


def _watch(directory: RunDir, seconds: float, as_json: bool) -> None:
    """Repaint in a terminal; elsewhere, or as JSON, one line per change."""
    console = Console()
    shown: dict[str, str] = {}
    paint = console.is_terminal and not as_json
    with Live(console=console, auto_refresh=False) if paint else contextlib.nullcontext() as live:
        while True:
            with refusing():
                directory.pull(committed)
            status = run_status(directory)
            if live is not None:
                live.update(page(directory, status), refresh=True)
            else:
                lines = {**pair_lines(status), "": status["status"]}
                fresh = [line for name, line in lines.items() if shown.get(name) != line and name]
                if as_json and lines != shown:
                    print(json.dumps(status, allow_nan=False), flush=True)
                elif not as_json:
                    ended = [summary_line(status)] if status["status"] == "complete" else []
                    for line in (*fresh, *ended):
                        print(line, flush=True)
                shown = lines
            if status["status"] == "complete":
                return
            time.sleep(seconds)


if __name__ == "__main__":
    sys.exit(main())
