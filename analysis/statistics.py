"""The statistics of selection of a run, from its frames alone: ``evidence(run)`` by pair.

What validation saw answers for the selection (deflated Sharpe ratio, probability of overfitting); what test shows
answers for the result (intervals, paired tests, Hansen's and the stepwise test), with the looks at it as the
multiplicity. ``analysis.verdict`` decides what may be claimed. Equal frames give equal evidence: every random stream
is keyed by what it is for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analysis.bootstrap import Ends, drawdown_interval, growth_interval, sharpe_interval
from analysis.frames import frame_path, group_slices, part_of, read_frame
from analysis.metrics import cagr, max_drawdown, session_returns, sharpe
from analysis.overfitting import archive_overfitting, snapshot_streams
from analysis.paired import PAIRED_RESAMPLES, between_policies, sharpe_difference
from analysis.power import detectable_difference
from analysis.sharpe_tests import (
    deflated_sharpe_ratio,
    minimum_track_record,
    probabilistic_sharpe_ratio,
    selection_benchmark,
    shape,
)
from analysis.summary import STRUNG, annual_sessions_of, headline_window, sessions_per_year
from analysis.superiority import superior_predictive_ability, superior_to
from analysis.verdict import BARS, IDLE_GROSS, Difference, Evidence, Interval, judged
from analysis.walk_forward import windows_in

__all__ = ["Difference", "Evidence", "Interval", "evidence", "evidence_of", "evidence_rows", "weigh"]

Array = NDArray[np.float64]

DAILY = ("window", "split", "scenario", "pair", "policy", "date", "gross", "net_return")
"""Columns of ``daily`` that the statistics read."""


def weigh(
    pair: str,
    test: Mapping[str, Array],
    validation: Mapping[str, Array],
    snapshots: Sequence[Array],
    *,
    weights: Sequence[float] | None = None,
    trials: int | None = None,
    looks: int = 1,
    idle: bool = False,
    annual: float = 252,
    thorough: bool = True,
    fallback: str = "",
    fallback_to: str = "",
    resamples: int = PAIRED_RESAMPLES,
) -> Evidence:
    """The evidence on one pair, from arrays; p-values not adjusted yet (``analysis.verdict.judged`` does).

    Args:
        pair: The pair.
        test: Session returns [D] by policy on test, all on the same sessions.
        validation: Session returns [K] of ensemble and survivors on validation.
        snapshots: Session returns [K, N] of all that selection saw, by generation and member, of each selection: one,
            or one per window where windows are strung together; empty: unknown.
        weights: Sessions that each selection has in ``validation``; None: alike.
        trials: Number of trials, where more were made than have streams; None: the sum of N.
        looks: Reads of the test span, at least 1.
        idle: Whether every survivor is idle on validation.
        annual: Sessions per year.
        thorough: Also what the verdict does not need: intervals of growth and drawdown, overfitting, Hansen's and the
            stepwise test, the survivors against each other.
        fallback: Why prior or base are judged instead of survivors.
        fallback_to: Which of them, ``prior`` or ``base``.
        resamples: Of the paired tests.
    """
    policy = "ensemble" if "ensemble" in test else "survivor-1"
    returns = test[policy]
    chosen = {name: stream for name, stream in test.items() if _chosen(name)}
    baselines = {name: stream for name, stream in test.items() if not _chosen(name)}
    ratio, moments = sharpe(returns, 1), shape(returns)
    long_enough = returns.size >= 2
    against = {
        name: sharpe_difference(returns, stream, sessions_per_year=annual, resamples=resamples)
        for name, stream in sorted(baselines.items())
    }
    luck = [selection_benchmark(streams) for streams in snapshots]
    effective = sum(count for _, count in luck)
    deflated = {}
    if luck:
        # Each window's choice is lucky by its own measure, so all of them strung together are by the mean.
        benchmark = float(np.average([ratio for ratio, _ in luck], weights=weights))
        found = {name: deflated_sharpe_ratio(stream, benchmark) for name, stream in validation.items()}
        deflated = {name: value for name, value in found.items() if value is not None}
    between: dict[str, Difference] = {}
    overfitting, spa_p = None, None
    superior: tuple[str, ...] = ()
    growth: Ends = (None, None)
    depth: Ends = (None, None)
    if thorough:
        growth, depth = growth_interval(returns, sessions_per_year=annual), drawdown_interval(returns)
        survivors = {name: stream for name, stream in sorted(chosen.items()) if not name.startswith("ensemble")}
        compared = between_policies(survivors, sessions_per_year=annual)
        between = {f"{one} less {two}": difference for (one, two), difference in compared.items()}
        each = [share for streams in snapshots if (share := archive_overfitting(streams)) is not None]
        overfitting = float(np.mean(each)) if each else None
        bars = [name for name in BARS if name in baselines]
        if bars:
            best = max(bars, key=lambda name: sharpe(baselines[name], 1))
            spa_p = superior_predictive_ability(baselines[best], chosen)
        superior = superior_to(returns, baselines, level=0.05 / max(1, looks))
    return Evidence(
        pair=pair,
        policy=policy,
        sessions=returns.size,
        sharpe=Interval(sharpe(returns, annual), *sharpe_interval(returns, sessions_per_year=annual)),
        cagr=Interval(cagr(returns, annual), *growth),
        max_drawdown=Interval(max_drawdown(returns), *depth),
        probabilistic_sharpe=probabilistic_sharpe_ratio(ratio, 0.0, returns.size, *moments) if long_enough else None,
        against=against,
        deflated_sharpe=deflated.get("survivor-1"),
        trials=trials if trials is not None else sum(streams.shape[1] for streams in snapshots),
        effective_trials=effective,
        overfitting=overfitting,
        spa_p=spa_p,
        superior_to=superior,
        track_record=minimum_track_record(ratio, 0.0, *moments),
        looks=max(1, looks),
        deflated=deflated,
        between=between,
        detectable=_detectable(returns, test, against, annual) if thorough else None,
        idle=idle,
        fallback=fallback,
        fallback_to=fallback_to,
    )


def _fallback(reasons: Mapping[int, str], windows: int) -> str:
    """Why prior or base are what is judged, in words; empty where they are not."""
    if windows == 1 or not reasons:
        return "".join(reasons.values())
    return f"validation did not speak for what was learned in {len(reasons)} of {windows} windows"


def _chosen(policy: str) -> bool:
    return policy.startswith(("ensemble", "survivor-"))


def _detectable(
    returns: Array, test: Mapping[str, Array], against: Mapping[str, Difference], annual: float
) -> float | None:
    """The smallest difference to the hardest baseline that this span would show with a power of 0.8."""
    bars = {name: against[name] for name in BARS if name in against and against[name].low is not None}
    if not bars:
        return None
    name = min(bars, key=lambda bar: (bars[bar].low, bar))
    other = test[name]
    if other.std() == 0 or returns.std() == 0:
        return detectable_difference(returns.size, cash=True, sessions_per_year=annual)
    correlation = float(np.mean((returns - returns.mean()) * (other - other.mean())) / (returns.std() * other.std()))
    if correlation > 1 - 1e-9:
        return None
    return detectable_difference(
        returns.size, correlation=correlation, other=sharpe(other, annual), sessions_per_year=annual
    )


def _streams(daily: pa.Table) -> dict[tuple[str, str], tuple[Array, NDArray[np.datetime64], float]]:
    """Session returns, days and mean gross exposure by (pair, policy), of rows of one window, split and scenario."""
    dates, returns, gross = (daily.column(name).to_numpy() for name in ("date", "net_return", "gross"))
    return {
        (pair, policy): (*session_returns(returns[rows], dates[rows]), float(np.mean(gross[rows])))
        for (pair, policy), rows in group_slices(daily, ["pair", "policy"])
    }


@dataclass(frozen=True)
class _Validation:
    """What validation says of one pair, over the windows judged."""

    streams: dict[str, Array]
    """Session returns [K] of ensemble and survivors, no session twice."""
    gross: dict[str, float]
    """Their mean gross exposure."""
    weights: list[int]
    """Sessions of each window in the streams."""


def _validations(daily: pa.Table, windows: Sequence[int]) -> dict[str, _Validation]:
    """By pair; of several windows the policies that all have, their spans one after the other.

    Where the validation of a window reaches back into that of the window before, the sessions of both are the earlier
    window's.
    """
    parts = [_streams(part_of(daily, window=number, split="validation", scenario="base")) for number in windows]
    found: dict[str, _Validation] = {}
    for pair, policy in sorted(set.intersection(*map(set, parts))) if parts else ():
        if not _chosen(policy):
            continue
        last, pieces, gross = np.datetime64("NaT", "D"), [], []
        for part in parts:
            returns, days, held = part[pair, policy]
            pieces.append(returns if np.isnat(last) else returns[days > last])
            gross.append(held)
            last = days[-1] if np.isnat(last) else max(last, days[-1])
        weights = [len(piece) for piece in pieces]
        own = found.setdefault(pair, _Validation({}, {}, weights))
        own.streams[policy] = np.concatenate(pieces)
        own.gross[policy] = float(np.average(gross, weights=weights)) if len(gross) > 1 else gross[0]
    return found


def evidence_of(
    daily: pa.Table,
    validation: pa.Table,
    lineage: Iterable[Mapping[str, Any]],
    events: Iterable[Mapping[str, Any]],
    *,
    window: int = 0,
    annual: Mapping[str, float] | None = None,
    thorough: bool = True,
) -> dict[str, Evidence]:
    """The evidence on every pair, adjusted over the pairs and decided.

    Args:
        daily: Rows of ``daily`` sorted by its key, test and validation under base terms at least (columns ``DAILY``).
        validation: The ``validation`` frame.
        lineage: Rows of ``lineage``: what selection saw.
        events: Rows of ``events``: the looks at test, and what fell back to its prior or base.
        window: Walk-forward window judged; -1: all of them strung together, each with its own validation.
        annual: Sessions per year by pair; None or missing: inferred from the dates.
        thorough: As in ``weigh``.

    Returns:
        Evidence by pair, in the order of the pairs' names.
    """
    test = _streams(part_of(daily, window=window, split="test", scenario="base"))
    windows = windows_in(daily) if window == STRUNG else [window]
    seen = _validations(daily, windows)
    snapshots: dict[str, list[Array]] = {}
    for (number, pair), of_window in sorted(snapshot_streams(validation).items()):
        if number in windows:
            snapshots.setdefault(pair, []).append(of_window)
    trained: dict[str, int] = {}
    for row in lineage:
        if row["window"] in windows and row["generation"] and row["fitness"] is not None:
            trained[row["pair"]] = trained.get(row["pair"], 0) + 1
    events = list(events)
    looks = [row["pair"] for row in events if row["kind"] == "look"]
    fallen: dict[str, dict[int, str]] = {}
    instead: dict[str, str] = {}
    for row in events:
        if row["kind"] == "fallback" and row["window"] in windows:
            fallen.setdefault(row["pair"], {})[row["window"]] = row["detail"]
            instead[row["pair"]] = row.get("member") or "prior"
    found = []
    for pair in sorted({pair for pair, policy in test if _chosen(policy)}):
        own = {policy: streams for (of, policy), (streams, *_) in test.items() if of == pair}
        days = next(days for (of, _), (_, days, _) in test.items() if of == pair)
        for (of, policy), (_, other, _) in test.items():
            if of == pair and not np.array_equal(days, other):
                raise ValueError(f"{pair}: {policy} and the others cover different sessions")
        chosen = seen.get(pair, _Validation({}, {}, []))
        gross = [held for policy, held in chosen.gross.items() if not policy.startswith("ensemble")]
        selected = snapshots.get(pair, [])
        found.append(
            weigh(
                pair,
                own,
                chosen.streams,
                selected,
                weights=chosen.weights if 1 < len(chosen.weights) == len(selected) else None,
                trials=max(trained.get(pair, 0), sum(streams.shape[1] for streams in selected)),
                looks=sum(of is None or of == pair for of in looks),
                idle=bool(gross) and max(gross) < IDLE_GROSS,
                annual=(annual or {}).get(pair) or sessions_per_year(days),
                thorough=thorough,
                fallback=_fallback(fallen.get(pair, {}), len(windows)),
                fallback_to=instead.get(pair, ""),
            )
        )
    return {one.pair: one for one in judged(found)}


def evidence(run: Path) -> dict[str, Evidence]:
    """The evidence on every pair of a finished run, from RUN/frames alone: equal frames, equal evidence.

    Looks at the test span that came after the launch count too, so a claim can weaken with time.

    Args:
        run: Directory of the run.

    Returns:
        Evidence by pair, adjusted over the pairs and decided.

    Raises:
        UserError: One of the frames summary, daily, validation, lineage and events is missing or unreadable.
    """
    summary = read_frame(frame_path(run, "summary"), ["window", "pair", "avg_daily_return", "annualized_return"])
    window = headline_window(summary)
    annual: dict[str, float] = {}
    rows = part_of(summary, window=window).to_pylist()
    for pair in {row["pair"] for row in rows}:
        sessions = annual_sessions_of(row for row in rows if row["pair"] == pair)
        if sessions is not None:
            annual[pair] = sessions
    only: dict[str, Any] = {} if window == STRUNG else {"window": window}
    return evidence_of(
        read_frame(frame_path(run, "daily"), DAILY, scenario="base", **only),
        read_frame(frame_path(run, "validation"), **only),
        read_frame(frame_path(run, "lineage"), ["window", "pair", "generation", "fitness"]).to_pylist(),
        read_frame(frame_path(run, "events"), ["kind", "window", "pair", "detail"]).to_pylist(),
        window=window,
        annual=annual,
    )


def evidence_rows(found: Mapping[str, Evidence], run: str, window: int = 0) -> list[dict[str, Any]]:
    """Rows of the ``evidence`` frame.

    Args:
        found: Evidence by pair.
        run: Identity of the run.
        window: Walk-forward window judged.
    """
    rows: list[dict[str, Any]] = []
    for pair, one in found.items():

        def add(statistic: str, policy: str, other: str = "", pair: str = pair, **values: Any) -> None:
            where = {"run": run, "window": window, "pair": pair, "policy": policy}
            rows.append({**where, "statistic": statistic, "other": other, **values})

        for name in ("sharpe", "cagr", "max_drawdown"):
            interval: Interval = getattr(one, name)
            add(name, one.policy, value=interval.value, low=interval.low, high=interval.high)
        add("probabilistic_sharpe", one.policy, value=one.probabilistic_sharpe)
        add("minimum_track_record", one.policy, value=one.track_record)
        add("detectable_difference", one.policy, other=one.binding() or "", value=one.detectable)
        for name, difference in one.against.items():
            add("sharpe_difference", one.policy, name, pair, **_values(difference))
        for names, difference in one.between.items():
            first, second = names.split(" less ")
            add("sharpe_difference", first, second, pair, **_values(difference))
        for name in one.superior_to:
            add("stepwise_superior", one.policy, other=name, value=1.0)
        add("superior_ability", one.policy, p=one.spa_p)
        for name, value in one.deflated.items():
            add("deflated_sharpe", name, value=value)
        for name, count in (("trials", one.trials), ("effective_trials", one.effective_trials), ("looks", one.looks)):
            add(name, one.policy, value=float(count))
        add("overfitting", one.policy, value=one.overfitting)
        add("verdict", one.policy, other=one.binding() or "", p=one.p, detail=one.sentence())
    return rows


def _values(difference: Difference) -> dict[str, float | None]:
    return {"value": difference.value, "low": difference.low, "high": difference.high, "p": difference.p}
