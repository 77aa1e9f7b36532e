"""Publishing a run with the real command and client to a hub on loopback, interruptions and refusals included."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard

from analysis.frames import read_frame
from pbt.finished import FinishedRun
from pbt.model_card import Card, escaped
from pbt.publication import Publication, build
from rayconf.errors import UserError
from rayconf.loading import load_config
from tests.commands import in_one_process
from tests.conftest import ROOT
from tests.hub_server import READER, TOKEN, Hub, client

REPO = "trader/tiny"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def publish(hub: Hub, tmp_path: Path):  # type: ignore[no-untyped-def]
    def run(run: Path, *arguments: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pbt.publish", str(run), "--repo", REPO, *arguments]
        environment = client(hub.url, tmp_path / "home", token)
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    return run


def private_copy(run: Path, folder: Path) -> Path:
    """A run as if it had been trained on prices of one's own, in a folder whose name gives much away."""
    copy = folder / "clients" / "run"
    shutil.copytree(run, copy)
    for path in copy.rglob("config.yaml"):
        settings = yaml.safe_load(path.read_text())
        settings["data"]["dir"] = str(folder / "clients" / "secret prices")
        settings["tracking"]["wandb_project"] = "secret-project"
        path.write_text(yaml.safe_dump(settings))
    return copy


def shown_texts(files: Mapping[str, bytes], folder: Path) -> str:
    """Everything that a reader of the files can see, Parquet unpacked."""
    texts = []
    for name, content in files.items():
        texts.append(content.decode("utf-8", "replace"))
        if name.endswith(".parquet"):
            path = folder / "frame.parquet"
            path.write_bytes(content)
            table = pq.read_table(path)
            texts += [str(table.schema), str(table.to_pylist())]
    return "\n".join(texts)


def test_a_run_is_published_whole_and_nothing_private_with_it(  # type: ignore[no-untyped-def]
    publish, hub: Hub, undisturbed: Path, tmp_path: Path
) -> None:
    run = private_copy(undisturbed, tmp_path)
    done = publish(run, "--license", "mit", "--message", "First survivors")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert done.stdout.splitlines()[-1] == f"published  {hub.url}/{REPO}"
    files = {name: content for name, content in hub.files(REPO).items() if name != ".gitattributes"}
    survivors = {str(path.relative_to(run)) for path in run.glob("survivors/*/*/*")}
    frames = {f"frames/{name}.parquet" for name in ("summary", "evidence") if (run / f"frames/{name}.parquet").exists()}
    expected = {name.replace("config.yaml", "config.json") for name in survivors} | frames
    assert set(files) == expected | {"README.md", "config.json", "summary.json"}
    for name in survivors:
        if not name.endswith("config.yaml"):
            assert files[name] == (run / name).read_bytes()
    seen = shown_texts(files, tmp_path)
    for secret in (str(tmp_path), "clients", "secret prices", "secret-project", TOKEN):
        assert secret not in seen
    assert json.loads(files["config.json"])["data"]["dir"] == "unpublished", "null would mean the synthetic market"
    commits = [request for request in hub.requests if "/commit/" in request]
    assert commits == [f"POST /api/models/{REPO}/commit/main"], "one commit is all or nothing"

    card = ModelCard(files["README.md"].decode())
    assert card.data.to_dict()["library_name"] == "pairpbt"
    assert card.data.to_dict()["license"] == "mit"
    assert {"ppo", "population-based-training"} <= set(card.data.tags)
    assert "with PPO and population-based training under Ray Tune, which copies and mutates members" in card.text
    summary = json.loads(files["summary.json"])
    assert card.text.index("## Verdict") < card.text.index("## Test of")
    for pair, entry in summary["pairs"].items():
        assert f"- **{pair}**: {escaped(entry['verdict'])}" in card.text
        sharpe = entry["ensemble"]["test"]["base"]["annualised_sharpe"]
        assert re.search(rf"\| ensemble \(headline\) \| {sharpe:.2f} \|", card.text)


@pytest.mark.parametrize(
    ("preset", "more", "tags", "words"),
    [
        (
            "default",
            (),
            set(),
            "with the exact gradient of what the accounts earn and fixed hyperparameters, so that members differ by "
            "their seeds alone. For all pairs the survivors of one population and",
        ),
        ("smoke", ("pbt.arm=random",), {"ppo"}, "with PPO and random search, in which every member keeps"),
        ("smoke", ("algo=direct",), {"population-based-training"}, "earn and population-based training under Ray Tune"),
    ],
)
def test_its_card_says_what_trained_it(preset: str, more: tuple[str, ...], tags: set[str], words: str) -> None:
    run, nothing = load_config(preset, assignments=more), pa.table({"pair": pa.array([], pa.string())})
    card = ModelCard(Card(REPO, run, {"SYNA/SYNB": {"verdict": "none"}}, nothing, 1).text())
    assert set(card.data.tags) & {"ppo", "population-based-training"} == tags
    assert words in card.text


