"""From the hub to a trained policy: download, forecaster, Parquet, features, training; and every way it may fail."""

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from safetensors.numpy import save

from analysis.frames import read_frame
from envs.features import lookback
from envs.market import load_legs
from pbt.audit import main as audit
from pbt.decide import main as decide
from pbt.forecaster import TOTO
from pbt.forecasters.rolling import batches, forecast_series
from pbt.launch import main as launch
from pbt.publication import Publication, build
from rayconf.loading import build_config, load_config, load_file
from tests.commands import command, tiny
from tests.conftest import ROOT
from tests.hub_server import Hub, client

PAIR = "SYNA/SYNB"
NAME = "trader/linear"
FORECASTERS = TOTO.parent
LINEAR = [sys.executable, str(FORECASTERS / "linear.py")]
HORIZONS, QUANTILES, LAGS = (1, 5), (0.1, 0.5, 0.9), 4
WEIGHT = np.array([[0.0, 0.0, 0.1, -0.2], [0.1, 0.1, -0.3, -0.5]], np.float32)
SPREAD = np.array([1.1, 2.3], np.float32)
CONFIG = {"format": "linear", "horizons": list(HORIZONS), "lags": LAGS}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": save({"weight": WEIGHT, "spread": SPREAD}),
    "pytorch_model.bin": pickle.dumps(WEIGHT),
    "modeling.py": b"raise SystemExit('code of a repository has run')\n",
    "README.md": b"# linear\n",
}
ASKED = (
    f"data.pairs=[{PAIR}]",
    f"forecasts.model={NAME}",
    f"forecasts.command={json.dumps(LINEAR)}",
    f"forecasts.horizons={list(HORIZONS)}",
    "forecasts.context=60",
    "forecasts.series=[spread, b]",
)
BARS = 900
SMALL = ("pbt.population=2", "pbt.survivors=2", "backtest.cost_bps=[1]", "backtest.lags=[1]")
FETCH = "import sys; from pbt.hub import fetch; print(fetch(sys.argv[1]))"
FIND = """
import json, sys
from pbt.forecasts import find_forecasts
from rayconf.errors import UserError
from rayconf.loading import load_config
for settings in json.loads(sys.argv[1]):
    try:
        found = find_forecasts(load_config("smoke", assignments=settings))
        made = found.forecasts
        print(json.dumps([made and made.digest, made and made.made_by, found.why_not, None]))
    except UserError as error:
        print(json.dumps([None, None, None, str(error)]))
"""


def sets(*assignments: str) -> list[str]:
    return [word for text in assignments for word in ("--set", text)]


