"""The report's charts over the calendar: equity with drawdown, rolling Sharpe ratio, weights with turnover."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analysis.frames import group_slices
from analysis.labels import order, policy_label
from analysis.metrics import FLAT, session_returns, session_starts
from analysis.payload import Array, Days, Figure, Payload, buckets, rounded, scatter

SPLITS = ("train", "validation", "test")
POINTS = {"train": 420, "validation": 360, "test": 900}
"""Points a line has on each split at most, up to a dozen pairs."""
ROLLING = 126
"""Sessions of the rolling Sharpe ratio: half a year."""

_DASHES = ("solid", "dash", "dot", "dashdot")
_STYLES: Mapping[str, tuple[str, str, float]] = {
    "ensemble": ("$ensemble", "solid", 2.8),
    "ensemble_weighted": ("$ensemble", "dot", 1.5),
    "equal_weight": ("$equal", "solid", 1.8),
    "vol_target": ("$target", "dash", 1.8),
    "hold_a": ("$hold", "dash", 1.3),
    "hold_b": ("$hold", "dot", 1.3),
    "zscore": ("$zscore", "solid", 1.3),
    "zscore_gross1": ("$zscore", "dash", 1.3),
    "zscore_textbook": ("$zscore", "dot", 1.3),
    "static_gross": ("$static", "solid", 1.3),
    "cash": ("$soft", "dot", 1.3),
}


@dataclass(frozen=True)
class Account:
    """One policy on one split: session days [D] and simple returns [D]."""

    days: Days
    returns: Array


Accounts = dict[str, dict[str, Account]]
"""Accounts by split and policy, of one pair under one scenario."""


def escaped(value: object) -> str:
    """A name as plotly shows it: its own markup, tags and entities, is taken literally."""
    return html.escape(str(value), quote=False)


def line_style(policy: str) -> dict[str, Any]:
    """Colour token, dash and width of a policy's line, the same in every chart."""
    rank = policy.removeprefix("survivor-")
    if rank != policy and rank.isdigit():
        turn = int(rank) - 1
        return {"color": f"$survivor{turn % 3}", "dash": _DASHES[turn % len(_DASHES)], "width": 1.5}
    color, dash, width = _STYLES.get(policy, ("$soft", "solid", 1.3))
    return {"color": color, "dash": dash, "width": width}


def shown_at_first(policy: str) -> bool:
    """Whether a line is drawn before anybody asks for it: the learned policies and the bars to beat."""
    return policy.startswith("survivor-") or policy in ("ensemble", "equal_weight", "vol_target")


def accounts_of(daily: pa.Table) -> Accounts:
    """Session returns by split and policy, from ``daily`` rows of one pair, window and scenario, sorted by the key."""
    found: Accounts = {}
    for (split, policy), rows in group_slices(daily, ["split", "policy"]):
        part = daily.slice(rows.start, rows.stop - rows.start)
        returns, days = session_returns(part.column("net_return").to_numpy(), part.column("date").to_numpy())
        found.setdefault(split, {})[policy] = Account(days, returns)
    return {split: found[split] for split in SPLITS if split in found}


def points_per_split(pairs: int) -> dict[str, int]:
    """``POINTS``, fewer where there are many pairs, so that the page stays small."""
    share = min(1.0, 12 / max(1, pairs))
    return {split: max(60, int(most * share)) for split, most in POINTS.items()}


def rolling_sharpe(returns: Array, sessions_per_year: float, window: int = ROLLING) -> Array:
    """Annualised Sharpe ratio of the last ``window`` sessions [D]; NaN before there are so many or without variance."""
    values = np.full(returns.size, np.nan)
    if returns.size < window:
        return values
    frames = np.lib.stride_tricks.sliding_window_view(returns, window)
    mean, deviation = frames.mean(axis=1), frames.std(axis=1)
    varied = deviation > FLAT * np.abs(returns).max()
    values[window - 1 :] = np.where(
        varied, np.sqrt(sessions_per_year) * mean / np.where(varied, deviation, 1.0), np.nan
    )
    return values


def _equity(account: Account) -> tuple[Array, Array]:
    """Equity and drawdown [D + 1], the start included; equity has no point after a total loss."""
    equity = np.concatenate([[1.0], np.cumprod(1 + account.returns)])
    return np.where(equity > 1e-12, equity, np.nan), equity / np.maximum.accumulate(equity) - 1


def _with_start(days: Days) -> Days:
    return np.concatenate([days[:1] - np.timedelta64(1, "D"), days])


def _joined(parts: Sequence[tuple[Days, list[float | None]]]) -> tuple[Days, list[float | None]]:
    """Lines one after another, with a gap between them."""
    days: list[NDArray[Any]] = []
    values: list[float | None] = []
    for at, part in parts:
        if values:
            days.append(days[-1][-1:] + np.timedelta64(1, "D"))
            values.append(None)
        days.append(at)
        values += part
    return np.concatenate(days), values


