"""``python -m pbt.audit``: what it says of a real run, of one that was tampered with, and to a mistaken user."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from analysis.frames import KEYS, read_frame, write_frame
from envs.features import compute_features, lookback
from envs.scaler import Scaler
from pbt.audit import main
from pbt.finished import FinishedRun

PAIR = "SYNC/SYND"


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    shutil.copytree(undisturbed, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_an_honest_run_is_clean(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks = (run / "state" / "events.jsonl").read_text()
    assert main([str(run), "--lookahead", "--bars", "6"]) == 0
    told, errors = capsys.readouterr()
    assert errors == ""
    found = json.loads((run / "audit.json").read_text())["lookahead"]
    assert found["result"] == "clean"
    decisions = sum(entry["decisions"] for entry in found["pairs"].values())
    assert told.strip().splitlines()[-1] == f"no look-ahead in {decisions:,} decisions at {2 * 12} cuts"
    for pair in ("SYNA/SYNB", PAIR):
        entry = found["pairs"][pair]
        daily = read_frame(run / "frames" / "daily.parquet", ["policy"], scenario="base", pair=pair).to_pandas()
        assert entry["recorded"] == daily.policy.str.startswith("survivor-").sum()
        assert list(entry["survivors"]) == ["1", "2", "3"]
        assert all(one["result"] == "clean" for one in entry["survivors"].values())
    assert (run / "state" / "events.jsonl").read_text() == looks  # no look at the test span

    assert main([str(run), "--lookahead", "--bars", "1", "--pair", PAIR, "--rank", "2"]) == 0
    found = json.loads((run / "audit.json").read_text())["lookahead"]
    assert {pair: list(entry["survivors"]) for pair, entry in found["pairs"].items()} == {PAIR: ["2"]}


def test_a_scaler_that_saw_the_test_span_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished = FinishedRun.open(run)
    values = compute_features(*finished.legs()[PAIR], finished.run.features)
    leaky = Scaler.fit(
        values[lookback(finished.run.features) - 1 :], finished.scaler(PAIR).names, finished.run.features
    )
    for rank in (1, 2, 3):
        (finished.directory.survivor(PAIR, rank) / "scaler.json").write_text(leaky.to_json() + "\n")
    assert main([str(run), "--lookahead", "--bars", "3", "--pair", PAIR]) == 1
    told = capsys.readouterr().out
    assert "LEAK      the scaler (a_return_1" in told
    assert "LOOK-AHEAD FOUND" in told.splitlines()[-1]
    found = json.loads((run / "audit.json").read_text())["lookahead"]
    assert found["result"] == "leak"
    assert {leak["how"] for leak in found["pairs"][PAIR]["leaks"]} == {"record", "scaler", "perturbed"}


def test_a_recorded_decision_that_is_not_repeated_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "frames" / "daily.parquet"
    table = read_frame(path)
    rows = table.to_pandas()
    mine = rows.query("pair == @PAIR and policy == 'survivor-1' and split == 'test' and scenario == 'base'").index[9]
    rows.loc[mine, "target_weight_a"] += 1e-4
    write_frame(rows, table.schema, KEYS["daily"], path)
    assert main([str(run), "--lookahead", "--bars", "1", "--pair", PAIR]) == 1
    bar = np.datetime_as_string(rows.decision_date[mine].to_datetime64(), unit="D")
    line = f"LEAK      survivor-1: the recorded decision (test: target_weight_a) of {bar}"
    assert line in capsys.readouterr().out
    found = json.loads((run / "audit.json").read_text())["lookahead"]["pairs"][PAIR]["survivors"]
    assert {rank: one["result"] for rank, one in found.items()} == {"1": "leak", "2": "clean", "3": "clean"}


MISTAKES = {
    "no run": (["nowhere", "--lookahead"], "nowhere holds no run"),
    "nothing to do": (["RUN"], "say what to audit: --lookahead"),
    "unknown pair": (
        ["RUN", "--lookahead", "--pair", "A/B"],
        "--pair: 'A/B' is no pair of this run; choose one of SYN",
    ),
    "unknown rank": (["RUN", "--lookahead", "--rank", "9"], "--rank: SYNA/SYNB has survivors 1, 2, 3, not 9"),
    "no bars": (["RUN", "--lookahead", "--bars", "0"], "--bars: 0 must be 1 or more"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISTAKES[mistake]
    assert main([str(undisturbed) if argument == "RUN" else argument for argument in arguments]) == 2
    told, errors = capsys.readouterr()
    assert told == ""
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not (undisturbed / "audit.json").exists()


def test_features_are_told_beside_the_look_ahead(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = run / "state" / "events.jsonl"
    looks = journal.read_text()
    assert main([str(run), "--lookahead", "--bars", "1", "--pair", PAIR]) == 0
    assert main([str(run), "--features", "--repeats", "2", "--pair", PAIR]) == 0
    told = capsys.readouterr().out
    names = FinishedRun.open(run).scaler(PAIR).names
    found = json.loads((run / "audit.json").read_text())
    assert found["lookahead"]["result"] == "clean"
    features = found["features"]["pairs"][PAIR]
    assert set(features) == set(names)
    assert next(iter(features)) in told
    assert all(list(one["drift"]) == ["validation"] for one in features.values())
    assert journal.read_text() == looks
    weights = [one["importance"] for one in features.values()]
    assert weights == sorted(weights, reverse=True)
    assert any(weights)

    assert main([str(run), "--features", "--repeats", "1", "--pair", PAIR, "--test"]) == 0
    again = json.loads((run / "audit.json").read_text())["features"]["pairs"][PAIR]
    assert set(next(iter(again.values()))["drift"]) == {"validation", "test"}
    assert again[names[0]]["drift"]["validation"] == features[names[0]]["drift"]["validation"]
    assert '"kind":"look"' in journal.read_text()[len(looks) :]
