"""The benchmarks run and write what they say; no figure is asserted."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import optimality, population, throughput
from benchmarks.arena import arena, copy_weights, probe
from benchmarks.peers import GymnasiumVector
from benchmarks.plain_loop import PlainLoop
from tests.pbt.conftest import TINY

SETTINGS = [argument for text in TINY for argument in ("--set", text)]


@pytest.fixture(scope="module")
def quick(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("throughput")
    throughput.main(["--quick", "--no-peers", "--out", str(out)])
    return out


def test_throughput_writes_every_run_and_every_arm(quick: Path) -> None:
    runs, arms = (pd.read_parquet(quick / f"{name}.parquet") for name in ("throughput", "throughput_arms"))
    assert set(runs.columns) >= {"round", "arm", "minibatch", "steps", "seconds", "cpu_seconds", "steps_per_second"}
    np.testing.assert_allclose(runs.steps_per_second * runs.seconds, runs.steps)
    assert {"ledger", "environment", "rollout", "training"} == set(arms.what)
    assert set(runs.arm) == set(arms.arm)
    training = arms[arms.what == "training"].set_index("arm")
    assert set(training.index) == {"plain torch loop", "PairPPO", "PairPPO, training_step alone"}
    assert (training.gradient_steps == 2 * 4 * 4).all()  # two updates of four epochs over four minibatches
    assert training.to_plain["plain torch loop"] == 1
    assert training[["reward", "value_loss"]].notna().all(axis=None)
    # the two ways into PairPPO are the same training
    ours = training.loc[["PairPPO", "PairPPO, training_step alone"], ["reward", "value_loss"]]
    assert (ours.nunique() == 1).all()


def test_chart_draws_a_bar_per_arm(quick: Path) -> None:
    root = ElementTree.parse(quick / "throughput.svg").getroot()
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    assert [bar.get("class") for bar in bars] == ["ceiling", "ours"]
    assert all(float(bar.get("width", 0)) > 0 for bar in bars)


def test_plain_loop_learns() -> None:
    """A ceiling that did not learn would be none."""
    setting = arena(512, batch=4096, num_envs=128)
    loop = PlainLoop(setting, key=1)
    before, _ = probe(setting, loop.net, torch.tanh)
    for _ in range(8):
        loop.update()
    after, _ = probe(setting, loop.net, torch.tanh)
    assert after > before + 0.01


def test_weights_travel_between_frameworks() -> None:
    setting = arena(512, batch=2048, num_envs=128)
    one, other = setting.network(), setting.network()
    for p in other.pi.parameters():
        p.data.zero_()
    copy_weights([one.pi], [other.pi])
    assert all(torch.equal(p, q) for p, q in zip(one.pi.parameters(), other.pi.parameters(), strict=True))


def test_vector_environment_shows_the_end_then_a_fresh_account() -> None:
    setting = arena(512, batch=2048, num_envs=128)
    env = GymnasiumVector(setting, 64, key=3)
    env.reset()
    ended = np.zeros(64, bool)
    seen = 0
    for _ in range(30):
        observation, reward, terminated, truncated, _ = env.step(np.ones((64, 2), np.float32))
        account = observation[:, -2:]
        assert (account[ended] == 0).all()  # in cash, whatever the action
        assert (reward[ended] == 0).all()
        assert not (terminated | truncated)[ended].any()
        assert (account[~ended] != 0).all()  # also in the last observation of an episode
        ended = terminated | truncated
        seen += int(ended.sum())
    assert seen > 0


def test_optimality_runs(ray_session: None, tmp_path: Path) -> None:
    small = ["--set", "ppo.num_envs=64", "--set", "ppo.rollout_steps=32", "--set", "ppo.minibatch_size=1024"]
    optimality.main(["--steps", "4096", "--cost-bps", "10", "--out", str(tmp_path), *small])
    table = pd.read_parquet(tmp_path / "optimality.parquet").set_index("policy")
    assert list(table.index) == ["optimum", "learner", "sign"]
    assert table.share["optimum"] == 1
    assert (table.env_steps == 4096).all()


def test_population_watches_a_run_from_outside(tmp_path: Path) -> None:
    population.main(["--preset", "smoke", "--starts", "1", "--out", str(tmp_path), *SETTINGS])
    table = pd.read_parquet(tmp_path / "population.parquet").set_index("figure")
    found = table.value
    assert found["members"] == 2 * 3
    assert 0 < found["CPU of the slot actors / (cores x wall)"] <= 105  # clock ticks are 10 ms
    assert found["timers / wall, least of the actors"] == pytest.approx(100, abs=3)
    assert found["object store, set"] * 1e6 == 100 * 2**20
    assert found["peak RSS, largest slot actor"] > 100
    assert (found[[name for name in table.index if name.startswith(("switch", "time in", "command"))]] > 0).all()
