"""A launch from the survivors of another run: killed, resumed without them, and replayed to the bit."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from analysis.frames import read_frame
from pbt.audit import main as audit
from pbt.launch import main
from pbt.manifest import Population
from pbt.replay import main as replay
from pbt.run_dir import RunDir
from pbt.store import StateStore
from rayconf.storage import LocalStorage
from tests.commands import MINUTES, SETTINGS, command, environment, in_one_process, launch, tiny
from tests.conftest import ROOT
from tests.hub_server import Hub, client

pytestmark = pytest.mark.usefixtures("alone")

PAIRS = ("SYNA/SYNB", "SYNC/SYND")
SPLIT = ("--set", "split.fractions=[0.55,0.22,0.23]")


@pytest.fixture(scope="module")
def based(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed when its populations had just begun, and resumed after its base was gone."""
    folder = tmp_path_factory.mktemp("based")
    base = folder / "base"
    shutil.copytree(undisturbed / "survivors", base / "survivors")
    arguments = tiny(folder, "--base-checkpoint", str(base), *SPLIT)
    run = RunDir(folder / "tiny")
    process = subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 5 * MINUTES
    while not all(run.manifest(pair).is_file() for pair in PAIRS):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(base)
    done = launch("--resume", "--run-dir", str(folder), "--name", "tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"report {run.report}"
    assert "SYNC/SYND: features keep the scale of the base checkpoint" in done.stdout
    return run.path


def test_every_member_starts_from_the_survivors_weights(based: Path, undisturbed: Path) -> None:
    lineage = read_frame(based / "frames" / "lineage.parquet").to_pandas().query("generation == 0")
    assert list(lineage.operation) == ["start"] * 6
    assert list(lineage.copied) == ["weights"] * 6
    store = StateStore(LocalStorage(based))
    for pair in PAIRS:
        best = undisturbed / "survivors" / pair.replace("/", "_") / "1"
        last = pd.read_parquet(best / "schedule.parquet").iloc[-1]
        rows = lineage.query("pair == @pair")
        assert set(rows.parent_member) == {f"{pair}:{last.member}:{last.generation + 1}"}
        assert rows.state.nunique() == 1
        assert rows.hp_learning_rate.nunique() == 3
        (digest,) = set(rows.state)
        assert digest in Population.read(RunDir(based).manifest(pair)).bases
        state, weights = store.load(digest), load_file(best / "policy.safetensors")
        for i in range(3):
            for kind in ("weight", "bias"):
                assert state[f"module/pi.{2 * i}.{kind}"].double().equal(weights[f"{i}.{kind}"])
        for rank in (1, 2, 3):
            ours = based / "survivors" / pair.replace("/", "_") / str(rank)
            assert (ours / "scaler.json").read_text() == (best / "scaler.json").read_text()
    stages = yaml.safe_load((based / "config.yaml").read_text())["stages"]
    assert stages["base"].endswith("/base")
    assert re.fullmatch("[0-9a-f]{16}", stages["base_digest"])
    events = read_frame(based / "frames" / "events.parquet").to_pandas()
    assert any(re.search(r"trained with other splits or prices", detail) for detail in events.detail)


@pytest.mark.parametrize("pair", PAIRS)
def test_its_survivors_replay_to_the_bit(
    pair: str, based: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(based, run)
    assert replay([str(run), "--pair", pair]) == 0
    assert "equal      every segment" in capsys.readouterr().out
    segments = pd.read_parquet(next((run / "replays").iterdir()) / "segments.parquet")
    assert segments.start[0] in Population.read(RunDir(run).manifest(pair)).bases
    scaler = run / "base" / "SYNA_SYNB" / "scaler.json"
    scaler.write_text(json.dumps(json.loads(scaler.read_text()) | {"limit": 4.0}))
    assert replay([str(run), "--pair", pair]) == 2
    assert "base: is not what the run started from" in capsys.readouterr().err


def test_what_it_learned_saw_no_later_bar(based: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The audit does not take the survivor's scaler for one that saw too much."""
    run = tmp_path / "tiny"
    shutil.copytree(based, run)
    assert audit([str(run), "--lookahead", "--pair", "SYNA/SYNB", "--bars", "6"]) == 0, capsys.readouterr()


def test_published_it_is_used_as_from_its_directory(based: Path, tmp_path: Path) -> None:
    """By ``decide`` and as the base of another launch, over the real client and a hub on loopback."""
    base, one = "hf://trader/based", "hf://trader/based/survivors/SYNA_SYNB/1"
    plan = ("pbt.launch", *tiny(tmp_path), "--dry-run", "--base-checkpoint")
    with Hub() as hub:
        pushed, here, there, planned, of_one, gone = in_one_process(
            client(hub.url, tmp_path / "home"),
            ("pbt.publish", str(based), "--repo", "trader/based"),
            ("pbt.decide", f"{based}/survivors/SYNC_SYND"),
            ("pbt.decide", f"{base}/survivors/SYNC_SYND"),
            (*plan, base),
            (*plan, one),
            (*plan, "hf://trader/gone"),
        )
    assert pushed.returncode == 0, pushed.stderr
    assert there.returncode == 0, there.stderr
    assert here.stdout == there.stdout != ""
    assert planned.returncode == 0, planned.stderr
    assert "SYNA/SYNB: features keep the scale of the base checkpoint" in planned.stdout
    assert of_one.returncode == 0, of_one.stderr
    assert gone.returncode == 2
    assert "--base-checkpoint: hf://trader/gone: no such repository" in gone.stderr


def test_a_finished_run_needs_its_base_no_more(based: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", "--run-dir", str(based.parent), "--name", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("complete; report")
    assert main(["--resume", "--run-dir", str(based.parent), "--name", "tiny", "--base-checkpoint", "other"]) == 2
    assert "--resume: stages.base was" in capsys.readouterr().err


def test_a_plan_says_what_it_would_start_from(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = undisturbed / "survivors" / "SYNC_SYND" / "1"
    assert main([*tiny(tmp_path), "--base-checkpoint", str(one), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert all(f"{pair}: features keep the scale of the base checkpoint" in told for pair in PAIRS)
    assert main([*tiny(tmp_path), "--base-checkpoint", str(one), "--set", "synthetic.bars=900"]) == 2
    assert "900 bars are too few" in capsys.readouterr().err  # to train on, whoever fitted the scaler
    assert not (tmp_path / "tiny").exists()


MISTAKES: Mapping[str, tuple[list[str], str]] = {
    "nowhere": (["nowhere"], r"nowhere is no folder"),
    "no run": (["EMPTY"], r"neither a finished run nor one survivor's folder"),
    "a pair's folder": (["PAIR"], r"neither a finished run nor one survivor's folder"),
    "other pairs": (["RUN", "--pairs", "SYNA/SYNB,A/B"], r"has no survivor of A/B; leave them out of --pairs"),
    "width": (["RUN", "--set", "network.hidden=[16, 8]"], r"network\.hidden: \[16, 8\] does not fit .* \[16, 16\]"),
    "activation": (["RUN", "--set", "network.activation=silu"], r"network\.activation: silu .* with tanh"),
    "norms": (["RUN", "--set", "network.layer_norm=true"], r"network\.layer_norm: True does not fit .* with False"),
    "legs": (["RUN", "--set", "network.legs=shared"], r"network\.legs: shared does not fit .* with joint"),
    "encoder": (["RUN", "--set", "network.encoder=conv"], r"network\.encoder: conv does not fit .* with mlp"),
    "window": (["RUN", "--set", "features.volatility_window=42"], r"features\.volatility_window: 42 .* with 21"),
    "features": (["RUN", "--set", "features.calendar=false"], r"features\.calendar: False .* with True"),
    "mapping": (["RUN", "--set", "env.mapping=neutral"], r"env\.mapping: neutral .* with direct"),
    "leverage": (["RUN", "--set", "costs.leverage=2"], r"costs\.leverage: 2\.0 .* with 1\.5"),
    "cap": (["RUN", "--set", "env.leverage_cap=1"], r"env\.leverage_cap: 1\.0 .* with None"),
    "drawdown": (["RUN", "--set", "env.risk_measure=drawdown"], r"env\.risk_measure: drawdown .* with variance"),
    "pooled": (
        ["RUN", "--set", "pbt.pooled=true", "--set", "universe.pairs=SYNA/SYNB"],
        r"its pairs have survivors of their own, and with pbt\.pooled all start from one",
    ),
    "damaged": (["DAMAGED"], r"SYNA_SYNB/1: no readable survivor"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_no_run(
    mistake: str, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (base, *more), message = MISTAKES[mistake]
    (tmp_path / "empty").mkdir()
    shutil.copytree(undisturbed / "survivors", tmp_path / "damaged" / "survivors")
    (tmp_path / "damaged" / "survivors" / "SYNA_SYNB" / "1" / "policy.json").write_text("{")
    places = {
        "RUN": undisturbed,
        "EMPTY": tmp_path / "empty",
        "PAIR": undisturbed / "survivors" / "SYNA_SYNB",
        "DAMAGED": tmp_path / "damaged",
    }
    arguments = ["--preset", "smoke", "--run-dir", str(tmp_path / "runs"), "--name", "new", *SETTINGS]
    assert main([*arguments, "--base-checkpoint", str(places.get(base, base)), *more]) == 2
    told, errors = capsys.readouterr()
    assert told == ""
    assert re.search(message, errors), errors
    assert errors.startswith("pairpbt: --base-checkpoint: ")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
