"""``python -m pbt.decide``: the orders of a survivor, from files or the embedded market, and mistakes in one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from analysis.frames import read_frame
from envs.synthetic import synthetic_pair
from pbt.decide import main
from rayconf.sections import SyntheticConfig
from tests.commands import environment
from tests.conftest import ROOT

PAIR = "SYNC/SYND"


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded market as files."""
    folder = tmp_path_factory.mktemp("prices")
    for bars, kind in zip(synthetic_pair(PAIR, SyntheticConfig(bars=1600)), ("csv", "parquet"), strict=True):
        columns = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
        table = pd.DataFrame({"Date": bars.dates, **columns})
        path = folder / f"{bars.ticker}.{kind}"
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    return folder


@pytest.fixture
def on_files(undisturbed: Path, tmp_path: Path) -> Path:
    """A survivor as if it had been trained on files."""
    folder = tmp_path / "survivors" / "SYNC_SYND" / "1"
    shutil.copytree(undisturbed / "survivors" / "SYNC_SYND" / "1", folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"]["dir"] = "somewhere"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def decided(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    told, errors = capsys.readouterr()
    assert errors == ""
    return json.loads(told)


def test_the_same_orders_from_files_as_from_the_market_itself(
    undisturbed: Path, on_files: Path, prices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survivor = str(undisturbed / "survivors" / "SYNC_SYND" / "1")
    held = ["--equity", "20000", "--holdings", "SYNC=-12.5,SYND=3"]
    found = decided(capsys, survivor, *held)
    assert decided(capsys, str(on_files), "--data-dir", str(prices), *held) == found
    # the first decision of the test span, in cash
    rows = read_frame(undisturbed / "frames" / "daily.parquet", scenario="base", pair=PAIR, policy="survivor-1")
    first = rows.to_pandas().query("split == 'test'").iloc[0]
    date = f"{first.decision_date:%Y-%m-%d}"
    early = decided(capsys, str(on_files), "--data-dir", str(prices), "--date", date)
    assert early["decision_date"] == date
    assert early["target_weights"] == {"SYNC": first.target_weight_a, "SYND": first.target_weight_b}
    assert early["equity"] == 10_000
    assert early["estimated_cost"] == pytest.approx(10_000 * first.trading_cost)
    assert not any((prices.parent / name).exists() for name in ("frames", "runs"))


def test_the_table_says_what_the_numbers_say(undisturbed: Path, tmp_path: Path) -> None:
    """The command as a user starts it, with a policy that wants more than its limit allows."""
    survivors = tmp_path / "survivors"
    shutil.copytree(undisturbed / "survivors" / "SYNC_SYND", survivors / "SYNC_SYND")
    for rank in (1, 2, 3):
        path = survivors / "SYNC_SYND" / str(rank) / "policy.safetensors"
        weights = load_file(path)
        weights["2.bias"] += torch.tensor([3.0, -3.0])
        save_file(weights, path)
    command = [sys.executable, "-m", "pbt.decide", str(survivors / "SYNC_SYND"), "--holdings", "SYND=5"]
    plain, told = (
        subprocess.run(
            [*command, *extra], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
        ).stdout
        for extra in ((), ("--json",))
    )
    found = json.loads(told)
    assert found["policy"] == "ensemble"
    assert sum(map(abs, found["target_weights"].values())) > 2
    assert sum(map(abs, found["weights"].values())) == pytest.approx(1.5)
    assert "decided    at the close of 1781-02-16; fills at the next open (lag 1)" in plain
    assert f"policy     {PAIR} ensemble" in plain
    assert "equity     10,000.00" in plain
    for name, field in (("current", "current_weights"), ("target", "target_weights"), ("capped", "weights")):
        a, b = found[field].values()
        assert re.search(rf"^{name} +{re.escape(f'{a:+.4f}')} +{re.escape(f'{b:+.4f}')} +\d", plain, re.M), plain
    assert [order["ticker"] for order in found["orders"]] == ["SYNC", "SYND"]
    total = 0.0
    for order in found["orders"]:
        line = f"order      {order['side']:4} {order['shares']:>14,.4f} {order['ticker']}, worth {order['value']:,.2f}"
        assert line in plain
        sign = 1 if order["side"] == "buy" else -1
        now = found["current_weights"][order["ticker"]] + sign * order["value"] / 10_000
        assert now == pytest.approx(found["weights"][order["ticker"]])
        assert order["value"] == pytest.approx(order["shares"] * found["close"][order["ticker"]])
        total += order["value"]
    assert found["estimated_cost"] == pytest.approx(2e-4 * total)
    assert f"cost       about {found['estimated_cost']:,.2f} (2 bps of what is traded)" in plain


def test_an_older_file_is_told(
    on_files: Path, prices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(prices, tmp_path / "prices")
    table = pd.read_csv(tmp_path / "prices" / "SYNC.csv")
    table.head(1500).to_csv(tmp_path / "prices" / "SYNC.csv", index=False)
    assert main([str(on_files), "--data-dir", str(tmp_path / "prices")]) == 0
    told = capsys.readouterr().out
    assert "warning    SYND has bars up to 1781-02-16; the last that both have is 1780-09-29" in told
    assert "at the close of 1780-09-29;" in told


MISTAKES = {
    "nowhere": (["nowhere"], r"nowhere is no folder"),
    "a run of several pairs": (["RUN"], r"survivors of several pairs; give one of"),
    "no prices": (["FILES"], r"--data-dir: missing; SYNC/SYND was trained on files"),
    "other tickers": (["PAIR", "--data-dir", "OTHER"], r"trades SYNC and SYND: .* has no SYNC\.csv .* it has KO"),
    "no number": (["PAIR", "--holdings", "SYNC=many"], r"--holdings: 'SYNC=many' must be TICKER=NUMBER"),
    "twice": (["PAIR", "--holdings", "SYNC=1,SYNC=2"], r"--holdings: 'SYNC=2' must be .* each ticker once"),
    "another ticker": (["PAIR", "--holdings", "KO=1"], r"--holdings: 'KO' is no leg of SYNC/SYND"),
    "pending": (["PAIR", "--pending", "SYNC=1"], r"pending must be left out; with lag 1"),
    "no money": (["PAIR", "--equity", "-3"], r"equity -3 must be positive"),
    "no such day": (["PAIR", "--date", "1780-09-30"], r"date 1780-09-30: the prices have no common bar of it"),
    "no date": (["PAIR", "--date", "today!"], r"date 'today!': write an ISO date"),
    "too early": (["PAIR", "--date", "1775-02-01"], r"23 common bars up to 1775-02-01 are too few"),
    "a flag": (["PAIR", "--verbose"], r"unrecognized arguments: --verbose; see python -m pbt\.decide --help"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    mistake: str, undisturbed: Path, on_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "KO.csv").write_text("date,open,high,low,close,volume\n2020-01-02,1,1,1,1,1\n")
    places = {
        "RUN": undisturbed,
        "PAIR": undisturbed / "survivors" / "SYNC_SYND",
        "FILES": on_files,
        "OTHER": tmp_path / "other",
    }
    arguments, message = MISTAKES[mistake]
    assert main([str(places.get(argument, argument)) for argument in arguments]) == 2
    told, errors = capsys.readouterr()
    assert told == ""
    assert re.search(message, errors), errors
    assert len(errors.splitlines()) == 1
    assert errors.startswith("pairpbt: ")


def test_real_prices(undisturbed: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A survivor of the embedded market, asked about real tickers in their place."""
    folder = tmp_path / "survivors" / "KO_PEP" / "1"
    shutil.copytree(undisturbed / "survivors" / "SYNC_SYND" / "1", folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"].update(dir="somewhere", pairs=["KO/PEP"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    found = decided(capsys, str(folder), "--data-dir", str(shared_data / "daily"))
    assert found["pair"] == "KO/PEP"
    assert np.isfinite(list(found["target_weights"].values())).all()
    assert all(price > 0 for price in found["close"].values())
