"""Member states on disk, named by their content: copying at an exploit is naming, retries are idempotent."""

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

State = dict[str, Tensor]
"""Flat tensors by name: everything that training needs to go on."""


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
    """A folder of ``<digest>.pt`` files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: Mapping[str, Tensor]) -> str:
        """Write a state unless it is there already; return its digest."""
        name = digest(state)
        path = self._path(name)
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            # Written by Python, because torch's own writer does not say when the disk is full.
            content = io.BytesIO()
            torch.save({key: state[key] for key in sorted(state)}, content)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            try:
                temporary.write_bytes(content.getbuffer())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return name

    def load(self, name: str) -> State:
        """Read a state back.

        Raises:
            CorruptStateError: If the file is unreadable or its content differs from its name.
        """
        path = self._path(name)
        try:
            state: State = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise CorruptStateError(f"{path} cannot be read: {error}") from error
        if digest(state) != name:
            raise CorruptStateError(f"{path} does not hold what its name says")
        return state

    def damaged(self, names: Iterable[str]) -> list[str]:
        """Those of the named states that are missing or do not hold what their names say, in order of name."""
        found = []
        for name in sorted(set(names)):
            try:
                self.load(name)
            except (FileNotFoundError, CorruptStateError):
                found.append(name)
        return found

    def discard(self, names: Iterable[str]) -> None:
        """Delete the named states, where present."""
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def names(self) -> set[str]:
        """Digests of all states present."""
        return {path.stem for path in self._folder.glob("*.pt")}

    def sweep(self, needed: Iterable[str]) -> None:
        """Delete all but the named states, and what interrupted saves left."""
        self.discard(self.names() - set(needed))
        for temporary in self._folder.glob("*.tmp"):
            temporary.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.pt"
