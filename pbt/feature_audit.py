"""What a run's features are worth, and whether they still mean what they meant: drift, shifts, extremes, importance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from algos.policy import EnsemblePolicy, Policy
from algos.stack import decide_on
from analysis.drift import Shift, kolmogorov_smirnov, level_shifts, stability_index
from analysis.metrics import session_returns
from envs.bars import join_bars
from envs.batched import uses_drawdown
from envs.ledger import Terms
from envs.market import PairMarket, raw_features
from envs.replay import replay
from pbt.finished import FinishedRun
from pbt.fitness import pooled_score
from rayconf.keys import derive_key
from rayconf.run_config import RunConfig

SHORTEST = 126
"""Sessions of the shortest regime that is told."""


@dataclass(frozen=True)
class Drift:
    """A feature in a later split beside train, on its raw values."""

    psi: float
    ks: float
    p_value: float
    outside: float
    """Share of bars outside of all that train has seen."""


@dataclass(frozen=True)
class FeatureReport:
    """One feature of one pair."""

    name: str
    drift: dict[str, Drift]
    """By split: validation, and test where it was asked for."""
    level_shifts: tuple[tuple[np.datetime64, Shift], ...]
    """Changes of its mean from the first bar of train to the last of the splits looked at, by date."""
    spread_shifts: tuple[tuple[np.datetime64, Shift], ...]
    """Changes of its mean distance from the median."""
    extreme: dict[str, float]
    """Share of bars at the scaler's limit by split: there the policy cannot tell one value from another."""
    worst_bar: np.datetime64
    """Bar of its most extreme value, in deviations of train."""
    worst: float
    """That value in deviations of train."""
    importance: float
    """What the ensemble's pooled validation fitness loses when the feature's dates are shuffled in blocks; its mean."""
    importance_sd: float
    """Standard deviation of that loss over the shuffles."""


def audit_features(
    finished: FinishedRun, pair: str, splits: Sequence[str], repeats: int, seed: int
) -> list[FeatureReport]:
    """Reports of all features of a pair, most important first.

    Args:
        finished: The run.
        pair: One of its pairs.
        splits: Splits beside train to compare it with.
        repeats: Shuffles per feature.
        seed: Of the shuffles.
    """
    market = finished.markets()[pair]
    a, b, _ = join_bars(*finished.legs()[pair])
    _, raw = raw_features(a, b, finished.run, finished.forecasts)
    scaler = market.scaler
    names = ("train", *splits)
    spans = {split: slice(market.splits[split].start, market.splits[split].stop) for split in names}
    seen = raw[spans["train"]]
    deviations = (raw - scaler.mean) / scaler.scale
    losses = importance(finished.run, market, list(finished.policies(pair).values()), repeats, seed)
    first, last = spans["train"].start, max(span.stop for span in spans.values())
    least = SHORTEST * max(1, round(float(np.median(np.bincount(market.session[first:last] - market.session[first])))))
    reports = []
    for column, name in enumerate(scaler.names):
        values, whole = raw[:, column], raw[first:last, column]
        dates = market.dates[first:last]
        far = int(np.abs(deviations[first:last, column]).argmax())
        reports.append(
            FeatureReport(
                name=name,
                drift={split: _drift(seen[:, column], values[spans[split]]) for split in splits},
                level_shifts=_dated(level_shifts(whole, least), dates),
                spread_shifts=_dated(level_shifts(np.abs(whole - np.median(whole)), least), dates),
                extreme={
                    split: float((np.abs(deviations[spans[split], column]) >= scaler.limit).mean()) for split in names
                },
                worst_bar=dates[far],
                worst=float(deviations[first + far, column]),
                importance=float(losses[column].mean()),
                importance_sd=float(losses[column].std(ddof=1)) if repeats > 1 else 0.0,
            )
        )
    return sorted(reports, key=lambda report: (-report.importance, report.name))


