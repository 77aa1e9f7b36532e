"""The command as its users run it: whole runs in subprocesses, on a market and a network as small as they go."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file as load_tensors

from analysis import report
from analysis.frames import KEYS, schema_of
from analysis.statistics import evidence
from analysis.timing import first_gradient
from envs.bars import load_bars
from pbt import backtest, status
from pbt.launch import main
from pbt.manifest import Population
from pbt.run_dir import RunDir
from pbt.store import StateStore
from rayconf.sections import DataConfig
from rayconf.storage import LocalStorage
from tests.commands import MINUTES, command, environment, launch, run_module, tiny
from tests.conftest import ROOT
from tests.pbt.conftest import TINY
from tests.pbt.wandb_logs import logs

pytestmark = pytest.mark.usefixtures("alone")

FRAMES = ("progress", "lineage", "diversity", "validation", "daily", "summary", "evidence", "events")


def frame_bytes(run: Path) -> dict[str, bytes]:
    return {name: (run / "frames" / f"{name}.parquet").read_bytes() for name in ("lineage", "daily", "validation")}


def test_every_file_of_the_design(undisturbed: Path) -> None:
    for name in ("config.yaml", "summary.csv", "summary.json", "report.html", "run.log", "tensorboard", "members"):
        assert (undisturbed / name).exists(), name
    for name in FRAMES:
        table = pq.read_table(undisturbed / "frames" / f"{name}.parquet")
        search = list(yaml.safe_load((undisturbed / "config.yaml").read_text())["search"])
        assert table.schema.equals(schema_of(name, search), check_metadata=True), name
        keys = table.select(list(KEYS[name])).to_pandas()
        assert not keys.duplicated().any()
        if name != "events":
            assert keys.equals(keys.sort_values(list(KEYS[name]), kind="stable").reset_index(drop=True)), name
    for pair in ("SYNA_SYNB", "SYNC_SYND"):
        for name in ("policy.safetensors", "policy.json", "scaler.json", "config.yaml", "schedule.parquet"):
            assert (undisturbed / "survivors" / pair / "1" / name).is_file(), name
        assert (undisturbed / "state" / f"{pair}.json").is_file()
    assert not (undisturbed / "tune").exists()


def test_summary_json_says_what_the_frames_say(undisturbed: Path) -> None:
    content = json.loads((undisturbed / "summary.json").read_text())
    assert content["status"] == "complete"
    summary = pd.read_parquet(undisturbed / "frames" / "summary.parquet")
    found = evidence(undisturbed)  # from the frames alone, to the bit what the launch wrote
    for pair, entry in content["pairs"].items():
        of_pair = summary[summary.pair == pair]
        rows = of_pair.query("split == 'test' and policy == 'survivor-1'").set_index("scenario")
        figures = entry["survivors"][0]["test"]
        assert set(figures) == set(rows.index)
        assert len(figures) == 7  # the run's own terms, and three costs at two lags
        assert figures["base"]["annualised_sharpe"] == rows.loc["base", "annualised_sharpe"]
        assert {"cash", "equal_weight", "vol_target", "hold_a", "hold_b", "zscore", "static_gross"} <= set(
            entry["baselines"]
        )
        assert entry["verdict"] == found[pair].sentence()
        assert entry["statistics"] == json.loads(json.dumps(found[pair].as_dict()))
        deflated = of_pair.query("split == 'validation' and scenario == 'base'").set_index("policy").deflated_sharpe
        assert deflated["survivor-1"] == entry["statistics"]["deflated_sharpe"]
        assert deflated[["cash", "equal_weight"]].isna().all()


def test_lineage_accounts_for_every_member(undisturbed: Path) -> None:
    lineage = pd.read_parquet(undisturbed / "frames" / "lineage.parquet")
    assert len(lineage) == 2 * 3 * 3  # pairs x members x (start and two generations)
    assert set(lineage.query("generation == 0").operation) == {"start"}
    assert set(lineage.query("generation == 2").operation) == {"stop"}
    assert "exploit" in set(lineage.operation)  # smoke takes every positive gap
    exploits = lineage.query("operation == 'exploit'")
    states = lineage.set_index(["pair", "generation", "member"]).state
    for row in exploits.itertuples():
        assert row.parent_member != row.member
        assert row.state == states[row.pair, row.generation, row.parent_member]
    progress = pd.read_parquet(undisturbed / "frames" / "progress.parquet")
    assert progress.actor_pid.nunique() <= 2  # a third process would be a restarted slot
    assert (progress.lr_first_step > 0).all()
    # Constant learning rate after warm-up: what PBT chose is what the first minibatch used.
    settled = progress.query("iteration == 2")
    assert (settled.lr_first_step / settled.hp_learning_rate - 1).abs().max() < 1e-6


def test_the_test_span_is_read_once(undisturbed: Path) -> None:
    events = pd.read_parquet(undisturbed / "frames" / "events.parquet")
    assert list(events.kind) == ["start", "plan", "plan", "first_step", "look", "done"]
    seconds = [float(text) for text in re.findall(r"([\d.]+) s", events.detail[3])]
    rows = pd.read_parquet(undisturbed / "frames" / "progress.parquet").to_dict("records")
    # The command began before its first event; the first step came before the first barrier did.
    assert 0 < seconds[0] <= seconds[1] < 8 * MINUTES
    assert first_gradient(rows) - seconds[1] < events.wall_time[0] + 0.1


def test_another_seed_gives_other_bits(undisturbed: Path) -> None:
    """Comparisons of lineages can fail: the seed is in their keys."""
    lineage = pd.read_parquet(undisturbed / "frames" / "lineage.parquet")
    from pbt.generation import training_key
    from rayconf import load_config

    run = load_config("smoke", assignments=[*TINY, "seed=7"])
    first = lineage.iloc[0]
    assert first.key == f"{training_key(run, first.pair, first.member, 1):016x}"
    other = run.model_copy(update={"seed": 8})
    assert first.key != f"{training_key(other, first.pair, first.member, 1):016x}"


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in listed]


def terminal(arguments: list[str]) -> str:
    """What a run paints on a pseudo-terminal of 120 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(COLUMNS="120", LINES="40", TERM="xterm"), stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    painted = b""
    deadline = time.monotonic() + 8 * MINUTES
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.5)[0]:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError:  # the other end has closed
                break
            if not chunk:
                break
            painted += chunk
    os.close(ours)
    assert process.wait(timeout=MINUTES) == 0, painted.decode(errors="replace")[-2000:]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", painted.decode(errors="replace"))


