"""What the defences against greed leave on disk and in the journals: peaks, patience, parents, states."""

import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from analysis.diversity import diversity_rows
from analysis.frames import KEYS, diversity_schema, read_jsonl, write_frame
from pbt.fitness import BROKEN
from pbt.manifest import Mark, Population
from pbt.population import PairPopulation
from pbt.recovery import recover
from pbt.survivors import schedule
from tests.pbt.rehearsal import PAIR, Rehearsal

STEADY = "pbt.replace_z=1000"
"""Closes the gate, so that nobody exploits."""


def test_rollback_returns_to_the_peak_and_its_state_is_kept(tmp_path: Path) -> None:
    options = ["pbt.on_drop=rollback", "pbt.drop_z=3", "pbt.iterations=7", "pbt.archive=2", "pbt.survivors=1"]
    stage = Rehearsal(tmp_path, *options, STEADY)
    stage.play(5.0, 0.2, 3.0, 0.3)
    peak = stage.play(5.0, 0.5, 3.0, 0.3)["m01"]
    # The archive is full of others, and after two falls within noise no commit but the peak names that state.
    stage.play(5.0, 0.49, 3.0, 0.3)
    stage.play(5.0, 0.49, 3.0, 0.3)
    before = stage.population.committed.members["m01"]
    assert stage.population.committed.states() == stage.store.names()
    stage.play(5.0, -2.0, 3.0, 0.3)
    row = stage.rows(5)["m01"]
    assert (row["operation"], row["copied"], row["state"]) == ("rollback", "weights", peak)
    assert (row["parent_member"], row["parent_generation"], row["parent_fitness"]) == ("m01", 2, 0.5)
    assert row["gap"] > 3 * row["gap_se"] > 0
    member = stage.population.committed.members["m01"]
    assert (member.state, member.trained, member.fitness_history) == (peak, 2, (0.2, 0.5))
    assert member.hyperparameters != before.hyperparameters
    again = stage.play(5.0, -2.0, 3.0, 0.3)["m01"]
    assert stage.rows(6)["m01"]["state"] == peak
    assert stage.store.load(peak)["w"][1] == 2
    assert again not in stage.store.names()
    path = schedule(read_jsonl(stage.directory.lineage_journal), PAIR, "m01", 7)
    assert [row["generation"] for row in path] == [0, 1, 6]


def test_the_peak_follows_the_weights_of_a_donor(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path, "pbt.on_drop=rollback", STEADY)
    ended = stage.play(3.0, 0.2, 0.3, BROKEN)  # broken members are replaced without gate
    stage.play(3.0, 0.2, 0.3, 1.0)
    row = stage.rows(2)["m03"]
    assert (row["operation"], row["state"]) == ("rollback", ended["m00"])
    assert (row["parent_member"], row["parent_generation"], row["parent_fitness"]) == ("m00", 1, 3.0)


def test_idle_and_broken_evaluations_are_no_peaks(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path, "pbt.on_drop=freeze", STEADY)
    stage.play(1.0, BROKEN, 0.3, 0.2, idle=(3,))
    peaks = {name: member.peak for name, member in stage.population.committed.members.items()}
    assert peaks["m03"] is None
    assert peaks["m02"] is not None
    assert peaks["m02"].fitness == 0.3


def test_freeze_marks_one_generation(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path, "pbt.on_drop=freeze", STEADY)
    stage.play(1.0, 0.5, 0.4, 0.3)
    ended = stage.play(1.0, -3.0, 0.4, 0.3)
    row = stage.rows(2)["m01"]
    assert (row["operation"], row["copied"], row["state"]) == ("freeze", "none", ended["m01"])
    assert (row["parent_member"], row["parent_generation"], row["parent_fitness"]) == ("m01", 2, 0.5)
    assert [name for name, m in stage.population.committed.members.items() if m.frozen] == ["m01"]
    assert row["hp_learning_rate"] == row["old_hp_learning_rate"]
    stage.play(1.0, 0.6, 0.4, 0.3)
    assert not any(m.frozen for m in stage.population.committed.members.values())


def test_a_lost_members_row_names_who_trained_its_state(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path)
    stage.play(3.0, 0.2, 0.3, -3.0)
    assert stage.rows(1)["m03"]["operation"] == "exploit"
    # Nobody else may donate, so the lost member goes on from the state that m00 trained in generation 1.
    stage.play(BROKEN, BROKEN, BROKEN, None)
    row = stage.rows(2)["m03"]
    assert (row["operation"], row["parent_member"], row["parent_generation"]) == ("lost", "m00", 1)
    assert row["state"] == stage.rows(1)["m03"]["state"]
    untrained = Rehearsal(tmp_path / "second")
    untrained.play(None, BROKEN, BROKEN, None)
    for name in ("m00", "m03"):
        row = untrained.rows(1)[name]
        assert (row["operation"], row["parent_member"], row["parent_generation"]) == ("lost", name, 0)
        assert row["state"] is None


