"""New pairs of a finished run: what they start from, and that the finished pairs keep their splits."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algos.config import PairPPOConfig
from algos.markets import provide
from algos.pair_ppo import PairPPO
from envs.market import load_markets
from envs.synthetic import synthetic_pair
from pbt.extension import extended_config, sources, transferred
from pbt.manifest import Population, Snapshot
from pbt.run_dir import RunDir
from pbt.survivors import averaged_weights
from rayconf import RunConfig
from rayconf.loading import build_config
from rayconf.sections import SyntheticConfig


def test_a_transferred_state_is_fresh_but_for_the_weights(ray_session: None, tiny_run: RunConfig) -> None:
    """Against the state of an algorithm that was built for the new pair and has trained nothing."""
    other = build_config({**tiny_run.model_dump(), "data": {"pairs": ["SYNA/SYNB", "SYNE/SYNF"]}})
    markets = load_markets(other)
    states = {}
    for pair, steps in (("SYNA/SYNB", 1), ("SYNE/SYNF", 0)):
        provide(other, pair, markets[pair])
        algorithm = PairPPO(config=PairPPOConfig.from_run(other, pair, key=5))
        for _ in range(steps):
            algorithm.step()
        states[pair] = algorithm.boundary_state()
        algorithm.stop()
    source, fresh = states["SYNA/SYNB"], states["SYNE/SYNF"]
    assert float(source["ema_weight"]) > 0
    found = transferred(source, markets["SYNE/SYNF"])
    assert found.keys() == fresh.keys()
    judged = averaged_weights(source)
    for name, tensor in found.items():
        assert tensor.dtype == fresh[name].dtype
        expected = judged[name.removeprefix("module/")] if name.startswith("module/") else fresh[name]
        assert tensor.equal(expected), name
        assert name.startswith("module/") or not source[name].any() or not tensor.equal(source[name]), name


def snapshot(state: str, member: str, score: float, *, idle: bool = False) -> Snapshot:
    return Snapshot(state, member, 2, score, 0.1, score, idle, {"learning_rate": score})


def test_sources_take_turns_over_the_pairs_best_first(tiny_run: RunConfig, tmp_path: Path) -> None:
    run = tiny_run.model_copy(update={"pbt": tiny_run.pbt.model_copy(update={"population": 7})})
    directory = RunDir(tmp_path)
    archives = {
        "A/B": (snapshot("a1", "m01", 0.5), snapshot("a2", "m00", 0.4), snapshot("a3", "m02", 0.3)),
        "C/D": (snapshot("c1", "m02", 0.9),),
        "E/F": (snapshot("e1", "m00", 2.0, idle=True), snapshot("e2", "m01", 1.0, idle=True)),
    }
    for pair, archive in archives.items():
        Population(pair, 2, "complete", {}, archive).write(directory.manifest(pair))
    found = sources(run, directory, list(archives))
    assert [found[f"m0{i}"].snapshot.state for i in range(1, 7)] == ["c1", "a1", "e1", "a2", "e2", "a3"]
    assert found["m02"].name == "A/B:m01:2"
    again = run.model_copy(update={"pbt": run.pbt.model_copy(update={"population": 9})})
    assert [source.snapshot.state for source in sources(again, directory, list(archives)).values()][6:] == ["c1", "a1"]


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    folder = tmp_path / "prices"
    folder.mkdir()
    for pair, bars in (("OLD/ELD", 1600), ("LONG/LANG", 1800)):
        for leg in synthetic_pair(pair, SyntheticConfig(bars=bars)):
            columns = {name: getattr(leg, name) for name in ("open", "high", "low", "close", "volume")}
            pd.DataFrame({"date": leg.dates.astype(str), **columns}).to_csv(folder / f"{leg.ticker}.csv", index=False)
    return folder


def test_a_pair_of_longer_history_moves_no_border(tiny_run: RunConfig, prices: Path, tmp_path: Path) -> None:
    settings = tiny_run.model_dump(mode="json")
    settings["split"]["fractions"] = None
    run = build_config({**settings, "data": {"dir": str(prices), "pairs": ["OLD/ELD"]}})
    directory = RunDir(tmp_path / "run")
    directory.path.mkdir()
    directory.config.write_text(run.to_yaml())
    extended = extended_config(directory, "LONG/LANG")
    assert extended.data.pairs == ("OLD/ELD", "LONG/LANG")
    assert extended.data.transferred == ("LONG/LANG",)
    assert extended.identity not in (run.identity, _with_pairs(run).identity)
    before, after = load_markets(run)["OLD/ELD"], load_markets(extended)
    assert after["OLD/ELD"].splits == before.splits
    assert np.array_equal(after["OLD/ELD"].features, before.features)
    long = after["LONG/LANG"]
    for name in ("validation", "test"):
        first = [market.dates[market.splits[name].start] for market in (before, long)]
        assert first[0] == first[1]
    assert load_markets(_with_pairs(run))["OLD/ELD"].splits != before.splits  # without the dates they would move


def _with_pairs(run: RunConfig) -> RunConfig:
    return build_config(
        {**run.model_dump(mode="json"), "data": {"dir": run.data.dir, "pairs": ["OLD/ELD", "LONG/LANG"]}}
    )
