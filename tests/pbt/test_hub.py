"""Fetching published runs from a hub on loopback with the real client: what comes is checked, the rest is refused."""

import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from pbt.publication import Publication, build
from pbt.safe_files import LAYOUT, LIMITS, admitted
from rayconf.errors import UserError
from tests.hub_server import READER, TOKEN, Hub, client

FETCH = """
import json, sys
from pbt.hub import fetch
from rayconf.errors import UserError
for uri in sys.argv[1:]:
    try:
        print(json.dumps([uri, str(fetch(uri)), None]))
    except UserError as error:
        print(json.dumps([uri, None, str(error)]))
"""
ONE = "survivors/SYNA_SYNB/1"
WEIGHTS = f"{ONE}/policy.safetensors"


def fetched(hub: Hub, home: Path, *uris: str, token: str | None = TOKEN) -> dict[str, tuple[str | None, str | None]]:
    """Folder or error by URI, from a process of its own: the client reads its environment once."""
    command = [sys.executable, "-c", FETCH, *uris]
    done = subprocess.run(command, env=client(hub.url, home, token), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "the client's own warnings stay off the terminal"
    return {uri: (folder, error) for uri, folder, error in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def published(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """The files of a published run by path: one pair of it, so that there is less to download."""
    folder = tmp_path_factory.mktemp("published")
    build(Publication.of(undisturbed, ["SYNA/SYNB"]), folder, "trader/tiny")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


def test_a_fetched_run_is_a_run_directory_and_stays_in_the_cache(
    hub: Hub, published: Mapping[str, bytes], undisturbed: Path, tmp_path: Path
) -> None:
    commit = hub.add("trader/tiny", published)
    uris = ["hf://trader/tiny", f"hf://models/trader/tiny@main/{ONE}", f"hf:/trader/tiny@{commit}"]
    folders = [Path(folder) for folder, error in fetched(hub, tmp_path, *uris).values() if not error]  # type: ignore[arg-type]
    run, survivor, pinned = folders
    assert survivor == run / ONE
    assert pinned == run
    copied = [x for x in undisturbed.glob("survivors/SYNA_SYNB/*/*") if x.suffix != ".yaml"]
    assert len(copied) == 3 * 4
    for path in copied:
        assert (run / path.relative_to(undisturbed)).read_bytes() == path.read_bytes()
    assert (run / "summary.json").read_bytes() == published["summary.json"]
    there = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert there == {name.replace("config.json", "config.yaml") for name in published} - {"README.md"}

    asked = len(hub.requests)
    hub.faults["down"] = 1  # what was fetched once is there without the hub
    assert [Path(folder) for folder, _ in fetched(hub, tmp_path, *uris).values() if folder] == folders
    assert len(hub.requests) > asked


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def test_nothing_but_safetensors_json_and_parquet_is_taken(
    hub: Hub, published: Mapping[str, bytes], tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    bomb = pickle.dumps(Bomb(marker))
    scaler = json.loads(published[f"{ONE}/scaler.json"])
    policy = json.loads(published[f"{ONE}/policy.json"])
    config = json.loads(published["config.json"])
    summary = json.loads(published["summary.json"])
    wrong_header = struct.pack("<Q", 1 << 60) + b"{}"
    deep = b"[" * 100_000
    outside = {**summary, "pairs": {"../../x/y": next(iter(summary["pairs"].values()))}}
    first = next(iter(summary["pairs"]))
    undated = {**summary, "pairs": {first: {**summary["pairs"][first], "splits": {"test": ["soon", "later"]}}}}
    encoder = {**policy, "market_network": {"hidden": [10**9, 10**9], "activation": "tanh"}}

    def text(content: Any) -> bytes:
        return json.dumps(content).encode()

    # by name, before anything is downloaded; by content, after
    names: dict[str, tuple[dict[str, bytes], str]] = {
        "pickle": ({"policy.pkl": bomb}, "policy.pkl"),
        "torch": ({f"{ONE}/policy.bin": bomb}, "policy.bin"),
        "code": ({"config.py": b"import os"}, "config.py"),
        "yaml": ({"config.yaml": b"!!python/object/apply:os.system [true]"}, "config.yaml"),
        "upwards": ({"../../../x.safetensors": b""}, "../../../x.safetensors"),
        "absolute": ({"/etc/x.json": b"{}"}, "/etc/x.json"),
        "inside": ({f"{ONE}/../../x.json": b"{}"}, "../../x.json"),
        "hidden": ({".ssh/config.json": b"{}"}, ".ssh/config.json"),
        "backslash": ({"..\\..\\x.json": b"{}"}, "x.json"),
        "upper": ({"POLICY.PKL": bomb}, "POLICY.PKL"),
    }
    contents: dict[str, tuple[dict[str, bytes], str]] = {
        "pickled": ({WEIGHTS: bomb}, "policy.safetensors"),
        "zipped": ({WEIGHTS: b"PK\3\4" + bomb}, "policy.safetensors"),
        "link": ({WEIGHTS: b"../../../../../../etc/passwd"}, "policy.safetensors"),
        "header": ({WEIGHTS: wrong_header}, "policy.safetensors"),
        "shape": ({WEIGHTS: save({"0.weight": _zeros(3, 3), "0.bias": _zeros(3)})}, "policy.safetensors"),
        "nan": ({WEIGHTS: save({"0.weight": _zeros(3, 3) * float("nan"), "0.bias": _zeros(3)})}, "no finite numbers"),
        "whole": ({WEIGHTS: save({"0.weight": _zeros(3, 3).astype("int64")})}, "found I64"),
        "empty": ({WEIGHTS: b""}, "policy.safetensors"),
        "json nan": ({f"{ONE}/scaler.json": b'{"schema": NaN}'}, "scaler.json"),
        "json inf": ({f"{ONE}/scaler.json": b'{"schema": 1e999}'}, "scaler.json"),
        "json pickled": ({f"{ONE}/policy.json": bomb}, "policy.json"),
        "json deep": ({f"{ONE}/policy.json": deep}, "policy.json"),
        "features": ({f"{ONE}/scaler.json": text({**scaler, "names": scaler["names"][::-1]})}, "other features"),
        "network": ({f"{ONE}/policy.json": text(encoder)}, "describes no network"),
        "config": ({"config.json": text({**config, "hooks": ["os.system"]})}, "hooks"),
        "folder": ({"config.json": text({**config, "data": {**config["data"], "dir": "/etc"}})}, "data.dir"),
        "summary": ({"summary.json": text(outside)}, "../../x/y"),
        "dates": ({"summary.json": text(undated)}, "no first and last date"),
        "parquet": ({"frames/summary.parquet": bomb}, "summary.parquet"),
    }
    for name, (files, _) in (names | contents).items():
        hub.add(f"trader/{name.replace(' ', '-')}", {**published, **files})
    hub.add("trader/huge", published, declared={WEIGHTS: LIMITS[".safetensors"] + 1})
    hub.add("trader/liar", published, declared={WEIGHTS: len(published[WEIGHTS]) - 1})
    hub.add("trader/bert", {"config.json": b"{}", "model.safetensors": published[WEIGHTS]})
    missing = {name: content for name, content in published.items() if name != f"{ONE}/scaler.json"}
    hub.add("trader/part", missing)

    uris = {
        name: f"hf://trader/{name.replace(' ', '-')}" for name in [*names, *contents, "huge", "liar", "bert", "part"]
    }
    found = fetched(hub, tmp_path / "home", *uris.values())
    for name, (_, fragment) in (names | contents).items():
        folder, error = found[uris[name]]
        assert folder is None, f"{name} was taken"
        assert error is not None
        assert error.startswith(f"{uris[name]}: ")
        assert fragment.replace("\\", "\\\\") in error, name
        assert "\n" not in error
    assert str(LIMITS[".safetensors"] + 1) in str(found[uris["huge"]])
    assert WEIGHTS in str(found[uris["liar"]])
    assert "summary.json, frames/summary.parquet, survivors/<AAA_BBB>/<rank>/policy.safetensors" in str(
        found[uris["bert"]]
    )
    assert f"{ONE}/scaler.json missing" in str(found[uris["part"]])
    before = [uris[name].removeprefix("hf://") for name in [*names, "huge", "bert", "part"]]
    assert not [x for x in hub.requests for repo in before if f"{repo}/resolve/" in x], "refused before a download"
    assert not marker.exists()
    assert not list((tmp_path / "home").rglob("run")), "nothing appears under its name before all checks have passed"


def _zeros(*shape: int) -> Any:
    import numpy as np

    return np.zeros(shape)


def test_what_the_hub_refuses_is_told_in_one_line(hub: Hub, published: Mapping[str, bytes], tmp_path: Path) -> None:
    hub.add("trader/tiny", published)
    hub.add("trader/secret", published, private=True)
    hub.add("trader/gated", published, gated=True)
    uris = {
        "hf://trader/none": "no such repository",
        "hf://trader/tiny@none": "no such revision",
        "hf://trader/tiny/survivors/AAA_BBB": "survivors/SYNA_SYNB",
        "hf://trader/gated": "is gated; ask for access",
        "hf://datasets/trader/tiny": "is a dataset",
        "hf://trader": "write hf://user/name",
    }
    found = fetched(hub, tmp_path, *uris)
    for uri, fragment in uris.items():
        assert fragment in str(found[uri][1])
    assert fetched(hub, tmp_path, "hf://trader/secret")["hf://trader/secret"][0], "the owner's token opens it"
    other = tmp_path / "other"
    for token, fragment in ((None, "or set HF_TOKEN"), (READER, "a private one"), ("hf_no", "not know this token")):
        (answer,) = fetched(hub, other, "hf://trader/secret", token=token).values()
        assert fragment in str(answer[1])
    hub.faults["down"] = 1
    assert "cannot be reached" in str(fetched(hub, other, "hf://trader/tiny")["hf://trader/tiny"][1])
    with Hub() as gone:
        pass
    assert "cannot be reached" in str(fetched(gone, other, "hf://trader/tiny")["hf://trader/tiny"][1])


@given(st.lists(st.sampled_from(["..", ".", "", "survivors", "A_B", "1", "policy.json", "x.pkl", "~", "a\\b", "\0"])))
def test_no_name_reaches_outside(parts: list[str]) -> None:
    name = "/".join(parts)
    try:
        kept = admitted("hf://a/b", [(name, 1)])
    except UserError:
        return
    assert all(LAYOUT.fullmatch(x) and ".." not in x.split("/") and not x.startswith("/") for x in kept)
    assert not name.endswith(".pkl")


def test_too_many_files_are_refused_without_reading_the_list_to_its_end() -> None:
    def endless() -> Iterator[tuple[str, int]]:
        number = 0
        while True:
            number += 1
            yield f"notes/{number}.json", 1

    with pytest.raises(UserError, match="more than 5000 files"):
        admitted("hf://a/b", endless())
