"""``python -m analysis.report RUN`` rebuilds RUN/report.html from the run's frames: one file, no requests."""

import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis import population, sections
from analysis.curves import Accounts, accounts_of, equity_figure, points_per_split, rolling_figure, weights_figure
from analysis.figures import costs_figure, months_figure
from analysis.frames import frame_path, part_of, read_frame, write_text
from analysis.labels import policy_label
from analysis.page import code, folded, page, plot, tabs, text
from analysis.payload import Payload
from analysis.statistics import Evidence, evidence
from analysis.summary import STRUNG, annual_sessions_of, headline_window, sessions_per_year
from analysis.timing import time_line, time_split
from analysis.verdicts import audit_line, bootstrap_plots, evidence_table, glossary, verdicts
from analysis.walk_forward import SPANS, spans_of
from rayconf.errors import OneLineParser, UserError
from rayconf.remote_storage import RemoteStorage
from rayconf.storage import StorageError, place

_RETURNS = ["split", "pair", "policy", "date", "net_return"]
_BESIDE = ("config.yaml", "audit.json")
_HELD = ["pair", "date", "weight_a", "weight_b", "gross", "turnover"]


@dataclass(frozen=True)
class _Run:
    """What the report reads of a run: its frames, and its config where there is one."""

    summary: pa.Table
    base: pa.Table
    progress: pa.Table
    lineage: pa.Table
    events: list[dict[str, Any]]
    window: int
    trained: int
    """The window whose population is shown: the last where windows are strung together."""
    spans: Mapping[tuple[str, int, str], tuple[str, str]]
    """First and last fill by pair, window and split, where the run is a walk-forward."""
    config: Mapping[str, Any]
    written: str
    """The config as it stands in the file; empty without one."""


def _read(run: Path) -> _Run:
    if not run.is_dir():
        raise UserError(f"{run}: no such run; give the directory of a run, e.g. runs/NAME")
    summary = read_frame(frame_path(run, "summary"))
    window = headline_window(summary)
    base = read_frame(frame_path(run, "daily"), _RETURNS, window=window, scenario="base")
    progress, lineage = read_frame(frame_path(run, "progress")), read_frame(frame_path(run, "lineage"))
    events = read_frame(frame_path(run, "events")).to_pylist()
    if part_of(base, split="test").num_rows == 0:
        raise UserError(f"{frame_path(run, 'daily')}: no test results under base terms; finish the run with --resume")
    windows = set(lineage.column("window").to_pylist())
    trained = window if window in windows or not windows else max(windows)
    path = run / "config.yaml"
    written, config = "", {}
    if path.is_file():
        import yaml

        try:
            written = path.read_text(encoding="utf-8")
            config = yaml.safe_load(written)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    config = config if isinstance(config, dict) else {}
    spans = {}
    if window == STRUNG:
        spans = spans_of(read_frame(frame_path(run, "daily"), SPANS, scenario="base", policy="equal_weight"))
    return _Run(summary, base, progress, lineage, events, window, trained, spans, config, written)


def _population(run: _Run, pair: str, key: str, payload: Payload, summary: pa.Table, base: list[Any]) -> list[str]:
    steps = part_of(run.progress, window=run.trained, pair=_trained_under(run, pair)).to_pylist()
    lineage = part_of(run.lineage, window=run.trained, pair=pair).to_pylist()
    survivors = part_of(summary, window=run.trained, split="test", scenario="base", kind="survivor").to_pylist()
    ranks = {(row["member"], row["generation"]): row["rank"] for row in survivors}
    sharpes = {(row["policy"], row["split"]): row["annualised_sharpe"] for row in base}
    note = "" if run.trained == run.window else f'<p class="soft">Of walk-forward window {run.trained}, the last.</p>'
    parts = [
        f'<h3 id="{key}-population">Survivors and their hyperparameters</h3>{note}',
        sections.survivors_table(pair, survivors, steps, sharpes),
        "<h3>Selection: fitness on validation over generations</h3>",
    ]
    fitness, hidden = population.fitness_figure(pair, steps)
    if fitness is None:
        parts.append('<p class="soft">Nothing to draw: no score.</p>')
    else:
        ruined = f"{hidden} scores of ruined members (-10) are not drawn." if hidden else ""
        parts.append(plot(payload, f"{key}-fitness", fitness, ruined))
    tree = population.lineage_figure(pair, lineage, ranks)
    if tree is None:
        return parts
    return [
        *parts,
        "<h3>Lineage of the population</h3>",
        plot(
            payload,
            f"{key}-lineage",
            tree,
            "A lane per member, a dot per state at the end of a generation. An edge leads from the state trained on to "
            "what became of it; one that changes lanes copied weights. Rings are the survivors.",
        ),
        "<h3>Hyperparameters over generations</h3>",
        '<p class="soft">Grey: every member. Blue: the descent of survivor 1; green: that of the others.</p>',
        '<div class="side">',
        *[
            f"<div><h4>{text(name)}</h4>{plot(payload, f'{key}-hp-{at}', figure, side=True)}</div>"
            for at, (name, figure) in enumerate(
                population.trajectories(pair, lineage, ranks, run.config.get("search") or {})
            )
        ],
        "</div>",
    ]


