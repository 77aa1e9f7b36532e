"""A folder here and a folder in a bucket are one to those who use them; what a commit sends, and in which order."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.frames import read_jsonl
from pbt.manifest import Population
from pbt.mirror import Mirror, RemoteRuns
from pbt.population import PairPopulation
from pbt.recovery import recover
from pbt.run_dir import RunDir
from pbt.store import CorruptStateError, StateStore
from rayconf.remote_storage import RemoteStorage, shown
from rayconf.storage import LocalStorage, Storage, StorageError, is_uri, place, storage_at
from tests.object_store import ObjectStore, object_store
from tests.pbt.rehearsal import PAIR, Rehearsal
from tests.pbt.test_store import state

SCRIPT = ((3.0, 0.2, 0.3, -3.0), (1.0, 0.5, 2.0, 0.3), (0.1, 0.2, 0.3, 4.0))


@pytest.fixture(scope="module")
def bucket() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: ObjectStore) -> Storage:
    return storage_at(tmp_path / "folder" if request.param == "local" else bucket.uri(f"units/{tmp_path.name}"))


def test_a_folder_is_a_folder(folder: Storage, tmp_path: Path) -> None:
    assert not folder.occupied()
    assert folder.names() == []
    content = bytes(range(256)) * 100_000  # several parts of an upload
    folder.write("b/big file.bin", content)
    folder.write("a", b"first")
    folder.write("a", memoryview(b"second"))
    assert folder.occupied()
    assert folder.names() == ["a", "b/big file.bin"]
    assert folder.names(lambda name: name.startswith("b/")) == ["b/big file.bin"]
    assert folder.names(lambda name: not name.startswith("b/")) == ["a"]
    assert (folder.read("a"), folder.read("b/big file.bin")) == (b"second", content)
    assert (folder.exists("a"), folder.exists("b"), folder.exists("c")) == (True, False, False)
    with pytest.raises(FileNotFoundError):
        folder.read("c")
    assert list(folder.read_each(["a", "c", "a"])) == [b"second", None, b"second"]

    within = storage_at(folder.within("b").place)  # as another node opens it
    assert within.names() == ["big file.bin"]
    odd = folder.within("50% of it")
    odd.write("x", b"odd")
    assert storage_at(odd.place).read("x") == b"odd"

    folder.fetch(["a", "b/big file.bin"], tmp_path / "copy")
    assert LocalStorage(tmp_path / "copy").names() == ["a", "b/big file.bin"]
    assert (tmp_path / "copy" / "b" / "big file.bin").read_bytes() == content
    (tmp_path / "copy" / "d").write_bytes(b"fourth")
    folder.send(["d", "vanished"], tmp_path / "copy")
    assert folder.read("d") == b"fourth"

    folder.delete(["a", "d", "c"])
    assert folder.names() == ["50% of it/x", "b/big file.bin"]
    odd.clear()
    odd.clear()
    assert folder.names() == ["b/big file.bin"]


def test_states_are_safe_in_either(folder: Storage) -> None:
    store = StateStore(folder)
    name = store.save(state())
    assert store.save(state()) == name
    other = store.save(state(3.0))
    assert store.names() == {name, other}
    assert store.damaged([name, other, "0" * 16]) == ["0" * 16]
    file = f"members/states/{name}.pt"
    folder.write(file, folder.read(file)[:-40])
    assert store.damaged([name, other]) == [name]
    with pytest.raises(CorruptStateError, match=name):
        store.load(name)
    store.sweep([other])
    assert store.names() == {other}


def test_an_interrupted_write_leaves_no_file_of_half_its_content(bucket: ObjectStore) -> None:
    """A Ctrl-C between opening and closing a stream would otherwise complete it as it is."""
    folder = RemoteStorage(bucket.uri("interrupted"))
    opened, threads = folder.system.open_output_stream, []

    class System:
        def open_output_stream(self, path: str) -> Any:
            threads.append(threading.current_thread())
            return opened(path)

    folder.system = System()
    folder.write("a", b"whole")
    assert bucket.files("interrupted") == {"a": b"whole"}
    assert threads[0] is not threading.main_thread()  # which alone gets a KeyboardInterrupt


def test_an_outage_is_waited_for_but_not_for_ever(bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RemoteStorage(bucket.uri("outage"))
    waiting = threading.Thread(target=folder.write, args=("a", b"late"))
    with bucket.away():
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive()
        with monkeypatch.context() as hurried:
            hurried.setattr("rayconf.remote_storage.PATIENCE", 0.0)
            with pytest.raises(StorageError, match="NETWORK_CONNECTION"):
                folder.read("a")
    waiting.join()
    assert bucket.files("outage") == {"a": b"late"}


def test_what_is_told_of_a_place_holds_no_secret(bucket: ObjectStore) -> None:
    assert shown("s3://KEY:hidden@b/runs?region=x&endpoint_override=y") == "s3://b/runs"
    for uri in ("s3://KEY:hidden@b/runs", "abfs://c@a.dfs.core.windows.net/runs?client_secret=hidden"):
        with pytest.raises(StorageError, match="leave keys out of the URI") as told:
            storage_at(uri)
        assert "hidden" not in str(told.value)
    for uri, why in (("s3://", "names no bucket"), ("wrong://x/y", "Unrecognized"), ("s3://a/b c", "Cannot parse")):
        with pytest.raises(StorageError, match=why):
            storage_at(uri)
    assert [is_uri(x) for x in ("s3://a", "hf://a/b", "runs", Path("s3:/a"))] == [True, False, False, False]
    assert (place("s3://a?b=c://d"), place("runs/x")) == ("s3://a?b=c://d", Path("runs/x"))
    assert (place("file:///x/runs"), str(place("hf://a/b"))) == (Path("/x/runs"), "hf:/a/b")
    missing = RemoteStorage(bucket.uri("runs", bucket="theirs"))
    with pytest.raises(StorageError, match="there is no bucket 'theirs'"):
        missing.check()


class Remote(Rehearsal):
    """A rehearsal whose run lies in the bucket."""

    uri: str

    def mirror_of(self, path: Path) -> Mirror:
        return Mirror(path, RemoteStorage(self.uri))


def rehearsal(uri: str, folder: Path) -> Remote:
    return type("Here", (Remote,), {"uri": uri})(folder)  # type: ignore[no-any-return]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is put and deleted, in the order in which it is begun."""
    acts: list[tuple[str, str]] = []
    put, delete = RemoteStorage._put, RemoteStorage.delete

    def note_put(self: RemoteStorage, name: str, content: bytes) -> None:
        acts.append(("put", self._at(name).partition("/run/")[2]))
        put(self, name, content)

    def note_delete(self: RemoteStorage, names: Iterable[str]) -> None:
        names = list(names)
        acts.extend(("delete", self._at(name).partition("/run/")[2]) for name in names)
        delete(self, names)

    monkeypatch.setattr(RemoteStorage, "_put", note_put)
    monkeypatch.setattr(RemoteStorage, "delete", note_delete)
    return acts


