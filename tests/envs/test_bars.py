"""Reading price files: what is accepted, what is refused with file and row, and joins."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs.bars import Bars, infer_bars_per_year, is_intraday, join_bars, load_bars, resolve_directory, sessions
from rayconf import UserError
from rayconf.sections import DataConfig

HEADER = "date,open,high,low,close,volume"
ROWS = (
    "2020-01-02,10,11,9,10.5,100",
    "2020-01-03,10.5,12,10,11,0",
    "2020-01-06,11,11.5,10.25,10.75,300",
)
OPEN = DataConfig()
CLOSE = DataConfig(fill="close")


def write(folder: Path, text: str, name: str = "AAA.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def lines(*rows: str, header: str = HEADER) -> str:
    return "\n".join((header, *rows)) + "\n"


def frame(rows: tuple[str, ...] = ROWS) -> pd.DataFrame:
    table = pd.DataFrame([row.split(",") for row in rows], columns=HEADER.split(","))
    numbers = {name: table[name].astype(float) for name in table.columns[1:]}
    return pd.DataFrame({"date": pd.to_datetime(table["date"]), **numbers})


def assert_same(one: Bars, other: Bars) -> None:
    for field in ("dates", "open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


def failure(folder: Path, data: DataConfig = OPEN, ticker: str = "AAA") -> str:
    with pytest.raises(UserError) as caught:
        load_bars(folder, ticker, data)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, lines(*ROWS))
    bars = load_bars(tmp_path, "AAA", OPEN)
    assert bars.ticker == "AAA"
    assert bars.dates.dtype == np.dtype("datetime64[us]")
    assert [str(day) for day in bars.dates.astype("datetime64[D]")] == ["2020-01-02", "2020-01-03", "2020-01-06"]
    for name, expected in {
        "open": [10, 10.5, 11],
        "high": [11, 12, 11.5],
        "low": [9, 10, 10.25],
        "close": [10.5, 11, 10.75],
        "volume": [100, 0, 300],
    }.items():
        assert getattr(bars, name).dtype == np.float64
        assert getattr(bars, name).tolist() == expected


@pytest.mark.parametrize("date", ["Date", "date", "DATETIME", "Timestamp", " date "])
@pytest.mark.parametrize("style", [str.upper, str.capitalize, lambda name: f" {name}_"])
def test_column_names_in_any_shape_and_order(tmp_path: Path, date: str, style) -> None:
    write(tmp_path, lines(*ROWS), "AAA.csv")
    reference = load_bars(tmp_path, "AAA", OPEN)
    order = [4, 0, 2, 1, 5, 3]
    names = [date, *(style(name) for name in HEADER.split(",")[1:])]
    shuffled = [",".join(row.split(",")[i] for i in order) + ",x" for row in ROWS]
    write(tmp_path, lines(*shuffled, header=",".join(names[i] for i in order) + ",Comment"), "BBB.CSV")
    assert_same(load_bars(tmp_path, "BBB", OPEN), reference)


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "AAA.csv").write_bytes(
        b"\xef\xbb\xbf" + lines(*ROWS[:2], "", ROWS[2], "").replace("\n", "\r\n").encode()
    )
    write(tmp_path, lines(*ROWS), "BBB.csv")
    assert_same(load_bars(tmp_path, "AAA", OPEN), load_bars(tmp_path, "BBB", OPEN))


def test_parquet_equals_csv_to_the_bit(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    table = frame().loc[[0] * 200].reset_index(drop=True)
    table["date"] = pd.date_range("2020-01-01", periods=200)
    table["close"] = generator.uniform(9, 11, 200)
    table["open"] = generator.uniform(9, 11, 200)
    table.to_csv(tmp_path / "AAA.csv", index=False)
    reference = load_bars(tmp_path, "AAA", OPEN)
    variants = {
        "column": table,
        "index": table.set_index("date"),
        "nameless": table.set_index("date").rename_axis(None),
        "textindex": table.assign(date=table["date"].astype(str)).set_index("date"),
        "text": table.astype(str),
        "days": table.assign(date=table["date"].dt.date),
    }
    for name, variant in variants.items():
        variant.to_parquet(tmp_path / f"{name.upper()}.parquet")
        assert_same(load_bars(tmp_path, name.upper(), OPEN), reference)


def test_adjusted_close_scales_prices_or_is_ignored(tmp_path: Path) -> None:
    adjusted = [1.7, 6.1, 7.1]  # factors that do not round back to the adjusted close
    rows = (f"{row},{value}" for row, value in zip(ROWS, adjusted, strict=True))
    write(tmp_path, lines(*rows, header=f"{HEADER},Adj Close"))
    raw = load_bars(tmp_path, "AAA", DataConfig(adjust=False))
    assert raw.close.tolist() == [10.5, 11, 10.75]
    scaled = load_bars(tmp_path, "AAA", DataConfig(adjust=True))
    assert scaled.close.tolist() == adjusted
    for name in ("open", "high", "low"):
        np.testing.assert_allclose(
            getattr(scaled, name) / getattr(raw, name), np.array(adjusted) / raw.close, rtol=1e-15
        )
    assert scaled.volume.tolist() == raw.volume.tolist()


def test_closes_only_need_fill_close(tmp_path: Path) -> None:
    write(tmp_path, lines("2020-01-02,10,8", "2020-01-03,11,8.8", header="Date,Close,adj_close"))
    text = failure(tmp_path)
    assert "missing columns: open, high, low, volume" in text
    assert "data.fill=close" in text
    bars = load_bars(tmp_path, "AAA", CLOSE)
    for name in ("open", "high", "low", "close"):
        np.testing.assert_allclose(getattr(bars, name), [8, 8.8])
    assert bars.volume.tolist() == [1, 1]
    # a full file keeps its own open, high and low
    write(tmp_path, lines(*ROWS), "BBB.csv")
    assert_same(load_bars(tmp_path, "BBB", CLOSE), load_bars(tmp_path, "BBB", OPEN))


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        # intraday: to UTC, across the change of New York's clocks
        (["2020-03-06T09:30:00-05:00", "2020-03-09T09:30:00-04:00"], ["2020-03-06T14:30", "2020-03-09T13:30"]),
        (["2020-03-06T14:30:00Z", "2020-03-09 13:30:00+0000"], ["2020-03-06T14:30", "2020-03-09T13:30"]),
        # daily bars stamped at local midnight keep their date, west and east of Greenwich
        (["2020-03-06 00:00:00-05:00", "2020-03-09 00:00:00-04:00"], ["2020-03-06T00:00", "2020-03-09T00:00"]),
        (["2020-03-06T00:00:00+09:00", "2020-03-09T00:00:00+09:00"], ["2020-03-06T00:00", "2020-03-09T00:00"]),
        (["20200306", "20200309"], ["2020-03-06T00:00", "2020-03-09T00:00"]),
    ],
)
def test_time_zones(tmp_path: Path, stamps: list[str], expected: list[str]) -> None:
    write(tmp_path, lines(*(f"{stamp},10,11,9,10,1" for stamp in stamps)))
    assert load_bars(tmp_path, "AAA", OPEN).dates.astype("datetime64[m]").astype(str).tolist() == expected


@pytest.mark.parametrize(("hour", "expected"), [("00:00", "2020-03-06T00:00"), ("09:30", "2020-03-06T14:30")])
def test_time_zones_of_parquet(tmp_path: Path, hour: str, expected: str) -> None:
    dates = pd.DatetimeIndex([f"2020-03-06 {hour}", f"2020-03-09 {hour}"]).tz_localize("America/New_York")
    frame(ROWS[:2]).drop(columns="date").set_index(dates).to_parquet(tmp_path / "AAA.parquet")
    assert str(load_bars(tmp_path, "AAA", OPEN).dates[0].astype("datetime64[m]")) == expected


BAD_ROWS = {
    "no date": (",11,11.5,10,11,3", "is no ISO 8601 date"),
    "day first": ("31/12/2020,11,11.5,10,11,3", "'31/12/2020' is no ISO 8601 date"),
    "a word pandas reads": ("today,11,11.5,10,11,3", "'today' is no ISO 8601 date"),
    "epoch seconds": ("1578268800,11,11.5,10,11,3", "is no ISO 8601 date"),
    "no such day": ("2020-02-30,11,11.5,10,11,3", "is no ISO 8601 date"),
    "zone on one row": ("2020-01-06T00:00:00Z,11,11.5,10,11,3", "time zone"),
    "duplicate": ("2020-01-03,11,11.5,10,11,3", "duplicate date 2020-01-03"),
    "unsorted": ("2020-01-01,11,11.5,10,11,3", "sort ascending"),
    "missing price": ("2020-01-06,11,11.5,10,,3", "close is missing"),
    "NaN price": ("2020-01-06,nan,11.5,10,11,3", "open is 'nan'"),
    "word price": ("2020-01-06,11,null,10,11,3", "high is 'null'"),
    "infinite price": ("2020-01-06,11,11.5,10,inf,3", "close is 'inf'"),
    "zero price": ("2020-01-06,11,11.5,0,11,3", "low is '0'"),
    "negative price": ("2020-01-06,-11,11.5,10,11,3", "open is '-11'"),
    "missing volume": ("2020-01-06,11,11.5,10,11,", "volume is missing"),
    "negative volume": ("2020-01-06,11,11.5,10,11,-3", "volume is '-3'"),
    "high below low": ("2020-01-06,11,9.5,10,11,3", "high 9.5 is below low 10"),
    "short row": ("2020-01-06,11,11.5,10,11", "5 fields where the header has 6"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_csv_row_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    row, problem = BAD_ROWS[name]
    # header is row 1, a blank line counts as the row it is
    path = write(tmp_path, lines(ROWS[0], "", ROWS[1], row))
    text = failure(tmp_path)
    assert text.startswith(f"{path}: row 5: ")
    assert problem in text


@pytest.mark.parametrize("name", [name for name in BAD_ROWS if name not in ("short row", "word price")])
def test_a_bad_parquet_row_is_refused_with_its_number(tmp_path: Path, name: str) -> None:
    row, _ = BAD_ROWS[name]
    table = pd.DataFrame([x.split(",") for x in (*ROWS[:2], row)], columns=HEADER.split(","))
    for column in HEADER.split(",")[1:]:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    table.to_parquet(tmp_path / "AAA.parquet")
    assert f"{tmp_path / 'AAA.parquet'}: data row 3: " in failure(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file is empty"),
        (f"{HEADER}\n", "no rows"),
        (lines(*ROWS, header="day,open,high,low,last,volume"), "missing columns: date, close (found: day, open"),
        (lines(*(f"{row},1" for row in ROWS), header=f"{HEADER},CLOSE"), "several columns are called 'close'"),
        (lines(*(f"{row},1" for row in ROWS), header=f"{HEADER},timestamp"), "several date columns (date, timestamp)"),
        (lines(*(f"{row},0" for row in ROWS), header=f"{HEADER},AdjClose"), "row 2: adjclose is '0'"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, text)
    assert str(path) in failure(tmp_path)
    assert problem in failure(tmp_path)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "AAA.csv").write_bytes(lines(*ROWS).encode() + b"\xff\xfe\x00")
    assert "cannot be read as UTF-8 CSV" in failure(tmp_path)
    (tmp_path / "BBB.parquet").write_bytes(b"no parquet")
    assert "BBB.parquet: cannot be read as Parquet" in failure(tmp_path, ticker="BBB")


def test_missing_and_ambiguous_files(tmp_path: Path) -> None:
    assert "is no directory" in failure(tmp_path / "nowhere")
    assert "no CSV or Parquet file" in failure(tmp_path)
    write(tmp_path, lines(*ROWS), "AAPL.csv")
    assert "no APPL.csv or APPL.parquet; did you mean AAPL?" in failure(tmp_path, ticker="APPL")
    assert "did you mean AAPL?" in failure(tmp_path, ticker="aapl")
    assert "it has AAPL" in failure(tmp_path, ticker="ZZZ")
    frame().to_parquet(tmp_path / "AAPL.parquet")
    assert "has AAPL.csv and AAPL.parquet" in failure(tmp_path, ticker="AAPL")


@pytest.mark.parametrize("ticker", ["../AAA", "sub/AAA", "", "AAA\n", ".AAA", "A_B", "A" * 17, "A*"])
def test_a_ticker_that_is_no_plain_name_builds_no_path(tmp_path: Path, ticker: str) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    write(tmp_path, lines(*ROWS))
    write(folder, lines(*ROWS))
    assert "is no plain name" in failure(folder, ticker=ticker)
    with pytest.raises(UserError, match="is no plain name"):
        resolve_directory(DataConfig(dir=str(folder)), [ticker])


def test_resolve_directory(tmp_path: Path) -> None:
    assert resolve_directory(DataConfig(dir=str(tmp_path)), ["AAA"]) == tmp_path
    with pytest.raises(UserError, match="is no directory"):
        resolve_directory(DataConfig(dir=str(tmp_path / "x")), ["AAA"])
    with pytest.raises(UserError, match="write hf://datasets/OWNER/NAME"):
        resolve_directory(DataConfig(dir="hf://models/owner/name"), ["AAA"])


def test_a_hub_dataset_that_cannot_be_fetched_is_one_line(tmp_path: Path) -> None:
    code = (
        "from envs.bars import resolve_directory\n"
        "from rayconf.sections import DataConfig\n"
        "from rayconf import UserError\n"
        "try: resolve_directory(DataConfig(dir='hf://datasets/owner/name'), ['AAA'])\n"
        "except UserError as error: print(error)\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("data.dir: hf://datasets/owner/name: cannot be fetched from the hub: ")
    assert done.stdout.count("\n") == 1


def bars_on(dates: np.ndarray, ticker: str = "AAA") -> Bars:
    values = np.arange(1.0, len(dates) + 1)
    return Bars(ticker, dates.astype("datetime64[us]"), values, values, values, values, values)


def test_join_keeps_common_dates_only() -> None:
    days = np.datetime64("2020-01-01") + np.arange(10)
    a, b, report = join_bars(bars_on(days[:8]), bars_on(np.delete(days[2:], 3), "BBB"))
    assert a.dates.tolist() == b.dates.tolist() == days[[2, 3, 4, 6, 7]].astype("datetime64[us]").tolist()
    assert a.close.tolist() == [3, 4, 5, 7, 8]
    assert b.close.tolist() == [1, 2, 3, 4, 5]
    assert (report.kept, report.dropped_a, report.dropped_b) == (5, 3, 2)
    assert report.text == "5 common bars, 2020-01-03 .. 2020-01-08; dropped 3 of AAA and 2 of BBB"
    with pytest.raises(UserError, match="AAA/BBB: the files have no date in common"):
        join_bars(bars_on(days[:3]), bars_on(days[5:], "BBB"))


def test_bars_per_year_and_sessions() -> None:
    days = np.arange(np.datetime64("2020-01-01"), np.datetime64("2020-12-31"))
    business = days[np.is_busday(days)]
    assert infer_bars_per_year(business) == 252
    assert infer_bars_per_year(days) == 365
    # one stray Saturday and Sunday do not make a market that never closes
    assert infer_bars_per_year(np.sort(np.concatenate([business, days[3:5]]))) == 252
    # Sunday to Friday is no market that never closes
    assert infer_bars_per_year(days[np.is_busday(days, weekmask="1111101")]) == 252
    hours = (days[:, None] + np.arange(24).astype("timedelta64[h]")).ravel()
    assert infer_bars_per_year(hours) == 24 * 365
    assert is_intraday(hours)
    assert not is_intraday(business)
    session = sessions(hours[5:])
    assert session.dtype == np.int32
    assert session.tolist() == [0] * 19 + [i for i in range(1, len(days)) for _ in range(24)]
    with pytest.raises(UserError, match=r"7 days apart.*data\.bars_per_year"):
        infer_bars_per_year(days[::7])


@pytest.mark.parametrize(("folder", "expected"), [("daily", 252), ("daily_ibkr", 252), ("hourly_ibkr", 1764)])
def test_real_files_load(shared_data: Path, folder: str, expected: float) -> None:
    tickers = sorted(path.stem for path in (shared_data / folder).glob("*.csv"))
    for ticker in tickers:
        bars = load_bars(shared_data / folder, ticker, OPEN)
        assert infer_bars_per_year(bars.dates) == expected
        assert (np.maximum(bars.open, bars.close) <= bars.high).all()
