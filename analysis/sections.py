"""The sections of a report, each from rows of frames to HTML."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.charts import Series, days_since_epoch, legend, line_chart, thinned
from analysis.columns import FRAMES, KEYS, describe
from analysis.frames import group_slices
from analysis.labels import NOTHING, in_order, interval, order, percent, plain, policy_label, shown
from analysis.metrics import METRICS, session_returns
from analysis.page import cell, header, table, text
from analysis.verdict import Difference

Rows = list[Mapping[str, Any]]

_PERCENT = {
    "avg_daily_return": lambda value: f"{100 * value:.4f}%",
    **dict.fromkeys(
        ("annualized_return", "cumulative_return", "avg_turnover", "max_drawdown", "cagr", "volatility"), percent
    ),
    **dict.fromkeys(("cost_paid", "alpha"), percent),
    "cvar_95": lambda value: f"{100 * value:.2f}%",
    "final_value": lambda value: f"{value:.4f}",
    "days": lambda value: f"{value:d}",
}
FORMS: Mapping[str, Callable[[Any], str]] = _PERCENT
"""How each metric is printed; the others with two digits."""


def _tip(frame: str, name: str) -> str:
    column = describe(frame, name)
    return column.meaning + (f" Unit: {column.unit}." if column.unit else "")


def _label(row: Mapping[str, Any]) -> str:
    return policy_label(row["policy"], row["pair"], row["member"], row["generation"])


def headline(summary: Rows, comparisons: Mapping[str, Difference | None]) -> str:
    """A row per pair: the ensemble on the test span beside the bars to beat, and what may be said of it."""
    names = ("equal_weight", "vol_target")
    headers = [header("pair", kind="text"), header("Sharpe", _tip("summary", "annualised_sharpe"))]
    headers += [header("95 % interval", _tip("summary", "sharpe_ci_low")), header("CAGR", _tip("summary", "cagr"))]
    headers += [header("drawdown", _tip("summary", "max_drawdown")), header("days", _tip("summary", "days"))]
    headers += [header(f"Sharpe of {policy_label(name)}") for name in names]
    headers.append(
        header("Sharpe less equal weight's", "Paired, studentised stationary bootstrap, 95 % interval.", "text")
    )
    rows = []
    for pair, comparison in comparisons.items():
        found = {row["policy"]: row for row in summary if row["pair"] == pair}
        row = found.get("ensemble") or found.get("survivor-1") or next(iter(found.values()))
        cells = [cell(pair, "text"), cell(plain(row["annualised_sharpe"]))]
        cells.append(cell(interval(row["sharpe_ci_low"], row["sharpe_ci_high"])))
        cells += [cell(percent(row["cagr"])), cell(percent(row["max_drawdown"])), cell(str(row["days"]))]
        cells += [cell(plain(found[name]["annualised_sharpe"]) if name in found else NOTHING) for name in names]
        difference = ""
        if comparison is not None:
            difference = f"{comparison.value:+.2f} {interval(comparison.low, comparison.high)}"
        cells.append(cell(difference or NOTHING, "text"))
        rows.append(("ensemble", cells))
    return table(headers, rows)


def metrics_table(rows: Rows) -> str:
    """Every policy of a pair under the run's own terms, every metric."""
    headers = [header("policy", kind="text"), *[header(name, _tip("summary", name)) for name in METRICS]]
    return table(
        headers,
        [
            (row["kind"], [cell(_label(row), "text"), *[cell(shown(row[m], FORMS.get(m, plain))) for m in METRICS]])
            for row in in_order(rows)
        ],
    )


def _terms_order(row: Mapping[str, Any]) -> tuple[bool, float, int, str]:
    return row["scenario"] != "base", row["cost_bps"], row["lag"], row["scenario"]


def scenario_grid(rows: Rows) -> str:
    """Sharpe ratio and CAGR of every policy of a pair under every scenario."""
    scenarios = list(dict.fromkeys(row["scenario"] for row in sorted(rows, key=_terms_order)))
    terms = {row["scenario"]: f"{row['cost_bps']:g} bps a side, lag {row['lag']}" for row in rows}
    found = {(row["policy"], row["scenario"]): row for row in rows}
    first = {row["policy"]: row for row in rows}
    body = []
    for policy in sorted(first, key=order):
        cells = [cell(_label(first[policy]), "text")]
        for scenario in scenarios:
            row = found.get((policy, scenario))
            figures = f"{plain(row['annualised_sharpe'])} / {percent(row['cagr'])}" if row else NOTHING
            cells.append(cell(figures))
        body.append((first[policy]["kind"], cells))
    return table([header("policy", kind="text"), *[header(name, terms[name]) for name in scenarios]], body)


