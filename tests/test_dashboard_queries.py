"""Every query of the shipped Grafana dashboard against a real Prometheus that scrapes a real run."""

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

from analysis.frames import KEYS, keep_last, read_jsonl
from pbt.gauges import METRICS
from pbt.run_dir import RunDir
from tests.commands import environment
from tests.conftest import ROOT

DASHBOARD = json.loads((ROOT / "rayconf" / "dashboards" / "pairpbt.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = {entry["name"]: entry for entry in DASHBOARD["templating"]["list"]}
FORGOTTEN = 6.0
"""Seconds after which Ray has forgotten a gauge that was set only once: more than two intervals of its reports."""
PAIRS = {"SYNA/SYNB", "SYNC/SYND"}
SECONDS = 60.0
"""In which Prometheus must have everything, counted from the first barriers."""

Series = list[dict[str, Any]]
direct = build_opener(ProxyHandler({}))


class Prometheus:
    """A Prometheus on loopback that scrapes what Ray names in a discovery file."""

    def __init__(self, program: str, folder: Path, discovery: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        job = {"job_name": "ray", "file_sd_configs": [{"files": [str(discovery)], "refresh_interval": "1s"}]}
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        options = {"config.file": folder / "prometheus.yml", "storage.tsdb.path": folder / "data"}
        options["web.listen-address"] = Path(self._address)
        with open(folder / "prometheus.log", "wb") as log:
            self.process = subprocess.Popen(
                [program, *(f"--{name}={value}" for name, value in options.items())], stdout=log, stderr=log
            )

    def get(self, path: str, **parameters: str) -> Any:
        with direct.open(f"http://{self._address}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> Series:
        found: Series = self.get("query", query=expression)["result"]
        return found

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Training:
    """The tiny run of ``tests.pbt.monitored``."""

    def __init__(self, folder: Path) -> None:
        self.directory = RunDir(folder / "run")
        self._log = open(folder / "stderr", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.pbt.monitored", str(folder)],
            cwd=ROOT,
            env=environment(RAY_metrics_report_interval_ms="2000"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def told(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, Path(self._log.name).read_text()
        found: dict[str, Any] = json.loads(line)
        return found

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    made = Training(tmp_path_factory.mktemp("monitored"))
    yield made
    made.close()


def eventually(act: Callable[[], Any], why: Callable[[], str]) -> None:
    """Wait until ``act`` holds."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            if act():
                return
        except (URLError, ConnectionError):  # Prometheus is starting
            pass
        assert time.monotonic() < until, why()
        time.sleep(0.5)


def substituted(expression: str) -> str:
    """An expression as Grafana sends it while all runs and pairs are chosen."""
    for name, entry in VARIABLES.items():
        expression = re.sub(rf"\$({name}\b|{{{name}}})", entry.get("allValue", ""), expression)
    assert "$" not in expression
    return expression


def finite(series: Series) -> bool:
    return bool(series) and all(math.isfinite(float(one["value"][1])) for one in series)


def test_dashboard_and_code_name_the_same_metrics() -> None:
    drawn = set(re.findall(r"\bray_(pairpbt_\w+)", " ".join(EXPRESSIONS)))
    assert drawn == set(METRICS)


def test_dashboard_is_laid_out_for_grafana() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert {x for x, _ in taken} == set(range(24))
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters) > 0
    assert VARIABLES["datasource"]["type"] == "datasource"


@pytest.mark.launch
def test_every_query_finds_a_run_in_prometheus(training: Training, tmp_path: Path) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    told = training.told()
    check_names(told)
    session, held = Path(told["session"]), time.monotonic()
    prometheus = Prometheus(program, tmp_path, session / "prom_metrics_service_discovery.json")
    try:
        queries = [substituted(expression) for expression in EXPRESSIONS]
        waiting = list(queries)

        def arrived() -> bool:
            waiting[:] = [text for text in queries if not finite(prometheus.query(text))]
            return not waiting and time.monotonic() - held > FORGOTTEN

        def log() -> str:
            return f"nothing for {waiting}\n{(tmp_path / 'prometheus.log').read_text()[-2000:]}"

        eventually(arrived, log)
        check_labels(prometheus)
        training.go_on()
        training.told()  # trained, and the driver still there
        generations = 'ray_pairpbt_generation{run="run"}'
        eventually(lambda: [one["value"][1] for one in prometheus.query(generations)] == ["3", "3"], log)
        eventually(lambda: values(prometheus, "exploits") == journaled(training.directory)["exploits"], log)
        check_values(prometheus, training.directory)
        training.go_on()
        assert training.process.wait(timeout=60) == 0
    finally:
        prometheus.close()


def check_names(told: dict[str, Any]) -> None:
    """Ray's dashboard answers on loopback, and calls actors and processes by run and member."""
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", told["dashboard"])
    with direct.open(told["dashboard"], timeout=10) as page:
        assert b"Ray Dashboard" in page.read()
    assert {kind for kind, _, _ in told["actors"]} == {"PairMember"}
    assert {title for _, title, state in told["actors"] if state == "ALIVE"} == {"PairMember(run)"}
    members = {f"ray::PairMember {pair.replace('/', '_')}-m0{i}" for pair in PAIRS for i in range(3)}
    hosts = {title for title in told["titles"] if " " in title}
    assert hosts
    assert hosts <= members


def check_labels(prometheus: Prometheus) -> None:
    """Ours come by run and pair; the variables offer them."""
    for expression in EXPRESSIONS:
        series = prometheus.query(substituted(expression))
        if "pairpbt_" in expression:
            assert {one["metric"]["run"] for one in series} == {"run"}, expression
            if "$pair" in expression:
                assert {one["metric"]["pair"] for one in series} == PAIRS, expression
                assert not prometheus.query(expression.replace("$run", "run").replace("$pair", "other")), expression
    for name, offered in (("run", {"run"}), ("pair", PAIRS)):
        query = substituted(VARIABLES[name]["query"]["query"])
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert found is not None
        assert set(prometheus.get(f"label/{found[2]}/values", **{"match[]": found[1]})) == offered


def values(prometheus: Prometheus, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """A gauge by pair and further labels."""
    series = prometheus.query(f"ray_pairpbt_{name}")
    return {tuple(one["metric"][label] for label in ("pair", *labels)): float(one["value"][1]) for one in series}


def journaled(directory: RunDir) -> dict[str, dict[tuple[str, ...], float]]:
    """What the run wrote of its last generation."""
    progress = keep_last(read_jsonl(directory.progress_journal), KEYS["progress"])
    ends = [row for row in progress if row["generation"] == 3 and row.get("fitness") is not None]
    lineage = read_jsonl(directory.lineage_journal)
    best = {pair: max((r for r in ends if r["pair"] == pair), key=lambda row: row["fitness"]) for pair in PAIRS}
    rates = {(pair, name[3:]): row[name] for pair, row in best.items() for name in row if name.startswith("hp_")}
    return {
        "exploits": {(p,): sum(r["pair"] == p and r["operation"] == "exploit" for r in lineage) for p in PAIRS},
        "fitness": {(row["pair"], row["member"]): row["fitness"] for row in ends},
        "fitness_best": {(pair,): row["fitness"] for pair, row in best.items()},
        "hyperparameter": rates,
    }


def check_values(prometheus: Prometheus, directory: RunDir) -> None:
    """Prometheus holds what the journals hold, to the last bit."""
    extra = {"fitness": ("member",), "hyperparameter": ("hyperparameter",)}
    for name, expected in journaled(directory).items():
        assert values(prometheus, name, *extra.get(name, ())) == expected, name
    assert set(values(prometheus, "failures", "kind").values()) == {0.0}
