"""A survivor trained again from its schedule: equal to the bit, and caught where anything was changed."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from safetensors.torch import load_file

from analysis.frames import KEYS, read_frame, schema_of, write_frame
from pbt.replay import first_difference, main

pytestmark = pytest.mark.usefixtures("alone")

PAIR = "SYNC/SYND"  # its first survivor went through an exploit


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    shutil.copytree(undisturbed, tmp_path / "tiny")
    return tmp_path / "tiny"


def alter(run: Path, change: Callable[[pd.DataFrame], None]) -> None:
    path = run / "frames" / "lineage.parquet"
    table = read_frame(path)
    rows = table.to_pandas()
    change(rows)
    write_frame(rows, table.schema, KEYS["lineage"], path)


def only_replay(run: Path) -> Path:
    (found,) = (run / "replays").iterdir()
    return found


def test_a_survivor_comes_out_of_its_schedule_to_the_bit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = pd.read_parquet(run / "survivors" / "SYNC_SYND" / "1" / "schedule.parquet")
    assert list(schedule.operation) == ["start", "exploit"]
    looks = (run / "state" / "events.jsonl").read_text().count('"look"')
    assert main([str(run), "--pair", PAIR, "--rank", "1"]) == 0
    told, errors = capsys.readouterr()
    assert told.count("  equal\n") == len(schedule)
    assert "equal      every segment (2)" in told
    assert errors == ""
    found = only_replay(run)
    ours, theirs = (
        load_file(folder / "policy.safetensors") for folder in (found, run / "survivors" / "SYNC_SYND" / "1")
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert (found / "scaler.json").read_text() == (run / "survivors" / "SYNC_SYND" / "1" / "scaler.json").read_text()
    recorded = read_frame(run / "frames" / "daily.parquet", scenario="base", pair=PAIR, policy="survivor-1")
    assert read_frame(found / "daily.parquet").equals(recorded)
    segments = read_frame(found / "segments.parquet").to_pandas()
    assert list(segments.key) == list(schedule.key)
    assert list(segments.state) == list(segments.recorded_state)
    assert list(segments.start[1:]) == list(segments.state[:-1])
    assert list(segments.fitness) == list(segments.recorded_fitness)
    assert list(segments.hp_learning_rate) == list(schedule.hp_learning_rate)
    assert (run / "state" / "events.jsonl").read_text().count('"look"') == looks


def other_key(rows: pd.DataFrame) -> None:
    row = rows.query("pair == @PAIR and generation == 0 and member == 'm02'").index
    rows.loc[row, "key"] = "0123456789abcdef"


def other_rate(rows: pd.DataFrame) -> None:
    row = rows.query("pair == @PAIR and generation == 1 and member == 'm01'").index
    rows.loc[row, "hp_learning_rate"] *= 1 + 1e-6


PLANTED = {
    "key": (other_key, r"different  from segment 1 on \(m02 generation 1\)"),
    "hyperparameter": (other_rate, r"different  from segment 2 on \(m01 generation 2\)"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_was_altered_is_named(planted: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = PLANTED[planted]
    alter(run, change)
    assert main([str(run), "--pair", PAIR, "--rank", "1"]) == 1
    told = capsys.readouterr().out
    assert re.search(message, told), told
    assert re.search(r"differs: .* of \d+ tensors, first ema/\S+ by up to", told), told
    splits = read_frame(only_replay(run) / "daily.parquet").column("split")
    assert set(splits.to_pylist()) == {"train", "validation"}  # another policy than the survivor: test stays unread


def test_the_first_daily_row_that_differs_is_named(undisturbed: Path) -> None:
    recorded = read_frame(undisturbed / "frames" / "daily.parquet", scenario="base", pair=PAIR, policy="survivor-1")
    assert first_difference(recorded, recorded) is None
    rows = recorded.to_pandas()
    rows.loc[[5, 9], "equity"] *= 1 + 1e-15
    ours = pa.Table.from_pandas(rows, recorded.schema)
    assert str(first_difference(recorded, ours)).startswith(f"in equity on {rows.date[5]} (test): ")
    assert first_difference(recorded, recorded.slice(1)) == f"in number: {len(rows) - 1}, recorded {len(rows)}"


def test_under_another_seed_it_is_another_survivor(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = run / "state" / "SYNA_SYNB.json"
    kept = state.read_text()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("torch: 2.", "torch: 1."))
    assert main([str(run), "--pair", "SYNA/SYNB", "--seed", "3", "--test"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"fitness    [+-]\d+\.\d\d under seed 3, recorded [+-]\d+\.\d\d", told), told
    assert re.search(r"warning    made with torch 1\.\S+ \(here 2\.", told), told
    assert re.search(r"test       Sharpe [+-]\d+\.\d\d, recorded", told), told
    found = only_replay(run)
    segments = read_frame(found / "segments.parquet").to_pandas()
    schedule = pd.read_parquet(run / "survivors" / "SYNA_SYNB" / "1" / "schedule.parquet")
    assert list(segments.hp_learning_rate) == list(schedule.hp_learning_rate)
    assert not set(segments.key) & set(schedule.key)
    assert not set(segments.state) & set(segments.recorded_state)
    events = read_frame(run / "frames" / "events.parquet").to_pandas()
    assert events.iloc[-1][["kind", "pair", "detail"]].to_list() == [
        "look",
        "SYNA/SYNB",
        "replay of survivor 1 under seed 3",
    ]
    daily = read_frame(found / "daily.parquet")
    assert daily.schema.equals(schema_of("daily"))
    assert set(daily.column("run").to_pylist()) == {f"{schedule.run[0]}-replay3"}
    assert state.read_text() == kept


MISTAKES = {
    "no run": (["nowhere", "--pair", PAIR], r"nowhere holds no run"),
    "no pair": (["RUN"], r"--pair"),
    "unknown pair": (["RUN", "--pair", "A/B"], r"--pair: 'A/B' is no pair of this run; choose one of SYNA/SYNB"),
    "unknown rank": (["RUN", "--pair", PAIR, "--rank", "9"], r"--rank: SYNC/SYND has survivors 1, 2, 3, not 9"),
    "no seed": (["RUN", "--pair", PAIR, "--seed", "-1"], r"--seed: -1 must be 0 or more"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISTAKES[mistake]
    assert main([str(undisturbed) if argument == "RUN" else argument for argument in arguments]) == 2
    told, errors = capsys.readouterr()
    assert told == ""
    assert re.search(message, errors)
    assert len(errors.splitlines()) == 1
    assert not (undisturbed / "replays").exists()


def test_a_lineage_with_a_hole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lose(rows: pd.DataFrame) -> None:
        rows.drop(rows.query("pair == @PAIR and generation == 0 and member == 'm02'").index, inplace=True)

    alter(run, lose)
    assert main([str(run), "--pair", PAIR]) == 2
    assert "the row of SYNC/SYND m02 after generation 0 is missing" in capsys.readouterr().err
