"""How a quantity grows with a size: slopes on log-log axes, and where they change."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MIN_SIZES = 5
LEVEL, SMALLEST = 0.01, 0.1
DRAWS, KNOTS, SEED = 1999, 101, 0


@dataclass(frozen=True)
class Growth:
    """Slopes d log(value) / d log(size): 0 does not grow, 1 grows in proportion."""

    slope: float
    """Of one line through all points."""
    before: float
    """Of the left of two segments that meet; NaN with fewer than ``MIN_SIZES`` sizes."""
    after: float
    """Of the right one."""
    knot: float
    """Size where the two best segments meet, whether they are clearly better or not."""
    p: float
    """Chance that points around one line gain as much from a second segment."""

    @property
    def bend(self) -> float | None:
        """The knot, where two segments are clearly better: ``p`` below 0.01 and slopes at least 0.1 apart."""
        clear = self.p < LEVEL and abs(self.after - self.before) >= SMALLEST
        return self.knot if clear else None


def growth(sizes: ArrayLike, values: ArrayLike) -> Growth:
    """Least squares of log values on log sizes: one line, and two segments that meet at the best knot.

    The knot is searched for, so an F test has no exact degrees of freedom. But the share of the squared error that two
    segments leave depends neither on the line nor on the noise's scale: ``p`` compares it with the same share on draws
    of Gaussian noise at the same sizes, knot searched for as well.

    Args:
        sizes: [n] different positive sizes.
        values: [n] positive values.

    Raises:
        ValueError: Fewer than two sizes, a size twice, or a number that is not positive.
    """
    x, y = np.asarray(sizes, float), np.asarray(values, float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2 or len(np.unique(x)) < len(x):
        raise ValueError(f"slopes need two or more different sizes, each with a value, not {x.tolist()}")
    if not (np.isfinite(y).all() and np.isfinite(x).all() and x.min() > 0 and y.min() > 0):
        raise ValueError("logarithms need positive finite sizes and values")
    order = np.argsort(x)
    x, y = np.log(x[order]), np.log(y[order])
    slope = float(np.polyfit(x, y, 1)[0])
    if len(x) < MIN_SIZES:
        return Growth(slope, *[float("nan")] * 4)
    knots = np.linspace(x[2], x[-3], KNOTS)  # three points to a side, those on the knot counted on both
    left, best = _left(x, y[None], knots)
    knot = knots[best[0]]
    _, before, turn = np.linalg.lstsq(_hinge(x, knot), y, rcond=None)[0]
    noise = np.random.default_rng(SEED).standard_normal((DRAWS, len(x)))
    p = (1 + int((_left(x, noise, knots)[0] <= left[0]).sum())) / (DRAWS + 1)
    return Growth(slope, float(before), float(before + turn), float(np.exp(knot)), p)


def _hinge(x: Floats, knot: float) -> Floats:
    return np.stack([np.ones_like(x), x, np.clip(x - knot, 0, None)], axis=1)


def _left(x: Floats, y: Floats, knots: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Squared error of two segments at the best knot over that of one line, and the knot's index, for rows [m, n]."""
    errors = np.stack([_squared_error(_hinge(x, knot), y) for knot in knots])
    best = errors.argmin(axis=0)
    one = _squared_error(np.stack([np.ones_like(x), x], axis=1), y)
    return np.take_along_axis(errors, best[None], axis=0)[0] / one.clip(np.finfo(float).tiny), best


def _squared_error(design: Floats, y: Floats) -> Floats:
    basis = np.linalg.qr(design)[0]
    return np.square(y - y @ basis @ basis.T).sum(axis=1)
