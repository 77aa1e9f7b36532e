import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import columns, frames
from rayconf.errors import UserError

ROW = {
    "window": 0,
    "pair": "AAA/BBB",
    "member": "m00",
    "generation": 1,
    "date": np.datetime64("2020-01-02T00:00", "us"),
    "net_return": 0.01,
}


def write(rows, path: Path, frame: str = "validation", names: tuple[str, ...] = ()) -> pa.Table:
    return frames.write_frame(rows, frames.schema_of(frame, names), frames.KEYS[frame], path)


# Written out from the interface contract, so that a renamed or moved column fails here.
CONTRACT = {
    "progress": """run arm window pair member generation iteration env_steps fitness fitness_se fitness_smoothed
        val_sharpe train_sharpe reward_mean policy_loss value_loss entropy kl clip_fraction explained_variance grad_norm
        lr_first_step hp_x hp_y env_seconds policy_seconds learner_seconds evaluation_seconds checkpoint_seconds
        switch_seconds wait_seconds startup_seconds steps_per_second wall_time host actor_pid attempt""",
    "lineage": """run arm window pair generation member operation parent_member parent_generation copied fitness
        fitness_se parent_fitness gap gap_se hp_x hp_y old_hp_x old_hp_y key state""",
    "diversity": """run arm window pair generation ancestors members spread_x spread_y exploits explores
        migrations""",
    "validation": "window pair member generation date net_return",
    "daily": """run window split scenario pair policy decision_date date target_weight_a target_weight_b weight_a
        weight_b gross turnover trading_cost financing net_return equity""",
    "summary": """run window split scenario pair policy kind rank member generation cost_bps lag days avg_daily_return
        annualized_return cumulative_return final_value annualised_sharpe avg_turnover max_drawdown cagr volatility
        sortino calmar cvar_95 gross_exposure cost_paid alpha beta sharpe_ci_low sharpe_ci_high deflated_sharpe""",
    "events": "run wall_time seq kind window pair member generation detail",
}


@pytest.mark.parametrize("frame", list(CONTRACT))
def test_the_interfaces_columns(frame: str) -> None:
    assert frames.schema_of(frame, ["x", "y"]).names == CONTRACT[frame].split()