def test_a_commit_sends_journals_then_the_manifest_and_then_deletes(
    bucket: ObjectStore, tmp_path: Path, done: list[tuple[str, str]]
) -> None:
    stage = rehearsal(bucket.uri("order/run"), tmp_path)
    for fitness in SCRIPT:
        done.clear()
        stage.play(*fitness)
    manifest = done.index(("put", "state/SYNA_SYNB.json"))
    before = {("put", f"state/{name}") for name in ("lineage.jsonl", "progress.jsonl", "previous/SYNA_SYNB.json")}
    assert before <= set(done[:manifest])
    deleted = [act for act in done if act[0] == "delete"]
    assert deleted
    assert all(name.startswith("members/states/") for _, name in deleted)
    assert not set(deleted) & set(done[:manifest])
    assert {act for act, _ in done[manifest + 1 :]} == {"delete"}

    # An unchanged file is not sent again, a vanished one vanishes, and summary.json comes last.
    done.clear()
    for name in ("report.html", "summary.json", "zz.txt", "frames/daily.parquet"):
        LocalStorage(stage.directory.path).write(name, b"x")
    stage.directory.push(everything=True)
    assert sorted(done[:-1]) == [("put", name) for name in ("frames/daily.parquet", "report.html", "zz.txt")]
    assert done[-1] == ("put", "summary.json")
    (stage.directory.path / "zz.txt").unlink()
    done.clear()
    stage.directory.push(everything=True)
    assert done == [("delete", "zz.txt")]


