"""States by content: idempotent, order-free, and corruption is noticed."""

from pathlib import Path

import pytest
import torch

from pbt.store import CorruptStateError, StateStore, digest
from rayconf.storage import LocalStorage


def state(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"b": torch.tensor([value, 2.0]), "a": torch.arange(3), "flag": torch.tensor(True), "none": torch.empty(0)}


def test_round_trip_and_idempotence(tmp_path: Path) -> None:
    store = StateStore(LocalStorage(tmp_path))
    name = store.save(state())
    assert store.save(dict(reversed(list(state().items())))) == name
    assert store.names() == {name}
    for key, tensor in store.load(name).items():
        assert torch.equal(tensor, state()[key])
        assert tensor.dtype == state()[key].dtype


def test_digest_sees_names_types_shapes_and_values() -> None:
    base = digest(state())
    assert digest(state(1.0000001)) != base
    assert digest({**state(), "c": torch.tensor(0)}) != base
    assert digest({"x": torch.zeros(2, 3)}) != digest({"x": torch.zeros(3, 2)})
    assert digest({"x": torch.zeros(2)}) != digest({"x": torch.zeros(4, dtype=torch.float16)})
    assert digest({"x": torch.zeros(2)}) != digest({"y": torch.zeros(2)})


def test_corruption_is_noticed(tmp_path: Path) -> None:
    store = StateStore(LocalStorage(tmp_path))
    name = store.save(state())
    path = tmp_path / "members" / "states" / f"{name}.pt"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptStateError, match=name):
        store.load(name)
    torch.save(state(3.0), path)  # readable, but not what the name says
    with pytest.raises(CorruptStateError, match="does not hold"):
        store.load(name)


def test_discard_ignores_what_is_gone(tmp_path: Path) -> None:
    store = StateStore(LocalStorage(tmp_path))
    name = store.save(state())
    store.discard([name, "0" * 16])
    assert store.names() == set()