def _trained_under(run: _Run, pair: str) -> str:
    """The pair whose progress tells of the pair's population: the first of those that one is pooled over."""
    pooled = (run.config.get("pbt") or {}).get("pooled")
    return str(run.config["data"]["pairs"][0]) if pooled else pair


def _pair(
    run: _Run, pair: str, key: str, payload: Payload, found: Evidence, held: pa.Table, points: Mapping[str, int]
) -> str:
    mine = part_of(run.summary, pair=pair)
    rows = part_of(mine, window=run.window).to_pylist()
    test = [row for row in rows if row["split"] == "test"]
    base = part_of(mine, window=run.trained, scenario="base").to_pylist()
    headline = [row for row in test if row["scenario"] == "base"]
    accounts: Accounts = accounts_of(part_of(run.base, pair=pair))
    tested = accounts["test"]
    annual = annual_sessions_of(headline) or sessions_per_year(tested[found.policy].days)
    grid = costs_figure(pair, found.policy, [row for row in test if row["policy"] == found.policy])
    name = text(policy_label(found.policy, pair).removesuffix(" (headline)"))
    most = max(points.values())
    places = ("equity", "weights", "costs", "bootstrap", "rolling", "months", "figures", "population")
    body = [
        f'<h2 id="{key}">{text(pair)}</h2>',
        verdicts({pair: found}),
        sections.splits_line(accounts),
        sections.windows_table(pair, found.policy, mine.to_pylist(), run.spans),
        folded("Bars and fills", sections.plan_lines(run.events, pair)),
        f'<ul class="places">{"".join(f"""<li><a href="#{key}-{place}">{place}</a></li>""" for place in places)}</ul>',
        f'<h3 id="{key}-equity">Equity and drawdown, net of the run\'s own costs and lag</h3>',
        plot(
            payload,
            f"{key}-equity",
            equity_figure(pair, accounts, payload, points),
            "Each split is an account of its own that starts at 1. Dotted: where validation and test begin. A line has "
            f"{most} points a split at most: equity at the end of each stretch, drawdown at its deepest.",
        ),
        f'<h3 id="{key}-weights">Weights and turnover of the {name} on test</h3>',
        plot(
            payload,
            f"{key}-weights",
            weights_figure(pair, part_of(held, pair=pair), payload, points),
            "After the session's fill. Over long spans: mean and, shaded, lowest and highest of each stretch.",
        ),
        f'<h3 id="{key}-costs">Costs and lag: Sharpe ratio of the {name} on test</h3>',
        '<div class="small">' + plot(payload, f"{key}-costs", grid) + "</div>" if grid else "",
        folded("Sharpe ratio / CAGR of every policy under every scenario", sections.scenario_table(pair, test)),
        f'<h3 id="{key}-bootstrap">Bootstrap: how far luck reaches</h3>',
        bootstrap_plots(payload, f"{key}-bootstrap", found, tested, annual),
        '<p class="soft">Blue line: the estimate. Shaded: its 95 % interval. Where it holds 0 (thin line), the data '
        "cannot tell the result from luck.</p>",
        f'<h3 id="{key}-rolling">Rolling Sharpe ratio</h3>',
        plot(payload, f"{key}-rolling", rolling_figure(pair, accounts, payload, points, annual)),
        f'<h3 id="{key}-months">Monthly returns of the {name} on test, percent</h3>',
        plot(payload, f"{key}-months", months_figure(pair, found.policy, tested[found.policy])),
        f'<h3 id="{key}-figures">All figures on test, the run\'s own costs and lag</h3>',
        sections.metrics_table(pair, headline),
        *_population(run, pair, key, payload, mine, base),
    ]
    return "".join(body)


