"""From the ``daily`` frame to ``summary``: one row of metrics per window, split, scenario, pair and policy."""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analysis.bootstrap import RESAMPLES, Ends, sharpe_interval, sharpe_intervals
from analysis.frames import KEYS, group_slices, summary_schema, write_frame, write_text
from analysis.metrics import (
    METRICS,
    alpha_beta,
    annualized_return,
    cagr,
    calmar,
    cvar,
    equity_curve,
    max_drawdown,
    session_returns,
    sharpe,
    sortino,
    volatility,
)

Array = NDArray[np.float64]

STRUNG = -1
"""The window that all windows of a walk-forward strung together are."""
NUMBER = r"[0-9.]+(?:e[+-][0-9]+)?"
SCENARIO = re.compile(rf"cost(?P<cost>{NUMBER})-lag(?P<lag>[0-9]+)(-lev{NUMBER})?(-borrow{NUMBER})?")


def summarise(
    net_return: Array,
    turnover: Array,
    gross: Array,
    cost: Array,
    dates: NDArray[np.datetime64],
    *,
    benchmark: Array | None = None,
    annual_sessions: float = 252,
    interval: Ends | None = None,
) -> dict[str, Any]:
    """Every metric of one account.

    Args:
        net_return: Simple net return per bar [T].
        turnover: Value traded per bar [T], fraction of equity, both sides.
        gross: Gross exposure held per bar [T], fraction of equity.
        cost: Trading cost plus financing per bar [T], fraction of equity.
        dates: Bar of each fill [T], strictly ascending.
        benchmark: Net return of equal weight on the same bars [T]; None leaves alpha and beta null.
        annual_sessions: 252, or 365 for a market that never closes.
        interval: The Sharpe ratio's interval, where it was made together with others'; None: made here.

    Returns:
        The columns of ``METRICS``, in that order; every value is finite or None.

    Raises:
        ValueError: No bars, arrays of different lengths, values that are not finite, a return below -1,
            or dates out of order.
    """
    net_return = np.asarray(net_return, np.float64)
    dates = np.asarray(dates, "datetime64[us]")
    arrays = {"net_return": net_return, "turnover": turnover, "gross": gross, "cost": cost}
    if benchmark is not None:
        arrays["benchmark"] = benchmark
    for name, values in arrays.items():
        if np.shape(values) != dates.shape or dates.size == 0:
            raise ValueError(f"{name}: {np.shape(values)} values for {dates.size} dates, at least one wanted")
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{name}: not finite at bar {int(np.argmin(np.isfinite(values)))}")
    if net_return.min() < -1:
        raise ValueError(f"net_return: below -1 at bar {int(net_return.argmin())}")
    if not np.all(dates[1:] > dates[:-1]):
        raise ValueError("dates: not strictly ascending")

    returns, _ = session_returns(net_return, dates)
    sessions = returns.size
    final = float(equity_curve(returns)[-1])
    alpha, beta = None, None
    if benchmark is not None:
        yardstick, _ = session_returns(np.asarray(benchmark, np.float64), dates)
        alpha, beta = alpha_beta(returns, yardstick, annual_sessions)
    low, high = interval or sharpe_interval(returns, sessions_per_year=annual_sessions)
    figures = (
        sessions,
        float(returns.mean()),
        annualized_return(returns, annual_sessions),
        final - 1,
        final,
        sharpe(returns, annual_sessions),
        float(np.sum(turnover)) / sessions,
        max_drawdown(returns),
        cagr(returns, annual_sessions),
        volatility(returns, annual_sessions),
        sortino(returns, annual_sessions),
        calmar(returns, annual_sessions),
        cvar(returns),
        float(np.mean(gross)),
        float(np.sum(cost)) / sessions * annual_sessions,
        alpha,
        beta,
        low,
        high,
        None,
    )
    return dict(zip(METRICS, figures, strict=True))


def scenario_id(cost_bps: float, lag: int, **terms: float) -> str:
    """Name of a scenario: ``cost5-lag2``; terms that differ from the run's own follow, ``-lev1.0-borrow0.0675``."""
    cost = repr(float(cost_bps)).removesuffix(".0")
    return f"cost{cost}-lag{lag}" + "".join(f"-{name}{float(value)!r}" for name, value in terms.items())


def sessions_per_year(dates: NDArray[np.datetime64]) -> float:
    """252, or 365 where a tenth of the sessions or more are weekend days (a market that never closes)."""
    days = np.unique(np.asarray(dates, "datetime64[us]").astype("datetime64[D]"))
    return 365.0 if days.size and np.mean(~np.is_busday(days)) >= 0.1 else 252.0


def _terms(scenario: str, base_cost_bps: float, base_lag: int) -> tuple[float, int]:
    if scenario == "base":
        return base_cost_bps, base_lag
    match = SCENARIO.fullmatch(scenario)
    if match is None:
        raise ValueError(f"scenario {scenario!r}: neither base nor like cost1-lag1")
    return float(match["cost"]), int(match["lag"])


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    return table.column(name).to_numpy()


