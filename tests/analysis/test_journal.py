import math
from pathlib import Path

import numpy as np
import pytest

from analysis.journal import append_jsonl, read_jsonl
from rayconf.errors import UserError


def test_rows_come_back_in_order_with_nan_as_null(tmp_path: Path) -> None:
    path = tmp_path / "state" / "progress.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, [{"a": np.float32(1.5), "b": np.int64(3)}, {"a": math.nan, "b": -math.inf}])
    append_jsonl(path, [])
    append_jsonl(path, [{"date": np.datetime64("2020-01-02T10:00", "us"), "deep": {"x": [np.nan, (1, None)]}}])
    assert read_jsonl(path) == [
        {"a": 1.5, "b": 3},
        {"a": None, "b": -math.inf},
        {"date": "2020-01-02T10:00:00", "deep": {"x": [None, [1, None]]}},
    ]


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_crash_at_any_byte_loses_at_most_the_torn_line(tmp_path: Path, whole: int) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"n": 0, "text": "brace } and \\n"}, {"n": 1}, {"n": 2, "deep": {"x": {}}}]
    append_jsonl(path, rows)
    content = path.read_bytes()
    lines = content.split(b"\n")
    start = sum(len(line) + 1 for line in lines[:whole])
    for cut in range(start, start + len(lines[whole]) + 1):
        path.write_bytes(content[:cut])
        complete = cut == start + len(lines[whole])
        expected = rows[: whole + complete]
        assert read_jsonl(path) == expected
        append_jsonl(path, [{"n": 9}])
        assert read_jsonl(path) == [*expected, {"n": 9}]


def test_a_long_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_jsonl(path, [{"n": 1}])
    with open(path, "ab") as stream:
        stream.write(b'{"x": "' + b"y" * 200_000)
    append_jsonl(path, [{"n": 2}])
    assert read_jsonl(path) == [{"n": 1}, {"n": 2}]


def test_damage_elsewhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: line 2 is no JSON object"):
        read_jsonl(path)
