"""What populations start from after a base stage, and the checkpoint that carries it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from algos.pretraining import places
from analysis.frames import read_jsonl
from envs.market import PairMarket, load_markets
from envs.scaler import Scaler
from envs.walk_forward import dated
from pbt.base import find_base, kept_base
from pbt.encoder_base import read_checkpoint
from pbt.generation import initial_key, train_segment, training_key, untrained_state
from pbt.run_dir import RunDir
from pbt.stages import pretrained_members, run_stages
from pbt.store import StateStore
from pbt.windows import Window, windows_of
from rayconf import RunConfig, UserError, load_config
from rayconf.loading import build_config, merge
from tests.pbt.conftest import TINY

PAIR = "SYNA/SYNB"
FAST = ("stages.epochs=2", "stages.specialist_epochs=1", "network.encoder_window=6", "network.encoder_width=8")


def staged(*assignments: str, encoder: str = "conv") -> RunConfig:
    first = ("stages.run=[base,population]", f"network.encoder={encoder}", "pbt.population=2")
    return load_config("smoke", assignments=[*TINY, *FAST, *first, "seed=7", *assignments])


def opened(run: RunConfig, folder: Path) -> Window:
    """The run's only window, its directory made."""
    directory = RunDir(folder, run.identity)
    directory.create()
    return Window(run, directory, load_markets(run))


def console() -> Console:
    return Console(quiet=True)


@pytest.mark.parametrize(("encoder", "sharing"), [("conv", "separate"), ("conv", "shared"), ("factored", "separate")])
def test_members_start_from_the_encoder_to_the_bit(
    encoder: str, sharing: str, ray_session: None, tmp_path: Path
) -> None:
    """Actor and critic alike; all else is what the member has without a base. Frozen it stays, tuned it moves."""
    run = staged(f"network.encoder_sharing={sharing}", encoder=encoder)
    window = opened(run, tmp_path / "run")
    run_stages(window, console())
    market, directory = window.markets[PAIR], window.directory
    weights = load_file(directory.base / "encoder.safetensors")
    trained = {
        f"module/{place}": weights[name]
        for name in weights
        if name.startswith("encoder.")
        for place in places(encoder, name, sharing)
    }
    members, store = pretrained_members(run, directory, market), StateStore(directory.storage)
    states = {name: store.load(str(member.state)) for name, member in members.items()}
    assert list(states) == ["m00", "m01"]
    for name, state in states.items():
        fresh = untrained_state(run, market, name)
        assert state.keys() == fresh.keys()
        assert trained.keys() < state.keys()
        for key, tensor in state.items():
            assert tensor.equal(trained.get(key, fresh[key])), key
    module = {key.removeprefix("module/") for key in trained}
    expected = {"module/" + name for name in _encoder_names(run)}
    assert {f"module/{name}" for name in module} == expected, "what rests is what was trained"
    assert any(not states["m00"][key].equal(states["m01"][key]) for key in states["m00"].keys() - trained.keys())

    key, drawn = training_key(run, PAIR, "m00", 1), members["m00"].hyperparameters
    assert "encoder_lr_factor" in drawn
    for held, idle in (("frozen", {"encoder_lr_factor"}), ("tuned", set())):
        search = {name: space for name, space in run.search.items() if name not in idle}
        hyperparameters = {name: value for name, value in drawn.items() if name not in idle}
        stages = run.stages.model_copy(update={"encoder": held})
        own = run.model_copy(update={"stages": stages, "search": search})
        start = initial_key(run, PAIR, "m00")
        after = train_segment(own, market, hyperparameters, states["m00"], key, 1, init_key=start).state
        same = {name: after[name].equal(tensor) for name, tensor in trained.items()}
        assert set(same.values()) == {held == "frozen"}, same
        assert not after["module/pi.output.weight"].equal(states["m00"]["module/pi.output.weight"])


def _encoder_names(run: RunConfig) -> set[str]:
    import gymnasium as gym
    import numpy as np

    from algos.bar_network import BarActorCritic
    from algos.config import PairPPOConfig

    spec = PairPPOConfig.from_run(run, PAIR).get_default_rl_module_spec()
    spaces = [gym.spaces.Box(-np.inf, np.inf, (count,), np.float32) for count in (3, 2)]
    return BarActorCritic(
        observation_space=spaces[0], action_space=spaces[1], model_config=spec.model_config
    ).encoder_parameters()


