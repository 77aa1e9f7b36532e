"""The tables and lines of a report, each from rows of frames to HTML."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from analysis.columns import FRAMES, KEYS, describe
from analysis.curves import SPLITS, Accounts
from analysis.labels import NOTHING, in_order, order, percent, plain, policy_label, shown
from analysis.metrics import METRICS
from analysis.page import cell, header, row_header, table, text
from analysis.summary import STRUNG

Rows = Sequence[Mapping[str, Any]]

_PERCENT = {
    "avg_daily_return": lambda value: f"{100 * value:.4f}%",
    **dict.fromkeys(
        ("annualized_return", "cumulative_return", "avg_turnover", "max_drawdown", "cagr", "volatility"), percent
    ),
    **dict.fromkeys(("cost_paid", "alpha"), percent),
    "cvar_95": lambda value: f"{100 * value:.2f}%",
    "final_value": lambda value: f"{value:.4g}",
    "days": lambda value: f"{value:d}",
}
_HEADLINE = ("test", "base")
_BESIDE = ("vol_target", "equal_weight")
FORMS: Mapping[str, Callable[[Any], str]] = _PERCENT
"""How each metric is printed; the others with two digits."""


def _tip(frame: str, name: str) -> str:
    column = describe(frame, name)
    return column.meaning + (f" Unit: {column.unit}." if column.unit else "")


def _label(row: Mapping[str, Any]) -> str:
    return policy_label(row["policy"], row["pair"], row["member"], row["generation"])


def metrics_table(pair: str, rows: Rows) -> str:
    """Every policy of a pair under the run's own terms, every metric."""
    headers = [header("policy", kind="text"), *[header(name, _tip("summary", name)) for name in METRICS]]
    return table(
        f"All figures of {pair} on test",
        headers,
        [
            (row["kind"], [row_header(_label(row)), *[cell(shown(row[m], FORMS.get(m, plain))) for m in METRICS]])
            for row in in_order(rows)
        ],
    )


def _terms_order(row: Mapping[str, Any]) -> tuple[bool, int, float, int, str]:
    return row["scenario"] != "base", len(row["scenario"]), row["cost_bps"], row["lag"], row["scenario"]


def scenario_table(pair: str, rows: Rows) -> str:
    """Sharpe ratio and CAGR of every policy of a pair under every scenario, a row per scenario."""
    scenarios = {row["scenario"]: row for row in sorted(rows, key=_terms_order)}
    found = {(row["policy"], row["scenario"]): row for row in rows}
    first = {row["policy"]: row for row in rows}
    policies = sorted(first, key=order)
    body = []
    for scenario, terms in scenarios.items():
        cells = [row_header(scenario), cell(f"{terms['cost_bps']:g}"), cell(str(terms["lag"]))]
        for policy in policies:
            row = found.get((policy, scenario))
            figures = f"{shown(row['annualised_sharpe'], plain)} / {shown(row['cagr'], percent)}" if row else NOTHING
            cells.append(cell(figures))
        body.append(("ensemble" if scenario == "base" else "", cells))
    headers = [header("scenario", kind="text"), header("bps a side"), header("lag")]
    headers += [header(_label(first[policy])) for policy in policies]
    return table(f"Sharpe ratio and CAGR of {pair} by scenario", headers, body)


def survivors_table(pair: str, survivors: Rows, progress: Rows, sharpes: Mapping[tuple[str, str], float]) -> str:
    """Where each survivor comes from: fitness, hyperparameters, and its Sharpe ratio on all three splits.

    Args:
        pair: The pair.
        survivors: Summary rows of the pair's survivors on test under base terms.
        progress: Progress rows of the pair.
        sharpes: Sharpe ratio by (policy, split) under base terms.
    """
    names = [name for name in (progress[0] if progress else {}) if name.startswith("hp_")]
    scored = {(row["member"], row["generation"]): row for row in progress if row["fitness"] is not None}
    headers = [header("survivor", kind="text"), header("fitness", _tip("progress", "fitness"))]
    headers += [header("se", _tip("progress", "fitness_se"))]
    headers += [header(name.removeprefix("hp_"), _tip("progress", name)) for name in names]
    headers += [header(f"Sharpe {split}") for split in ("train", "validation", "test")]
    body = []
    for row in in_order(survivors):
        origin = scored.get((row["member"], row["generation"]), {})
        cells = [row_header(_label(row))]
        cells += [cell(shown(origin.get(name), plain)) for name in ("fitness", "fitness_se")]
        cells += [cell(shown(origin.get(name), lambda value: f"{value:.3g}")) for name in names]
        cells += [cell(shown(sharpes.get((row["policy"], s)), plain)) for s in ("train", "validation", "test")]
        body.append(("", cells))
    return table(f"Survivors of {pair}", headers, body) if body else '<p class="soft">No survivor.</p>'


