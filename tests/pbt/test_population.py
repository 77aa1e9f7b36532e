"""Barriers without Tune: what is archived, kept on disk, journaled and resumed."""

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.frames import read_jsonl
from pbt.fitness import BROKEN
from pbt.manifest import Population
from pbt.recovery import recover
from pbt.survivors import choose, schedule
from rayconf import RunConfig, UserError
from tests.pbt.rehearsal import PAIR, Rehearsal


def test_a_spike_survives_its_decay(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path)
    stage.play(0.1, 0.2, 0.3, 0.4)
    spike = stage.play(0.1, 2.0, 0.3, 0.4)["m01"]
    for _ in range(3):
        stage.play(0.1, 0.2, 0.3, 0.4)
    best = stage.population.committed.archive[0]
    assert (best.state, best.generation, best.member) == (spike, 2, "m01")
    assert stage.store.load(spike)["w"][1] == 2
    assert stage.population.complete


def test_an_archive_of_the_last_generation_forgets_a_spike(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path, "pbt.archive_of=last", "pbt.archive=4")
    spike = stage.play(0.1, 2.0, 0.3, 0.4)["m01"]
    ended = stage.play(0.1, 0.2, 0.3, -0.4)
    archive = stage.population.committed.archive
    assert {(s.state, s.member, s.generation) for s in archive} == {(state, name, 2) for name, state in ended.items()}
    assert spike not in {snapshot.state for snapshot in archive}


def test_disk_holds_what_commits_name_and_stays_bounded(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path)
    bound = 2 * 4 + 2
    for generation in range(5):
        stage.play(0.1 + generation, 0.2, 0.3, 0.4)
        assert stage.population.committed.states() == stage.store.names()
        assert len(stage.store.names()) <= bound
        named = Population.read(stage.directory.manifest(PAIR))
        assert named == stage.population.committed
        assert {m.state for m in named.members.values()} <= stage.store.names()


def test_exploit_names_the_donors_state_and_history(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path)
    ended = stage.play(3.0, 0.2, 0.3, -3.0)
    rows = {r["member"]: r for r in read_jsonl(stage.directory.lineage_journal) if r["generation"] == 1}
    row = rows["m03"]
    assert (row["operation"], row["parent_member"], row["copied"]) == ("exploit", "m00", "all")
    assert row["state"] == ended["m00"]
    assert row["gap"] > 0 < row["gap_se"]
    member = stage.population.committed.members["m03"]
    assert member.state == ended["m00"]
    assert member.fitness_history == (3.0,)
    assert row["hp_learning_rate"] == member.hyperparameters["learning_rate"] != row["old_hp_learning_rate"]


def test_smoothing_follows_the_weights(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path, "pbt.fitness_smoothing=0.5", "pbt.replace_z=1000")
    stage.play(1.0, 0.0, 0.0, 0.0)
    stage.play(0.0, 0.0, 0.0, 0.0)
    scores = {s.member: s.score for s in stage.population.committed.archive if s.generation == 2}
    assert stage.population.journaled[0]["fitness_smoothed"] == 0.5
    assert scores.get("m00", 0.5) == 0.5


def test_broken_members_are_neither_archived_nor_kept(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path)
    stage.play(BROKEN, BROKEN, BROKEN, 0.1)
    assert [s.member for s in stage.population.committed.archive] == ["m03"]
    members = stage.population.committed.members
    assert {members[name].parent for name in ("m01", "m02", "m03")} == {"m03"}
    assert (members["m00"].state, members["m00"].trained) == (None, 0), "a broken reference starts over"


def test_a_member_lost_too_often_is_replaced(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path)
    for i in range(3):
        stage.population.report(f"m0{i}", stage.result(f"m0{i}", float(i)))
    for _ in range(stage.run.pbt.max_failures):
        assert not stage.population.ready
        stage.population.fail("m03", "killed")
    assert stage.population.lost("m03")
    decisions = {d.member: d for d in stage.population.commit()}
    assert (decisions["m03"].operation, decisions["m03"].parent) == ("exploit", "m02")
    kinds = [event["kind"] for event in read_jsonl(stage.directory.events_journal)]
    assert kinds == ["retry", "retry", "actor_lost"]


def test_a_result_whose_save_failed_is_void(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path)
    stage.population.report("m00", stage.result("m00", 1.0))
    stage.population.fail("m00", "killed while saving")
    assert not stage.population.reported("m00")


def test_recover_drops_what_no_commit_knows(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path)
    stage.play(0.1, 0.2, 0.3, 0.4)
    committed = stage.population.committed
    journals = [read_jsonl(j) for j in (stage.directory.progress_journal, stage.directory.lineage_journal)]
    # Killed inside the next barrier: journals written, manifest not, states of the unfinished generation on disk.
    before = stage.directory.manifest(PAIR).read_bytes()
    stage.play(0.4, 0.3, 0.2, 0.1)
    stage.directory.manifest(PAIR).write_bytes(before)
    for name in committed.states() - stage.store.names():
        pytest.fail(f"{name} of the commit was swept although it was still the last one")
    recover(stage.directory, stage.run)
    assert [read_jsonl(j) for j in (stage.directory.progress_journal, stage.directory.lineage_journal)] == journals
    assert stage.store.names() == committed.states()


def test_a_damaged_manifest_is_one_clear_line(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path)
    stage.directory.manifest(PAIR).write_text("{")
    with pytest.raises(UserError, match=r"SYNA_SYNB\.json"):
        Population.read(stage.directory.manifest(PAIR))


@pytest.mark.parametrize("schema", [1, 3, None])
def test_a_manifest_of_another_schema_is_refused(tmp_path: Path, schema: int | None) -> None:
    stage = Rehearsal(tmp_path)
    path = stage.directory.manifest(PAIR)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    with pytest.raises(UserError, match=f"schema {schema}; this version reads schema 2"):
        Population.read(path)


def test_schedule_walks_through_donors(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path)
    stage.play(3.0, 0.2, 0.3, -3.0)
    stage.play(0.0, 0.1, 0.2, 3.0)
    lineage = read_jsonl(stage.directory.lineage_journal)
    path = schedule(lineage, PAIR, "m03", 2)
    assert [(row["generation"], row["member"]) for row in path] == [(0, "m00"), (1, "m03")]
    assert path[0]["hp_learning_rate"] == stage.run.optimizer.learning_rate


def test_survivors_prefer_different_streams_and_fill_up(tmp_path: Path, tiny_run: RunConfig) -> None:
    stage = Rehearsal(tmp_path, "pbt.archive=4")
    stage.play(0.4, 0.3, 0.2, 0.1)
    archive = stage.population.committed.archive
    rng = np.random.Generator(np.random.PCG64(1))
    first, other = rng.standard_normal((2, 300))
    copy = first + 0.01 * other
    streams = dict(zip([s.state for s in archive], (first, copy, other, copy * 2), strict=True))
    assert [s.member for s in choose(archive, streams, 2, 0.95)] == ["m00", "m02"]
    assert [s.member for s in choose(archive, streams, 3, 0.95)] == ["m00", "m01", "m02"]
    assert [s.member for s in choose(archive, streams, 2, 1.0)] == ["m00", "m01"]
    assert choose([], {}, 2, 0.95) == []
