"""The report's charts of distributions and grids: monthly returns, costs and lags, bootstrap."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.curves import Account, escaped
from analysis.labels import policy_label
from analysis.payload import Array, Figure, bins, rounded
from analysis.summary import SCENARIO

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def monthly_returns(account: Account) -> tuple[list[int], Array, Array]:
    """Returns compounded to calendar months and years.

    Returns:
        Years [Y] ascending, returns by year and month [Y, 12] (NaN without a session), returns by year [Y].
    """
    months = account.days.astype("datetime64[M]").astype(np.int64)
    starts = np.flatnonzero(np.diff(months, prepend=months[0] - 1))
    grown = np.multiply.reduceat(1 + account.returns, starts) - 1
    first = int(months[0] // 12)
    grid = np.full((int(months[-1] // 12) - first + 1, 12), np.nan)
    grid[months[starts] // 12 - first, months[starts] % 12] = grown
    present = ~np.isnan(grid).all(axis=1)
    grid = grid[present]
    years = [1970 + first + int(row) for row in np.flatnonzero(present)]
    return years, grid, np.nanprod(1 + grid, axis=1) - 1


def _heat(z: Sequence[Sequence[float | None]], words: Sequence[Sequence[str]], size: float) -> dict[str, Any]:
    """What all heat maps share: a scale blank at 0, blue to 1, vermilion to -1, and ``words`` in the cells."""
    return {
        "type": "heatmap",
        "z": z,
        "zmin": -1,
        "zmax": 1,
        "colorscale": "$diverging",
        "showscale": False,
        "xgap": 2,
        "ygap": 2 if size > 8 else 1,
        "text": words,
        "texttemplate": "%{text}" if size else "",
        "textfont": {"size": size or 8, "color": "$ink"},
        "hoverongaps": False,
    }


def months_figure(pair: str, policy: str, account: Account) -> Figure:
    """Monthly returns of the headline on the test span, a row per year, and the year's own return."""
    years, grid, whole = monthly_returns(account)
    tall = max(9, min(26, 900 // len(years)))
    size = 11.0 if tall >= 22 else 9.0 if tall >= 16 else 0.0
    # A year's return may be three times a month's before its colour is full.
    limit = float(np.nanquantile(np.abs(grid), 0.97)) or 0.01
    shades = np.concatenate([grid / limit, whole[:, None] / (3 * limit)], axis=1)
    returns = np.concatenate([grid, whole[:, None]], axis=1)
    words = [["" if np.isnan(value) else f"{100 * value:z.1f}" for value in row] for row in returns]
    heat = _heat([rounded(row, 3) for row in shades], words, size)
    heat |= {"x": [*_MONTHS, "year"], "y": [str(year) for year in years], "name": "percent"}
    heat["hovertemplate"] = "%{x} %{y}: %{text} %<extra></extra>"
    layout = {
        "xaxis": {"side": "top", "showgrid": False, "fixedrange": True, "type": "category"},
        "yaxis": {"autorange": "reversed", "type": "category", "showgrid": False, "nticks": 30, "fixedrange": True},
        "margin": {"t": 24, "b": 8},
        "hovermode": "closest",
    }
    label = f"Monthly returns of {policy_label(policy, pair)} of {pair} on test, percent"
    return Figure(label, [heat], layout, max(110, 40 + tall * len(years)), min_width=600)


def terms_of(scenario: str) -> str:
    """What a scenario changes beside costs and lag: ``lev1.0-borrow0.0675``, or nothing."""
    match = SCENARIO.match(scenario)
    return scenario[match.end("lag") :].removeprefix("-") if match else ""


def costs_figure(pair: str, policy: str, rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Sharpe ratio of the headline on test by costs and lag; a view for each set of further terms.

    Args:
        pair: The pair.
        policy: The headline.
        rows: Its summary rows on test, every scenario.

    Returns:
        The heat map, or None where only the run's own terms were tested.
    """
    facets: dict[str, dict[tuple[float, int], float | None]] = {}
    own = next((row for row in rows if row["scenario"] == "base"), None)
    for row in sorted(rows, key=lambda row: row["scenario"] != "base"):
        facets.setdefault(terms_of(row["scenario"]), {})[row["cost_bps"], row["lag"]] = row["annualised_sharpe"]
    if sum(map(len, facets.values())) < 2:
        return None
    values = [value for cells in facets.values() for value in cells.values() if value is not None]
    limit = max([abs(value) for value in values] + [0.5])
    traces, views = [], []
    tallest = 1
    for index, (terms, cells) in enumerate(facets.items()):
        costs, lags = sorted({cost for cost, _ in cells}), sorted({lag for _, lag in cells})
        tallest = max(tallest, len(lags))
        ratios = [[cells.get((cost, lag)) for cost in costs] for lag in lags]
        words = [["" if value is None else f"{value:+z.2f}" for value in row] for row in ratios]
        if own is not None and not terms and own["cost_bps"] in costs and own["lag"] in lags:
            words[lags.index(own["lag"])][costs.index(own["cost_bps"])] += "<br>own terms"
        shades = [rounded([np.nan if value is None else value / limit for value in row], 3) for row in ratios]
        trace = _heat(shades, words, 13)
        trace |= {"x": [f"{cost:g}" for cost in costs], "y": [str(lag) for lag in lags], "visible": index == 0}
        trace |= {"hovertemplate": "%{x} bps a side, lag %{y}: Sharpe %{text}<extra></extra>"}
        trace["name"] = escaped(terms or "the run's own")
        traces.append(trace)
        views.append({"label": terms or "the run's own further terms", "shown": [index]})
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "costs, bps a side"}, "type": "category", "showgrid": False, "fixedrange": True},
        "yaxis": {
            "title": {"text": "lag, bars"},
            "type": "category",
            "autorange": "reversed",
            "showgrid": False,
            "fixedrange": True,
        },
        "hovermode": "closest",
    }
    label = f"Sharpe ratio of {policy_label(policy, pair)} of {pair} on test by costs and lag"
    return Figure(label, traces, layout, 110 + 62 * tallest, views if len(views) > 1 else [])


def bootstrap_figure(
    label: str, axis: str, draws: Array, value: float, low: float | None, high: float | None
) -> Figure:
    """The distribution of a statistic over bootstrap resamples, its interval shaded, the estimate and zero marked.

    Args:
        label: What the chart shows.
        axis: Name and unit of the statistic.
        draws: The statistic of each resample [K].
        value: The estimate on the data itself.
        low: Lower end of its interval, if any.
        high: Upper end.
    """
    centres, shares, width = bins(draws)
    bars = {
        "type": "bar",
        "name": "resamples",
        "x": centres,
        "y": shares,
        "width": width,
        "marker": {"color": "$bars", "line": {"width": 0}},
        "hovertemplate": "%{x:.2f}: %{y:.1%} of resamples<extra></extra>",
    }
    shapes: list[dict[str, Any]] = []
    upright = {"type": "line", "yref": "paper", "y0": 0, "y1": 1}
    if low is not None and high is not None:
        box = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "x0": low, "x1": high, "layer": "below"}
        shapes.append({**box, "fillcolor": "$validation", "line": {"width": 0}})
    shapes.append({**upright, "x0": 0, "x1": 0, "line": {"color": "$ink", "width": 1}})
    shapes.append({**upright, "x0": value, "x1": value, "line": {"color": "$ensemble", "width": 2.4}})
    ends = [float(np.min(draws)), float(np.max(draws)), 0.0, value]
    pad = 0.04 * (max(ends) - min(ends)) or 0.5
    layout = {
        "xaxis": {"title": {"text": axis}, "range": [min(ends) - pad, max(ends) + pad]},
        "yaxis": {"title": {"text": "share of resamples"}, "tickformat": ".0%", "rangemode": "tozero", "nticks": 4},
        "shapes": shapes,
        "bargap": 0,
        "hovermode": "closest",
    }
    return Figure(label, [bars], layout, 240)