@pytest.mark.parametrize("frame", list(columns.FRAMES))
def test_every_schema_is_versioned_documented_and_holds_its_key(frame: str) -> None:
    schema = frames.schema_of(frame, ["learning_rate"])
    assert schema.metadata == {b"pairpbt.schema": b"1"}
    assert set(frames.KEYS[frame]) <= set(schema.names)
    for field in schema:
        assert columns.describe(frame, field.name).meaning
        assert field.type in {pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us")}
    if frame in ("lineage", "daily", "summary"):
        clocks = [name for name in schema.names if name == "wall_time" or "second" in name]
        assert not clocks
    assert f"`{schema.names[0]}`" in columns.markdown(frame)


def test_rows_are_sorted_nan_is_null_and_there_is_no_index(tmp_path: Path) -> None:
    rows = [
        {**ROW, "member": "m10", "net_return": math.nan},
        {**ROW, "member": "m02", "date": np.datetime64("2020-01-03", "us")},
        {**ROW, "member": "m02"},
    ]
    path = tmp_path / "frames" / "validation.parquet"
    write(rows, path)
    found = frames.read_frame(path)
    assert found.column("member").to_pylist() == ["m02", "m02", "m10"]
    assert found.column("net_return").to_pylist() == [0.01, 0.01, None]
    assert found.column("date").to_pylist()[:2] == [pd.Timestamp("2020-01-02"), pd.Timestamp("2020-01-03")]
    assert found.schema.metadata == {b"pairpbt.schema": b"1"}
    assert pq.read_metadata(path).schema.to_arrow_schema().metadata == {b"pairpbt.schema": b"1"}
    assert [file.name for file in path.parent.iterdir()] == ["validation.parquet"]
    assert frames.read_frame(path, ["net_return"], member="m10").to_pydict() == {"net_return": [None]}


@given(st.permutations(range(12)))
@settings(deadline=None, max_examples=15)
def test_equal_content_is_equal_bytes_whatever_the_order_and_shape(tmp_path_factory, order: list[int]) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    rows = [
        {**ROW, "generation": i % 3, "member": f"m{i // 3:02d}", "net_return": None if i == 4 else i / 7}
        for i in range(12)
    ]
    write(rows, folder / "a.parquet")
    expected = (folder / "a.parquet").read_bytes()
    shuffled = [rows[i] for i in order]
    data = pd.DataFrame(shuffled)
    chunks = pa.concat_tables(
        [pa.Table.from_pylist(part, frames.validation_schema()) for part in (shuffled[:5], shuffled[5:])]
    )
    for form in (shuffled, data, {name: data[name].to_numpy() for name in data}, chunks):
        write(form, folder / "b.parquet")
        assert (folder / "b.parquet").read_bytes() == expected


def test_a_block_of_rows_that_share_their_identity(tmp_path: Path) -> None:
    dates = np.arange(np.datetime64("2020-01-01"), np.datetime64("2020-01-06"))
    shared = {"window": 0, "pair": "AAA/BBB", "generation": 2}
    parts = [
        frames.frame_block(
            frames.validation_schema(),
            {**shared, "member": member},
            {"date": dates, "net_return": np.array([0.1, np.nan, 0, 0, 0])},
        )
        for member in ("m01", "m00")
    ]
    table = write(pa.concat_tables(parts), tmp_path / "v.parquet")
    assert table.column("member").to_pylist() == ["m00"] * 5 + ["m01"] * 5
    assert table.column("net_return").null_count == 2
    slices = frames.group_slices(table, ["pair", "member"])
    assert slices == [(("AAA/BBB", "m00"), slice(0, 5)), (("AAA/BBB", "m01"), slice(5, 10))]
    with pytest.raises(ValueError, match="no such column: net"):
        frames.frame_block(frames.validation_schema(), shared, {"net": dates})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, ROW], "not unique.*m00"),
        ([ROW, {**ROW, "member": "m01"}, {**ROW, "net_return": 0.5}], "not unique.*m00"),
        ([{**ROW, "member": None}], "member holds a null"),
        ([{**ROW, "netreturn": 1.0}], "no such column: netreturn"),
    ],
)
def test_wrong_rows_are_refused_and_nothing_is_written(tmp_path: Path, rows: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(rows, tmp_path / "v.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_word_outside_the_contract_is_refused(tmp_path: Path) -> None:
    row = {"window": 0, "pair": "A/B", "generation": 0, "member": "m00", "operation": "copy"}
    with pytest.raises(ValueError, match=r"operation: .'copy'. is not one of"):
        write([row], tmp_path / "l.parquet", "lineage", ("x",))
    write([{**row, "operation": "explore", "hp_x": 1, "old_hp_x": math.nan}], tmp_path / "l.parquet", "lineage", ("x",))
    assert frames.read_frame(tmp_path / "l.parquet").column("old_hp_x").to_pylist() == [None]


def test_a_reader_of_the_old_frame_is_not_disturbed_and_nan_in_a_table_is_null(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    write([ROW], path)
    os.link(path, tmp_path / "held")
    before = path.read_bytes()
    write(pa.Table.from_pylist([{**ROW, "net_return": math.nan}], frames.validation_schema()), path)
    assert (tmp_path / "held").read_bytes() == before
    assert frames.read_frame(path).column("net_return").null_count == 1


def test_chunks_leave_no_trace_in_a_long_frame(tmp_path: Path) -> None:
    dates = np.arange(np.datetime64("2000-01-01"), np.datetime64("2000-01-01") + 9000)
    returns = np.random.default_rng(0).normal(size=9000)
    constants = {"window": 0, "pair": "A/B", "member": "m00", "generation": 0}
    whole = frames.frame_block(frames.validation_schema(), constants, {"date": dates, "net_return": returns})
    parts = pa.concat_tables([whole.slice(start, 700) for start in range(0, 9000, 700)])
    write(whole, tmp_path / "a.parquet")
    write(parts, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_failed_write_leaves_the_old_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.parquet"
    write([ROW], path)
    before = path.read_bytes()

    def full(table: pa.Table, where: Path, **_: object) -> None:
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        write([{**ROW, "member": "m07"}], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_reading_what_is_no_frame(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"daily\.parquet: missing"):
        frames.read_frame(tmp_path / "daily.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"bad\.parquet: cannot be read"):
        frames.read_frame(tmp_path / "bad.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet: schema none; this version reads schema 1"):
        frames.read_frame(tmp_path / "other.parquet")


def test_an_empty_frame_and_rows_from_json(tmp_path: Path) -> None:
    assert write([], tmp_path / "v.parquet").num_rows == 0
    assert frames.read_frame(tmp_path / "v.parquet").schema.names == frames.validation_schema().names
    table = write([{**ROW, "date": "2020-01-02T15:30:00"}], tmp_path / "v.parquet")
    assert table.column("date").to_pylist() == [pd.Timestamp("2020-01-02 15:30")]


def test_keep_last() -> None:
    rows = [{"a": 1, "v": 0}, {"a": 2, "v": 1}, {"a": 1, "v": 2}]
    assert frames.keep_last(rows, ["a"]) == [{"a": 1, "v": 2}, {"a": 2, "v": 1}]