def equity_chart(pair: str, daily: pa.Table, buckets: int) -> str:
    """Equity of the ensemble, the survivors, equal weight and vol_target over the test span, on a log scale.

    Args:
        pair: The pair.
        daily: Its rows under base terms on test, one window, sorted.
        buckets: Points per line are thinned to about twice this.
    """
    series = []
    for (policy,), rows in group_slices(daily, ["policy"]):
        survivor = policy.startswith("survivor-")
        if not survivor and policy not in ("ensemble", "equal_weight", "vol_target"):
            continue
        part = daily.slice(rows.start, rows.stop - rows.start)
        returns, days = session_returns(part.column("net_return").to_numpy(), part.column("date").to_numpy())
        # A total loss has no logarithm; it is drawn at a thousandth of the start.
        equity = np.maximum(np.concatenate([[1.0], np.cumprod(1 + returns)]), 1e-3)
        at = days_since_epoch(days)
        x, y = thinned(np.concatenate([[at[0] - 1], at]), equity, buckets)
        styles = {"ensemble": "headline", "equal_weight": "bar", "vol_target": "target"}
        style = styles.get(policy) or f"survivor s{policy.removeprefix('survivor-')}"
        series.append(Series(policy_label(policy, pair), x, y, style, f"{equity[-1]:.2f}"))
    names = {policy_label(name, pair): order(name) for (name,), _ in group_slices(daily, ["policy"])}
    series.sort(key=lambda item: names[item.name])
    drawn = line_chart(
        series[::-1],
        label=f"Equity of {pair} on the test span",
        y_label="equity, start = 1 (log scale)",
        log=True,
        dates=True,
        reference=1.0,
    )
    return f"<figure>{drawn}{legend(series)}</figure>"


def fitness_chart(pair: str, progress: Rows) -> str:
    """Validation fitness of every member over generations, with the best and the median of the population."""
    scored: dict[str, dict[int, float]] = {}
    for row in progress:
        if row["fitness"] is not None and np.isfinite(row["fitness"]):
            scored.setdefault(row["member"], {})[row["generation"]] = row["fitness"]
    # Ruined members score -10 by definition; drawn, they would flatten all others.
    hidden = sum(value <= -10 for values in scored.values() for value in values.values())
    members = {m: {g: v for g, v in values.items() if v > -10} for m, values in scored.items()}
    generations = sorted({generation for values in members.values() for generation in values})
    x = np.array(generations, float)
    series = [
        Series(member, x, np.array([values.get(g, np.nan) for g in generations], float), "member")
        for member, values in sorted(members.items())
    ]
    columns = [[values[g] for values in members.values() if g in values] for g in generations]
    best = Series("best of the generation", x, np.array([max(column) for column in columns]), "headline")
    middle = Series("median", x, np.array([float(np.median(column)) for column in columns]), "middle")
    drawn = line_chart(
        [*series, middle, best],
        label=f"Validation fitness of {pair} over generations",
        y_label="fitness on validation",
        x_label="generation",
    )
    entries = [best, middle, *([Series(f"{len(series)} members", x, x, "member")] if series else [])]
    note = f"<figcaption>{hidden} scores of ruined members (-10) are not drawn.</figcaption>" if hidden else ""
    return f"<figure>{drawn}{legend(entries)}{note}</figure>"


def survivors_table(survivors: Rows, progress: Rows, sharpes: Mapping[tuple[str, str], float]) -> str:
    """Where each survivor comes from: fitness, hyperparameters, and its Sharpe ratio on all three splits.

    Args:
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
        cells = [cell(_label(row), "text")]
        cells += [cell(shown(origin.get(name), plain)) for name in ("fitness", "fitness_se")]
        cells += [cell(shown(origin.get(name), lambda value: f"{value:.3g}")) for name in names]
        cells += [cell(shown(sharpes.get((row["policy"], s)), plain)) for s in ("train", "validation", "test")]
        body.append(("", cells))
    return table(headers, body) if body else '<p class="empty">No survivor.</p>'


def splits_line(yardstick: pa.Table) -> str:
    """First and last fill bar and number of bars of each split, from equal weight's rows of one pair."""
    parts = []
    for split in ("train", "validation", "test"):
        dates = yardstick.filter(pc.equal(yardstick.column("split"), split)).column("date")
        if len(dates):
            ends = pc.min_max(dates)
            parts.append(
                f"{split} {ends['min'].as_py():%Y-%m-%d} to {ends['max'].as_py():%Y-%m-%d} ({len(dates)} bars)"
            )
    return f"<p>Splits: {text('; '.join(parts))}. The bars between them are the embargo.</p>"


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
                ("", [cell(when, "text"), cell(event["pair"] or "all"), cell(event["detail"] or "", "text wide")])
            )
        lines.append(table([header("when", kind="text"), header("pair"), header("by", kind="text")], body))
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
        [header("column", kind="text"), header("unit", kind="text"), header("meaning", kind="text")],
        [("", [cell(c.name, "text"), cell(c.unit, "text"), cell(c.meaning, "text wide")]) for c in columns],
    )
