"""A bar chart as an SVG file that follows the reader's light or dark theme."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT = 760, 250, 90
BAR, GAP, GROUP_GAP, TOP, BOTTOM = 20, 8, 34, 64, 44
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .title { font-size: 15px; font-weight: 600; }
  .note, .tick { fill: #59636e; font-size: 12px; }
  .group { font-weight: 600; }
  .grid { stroke: #d1d9e0; }
  .spread { stroke: #1f2328; stroke-width: 1.5; }
  .ours { fill: #0969da; }
  .ceiling { fill: #818b98; }
  .peer { fill: #c9d1d9; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .note, .tick { fill: #9198a1; }
    .grid { stroke: #3d444d; }
    .spread { stroke: #e6edf3; }
    .ours { fill: #4493f8; }
    .ceiling { fill: #767e88; }
    .peer { fill: #484f58; }
  }
"""


@dataclass(frozen=True)
class Bar:
    """One bar: its label, a median with quartiles, and its role, ``ours``, ``ceiling`` or ``peer``."""

    label: str
    low: float
    middle: float
    high: float
    role: str


def write_chart(path: Path, title: str, note: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> None:
    """Write horizontal bars in groups, with whiskers from quartile to quartile.

    Args:
        path: Target file.
        title: First line.
        note: Second line, smaller.
        groups: Name and bars of each group.
    """
    longest = max(bar.high for _, bars in groups for bar in bars)
    unit = nice_step(longest / 5)
    end = unit * -(-longest // unit)
    height = TOP + sum(GROUP_GAP + len(bars) * (BAR + GAP) for _, bars in groups) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        text(16, 24, title, "title"),
        text(16, 44, note, "note"),
    ]
    for i in range(round(end / unit) + 1):
        x = at(i * unit, end)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM + 8:.0f}"/>')
        parts.append(text(x, height - BOTTOM + 24, f"{i * unit:,.0f}", "tick", "middle"))
    y = float(TOP)
    for name, bars in groups:
        parts.append(text(16, y + 20, name, "group"))
        y += GROUP_GAP
        for bar in bars:
            x, middle = at(bar.middle, end), y + BAR / 2
            parts.append(
                f'<rect class="{bar.role}" x="{LEFT}" y="{y:.0f}" width="{x - LEFT:.1f}" height="{BAR}" rx="2"/>'
            )
            whisker = f'y1="{middle:.1f}" y2="{middle:.1f}"'
            parts.append(f'<line class="spread" x1="{at(bar.low, end):.1f}" x2="{at(bar.high, end):.1f}" {whisker}/>')
            parts.append(text(LEFT - 8, middle + 4.5, bar.label, "", "end"))
            parts.append(text(max(x, at(bar.high, end)) + 6, middle + 4.5, f"{bar.middle:,.0f}", ""))
            y += BAR + GAP
    parts.append("</svg>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def at(value: float, end: float) -> float:
    """Horizontal place of a value."""
    return LEFT + (WIDTH - LEFT - RIGHT) * value / end


def nice_step(rough: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is not below ``rough``."""
    scale = 10.0 ** (len(f"{rough:.0f}") - 1)
    return next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)


def text(x: float, y: float, content: str, kind: str, anchor: str = "start") -> str:
    """A line of text."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
