"""A run, live or finished, as one plain mapping and as text: leaderboards, trajectories, failures, time left.

Everything is read from what the run has committed and journaled, so a run that is being written may be watched.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.diversity import diversity_rows
from analysis.frames import KEYS, keep_last, read_jsonl
from pbt.manifest import Population
from pbt.run_dir import RunDir
from pbt.search import to_unit
from pbt.windows import current_window
from rayconf.loading import build_config, load_file
from rayconf.run_config import RunConfig
from rayconf.search import Range

SCHEMA = 1
ROUTINE = ("start", "resume", "plan", "first_step", "look", "done")
"""Kinds of events that tell of no failure."""
BLOCKS = "▁▂▃▄▅▆▇█"
POINTS = 40
"""Most points of a sparkline."""
SHOWN = 8
"""Members per pair in the text; the mapping holds all."""

Status = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]


def run_status(directory: RunDir) -> Status:
    """All that is known of a run, ready for JSON.

    Returns:
        ``schema`` 1; ``run`` (name), ``identity``; ``status`` complete or partial; ``generations`` planned;
        ``updated`` unix s of the last thing known; ``elapsed_seconds`` since the last start or resume, up to
        ``updated``; ``seconds_left`` by the speed since then, null while unknown and in a complete run; ``looks``
        at the test span; ``failures`` by kind, of the whole run; ``windows`` of a walk-forward (0: none) and
        ``window``, the one that trains, or the last; and ``pairs`` in that window, by pair:

        - ``generation``: finished ones; ``operations``: lineage rows by operation, and ``failures`` by kind;
        - ``best``: of everything validation saw: member, generation, fitness, fitness_se; or null;
        - ``members``: best first, by the last finished generation: member, fitness, fitness_se, val_sharpe (null for
          a lost one), ``history`` (fitness per generation), ``operation`` and ``parent_member`` of the barrier after
          it, ``hyperparameters`` it trained with;
        - ``trajectories``: by hyperparameter, ``median`` over members and ``best`` (of the fittest member), each with
          an entry per generation;
        - ``diversity``: ``ancestors`` alive and the ``spread`` of each hyperparameter (standard deviation of its
          position in its range), each with an entry per generation from 0; ``ended``: whether its last one is done.

        Where ``pbt.pooled`` the one population stands under the first pair's name, and the other pairs are left out.

    Raises:
        UserError: If no run lies there, or its state is damaged.
    """
    directory.require()
    run = build_config(load_file(directory.config_in_force))
    events = read_jsonl(directory.events_journal)
    progress = keep_last(read_jsonl(directory.progress_journal), KEYS["progress"])
    lineage = keep_last(read_jsonl(directory.lineage_journal), KEYS["lineage"])
    ended = max((i for i, event in enumerate(events) if event["kind"] == "done"), default=-1)
    complete = ended >= 0 and not directory.extension.is_file()
    ends = [row for row in progress if row.get("fitness") is not None]
    directory = current_window(directory, run)
    here = [[row for row in rows if row.get("window") == directory.window] for rows in (ends, lineage)]
    pairs = {}
    for pair in run.leaders:
        manifest = directory.manifest(pair)
        population = Population.read(manifest) if manifest.is_file() else None
        own = ([row for row in rows if row.get("pair") == pair and row.get("generation") is not None] for rows in here)
        trouble = _failures([event for event in events if event.get("pair") == pair])
        pairs[pair] = {**_pair_status(run, population, *own), "failures": trouble}
    return {
        "schema": SCHEMA,
        "run": directory.name,
        "identity": run.identity,
        "status": "complete" if complete else "partial",
        "generations": run.pbt.generations,
        **_times(run, events[: ended + 1] if complete else events, ends, pairs, directory.window, complete),
        "window": directory.window,
        "windows": len(run.split.walk_forward),
        "looks": sum(event["kind"] == "look" for event in events),
        "failures": _failures(events),
        "pairs": pairs,
    }


def _failures(events: Rows) -> dict[str, int]:
    return dict(sorted(Counter(event["kind"] for event in events if event["kind"] not in ROUTINE).items()))


def _times(
    run: RunConfig, events: Rows, ends: Rows, pairs: Mapping[str, Status], window: int, complete: bool
) -> Status:
    starts = [event["wall_time"] for event in events if event["kind"] in ("start", "resume")]
    updated = max((row["wall_time"] for row in (*events, *ends)), default=None)
    began = max(starts, default=None)
    if updated is None or began is None:
        return {"updated": updated, "elapsed_seconds": None, "seconds_left": None}
    members = run.pbt.population
    left = members * sum(run.pbt.generations - pair["generation"] for pair in pairs.values() if not pair["ended"])
    left += members * run.pbt.generations * len(pairs) * (len(run.split.walk_forward) - window)
    since = [row["wall_time"] for row in ends if row["wall_time"] > began]
    seconds = (max(since) - began) * left / len(since) if since and not complete else None
    return {"updated": updated, "elapsed_seconds": updated - began, "seconds_left": seconds}


def _pair_status(run: RunConfig, population: Population | None, ends: Rows, lineage: Rows) -> Status:
    generation = population.generation if population else 0
    best = population.archive[0] if population and population.archive else None
    by_place = {(row["member"], row["generation"]): row for row in ends if row["generation"] <= generation}
    after = {row["member"]: row for row in lineage if row["generation"] == generation}
    members: list[Status] = []
    for name in population.members if population and generation else ():
        row = by_place.get((name, generation), {})
        decision = after.get(name, {})
        members.append(
            {
                "member": name,
                **{column: row.get(column) for column in ("fitness", "fitness_se", "val_sharpe")},
                "history": [by_place.get((name, g), {}).get("fitness") for g in range(1, generation + 1)],
                "operation": decision.get("operation"),
                "parent_member": decision.get("parent_member"),
                "hyperparameters": {
                    k: row.get(f"hp_{k}", decision.get(f"old_hp_{k}", decision.get(f"hp_{k}"))) for k in run.search
                },
            }
        )
    members.sort(key=lambda m: (-(m["fitness"] if m["fitness"] is not None else -math.inf), m["member"]))
    return {
        "generation": generation,
        "best": best and {name: getattr(best, name) for name in ("member", "generation", "fitness", "fitness_se")},
        "members": members,
        "trajectories": {name: _trajectory(name, list(by_place.values()), generation) for name in run.search},
        "operations": dict(sorted(Counter(r["operation"] for r in lineage if r["generation"] <= generation).items())),
        "diversity": _diversity(run, [row for row in lineage if row["generation"] <= generation]),
        "ended": population is not None and population.status == "complete",
    }


def _diversity(run: RunConfig, lineage: Rows) -> dict[str, Any]:
    rows = diversity_rows(lineage, {name: partial(to_unit, space=space) for name, space in run.search.items()})
    spread = {name: [row[f"spread_{name}"] for row in rows] for name in run.search}
    return {"ancestors": [row["ancestors"] for row in rows], "spread": spread}


def _trajectory(name: str, ends: Rows, generation: int) -> dict[str, list[float | None]]:
    medians: list[float | None] = []
    best: list[float | None] = []
    for number in range(1, generation + 1):
        rows = sorted((r for r in ends if r["generation"] == number), key=lambda r: (-r["fitness"], r["member"]))
        medians.append(statistics.median(row[f"hp_{name}"] for row in rows) if rows else None)
        best.append(rows[0][f"hp_{name}"] if rows else None)
    return {"median": medians, "best": best}


def sparkline(values: Sequence[float | None], low: float | None = None, high: float | None = None) -> str:
    """Values as blocks of eight heights between ``low`` and ``high`` (default: their own); unknown ones are blank.

    More than ``POINTS`` values are thinned out evenly, the last one kept.
    """
    if len(values) > POINTS:
        values = [values[round(i * (len(values) - 1) / (POINTS - 1))] for i in range(POINTS)]
    known = [value for value in values if value is not None]
    if not known:
        return " " * len(values)
    low = min(known) if low is None else low
    high = max(known) if high is None else high
    top = len(BLOCKS) - 1

    def block(value: float | None) -> str:
        if value is None:
            return " "
        share = (value - low) / (high - low) if high > low else 0.5
        return BLOCKS[min(top, max(0, round(share * top)))]

    return "".join(map(block, values))


def scaled_sparkline(values: Sequence[float | None], space: Range) -> str:
    """A hyperparameter's values between the bounds of its search space, on its own scale."""
    return sparkline([None if value is None else to_unit(value, space) for value in values], 0.0, 1.0)


