"""Line charts as SVG of our own: no script, no requests, a few kilobytes each.

Colours come from classes that the page's style sheet defines, so that charts follow light and dark.
"""

import datetime
import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WIDTH, HEIGHT = 860, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 30

EPOCH = datetime.date(1970, 1, 1)


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: Name in the legend.
        x: Positions [K], ascending; days since 1970 where the axis shows dates.
        y: Values [K]; gaps where not finite.
        style: Classes of the style sheet, e.g. ``headline`` or ``survivor s1``.
        note: What the legend adds, e.g. the last value.
    """

    name: str
    x: Array
    y: Array
    style: str
    note: str = ""


def days_since_epoch(dates: NDArray[np.datetime64]) -> Array:
    """Dates [K] as float days since 1970-01-01."""
    return dates.astype("datetime64[us]").astype(np.int64) / 86_400e6


def thinned(x: Array, y: Array, buckets: int) -> tuple[Array, Array]:
    """First, last, and the lowest and highest of every bucket: few points, and no spike is lost."""
    if len(x) <= 2 * buckets:
        return x, y
    keep = {0, len(x) - 1}
    edges = np.linspace(0, len(x), buckets + 1).astype(int)
    for start, stop in itertools.pairwise(edges):
        keep |= {start + int(np.argmin(y[start:stop])), start + int(np.argmax(y[start:stop]))}
    index = np.array(sorted(keep))
    return x[index], y[index]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) that lie within [low, high]."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values within [low, high] for a logarithmic axis; evenly spaced ones where the range is narrow."""
    if high / low < 5:
        return [tick for tick in nice_ticks(low, high) if tick > 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 1000 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def date_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Position and label of starts of years, quarters or months within [low, high] days since 1970, eight or so."""
    first, last = (EPOCH + datetime.timedelta(days=math.floor(value)) for value in (low, high))
    months = (last.year - first.year) * 12 + last.month - first.month
    if months < 2:
        ticks = nice_ticks(low, high, 6)
        return [(tick, str(EPOCH + datetime.timedelta(days=round(tick)))) for tick in ticks if tick == round(tick)]
    step = next((step for step in (1, 2, 3, 6, 12, 24, 60, 120, 240) if months / step <= 8), 480)
    result = []
    index = -(-(first.year * 12 + first.month - 1) // step) * step
    while index <= last.year * 12 + last.month - 1:
        day = datetime.date(index // 12, index % 12 + 1, 1)
        position = float((day - EPOCH).days)
        if low <= position <= high:
            result.append((position, str(day.year) if step >= 12 else f"{day.year}-{day.month:02d}"))
        index += step
    return result


def _number(value: float) -> str:
    return f"{value:.4g}"


def _limits(series: Sequence[Series], log: bool, reference: float) -> tuple[float, float]:
    values = np.concatenate([item.y[np.isfinite(item.y)] for item in series] + [np.array([reference])])
    low, high = float(values.min()), float(values.max())
    if log:
        pad = max((high / low) ** 0.04, 1.002)
        return low / pad, high * pad
    pad = 0.05 * (high - low) or 0.05 * max(abs(high), 1.0)
    return low - pad, high + pad


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    y_label: str,
    x_label: str = "",
    log: bool = False,
    dates: bool = False,
    reference: float = 0.0,
) -> str:
    """Draw lines over one axis.

    Args:
        series: Lines, drawn in the order given, so that the last lies on top.
        label: What the chart shows, for readers that do not see it.
        y_label: Caption of the vertical axis.
        x_label: Caption of the horizontal axis.
        log: Logarithmic vertical axis; values must then be positive.
        dates: The horizontal axis holds days since 1970.
        reference: Value at which a level line is drawn.

    Returns:
        An ``<svg>`` element in which every series with a finite point has at least one mark; a sentence in a
        paragraph instead where there is nothing to draw.
    """
    series = [item for item in series if np.isfinite(item.y).any()]
    if not series:
        return '<p class="empty">Nothing to draw: no finite values.</p>'
    y_low, y_high = _limits(series, log, reference)
    x_low = min(float(item.x[np.isfinite(item.y)].min()) for item in series)
    x_high = max(float(item.x[np.isfinite(item.y)].max()) for item in series)
    if x_high <= x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5

    def place_x(value: Array | float) -> Array:
        return LEFT + (np.asarray(value) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def place_y(value: Array | float) -> Array:
        form = np.log if log else np.asarray
        share = (form(np.asarray(value, float)) - form(y_low)) / (form(y_high) - form(y_low))
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    for tick in log_ticks(y_low, y_high) if log else nice_ticks(y_low, y_high):
        y = float(place_y(tick))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    whole = [tick for tick in nice_ticks(x_low, x_high, 8) if tick == round(tick)]
    for position, text in date_ticks(x_low, x_high) if dates else [(tick, _number(tick)) for tick in whole]:
        x = float(place_x(position))
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        anchor = "end" if x > WIDTH - RIGHT - 24 else "middle"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{text}</text>')
    level = float(place_y(reference))
    parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}"/>')
    parts += [_mark(item, place_x(item.x), place_y(item.y)) for item in series]
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(
        f'<text class="caption" transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text>"
    )
    if x_label:
        place = f'x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end"'
        parts.append(f'<text class="caption" {place}>{html.escape(x_label)}</text>')
    return "".join([*parts, "</svg>"])


def _mark(item: Series, x: Array, y: Array) -> str:
    """A path through the finite points, broken at gaps; a dot for each point that stands alone."""
    finite = np.isfinite(item.y)
    title = f"<title>{html.escape(item.name)}</title>"
    if finite.sum() == 1:
        at = int(np.argmax(finite))
        return f'<circle class="mark {item.style}" cx="{x[at]:.1f}" cy="{y[at]:.1f}" r="3">{title}</circle>'
    steps = []
    pen_down = False
    for ok, px, py in zip(finite, x, y, strict=True):
        if ok:
            # The empty stroke after a move shows a point between two gaps as a dot.
            steps.append(f"L{px:.1f} {py:.1f}" if pen_down else f"M{px:.1f} {py:.1f}h0")
        pen_down = bool(ok)
    return f'<path class="mark {item.style}" d="{"".join(steps)}">{title}</path>'


def legend(series: Sequence[Series]) -> str:
    """A legend that wraps: a stroke in the line's own style, its name and note."""
    entries = [
        f'<span class="entry"><svg class="swatch" viewBox="0 0 24 8" aria-hidden="true">'
        f'<path class="mark {item.style}" d="M1 4L23 4"/></svg>{html.escape(item.name)}'
        + (f" <i>{html.escape(item.note)}</i>" if item.note else "")
        + "</span>"
        for item in series
    ]
    return f'<div class="legend">{"".join(entries)}</div>'
