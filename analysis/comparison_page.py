"""The page that compares runs: configurations, the spread over seeds, and what may be said of the difference."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.collection import FinishedRun
from analysis.comparison import Group, group_runs, market_follows_seed, same_prices, seed_difference
from analysis.labels import NOTHING, interval, percent, plain, shown
from analysis.page import still_page, text
from analysis.paired import SeedComparison
from analysis.verdict import holm

Form = Callable[[float], str]

FIGURES: tuple[tuple[str, str, Form], ...] = (
    ("annualised_sharpe", "Sharpe", plain),
    ("cagr", "CAGR", percent),
    ("max_drawdown", "drawdown", percent),
)
"""Summary columns whose spread over seeds is shown."""

LEFT, WIDTH, ROW, AXIS = 150, 860, 15, 26


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1, wide: int | None = None) -> str:
    """A table; the first ``words`` columns and column ``wide`` hold words, which stand to the left."""

    def kind(index: int) -> str:
        return (
            ' class="text wide" style="white-space:normal;min-width:430px"'
            if index == wide
            else ' class="text"'
            if index < words
            else ""
        )

    head = "".join(f"<th{kind(index)}>{text(heading)}</th>" for index, heading in enumerate(headings))
    body = "".join(
        f"<tr>{''.join(f'<td{kind(index)}>{text(value)}</td>' for index, value in enumerate(row))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _spread(values: Sequence[float], form: Form) -> list[str]:
    sd = form(float(np.std(values, ddof=1))) if len(values) > 1 else NOTHING
    return [form(float(np.mean(values))), sd, f"{form(min(values))} .. {form(max(values))}"]


def spread_table(groups: Sequence[Group], pair: str) -> str:
    """Per configuration: seeds, then mean, standard deviation and range of the headline's figures on test."""
    headings = ["configuration", "seeds"]
    for _, heading, _ in FIGURES:
        headings += [heading, "SD", "range"]
    headings.append("equal weight")
    rows = []
    for group in groups:
        own = list(group.rows(pair).values())
        if not own:
            continue
        cells = [group.title, str(len(own))]
        for name, _, form in FIGURES:
            cells += _spread([row[name] for row in own], form)
        bars = [row["annualised_sharpe"] for row in group.rows(pair, "equal_weight").values()]
        cells.append(plain(float(np.mean(bars))) if bars else NOTHING)
        rows.append(cells)
    return _table(headings, rows)


def _ticks(low: float, high: float) -> list[float]:
    rough = max(high - low, 1e-9) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def dot_plot(groups: Sequence[Group], pair: str) -> str:
    """The Sharpe ratio of every run on test as a dot with its interval, by configuration; needs no script."""
    shown_groups = [(group, group.rows(pair)) for group in groups if group.rows(pair)]
    ends = [0.0]
    for _, rows in shown_groups:
        for row in rows.values():
            named = ("annualised_sharpe", "sharpe_ci_low", "sharpe_ci_high")
            ends += [row[name] for name in named if row[name] is not None]
    margin = 0.04 * (max(ends) - min(ends) or 1.0)
    low, high = min(ends) - margin, max(ends) + margin

    def at(value: float) -> str:
        return f"{LEFT + (value - low) / (high - low) * (WIDTH - LEFT - 10):.1f}"

    def upright(value: float, top: float, bottom: float, look: str) -> str:
        return f'<line x1="{at(value)}" x2="{at(value)}" y1="{top}" y2="{bottom}" stroke="currentColor" {look}/>'

    height = sum(ROW * len(rows) + ROW for _, rows in shown_groups)
    parts = []
    for tick in _ticks(low, high):
        parts.append(upright(tick, 0, height, f'stroke-opacity="{0.6 if abs(tick) < 1e-9 else 0.15}"'))
        label = f"{tick + 0.0:g}" if abs(tick) > 1e-9 else "0"
        parts.append(
            f'<text x="{at(tick)}" y="{height + 16}" text-anchor="middle" fill="currentColor" font-size="11">'
            f"{label}</text>"
        )
    top = 0.0
    for group, rows in shown_groups:
        bottom = top + ROW * len(rows) + ROW / 2
        parts.append(upright(float(np.mean([r["annualised_sharpe"] for r in rows.values()])), top + 4, bottom, _MEAN))
        bars = [row["annualised_sharpe"] for row in group.rows(pair, "equal_weight").values()]
        if bars:
            parts.append(upright(float(np.clip(np.mean(bars), low, high)), top + 4, bottom, _YARDSTICK))
        for index, (seed, row) in enumerate(rows.items()):
            y = top + ROW * (index + 0.8)
            parts.append(_dot(group.label, seed, row, y, at))
        top = bottom + ROW / 2
    return (
        f'<figure><svg class="chart" role="img" viewBox="0 0 {WIDTH} {height + AXIS:g}" width="100%" '
        f'aria-label="{text(f"Sharpe ratio of {pair} on test by configuration and seed")}">{"".join(parts)}</svg>'
        "<figcaption>Sharpe ratio on test. Dot: one run. Thin line: its 95 % interval over days. "
        "Bar: mean over seeds. Dashed: equal weight.</figcaption></figure>"
    )


