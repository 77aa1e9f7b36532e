"""The short leash: a survivor of another run specialised by the exact gradient, pulled to where it started, and given
up for it where validation does not gain."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from analysis.frames import read_frame
from pbt.base import base_members, find_base
from pbt.generation import base_returns, evaluate
from pbt.manifest import Population
from pbt.run_dir import RunDir
from pbt.segments import base_state, retrain, segments_of
from pbt.store import StateStore
from pbt.survivor import load_policy
from pbt.survivors import policy_from_state
from pbt.windows import windows_of
from rayconf.errors import UserError
from rayconf.loading import build_config, load_file, merge
from tests.commands import launch, run_module, tiny
from tests.conftest import ROOT
from tests.hub_server import Hub, client

PAIR = "SYNC/SYND"
DIRECT = ("algo=direct", "direct.windows=16", "direct.window_bars=12", "direct.burn_bars=3", "direct.steps=4")
LEASH = (
    "optimizer.learning_rate=1e-3",
    "optimizer.pull=50",
    "pbt.fitness_over=base",
    "search={pull: {path: optimizer.pull, low: 1, high: 1000, step: 10}}",
    "pbt.replace_z=0",
)
NO_GAIN = "pbt.min_gain=3"


@pytest.fixture(scope="module")
def leashed(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leashed")
    settings = [word for text in (*DIRECT, *LEASH, NO_GAIN) for word in ("--set", text)]
    done = launch(*tiny(folder, "--base-checkpoint", str(undisturbed), "--pairs", PAIR, *settings))
    assert done.returncode == 0, done.stderr
    assert f"{PAIR}: features keep the scale of the base checkpoint" in done.stdout
    assert "trades its base checkpoint, because the best gain" in " ".join(done.stdout.split())
    return folder / "tiny"


def test_without_a_gain_the_base_is_kept_byte_for_byte_and_said_to_be(leashed: Path, undisturbed: Path) -> None:
    entry = json.loads((leashed / "summary.json").read_text())["pairs"][PAIR]
    assert [(s["rank"], s["member"], s["generation"], s["fitness"]) for s in entry["survivors"]] == [(1, "base", 0, 0)]
    assert entry["verdict"].startswith("trades its base checkpoint, because the best gain over it on validation, ")
    assert "less one error, is below pbt.min_gain 3; " in entry["verdict"]
    assert entry["statistics"]["fallback_to"] == "base"
    events = read_frame(leashed / "frames" / "events.parquet").to_pandas().query("kind == 'fallback'")
    assert [(row.pair, row.member) for row in events.itertuples()] == [(PAIR, "base")]
    ours, theirs = (run / "survivors" / "SYNC_SYND" for run in (leashed, undisturbed))
    assert [folder.name for folder in ours.iterdir()] == ["1"]
    for name in ("policy.safetensors", "policy.json", "scaler.json"):
        assert (ours / "1" / name).read_bytes() == (theirs / "1" / name).read_bytes(), name
    daily = [pd.read_parquet(run / "frames" / "daily.parquet") for run in (leashed, undisturbed)]
    kept, was = (
        frame.query("pair == @PAIR and policy == 'survivor-1'").set_index(["split", "scenario", "date"]).net_return
        for frame in daily
    )
    assert len(kept)
    pd.testing.assert_series_equal(kept, was, check_exact=True)


def test_what_comes_after_a_run_takes_the_base_as_its_survivor(
    leashed: Path, tmp_path: Path, ray_session: None
) -> None:
    assert load_policy(leashed, PAIR).decide(None).shape == (2,)
    replayed = run_module("pbt.replay", str(leashed), "--pair", PAIR)
    assert replayed.returncode == 2
    assert "trades its base, which another run trained: there is no schedule to replay" in replayed.stderr
    run = build_config(
        merge(load_file(leashed / "config.yaml"), {"stages": {"base": str(leashed), "base_digest": None}})
    )
    base, directory = find_base(run), RunDir(tmp_path)
    assert base.warnings(run) == []
    run = base.recorded(run)
    base.keep(directory)
    market = windows_of(run, directory, base.scalers)[0].markets[PAIR]
    assert {member.parent for member in base_members(run, directory, market).values()} == {"base"}
    with pytest.raises(UserError, match=r"data.transferred: pairs cannot join a run that holds on to its base"):
        build_config(merge(run.model_dump(mode="json"), {"data": {"transferred": [PAIR]}}))


def test_published_it_is_used_as_from_its_directory(leashed: Path, tmp_path: Path) -> None:
    """Over the real client and a hub on loopback."""
    with Hub() as hub:
        where = client(hub.url, tmp_path / "home")
        pushed, here, there = (
            subprocess.run(
                [sys.executable, "-m", *words], cwd=ROOT, env=where, capture_output=True, text=True, timeout=300
            )
            for words in (
                ("pbt.publish", str(leashed), "--repo", "trader/leashed"),
                ("pbt.decide", str(leashed / "survivors" / "SYNC_SYND")),
                ("pbt.decide", "hf://trader/leashed"),
            )
        )
    assert pushed.returncode == there.returncode == 0, pushed.stderr + there.stderr
    assert here.stdout == there.stdout != ""


def test_every_generation_knows_its_anchor_and_trains_again_to_the_bit(leashed: Path, ray_session: None) -> None:
    """Through exploits and moved pulls; fitness is the gain over the base, which the base itself has not."""
    directory = RunDir(leashed)
    run = build_config(load_file(directory.config))
    base = find_base(run)
    market = windows_of(run, directory, base.scalers)[0].markets[PAIR]
    lineage = read_frame(directory.frame("lineage")).to_pylist()
    assert "exploit" in {row["operation"] for row in lineage}
    store, population = StateStore(directory.storage), Population.read(directory.manifest(PAIR))
    (start,) = population.bases
    anchor = {name: tensor for name, tensor in store.load(start).items() if name.startswith("anchor/")}
    assert len(anchor) == 6
    moved = 0
    for snapshot in population.archive:
        state = store.load(snapshot.state)
        assert all(torch.equal(state[name], tensor) for name, tensor in anchor.items())
        segments = segments_of(run, lineage, PAIR, snapshot)
        moved += len({segment.hyperparameters["pull"] for segment in segments}) > 1
        if len(segments) == 2:
            assert all(one.equal for one in retrain(run, market, segments, base_state(segments, store)))
    assert moved
    weights = {name.removeprefix("anchor/"): tensor for name, tensor in anchor.items()}
    policy = policy_from_state(store.load(start), run, market.scaler.names)
    seen = evaluate(run, market, policy, 1, over={market.pair: base_returns(run, market, weights)})
    assert (seen.figures["fitness"], seen.figures["fitness_se"]) == (0.0, 0.0)