def test_an_interrupt_ends_cleanly_even_where_python_drops_it_and_can_be_resumed(
    undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The resumed run, watched in a terminal, ends with the frames of the undisturbed one."""
    run = tmp_path / "tiny"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.saboteur", "an-interrupt-is-lost", *tiny(tmp_path)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 5 * MINUTES
    while not (run / "state" / "SYNA_SYNB.json").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = children(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=2 * MINUTES)
    assert process.returncode == 130
    assert "Exception ignored in: <function an_interrupt_is_lost" in errors
    assert errors.strip().splitlines()[-1].startswith("pairpbt: interrupted")
    assert below, "Ray runs as children of the command"
    deadline = time.monotonic() + MINUTES
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < deadline, "Ray was left running"
        time.sleep(0.1)
    assert not (run / "frames" / "daily.parquet").exists()

    resume = ["--resume", "--run-dir", str(tmp_path), "--name", "tiny"]
    screen = terminal(command(*resume))
    assert "ensemble" in screen
    assert frame_bytes(run) == frame_bytes(undisturbed)
    assert "resume" in set(pd.read_parquet(run / "frames" / "events.parquet").kind)
    assert screen.count("hyperparameters of the best") >= 2  # repaints

    assert main(resume) == 0
    assert capfd.readouterr().out.strip() == f"complete; report {run / 'report.html'}"
    assert main([*resume, "--set", "ppo.gamma=0.9"]) == 2
    assert "ppo.gamma was 0.95" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("folder", "pairs", "per_year"), [("daily", "AAPL/AMZN,AMZN/MSFT", 252), ("hourly_ibkr", "AAPL/MSFT", 1764)]
)
def test_real_prices(shared_data: Path, tmp_path: Path, folder: str, pairs: str, per_year: int) -> None:
    data = shared_data / folder
    small = ["--population", "2", "--iterations", "1"]
    for text in ("ppo.num_envs=64", "ppo.minibatch_size=1024", "pbt.survivors=1", "resources.cpus=1"):
        small += ["--set", text]
    where = ["--data-dir", str(data), "--pairs", pairs, "--run-dir", str(tmp_path), "--name", "a"]
    done = launch("--preset", "smoke", *where, *small)
    assert done.returncode == 0, done.stderr
    summary = pd.read_parquet(tmp_path / "a" / "frames" / "summary.parquet")
    daily = pd.read_parquet(tmp_path / "a" / "frames" / "daily.parquet")
    pair = pairs.split(",")[0]
    held = daily.query("pair == @pair and split == 'test' and scenario == 'base' and policy == 'hold_a'")
    bars = load_bars(data, pair.split("/")[0], DataConfig())
    opens = pd.Series(bars.open, index=bars.dates)
    expected = opens[held.date].to_numpy()
    grown = held.equity.iloc[-2] / (1 - 2e-4)  # one cost at the start; the last row earns beyond the last date
    assert grown == pytest.approx(expected[-1] / expected[0], rel=5e-5)
    days = summary.query("pair == @pair and split == 'test' and scenario == 'base'").days.unique()
    assert len(days) == 1
    assert abs(len(held) / days[0] - per_year / 252) < 0.1


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good tickers, and one of each kind of damage."""
    folder = tmp_path_factory.mktemp("prices")
    from envs.synthetic import synthetic_pair
    from rayconf.sections import SyntheticConfig

    for bars in synthetic_pair("GOOD/FINE", SyntheticConfig(bars=1600)):
        table = pd.DataFrame(
            {
                "date": bars.dates.astype(str),
                **{n: getattr(bars, n) for n in ("open", "high", "low", "close", "volume")},
            }
        )
        table.to_csv(folder / f"{bars.ticker}.csv", index=False)
    good = pd.read_csv(folder / "GOOD.csv")
    good.head(300).to_csv(folder / "SHORT.csv", index=False)
    pd.concat([good.head(500), good.iloc[499:]]).to_csv(folder / "TWICE.csv", index=False)
    broken = good.copy()
    broken.loc[700, "close"] = float("nan")
    broken.to_csv(folder / "HOLE.csv", index=False)
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """An empty working directory that must stay empty."""
    folder = tmp_path / "empty"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


MISTAKES = {
    "missing file": (["--pairs", "GOOD/GONE"], r"GONE"),
    "missing directory": (["--data-dir", "nowhere", "--pairs", "GOOD/FINE"], r"nowhere"),
    "typo in a pair": (["--pairs", "GOOD-FINE"], r"'GOOD-FINE' is no pair; write .* AAA/BBB"),
    "path in a ticker": (["--pairs", "../GOOD/FINE"], r"is no pair"),
    "unknown preset": (["--preset", "smok"], r"--preset: 'smok' is unknown; choose one of default, demo, log-pairs"),
    "unknown field": (["--set", "ppo.gama=0.9"], r"'ppo.gama' is no field .*0\.9.*did you mean ppo\.gamma"),
    "wrong type": (["--set", "ppo.num_envs=many"], r"ppo\.num_envs: .*integer.*'many'"),
    "negative cost": (["--set", "costs.commission_bps=-1"], r"costs\.commission_bps: .*greater than or equal to 0.*-1"),
    "lag 0": (["--set", "env.lag=0"], r"env\.lag: .*greater than or equal to 1.*0"),
    "leverage 0": (["--set", "costs.leverage=0"], r"costs\.leverage: .*greater than 0.*0"),
    "too short": (["--pairs", "GOOD/SHORT"], r"GOOD/SHORT: 300 bars are too few"),
    "duplicate dates": (["--pairs", "TWICE/FINE"], r"TWICE\.csv.*row 502"),
    "missing price": (["--pairs", "HOLE/FINE"], r"HOLE\.csv.*row 702.*close"),
    "no assignment": (["--set", "ppo.gamma"], r"--set: 'ppo.gamma' must read"),
    "unknown flag": (["--speed", "9"], r"--speed"),
    "wrong flag type": (["--population", "some"], r"--population.*'some'"),
    "interval": (["--iterations", "5", "--set", "pbt.interval=2"], r"interval 2 must divide iterations 5"),
    "gpu": (["--set", "resources.gpus_per_member=0.5"], r"resources\.gpus_per_member"),
    "no cluster": (["--address", "127.0.0.1:9"], r"--address: nothing listens at '127\.0\.0\.1:9'"),
    "resume of nothing": (["--resume", "--name", "never"], r"holds no run"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(
    mistake: str, prices: Path, empty: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if mistake == "gpu":
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU, so asking for one is no mistake")
    arguments, message = MISTAKES[mistake]
    if "--data-dir" not in arguments:
        arguments = ["--data-dir", str(prices), *arguments]
    if "--pairs" not in arguments:
        arguments = [*arguments, "--pairs", "GOOD/FINE"]
    if "--preset" not in arguments:
        arguments = [*arguments, "--preset", "smoke"]
    monkeypatch.chdir(empty)
    code, told = main(arguments), capfd.readouterr()
    assert code == 2, told
    assert re.search(message, told.err), told.err
    assert len(told.err.strip().splitlines()) == 1, told.err
    assert told.out == ""


def test_a_run_directory_that_exists_is_refused_untouched(tmp_path: Path) -> None:
    """As a process of its own, which says one line and no more either."""
    (tmp_path / "taken").mkdir()
    done = launch("--preset", "smoke", "--run-dir", str(tmp_path), "--name", "taken")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "exists" in done.stderr
    assert list((tmp_path / "taken").iterdir()) == []


def test_the_written_config_repeats_the_run(undisturbed: Path, tmp_path: Path) -> None:
    done = launch("--config", str(undisturbed / "config.yaml"), "--run-dir", str(tmp_path), "--dry-run")
    assert done.returncode == 0, done.stderr
    from rayconf.loading import build_config, load_file

    settings = load_file(undisturbed / "config.yaml")
    assert settings["versions"]["ray"] == "2.60.0"
    assert build_config(settings).to_yaml() == (undisturbed / "config.yaml").read_text()
    assert not list(tmp_path.iterdir())


def test_backtest_again_over_a_grid_and_status(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(undisturbed, run)
    before = (run / "frames" / "daily.parquet").read_bytes()
    done = run_module("pbt.backtest", str(run), "--grid", "costs=0,2,20", "lag=1")
    assert done.returncode == 0, done.stderr
    target = Path(done.stdout.strip().splitlines()[-1].removeprefix("backtest "))
    assert target.parent == run / "backtests"
    again = pd.read_parquet(target / "frames" / "daily.parquet").set_index(["scenario", "pair", "policy", "date"])
    assert set(again.index.get_level_values("scenario")) == {"base", "cost0-lag1", "cost2-lag1", "cost20-lag1"}
    first = pd.read_parquet(run / "frames" / "daily.parquet").query("split == 'test' and scenario == 'base'")
    first = first.set_index(["scenario", "pair", "policy", "date"])
    pd.testing.assert_frame_equal(again.loc[["base"]], first, check_like=True)  # survivors from disk, to the bit
    assert (run / "frames" / "daily.parquet").read_bytes() == before
    events = pd.read_parquet(run / "frames" / "events.parquet")
    assert list(events.kind).count("look") == 2

    shown = run_module("pbt.status", str(run))
    assert shown.returncode == 0
    assert "complete" in shown.stdout
    assert "SYNA/SYNB" in shown.stdout
    assert "time: " in shown.stdout


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (backtest, ["nowhere"], "holds no run"),
        (status, ["nowhere"], "holds no run"),
        (report, ["nowhere"], "no such run"),
        (backtest, ["nowhere", "--grid", "cost=1"], "must be one of costs, lag"),
        (backtest, ["nowhere", "--grid", "lag=soon"], "must list numbers"),
    ],
)
def test_mistakes_of_the_other_commands(
    module: ModuleType, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert module.main(arguments) == 2
    told = capfd.readouterr()
    assert message in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert told.out == ""


OTHER_WAYS = (
    "env.risk_measure=drawdown",
    "env.lag=2",
    "env.mapping=neutral",
    "optimizer.kind=muon_mix",
    "optimizer.schedule=cosine",
    "optimizer.ema_half_life=0",
    "pbt.fitness=growth",
    "pbt.fitness_smoothing=0.5",
    "data.fill=close",
    "features.extremes=tanh",
    "network.activation=silu",
    "costs.financing=gross",
    "tracking.wandb=offline",
)


def test_every_other_way_runs_too(tmp_path: Path) -> None:
    """All alternatives to the defaults at once, with closes-only fills and an offline tracker."""
    ways = [argument for way in OTHER_WAYS for argument in ("--set", way)]
    done = launch(*tiny(tmp_path, *ways, "--wandb-tags", "a,b", "--wandb-group", "ways"))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "tiny"
    summary = pd.read_parquet(run / "frames" / "summary.parquet")
    assert set(summary.query("scenario == 'base'").lag) == {2}
    daily = pd.read_parquet(run / "frames" / "daily.parquet").query("policy == 'survivor-1'")
    assert (daily.weight_a + daily.weight_b).abs().max() < 1e-12  # dollar-neutral
    found = logs(run)
    assert len(found) == 7
    assert [found[f"SYNC_SYND-m0{i}"].steps for i in range(3)] == [[1, 2]] * 3
    results = found["tiny-results"]
    assert list(results.run.tags) == ["a", "b"]
    assert results.run.run_group == "ways"
    headline = summary.query("scenario == 'base' and split == 'test' and policy == 'ensemble' and pair == 'SYNA/SYNB'")
    assert results.summary["SYNA_SYNB/annualised_sharpe"] == pytest.approx(headline.annualised_sharpe.item())
    written = json.loads((run / "summary.json").read_text())
    verdicts = {pair: entry["verdict"] for pair, entry in written["pairs"].items()}
    artifacts = {artifact.type: artifact for artifact in results.artifacts}
    assert {kind: artifact.name for kind, artifact in artifacts.items()} == {
        "model": "tiny-survivors",
        "dataset": "tiny-frames",
    }
    for artifact in artifacts.values():
        assert json.loads(artifact.metadata)["verdicts"] == verdicts
        for entry in artifact.manifest.contents:  # copies within the run, equal to what they stand for
            assert Path(entry.local_path).is_relative_to(run / "wandb")
            assert Path(entry.local_path).read_bytes() == (run / entry.path).read_bytes()
    kept = {entry.path for artifact in artifacts.values() for entry in artifact.manifest.contents}
    assert {"survivors/SYNA_SYNB/1/policy.safetensors", "frames/daily.parquet", "report.html"} <= kept
    settings = yaml.safe_load((run / "config.yaml").read_text())["tracking"]
    assert (settings["wandb"], settings["wandb_project"], settings["wandb_tags"]) == ("offline", "pairpbt", ["a", "b"])
    events = pd.read_parquet(run / "frames" / "events.parquet")
    assert events.detail.str.contains("fill at closes").sum() == 2


def test_tensorboard_holds_the_progress(undisturbed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    progress = pd.read_parquet(undisturbed / "frames" / "progress.parquet")
    rows = progress.query("pair == 'SYNA/SYNB' and member == 'm01'").sort_values("iteration")
    log = EventAccumulator(str(undisturbed / "tensorboard" / "SYNA_SYNB-m01"))
    log.Reload()
    found = [(event.step, event.value) for event in log.Scalars("reward_mean")]
    assert [step for step, _ in found] == rows.env_steps.tolist()
    assert [value for _, value in found] == pytest.approx(rows.reward_mean.tolist(), rel=1e-6)


def test_a_failure_is_one_line_with_status_one_and_the_run_is_kept(undisturbed: Path, tmp_path: Path) -> None:
    """A state file that vanished: the run cannot go on, says so, and nothing else is lost."""
    run = tmp_path / "moved"
    shutil.copytree(undisturbed, run)
    (run / "summary.json").unlink()
    kept = frame_bytes(run)
    for state in (run / "members" / "states").iterdir():
        state.unlink()
    done = launch("--resume", "--run-dir", str(tmp_path), "--name", "moved")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(run / "run.log") in done.stderr
    assert "Traceback" in (run / "run.log").read_text()
    assert frame_bytes(run) == kept


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of the direct arm on one pair."""
    folder = tmp_path_factory.mktemp("direct")
    settings = ["algo=direct", "direct.windows=8", "direct.window_bars=30", "data.pairs=SYNA/SYNB", "pbt.population=2"]
    done = launch(*tiny(folder, *(word for text in settings for word in ("--set", text))))
    assert done.returncode == 0, done.stderr
    return folder / "tiny"


def test_the_direct_arm_runs_by_the_same_command(direct: Path) -> None:
    progress = pd.read_parquet(direct / "frames" / "progress.parquet")
    assert len(progress) == 2 * 2
    assert list(progress.env_steps.unique()) == [8 * 30 * 8, 2 * 8 * 30 * 8]
    assert progress[["value_loss", "entropy", "kl", "clip_fraction", "explained_variance"]].isna().all(axis=None)
    told = ["policy_loss", "reward_mean", "grad_norm", "lr_first_step", "env_seconds", "learner_seconds"]
    assert progress[told].notna().all(axis=None)
    assert {"hp_learning_rate", "hp_turnover_penalty"} < set(progress) - {"hp_risk_penalty", "hp_cvar_weight"}
    assert (direct / "survivors" / "SYNA_SYNB" / "1" / "policy.safetensors").is_file()


def test_ppo_goes_on_from_what_the_direct_arm_trained(direct: Path, tmp_path: Path) -> None:
    """It starts from the survivor's very weights, and trains them on with a critic of its own."""
    settings = ["data.pairs=SYNA/SYNB", "pbt.population=2", "pbt.iterations=1", "backtest.cost_bps=[]"]
    words = (word for text in settings for word in ("--set", text))
    done = launch(*tiny(tmp_path, *words, "--base-checkpoint", str(direct)))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "tiny"
    population, store = Population.read(RunDir(run).manifest("SYNA/SYNB")), StateStore(LocalStorage(run))
    (start,) = population.bases
    begun, survivor = store.load(start), load_tensors(direct / "survivors" / "SYNA_SYNB" / "1" / "policy.safetensors")
    actor = {f"module/pi.{2 * i}.{kind}": f"{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert all(begun[ours].double().equal(survivor[theirs]) for ours, theirs in actor.items())
    for snapshot in population.archive:
        trained = store.load(snapshot.state)
        assert not any(trained[name].equal(begun[name]) for name in actor)
    progress = pd.read_parquet(run / "frames" / "progress.parquet")
    assert progress[["value_loss", "kl", "explained_variance"]].notna().all(axis=None)
