"""What a run starts from when it starts from a survivor: its actor and scale to the bit, and all else fresh."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from algos.config import PairPPOConfig
from algos.markets import market_key
from algos.pair_ppo import PairPPO
from envs.market import PairMarket, load_markets
from envs.scaler import Scaler
from pbt import fitness
from pbt.base import BASE, base_state, find_base, kept_base
from pbt.generation import enter, evaluate, initial_key, train_segment, training_key
from pbt.manifest import Population
from pbt.run_dir import RunDir
from pbt.store import ReturnStore
from pbt.survivors import policy_from_state
from pbt.windows import windows_of
from rayconf import RunConfig, UserError
from rayconf.loading import build_config, merge
from rayconf.storage import LocalStorage

PAIR = "SYNC/SYND"


@pytest.mark.parametrize("encoder", ["mlp", "conv"])
def test_before_any_training_it_is_the_survivor(
    encoder: str, ray_session: None, undisturbed: Path, tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]
) -> None:
    """Its validation returns are those that selection saw; critic, moments and counters are those of a fresh start."""
    market, folder = tiny_markets[PAIR], undisturbed / "survivors" / "SYNC_SYND" / "1"
    run = build_config(merge(tiny_run.model_dump(mode="json"), {"network": {"encoder": encoder}}))
    enter(run, PAIR, market)
    algorithm = PairPPO(config=PairPPOConfig.from_run(run, PAIR, key=initial_key(run, PAIR, BASE)))
    fresh = algorithm.boundary_state()
    algorithm.stop()
    if encoder == "mlp":
        state = base_state(run, market, folder)
        tensors = load_file(folder / "policy.safetensors")
        named = {f"module/pi.{2 * i}.{kind}": f"{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
        for name, source in named.items():
            assert state[name].double().equal(tensors[source]), name
        for name in fresh.keys() - named.keys():
            assert state[name].equal(fresh[name]), name
        assert state.keys() == fresh.keys()
        best = Population.read(undisturbed / "state" / "SYNC_SYND.json").archive[0]
        kept = ReturnStore(LocalStorage(undisturbed)).load((PAIR, best.member, best.generation))
        seen = evaluate(run, market, policy_from_state(state, run, market.scaler.names), best.generation)
        assert np.array_equal(seen.net_returns[PAIR], kept)
        assert seen.figures["fitness"] == best.fitness
    else:
        with pytest.raises(UserError, match=r"pi\.0\.weight of shape \(16, 37\) has no place in the run's network"):
            base_state(run, market, folder)


DIRECT = {"windows": 16, "window_bars": 12, "burn_bars": 3, "steps": 4}


@pytest.mark.parametrize("algo", ["ppo", "direct"])
def test_fitness_over_the_base_is_nil_where_nothing_is_learned_or_a_pull_takes_it_back(
    algo: str, ray_session: None, undisturbed: Path, tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]
) -> None:
    """And else what the account gains over that of the base, as the base's own run has recorded it."""
    market, folder = tiny_markets[PAIR], undisturbed / "survivors" / "SYNC_SYND" / "1"
    best = Population.read(undisturbed / "state" / "SYNC_SYND.json").archive[0]
    recorded = ReturnStore(LocalStorage(undisturbed)).load((PAIR, best.member, best.generation))
    span = market.splits["validation"]
    dates, per_year = market.dates[span.start : span.stop - 1], market.sessions_per_year
    found = {}
    for name, rate, pull in (("still", 1e-12, 0.0), ("free", 3e-3, 0.0), ("short", 3e-3, 200.0), ("tied", 3e-3, 1e9)):
        optimizer = {"learning_rate": rate, "pull": pull, "warmup_fraction": 0, "ema_half_life": 0}
        about = {"algo": algo, "direct": DIRECT, "optimizer": optimizer, "pbt": {"fitness_over": "base"}}
        run = with_base(tiny_run.model_copy(update={"search": {}}), undisturbed, **about)
        state = base_state(run, market, folder)
        key = training_key(run, PAIR, "m00", 1)
        found[name] = trained = train_segment(run, market, {}, state, key, 1, init_key=0)
        anchor = {key: tensor for key, tensor in state.items() if key.startswith("anchor/")}
        assert len(anchor) == 6
        assert all(trained.state[key].equal(tensor) for key, tensor in anchor.items())
        if name == "tied":
            assert all(trained.state[f"module/{key.removeprefix('anchor/')}"].equal(t) for key, t in anchor.items())
            assert algo == "direct" or not trained.state["module/vf.0.weight"].equal(state["module/vf.0.weight"])
        ours = trained.evaluation
        gain = fitness.evaluate(
            ours.net_returns[PAIR],
            np.ones(span.rows),
            dates,
            per_year,
            False,
            run.pbt,
            run.seed,
            PAIR,
            1,
            over=recorded,
        )
        assert (ours.figures["fitness"], ours.figures["fitness_se"]) == (gain.value, gain.se)
    gains = {name: trained.evaluation.figures["fitness"] for name, trained in found.items()}
    assert gains["still"] == gains["tied"] == 0 != gains["free"]
    begun = base_state(run, market, folder)
    far = {
        name: max(float((t.state[key] - begun[key]).abs().max()) for key in begun if key.startswith("module/pi."))
        for name, t in found.items()
    }
    assert far["tied"] == 0 < far["short"] < min(far["free"], 1 / 200 + 1e-6)
    with pytest.raises(ValueError, match="fitness over the base needs its returns"):
        evaluate(run, market, policy_from_state(begun, run, market.scaler.names), 1)