_MEAN = 'stroke-width="3" stroke-opacity="0.45"'
_YARDSTICK = 'stroke-width="1.5" stroke-dasharray="4 3"'


def _dot(label: str, seed: int, row: Mapping[str, Any], y: float, at: Callable[[float], str]) -> str:
    sharpe, low, high = row["annualised_sharpe"], row["sharpe_ci_low"], row["sharpe_ci_high"]
    line = ""
    if low is not None and high is not None:
        line = f'<line x1="{at(low)}" x2="{at(high)}" y1="{y}" y2="{y}" stroke="currentColor" stroke-opacity="0.5"/>'
    title = text(f"{label}, seed {seed}: {plain(sharpe)} {interval(low, high)}")
    return (
        f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end" fill="currentColor" font-size="11">'
        f"{text(f'{label}  seed {seed}')}</text><g><title>{title}</title>{line}"
        f'<circle cx="{at(sharpe)}" cy="{y}" r="4" style="fill:var(--c0,#1452cc)"/></g>'
    )


def difference_table(groups: Sequence[Group], pairs: Sequence[str]) -> str:
    """Every other configuration less the first, on the Sharpe ratio of each pair, paired by seed."""
    first, *others = groups
    found: list[tuple[str, str, SeedComparison, int]] = []
    apart = []
    for group in others:
        if not same_prices(first, group):
            apart.append(group.label)
            continue
        for pair in pairs:
            own, base = (
                {seed: row["annualised_sharpe"] for seed, row in side.rows(pair).items()} for side in (group, first)
            )
            paired = seed_difference(own, base)
            if paired is not None:
                found.append((f"{group.label} less {first.label}", pair, *paired))
    lines = []
    if apart:
        several = "configurations" if len(apart) > 1 else "configuration"
        lines.append(f"<p>Not compared with {first.label}: {several} {', '.join(apart)}, tested on other prices.</p>")
    if not found:
        lines.append("<p>No two configurations on the same prices share a seed, so nothing can be paired.</p>")
        return "".join(lines)
    tested = [c.wilcoxon_p for _, _, c, _ in found if c.seeds > 1]
    adjusted = iter(holm(tested))
    rows = []
    for name, pair, c, better in found:
        ps = [f"{c.wilcoxon_p:.3f}", f"{next(adjusted):.3f}"] if c.seeds > 1 else [NOTHING, NOTHING]
        ends = interval(c.low, c.high) if c.seeds > 1 else NOTHING
        rows.append([name, pair, str(c.seeds), f"{c.value:+.2f}", ends, f"{better} of {c.seeds}", *ps])
    headings = ["difference", "pair", "seeds", "Sharpe", "95 % interval", "better in", "p", "p (Holm)"]
    lines.append(_table(headings, rows, words=2))
    fewest = min(c.seeds for _, _, c, _ in found)
    least = f": {2.0 ** (1 - fewest):g} for {fewest}" if fewest > 1 else ", and one seed has none"
    lines.append(
        '<p class="soft">Differences of the Sharpe ratio on test, seed by seed: mean, two-sided Wilcoxon signed-rank '
        f"test and its interval; p then adjusted for the {len(tested)} tests of this table (Holm). With n seeds p "
        f"cannot be below 2^(1 - n){least}. A small p says that the change matters on these prices, not that it will "
        "on others.</p>"
    )
    return "".join(lines)