def importance(run: RunConfig, market: PairMarket, policies: Sequence[Policy], repeats: int, seed: int) -> np.ndarray:
    """Loss of the ensemble's pooled validation fitness by feature and shuffle [F, R] (Breiman 2001, in blocks of time).

    A shuffle deals the feature's blocks of ``pbt.block`` sessions anew within validation, which keeps its own dynamics
    and breaks its tie to everything else. Bars before validation stay as they are. Features that say the same share
    their importance, and each may look worthless alone.
    """
    span = market.splits["validation"]
    rows = np.arange(span.start - run.env.lag, span.stop)
    ensemble = EnsemblePolicy(policies)
    base = _score(run, market, ensemble, market.features)
    losses = np.empty((market.features.shape[1], repeats))
    for column in range(len(losses)):
        for repeat in range(repeats):
            rng = np.random.default_rng(derive_key(seed, market.pair, column, repeat, "shuffle"))
            features = market.features.copy()
            features[rows, column] = market.features[_dealt(rows, market.session[rows], run.pbt.block, rng), column]
            losses[column, repeat] = base - _score(run, market, ensemble, features)
    return losses


def _dealt(rows: np.ndarray, session: np.ndarray, block: int, rng: np.random.Generator) -> np.ndarray:
    """Rows with their blocks of sessions in another order."""
    borders = np.searchsorted(session, np.arange(session[0], session[-1] + 1, block)[1:])
    blocks = np.split(rows, np.unique(borders))
    return np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])


def _score(run: RunConfig, market: PairMarket, ensemble: EnsemblePolicy, features: np.ndarray) -> float:
    result = replay(
        market,
        market.splits["validation"],
        decide_on([ensemble], torch.tensor(features)),
        Terms.from_costs(run.costs),
        run.env.lag,
        batch=1,
        leverage=run.costs.leverage,
        drawdown=uses_drawdown(run),
    )
    returns, _ = session_returns(result.net_return[:, 0], market.dates[result.fill_bar[:, 0]])
    return pooled_score(returns, market.sessions_per_year, run.pbt)


def _drift(seen: np.ndarray, values: np.ndarray) -> Drift:
    distance, p_value = kolmogorov_smirnov(seen, values)
    outside = float(((values < seen.min()) | (values > seen.max())).mean())
    return Drift(stability_index(seen, values), distance, p_value, outside)


def _dated(shifts: Sequence[Shift], dates: np.ndarray) -> tuple[tuple[np.datetime64, Shift], ...]:
    return tuple((dates[shift.index], shift) for shift in shifts)


def entry(report: FeatureReport) -> dict[str, Any]:
    """The report as ``audit.json`` has it."""

    def shifts(found: Sequence[tuple[np.datetime64, Shift]]) -> list[dict[str, Any]]:
        return [
            {"date": str(date)[:19], "before": one.before, "after": one.after, "p_value": one.p_value}
            for date, one in found
        ]

    return {
        "drift": {split: vars(drift) for split, drift in report.drift.items()},
        "level_shifts": shifts(report.level_shifts),
        "spread_shifts": shifts(report.spread_shifts),
        "extreme": report.extreme,
        "worst": {"date": str(report.worst_bar)[:19], "deviations": report.worst},
        "importance": report.importance,
        "importance_sd": report.importance_sd,
    }


def lines(pair: str, reports: Sequence[FeatureReport], splits: Sequence[str]) -> list[str]:
    """A table of a pair's features as text."""
    drift = "".join(f"  {f'PSI {s}':>14s} {f'KS {s} (p)':>20s} {'outside':>8s}" for s in splits)
    found = [f"{pair}", f"  {'feature':26s} {'importance':>16s}{drift}  {'at limit':>8s}  {'shifts':>6s}  last shift"]
    for one in reports:
        parts = "".join(
            f"  {d.psi:14.2f} {f'{d.ks:.2f} ({d.p_value:.3f})':>20s} {d.outside:8.1%}" for d in one.drift.values()
        )
        shifts = sorted([*one.level_shifts, *one.spread_shifts], key=lambda dated: dated[0])
        last = str(shifts[-1][0])[:10] if shifts else ""
        found.append(
            f"  {one.name:26s} {f'{one.importance:+.3f} ± {one.importance_sd:.3f}':>16s}{parts}"
            f"  {max(one.extreme.values()):8.2%}  {len(shifts):6d}  {last}"
        )
    return found