MISTAKES: Mapping[str, tuple[Mapping[str, Mapping[str, object]], str]] = {
    "pull": ({"optimizer": {"pull": 1}, "stages": {"base": None}}, r"optimizer\.pull: needs the weights of a base"),
    "moved": (
        {"search": {"x": {"path": "optimizer.pull", "low": 1, "high": 9}}, "stages": {"base": None}},
        r"search\.x\.path: needs the weights of a base checkpoint; name one in stages\.base",
    ),
    "fitness": ({"pbt": {"fitness_over": "base"}, "stages": {"base": None}}, r"pbt\.fitness_over: needs the weights"),
    "encoder": (
        {"optimizer": {"pull": 1}, "network": {"encoder": "gru"}, "stages": {"run": ["base", "population"]}},
        r"optimizer\.pull: .* without the stages base and specialists",
    ),
    "brake": (
        {"search": {"x": {"path": "env.reach", "low": 0.1, "high": 0.5}}, "pbt": {"fitness_over": "base"}},
        r"search\.x\.path: env\.reach is part of the base's policy",
    ),
    "gain": (
        {"env": {"mapping": "residual"}, "pbt": {"min_gain": 0, "fitness_over": "cash"}},
        r"pbt\.min_gain: is a gain over prior or base; set pbt\.fitness_over",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_leash_needs_what_it_is_tied_to(mistake: str, tiny_run: RunConfig, tmp_path: Path) -> None:
    settings, message = MISTAKES[mistake]
    known = tiny_run.model_dump(mode="json", exclude={"search"})
    with pytest.raises(UserError, match=message):
        build_config(merge(merge(known, {"stages": {"base": str(tmp_path)}}), settings))


def with_base(run: RunConfig, base: Path, **sections: object) -> RunConfig:
    return build_config(merge(run.model_dump(mode="json"), {"stages": {"base": str(base)}, **sections}))


def test_a_run_gives_each_pair_its_best_and_one_survivor_serves_all(undisturbed: Path, tiny_run: RunConfig) -> None:
    whole, one = undisturbed, undisturbed / "survivors" / "SYNC_SYND" / "2"
    found = find_base(with_base(tiny_run, whole))
    assert found.folders == {p: undisturbed / "survivors" / p.replace("/", "_") / "1" for p in tiny_run.data.pairs}
    assert found.digest != find_base(with_base(tiny_run, one)).digest
    assert find_base(with_base(tiny_run, one)).folders == dict.fromkeys(tiny_run.data.pairs, one)
    assert find_base(tiny_run).folders == {}
    assert find_base(tiny_run).recorded(tiny_run) == tiny_run


def test_the_content_counts_and_not_where_it_lay(undisturbed: Path, tiny_run: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "survivors", tmp_path / "survivors")
    here, there = (find_base(with_base(tiny_run, x)).recorded(with_base(tiny_run, x)) for x in (undisturbed, tmp_path))
    assert here.stages.base_digest == there.stages.base_digest
    assert here.identity == there.identity != tiny_run.identity
    assert market_key(here) == market_key(there) != market_key(tiny_run)
    with pytest.raises(UserError, match=r"--base-checkpoint: missing; this config started from a base"):
        find_base(build_config(merge(here.model_dump(mode="json"), {"stages": {"base": None}})))
    other = load_file(tmp_path / "survivors" / "SYNA_SYNB" / "2" / "policy.safetensors")
    assert len(other) == 6
    shutil.copy(tmp_path / "survivors" / "SYNA_SYNB" / "2" / "policy.safetensors", tmp_path / "survivors/SYNA_SYNB/1")
    changed = find_base(with_base(tiny_run, tmp_path))
    assert changed.recorded(with_base(tiny_run, tmp_path)).identity != here.identity
    with pytest.raises(UserError, match=r"stages\.base_digest: .* is [0-9a-f]{16} now, this config was made with"):
        changed.recorded(there)


def test_the_survivors_scaler_stays(undisturbed: Path, tiny_run: RunConfig, tmp_path: Path) -> None:
    """Also where the run's own training span would give another; and who forgets it is told."""
    fields = {"split": {"fractions": [0.55, 0.22, 0.23]}}
    run = with_base(tiny_run, undisturbed, **fields)
    base = find_base(run)
    run, directory = base.recorded(run), RunDir(tmp_path)
    base.keep(directory)
    text = (undisturbed / "survivors" / "SYNC_SYND" / "1" / "scaler.json").read_text()
    for settings in ({}, {"universe": {"pairs": [PAIR, "SYNA/SYNB"]}}):
        own = build_config(merge(run.model_dump(mode="json"), settings))
        markets = windows_of(own, directory, kept_base(own, directory).scalers)[0].markets
        for pair, found in markets.items():
            folder = undisturbed / "survivors" / pair.replace("/", "_") / "1"
            assert found.scaler.to_json() + "\n" == (folder / "scaler.json").read_text()
            assert (found.training is not None) == bool(settings)
            if found.training is not None:
                scalers = dict(zip(found.training.pairs, found.training.scalers, strict=True))
                assert scalers[pair] is found.scaler, "the universe's copy of the pair keeps it too"
    market = markets[PAIR]
    assert "features keep the scale of the base checkpoint" in "".join(market.notes)
    fitted = load_markets(build_config(merge(tiny_run.model_dump(mode="json"), fields)))[PAIR]
    assert fitted.scaler.to_json() != market.scaler.to_json()
    assert not np.array_equal(fitted.features, market.features)
    assert np.array_equal(fitted.fill, market.fill)
    assert fitted.splits == market.splits
    assert base.warnings(run)[0].endswith("may be among this run's validation and test dates")
    assert find_base(with_base(tiny_run, undisturbed)).warnings(tiny_run) == []
    with pytest.raises(ValueError, match="scale of its base checkpoint"):
        load_markets(run)
    kept = directory.base_survivor(PAIR) / "scaler.json"
    other = Scaler.from_json(text)
    names = ("another", *other.names[1:])
    with pytest.raises(UserError, match=r"SYNC/SYND: feature 1 is a_return_1 here and another in the policy's scaler"):
        load_markets(run, {PAIR: Scaler(names, other.mean, other.scale, other.extremes, other.limit)})
    kept.write_text(text.replace("0.", "1.", 1))
    with pytest.raises(UserError, match=r"base: is not what the run started from; restore it"):
        kept_base(run, directory)
    kept.unlink()
    with pytest.raises(UserError, match=r"scaler\.json: No such file .*restore it from a copy"):
        windows_of(run, directory, kept_base(run, directory).scalers)