def test_a_published_run_is_tested_on_ones_own_prices_as_at_home(  # type: ignore[no-untyped-def]
    publish, hub: Hub, undisturbed: Path, tmp_path: Path
) -> None:
    run = private_copy(undisturbed, tmp_path)
    assert publish(run).returncode == 0
    prices = tmp_path / "prices"
    prices.mkdir()
    for legs in FinishedRun.open(undisturbed).legs().values():
        for bars in legs:
            columns = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
            pd.DataFrame({"date": bars.dates.astype(str), **columns}).to_csv(prices / f"{bars.ticker}.csv", index=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "pbt.backtest", f"hf://{REPO}", "--grid", "costs=1", "lag=1"]
    environment = client(hub.url, tmp_path / "home")

    def backtest(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
        )

    done = backtest()
    assert (done.returncode, done.stdout) == (2, "")
    needed = "its prices are not published; give yours of SYNA, SYNB, SYNC, SYND with --data-dir"
    assert done.stderr == f"pairpbt: hf://trader/tiny: {needed}\n"
    done = backtest("--data-dir", str(prices))
    assert done.returncode == 0, done.stderr
    (out,) = (elsewhere / "backtests").iterdir()
    assert out.name.startswith("tiny-")
    home = read_frame(undisturbed / "frames" / "summary.parquet", split="test", scenario="base").drop_columns("run")
    here = read_frame(out / "frames" / "summary.parquet", split="test", scenario="base").drop_columns("run")
    assert here.num_rows == home.num_rows > 0
    differing = [name for name in home.column_names if not here.column(name).equals(home.column(name))]
    assert not differing, "the same survivors on the same prices over the same days"
    (look,) = read_frame(out / "frames" / "events.parquet").to_pylist()
    assert look["kind"] == "look"
    assert not list((tmp_path / "home").rglob("backtests")), "the cache is not written to"


def test_pairs_left_out_are_said_and_gone(publish, hub: Hub, undisturbed: Path) -> None:  # type: ignore[no-untyped-def]
    assert publish(undisturbed).returncode == 0
    assert any("SYNC_SYND" in name for name in hub.files(REPO))
    done = publish(undisturbed, "--pair", "SYNA/SYNB", "--revision", "one")
    assert done.returncode == 0, done.stderr
    assert any("SYNC_SYND" in name for name in hub.files(REPO)), "the main branch is as it was"
    files = hub.files(REPO, "one")
    assert not [name for name in files if "SYNC" in name]
    assert json.loads(files["config.json"])["data"]["pairs"] == ["SYNA/SYNB"]
    assert b"1 of the run's 2 pairs" in files["README.md"]
    assert b"hf://trader/tiny@one/survivors/SYNA_SYNB" in files["README.md"]


def test_who_may_not_push_reads_one_line_and_changes_nothing(  # type: ignore[no-untyped-def]
    publish, hub: Hub, undisturbed: Path, tmp_path: Path
) -> None:
    for token, fragment in ((None, "no login; set HF_TOKEN or run `hf auth login`"), ("hf_no", "not know this token")):
        done = publish(undisturbed, token=token)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"{done.stderr.splitlines()[0]}\n"
        assert done.stderr.startswith(f"pairpbt: hf://{REPO}: ")
        assert fragment in done.stderr
    assert {request.split()[1] for request in hub.requests} == {"/api/whoami-v2"}
    done = publish(undisturbed, token=READER)
    assert done.returncode == 2
    assert "write access" in done.stderr
    assert not hub.repos


def test_an_interrupted_upload_leaves_the_last_commit_and_can_be_repeated(  # type: ignore[no-untyped-def]
    publish, hub: Hub, undisturbed: Path, tmp_path: Path
) -> None:
    before = hub.add(REPO, {"README.md": b"mine"})
    repo = hub.repos[REPO]
    hub.faults["stall"] = 1
    command = [sys.executable, "-m", "pbt.publish", str(undisturbed), "--repo", REPO]
    process = subprocess.Popen(command, cwd=ROOT, env=client(hub.url, tmp_path / "home"))
    assert hub.halfway.wait(120), "no upload came"
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    hub.resume.set()
    assert repo.branches == {"main": before}

    hub.faults["commit"] = 1
    done = publish(undisturbed)
    assert done.returncode == 2
    assert "the hub answered 500" in done.stderr
    assert done.stderr.count("\n") == 1
    assert repo.branches == {"main": before}

    hub.large.clear()
    hub.faults["drop"] = 2  # connections that break: the client itself tries again
    done = publish(undisturbed)
    assert done.returncode == 0, done.stderr
    assert hub.faults["drop"] == 0
    assert repo.branches["main"] != before
    published = {name: x for name, x in hub.files(REPO).items() if name.endswith(".safetensors")}
    assert published == {str(p.relative_to(undisturbed)): p.read_bytes() for p in undisturbed.rglob("*.safetensors")}