def _reproduction(folder: Path, run: _Run) -> list[str]:
    path = f"{folder.parent.name}/{folder.name}" if folder.parent.name else folder.name
    commands = "\n".join(
        (
            f"python -m pbt.launch --config {shlex.quote(f'{path}/config.yaml')} --name again",
            f"python -m pbt.backtest {shlex.quote(path)}",
            f"python -m analysis.report {shlex.quote(path)}",
        )
    )
    versions = run.config.get("versions") or {}
    made = ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""
    parts = [
        '<h2 id="reproduce">Config and how to reproduce</h2>',
        "<p>From the folder that holds the run's: train again with the same config and seeds, repeat the backtests, "
        "rebuild this page.</p>",
        code(commands),
        f"<p>Made with {text(made)}.</p>" if made else "",
    ]
    if run.written:
        parts.append(folded("config.yaml, complete", code(run.written)))
    return parts


def report_html(folder: Path, found: Mapping[str, Evidence] | None = None) -> str:
    """The report of a run as one HTML document, from its frames alone; the config stands beside them where it exists.

    Args:
        folder: Directory of the run.
        found: ``evidence(folder)`` where it is known; None: it is worked out.

    Raises:
        UserError: The run or one of the frames summary, daily, progress, lineage, validation and events is missing or
            unreadable, or the run has no test results.
    """
    run = _read(folder)
    found = evidence(folder) if found is None else found
    payload = Payload()
    points = points_per_split(len(found))
    test = part_of(run.summary, window=run.window, split="test", scenario="base").to_pylist()
    held = {}
    for policy in {item.policy for item in found.values()}:
        terms: dict[str, Any] = {"window": run.window, "split": "test", "scenario": "base", "policy": policy}
        held[policy] = read_frame(frame_path(folder, "daily"), _HELD, **terms)
    keys = {pair: f"pair-{at}" for at, pair in enumerate(found)}
    name = folder.resolve().name
    status = "complete" if any(event["kind"] == "done" for event in run.events) else "partial"
    count = f"{len(found)} {'pair' if len(found) == 1 else 'pairs'}"
    terms_line = f"{test[0]['cost_bps']:g} bps a side, lag {test[0]['lag']}"
    head = [f"<h1>{text(name)}</h1>", f'<p class="soft">{text(status)} run, {count}, {text(terms_line)}</p>']
    body = [
        verdicts(found),
        evidence_table(found, keys),
        '<p class="soft">The ensemble of the survivors was declared the headline before the test span was read. '
        "Brackets hold 95 % intervals.</p>",
        audit_line(folder),
        folded("What these figures mean", glossary()),
        sections.plan_lines(run.events, None),
        tabs(
            [
                (pair, _pair(run, pair, keys[pair], payload, item, held[item.policy], points))
                for pair, item in found.items()
            ]
        ),
        "<h2>The run</h2>",
        sections.looks(run.events),
        f"<p>Training actors, {text(time_line(time_split(run.progress.to_pylist())))}.</p>",
        *_reproduction(folder.resolve(), run),
        "<h2>What the columns mean</h2>",
        folded("Columns of the tables", sections.dictionary()),
    ]
    return page(f"{name}: pairpbt report", head, body, payload)


def write_report(run: Path, found: Mapping[str, Evidence] | None = None) -> Path:
    """Write RUN/report.html and return its path.

    Args:
        run: Directory of the run.
        found: As for ``report_html``.

    Raises:
        UserError: As ``report_html``.
    """
    path = run / "report.html"
    write_text(path, report_html(run, found))
    return path


def write_remote_report(uri: str) -> str:
    """Write the report of a run at a URI, from a copy of its frames; returns where it lies.

    Raises:
        UserError: As ``report_html``, or the run cannot be read or written.
    """
    try:
        run = RemoteStorage(uri)
        run.check()
        names = run.names(lambda name: name.startswith("frames/") or name in _BESIDE)
        with tempfile.TemporaryDirectory(prefix="pairpbt-") as scratch:
            folder = Path(scratch).joinpath(*Path(run.path).parts[-2:])
            folder.mkdir(parents=True)
            run.fetch(names, folder)
            run.send([write_report(folder).name], folder)
        return run.shown("report.html")
    except StorageError as error:
        raise UserError(str(error)) from error


def main(argv: list[str] | None = None) -> int:
    """Rebuild a report; 0 and its path on success, 2 and one line on a user's mistake."""
    parser = OneLineParser(prog="python -m analysis.report", description="Rebuild RUN/report.html from frames.")
    parser.add_argument("run", metavar="RUN", type=place, help="directory of a run, e.g. runs/NAME, or s3://...")
    try:
        run = parser.parse_args(argv).run
        print(write_remote_report(run) if isinstance(run, str) else write_report(run))
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