def settings_table(groups: Sequence[Group], differing: Sequence[str]) -> str:
    """In what the configurations differ, and which seeds each has."""
    several = len(groups) > 1
    rows = [[path, *[group.settings[path] for group in groups]] for path in differing] if several else []
    rows.append(["seeds", *[", ".join(str(run.seed) for run in group.runs) for group in groups]])
    words = len(groups) + 1
    note = "" if several else "<p>All runs have one configuration and differ at most in their seed.</p>"
    return note + _table(["", *[group.label for group in groups]], rows, words=words)


def seeds_note(runs: Sequence[FinishedRun]) -> str:
    """What agreement between seeds says, and what it does not."""
    if market_follows_seed(runs):
        return "Every seed has a synthetic market of its own, so the spread over seeds holds training and market."
    return (
        "Seeds are not certainty: they share the prices. Their spread shows how much training varies; "
        "their agreement says nothing about other days. For that read each run's interval."
    )


def runs_table(groups: Sequence[Group]) -> str:
    """Every run and pair with its figures, its interval and its own verdict."""
    headings = [
        "run",
        "configuration",
        "pair",
        "seed",
        "days",
        "Sharpe",
        "95 % interval",
        "CAGR",
        "drawdown",
        "verdict",
    ]
    rows = []
    repeats = []
    for group in groups:
        repeats += [run.name for run in group.repeats]
        for run in sorted(itertools.chain(group.runs, group.repeats), key=lambda run: run.name):
            for pair, row in run.headline().items():
                figures = [shown(row[name], form) for name, _, form in FIGURES]
                ends = interval(row["sharpe_ci_low"], row["sharpe_ci_high"])
                cells = [run.name, group.label, pair, str(run.seed), str(row["days"]), figures[0], ends, *figures[1:]]
                rows.append([*cells, run.verdicts.get(pair) or NOTHING])
    note = f"<p>Repeat a seed of their configuration and count nowhere: {text(', '.join(repeats))}.</p>"
    return (note if repeats else "") + _table(headings, rows, words=3, wide=len(headings) - 1)


def comparison_html(
    title: str, runs: Sequence[FinishedRun], left_out: Mapping[str, str], reference: str | None = None
) -> str:
    """The comparison as one HTML document that asks for nothing from outside.

    Args:
        title: Name of the folder.
        runs: Complete runs, at least one.
        left_out: Runs that could not be aggregated, and why.
        reference: Run whose configuration the others are compared with.
    """
    groups, differing = group_runs(runs, reference)
    pairs = sorted({pair for run in runs for pair in run.headline()})
    counts = [
        f"{number} {word}{'' if number == 1 else 's'}"
        for number, word in ((len(runs), "run"), (len(groups), "configuration"), (len(pairs), "pair"))
    ]
    body = [
        f"<h1>{text(title)}: runs compared</h1>",
        f'<p class="soft">{text(", ".join(counts))}. Figures are of each run\'s headline, the ensemble of its '
        "survivors, on the test span under the run's own costs and lag.</p>",
        *[f"<p>Left out: {text(name)}: {text(reason)}.</p>" for name, reason in left_out.items()],
        f'<p class="verdict">{seeds_note(runs)}</p>',
        "<h2>In what the runs differ</h2>",
        settings_table(groups, differing),
    ]
    for pair in pairs:
        body += [f"<h2>{text(pair)}</h2>", spread_table(groups, pair), dot_plot(groups, pair)]
    if len(groups) > 1:
        body += ["<h2>Differences, paired by seed</h2>", difference_table(groups, pairs)]
    body += ["<h2>Every run</h2>", runs_table(groups)]
    return still_page(f"{title}: runs compared", body)
