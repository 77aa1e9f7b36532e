"""The status of a run, checked against its frames, and read while its journals are half-written."""

import io
import json
import math
import random
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from pbt.leaderboard import BLOCKS, POINTS, pair_lines, run_status, scaled_sparkline, sparkline
from pbt.manifest import Population
from pbt.run_dir import RunDir
from pbt.status import main, page
from rayconf.search import Range

PAIR = "SYNC/SYND"


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    shutil.copytree(undisturbed, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_json_says_what_the_frames_say(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(undisturbed), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["schema"], status["run"], status["status"]) == (1, "tiny", "complete")
    assert (status["generations"], status["seconds_left"], status["looks"], status["failures"]) == (2, None, 1, {})
    progress = pd.read_parquet(undisturbed / "frames" / "progress.parquet")
    lineage = pd.read_parquet(undisturbed / "frames" / "lineage.parquet")
    assert list(status["pairs"]) == ["SYNA/SYNB", "SYNC/SYND"]
    for pair, entry in status["pairs"].items():
        ends = progress[(progress.pair == pair) & progress.fitness.notna()]
        decided = lineage[lineage.pair == pair]
        last = ends[ends.generation == 2].sort_values(["fitness", "member"], ascending=[False, True])
        assert [member["member"] for member in entry["members"]] == list(last.member)
        assert [member["fitness"] for member in entry["members"]] == list(last.fitness)
        assert [member["val_sharpe"] for member in entry["members"]] == list(last.val_sharpe)
        histories = ends.pivot(index="member", columns="generation", values="fitness").to_dict("split")
        assert {m["member"]: m["history"] for m in entry["members"]} == dict(
            zip(histories["index"], histories["data"], strict=True)
        )
        for name, paths in entry["trajectories"].items():
            assert paths["median"] == list(ends.groupby("generation")[f"hp_{name}"].median())
            fittest = ends.loc[ends.groupby("generation").fitness.idxmax()]
            assert paths["best"] == list(fittest[f"hp_{name}"])
        assert entry["operations"] == decided.operation.value_counts().to_dict()
    summary = json.loads((undisturbed / "summary.json").read_text())["pairs"][PAIR]["survivors"][0]
    best = status["pairs"][PAIR]["best"]
    assert best == {name: summary[name] for name in ("member", "generation", "fitness", "fitness_se")}


def test_a_run_that_is_being_written_is_read_up_to_its_last_whole_line(run: Path) -> None:
    """Journals cut at random bytes: the status is that of the whole lines, and never fails."""
    directory = RunDir(run)
    whole = {path: path.read_bytes() for path in (directory.state).glob("*.jsonl")}
    committed = {pair: Population.read(directory.manifest(pair)) for pair in ("SYNA/SYNB", PAIR)}
    rng = random.Random(1)
    for _ in range(30):
        for pair, population in committed.items():
            population.advanced(generation=rng.choice((0, 1, 2))).write(directory.manifest(pair))
        cuts = {path: rng.randrange(len(content) + 1) for path, content in whole.items()}
        for path, cut in cuts.items():
            path.write_bytes(whole[path][:cut])
        torn = run_status(directory)
        Console(width=100, file=io.StringIO()).print(page(directory, torn))
        json.dumps(torn, allow_nan=False)
        assert pair_lines(torn).keys() == committed.keys()
        for path, cut in cuts.items():
            lines = whole[path][:cut]
            ended = whole[path][cut : cut + 1] == b"\n"  # a line that lacks its newline alone is whole
            path.write_bytes(lines if ended else lines[: lines.rfind(b"\n") + 1])
        assert run_status(directory) == torn


def test_a_watch_without_terminal_ends_with_the_run_in_one_line_per_change(
    undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(undisturbed), "--watch", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"SYNA/SYNB  generation 2/2  fitness best [+-]\d\.\d\d \(m\d\d\)  0 exploits", lines[0])
    assert lines[2] == "tiny: complete, 4 of 4 generations"


def test_time_left_counts_from_the_last_start(run: Path) -> None:
    """Half of the work done in the last 100 seconds: 100 more."""
    directory = RunDir(run)
    rows = [json.loads(line) for line in directory.progress_journal.read_text().splitlines()]
    ends = [row for row in rows if row["fitness"] is not None and row["generation"] == 1]
    for number, row in enumerate(ends, start=1):
        row["wall_time"] = 1000.0 + 100 * number / len(ends)
    directory.progress_journal.write_text("".join(json.dumps(row) + "\n" for row in ends))
    events = [{"kind": "start", "wall_time": 10.0}, {"kind": "resume", "wall_time": 1000.0}]
    directory.events_journal.write_text("".join(json.dumps(event) + "\n" for event in events))
    for pair in ("SYNA/SYNB", PAIR):
        early = Population.read(directory.manifest(pair)).advanced(generation=1, status="running")
        early.write(directory.manifest(pair))
    status = run_status(directory)
    assert (status["status"], status["updated"]) == ("partial", 1100.0)
    assert status["seconds_left"] == pytest.approx(100.0)


def test_sparklines_keep_heights_gaps_and_scale() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BLOCKS
    assert sparkline([2.0, None, 1.0]) == "█ ▁"
    assert len(sparkline(list(range(1000)))) == POINTS
    assert sparkline(list(range(1000)))[-1] == "█"
    space = Range(path="optimizer.learning_rate", low=1e-5, high=1e-3)
    assert scaled_sparkline([1e-5, 1e-4, 1e-3], space) == f"▁{BLOCKS[round(math.log(10) / math.log(100) * 7)]}█"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "nowhere holds no run"), (["RUN", "--watch", "0"], "--watch: 0 must be above 0"), ([], "RUN")],
)
def test_mistakes(arguments: list[str], message: str, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(undisturbed) if argument == "RUN" else argument for argument in arguments]) == 2
    told, errors = capsys.readouterr()
    assert told == ""
    assert message in errors
    assert len(errors.splitlines()) == 1
