"""What the report's script unpacks: the plotting library and the figures, gzipped, as base64 text within the page.

Base64 holds no ``<``, ``&`` or line separator, so that no name from data can end the element it stands in.
"""

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Days = NDArray[np.datetime64]


@dataclass(frozen=True)
class Figure:
    """One chart, as plotly's traces and layout.

    Colours are tokens of the script's palettes (``$ensemble``, ``$line``): light, dark and print share a figure.

    Attributes:
        label: What the chart shows, for those who do not see it.
        data: Traces; ``legendgroup`` makes one legend entry of several.
        layout: Layout beside what all charts have in common.
        height: Height in CSS pixels.
        views: Buttons above the chart: per view ``label`` and the layout (``layout``) or traces shown (``shown``).
        view: The view shown first.
        fit: Vertical axes follow what is visible in the horizontal range.
        legend: Lines can be shown and hidden.
        min_width: Narrower than this the chart scrolls in its own box, CSS pixels.
    """

    label: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 320
    views: list[dict[str, Any]] = field(default_factory=list)
    view: int = 0
    fit: bool = False
    legend: bool = True
    min_width: int = 0


class Payload:
    """The figures of a page and the dates that they share."""

    def __init__(self) -> None:
        self._days: dict[bytes, tuple[str, list[int]]] = {}
        self._figures: dict[str, Any] = {}

    def days(self, days: Days) -> dict[str, str]:
        """A reference to calendar days [K]; equal ones are kept once, as steps from one to the next."""
        whole = np.asarray(days).astype("datetime64[D]").astype(np.int64)
        name, _ = self._days.setdefault(
            whole.tobytes(), (f"d{len(self._days)}", np.diff(whole, prepend=np.int64(0)).tolist())
        )
        return {"days": name}

    def add(self, name: str, figure: Figure) -> None:
        """Take a figure in under a name of the page's own."""
        if name in self._figures:
            raise ValueError(f"figure {name} stands twice")
        self._figures[name] = asdict(figure)

    def pack(self) -> str:
        """All figures as base64 text; equal figures give equal text."""
        content = {"days": dict(self._days.values()), "figures": self._figures}
        return packed(json.dumps(content, separators=(",", ":"), allow_nan=False).encode())


def packed(content: bytes) -> str:
    """Bytes, gzipped without a time stamp, as base64 text."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")


def digest(source: str) -> str:
    """The source expression of a Content-Security-Policy that allows exactly this inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode('ascii')}'"


def library() -> str:
    """The source of plotly.js, as the installed package ships it."""
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    return str(get_plotlyjs())


def rounded(values: ArrayLike, digits: int = 4) -> list[float | None]:
    """Values [K] with so many significant digits; None where not finite."""
    return [
        float(f"{value:.{digits}g}") if np.isfinite(value) else None
        for value in np.asarray(values, np.float64).ravel().tolist()
    ]


def buckets(size: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last index of at most ``most`` consecutive buckets of equal size; single points where they fit."""
    edges = np.linspace(0, size, min(size, most) + 1).astype(np.int64)
    return edges[:-1], edges[1:] - 1


def log_ticks(low: float, high: float) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) for a logarithmic axis from ``low`` to ``high``, both positive."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    ticks = [float(f"{factor * 10.0**decade:.3g}") for decade in decades for factor in factors]
    return [tick for tick in ticks if low / 1.2 <= tick <= high * 1.2]


def bins(values: Array, count: int = 48) -> tuple[Sequence[float | None], list[float | None], float]:
    """Centres and shares of a histogram of values [K], and the width of its bins."""
    shares, edges = np.histogram(values, bins=count)
    centres = (edges[1:] + edges[:-1]) / 2
    return rounded(centres, 5), rounded(shares / max(1, values.size), 4), float(edges[1] - edges[0])


def scatter(name: str, group: str, x: Any, y: Any, **rest: Any) -> dict[str, Any]:
    """A plotly line, or what ``rest`` makes of it; traces of one ``group`` share an entry of the legend."""
    return {"type": "scatter", "mode": "lines", "name": name, "legendgroup": group, "x": x, "y": y, **rest}
