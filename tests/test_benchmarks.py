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
from scipy.stats import linregress

from benchmarks import optimality, population, scaling, throughput
from benchmarks.arena import arena, copy_weights, probe
from benchmarks.bend import growth
from benchmarks.launches import population_speed
from benchmarks.peers import GymnasiumVector
from benchmarks.plain_loop import PlainLoop
from benchmarks.scaling_worker import peak_mb, setting_of
from rayconf.session import available_cpus
from tests.pbt.conftest import TINY

SETTINGS = [argument for text in TINY for argument in ("--set", text)]

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
    assert {"ledger", "environment", "rollout", "backtest", "training"} == set(arms.what)
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
    assert found["object store, without a universe"] * 1e6 == 100 * 2**20
    assert found["peak RSS, largest slot actor"] > 100
    assert (found[[name for name in table.index if name.startswith(("switch", "time in", "command"))]] > 0).all()


def test_growth_finds_a_planted_bend_and_its_slopes() -> None:
    sizes = 2.0 ** np.arange(6, 18)
    noise = np.exp(0.02 * np.random.default_rng(5).standard_normal(12))
    values = 30 * np.where(sizes < 3000, sizes**0.8, 3000 * sizes**-0.2) * noise
    found = growth(sizes[::-1], values[::-1])
    assert found.bend == pytest.approx(3000, rel=0.15)
    assert (found.before, found.after) == (pytest.approx(0.8, abs=0.03), pytest.approx(-0.2, abs=0.03))
    assert found.slope == pytest.approx(linregress(np.log(sizes), np.log(values)).slope)
    # too small a turn is none, however sharp
    slight = growth(sizes, np.where(sizes < 3000, sizes**0.5, 3000**0.05 * sizes**0.45))
    assert slight.p < 0.001
    assert slight.bend is None
    assert growth(sizes[:4], sizes[:4] ** 0.7).slope == pytest.approx(0.7)


def test_growth_seldom_sees_a_bend_in_noise_around_a_line() -> None:
    sizes, rng = 2.0 ** np.arange(6, 15), np.random.default_rng(6)
    chances = np.array([growth(sizes, sizes**0.4 * np.exp(0.05 * rng.standard_normal(9))).p for _ in range(100)])
    assert abs(np.mean(chances) - 0.5) < 0.1
    assert np.mean(chances < 0.05) <= 0.11


def test_population_speed_counts_the_steps_of_all_slots_while_all_are_warm() -> None:
    rng = np.random.default_rng(7)
    rows = []
    for pid, began in ((1, 0.0), (2, 4.3)):
        end = began
        for i in range(20):
            seconds = rng.uniform(0.2, 0.5)
            end += seconds + rng.uniform(0, 0.3)
            rows.append((pid, end, 2048.0 * (i + 1), i + 1, 2048 / seconds))
    frame = pd.DataFrame(rows, columns=["actor_pid", "wall_time", "env_steps", "iteration", "steps_per_second"])
    firsts = frame[frame.iteration == 1].wall_time
    clock = np.linspace(firsts.max(), frame.wall_time.max(), 200_001)  # rate of every moment, by brute force
    rate = sum(
        row.steps_per_second * ((clock > row.wall_time - 2048 / row.steps_per_second) & (clock <= row.wall_time))
        for row in frame.itertuples()
    )
    assert population_speed(frame) == pytest.approx(rate.mean(), rel=1e-3)


def test_peak_memory_is_the_process_own() -> None:
    """The peak stays after memory is given back; what the larger parent holds does not count."""
    held = np.ones(50_000_000)
    code = "block = b'x' * 200_000_000; del block; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        peak = peak_mb(child.pid)
        child.communicate(b"\n")
    assert peak_mb() > held.nbytes / 1e6
    assert 200 < peak < 300


@pytest.mark.launch
def test_scaling_measures_every_size_in_its_own_process(tmp_path: Path) -> None:
    scaling.main(["--quick", "--axes", "features", "members", "--out", str(tmp_path)])
    runs, curves = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("scaling", "scaling_growth"))
    values = runs.set_index(["axis", "size", "series", "quantity"]).value.sort_index()
    for size in scaling.QUICK_SIZES["features"]:
        process = values["features", size, "process"]
        assert process[scaling.MEMORY] > process["memory after imports, MB"] > 100
        assert (values["features", size][["training", "rollouts"]] > 0).all()
    for size in scaling.QUICK_SIZES["members"]:
        assert values["members", size, "slots", "count"] in range(1, min(size, available_cpus()) + 1)
        assert (values["members", size] > 0).all()
    assert set(zip(curves.axis, curves.series, strict=True)) == {
        *(("features", series) for series in ("training", "rollouts", "process")),
        *(("members", series) for series in ("population", "driver", "slot")),
    }
    lines = ElementTree.parse(tmp_path / "scaling.svg").getroot().findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.get("points", "").split()) for line in lines] == [2] * len(curves)


def test_scaling_widens_the_market_of_the_arena() -> None:
    plain, wide = (setting_of(128, 1500, features) for features in (None, 200))
    assert wide.observation_dim - plain.observation_dim == 200 - plain.market.features.shape[1]
    assert wide.env(64, key=1).reset().shape == (64, wide.observation_dim)
    assert len(wide.market.dates) == 1500


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