def test_a_finished_stage_is_skipped_and_a_broken_one_made_again(ray_session: None, tmp_path: Path) -> None:
    """To the same bytes, whatever a kill left; a second process changes nothing."""
    run = staged("stages.run=[base,specialists,population]")
    window = opened(run, tmp_path / "run")
    run_stages(window, console())
    base = window.directory.base
    names = ("encoder.safetensors", "scalers.json", "SYNA_SYNB/encoder.safetensors", "SYNC_SYND/specialist.json")
    kept = {name: (base / name).read_bytes() for name in (*names, "run_report.md", "base.json")}
    rows = [json.loads(line) for line in (base / "journal.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    inode = (base / "encoder.safetensors").stat().st_ino
    run_stages(window, console())
    assert (base / "encoder.safetensors").stat().st_ino == inode, "it was not written again"

    (base / "base.json").unlink()
    (base / "SYNA_SYNB" / "encoder.safetensors").write_bytes(b"torn")
    (base / "encoder.safetensors").unlink()
    with (base / "journal.jsonl").open("a") as journal:
        journal.write('{"torn')
    run_stages(window, console())
    assert {name: (base / name).read_bytes() for name in kept} == kept
    again = [json.loads(line) for line in (base / "journal.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]

    best, report = json.loads(kept["base.json"]), kept["run_report.md"].decode()
    assert best["loss"] == min(row["loss"] for row in rows)
    assert f"| best | {best['epoch']} | {best['loss']:.5f} | {best['naive_loss']:.5f} |" in report
    assert f"| final | 2 | {rows[-1]['loss']:.5f} |" in report
    for pair in run.data.pairs:
        special = json.loads((base / pair.replace("/", "_") / "specialist.json").read_text())
        assert special["kept"] == (special["gain"] > special["gain_se"])
        assert f"| {pair} | {special['loss']:.5f} | {special['gain']:+.5f} |" in report
        state = pretrained_members(run, window.directory, window.markets[pair])["m00"].state
        start = load_file(base / (pair.replace("/", "_") if special["kept"] else ".") / "encoder.safetensors")
        found = StateStore(window.directory.storage).load(str(state))["module/critic_encoder.inputs.weight"]
        assert found.equal(start["encoder.inputs.weight"])


def test_windows_of_a_walk_forward_have_bases_of_their_own(ray_session: None, tmp_path: Path) -> None:
    """Each up to its own validation."""
    changes = ("split.walk_forward=2", "split.walk_validation=150", "synthetic.bars=2200", f"data.pairs=[{PAIR}]")
    run = dated(staged("stages.run=[base]", *changes))
    directory = RunDir(tmp_path / "run", run.identity)
    directory.create()
    ends = []
    for window in windows_of(run, directory):
        run_stages(window, console())
        market = window.markets[PAIR]
        ends.append(read_checkpoint(tmp_path / "run" / "windows" / str(window.number) / "base").fit.trained_to)
        assert ends[-1] == market.dates[market.splits["train"].stop - 1]
        assert {row["window"] for row in read_jsonl(window.directory.base / "journal.jsonl")} == {window.number}
    assert ends[0] < ends[1]
    assert not (tmp_path / "run" / "base").exists()


@pytest.fixture(scope="module")
def trained(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished base stage."""
    run = staged()
    window = opened(run, tmp_path_factory.mktemp("trained") / "run")
    run_stages(window, console())
    return window.directory.path


def based(base: Path, *assignments: str, encoder: str = "conv") -> RunConfig:
    return staged(f"stages.base={base}", *assignments, encoder=encoder)


def test_a_checkpoint_serves_another_run_with_its_scale(trained: Path, tmp_path: Path) -> None:
    """The content counts; the pairs that it knows keep their scalers; the stage finds it done."""
    changed = ("split.fractions=[0.55, 0.22, 0.23]", "data.pairs=[SYNC/SYND, SYNE/SYNF]")
    run = based(trained, *changed)
    base = find_base(run)
    run = base.recorded(run)
    assert run.stages.base_digest == find_base(based(trained / "base")).digest
    assert run.identity != based(trained, *changed).identity
    assert base.scalers.keys() == {"SYNA/SYNB", "SYNC/SYND"}
    directory = RunDir(tmp_path / "run", run.identity)
    directory.create()
    base.keep(directory)
    markets = load_markets(run, kept_base(run, directory).scalers)
    stored = json.loads((trained / "base" / "scalers.json").read_text())
    assert json.loads(markets["SYNC/SYND"].scaler.to_json()) == stored["SYNC/SYND"]
    assert "SYNC/SYND: features keep the scale of the base checkpoint" in markets["SYNC/SYND"].notes
    run_stages(Window(run, directory, markets), console())
    assert (directory.base / "encoder.safetensors").read_bytes() == (
        trained / "base" / "encoder.safetensors"
    ).read_bytes()
    warned = base.warnings(run)
    assert len(warned) == 1
    assert "was trained up to" in warned[0]
    assert find_base(based(trained)).warnings(based(trained)) == []
    (directory.base / "encoder.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match=r"base: is not what the run started from; restore it"):
        kept_base(run, directory)


MISTAKES = {
    "nowhere": (["stages.base=nowhere"], r"nowhere is no folder"),
    "no base": (["stages.base=EMPTY"], r"has no base/base\.json: no base stage was finished there"),
    "damaged": (["stages.base=DAMAGED"], r"encoder\.safetensors: is not what base\.json describes"),
    "feature": (["features.z_windows=[10, 20, 61]"], r"features: number \d+ is spread_z_61 here and spread_z_60 in"),
    "count": (["features.calendar=false"], r"features: number 33 is nothing here and day_sin in"),
    "setting": (["features.hedge_window=61"], r"features\.hedge_window: 61 does not fit .*trained with 60"),
    "width": (["network.encoder_width=16"], r"network\.encoder_width: 16 does not fit .*trained with 8"),
    "horizons": (
        ["stages.run=[base,specialists]", "stages.horizons=[1, 9]"],
        r"stages\.horizons: \[1, 9\] does not",
    ),
    "lag": (["stages.run=[base,specialists]", "env.lag=2"], r"env\.lag: 2 does not fit .*trained with 1"),
    "encoder": (["network.encoder=gru"], r"network\.encoder: gru does not fit .*trained with conv"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_another_encoder_is_an_error_that_names_the_first_difference(
    mistake: str, trained: Path, tmp_path: Path
) -> None:
    changes, message = MISTAKES[mistake]
    shutil.copytree(trained / "base", tmp_path / "damaged" / "base")
    (tmp_path / "damaged" / "base" / "encoder.safetensors").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "DAMAGED": str(tmp_path / "damaged")}
    run = based(trained)
    for change in changes:
        field, _, value = change.partition("=")
        run = load_changed(run, field, places.get(value, value))
    with pytest.raises(UserError, match=rf"^--base-checkpoint: .*{message}") as refused:
        find_base(run)
    assert "\n" not in str(refused.value)


def load_changed(run: RunConfig, field: str, value: str) -> RunConfig:
    import yaml

    section, _, name = field.partition(".")
    return build_config(merge(run.model_dump(mode="json"), {section: {name: yaml.safe_load(value)}}))


def test_without_stages_a_base_stage_is_no_survivor(trained: Path) -> None:
    with pytest.raises(UserError, match=r"has a base stage and no survivors; start from it with --stages base,popu"):
        find_base(load_changed(based(trained), "stages.run", "[population]"))


def test_a_market_of_other_features_is_refused_before_anything_trains(
    trained: Path, ray_session: None, tiny_markets: Mapping[str, PairMarket], tmp_path: Path
) -> None:
    run = staged()
    directory = RunDir(tmp_path / "run", run.identity)
    shutil.copytree(trained, directory.path)
    old = tiny_markets[PAIR].scaler
    scaler = Scaler(("other", *old.names[1:]), old.mean, old.scale, old.extremes, old.limit)
    markets = {**tiny_markets, PAIR: replace(tiny_markets[PAIR], scaler=scaler)}
    with pytest.raises(UserError, match=r"features: number 1 is other here and a_return_1 in the base of SYNA/SYNB's"):
        run_stages(Window(run, directory, markets), console())


def test_a_base_that_saw_the_policies_bars_is_refused(ray_session: None, trained: Path, tmp_path: Path) -> None:
    run = based(trained, "stages.share=0.5", "split.fractions=[0.7, 0.15, 0.15]")
    base = find_base(run)
    run, directory = base.recorded(run), RunDir(tmp_path / "run", run.identity)
    directory.create()
    base.keep(directory)
    (window,) = windows_of(run, directory, base.scalers)
    for pair, market in window.markets.items():
        assert market.training is not None
        assert market.training.pairs == (pair,), "each has its own"
    with pytest.raises(UserError, match=r"stages\.share: populations open at .*, and .* was trained to"):
        run_stages(window, console())


def test_stages_count_where_they_are_run_and_only_there() -> None:
    plain = load_config("smoke", assignments=TINY)
    moved = load_config("smoke", assignments=[*TINY, "stages.epochs=3"])
    assert plain.identity == moved.identity
    assert staged().identity != staged("stages.epochs=3").identity != staged("stages.encoder=frozen").identity


def test_a_checkpoint_is_read_as_it_was_written(trained: Path) -> None:
    found = read_checkpoint(trained / "base")
    about = json.loads((trained / "base" / "base.json").read_text())
    assert found.fit.best.skill == pytest.approx(about["skill"])
    assert len(found.fit.skills) == len(found.fit.names) == 12
    assert {tensor.dtype for tensor in found.fit.weights.values()} == {torch.float32}
