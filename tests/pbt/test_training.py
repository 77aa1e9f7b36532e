"""Training under the real Tune: one population of a tiny run, undisturbed and with an actor killed."""

import copy
import os
import pickle
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import ray
from ray import tune
from ray._private.state import GlobalState
from ray.air.execution._internal import RayActorManager
from ray.tune.execution.tune_controller import TrialRunnerWrapper, TuneController
from ray.tune.experiment import Trial
from ray.tune.experiment.trial import _TemporaryTrialState
from ray.tune.schedulers.trial_scheduler import TrialScheduler
from ray.tune.utils.object_cache import _ObjectCache

from algos.config import PairPPOConfig
from algos.pair_ppo import PairPPO
from analysis.frames import read_jsonl
from analysis.timing import actor_times
from envs.market import PairMarket
from pbt.decisions import Decision
from pbt.manifest import Population
from pbt.member import PairMember, ticket
from pbt.pipeline import load_population
from pbt.population import PairPopulation
from pbt.run_dir import RunDir
from pbt.scheduler import Listener, PairPBT
from pbt.store import StateStore
from pbt.survivors import policy_from_state
from pbt.training import train
from rayconf import RunConfig


def run_training(
    run: RunConfig, markets: Mapping[str, PairMarket], folder: Path, listeners: list[Listener], slots: int = 2
) -> tuple[RunDir, dict[str, Population]]:
    directory = RunDir(folder, run.identity)
    directory.create()
    populations = {pair: load_population(run, directory, market) for pair, market in markets.items()}
    references = {pair: ray.put(market) for pair, market in markets.items()}
    train(run, directory, references, populations, slots, listeners)
    return directory, {pair: population.committed for pair, population in populations.items()}


@pytest.fixture(scope="module")
def undisturbed(
    ray_session: None,
    tiny_run: RunConfig,
    tiny_markets: Mapping[str, PairMarket],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunDir, dict[str, Population]]:
    return run_training(tiny_run, tiny_markets, tmp_path_factory.mktemp("undisturbed") / "run", [])


@pytest.mark.parametrize("moment", ["barrier", "result"])
def test_a_killed_actor_changes_nothing_but_events(
    moment: str,
    undisturbed: tuple[RunDir, dict[str, Population]],
    tiny_run: RunConfig,
    tiny_markets: Mapping[str, PairMarket],
    tmp_path: Path,
) -> None:
    killed: list[int] = []
    trained: set[int] = set()

    def shoot(event: str, population: PairPopulation, decisions: list[Decision] | None) -> None:
        if event == "barrier":
            trained.update(row["actor_pid"] for row in population.journaled)
        if event == moment and trained and not killed:
            killed.append(min(trained))
            os.kill(killed[0], signal.SIGKILL)

    directory, found = run_training(tiny_run, tiny_markets, tmp_path / "run", [shoot])
    assert killed
    assert found == undisturbed[1]
    assert read_jsonl(directory.lineage_journal) != []
    by_key = sorted(read_jsonl(directory.lineage_journal), key=lambda r: (r["pair"], r["generation"], r["member"]))
    expected = sorted(
        read_jsonl(undisturbed[0].lineage_journal), key=lambda r: (r["pair"], r["generation"], r["member"])
    )
    assert [row["state"] for row in by_key] == [row["state"] for row in expected]
    assert [event["kind"] for event in read_jsonl(directory.events_journal)] == ["retry"]


def test_exploit_stays_inside_the_pair_and_new_rates_are_in_force(
    undisturbed: tuple[RunDir, dict[str, Population]], tiny_run: RunConfig
) -> None:
    directory, _ = undisturbed
    lineage = read_jsonl(directory.lineage_journal)
    progress = {(r["pair"], r["member"], r["iteration"]): r for r in read_jsonl(directory.progress_journal)}
    states = {(r["pair"], r["generation"], r["member"]): r["state"] for r in lineage}
    exploits = [row for row in lineage if row["operation"] == "exploit"]
    assert exploits
    for row in exploits:
        assert row["state"] == states[row["pair"], row["generation"], row["parent_member"]]
        after = progress[row["pair"], row["member"], row["generation"] + 1]
        assert after["hp_learning_rate"] == row["hp_learning_rate"] != row["old_hp_learning_rate"]
        assert after["lr_first_step"] == pytest.approx(row["hp_learning_rate"], rel=1e-6)


def test_never_more_processes_than_slots(undisturbed: tuple[RunDir, dict[str, Population]]) -> None:
    progress = read_jsonl(undisturbed[0].progress_journal)
    assert len(progress) == 2 * 3 * 2
    # So short a run may be over before the second process is up; a third one would be a restarted slot.
    assert len({row["actor_pid"] for row in progress}) <= 2


def test_an_actors_columns_fill_its_time(undisturbed: tuple[RunDir, dict[str, Population]]) -> None:
    """Each row accounts for the time since the row before: a part that no column holds would be missing here."""
    progress = read_jsonl(undisturbed[0].progress_journal)
    actors = actor_times(progress)
    assert len(actors) == len([row for row in progress if row.get("startup_seconds")])
    for actor in actors:
        assert actor.seconds == pytest.approx(actor.ended - actor.began, rel=0.03)
        own = [row for row in progress if row["actor_pid"] == actor.pid]
        first, *others = sorted(own, key=lambda row: row["wall_time"])
        assert first["startup_seconds"] > 0
        assert "switch_seconds" not in first
        assert all(0 <= row["wait_seconds"] <= row["switch_seconds"] for row in others)  # one row per generation