def build_summary(
    daily: pa.Table,
    survivors: Sequence[Mapping[str, Any]],
    *,
    base_cost_bps: float,
    base_lag: int,
    annual_sessions: Mapping[str, float] | float | None = None,
    resamples: int = RESAMPLES,
) -> pa.Table:
    """The ``summary`` frame of a ``daily`` frame.

    Args:
        daily: Rows as ``write_frame`` returns them, sorted by the frame's key.
        survivors: A row per pair and survivor: ``pair``, ``policy`` (``survivor-1`` and up), ``rank``, ``member``,
            ``generation`` and, in a walk-forward, ``window``. Other policies are told by their names, and so are the
            strung ones, which are another member in every window.
        base_cost_bps: Commission plus slippage of the scenario ``base``, bps per side.
        base_lag: Lag of the scenario ``base`` in bars.
        annual_sessions: Sessions per year, for all pairs or by pair; None: inferred from each pair's dates.
        resamples: Resamples per interval.

    Returns:
        A table of ``summary_schema()``, a row per (window, split, scenario, pair, policy).

    Raises:
        ValueError: A survivor in ``daily`` without a row in ``survivors``, or whose bars differ from equal weight's.
    """
    known = {(int(row.get("window", 0)), row["pair"], row["policy"]): row for row in survivors}
    groups = group_slices(daily, KEYS["daily"][:-1])
    runs = daily.column("run")
    arrays = {
        name: _column(daily, name) for name in ("date", "net_return", "turnover", "gross", "trading_cost", "financing")
    }
    where = dict(groups)
    annual: dict[str, float] = {}
    for (*_, pair, _), rows in groups:
        if pair not in annual:
            if annual_sessions is None:
                annual[pair] = sessions_per_year(arrays["date"][rows])
            else:
                annual[pair] = annual_sessions[pair] if isinstance(annual_sessions, Mapping) else float(annual_sessions)
    # All at once: streams of one length share their resamples.
    intervals = sharpe_intervals(
        [session_returns(arrays["net_return"][rows], arrays["date"][rows])[0] for _, rows in groups],
        sessions_per_year=[annual[pair] for (*_, pair, _), _ in groups],
        resamples=resamples,
    )
    result = []
    for ((window, split, scenario, pair, policy), rows), interval in zip(groups, intervals, strict=True):
        yardstick = where.get((window, split, scenario, pair, "equal_weight"))
        if yardstick is not None and not np.array_equal(arrays["date"][yardstick], arrays["date"][rows]):
            raise ValueError(f"{pair} {split} {scenario}: {policy} and equal_weight cover different bars")
        cost_bps, lag = _terms(scenario, base_cost_bps, base_lag)
        row = {
            "run": runs[rows.start].as_py(),
            "window": window,
            "split": split,
            "scenario": scenario,
            "pair": pair,
            "policy": policy,
            "cost_bps": cost_bps,
            "lag": lag,
            **_kind(window, policy, known.get((window, pair, policy))),
            **summarise(
                arrays["net_return"][rows],
                arrays["turnover"][rows],
                arrays["gross"][rows],
                arrays["trading_cost"][rows] + arrays["financing"][rows],
                arrays["date"][rows],
                benchmark=None if yardstick is None else arrays["net_return"][yardstick],
                annual_sessions=annual[pair],
                interval=interval,
            ),
        }
        result.append(row)
    schema = summary_schema()
    return pa.Table.from_pylist(result, schema=schema)


def _kind(window: int, policy: str, survivor: Mapping[str, Any] | None) -> dict[str, Any]:
    if survivor is not None:
        return {"kind": "survivor", **{name: survivor[name] for name in ("rank", "member", "generation")}}
    rank = policy.removeprefix("survivor-")
    if rank != policy and window == STRUNG:  # another member in every window
        return {"kind": "survivor", "rank": int(rank)}
    if rank != policy:
        raise ValueError(f"{policy}: nothing is known of this survivor; pass its rank, member and generation")
    return {"kind": "ensemble" if policy.startswith("ensemble") else "baseline"}


def headline_window(summary: pa.Table) -> int:
    """The strung walk-forward (-1) where there is one, else the smallest window; of ``summary``, or of ``daily``."""
    return int(min(pc.unique(summary.column("window")).to_pylist(), default=0))


def annual_sessions_of(rows: Iterable[Mapping[str, Any]]) -> float | None:
    """The sessions per year under which summary rows were made: annualized_return = (1 + average)^P - 1."""
    for row in rows:
        average = row["avg_daily_return"]
        if average and abs(average) > 1e-9 and average > -1:
            return round(math.log1p(row["annualized_return"]) / math.log1p(average), 4)
    return None


def with_deflated(summary: pa.Table, deflated: Mapping[str, Mapping[str, float]], window: int = 0) -> pa.Table:
    """The summary with a window's ``deflated_sharpe``: validation under base terms, the only span that was selected on.

    Args:
        summary: The summary frame.
        deflated: Deflated Sharpe ratio by pair and policy.
        window: Walk-forward window that it belongs to.
    """
    names = ("window", "split", "scenario", "pair", "policy")
    keys = zip(*(summary.column(name).to_pylist() for name in names), strict=True)
    index = summary.schema.get_field_index("deflated_sharpe")
    values = [
        deflated.get(pair, {}).get(policy) if (own, split, scenario) == (window, "validation", "base") else known
        for (own, split, scenario, pair, policy), known in zip(keys, summary.column(index).to_pylist(), strict=True)
    ]
    return summary.set_column(index, summary.schema.field(index), pa.array(values, pa.float64()))


def write_summary(table: pa.Table, run: Path) -> pa.Table:
    """Write ``frames/summary.parquet`` and, with the same rows, ``summary.csv`` (null as an empty field)."""
    table = write_frame(table, summary_schema(), KEYS["summary"], run / "frames" / "summary.parquet")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(["" if value is None else value for value in row.values()] for row in table.to_pylist())
    write_text(run / "summary.csv", text.getvalue())
    return table
