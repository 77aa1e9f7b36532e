import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import curves, figures, payload, population
from analysis.frames import KEYS, events_schema, frame_path, read_frame, write_frame
from analysis.metrics import sharpe
from analysis.report import main, report_html
from analysis.statistics import evidence
from tests.analysis.frames_made import lineage_rows, make_run

HOSTILE = "<script>alert('x')</script> & \"quoted\" \u2028"
PAIRS = ("AAA/BBB", "CCC/DDD")
CONFIG = "seed: 3\nsearch:\n  learning_rate: {scale: log}\nversions: {ray: 2.60.0}\nodd: </script><b>\n"
VOID = {"meta", "link", "br", "img"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), note=HOSTILE, config=CONFIG)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return report_html(run)


class Elements(HTMLParser):
    """Every start tag with its attributes, and the scripts' text; fails on tags that are not balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self._stack: list[str] = []
        self.feed(page)
        assert self._stack == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._stack and self._stack[-1] == "script":
            self.scripts.append(data)


def unpacked(page: str, element: str) -> str:
    found = re.search(rf'id="{element}">([A-Za-z0-9+/=]+)</script>', page)
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1])).decode()


def drawn(page: str) -> dict[str, Any]:
    """The figures by name, their dates put back."""
    content = json.loads(unpacked(page, "figures"))
    days = {name: np.cumsum(steps).astype("datetime64[D]") for name, steps in content["days"].items()}
    for figure in content["figures"].values():
        for trace in figure["data"]:
            if isinstance(trace.get("x"), dict):
                trace["x"] = days[trace["x"]["days"]]
    return content["figures"]


def lines(figure: dict[str, Any], axis: str = "y") -> dict[str, dict[str, Any]]:
    return {trace["legendgroup"]: trace for trace in figure["data"] if trace.get("yaxis", "y") == axis}


def test_the_page_is_whole_small_and_lets_nothing_in_or_out(page: str) -> None:
    assert len(page.encode()) < 3_000_000
    elements = Elements(page)
    for tag, attributes in elements.found:
        assert "src" not in attributes, tag
        assert attributes.get("href", "#").startswith(("#", "data:,")), tag
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in page.split("</style>")[0]
    assert "@import" not in page
    policy = next(a["content"] for tag, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "http" not in policy
    own = elements.scripts[0], unpacked(page, "library")
    digests = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in own]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests, "no script runs but these two"


def test_every_chart_has_a_place_and_points(page: str) -> None:
    places = re.findall(r'data-figure="([^"]+)"', page)
    found = drawn(page)
    assert sorted(places) == sorted(found)
    kinds = ("equity", "weights", "costs", "bootstrap-sharpe", "bootstrap-less-1", "bootstrap-less-2", "rolling")
    kinds = (*kinds, "months", "fitness", "lineage", "hp-0", "hp-1")
    assert set(found) == {f"pair-{at}-{kind}" for at in range(2) for kind in kinds}
    for name, figure in found.items():
        values = [trace.get("z") or trace["y"] for trace in figure["data"]]
        flat = [value for part in values for value in np.array(part, float).ravel() if np.isfinite(value)]
        assert len(flat) >= 6, name
        assert np.ptp(flat) > 0 or "hp" in name, name
        assert figure["height"] > 100
        for axis in [axis for axis in figure["layout"] if axis.startswith("yaxis")]:
            titled = figure["layout"][axis].get("title") or "months" in name or "hp" in name
            assert titled, f"{name}: {axis} has no unit"


def test_lines_end_where_the_accounts_end_and_fall_as_deep(run: Path, page: str) -> None:
    figure = drawn(page)["pair-0-equity"]
    equity, drawdown = lines(figure), lines(figure, "y2")
    for row in read_frame(frame_path(run, "summary"), pair="AAA/BBB", scenario="base").to_pylist():
        bounds = [str(end) for end in view_of(figure, row["split"])]
        days = equity[row["policy"]]["x"]
        inside = (days >= np.datetime64(bounds[0], "D")) & (days <= np.datetime64(bounds[1], "D"))
        line = np.array(equity[row["policy"]]["y"], float)[inside]
        fall = np.array(drawdown[row["policy"]]["y"], float)[inside]
        assert line[np.isfinite(line)][0] == 1
        assert line[np.isfinite(line)][-1] == pytest.approx(row["final_value"], rel=1e-3)
        assert np.nanmin(fall) == pytest.approx(row["max_drawdown"], rel=1e-3, abs=1e-12)
    borders = [shape["x0"] for shape in figure["layout"]["shapes"] if shape["type"] == "line"]
    assert borders == ["2017-06-01", "2018-07-02"]
    assert figure["layout"]["yaxis"]["type"] == "log"
    first = {name for name, trace in equity.items() if trace["visible"]}
    assert first == {"ensemble", "survivor-1", "survivor-2", "equal_weight", "vol_target"}
    assert figure["data"][-1]["legendgroup"] == "ensemble", "the headline lies on top"


def view_of(figure: dict[str, Any], split: str) -> list[str]:
    return next(view["layout"]["xaxis.range"] for view in figure["views"] if view["label"] == split)


def test_months_compound_to_the_whole_and_costs_lie_where_they_belong(run: Path, page: str) -> None:
    row = read_frame(frame_path(run, "summary"), pair="AAA/BBB", policy="ensemble", split="test")
    months = drawn(page)["pair-0-months"]["data"][0]
    returns = [[float(word or 0) for word in line[:12]] for line in months["text"]]
    base = next(r for r in row.to_pylist() if r["scenario"] == "base")
    assert np.prod(1 + np.array(returns) / 100) == pytest.approx(base["final_value"], rel=0.01)
    assert months["y"] == ["2018", "2019"]
    costs = drawn(page)["pair-0-costs"]["data"][0]
    assert (costs["x"], costs["y"]) == (["1", "2", "5", "10"], ["1", "2"])
    for r in row.to_pylist():
        word = costs["text"][r["lag"] - 1][costs["x"].index(f"{r['cost_bps']:g}")]
        assert word.split("<br>")[0] == f"{r['annualised_sharpe']:+.2f}"
        assert ("own terms" in word) == (r["scenario"] == "base")
    assert costs["text"][1][1] == "", "no scenario, no figure"


def test_further_terms_get_a_grid_of_their_own() -> None:
    row = {"cost_bps": 1.0, "lag": 1, "annualised_sharpe": 0.5}
    rows = [{**row, "scenario": name} for name in ("base", "cost1-lag1", "cost1-lag1-lev1.0-borrow0.0675")]
    found = figures.costs_figure("A/B", "ensemble", rows)
    assert found is not None
    assert [view["label"] for view in found.views] == ["the run's own further terms", "lev1.0-borrow0.0675"]
    assert [trace["visible"] for trace in found.data] == [True, False]
    assert figures.costs_figure("A/B", "ensemble", rows[:1]) is None


def test_the_verdict_comes_first_and_its_figures_are_the_evidence(run: Path, page: str) -> None:
    found = evidence(run)
    body = page[page.index("<main") :]
    for pair in PAIRS:
        one = found[pair]
        assert body.index("<li") < body.index("<table")
        assert one.sentence().replace("<", "&lt;") in body[: body.index("<table")]
        low, high = one.sharpe.low, one.sharpe.high
        assert f"<td>{one.sharpe.value:.2f} [{low:+.2f}, {high:+.2f}]</td>" in body
        assert f"<td>{one.effective_trials} of {one.trials}</td>" in body
        assert f"≥ {one.overfitting:.2f}" in body
        shape = next(s for s in drawn(page)[f"pair-{PAIRS.index(pair)}-bootstrap-sharpe"]["layout"]["shapes"])
        assert (shape["x0"], shape["x1"]) == (low, high)


def test_bootstrap_resamples_lie_about_the_estimate(run: Path, page: str) -> None:
    found = evidence(run)["AAA/BBB"]
    for name, figure in drawn(page).items():
        if not name.startswith("pair-0-bootstrap"):
            continue
        bars = figure["data"][0]
        assert sum(bars["y"]) == pytest.approx(1, abs=0.01)
        lines = [s["x0"] for s in figure["layout"]["shapes"] if s["type"] == "line"]
        middle = float(np.average(bars["x"], weights=bars["y"]))
        assert middle == pytest.approx(lines[1], abs=0.25)
        if name.endswith("sharpe"):
            assert lines[1] == found.sharpe.value


def test_rolling_sharpe_equals_the_plain_one() -> None:
    returns = np.random.default_rng(2).normal(0, 0.01, 300)
    returns[150:] = 0.0
    found = curves.rolling_sharpe(returns, 252, 100)
    assert np.isnan(found[:99]).all()
    for at in (99, 140, 200):
        assert found[at] == pytest.approx(sharpe(returns[at - 99 : at + 1]))
    assert np.isnan(found[250:]).all(), "nothing varies there"


def test_descent_and_trajectories_follow_the_copies() -> None:
    lineage = lineage_rows(("A/B",))
    survivors = {("m03", 3): 1, ("m00", 1): 2}
    trail = {("m03", 3), ("m03", 2), ("m01", 1), ("m01", 0), ("m00", 1), ("m00", 0)}
    assert population.descent(lineage, survivors) == trail
    tree = population.lineage_figure("A/B", lineage, survivors)
    assert tree is not None
    edges = {trace["legendgroup"]: (trace["x"], trace["y"]) for trace in tree.data}
    assert edges["exploit"] == ([1, 2, None], [1, 3, None])
    assert len(edges["start"][0]) == 3 * 4
    assert len(edges["keep"][0]) == 3 * 7
    assert edges["survivor"] == ([3, 1], [3, 0])
    drawn = dict(population.trajectories("A/B", lineage, survivors, {"learning_rate": {"scale": "log"}}))
    first = next(t for t in drawn["learning_rate"].data if t["legendgroup"] == "survivor-1")
    assert (first["x"], first["y"]) == ([1, 2, 3], [2e-4, 4e-4, 4e-4])
    assert drawn["learning_rate"].layout["yaxis"]["type"] == "log"
    assert drawn["risk_penalty"].layout["yaxis"]["type"] == "linear"


def test_text_from_outside_is_escaped_and_the_config_stands_there(page: str) -> None:
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quoted&quot;" in page
    assert "odd: &lt;/script&gt;&lt;b&gt;" in page
    assert "--config" in page
    assert "ray 2.60.0" in page


def test_looks_and_splits_are_told(run: Path, page: str, tmp_path: Path) -> None:
    assert "The test span was read <b>once</b>" in page
    assert "train 2015-01-01 to 2017-04-19 (600 sessions)" in page
    assert "test 2018-07-02 to 2019-08-23 (300 sessions)" in page
    assert "time: learner 75 %  env 25 %" in page
    rate = read_frame(frame_path(run, "progress"), pair="AAA/BBB", member="m01", generation=1).to_pylist()[-1]
    assert f"<td>{rate['hp_learning_rate']:.3g}</td>" in page
    other = make_run(tmp_path)
    events = read_frame(frame_path(other, "events")).to_pylist()
    events += [{**events[-1], "seq": 90 + i, "kind": "look", "detail": "backtest"} for i in range(2)]
    write_frame(events, events_schema(), KEYS["events"], frame_path(other, "events"))
    pair = {"decisions": 1200, "cuts": [3, 9], "leaks": []}
    audit = {"date": "2026-01-01", "result": "clean", "pairs": {"AAA/BBB": pair, "CCC/DDD": pair}}
    (other / "audit.json").write_text(json.dumps({"lookahead": audit}), encoding="utf-8")
    again = report_html(other)
    assert "The test span was read <b>3 times</b>" in again
    assert "Audit: no look-ahead found in 2,400 decisions at 4 cuts, 2026-01-01." in again
    assert "config.yaml, complete" not in again, "a run without its config still has a report"
    pair["leaks"] = [{"told": "survivor-1 at bar <7>"}]
    (other / "audit.json").write_text(json.dumps({"lookahead": audit}), encoding="utf-8")
    assert "LOOK-AHEAD FOUND, 2 findings in 2,400 decisions" in (found := report_html(other))
    assert "survivor-1 at bar &lt;7&gt;" in found


def test_the_command_writes_the_page_and_equal_frames_give_equal_pages(run: Path, page: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis.report", str(run)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(run / "report.html")
    assert (run / "report.html").read_text(encoding="utf-8") == page


def test_mistakes_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> str:
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such run" in told()
    made = make_run(tmp_path)
    for name, content in (("config.yaml", "a: [1"), ("audit.json", "{"), ("audit.json", "[]")):
        (made / name).write_text(content)
        assert main([str(made)]) == 2
        assert name in told()
        (made / name).unlink()
    for frame in ("validation", "events", "lineage", "progress", "daily", "summary"):
        frame_path(made, frame).unlink()
        assert main([str(made)]) == 2
        assert f"{frame}.parquet: missing" in told()
    assert not (made / "report.html").exists()


@given(st.integers(1, 5000), st.integers(1, 900))
def test_buckets_cover_everything_once(size: int, most: int) -> None:
    first, last = payload.buckets(size, most)
    assert first[0] == 0
    assert last[-1] == size - 1
    assert len(first) == min(size, most)
    assert np.all(last >= first)
    assert np.all(first[1:] == last[:-1] + 1)


@given(st.floats(1e-8, 1e8), st.floats(1.0, 1e6))
def test_ticks_of_a_logarithmic_axis_are_few_and_in_range(low: float, ratio: float) -> None:
    ticks = payload.log_ticks(low, low * ratio)
    assert len(ticks) <= 10
    assert all(low / 1.21 <= tick <= low * ratio * 1.21 for tick in ticks)
    assert ratio < 2.5 or ticks