def _lines(
    accounts: Accounts,
    payload: Payload,
    points: Mapping[str, int],
    series: Callable[[Account], tuple[Days, list[tuple[str, Array, Callable[[Any], Any]]]]],
    label: Callable[[str], str],
    policies: Sequence[str],
    hover: Mapping[str, str],
) -> list[dict[str, Any]]:
    """A trace per policy and axis; ``series`` gives days and, per axis, values and what stands for a bucket of them."""
    traces: dict[tuple[str, str], list[tuple[Days, list[float | None]]]] = {}
    for split, by_policy in accounts.items():
        for policy in policies:
            if policy not in by_policy:
                continue
            days, columns = series(by_policy[policy])
            first, last = buckets(len(days), points[split])
            for axis, values, reduce in columns:
                kept = reduce((values, first, last))
                traces.setdefault((policy, axis), []).append((days[last], rounded(kept)))
    result: list[dict[str, Any]] = []
    # The headline comes last, so that it lies on top.
    for (policy, axis), parts in sorted(traces.items(), key=lambda item: order(item[0][0]), reverse=True):
        at, line = _joined(parts)
        trace = scatter(escaped(label(policy)), escaped(policy), payload.days(at), line, yaxis=axis)
        style = {"line": line_style(policy), "visible": shown_at_first(policy), "hovertemplate": hover[axis]}
        result.append(trace | style | {"legendrank": 1000 - len(result)})
    return result


def _at_end(part: tuple[Array, NDArray[np.int64], NDArray[np.int64]]) -> Array:
    values, _, last = part
    return values[last]


def _lowest(part: tuple[Array, NDArray[np.int64], NDArray[np.int64]]) -> Array:
    values, first, _ = part
    return np.minimum.reduceat(values, first)


