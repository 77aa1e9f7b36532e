"""What the gauges are set to, barrier by barrier; ``tests/test_dashboard_queries.py`` reads them from Prometheus."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.util.metrics import Gauge

import pbt.gauges
from analysis.frames import read_jsonl
from pbt.gauges import METRICS, Gauges
from pbt.manifest import Population
from pbt.population import PairPopulation
from pbt.recovery import recover
from tests.pbt.rehearsal import PAIR, Rehearsal

Values = dict[tuple[str, ...], float]


class Staged(Rehearsal):
    """A rehearsal that tells a listener what the scheduler tells it, with whole progress rows."""

    def listen(self, listener: Callable[..., None]) -> None:
        population = self.population
        for name, event in (("report", "result"), ("fail", "failure"), ("commit", "barrier")):
            setattr(population, name, self._telling(getattr(population, name), event, listener))

    def _telling(self, act: Callable[..., Any], event: str, listener: Callable[..., None]) -> Callable[..., Any]:
        def told(*args: Any) -> Any:
            done = act(*args)
            listener(event, self.population, done)
            return done

        return told

    def result(self, member: str, fitness: float, generation: int | None = None) -> dict[str, Any]:
        found = super().result(member, fitness, generation)
        row = found["iterations"][0]
        row |= {"env_seconds": 2.0, "learner_seconds": 1.0, "wall_time": 1e9 + 10 * row["generation"]}
        row |= {"host": "here", "actor_pid": int(member[1:])}
        row |= {f"hp_{name}": 0.01 * int(member[1:]) for name in self.run.search}
        return found


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Values:
    """What every gauge was last set to, by name and tags in the order of the keys; Ray gets it as ever."""
    values: Values = {}
    original = Gauge.set

    def noted(self: Gauge, value: float, tags: dict[str, str] | None = None) -> None:
        all_tags = {**self.info["default_tags"], **(tags or {})}
        values[(self.info["name"].removeprefix("pairpbt_"), *(all_tags[key] for key in self.info["tag_keys"]))] = value
        original(self, value, tags)

    monkeypatch.setattr(Gauge, "set", noted)
    return values


def watched(stage: Staged) -> Gauges:
    gauges = Gauges(stage.run, stage.directory, {PAIR: stage.population})
    stage.listen(gauges)
    return gauges


def exploits(stage: Staged, generation: int) -> int:
    return sum(row["operation"] == "exploit" for row in stage.rows(generation).values())


def of_pair(shown: Values, *names: str) -> list[float]:
    return [shown[name, "run", PAIR] for name in names]


def test_a_population_as_gauges(tmp_path: Path, shown: Values) -> None:
    stage = Staged(tmp_path)
    watched(stage)
    assert of_pair(shown, "generation", "generations", "exploits", "members_alive") == [0, 5, 0, 4]
    assert not [key for key in shown if key[0].startswith(("fitness", "steps", "hyper"))]
    stage.play(3.0, 0.2, 0.3, -3.0)
    best = [("generation", 1), ("fitness_best", 3.0), ("fitness_median", 0.25), ("exploits", 1), ("members_alive", 4)]
    assert of_pair(shown, *(name for name, _ in best)) == [value for _, value in best]
    assert [shown["fitness", "run", PAIR, f"m0{i}"] for i in range(4)] == [3.0, 0.2, 0.3, -3.0]
    assert {key[3]: value for key, value in shown.items() if key[0] == "hyperparameter"} == dict.fromkeys(
        stage.run.search, 0.0
    )
    batch = stage.run.ppo.num_envs * stage.run.ppo.rollout_steps
    assert shown["steps_per_second", "run", PAIR] == pytest.approx(4 * batch / 3)  # since the first step
    stage.play(0.1, 0.2, 0.3, 0.4)
    assert shown["steps_per_second", "run", PAIR] == pytest.approx(4 * batch / 10)  # since the barrier before
    assert shown["hyperparameter", "run", PAIR, "learning_rate"] == pytest.approx(0.03)
    while not stage.population.complete:
        stage.play(0.1, 0.2, 0.3, 0.4)
    assert shown["steps_per_second", "run", PAIR] == 0
    assert {f"pairpbt_{key[0]}" for key in shown} == set(METRICS)


def test_failures_count_at_once_and_the_lost_come_back(tmp_path: Path, shown: Values) -> None:
    stage = Staged(tmp_path)
    watched(stage)
    stage.population.fail("m02", "killed")
    failures = {"retry": 1, "actor_lost": 0, "nan": 0, "corrupt": 0}
    assert {key[3]: value for key, value in shown.items() if key[0] == "failures"} == failures
    assert shown["members_alive", "run", PAIR] == 4
    stage.play(1.0, None, 0.2, 0.3)
    assert shown["failures", "run", PAIR, "actor_lost"] == 1
    assert shown["failures", "run", PAIR, "retry"] == 1 + stage.run.pbt.max_failures - 1
    assert shown["members_alive", "run", PAIR] == 3
    assert shown["fitness_median", "run", PAIR] == statistics.median([1.0, 0.2, 0.3])
    stage.population.report("m00", stage.result("m00", 0.1))
    assert shown["members_alive", "run", PAIR] == 3
    stage.population.report("m01", stage.result("m01", 0.1))
    assert shown["members_alive", "run", PAIR] == 4
    stage.directory.event("node_lost", "node")
    stage.population.fail("m02", "killed")
    assert shown["nodes_lost", "run"] == 1


def test_a_resumed_run_shows_what_it_showed(tmp_path: Path, shown: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pbt.gauges, "REFRESH_SECONDS", 0.05)
    stage = Staged(tmp_path)
    with watched(stage):
        stage.play(3.0, 0.2, 0.3, -3.0)
        assert shown["fitness", "run", PAIR, "m02"] == 0.3
        stage.play(3.0, 0.2, None, -3.0)
        time.sleep(0.5)
        shown.clear()
        time.sleep(1)
    assert ("fitness", "run", PAIR, "m02") not in shown, "nothing is said of a member without a result"
    before = {key: value for key, value in shown.items() if key[0] != "steps_per_second"}
    assert before["exploits", "run", PAIR] == exploits(stage, 1) + exploits(stage, 2) > exploits(stage, 2)
    assert before["members_alive", "run", PAIR] == 3
    assert before["failures", "run", PAIR, "actor_lost"] == 1
    shown.clear()
    recover(stage.directory, stage.run)
    committed = Population.read(stage.directory.manifest(PAIR))
    resumed = PairPopulation(stage.run, stage.directory, stage.calendar, committed)
    Gauges(stage.run, stage.directory, {PAIR: resumed})
    assert shown == before


def test_a_generation_taken_back_counts_once(tmp_path: Path, shown: Values) -> None:
    stage = Staged(tmp_path)
    watched(stage)
    stage.play(3.0, 0.2, 0.3, 0.4)
    ended = stage.play(3.0, 0.2, 0.3, -3.0)
    assert shown["exploits", "run", PAIR] == exploits(stage, 1) + exploits(stage, 2)
    (stage.directory.path / "members" / "states" / f"{ended['m00']}.pt").write_bytes(b"torn")
    assert stage.population.mend()
    stage.play(0.1, 0.1, 0.1, 0.1)
    assert shown["generation", "run", PAIR] == 2
    assert shown["exploits", "run", PAIR] == exploits(stage, 1) + exploits(stage, 2) > 0
    assert shown["failures", "run", PAIR, "corrupt"] == 1


def test_gauges_are_set_again_and_again(tmp_path: Path, shown: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pbt.gauges, "REFRESH_SECONDS", 0.05)
    stage = Staged(tmp_path)
    with watched(stage) as gauges:
        stage.play(3.0, 0.2, 0.3, -3.0)
        before = dict(shown)
        shown.clear()
        time.sleep(1)
        assert shown == before
    assert gauges._thread is not None
    assert not gauges._thread.is_alive()


def test_gauges_that_fail_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: Gauge, value: float, tags: dict[str, str] | None = None) -> None:
        raise RuntimeError("no agent\nhere")

    stage = Staged(tmp_path)
    with watched(stage):
        monkeypatch.setattr(Gauge, "set", fails)
        stage.play(3.0, 0.2, 0.3, -3.0)
        stage.play(3.0, 0.2, 0.3, -3.0)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "gauges: no agent here; none are set any further, the run goes on (see run.log)"
    events = [row["detail"] for row in read_jsonl(stage.directory.events_journal) if row["kind"] == "tracker_failed"]
    assert events == [line]
    assert stage.population.generation == 2


def test_without_an_export_of_metrics_nothing_is_made(
    tmp_path: Path, shown: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pbt.gauges, "dashboard_installed", lambda: False)
    stage = Staged(tmp_path)
    with watched(stage) as gauges:
        stage.play(3.0, 0.2, 0.3, -3.0)
        assert gauges._thread is None
    assert shown == {}