def windows_table(pair: str, policy: str, summary: Rows, spans: Mapping[tuple[str, int, str], tuple[str, str]]) -> str:
    """The windows of a walk-forward and all of them strung together, a row each; empty without one.

    Args:
        pair: The pair.
        policy: The headline's policy.
        summary: Summary rows of the pair.
        spans: First and last fill by pair, window and split.
    """
    if not spans:
        return ""
    found = {(row["window"], row["policy"]): row for row in summary if (row["split"], row["scenario"]) == _HEADLINE}
    shown_columns = ("annualised_sharpe", "cagr", "max_drawdown", "avg_turnover", "gross_exposure")
    headers = [header("window", kind="text"), header("trained until"), header("validation"), header("test")]
    headers += [header("days"), *[header(name, _tip("summary", name)) for name in shown_columns]]
    headers += [header(f"Sharpe {policy_label(other, pair)}") for other in _BESIDE]
    body = []
    for window in sorted({number for number, _ in found}, key=lambda number: (number == STRUNG, number)):
        row, own = found[window, policy], [spans.get((pair, window, split)) for split in SPLITS]
        name = "strung together" if window == STRUNG else str(window)
        cells = [row_header(name), cell(own[0][1] if own[0] else NOTHING)]
        cells += [cell(f"{span[0]} to {span[1]}" if span else NOTHING) for span in own[1:]]
        cells += [cell(str(row["days"])), *[cell(shown(row[m], FORMS.get(m, plain))) for m in shown_columns]]
        cells += [cell(shown(found[window, other]["annualised_sharpe"], plain)) for other in _BESIDE]
        body.append(("ensemble" if window == STRUNG else "", cells))
    return (
        "<h3>Windows of the walk-forward</h3>"
        + table(f"Windows of {pair}", headers, body)
        + '<p class="soft">Each window is trained anew on all that lies before its validation, and judged on the test '
        "that follows. Its account starts from cash; what it holds at the end is marked, not sold. Strung together the "
        "accounts compound; the bars of the embargo between two tests are left out.</p>"
    )


def splits_line(accounts: Accounts) -> str:
    """First and last session and number of sessions of each split of one pair."""
    parts = []
    for split, found in accounts.items():
        days = next(iter(found.values())).days
        parts.append(f"{split} {days[0]} to {days[-1]} ({len(days)} sessions)")
    return f"<p>Splits: {text('; '.join(parts))}. What lies between them is the embargo.</p>"


def plan_lines(events: Sequence[Mapping[str, Any]], pair: str | None) -> str:
    """What the plan says of a pair (or of the run): dropped rows, notes on the data."""
    found: list[str] = []
    for event in events:
        if event["kind"] == "plan" and event["pair"] == pair and event["detail"]:
            found += _told(event["detail"])
    return "".join(f"<p>{text(line)}</p>" for line in dict.fromkeys(found))


def _told(detail: str) -> list[str]:
    try:
        value = json.loads(detail)
    except ValueError:
        return detail.splitlines()
    if not isinstance(value, dict):
        value = {"": value}
    lines = []
    for name, item in value.items():
        if isinstance(item, dict):
            item = "; ".join(f"{key} {_flat(inner)}" for key, inner in item.items())
        else:
            item = _flat(item)
        lines.append(f"{name.replace('_', ' ')}: {item}" if name else item)
    return lines


def _flat(item: Any) -> str:
    return ", ".join(map(str, item)) if isinstance(item, list) else str(item)


def looks(events: Sequence[Mapping[str, Any]]) -> str:
    """How often the test span was read, when and by what."""
    read = [event for event in events if event["kind"] == "look"]
    times = "once" if len(read) == 1 else f"{len(read)} times"
    lines = [f"<p>The test span was read <b>{times}</b>. Every further look makes its figures less of a test.</p>"]
    if read:
        body = []
        for event in read:
            when = datetime.datetime.fromtimestamp(event["wall_time"], datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            body.append(
                ("", [row_header(when), cell(event["pair"] or "all"), cell(event["detail"] or "", "text wide")])
            )
        lines.append(
            table(
                "Reads of the test span", [header("when", kind="text"), header("pair"), header("by", kind="text")], body
            )
        )
    trouble: dict[str, int] = {}
    for event in events:
        if event["kind"] not in ("start", "plan", "first_step", "look", "done"):
            trouble[event["kind"]] = trouble.get(event["kind"], 0) + 1
    if trouble:
        lines.append(f"<p>Along the way: {text(', '.join(f'{n} {kind}' for kind, n in sorted(trouble.items())))}.</p>")
    return "".join(lines)


def dictionary() -> str:
    """Name, unit and meaning of the columns of ``summary``."""
    columns = [column for column in FRAMES["summary"] if column.name not in KEYS["summary"]]
    return table(
        "What the columns mean",
        [header("column", kind="text"), header("unit", kind="text"), header("meaning", kind="text")],
        [("", [row_header(c.name), cell(c.unit, "text"), cell(c.meaning, "text wide")]) for c in columns],
    )