def test_a_survivors_policy_is_the_members_own(
    undisturbed: tuple[RunDir, dict[str, Population]], tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket]
) -> None:
    directory, populations = undisturbed
    snapshot = populations["SYNA/SYNB"].archive[0]
    state = StateStore(directory.storage).load(snapshot.state)
    algorithm = PairPPOConfig.from_run(tiny_run, "SYNA/SYNB").build_algo()
    try:
        algorithm.load_boundary_state(state)
        own = algorithm.evaluation_policy()
    finally:
        algorithm.stop()
    rebuilt = policy_from_state(state, tiny_run, tiny_markets["SYNA/SYNB"].scaler.names)
    for (w, b), (v, c) in zip(own._layers, rebuilt._layers, strict=True):
        assert w.equal(v)
        assert b.equal(c)


def test_pair_ppo_runs_under_a_plain_tuner(ray_session: None, tiny_run: RunConfig, tmp_path: Path) -> None:
    """A genuine RLlib algorithm: Tune trains it without any of our launcher."""
    config = PairPPOConfig.from_run(tiny_run, "SYNA/SYNB")
    tuner = tune.Tuner(
        PairPPO,
        param_space=config.to_dict(),
        run_config=tune.RunConfig(stop={"training_iteration": 2}, storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    assert results.errors == []
    assert results[0].metrics["training_iteration"] == 2
    assert results[0].metrics["learners"]["default_policy"]["lr_first_step"] > 0


def test_the_private_names_of_ray_that_the_scheduler_uses() -> None:
    """Ray is pinned for these: one line per name that is not its public interface."""
    import inspect

    source = inspect.getsource(TuneController.__init__)
    assert "self._actor_cache = _ObjectCache" in source
    for name in ("staged", "pending", "running", "resetting"):
        assert f"self._{name}_trials" in source
    assert "self._trial_to_actor" in source
    assert callable(TuneController.update_max_pending_trials)
    assert "self._live_actors_to_ray_actors_resources" in inspect.getsource(RayActorManager.__init__)
    assert "NodeID" in inspect.getsource(GlobalState._gen_actor_info)
    assert isinstance(_ObjectCache.num_cached_objects, property)
    assert callable(TuneController._set_trial_status)
    assert callable(TuneController.stop_trial)
    assert callable(TuneController._requeue_trial)
    assert "self.ray_actor" in inspect.getsource(_TemporaryTrialState.__init__)
    assert "f.write(str(exc)" in inspect.getsource(Trial.handle_error)
    assert "self._callbacks.on_step_begin" in inspect.getsource(TuneController.step)
    assert "next(timeout=0.1)" in inspect.getsource(TuneController.step)
    assert callable(_ObjectCache.increase_max)
    assert callable(_ObjectCache.has_cached_object)
    assert callable(_ObjectCache.pop_cached_object)
    assert hasattr(TrialRunnerWrapper, "__getattr__")
    assert "self._tune_controller" in inspect.getsource(TrialRunnerWrapper.__init__)
    assert issubclass(PairPBT, TrialScheduler)


def test_a_ticket_is_not_copied_for_every_trial(tiny_run: RunConfig, tmp_path: Path) -> None:
    config = ticket(tiny_run, tmp_path, tiny_run.data.pairs[0], "m00", 0, {"learning_rate": 1e-3}, None)
    assert copy.deepcopy(config)["ticket"] is config["ticket"]
    travelled = pickle.loads(pickle.dumps(config))
    assert travelled == config
    assert travelled["ticket"]["hyperparameters"] == {"learning_rate": 1e-3}


def test_a_member_asks_for_a_cpu_and_its_share_of_a_gpu(tiny_run: RunConfig, tmp_path: Path) -> None:
    for share, bundle in [(0.0, {"CPU": 1}), (0.25, {"CPU": 1, "GPU": 0.25}), (1.0, {"CPU": 1, "GPU": 1})]:
        resources = tiny_run.resources.model_copy(update={"gpus_per_member": share})
        run = tiny_run.model_copy(update={"resources": resources})
        config = ticket(run, tmp_path, run.data.pairs[0], "m00", 0, {}, None)
        assert PairMember.default_resource_request(config).bundles == [bundle]


def test_no_more_room_is_asked_for_than_there_are_slots(
    ray_session: None, tiny_run: RunConfig, tiny_markets: Mapping[str, PairMarket], tmp_path: Path
) -> None:
    """Tune asks for the room of every member that it has: a cluster would bring machines that nobody needs."""
    seen: list[int] = []

    def count(event: str, population: PairPopulation, decisions: list[Decision] | None) -> None:
        table = ray.util.placement_group_table()
        seen.append(sum(group["state"] in ("PENDING", "CREATED") for group in table.values()))

    run_training(tiny_run, tiny_markets, tmp_path / "run", [count], slots=1)
    assert max(seen) == 1