def borders(accounts: Accounts) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Layout that draws the splits' borders and names them, and a view for each split."""
    spans = {split: next(iter(found.values())).days for split, found in accounts.items()}
    shapes: list[dict[str, Any]] = []
    notes = []
    places = {"train": (0, "left"), "test": (-1, "right")}
    for split, days in spans.items():
        if shapes or split != next(iter(spans)):
            edge = {"type": "line", "xref": "x", "yref": "paper", "x0": str(days[0]), "x1": str(days[0])}
            shapes.append({**edge, "y0": 0, "y1": 1, "line": {"color": "$soft", "width": 1, "dash": "dot"}})
        if split != "train":
            area = {"type": "rect", "xref": "x", "yref": "paper", "x0": str(days[0]), "x1": str(days[-1])}
            fill = "$validation" if split == "validation" else "$test"
            shapes.append({**area, "y0": 0, "y1": 1, "line": {"width": 0}, "fillcolor": fill, "layer": "below"})
        at, anchor = places.get(split, (len(days) // 2, "center"))
        notes.append(
            {
                "text": split,
                "x": str(days[at]),
                "xanchor": anchor,
                "xref": "x",
                "y": 1,
                "yanchor": "bottom",
                "yref": "paper",
                "showarrow": False,
                "font": {"size": 12, "color": "$soft"},
            }
        )
    views = [{"label": split, "layout": {"xaxis.range": _range(days, days)}} for split, days in spans.items()]
    whole = _range(next(iter(spans.values())), list(spans.values())[-1])
    views = [{"label": "all", "layout": {"xaxis.range": whole}}, *views] if len(views) > 1 else []
    return {"shapes": shapes, "annotations": notes, "xaxis": {"type": "date", "range": whole}}, views


def _range(first: Days, last: Days) -> list[str]:
    pad = np.timedelta64(max(1, int((last[-1] - first[0]) / np.timedelta64(1, "D") / 100)), "D")
    return [str(first[0] - pad), str(last[-1] + pad)]


def equity_figure(pair: str, accounts: Accounts, payload: Payload, points: Mapping[str, int]) -> Figure:
    """Equity on a log scale and drawdown below it, of every policy, on every split; each split starts at 1."""

    def series(account: Account) -> tuple[Days, list[Any]]:
        equity, drawdown = _equity(account)
        return _with_start(account.days), [("y", equity, _at_end), ("y2", drawdown, _lowest)]

    layout, views = borders(accounts)
    layout["xaxis"]["anchor"] = "y2"
    layout["yaxis"] = {"type": "log", "domain": [0.36, 1], "title": {"text": "equity, start of split = 1"}}
    layout["yaxis2"] = {"domain": [0, 0.31], "title": {"text": "drawdown"}, "tickformat": ".0%", "rangemode": "tozero"}
    policies = list(dict.fromkeys(policy for found in accounts.values() for policy in found))
    hover = {"y": "%{y:.4~g}", "y2": "%{y:.1%}"}
    traces = _lines(accounts, payload, points, series, lambda name: policy_label(name, pair), policies, hover)
    return Figure(f"Equity and drawdown of {pair} on {', '.join(accounts)}", traces, layout, 520, views, fit=True)


def rolling_figure(
    pair: str, accounts: Accounts, payload: Payload, points: Mapping[str, int], sessions_per_year: float
) -> Figure:
    """Sharpe ratio of the last half year, of the learned policies and the bars to beat."""

    def series(account: Account) -> tuple[Days, list[Any]]:
        return account.days, [("y", rolling_sharpe(account.returns, sessions_per_year), _at_end)]

    layout, views = borders(accounts)
    layout["yaxis"] = {"title": {"text": f"Sharpe ratio of {ROLLING} sessions"}, "zeroline": True}
    policies = [p for p in dict.fromkeys(p for found in accounts.values() for p in found) if shown_at_first(p)]
    traces = _lines(
        accounts, payload, points, series, lambda name: policy_label(name, pair), policies, {"y": "%{y:.2f}"}
    )
    for trace in traces:
        trace["visible"] = not trace["legendgroup"].startswith("survivor-") or "ensemble" not in policies
    label = f"Rolling Sharpe ratio of {pair}, {ROLLING} sessions"
    return Figure(label, traces, layout, 320, views, view=max(0, len(views) - 1), fit=True)


def weights_figure(pair: str, held: pa.Table, payload: Payload, points: Mapping[str, int]) -> Figure:
    """Weights held in both legs and in all, and turnover per session, of one policy on the test span.

    Args:
        pair: The pair.
        held: Its ``daily`` rows of one policy: date, weight_a, weight_b, gross, turnover.
        payload: Where the dates go.
        points: Points per line.
    """
    dates = held.column("date").to_numpy()
    starts = session_starts(dates)
    ends = np.append(starts[1:], len(dates)) - 1
    days = dates.astype("datetime64[D]")[starts]
    first, last = buckets(len(days), 2 * points["test"])
    sizes = last - first + 1
    at = payload.days(days[last])
    thinned = int(sizes.max()) > 1

    def mean(values: Array) -> list[float | None]:
        return rounded(np.add.reduceat(values, first) / sizes, 3)

    traces: list[dict[str, Any]] = []
    legs = [escaped(leg) for leg in pair.split("/")] if pair.count("/") == 1 else ["a", "b"]
    columns = (("weight_a", legs[0], "$leg0", "solid"), ("weight_b", legs[1], "$leg1", "dash"))
    for column, leg, color, dash in columns:
        weights = held.column(column).to_numpy()[ends]
        if thinned:
            low = rounded(np.minimum.reduceat(weights, first), 3)
            high = rounded(np.maximum.reduceat(weights, first), 3)
            edge = {"line": {"width": 0, "color": color}, "hoverinfo": "skip"}
            traces.append(scatter(leg, column, at, low, **edge))
            traces.append(scatter(leg, column, at, high, fill="tonexty", fillcolor=f"{color}band", **edge))
        line = {"color": color, "width": 1.6, "dash": dash}
        traces.append(scatter(leg, column, at, mean(weights), line=line, hovertemplate="%{y:.2f}"))
    for trace in traces:
        trace["legendrank"] = 1 if trace["legendgroup"] == "weight_a" else 2
    gross = mean(held.column("gross").to_numpy()[ends])
    line = {"color": "$soft", "width": 1.2, "dash": "dot"}
    traces.append(scatter("gross", "gross", at, gross, line=line, hovertemplate="%{y:.2f}"))
    turnover = mean(np.add.reduceat(held.column("turnover").to_numpy(), starts))
    area = {"line": {"color": "$ensemble", "width": 1.2}, "fill": "tozeroy", "fillcolor": "$ensembleband"}
    traces.append(scatter("turnover", "turnover", at, turnover, yaxis="y2", hovertemplate="%{y:.1%}", **area))
    layout = {
        "xaxis": {"type": "date", "anchor": "y2", "range": _range(days, days)},
        "yaxis": {"domain": [0.36, 1], "title": {"text": "weight, fraction of equity"}, "zeroline": True},
        "yaxis2": {
            "domain": [0, 0.29],
            "title": {"text": "turnover a session"},
            "tickformat": ".0%",
            "rangemode": "tozero",
        },
    }
    years = float((days[-1] - days[0]) / np.timedelta64(365, "D"))
    views = [{"label": "all", "layout": {"xaxis.range": _range(days, days)}}]
    for recent in (5, 1):
        if years > 1.5 * recent:
            since = days[days > days[-1] - np.timedelta64(365 * recent, "D")]
            label = f"last {recent} years" if recent > 1 else "last year"
            views.append({"label": label, "layout": {"xaxis.range": _range(since, since)}})
    # Daily weights over decades are a thicket; what is seen first can be read.
    first_view = 1 if years > 12 else 0
    label = f"Weights and turnover of {pair} on test"
    return Figure(label, traces, layout, 420, views if len(views) > 1 else [], view=first_view, fit=True)