def test_patience_ends_a_pair_and_small_steps_add_up(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path, "pbt.patience=2", "pbt.fitness_smoothing=0", STEADY, "pbt.iterations=9")
    for i, (best, waited) in enumerate([(1.0, 0), (1.06, 1), (1.12, 0), (1.0, 1)], start=1):
        stage.play(best, 0.2, 0.3, 0.1)
        named = Population.read(stage.directory.manifest(PAIR))
        assert (named.patience, named.status) == (waited, "running"), f"generation {i}"
    assert named.mark == Mark(1.12, 0.1)
    stage.play(1.15, 0.2, 0.3, 0.1)
    assert stage.population.complete
    assert {row["operation"] for row in stage.rows(5).values()} == {"stop"}
    named = Population.read(stage.directory.manifest(PAIR))
    assert (named.generation, named.patience, named.status) == (5, 2, "complete")


def test_a_resume_decides_like_the_run_it_goes_on_with(tmp_path: Path) -> None:
    settings_of = ["pbt.explore=pb2", "pbt.on_drop=rollback", "pbt.patience=4", "pbt.iterations=6"]
    script = [(1.0 - 0.3 * g, 0.1 * g, 0.5, -0.2 * g) for g in range(6)]
    through, broken = Rehearsal(tmp_path / "a", *settings_of), Rehearsal(tmp_path / "b", *settings_of)
    for fitness in script:
        through.play(*fitness)
        broken.play(*fitness)
        committed = Population.read(broken.directory.manifest(PAIR))
        assert committed == broken.population.committed
        recover(broken.directory, broken.run)
        broken.population = PairPopulation(broken.run, broken.directory, broken.calendar, committed)
    assert through.population.committed == broken.population.committed
    journals = [read_jsonl(stage.directory.lineage_journal) for stage in (through, broken)]
    assert journals[0] == journals[1]


FITNESS = st.one_of(st.floats(-2, 2), st.just(BROKEN), st.none())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    script=st.lists(st.tuples(*[FITNESS] * 6), min_size=5, max_size=5),
    idle=st.sets(st.integers(0, 5), max_size=2),
    frequencies=st.sampled_from(["[1]", "[1, 2]"]),
    drop=st.sampled_from(["none", "rollback", "freeze"]),
    patience=st.sampled_from(["null", "2"]),
)
def test_states_rows_and_ancestors_agree(
    script: list[tuple[float | None, ...]], idle: set[int], frequencies: str, drop: str, patience: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage = Rehearsal(
            Path(folder),
            "pbt.population=6",
            f"pbt.frequencies={frequencies}",
            f"pbt.on_drop={drop}",
            f"pbt.patience={patience}",
            "pbt.bootstrap=99",
        )
        trained: dict[tuple[str, int], str | None] = {(f"m{i:02d}", 0): None for i in range(6)}
        alive = {0: 6}
        for fitness in script:
            if all(value is None for value in fitness):
                return
            number = stage.population.generation + 1
            trained |= {(name, number): state for name, state in stage.play(*fitness, idle=tuple(idle)).items()}
            committed = stage.population.committed
            assert committed.states() == stage.store.names()
            assert sorted(committed.members) == [f"m{i:02d}" for i in range(6)]
            for name, row in stage.rows(number).items():
                member = committed.members[name]
                assert row["state"] == member.state == trained[row["parent_member"], row["parent_generation"]]
            states = {name: m.state for name, m in committed.members.items()}
            roots = {n if s is None else f"m{int(stage.store.load(s)['root']):02d}" for n, s in states.items()}
            alive[number] = len(roots)
            if stage.population.complete:
                break
        lineage = read_jsonl(stage.directory.lineage_journal)
        for snapshot in committed.archive:
            path = schedule(lineage, PAIR, snapshot.member, snapshot.generation)
            assert path[0]["state"] is None
            assert int(path[0]["member"][1:]) == int(stage.store.load(snapshot.state)["root"])
        rows = diversity_rows(lineage, {})
        assert {row["generation"]: row["ancestors"] for row in rows} == alive


def test_the_frame_of_diversity_takes_the_rows(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path)
    stage.play(3.0, 0.2, 0.3, -3.0)
    names = list(stage.run.search)
    rows = diversity_rows(read_jsonl(stage.directory.lineage_journal), {name: lambda v: v for name in names})
    table = write_frame(rows, diversity_schema(names), KEYS["diversity"], tmp_path / "diversity.parquet")
    assert table.column("ancestors").to_pylist() == [4, 3]
    assert table.column("exploits").to_pylist() == [0, 1]
    with pytest.raises(KeyError):
        diversity_rows(read_jsonl(stage.directory.lineage_journal), {"no_such": float})
