"""What members leave of a generation, where every node reaches it: states named by content, returns on validation."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pbt.run_dir import folder_name
from rayconf.storage import Storage

State = dict[str, Tensor]
"""Flat tensors by name: everything that training needs to go on."""
Evaluated = tuple[str, str, int]
"""Pair, member and generation of an evaluation on validation."""


class CorruptStateError(RuntimeError):
    """A state file whose content no longer matches its name."""


def digest(state: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of SHA-256 over names, types, shapes and bytes, in order of name."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return sha.hexdigest()[:16]


class StateStore:
    """A run's ``members/states/<digest>.pt``: copying at an exploit is naming, retries are idempotent.

    Args:
        run: Where the run lies.
    """

    def __init__(self, run: Storage) -> None:
        self._folder = run.within("members/states")

    def save(self, state: Mapping[str, Tensor]) -> str:
        """Write a state unless it is there already; return its digest."""
        name = digest(state)
        if not self._folder.exists(_file(name)):
            # Written by Python, because torch's own writer does not say when the disk is full.
            content = io.BytesIO()
            torch.save({key: state[key] for key in sorted(state)}, content)
            self._folder.write(_file(name), content.getbuffer())
        return name

    def load(self, name: str) -> State:
        """Read a state back.

        Raises:
            CorruptStateError: If the file is unreadable or its content differs from its name.
            FileNotFoundError: If there is none.
        """
        return self._state(name, self._folder.read(_file(name)))

    def _state(self, name: str, content: bytes) -> State:
        try:
            state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:
            raise CorruptStateError(f"{self.shown(name)} cannot be read: {error}") from error
        if digest(state) != name:
            raise CorruptStateError(f"{self.shown(name)} does not hold what its name says")
        return state

    def damaged(self, names: Iterable[str]) -> list[str]:
        """Those of the named states that are missing or do not hold what their names say, in order of name."""
        wanted, found = sorted(set(names)), []
        for name, content in zip(wanted, self._folder.read_each(map(_file, wanted)), strict=True):
            try:
                self._state(name, content or b"")
            except CorruptStateError:
                found.append(name)
        return found

    def discard(self, names: Iterable[str]) -> None:
        """Delete the named states, where present."""
        self._folder.delete(map(_file, names))

    def names(self) -> set[str]:
        """Digests of all states present."""
        return {name.removesuffix(".pt") for name in self._folder.names() if name.endswith(".pt")}

    def sweep(self, needed: Iterable[str]) -> None:
        """Delete all but the named states, and what interrupted saves left."""
        self.discard(self.names() - set(needed))
        self._folder.tidy()

    def shown(self, name: str) -> str:
        """The file of a state, for people."""
        return self._folder.shown(_file(name))


def _file(name: str) -> str:
    return f"{name}.pt"


class ReturnStore:
    """A run's ``members/validation/<AAA_BBB>/g<generation>-<member>.npy``: net returns on validation, float64 [K].

    Args:
        run: Where the run lies.
    """

    def __init__(self, run: Storage) -> None:
        self._folder = run.within("members/validation")

    def save(self, of: Evaluated, net_return: np.ndarray) -> None:
        """Write the returns of an evaluation."""
        # Written by Python, because numpy's own writer does not say when the disk is full.
        content = io.BytesIO()
        np.save(content, net_return)
        self._folder.write(self.name(of), content.getbuffer())

    def load(self, of: Evaluated) -> np.ndarray:
        """The returns of an evaluation. Raises ``FileNotFoundError`` where there are none."""
        return _array(self._folder.read(self.name(of)))

    def load_each(self, evaluations: Sequence[Evaluated]) -> Iterator[np.ndarray | None]:
        """Returns in the order given; None: there are none, as of a lost member."""
        for content in self._folder.read_each(map(self.name, evaluations)):
            yield None if content is None else _array(content)

    @staticmethod
    def name(of: Evaluated) -> str:
        """The file's name in the folder."""
        pair, member, generation = of
        return f"{folder_name(pair)}/g{generation:04d}-{member}.npy"


def _array(content: bytes) -> np.ndarray:
    values: np.ndarray = np.load(io.BytesIO(content))
    return values