def started(arguments: list[str], hub: Hub, home: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own with a cache of its own: the hub's client reads its environment once."""
    environment = client(hub.url, home)
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def looked_for(hub: Hub, home: Path, *runs: tuple[str, ...]) -> list[list[Any]]:
    """Digest, maker, why not and error of the forecasts of each run."""
    whole = [[f"synthetic.bars={BARS}", *ASKED, *run] for run in runs]
    done = started([sys.executable, "-c", FIND, json.dumps(whole)], hub, home)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        server.add(NAME, FILES)
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def trained(hub: Hub, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose features hold forecasts of a model that was downloaded for it."""
    import ray

    ray.shutdown()
    arguments = tiny(tmp_path_factory.mktemp("forecasts"), *sets(*SMALL, *ASKED))
    done = started(command(*arguments), hub, home)
    assert done.returncode == 0, done.stderr
    assert f"{PAIR}: features hold forecasts of {NAME}@{commit(hub)}" in done.stdout
    return Path(done.stdout.strip().splitlines()[-1].removeprefix("report ")).parent


def commit(hub: Hub) -> str:
    return hub.repos[NAME].branches["main"]


def slow_forecast(values: np.ndarray, horizon: int, quantile: float) -> float:
    """The linear model's formula on the values up to a bar, one number at a time."""
    changes = [float(values[i] - values[i - 1]) for i in range(len(values) - LAGS, len(values))]
    row = HORIZONS.index(horizon)
    mean = sum(float(w) * c for w, c in zip(WEIGHT[row], changes, strict=True))
    return mean + NormalDist().inv_cdf(quantile) * float(SPREAD[row]) * (sum(c * c for c in changes) / LAGS) ** 0.5


def test_forecasts_of_a_downloaded_model_are_features_of_the_trained_policy(
    trained: Path, hub: Hub, home: Path
) -> None:
    run = build_config(load_file(trained / "config.yaml"))
    assert run.forecasts.made_by == f"{NAME}@{commit(hub)}"
    names = json.loads((trained / "survivors" / "SYNA_SYNB" / "1" / "scaler.json").read_text())["names"]
    assert names[-12:] == [f"forecast_{s}_{h}_q{q}" for s in ("spread", "b") for h in HORIZONS for q in QUANTILES]
    table = pd.read_parquet(trained / "forecasts.parquet").set_index(["pair", "date", "horizon", "quantile"])
    a, b = load_legs(run)[PAIR]
    first = lookback(run.features) - 1
    series = {PAIR: np.log(a.close) - np.log(b.close), "SYNB": np.log(b.close)}
    assert len(table) == 2 * (len(a) - first) * 6
    for name, values in series.items():
        for t in (first, first + 255, first + 256, len(a) - 1):
            for horizon in HORIZONS:
                for quantile in QUANTILES:
                    found = table.value[name, a.dates[t], horizon, quantile]
                    assert found == pytest.approx(slow_forecast(values[: t + 1], horizon, quantile), rel=1e-9)
    assert any(
        "features hold forecasts of" in x
        for x in read_frame(trained / "frames" / "events.parquet")["detail"].to_pylist()
    )
    assert f"features hold forecasts of {NAME}" in (trained / "report.html").read_text()
    fetched = " ".join(hub.requests)
    assert "model.safetensors" in fetched
    assert not any(name in fetched for name in ("pytorch_model.bin", "modeling.py"))
    (folder,) = home.glob("assets/pairpbt/*/*/model")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_resume_reads_what_was_kept(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, whose hub is another."""
    arguments = ["--resume", "--run-dir", str(trained.parent), "--name", trained.name]
    assert launch(arguments) == 0
    assert "complete; report" in capsys.readouterr().out
    kept = trained / "forecasts.parquet"
    before = kept.read_bytes()
    try:
        frame = pd.read_parquet(kept)
        frame.loc[frame["quantile"] == 0.9, "value"] += 1e-3
        frame.to_parquet(kept)
        assert launch(arguments) == 2
        assert "forecasts.parquet: is not what the run was trained with" in capsys.readouterr().err
        kept.unlink()
        assert launch(arguments) == 2
        assert "forecasts.parquet: missing, though features of this run hold forecasts" in capsys.readouterr().err
    finally:
        kept.write_bytes(before)


def test_deciding_takes_forecasts_of_todays_prices(
    trained: Path, hub: Hub, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survivor = str(trained / "survivors" / "SYNA_SYNB" / "1")
    assert decide([survivor]) == 2
    assert "--forecasts: missing; SYNA/SYNB was trained with forecasts of trader/linear@" in capsys.readouterr().err
    made = tmp_path / "today.parquet"
    arguments = [survivor, "--output", str(made), "--command", " ".join(LINEAR)]
    hub.faults["down"] = 1  # prices, model and program are those of the launch: all is in the cache
    done = started([sys.executable, "-m", "pbt.forecast", *arguments], hub, home)
    hub.faults.clear()
    assert done.returncode == 0, done.stderr
    rows = read_frame(trained / "frames" / "daily.parquet", scenario="base", pair=PAIR, policy="survivor-1")
    first = rows.to_pandas().query("split == 'test'").iloc[0]
    assert decide([survivor, "--forecasts", str(made), "--date", f"{first.decision_date:%Y-%m-%d}", "--json"]) == 0
    weights = json.loads(capsys.readouterr().out)["target_weights"]
    assert weights == {"SYNA": first.target_weight_a, "SYNB": first.target_weight_b}
    frame = pd.read_parquet(made)
    frame.assign(revision="other").to_parquet(made)
    assert decide([survivor, "--forecasts", str(made)]) == 2
    assert "forecasts.revision" in capsys.readouterr().err
    frame[frame.date < frame.date.max()].to_parquet(made)
    assert decide([survivor, "--forecasts", str(made)]) == 2
    assert "today.parquet: has no forecast of SYNA/SYNB at" in capsys.readouterr().err


def test_the_audit_finds_no_lookahead_in_them(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit([str(trained), "--lookahead", "--bars", "3"]) == 0, capsys.readouterr().out


def test_a_published_run_names_no_program_and_one_that_does_is_not_obeyed(
    trained: Path, hub: Hub, home: Path, tmp_path: Path
) -> None:
    build(Publication.of(trained), tmp_path, "trader/run")
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not any("parquet" in name and "forecasts" in name for name in files)
    for name in [name for name in files if name.endswith("config.json")]:
        settings = json.loads(files[name])
        own = settings["forecasts"]
        assert (own["command"], own["python"], own["file"]) == (None, None, None)
        assert (own["model"], own["made_by"]) == (NAME, f"{NAME}@{commit(hub)}")
        own["command"] = ["sh", "-c", "touch obeyed"]
        files[name] = json.dumps(settings).encode()
    hub.add("trader/run", files)
    done = started([sys.executable, "-c", FETCH, "hf://trader/run"], hub, home)
    assert done.returncode == 0, done.stderr
    for path in Path(done.stdout.strip()).rglob("config.yaml"):
        assert build_config(load_file(path)).forecasts.command is None


def test_without_hub_model_or_program_a_line_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    hub.add("trader/pickled", {"config.json": b"{}", "pytorch_model.bin": FILES["pytorch_model.bin"]})
    hub.add("trader/torn", {**FILES, "model.safetensors": b"torn"})
    gone = f"forecasts.command={json.dumps([str(tmp_path / 'python'), 'x.py'])}"
    cases: dict[tuple[str, ...], str] = {
        ("forecasts.model=trader/none",): "forecasts.model: hf://trader/none: no such repository",
        ("forecasts.revision=v9",): f"forecasts.model: hf://{NAME}: has no such revision",
        ("forecasts.model=trader/pickled",): "hf://trader/pickled: has no weights as .safetensors",
        ("forecasts.model=trader/torn",): "linear.py ended with status 2: ",
        (gone,): f"forecasts.command: cannot start {tmp_path / 'python'}: No such file or directory; make its env",
        ("forecasts.command=null",): "pip install toto-ts pyarrow) and set forecasts.python=venv-toto/bin/python",
        ("forecasts.horizons=[1, 9]",): "the model knows horizons [1, 5] and needs 5 bars",
        ("forecasts.model=null", "forecasts.command=null", "forecasts.file=no.parquet"): "there is no no.parquet; make",
    }
    optional = [(*case, "forecasts.optional=true") for case in cases]
    found = looked_for(hub, tmp_path, *cases, *optional)
    assert len(found) == 2 * len(cases)
    for message, strict, lenient in zip(cases.values(), found, found[len(cases) :], strict=False):
        assert message in strict[3]
        assert strict[3].endswith(
            "or set forecasts.file to forecasts made elsewhere, or forecasts.optional=true to run without"
        )
        assert lenient[:2] == [None, None]
        assert message in lenient[2]


COUNT = "import sys; open({starts!r}, 'a').write('x')"
LEAKY = f"""
import sys
sys.path.insert(0, {str(FORECASTERS)!r})
import numpy as np, pyarrow.parquet as pq
from rolling import main

class Model:
    def __init__(self, folder):
        scale = {{scale}}
        values = pq.read_table(sys.argv[sys.argv.index("--input") + 1])["value"].to_numpy()
        self.scale = np.diff(values).std() if scale else 0.01
    def forecast(self, windows, known, horizons, quantiles, seed):
        noise = np.random.default_rng(seed).standard_normal(windows.shape[0])[:, None, None]
        offsets = {{order}} * (np.array(quantiles) - 0.5)
        return self.scale * (noise + np.sqrt(horizons)[:, None] * offsets) + np.zeros((1, len(horizons), 1))

sys.exit(main(Model))
"""


def test_a_forecaster_that_sees_later_bars_is_refused(hub: Hub, tmp_path: Path) -> None:
    """Scaling by the deviation of the whole series is the leak made most easily; optional does not excuse it."""
    runs = []
    for name, scale, order in (("honest", False, 1), ("leaky", True, 1), ("crossing", False, -1)):
        program = tmp_path / f"{name}.py"
        program.write_text(LEAKY.format(scale=scale, order=order))
        runs.append((f"forecasts.command={json.dumps([sys.executable, str(program)])}", "forecasts.optional=true"))
    honest, leaky, crossing = looked_for(hub, tmp_path / "home", *runs)
    assert honest[3] is None
    assert honest[1] == f"{NAME}@{commit(hub)}"
    assert "leaky.py is not causal: SYNA/SYNB at " in leaky[3]
    assert "once the bars after " in leaky[3]
    assert "quantiles must not cross" in crossing[3]


def test_equal_input_is_forecast_once(hub: Hub, tmp_path: Path) -> None:
    """A program that counts its starts: one for the forecasts and three for the checks, then none."""
    program, starts = tmp_path / "counted.py", tmp_path / "starts"
    program.write_text(LEAKY.format(scale=False, order=1).replace("import sys", COUNT.format(starts=str(starts)), 1))
    run = (f"forecasts.command={json.dumps([sys.executable, str(program)])}",)
    longer = (*run, "forecasts.context=61", "forecasts.checks=0")
    first, second, other = looked_for(hub, tmp_path / "home", run, run, longer)
    assert first[0] is not None
    assert second == first
    assert other[0] is not None
    assert len(starts.read_text()) == 4 + 0 + 1


def test_an_optional_model_that_is_not_there_leaves_a_run_without_it(tmp_path: Path) -> None:
    missing = ("forecasts.optional=true", "pbt.population=1", "pbt.survivors=1", "pbt.iterations=1")
    with Hub() as empty:
        done = started(command(*tiny(tmp_path, *sets(*SMALL, *ASKED, *missing))), empty, tmp_path / "home")
        assert done.returncode == 0, done.stderr
    line = "without forecast features, which are optional: forecasts.model: hf://trader/linear: no such repository"
    assert line in done.stdout
    assert line in (tmp_path / "tiny" / "report.html").read_text()
    run = build_config(load_file(tmp_path / "tiny" / "config.yaml"))
    assert run.forecasts.digest == "unavailable"
    assert not (tmp_path / "tiny" / "forecasts.parquet").exists()
    names = json.loads((tmp_path / "tiny" / "survivors" / "SYNA_SYNB" / "1" / "scaler.json").read_text())["names"]
    assert not any(name.startswith("forecast") for name in names)


def test_the_identity_holds_the_content_and_not_the_path() -> None:
    plain = load_config("smoke")
    configs = [
        build_config({**plain.model_dump(), "forecasts": {"file": file, "digest": digest, "series": series}})
        for file, digest, series in (
            ("x.parquet", "0123", ["spread"]),
            ("y.parquet", "0123", ["spread"]),
            ("x.parquet", "4567", ["spread"]),
            ("x.parquet", "0123", ["a"]),
            ("x.parquet", "unavailable", ["a"]),
        )
    ]
    one, moved, other, leg, without = (run.identity for run in configs)
    assert one == moved
    assert len({one, other, leg, plain.identity}) == 4
    assert without == plain.identity


class Window:
    """A model that says which values it saw: last value, first known one, and their number."""

    def forecast(self, windows: np.ndarray, known: np.ndarray, *_: Any) -> np.ndarray:
        first = np.argmax(known, axis=1)
        seen = windows[:, -1], windows[np.arange(len(windows)), first], known.sum(axis=1)
        return np.stack(seen, axis=1)[:, None, :]


@settings(max_examples=50, deadline=None)
@given(bars=st.integers(3, 700), data=st.data())
def test_windows_end_at_their_own_bar(bars: int, data: st.DataObject) -> None:
    context, skip = data.draw(st.integers(2, 40)), data.draw(st.integers(0, bars - 1))
    values = np.random.default_rng(bars).standard_normal(bars)
    found = forecast_series(Window(), "x", values, skip, context, [1], [0.1, 0.5, 0.9])
    for t in range(skip, bars):
        window = values[max(0, t + 1 - context) : t + 1]
        assert found[t - skip, 0].tolist() == [window[-1], window[0], len(window)]
    cut = data.draw(st.integers(skip + 1, bars))
    both = zip(batches(values[:cut], skip, context, rows=16), batches(values, skip, context, rows=16), strict=False)
    for number, ((windows, known), (whole, mask)) in enumerate(both):
        assert windows.shape == whole.shape == (16, context)
        rows = cut - skip - 16 * number
        assert (windows[:rows] == whole[:rows]).all()
        assert (known[:rows] == mask[:rows]).all()
