"""Small multiples on log-log axes as an SVG file that follows the reader's light or dark theme."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.chart import STYLE as CHART_STYLE
from benchmarks.chart import text

WIDTH, LEFT, RIGHT, GAP = 860, 62, 18, 16
TOP, HEAD, PLOT, FOOT = 58, 64, 128, 34
STYLE = (
    CHART_STYLE
    + """  .panel { font-weight: 600; }
  polyline { stroke-width: 1.5; }
  polyline.ours { fill: none; stroke: #0969da; }
  polyline.ceiling { fill: none; stroke: #818b98; }
  .bend { stroke: #0969da; stroke-dasharray: 3 3; }
  .whisker { stroke-width: 1; }
  line.ours { stroke: #0969da; }
  line.ceiling { stroke: #818b98; }
  @media (prefers-color-scheme: dark) {
    polyline.ours { fill: none; stroke: #4493f8; }
    polyline.ceiling { fill: none; stroke: #767e88; }
    line.ours, .bend { stroke: #4493f8; }
    line.ceiling { stroke: #767e88; }
  }
"""
)


@dataclass(frozen=True)
class Line:
    """One curve: its role, ``ours`` or ``ceiling``, and its points (x, low, middle, high)."""

    role: str
    points: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Panel:
    """One plot: a title, a line of text under it, its curves, and an x to mark with a dashed line (NaN: none)."""

    title: str
    caption: str
    lines: Sequence[Line]
    bend: float = float("nan")


@dataclass(frozen=True)
class Row:
    """Panels side by side on one y axis; ``legend`` names the roles that occur."""

    title: str
    legend: dict[str, str]
    panels: Sequence[Panel]


def write_panels(path: Path, title: str, note: str, rows: Sequence[Row]) -> None:
    """Write the rows one under the other.

    Args:
        path: Target file.
        title: First line.
        note: Second line, smaller.
        rows: Rows with the same number of panels.
    """
    height = TOP + len(rows) * (HEAD + PLOT + FOOT) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        text(16, 24, title, "title"),
        text(16, 44, note, "note"),
    ]
    for i, row in enumerate(rows):
        parts += _row(row, TOP + i * (HEAD + PLOT + FOOT))
    parts.append("</svg>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _row(row: Row, top: float) -> Iterable[str]:
    yield text(16, top + 20, row.title, "group")
    x = 190.0
    for role, meaning in row.legend.items():
        yield f'<line class="{role}" stroke-width="3" x1="{x:.0f}" x2="{x + 18:.0f}" y1="{top + 16}" y2="{top + 16}"/>'
        yield text(x + 24, top + 20, meaning, "note")
        x += 44 + 6.4 * len(meaning)
    points = [point for panel in row.panels for line in panel.lines for point in line.points]
    low, high = min(point[1] for point in points), max(point[3] for point in points)
    ticks = log_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    bottom = top + HEAD + PLOT

    def y_at(value: float) -> float:
        return bottom - PLOT * _share(value, low, high)

    width = (WIDTH - LEFT - RIGHT - GAP * (len(row.panels) - 1)) / len(row.panels)
    for i, panel in enumerate(row.panels):
        left = LEFT + i * (width + GAP)
        for tick in ticks:
            y = y_at(tick)
            yield f'<line class="grid" x1="{left:.1f}" x2="{left + width:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            if i == 0:
                yield text(left - 6, y + 4, short(tick), "tick", "end")
        yield text(left, top + HEAD - 24, panel.title, "panel")
        yield text(left, top + HEAD - 9, panel.caption, "tick")
        sizes = sorted({point[0] for line in panel.lines for point in line.points})
        first, last = sizes[0], sizes[-1]

        def x_at(size: float, left: float = left, first: float = first, last: float = last) -> float:
            return left + 4 + (width - 8) * _share(size, first, last)

        if not math.isnan(panel.bend):
            x = x_at(panel.bend)
            yield f'<line class="bend" x1="{x:.1f}" x2="{x:.1f}" y1="{top + HEAD}" y2="{bottom}"/>'
            right = x < left + 0.7 * width
            yield text(
                x + (4 if right else -4), top + HEAD + 10, short(panel.bend), "tick", "start" if right else "end"
            )
        for line in panel.lines:
            dots = [(x_at(size), y_at(below), y_at(middle), y_at(above)) for size, below, middle, above in line.points]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, _, y, _ in dots)
            yield f'<polyline class="{line.role}" points="{path}"/>'
            for x, below, y, above in dots:
                whisker = f'x1="{x:.1f}" x2="{x:.1f}" y1="{below:.1f}" y2="{above:.1f}"'
                yield f'<line class="whisker {line.role}" {whisker}/>'
                yield f'<circle class="{line.role}" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>'
        middle = min(sizes, key=lambda size: abs(_share(size, first, last) - 0.5))
        for size in sorted({first, middle, last}):
            anchor = "start" if size == first else "end" if size == last else "middle"
            yield text(x_at(size), bottom + 18, short(size), "tick", anchor)


def _share(value: float, low: float, high: float) -> float:
    """Place between two numbers on a log scale, 0 to 1."""
    return 0.5 if high == low else math.log(value / low) / math.log(high / low)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers around and between two positive numbers: 1, 2, 5 times powers of ten, or powers of ten alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in ((1, 2, 5) if high / low < 50 else (1,))]
    below = max(tick for tick in ticks if tick <= low)
    above = min((tick for tick in ticks if tick >= high), default=ticks[-1])
    return [tick for tick in ticks if below <= tick <= above]


def short(number: float) -> str:
    """Two or, from 100, three figures and k or M: 64, 1k, 16k, 500k, 1M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{_figures(number / unit)}{name}"
    return _figures(number)


def _figures(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
