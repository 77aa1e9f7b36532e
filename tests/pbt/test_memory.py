"""A universe lies in memory once per machine, and the plan says what it takes."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.batched import BatchedPairTrading
from envs.market import PairMarket, load_markets
from envs.universe import with_universe
from pbt.launch import main
from pbt.run_dir import RunDir
from pbt.windows import ROW_BYTES, Window, training_memory
from rayconf import RunConfig, UserError, load_config
from rayconf.plan import TrainingMemory, plan
from rayconf.session import Machine, store_mb
from tests.commands import tiny
from tests.pbt.conftest import TINY

MB = 2**20


def universe_run(*more: str) -> RunConfig:
    return load_config("smoke", assignments=[*TINY, "universe.pairs=SYNC/SYND,SYNE/SYNF", *more])


@pytest.fixture(scope="module")
def markets() -> dict[str, PairMarket]:
    run = universe_run()
    return with_universe(load_markets(run), run)


def test_an_environment_reads_a_universe_where_it_lies(markets: dict[str, PairMarket]) -> None:
    market = markets["SYNA/SYNB"]
    assert market.training is not None
    features = market.training.features.copy()
    features.setflags(write=False)  # as Ray hands it out
    market = replace(market, training=replace(market.training, features=features))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = BatchedPairTrading(market, universe_run(), 8, generator=torch.Generator())
    own = [value for value in vars(env).values() if isinstance(value, torch.Tensor) and len(value) > 8]
    (shared,) = [tensor for tensor in own if tensor.data_ptr() == features.ctypes.data]
    assert shared.nbytes == features.nbytes
    held = sum(tensor.nbytes for tensor in own) - features.nbytes
    assert 0.7 * ROW_BYTES < held / len(features) <= ROW_BYTES


@pytest.mark.parametrize(
    ("more", "row"),
    [
        ((), ROW_BYTES),
        (("algo=direct",), 2 * ROW_BYTES),
        (("network.encoder=factored",), ROW_BYTES + 2 * 4 * 45),
    ],
)
def test_slots_and_driver_hold_what_they_hold(
    markets: dict[str, PairMarket], tmp_path: Path, more: tuple[str, ...], row: int
) -> None:
    run = universe_run(*more)
    bars = markets["SYNA/SYNB"].training
    assert bars is not None
    assert all(market.training is bars for market in markets.values())
    many = replace(
        bars,
        features=np.broadcast_to(bars.features[:1, :1], (900_000, 45)),
        steps=np.broadcast_to(bars.steps[:1], (900_000, 6)),
        dates=np.broadcast_to(bars.dates[:1], (900_000,)),
    )
    few, most = (
        Window(run, RunDir(tmp_path), {pair: replace(market, training=each) for pair, market in markets.items()})
        for each in (bars, many)
    )
    store = 900_000 * (45 * 4 + 6 * 8 + 8)
    assert training_memory(run, [most]).store == -(-store // MB), "once for all pairs"
    held = training_memory(run, [most, few, few, most])
    assert held.store == -(-(store + bars.nbytes) // MB), "two windows of a walk-forward that follow each other"
    assert held.driver == -(-(3 * store + 2 * bars.nbytes) // MB)
    assert held.slot == -(-900_000 * row // MB)
    none = [Window(run, RunDir(tmp_path), {p: replace(m, training=None) for p, m in markets.items()})]
    assert training_memory(run, none) == TrainingMemory()


def test_the_object_store_has_room_for_what_is_trained_on() -> None:
    held = TrainingMemory(driver=900, store=400, slot=70)
    run = load_config("smoke")
    planned = plan(run, Machine(2), held)
    assert planned.memory_mb == 1000 + 900 + 2 * (800 + 70) + 512 + 400
    (line,) = [line for line in planned.lines() if line.startswith("memory")]
    assert line.endswith("takes 400 MB of the object store, which all slots read, and 70 MB more in each")
    assert store_mb(run.resources, 400) == 912
    named = [load_config("smoke", assignments=[f"resources.object_store_mb={mb}"]) for mb in (533, 534)]
    with pytest.raises(UserError, match=r"object_store_mb: 533 cannot hold the 400 MiB .* set it to 534 or more"):
        plan(named[0], Machine(2), held)
    assert plan(named[1], Machine(2), held).memory_mb == 1000 + 900 + 2 * (800 + 70) + 534
    plan(named[0], Machine(2, nodes=((2.0, 0.0),), joined=True), held)  # a cluster's is not ours to size


def test_a_dry_run_tells_what_a_universe_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*tiny(tmp_path), "--set", "universe.pairs=SYNC/SYND", "--dry-run"]) == 0
    assert "what is trained on takes 1 MB of the object store" in capsys.readouterr().out
