import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from analysis import charts
from analysis.frames import KEYS, events_schema, frame_path, read_frame, write_frame
from analysis.report import main, report_html
from tests.analysis.frames_made import make_run

HOSTILE = "<script>alert('x')</script> & \"quoted\""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), note=HOSTILE)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return report_html(run)


def drawn(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)]


def points(path: str) -> np.ndarray:
    return np.array([[float(x), float(y)] for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)])


def test_every_chart_has_marks_inside_its_frame(page: str) -> None:
    found = drawn(page)
    assert len(found) == 2 * 2
    for svg in found:
        marks = [mark for mark in svg.iter("path") if mark.get("class", "").startswith("mark")]
        assert len(marks) >= 4
        for mark in marks:
            line = points(mark.get("d", ""))
            assert len(line) >= 2
            assert np.ptp(line[:, 0]) > 0
            assert np.ptp(line[:, 1]) > 0
            assert line[:, 0].min() >= charts.LEFT - 0.1
            assert line[:, 0].max() <= charts.WIDTH - charts.RIGHT + 0.1
            assert line[:, 1].min() >= charts.TOP - 0.1
            assert line[:, 1].max() <= charts.HEIGHT - charts.BOTTOM + 0.1
        assert len([text for text in svg.iter("text") if text.get("class") == "tick"]) >= 6
    names = [mark.findtext("title") for mark in found[0].iter("path")]
    assert names[-1] == "ensemble (headline)"
    assert {"equal weight", "vol-targeted EW", "survivor 1", "survivor 2"} <= set(names)


def test_the_equity_line_ends_where_the_account_ends(run: Path, page: str) -> None:
    summary = read_frame(frame_path(run, "summary"), pair="AAA/BBB", split="test", scenario="base").to_pylist()
    final = {row["policy"]: row["final_value"] for row in summary}
    svg = drawn(page)[0]
    lines = {mark.findtext("title"): points(mark.get("d", "")) for mark in svg.iter("path")}
    first, second = lines["ensemble (headline)"][-1, 1], lines["equal weight"][-1, 1]
    start = lines["equal weight"][0, 1]
    # On a log scale heights are proportional to log equity, whatever the axis.
    ratio = (start - first) / (start - second)
    assert ratio == pytest.approx(np.log(final["ensemble"]) / np.log(final["equal_weight"]), rel=0.02)


def test_the_page_is_whole_small_and_asks_for_nothing(page: str) -> None:
    assert len(page.encode()) < 3_000_000
    assert not re.search(r"(?:src|href|action)=[\"'](?!data:,)", page)
    assert "url(" not in page
    assert "@import" not in page
    assert "<script" not in page
    stack: list[str] = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in {"meta", "link", "line", "br"}:
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag != "line":
                assert stack.pop() == tag

    Balanced().feed(page)
    assert stack == []


def test_text_from_outside_is_escaped(page: str) -> None:
    assert "<script>" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quoted&quot;" in page


def test_it_says_what_an_honest_report_must(run: Path, page: str) -> None:
    assert "The test span was read <b>once</b>" in page
    assert "train 2015-01-01 to 2017-04-19 (600 bars)" in page
    assert "test 2018-07-02 to 2019-08-23 (300 bars)" in page
    row = read_frame(frame_path(run, "summary"), pair="AAA/BBB", policy="ensemble", split="test", scenario="base")
    low, high = (row.column(name)[0].as_py() for name in ("sharpe_ci_low", "sharpe_ci_high"))
    assert f"[{low:+.2f}, {high:+.2f}]" in page
    for name in ("learning_rate", "risk_penalty", "cost10-lag2", "annualized_return", "cvar_95"):
        assert name in page
    rate = read_frame(frame_path(run, "progress"), pair="AAA/BBB", member="m01", generation=1).to_pylist()[-1]
    assert f"<td>{rate['hp_learning_rate']:.3g}</td>" in page
    assert "time: learner 75 %  env 25 %" in page


def test_more_looks_are_counted(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path)
    events = read_frame(frame_path(other, "events")).to_pylist()
    events += [{**events[-1], "seq": 90 + i, "kind": "look", "detail": "backtest"} for i in range(2)]
    write_frame(events, events_schema(), KEYS["events"], frame_path(other, "events"))
    assert "The test span was read <b>3 times</b>" in report_html(other)


def test_the_command_writes_the_page_and_equal_frames_give_equal_pages(run: Path, page: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis.report", str(run)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(run / "report.html")
    assert (run / "report.html").read_text(encoding="utf-8") == page


def test_mistakes_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "no such run" in captured.err
    made = make_run(tmp_path)
    for frame in ("events", "progress", "daily", "summary"):
        frame_path(made, frame).unlink()
        assert main([str(made)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"{frame}.parquet: missing" in err
    assert not (made / "report.html").exists()


def test_thinning_keeps_the_ends_and_every_spike() -> None:
    x = np.arange(50_000.0)
    y = np.sin(x / 3000)
    y[31_234], y[777] = 9.0, -9.0
    tx, ty = charts.thinned(x, y, 300)
    assert len(tx) <= 602
    assert (tx[0], tx[-1], ty.max(), ty.min()) == (0, 49_999, 9.0, -9.0)
    assert np.all(np.diff(tx) > 0)


def test_axes_have_round_ticks_in_range() -> None:
    assert charts.nice_ticks(-0.3, 1.1) == pytest.approx([0, 0.5, 1.0])
    assert charts.log_ticks(0.9, 250) == pytest.approx([1, 2, 5, 10, 20, 50, 100, 200])
    days = charts.days_since_epoch(np.array(["2020-11-30", "2025-10-17"], "datetime64[us]"))
    labels = [label for _, label in charts.date_ticks(*days)]
    assert labels == ["2021", "2022", "2023", "2024", "2025"]
    for span in (1, 9, 40, 200, 900, 40_000):
        ticks = charts.date_ticks(20_000, 20_000 + span)
        assert all(20_000 <= position <= 20_000 + span for position, _ in ticks)
        assert 1 <= len(ticks) <= 12


def test_a_chart_of_nothing_says_so_and_gaps_are_not_bridged() -> None:
    nan = np.full(3, np.nan)
    assert "<svg" not in charts.line_chart([charts.Series("a", np.arange(3.0), nan, "bar")], label="l", y_label="y")
    series = charts.Series("a", np.arange(5.0), np.array([1, 2, np.nan, 3, 4]), "bar")
    assert charts.line_chart([series], label="l", y_label="y").count("h0") == 2
    alone = charts.Series("b", np.arange(2.0), np.array([np.nan, 2.0]), "bar")
    assert "<circle" in charts.line_chart([alone], label="l", y_label="y")