def test_what_cannot_be_sent_is_kept_and_told(
    bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = RemoteRuns(bucket.uri("kept"))
    mirror, untouched = runs.mirror("one"), runs.mirror("two")
    folders = [LocalStorage(found.folder) for found in (mirror, untouched)]
    for folder in folders:
        folder.write("state/events.jsonl", b"{}\n")
    mirror.push()
    folders[0].write("run.log", b"why it failed")

    def no_put(self: RemoteStorage, name: str, content: bytes) -> None:
        raise StorageError(f"{self.shown(name)}: cannot be written: planted")

    with monkeypatch.context() as planted:
        planted.setattr(RemoteStorage, "_put", no_put)
        assert not runs.close()
    line = capsys.readouterr().err
    assert line.startswith("pairpbt: s3://mine/kept/one/run.log: cannot be written: planted; ")
    assert line.endswith(f" lies in {mirror.folder}\n")
    assert folders[0].read("run.log") == b"why it failed"
    assert runs.close()
    assert not runs.folder.parent.exists()
    # What was never begun there is not sent.
    assert bucket.files("kept") == {"one/state/events.jsonl": b"{}\n", "one/run.log": b"why it failed"}


@pytest.mark.parametrize("fails", ["state/lineage.jsonl", "state/SYNA_SYNB.json", "members"])
def test_a_commit_that_fails_midway_is_none(
    fails: str, bucket: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever cannot be sent or deleted: the bucket alone goes on from its last commit, and ends the same."""
    through = Rehearsal(tmp_path / "through")
    for fitness in SCRIPT:
        through.play(*fitness)
    uri = bucket.uri(f"fails/{fails.replace('/', '-')}/run")
    stage = rehearsal(uri, tmp_path / "here")
    stage.directory.push()
    stage.play(*SCRIPT[0])
    put, delete = RemoteStorage._put, RemoteStorage.delete

    def no_put(self: RemoteStorage, name: str, content: bytes) -> None:
        if name == fails:
            raise StorageError(f"{self.shown(name)}: cannot be written: planted")
        put(self, name, content)

    def no_delete(self: RemoteStorage, names: Iterable[str]) -> None:
        if fails == "members":
            raise StorageError("cannot be deleted: planted")
        delete(self, names)

    with monkeypatch.context() as planted:
        planted.setattr(RemoteStorage, "_put", no_put)
        planted.setattr(RemoteStorage, "delete", no_delete)
        with pytest.raises(StorageError, match="planted"):
            stage.play(*SCRIPT[1])

    there = tmp_path / "there" / "run"
    mirror = Mirror(there, RemoteStorage(uri))
    mirror.pull()
    directory = RunDir(there, stage.run.identity, mirror)
    committed = Population.read(directory.manifest(PAIR))
    assert committed.generation == (2 if fails == "members" else 1)
    assert committed.states() <= stage.store.names()
    recover(directory, stage.run)
    assert committed.states() == stage.store.names()
    stage.directory, stage.store = directory, StateStore(directory.storage)
    stage.population = PairPopulation(stage.run, directory, stage.calendar, committed)
    for fitness in SCRIPT[committed.generation :]:
        stage.play(*fitness)
    assert stage.population.committed == through.population.committed
    assert read_jsonl(directory.lineage_journal) == read_jsonl(through.directory.lineage_journal)
    assert stage.store.names() == through.store.names()
