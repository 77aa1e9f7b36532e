"""The report's charts of a population: fitness, hyperparameters and descent, generation by generation."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.curves import escaped
from analysis.payload import Figure, log_ticks, rounded, scatter

Rows = Sequence[Mapping[str, Any]]
Node = tuple[str, int]
"""Member and generation: the state that a member had at the end of a generation."""

RUINED = -10.0
"""The score of a member whose account was ruined; drawn, it would flatten all others."""

OPERATIONS: Mapping[str, tuple[str, str]] = {
    "keep": ("$line", "solid"),
    "start": ("$line", "solid"),
    "exploit": ("$equal", "solid"),
    "explore": ("$ensemble", "dash"),
    "migrate": ("$target", "solid"),
    "rollback": ("$zscore", "dash"),
    "freeze": ("$static", "dot"),
    "lost": ("$ink", "dot"),
}
"""Colour token and dash of each decision's edge."""


def fitness_figure(pair: str, progress: Rows) -> tuple[Figure | None, int]:
    """Validation fitness of every member over generations, with the best and the median of the population.

    Returns:
        The chart, or None without a score; and how many scores of ruined members it leaves out.
    """
    scored: dict[str, dict[int, float]] = {}
    for row in progress:
        if row["fitness"] is not None and np.isfinite(row["fitness"]):
            scored.setdefault(row["member"], {})[row["generation"]] = row["fitness"]
    hidden = sum(value <= RUINED for values in scored.values() for value in values.values())
    members = {m: {g: v for g, v in values.items() if v > RUINED} for m, values in scored.items()}
    generations = sorted({generation for values in members.values() for generation in values})
    if not generations:
        return None, hidden
    traces = []
    for member, values in sorted(members.items()):
        line = rounded([values.get(g, np.nan) for g in generations])
        style = {"line": {"color": "$member", "width": 1}, "marker": {"size": 3}, "mode": "lines+markers"}
        entry = {"meta": {"entry": f"{len(members)} members"}, "hoverinfo": "skip" if len(members) > 12 else "all"}
        traces.append(scatter(escaped(member), "members", generations, line, **style, **entry))
    columns = [[values[g] for values in members.values() if g in values] for g in generations]
    for name, color, dash, width, choose in (
        ("median", "$equal", "dash", 1.8, np.median),
        ("best of the generation", "$ensemble", "solid", 2.6, np.max),
    ):
        y = rounded([float(choose(column)) for column in columns])
        style = {"line": {"color": color, "width": width, "dash": dash}, "marker": {"size": 5}, "mode": "lines+markers"}
        traces.append(scatter(name, name, generations, y, **style))
    for trace in traces:
        trace["hovertemplate"] = "%{y:.2f}"
    layout = {
        "xaxis": {"title": {"text": "generation"}, "dtick": 1 if len(generations) <= 16 else None},
        "yaxis": {"title": {"text": "fitness on validation"}},
    }
    return Figure(f"Validation fitness of {pair} over generations", traces, layout, 320), hidden


def _tree(lineage: Rows) -> dict[Node, tuple[Node, str]]:
    """Parent state and decision of each state; the row of a generation says what the next one trains."""
    last = max((row["generation"] for row in lineage), default=0)
    return {
        (row["member"], row["generation"] + 1): ((row["parent_member"], row["parent_generation"]), row["operation"])
        for row in lineage
        if row["generation"] < last and row["operation"] != "stop" and row["parent_member"] is not None
    }


def descent(lineage: Rows, survivors: Collection[Node]) -> set[Node]:
    """The survivors' states and all states that they descend from."""
    parents = _tree(lineage)
    found: set[Node] = set()
    for node in survivors:
        while node not in found:
            found.add(node)
            if node not in parents:
                break
            node = parents[node][0]
    return found


def lineage_figure(pair: str, lineage: Rows, survivors: Mapping[Node, int]) -> Figure | None:
    """Descent of a population: members as lanes over generations, an edge from each state to what became of it.

    Args:
        pair: The pair.
        lineage: Its lineage rows of one window.
        survivors: Rank of each survivor by its state.

    Returns:
        The tree, or None without lineage.
    """
    parents = _tree(lineage)
    if not parents:
        return None
    members = sorted({row["member"] for row in lineage})
    lane = {member: index for index, member in enumerate(members)}
    marked = descent(lineage, survivors)
    edges: dict[str, list[tuple[Node, Node]]] = {}
    thick: list[tuple[Node, Node]] = []
    for node, (parent, operation) in parents.items():
        if parent[0] not in lane:
            continue
        edges.setdefault(operation, []).append((parent, node))
        if node in marked:
            thick.append((parent, node))
    traces: list[dict[str, Any]] = []

    def path(name: str, pairs: Sequence[tuple[Node, Node]], line: Mapping[str, Any]) -> None:
        x: list[float | None] = []
        y: list[float | None] = []
        for (first, begin), (second, end) in pairs:
            x += [begin, end, None]
            y += [lane[first], lane[second], None]
        traces.append(scatter(name, name, x, y, line=dict(line), hoverinfo="skip"))

    path("descent of the survivors", thick, {"color": "$trail", "width": 9})
    for operation, pairs in sorted(edges.items(), key=lambda item: list(OPERATIONS).index(item[0])):
        color, dash = OPERATIONS[operation]
        width = 1.2 if operation in ("keep", "start") else 2.2
        path(operation, pairs, {"color": color, "width": width, "dash": dash})
    nodes = sorted({node for node in [*parents, *(parent for parent, _ in parents.values())] if node[0] in lane})
    traces += [_states(lineage, nodes, lane), _rings(survivors, lane)]
    generations = max(node[1] for node in nodes)
    layout = {
        "xaxis": {"title": {"text": "generation"}, "dtick": 1 if generations <= 16 else None, "showgrid": False},
        "yaxis": {
            "tickvals": list(range(len(members))),
            "ticktext": [escaped(member) for member in members],
            "range": [len(members) - 0.4, -0.9],
            "title": {"text": "member"},
            "showgrid": False,
            "zeroline": False,
        },
        "hovermode": "closest",
    }
    label = f"Lineage of {pair}: {len(members)} members over {generations} generations"
    return Figure(label, traces, layout, 90 + 30 * len(members), min_width=min(1100, 220 + 26 * generations))


