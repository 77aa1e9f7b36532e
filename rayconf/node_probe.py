"""What one node of a cluster finds out about itself.

The module is sent to the nodes by value, so that it also runs where the project's own code is old or missing. It
imports nothing but Python's own library at the top, and nothing of the project anywhere.
"""

import hashlib
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "torch", "numpy", "pyarrow", "huggingface_hub", "urllib3")
ROOMS = ("rayconf", "envs", "algos", "pbt", "analysis")
GIGABYTE = 1e9
# Whatever Ray shows or hides from a process without GPUs, the question is what the machine has.
CUDA = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that nodes must share; a missing package is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_digest() -> str:
    """The project's own code as 12 hex digits over names and content of its sources; empty: not installed."""
    spec = util.find_spec("rayconf")
    if spec is None or spec.origin is None:
        return ""
    home = Path(spec.origin).resolve().parents[1]
    sha = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (home / room).rglob("*.py")):
        sha.update(f"{path.relative_to(home).as_posix()}\n".encode())
        sha.update(hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()[:12]


def differences(theirs: dict[str, str], their_code: str, ours: dict[str, str], our_code: str) -> list[str]:
    """In which versions and sources a node differs from the driver; builds of a version (+cpu, +cu130) are one.

    Args:
        theirs: ``versions`` of the node.
        their_code: ``code_digest`` of the node.
        ours: ``versions`` of the driver.
        our_code: ``code_digest`` of the driver.
    """
    found = []
    for package, version in ours.items():
        there = theirs.get(package)
        if package == "python":
            same = there is not None and there.split(".")[:2] == version.split(".")[:2]
        else:
            same = there is not None and there.partition("+")[0] == version.partition("+")[0]
        if not same:
            found.append(f"{package} {there or 'missing'}, the driver has {version}")
    if their_code != our_code:
        found.append("other code of pairpbt than the driver" if their_code else "pairpbt is not installed")
    return found


def cuda_devices() -> int:
    """GPUs that torch finds, asked in a process of its own."""
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run([sys.executable, "-c", CUDA], env=env, capture_output=True, text=True, timeout=120)
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else 0


def existing(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_gb(path: Path) -> float:
    """Free space in GB where a path lies or will lie."""
    return shutil.disk_usage(existing(path)).free / GIGABYTE


def data_digest(folder: str) -> str:
    """Names and sizes of a folder's files, hidden ones aside, as 12 hex digits, each opened to see that it can be read.

    Raises:
        OSError: when the folder or one of its files cannot be read.
    """
    sha = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and not path.name.startswith("."):  # probe files begin so
            with path.open("rb") as file:
                file.read(1)
            sha.update(f"{path.name}|{path.stat().st_size}\n".encode())
    return sha.hexdigest()[:12]


class Probe:
    """Lives on one node for the length of a check.

    Args:
        node: Ray's name of the node, which names its probe file in the storage.
        token: Names this check, so that two at a time do not meet.
        storage: Where runs will be written, a local path or a URI that pyarrow knows; None: not asked.
        data_dir: Folder of prices; None: not asked.
        gpus: GPUs that Ray offers on this node.
    """

    def __init__(self, node: str, token: str, storage: str | None, data_dir: str | None, gpus: float) -> None:
        self._node = node
        self._token = token
        self._storage = storage
        self._data_dir = data_dir
        self._gpus = gpus

    def clock(self) -> float:
        """This node's Unix time."""
        return time.time()

    def report(self) -> dict[str, Any]:
        """All that needs no other node; the storage's probe file is written, read back and left for the others."""
        storage_error, storage_seconds = self._attempt(self._write)
        data_error, _ = self._attempt(self._read_data)
        return {
            "host": socket.gethostname(),
            "executable": sys.executable,
            "versions": versions(),
            "code": code_digest(),
            "cuda_devices": cuda_devices() if self._gpus else 0,
            "tmp_gb": free_gb(Path(os.environ.get("RAY_TMPDIR", "/tmp"))),
            "storage_gb": self._storage_gb(),
            "shm_gb": shutil.disk_usage("/dev/shm").total / GIGABYTE if Path("/dev/shm").is_dir() else 0.0,
            "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "storage_error": storage_error,
            "storage_seconds": storage_seconds,
            "data_error": data_error,
            "data": data_digest(self._data_dir) if self._data_dir and not data_error else "",
        }

    def look(self, nodes: list[str]) -> list[str]:
        """Those of the nodes whose probe files this node does not find with their content."""
        return [node for node in nodes if self._attempt(lambda node=node: self._read(node))[0]]

    def forget(self) -> str:
        """Delete this node's probe file; why that failed, or nothing."""
        return self._attempt(self._delete)[0]

    def _attempt(self, action: Any) -> tuple[str, float]:
        begun = time.perf_counter()
        try:
            action()
        except Exception as error:
            return " ".join(str(error).split()) or type(error).__name__, time.perf_counter() - begun
        return "", time.perf_counter() - begun

    def _place(self, node: str) -> tuple[Any, str]:
        """Filesystem of the storage and path of a node's probe file in it."""
        from pyarrow import fs

        name = f".pairpbt-doctor-{self._token}-{node}"
        storage = self._storage or ""
        if "://" not in storage:
            return fs.LocalFileSystem(), str(existing(Path(storage).expanduser().absolute()) / name)
        system, path = fs.FileSystem.from_uri(storage)
        return system, f"{existing(Path(path)) if system.type_name == 'local' else path.rstrip('/')}/{name}"

    def _storage_gb(self) -> float | None:
        if self._storage is None:
            return None
        try:
            system, path = self._place(self._node)
        except Exception:  # an unknown scheme, which the probe file's own error reports
            return None
        return free_gb(Path(path)) if system.type_name == "local" else None

    def _write(self) -> None:
        if self._storage is not None:
            system, path = self._place(self._node)
            with system.open_output_stream(path) as file:
                file.write(self._node.encode())
            self._read(self._node)

    def _read(self, node: str) -> None:
        system, path = self._place(node)
        with system.open_input_stream(path) as file:
            if file.read() != node.encode():
                raise OSError(f"{path} does not hold what was written")

    def _delete(self) -> None:
        if self._storage is not None:
            system, path = self._place(self._node)
            system.delete_file(path)

    def _read_data(self) -> None:
        if self._data_dir is not None:
            data_digest(self._data_dir)