def leaderboard(status: Status, search: Mapping[str, Range]) -> RenderableType:
    """The text of a status: per pair a leaderboard and the paths of its hyperparameters."""
    parts: list[RenderableType] = [Text(summary_line(status))]
    for pair, entry in status["pairs"].items():
        parts += [_members_table(pair, entry), _trajectories_table(entry, search), Text(_pair_line(entry))]
    return Group(*parts)


def _members_table(pair: str, entry: Status) -> Table:
    table = Table(title=f"{pair}  after generation {entry['generation']}", title_justify="left")
    for column in ("", "member", "fitness", "+-", "over time", "Sharpe", "then"):
        table.add_column(column, justify="left" if column in ("member", "over time", "then") else "right")
    for rank, member in enumerate(entry["members"][:SHOWN], start=1):
        then = member["operation"] or ""
        if member["parent_member"] not in (None, member["member"]):
            then += f" from {member['parent_member']}"
        figures = [_figure(member[name]) for name in ("fitness", "fitness_se")]
        history = sparkline(member["history"])
        table.add_row(str(rank), member["member"], *figures, history, _figure(member["val_sharpe"]), then)
    hidden = len(entry["members"]) - SHOWN
    if hidden > 0:
        table.caption, table.caption_justify = f"and {hidden} more", "left"
    return table


