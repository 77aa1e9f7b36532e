"""``python -m analysis.report RUN`` rebuilds RUN/report.html from the run's frames: one file, no requests."""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis import sections
from analysis.frames import frame_path, part_of, read_frame, write_text
from analysis.page import page, text
from analysis.statistics import evidence
from analysis.summary import headline_window
from analysis.timing import time_line, time_split
from rayconf.errors import OneLineParser, UserError

_DAILY = ["window", "split", "scenario", "pair", "policy", "date", "net_return"]


def _pair_section(
    pair: str, summary: pa.Table, test: pa.Table, yardstick: pa.Table, progress: pa.Table, events: list, buckets: int
) -> list[str]:
    rows = part_of(summary, pair=pair).to_pylist()
    base = [row for row in rows if row["scenario"] == "base"]
    headline = [row for row in base if row["split"] == "test"]
    steps = part_of(progress, pair=pair).to_pylist()
    sharpes = {(row["policy"], row["split"]): row["annualised_sharpe"] for row in base}
    return [
        f"<h2>{text(pair)}</h2>",
        sections.splits_line(part_of(yardstick, pair=pair)),
        sections.plan_lines(events, pair),
        "<h3>Equity on the test span, the run's own costs and lag</h3>",
        sections.equity_chart(pair, part_of(test, pair=pair), buckets),
        "<h3>All figures on the test span, the run's own costs and lag</h3>",
        sections.metrics_table(headline),
        "<h3>Other costs and lags on the test span: Sharpe / CAGR</h3>",
        sections.scenario_grid([row for row in rows if row["split"] == "test"]),
        "<h3>Selection: fitness on validation over generations</h3>",
        sections.fitness_chart(pair, steps),
        "<h3>Survivors and their hyperparameters</h3>",
        sections.survivors_table([row for row in headline if row["kind"] == "survivor"], steps, sharpes),
    ]


def report_html(run: Path) -> str:
    """The report of a run as one HTML document, from its frames alone.

    Raises:
        UserError: The run or one of the frames summary, daily, progress, validation, lineage and events is missing or
            unreadable, or the run has no test results.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run; give the directory of a run, e.g. runs/NAME")
    summary = read_frame(frame_path(run, "summary"))
    window = headline_window(summary)
    summary = part_of(summary, window=window)
    test = read_frame(frame_path(run, "daily"), _DAILY, window=window, split="test", scenario="base")
    yardstick = read_frame(frame_path(run, "daily"), _DAILY, window=window, scenario="base", policy="equal_weight")
    progress = part_of(read_frame(frame_path(run, "progress")), window=window)
    events: list[dict[str, Any]] = read_frame(frame_path(run, "events")).to_pylist()

    pairs = sorted(set(test.column("pair").to_pylist()))
    if not pairs:
        raise UserError(f"{frame_path(run, 'daily')}: no test results under base terms; finish the run with --resume")
    headline = part_of(summary, split="test", scenario="base").to_pylist()
    # Fewer points a line where there are many pairs, so that the page stays small.
    buckets = max(60, min(300, 3000 // len(pairs)))
    name = run.resolve().name
    status = "complete" if any(event["kind"] == "done" for event in events) else "partial"
    terms = f"{headline[0]['cost_bps']:g} bps a side, lag {headline[0]['lag']}"
    found = evidence(run)
    body = [
        *[f'<p class="verdict">{text(f"{pair}: {found[pair].sentence()}")}.</p>' for pair in pairs if pair in found],
        f"<h1>{text(name)}</h1>",
        f'<p class="soft">{text(status)} run, {len(pairs)} {"pair" if len(pairs) == 1 else "pairs"}, {text(terms)}</p>',
        sections.plan_lines(events, None),
        "<h3>Headline: the ensemble of the survivors on the test span</h3>",
        sections.headline(headline, {pair: found[pair].against.get("equal_weight") for pair in found}),
        '<p class="soft">The ensemble was declared the headline before the test span was read. Where an interval holds '
        "0, the data cannot tell the result from luck. Hover over a heading for its meaning.</p>",
        sections.looks(events),
        f'<p class="soft">Training actors, {text(time_line(time_split(progress.to_pylist())))}.</p>',
    ]
    for pair in pairs:
        body += _pair_section(pair, summary, test, yardstick, progress, events, buckets)
    body += ["<h2>What the columns mean</h2>", sections.dictionary()]
    return page(f"{name}: pairpbt report", body)


def write_report(run: Path) -> Path:
    """Write RUN/report.html and return its path.

    Raises:
        UserError: As ``report_html``.
    """
    path = run / "report.html"
    write_text(path, report_html(run))
    return path


def main(argv: list[str] | None = None) -> int:
    """Rebuild a report; 0 and its path on success, 2 and one line on a user's mistake."""
    parser = OneLineParser(prog="python -m analysis.report", description="Rebuild RUN/report.html from frames.")
    parser.add_argument("run", metavar="RUN", type=Path, help="directory of a run, e.g. runs/NAME")
    try:
        print(write_report(parser.parse_args(argv).run))
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