def test_what_cannot_be_published_is_refused(hub: Hub, undisturbed: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    shutil.copytree(undisturbed, partial)
    summary = json.loads((partial / "summary.json").read_text())
    (partial / "summary.json").write_text(json.dumps({**summary, "status": "partial"}))
    environment = client(hub.url, tmp_path / "home")

    def refused(cases: Sequence[tuple[tuple[str | Path, ...], str]]) -> None:
        commands = [("pbt.publish", "--repo", REPO, *map(str, arguments)) for arguments, _ in cases]
        for done, (_, fragment) in zip(in_one_process(environment, *commands), cases, strict=True):
            assert (done.returncode, done.stdout) == (2, "")
            assert fragment in done.stderr
            assert done.stderr.count("\n") == 1

    refused(
        [
            ((tmp_path / "none",), "config.yaml is missing"),
            ((partial,), "only a complete one"),
            ((undisturbed, "--pair", "AAA/BBB"), "it has SYNA/SYNB, SYNC/SYND"),
            ((undisturbed, "--repo", "tiny"), "user/name"),
            ((undisturbed, "--license", "mit\nx: y"), "--license"),
        ]
    )
    assert not [x for x in hub.requests if not x.endswith("whoami-v2")]
    before = hub.add(REPO, {"pytorch_model.bin": b"weights", "README.md": b"a famous model"})
    hub.add("trader/open", {})
    refused(
        [
            ((undisturbed,), "holds other files ('pytorch_model.bin')"),
            ((undisturbed, "--repo", "trader/open", "--private"), "is public"),
        ]
    )
    assert hub.repos[REPO].branches == {"main": before}
    assert set(hub.files("trader/open")) == {".gitattributes"}


def test_a_dry_run_needs_no_login_and_no_connection(publish, hub: Hub, undisturbed: Path) -> None:  # type: ignore[no-untyped-def]
    done = publish(undisturbed, "--dry-run", token=None)
    assert done.returncode == 0, done.stderr
    assert "## Verdict" in done.stdout
    assert "survivors/SYNA_SYNB/1/policy.safetensors" in done.stdout
    assert not hub.requests


def test_a_hidden_path_in_the_run_is_found(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    summary = json.loads((run / "summary.json").read_text())
    summary["pairs"]["SYNA/SYNB"]["verdict"] = f"made in {run}"
    (run / "summary.json").write_text(json.dumps(summary))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError, match=r"^summary.json: names a local folder of yours"):
        build(Publication.of(run), folder, REPO)


def test_the_evidence_stands_in_the_card(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    summary = json.loads((run / "summary.json").read_text())
    summary["pairs"]["SYNA/SYNB"]["statistics"] = {
        "policy": "survivor-1",
        "sharpe": {"value": 1.5, "low": None, "high": None},
        "max_drawdown": {"value": -0.25, "low": -0.4, "high": -0.1},
        "against": {"equal_weight": {"value": -0.5, "low": -1.25, "high": 0.25, "p": 0.0004}},
        "deflated_sharpe": None,
        "overfitting": 0.375,
        "looks": 2,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    folder = tmp_path / "folder"
    folder.mkdir()
    build(Publication.of(run), folder, REPO)
    lines = (folder / "README.md").read_text().splitlines()
    start = lines.index("## Evidence on SYNA/SYNB")
    assert lines[start + 2].startswith("The headline (survivor 1)")
    assert lines[start + 4 : start + 11] == [
        "| statistic | value |",
        "| --- | ---: |",
        "| Sharpe ratio | 1.50 |",
        r"| drawdown | -25.0% \[-40.0%, -10.0%\] |",
        r"| Sharpe ratio less equal weight | -0.50 \[-1.25, 0.25\], p \< 0.001 |",
        "| probability of backtest overfitting (a lower bound) | 37.5% |",
        "| reads of the test span | 2 |",
    ]


def test_names_stay_text_in_the_card() -> None:
    hostile = "x](http://evil.example) | <img src=x> `y` **z**\n# title\n| a | $b$ www.evil.example"
    line = escaped(hostile)
    assert "\n" not in line
    assert not re.search(r"(?<!\\)[|<>`*\[\]#$]", line)
    assert "://" not in line
    assert "www.evil" not in line