def _trajectories_table(entry: Status, search: Mapping[str, Range]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("hyperparameter", "from", "median of members", "", "best member", "", "to"):
        table.add_column(column, no_wrap=True)
    for name, paths in entry["trajectories"].items():
        space = search[name]
        cells = []
        for path in (paths["median"], paths["best"]):
            cells += [scaled_sparkline(path, space), f"{path[-1]:.2g}" if path and path[-1] is not None else ""]
        table.add_row(name, f"{space.low:g}", *cells, f"{space.high:g}")
    return table


def _pair_line(entry: Status) -> str:
    operations = ", ".join(f"{count} {name}" for name, count in entry["operations"].items())
    best = entry["best"]
    alive = entry["diversity"]["ancestors"]
    parts = [
        f"best of all {best['fitness']:+.2f} ({best['member']} g{best['generation']})" if best else "",
        operations,
        f"ancestors alive {sparkline(alive, 0.0)} {alive[-1]}" if alive else "",
        ", ".join(f"{count} {kind}" for kind, count in entry["failures"].items()),
    ]
    return "  ".join(part for part in parts if part) + "\n"


def summary_line(status: Status, now: float | None = None) -> str:
    """Where the run stands, in one line."""
    total = status["generations"] * len(status["pairs"])
    done = sum(entry["generation"] for entry in status["pairs"].values())
    parts = [f"{status['run']}: {status['status']}", f"{_window(status)}{done} of {total} generations"]
    if status["seconds_left"] is not None:
        seconds = int(status["seconds_left"])
        parts.append(f"{seconds // 60}:{seconds % 60:02d} left")
    if status["status"] != "complete" and status["updated"] is not None:
        parts.append(f"last news {max(0, int((now or time.time()) - status['updated']))} s ago")
    if status["failures"]:
        parts.append(", ".join(f"{count} {kind}" for kind, count in status["failures"].items()))
    return ", ".join(parts)


def pair_lines(status: Status) -> dict[str, str]:
    """One plain line per pair, which changes when something was committed or failed."""
    lines = {}
    for pair, entry in status["pairs"].items():
        leader = entry["members"][0] if entry["members"] else None
        text = f"{_window(status)}{pair}  generation {entry['generation']}/{status['generations']}"
        if leader is not None and leader["fitness"] is not None:
            text += f"  fitness best {leader['fitness']:+.2f} ({leader['member']})"
        text += f"  {entry['operations'].get('exploit', 0)} exploits"
        text += "".join(f"  {count} {kind}" for kind, count in entry["failures"].items())
        lines[pair] = text
    return lines


def _window(status: Status) -> str:
    """What precedes the figures of one window of a walk-forward."""
    return f"window {status['window']}/{status['windows']}  " if status["windows"] else ""


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