def _states(lineage: Rows, nodes: Sequence[Node], lane: Mapping[str, int]) -> dict[str, Any]:
    """A dot per state, darker when fitter."""
    scores = {(row["member"], row["generation"]): row["fitness"] for row in lineage}
    found = [scores.get(node) for node in nodes]
    known = [score for score in found if score is not None and score > RUINED]
    floor = min(known, default=0.0)
    marker = {
        "size": 9,
        "color": rounded([floor if score is None else max(score, floor) for score in found], 3),
        "cmin": floor,
        "cmax": max(known, default=1.0),
        "colorscale": "$rising",
        "line": {"width": 1, "color": "$paper"},
    }
    told = [
        f"{escaped(member)}, generation {generation}: {'no fitness' if score is None else f'fitness {score:.2f}'}"
        for (member, generation), score in zip(nodes, found, strict=True)
    ]
    x, y = [generation for _, generation in nodes], [lane[member] for member, _ in nodes]
    trace = scatter("state, stronger when fitter", "state", x, y, mode="markers", marker=marker, text=told)
    return trace | {"hovertemplate": "%{text}<extra></extra>"}


def _rings(survivors: Mapping[Node, int], lane: Mapping[str, int]) -> dict[str, Any]:
    """A ring around each survivor, with its rank."""
    nodes = sorted((node for node in survivors if node[0] in lane), key=lambda node: survivors[node])
    x, y = [generation for _, generation in nodes], [lane[member] for member, _ in nodes]
    marker = {"size": 16, "symbol": "circle-open", "color": "$ink", "line": {"width": 2.2}}
    ranks = {"text": [str(survivors[node]) for node in nodes], "textposition": "top right"}
    font = {"textfont": {"color": "$ink", "size": 12}, "hovertemplate": "survivor %{text}<extra></extra>"}
    return scatter("survivor, with its rank", "survivor", x, y, mode="markers+text", marker=marker, **ranks, **font)


def trajectories(
    pair: str, lineage: Rows, survivors: Mapping[Node, int], search: Mapping[str, Any]
) -> list[tuple[str, Figure]]:
    """A chart per hyperparameter: its value in each member over generations, the survivors' descent drawn strong.

    Args:
        pair: The pair.
        lineage: Its lineage rows of one window.
        survivors: Rank of each survivor by its state.
        search: The config's section of that name: ``scale``, ``low`` and ``high`` by hyperparameter.

    Returns:
        Name and chart of each, in the frame's order.
    """
    names = [name.removeprefix("hp_") for name in (lineage[0] if lineage else {}) if name.startswith("hp_")]
    parents = _tree(lineage)
    # A row holds what is in force in the generation that follows it.
    force = {(row["member"], row["generation"] + 1): row for row in lineage}
    members = sorted({row["member"] for row in lineage})
    last = max((generation for _, generation in parents), default=0)
    found = []
    for name in names:
        traces: list[dict[str, Any]] = []
        for member in members:
            at = [generation for generation in range(1, last + 1) if (member, generation) in parents]
            y = rounded([_value(force[member, generation], name) for generation in at])
            style = {"line": {"color": "$member", "width": 1.2, "shape": "hvh"}, "hovertemplate": "%{y:.3~g}"}
            entry = {"meta": {"entry": f"{len(members)} members"}}
            traces.append(scatter(escaped(member), "members", at, y, **style, **entry))
        for node, rank in sorted(survivors.items(), key=lambda item: -item[1]):
            line = _ancestry(node, parents)
            y = rounded([_value(force[step], name) for step in line])
            color = "$ensemble" if rank == 1 else f"$survivor{(rank - 1) % 3}"
            style = {"line": {"color": color, "width": 2.4 if rank == 1 else 1.6, "shape": "hvh"}}
            style |= {"marker": {"size": 5}, "hovertemplate": "%{y:.3~g}", "mode": "lines+markers"}
            x = [generation for _, generation in line]
            traces.append(scatter(f"to survivor {rank}", f"survivor-{rank}", x, y, **style))
        scale = (search.get(name) or {}).get("scale", "linear")
        axis: dict[str, Any] = {"type": "linear"}
        values = [value for trace in traces for value in trace["y"] if value is not None]
        if scale == "log" and values and min(values) > 0:
            ticks = log_ticks(min(values), max(values))
            axis = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
        layout = {"xaxis": {"title": {"text": "generation"}, "dtick": 1 if last <= 10 else None}, "yaxis": axis}
        label = f"{name} of {pair} over generations{', log scale' if axis['type'] == 'log' else ''}"
        found.append((name, Figure(label, traces, layout, 230, legend=False)))
    return found


def _value(row: Mapping[str, Any], name: str) -> float:
    value = row[f"hp_{name}"]
    return np.nan if value is None else float(value)


def _ancestry(node: Node, parents: Mapping[Node, tuple[Node, str]]) -> list[Node]:
    line = []
    while node in parents and node not in line:
        line.append(node)
        node = parents[node][0]
    return line[::-1]
