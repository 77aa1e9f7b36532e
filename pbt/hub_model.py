"""A time-series model of the Hugging Face hub, as a local folder of data files at one commit.

Weights come as safetensors and settings as JSON or text; pickles and code of a repository are never downloaded, and
never reach the program that reads the folder: it holds links to what was downloaded and checked, and nothing else.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pbt.hub import SCHEME, hub_api, hub_errors, quiet_hub
from pbt.safe_files import MIB, plain, refuse
from rayconf.errors import UserError

KINDS = (".safetensors", ".json", ".txt")
LARGEST = 16 * 1024 * MIB
"""Most bytes of a model."""


class Model(NamedTuple):
    """A model as it was fetched."""

    name: str
    """``OWNER/NAME``."""
    commit: str
    folder: Path
    """In the hub's cache; not to be written to."""


def fetch_model(name: str, revision: str | None) -> Model:
    """Download a model's data files where they are not there yet; without network, from the cache.

    Args:
        name: ``OWNER/NAME``.
        revision: Branch, tag or commit; None: ``main``.

    Raises:
        UserError: No such model or revision, no access, no connection, or nothing in it that may be used.
    """
    from huggingface_hub import cached_assets_path

    where = f"{SCHEME}{name}"
    with quiet_hub(), hub_errors(where):
        api = hub_api()
        commit: str = api.resolve_revision(name, revision=revision or "main").resolved
        folder = cached_assets_path("pairpbt", name, commit) / "model"
        if not _whole(folder):
            _download(name, commit, where, folder)
    return Model(name, commit, folder)


def chosen(where: str, files: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sizes by path of the data files among a repository's.

    Raises:
        UserError: A name that is no plain path, no weights as safetensors, or more bytes than any such model has.
    """
    found = {name: size for name, size in files if name.endswith(KINDS)}
    for name in found:
        if not plain(name):
            raise refuse(where, name, "is no plain path; nothing was downloaded")
    if not any(name.endswith(".safetensors") for name in found):
        raise UserError(f"{where}: has no weights as .safetensors; other kinds may hold code and are not downloaded")
    if sum(found.values()) > LARGEST:
        raise UserError(f"{where}: has {sum(found.values()) // MIB} MiB, more than {LARGEST // MIB} MiB")
    return found


def _whole(folder: Path) -> bool:
    """Whether the folder is there and none of its links has lost its target."""
    return folder.is_dir() and all(path.exists() for path in folder.rglob("*"))


def _download(name: str, commit: str, where: str, target: Path) -> None:
    from huggingface_hub import RepoFile, snapshot_download

    listed = hub_api().list_repo_tree(name, recursive=True, revision=commit)
    files = chosen(where, ((x.path, x.size) for x in listed if isinstance(x, RepoFile)))
    snapshot = Path(snapshot_download(name, revision=commit, allow_patterns=list(files), library_name="pairpbt"))
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix="making-", dir=target.parent))
    try:
        for path, size in files.items():
            source, place = (snapshot / path).resolve(), making / path
            if source.stat().st_size != size:
                raise refuse(where, path, f"arrived with {source.stat().st_size} bytes where the hub lists {size}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(source)
        if target.is_dir() and not _whole(target):
            shutil.rmtree(target)
        os.rename(making, target)
    except OSError:
        if not _whole(target):  # else someone else was faster, with the same content
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
