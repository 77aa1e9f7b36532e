"""The benchmarks run and write what they say; no figure is asserted."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import optimality, throughput
from benchmarks.arena import arena, copy_weights, probe
from benchmarks.peers import GymnasiumVector
from benchmarks.plain_loop import PlainLoop

ROOT = Path(__file__).resolve().parents[1]
CPU_ONLY = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


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


def test_gpu_dry_run(tmp_path: Path) -> None:
    """Members share what Ray takes for a GPU; compiled and recorded steps do what eager ones do."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--dry-run",
        "--compiled",
        "--members",
        "2",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=CPU_ONLY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dry run on CPU: no GPU measured")
    rows, arms, compiled = (pd.read_parquet(tmp_path / f"{n}.parquet") for n in ("gpu", "gpu_arms", "gpu_compiled"))
    assert set(rows.device) == {"cpu"}
    assert rows.groupby("arm").member.nunique().to_dict() == {"one CPU core": 1, "GPU, 2 sharing": 2}
    np.testing.assert_allclose(arms.to_one_core * arms.steps_per_second[0], arms.steps_per_second)
    assert set(arms.gpu) == {"dry run on CPU: no GPU measured"}
    assert set(compiled.what) == {"rollout step", "gradient step"}
    assert (compiled.groupby("what").arm.nunique() == 4).all()
    assert (compiled.note == "").all()
    assert (compiled.difference < 1e-5).all()


def test_gpu_benchmark_refuses_a_machine_without_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=CPU_ONLY)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "finds no GPU" in done.stderr
    assert not (tmp_path / "out").exists()
