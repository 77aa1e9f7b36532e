"""A launch with all stages: logged by every tracker, resumed, replayed, published, and the base of another launch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from analysis.frames import read_frame, read_jsonl
from pbt.launch import main
from pbt.manifest import Population
from pbt.replay import main as replay
from pbt.run_dir import RunDir
from pbt.store import StateStore
from rayconf.storage import LocalStorage
from tests.commands import launch, tiny
from tests.conftest import ROOT
from tests.hub_server import Hub, client
from tests.pbt.wandb_logs import logs

pytestmark = pytest.mark.usefixtures("alone")

PAIR = "SYNA/SYNB"
NETWORK = [
    word
    for setting in (
        *("network.encoder=conv", "network.encoder_window=6", "network.encoder_width=8", "stages.epochs=2"),
        *("stages.specialist_epochs=1", "pbt.population=2", "pbt.survivors=1", "resources.cpus=1"),
    )
    for word in ("--set", setting)
]


def arguments(folder: Path, *more: str) -> list[str]:
    return tiny(folder, *NETWORK, "--pairs", PAIR, *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages in one launch, the encoder frozen."""
    folder = tmp_path_factory.mktemp("whole")
    stages = ("--stages", "base,specialists,population", "--set", "stages.encoder=frozen")
    done = launch(*arguments(folder, *stages, "--wandb", "offline"))
    assert done.returncode == 0, done.stderr
    assert (
        "stages     base, specialists, population; populations start from a pre-trained encoder, frozen" in done.stdout
    )
    assert re.search(r"base +epoch 2/2  loss 0\.\d+  naive 0\.\d+  skill [+-]0\.\d+\n", done.stdout)
    assert re.search(r"specialist SYNA/SYNB  loss .* gain .* (not )?kept", done.stdout)
    return folder / "tiny"


def test_the_base_stage_leaves_checkpoint_report_and_logs(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = read_jsonl(whole / "base" / "journal.jsonl")
    about = json.loads((whole / "base" / "base.json").read_text())
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert (about["loss"], about["last_loss"]) == (min(row["loss"] for row in rows), rows[-1]["loss"])
    report = (whole / "base" / "run_report.md").read_text()
    assert all(text in report for text in ("| best |", "| final |", "naive forecast", "# Specialists"))
    drawn = EventAccumulator(str(whole / "tensorboard" / "base-encoder"))
    drawn.Reload()
    assert [event.value for event in drawn.Scalars("loss")] == pytest.approx([row["loss"] for row in rows], rel=1e-6)
    assert [event.step for event in drawn.Scalars("skill")] == [row["env_steps"] for row in rows]
    found = logs(whole)
    assert found["base-encoder"].steps == [0, 1, 2]
    assert [row["loss"] for row in found["base-encoder"].history] == pytest.approx([row["loss"] for row in rows])
    assert found["SYNA_SYNB-specialist"].steps == [0, 1]
    assert found["base-encoder"].exit_code == 0


def test_survivors_have_the_frozen_encoder_and_replay_to_the_bit(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    special = json.loads((whole / "base" / "SYNA_SYNB" / "specialist.json").read_text())
    origin = "specialist" if special["kept"] else "base"
    encoder = load_file(whole / "base" / ("SYNA_SYNB" if special["kept"] else ".") / "encoder.safetensors")
    lineage = read_frame(whole / "frames" / "lineage.parquet").to_pandas().query("generation == 0")
    assert set(lineage.parent_member) == {origin}
    assert set(lineage.copied) == {"weights"}
    population = Population.read(RunDir(whole).manifest(PAIR))
    store = StateStore(LocalStorage(whole))
    for snapshot in population.archive:
        state = store.load(snapshot.state)
        for name, weight in encoder.items():
            if name.startswith("encoder."):
                assert state[f"module/{name}"].equal(weight)
                assert state[f"module/critic_{name}"].equal(weight)
    assert replay([str(whole), "--pair", PAIR]) == 0
    assert "equal      every segment" in capsys.readouterr().out


def test_it_is_complete_and_cannot_change_its_stages(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["--resume", "--run-dir", str(whole.parent), "--name", "tiny"]
    assert main(again) == 0
    assert capsys.readouterr().out.startswith("complete; report")
    assert main([*again, "--stages", "population"]) == 2
    assert "--resume: stages.run was ('base', 'specialists', 'population')" in capsys.readouterr().err
    assert main(["--extend", str(whole), "--pairs", "SYNC/SYND"]) == 2
    assert "has a base stage; launch the pairs in a run of their own, from its base" in capsys.readouterr().err


def test_its_base_travels_over_the_hub_and_is_not_trained_again(whole: Path, tmp_path: Path) -> None:
    """Through the real client; a base that does not fit its description is refused."""
    with Hub() as hub:

        def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", f"pbt.{module}", *words]
            where = client(hub.url, tmp_path / "home")
            return subprocess.run(command, cwd=ROOT, env=where, capture_output=True, text=True, timeout=300)

        pushed = run("publish", str(whole), "--repo", "trader/base")
        assert pushed.returncode == 0, pushed.stderr
        started = ("--stages", "base", "--base-checkpoint", "hf://trader/base")
        done = run("launch", *arguments(tmp_path, *started))
        assert done.returncode == 0, done.stderr
        assert re.search(r"base +done, loss 0\.\d+ against 0\.\d+ of the naive forecast", done.stdout)
        assert "SYNA/SYNB: features keep the scale of the base checkpoint" in done.stdout
        base = tmp_path / "tiny" / "base"
        assert done.stdout.strip().splitlines()[-1] == f"report {base / 'run_report.md'}"
        assert (base / "encoder.safetensors").read_bytes() == (whole / "base" / "encoder.safetensors").read_bytes()
        assert not (base / "journal.jsonl").exists()
        assert len(yaml.safe_load((tmp_path / "tiny" / "config.yaml").read_text())["stages"]["base_digest"]) == 16

        about = json.loads((whole / "base" / "base.json").read_text())
        about["network"]["encoder_width"] = 1 << 20
        files = {**hub.files("trader/base"), "base/base.json": json.dumps(about).encode()}
        hub.add("trader/wide", files)
        refused = run("launch", *arguments(tmp_path / "none", *started[:2], "--base-checkpoint", "hf://trader/wide"))
        assert refused.returncode == 2
        assert "'base/base.json' describes no network of up to" in refused.stderr
        assert not (tmp_path / "none").exists()
