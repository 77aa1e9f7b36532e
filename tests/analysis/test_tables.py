import io
from pathlib import Path

import pytest
from rich.console import Console

from analysis.frames import frame_path, part_of, read_frame
from analysis.tables import WIDTH, final_table, print_final_table
from tests.analysis.frames_made import POLICIES, make_run


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("run"))
    return read_frame(frame_path(run, "summary")), read_frame(frame_path(run, "daily"))


def test_a_pipe_gets_plain_ascii_with_every_policy_and_its_figures(frames) -> None:
    summary, daily = frames
    stream = io.StringIO()
    verdicts = {
        "AAA/BBB": "not distinguishable from equal weight: Sharpe 0.31, 95 % interval -0.60 to 1.20; " + "more " * 20,
        "CCC/DDD": "below equal weight: Sharpe -1.00",
    }
    print_final_table(summary, daily, verdicts, stream)
    text = stream.getvalue()
    assert text.isascii()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    for pair in ("AAA/BBB", "CCC/DDD"):
        first = next(i for i, line in enumerate(lines) if line.startswith(pair))
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{pair}  test "))
        assert " ".join(" ".join(lines[first:start]).split()) == f"{pair} {verdicts[pair]}".strip()
        assert "300 days" in lines[start]
        assert "2018-07-02 to 2019-08-23" in lines[start]
        rows = [line for line in lines[start : start + 17] if line.startswith("|") and "---" not in line][1:]
        assert len(rows) == len(POLICIES)
        assert rows[0].startswith("|* ensemble (headline)")
        assert "survivor 1 (m01 g1)" in rows[1]
        assert "equal weight" in rows[3]
        row = part_of(summary, pair=pair, split="test", scenario="base", policy="ensemble").to_pylist()[0]
        assert f" {row['annualised_sharpe']:.2f} " in rows[0]
        assert f"[{row['sharpe_ci_low']:+.2f}, {row['sharpe_ci_high']:+.2f}]" in rows[0]
        assert f"{100 * row['max_drawdown']:.1f}%" in rows[0]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_terminal_keeps_the_main_figures_at_any_width(frames, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=True)
    console.print(final_table(*frames, width=width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for heading in ("Sharpe", "95 % interval", "CAGR", "drawdown"):
        assert heading in text
    assert "…" not in text
    assert ("beta" in text.split("\n")[2]) == (width == 200)


def test_without_test_results_it_says_so(frames, tmp_path: Path) -> None:
    summary, daily = frames
    stream = io.StringIO()
    print_final_table(part_of(summary, split="train"), part_of(daily, split="train"), file=stream)
    assert "No test results" in stream.getvalue()
