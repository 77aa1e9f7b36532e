"""Probability of backtest overfitting by combinatorially symmetric cross-validation (CSCV).

Under PBT the figure is a lower bound: snapshots of later generations descend from those that exploit chose on the
whole validation span, so neither half of a split is out of sample for them. ``arms_overfitting`` reads it for finished
runs, so that the random-search arm, whose members never meet, calibrates it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analysis.frames import KEYS, frame_path, group_slices, read_frame
from analysis.metrics import session_returns

Array = NDArray[np.float64]

SUBMATRICES = 16
"""S of the paper: the span is cut into so many pieces, half of them in sample."""
SNAPSHOTS = 200
"""At most so many snapshots, at equal spacing over generations."""


@lru_cache(maxsize=4)
def _halves(pieces: int) -> Array:
    """Every choice of half the pieces [C(S, S/2), S], 1 where in sample."""
    chosen = np.array(list(combinations(range(pieces), pieces // 2)))
    halves = np.zeros((len(chosen), pieces))
    np.put_along_axis(halves, chosen, 1.0, axis=1)
    return halves


def _sharpes(first: Array, second: Array, sessions: Array) -> Array:
    """Sharpe ratios per session from sums of returns and of their squares; 0 without variance."""
    mean = first / sessions
    variance = second / sessions - mean**2
    moving = variance > 1e-12
    return np.where(moving, mean / np.sqrt(np.where(moving, variance, 1.0)), 0.0)


def overfitting_logits(streams: Array, pieces: int = SUBMATRICES) -> Array:
    """Logit of the relative rank out of sample of the snapshot that is best in sample, one for every split.

    Args:
        streams: Session returns [D, N] of N snapshots on one span, at least two sessions a piece.
        pieces: S, even.

    Returns:
        log(w / (1 - w)) [C(S, S/2)] with w = rank / (N + 1), rank 1 being the worst (Bailey, Borwein, Lopez de Prado
        and Zhu 2015, steps 4 to 7). Ties count half.

    Raises:
        ValueError: Fewer than two snapshots, or fewer than 2 S sessions.
    """
    sessions, count = streams.shape
    if count < 2 or sessions < 2 * pieces:
        raise ValueError(f"{count} snapshots over {sessions} sessions: at least 2 over {2 * pieces} are wanted")
    spread = streams.std(axis=0)
    # The Sharpe ratio knows no scale, and columns of like size keep its sums exact enough to tell ties.
    scaled = streams / np.where(spread > 0, spread, 1.0)
    edges = np.linspace(0, sessions, pieces + 1).round().astype(int)
    first = np.add.reduceat(scaled, edges[:-1], axis=0)
    second = np.add.reduceat(scaled**2, edges[:-1], axis=0)
    lengths = np.diff(edges).astype(np.float64)[:, None]
    logits = []
    for halves in np.array_split(_halves(pieces), 8):
        inside = _sharpes(halves @ first, halves @ second, halves @ lengths)
        other = 1 - halves
        outside = _sharpes(other @ first, other @ second, other @ lengths)
        best = np.argmax(inside, axis=1)[:, None]
        own = np.take_along_axis(outside, best, axis=1)
        rank = np.sum(outside < own, axis=1) + (np.sum(outside == own, axis=1) + 1) / 2
        share = rank / (count + 1)
        logits.append(np.log(share / (1 - share)))
    return np.concatenate(logits)


def probability_of_overfitting(streams: Array, pieces: int = SUBMATRICES) -> float:
    """Share of splits whose best in sample is below the median out of sample (Bailey et al. 2015, definition 2.1).

    1/2 where snapshots differ by luck alone, 0 where one is better throughout. A logit of exactly 0 counts half.

    Args:
        streams: Session returns [D, N], as ``overfitting_logits`` takes them.
        pieces: S, even.
    """
    logits = np.round(overfitting_logits(streams, pieces), 12)
    return float(np.mean(logits < 0) + np.mean(logits == 0) / 2)


def spaced(count: int, most: int = SNAPSHOTS) -> NDArray[np.int64]:
    """At most ``most`` places of ``count``, at equal spacing, first and last among them."""
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).round().astype(np.int64)


def archive_overfitting(streams: Array) -> float | None:
    """``probability_of_overfitting`` of the snapshots of a pair, ordered by generation.

    Args:
        streams: Session returns [D, N] in the order of generation and member.

    Returns:
        The probability; None with fewer than two snapshots or fewer than two sessions a piece.
    """
    sessions, count = streams.shape
    if count < 2 or sessions < 2 * SUBMATRICES:
        return None
    return probability_of_overfitting(streams[:, spaced(count)])


def snapshot_streams(validation: pa.Table) -> dict[tuple[int, str], Array]:
    """Session returns [D, N] of every snapshot by (window, pair), in the order of generation and member.

    Args:
        validation: The ``validation`` frame.
    """
    dates, returns = (validation.column(name).to_numpy() for name in ("date", "net_return"))
    found: dict[tuple[int, str], list[tuple[int, str, Array]]] = {}
    for (window, pair, member, generation), rows in group_slices(validation, KEYS["validation"][:-1]):
        stream, _ = session_returns(returns[rows], dates[rows])
        # What is not finite was never eligible: such an account is broken by definition of the fitness.
        if np.isfinite(stream).all():
            found.setdefault((window, pair), []).append((generation, member, stream))
    return {
        key: np.stack([stream for *_, stream in sorted(streams, key=lambda item: item[:2])], axis=1)
        for key, streams in found.items()
    }


@dataclass(frozen=True)
class ArmOverfitting:
    """The probability of overfitting of one pair of one run, and the arm that made it."""

    run: str
    arm: str
    window: int
    pair: str
    snapshots: int
    sessions: int
    probability: float | None


def arms_overfitting(runs: Iterable[Path]) -> list[ArmOverfitting]:
    """The probability of overfitting of every pair of some finished runs, from their frames.

    Raises:
        UserError: A run lacks the frame lineage or validation.
    """
    found = []
    for run in runs:
        lineage = read_frame(frame_path(run, "lineage"), ["window", "pair", "arm"]).to_pylist()
        arms = {(row["window"], row["pair"]): row["arm"] for row in lineage}
        for (window, pair), streams in snapshot_streams(read_frame(frame_path(run, "validation"))).items():
            sessions, count = streams.shape
            probability = archive_overfitting(streams)
            found.append(ArmOverfitting(run.name, arms[window, pair], window, pair, count, sessions, probability))
    return found


def calibrated(probability: float, reference: Sequence[float]) -> float:
    """How far a probability of overfitting lies from those of the random-search arm, in standard deviations.

    Args:
        probability: Of the arm judged.
        reference: Of random-search runs on the same pair and span; at least two.

    Returns:
        z = (probability - mean) / (sd sqrt(1 + 1/n)): how far the arm lies from what search without exploit shows.
    """
    values = np.asarray(reference, np.float64)
    spread = float(values.std(ddof=1)) * math.sqrt(1 + 1 / values.size)
    return (probability - float(values.mean())) / spread if spread > 0 else 0.0
