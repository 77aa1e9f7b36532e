"""``hf://user/name``: a published run on the Hugging Face hub, fetched as a local folder of checked files.

The repository is listed first and refused as a whole if it holds anything but safetensors, JSON and Parquet (see
``pbt.safe_files``). What belongs to the layout is then downloaded at one commit, checked by content, and put together
as a run directory in the hub's assets cache, where it appears under its name only when every check has passed.
"""

import contextlib
import datetime
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbt.safe_files import admitted, check_content, check_encoder, check_survivor, read_json, refuse
from rayconf.errors import UserError
from rayconf.loading import build_config
from rayconf.run_config import RunConfig

if TYPE_CHECKING:
    from huggingface_hub import HfApi, HfUri

SCHEME = "hf://"
UNPUBLISHED = "unpublished"
"""``data.dir`` of a run whose prices stayed at home. Null would mean the synthetic market, which is something else."""
HOME_FORECASTS = ("file", "command", "python")
"""Fields of ``forecasts`` that stay at home: a published config names no program of its reader's to run."""
LOGIN = "set HF_TOKEN or run `hf auth login`"


def is_hub(location: str | Path) -> bool:
    """Whether a location names a repository of the hub rather than a local path."""
    return str(location).startswith("hf:/")  # a Path has lost one of the slashes


def fetch(uri: str | Path) -> Path:
    """The local folder of a published run, or of a folder in it, downloaded and checked where it is not yet.

    Args:
        uri: ``hf://user/name``, optionally ``@revision`` (branch, tag or commit) and ``/folder/in/it``.

    Returns:
        A folder in the hub's cache, not to be written to, laid out like a run's directory: ``config.yaml``,
        ``summary.json``, ``frames/``, ``survivors/<AAA_BBB>/<rank>/``.

    Raises:
        UserError: No such repository, revision or folder; no access; no connection; or a file that is refused.
    """
    place = parse(uri)
    where = f"{SCHEME}{place.id}"
    from huggingface_hub import cached_assets_path

    with quiet_hub(), hub_errors(where):
        api = hub_api()
        commit = api.resolve_revision(place.id, revision=place.revision).resolved
        folder = cached_assets_path("pairpbt", place.id, commit) / "run"
        if not folder.is_dir():
            _download(api, place.id, commit, where, folder)
    found = folder / place.path_in_repo
    if not found.is_dir():
        raise UserError(f"{where}: has no folder {place.path_in_repo!r}; it has {', '.join(_folders(folder))}")
    return found


def fetch_run(uri: str | Path) -> Path:
    """``fetch`` of a whole published run. Raises ``UserError`` also where the URI names a folder in it."""
    place = parse(uri)
    if place.path_in_repo:
        raise UserError(f"{SCHEME}{place.id}: give the whole run, without /{place.path_in_repo}")
    return fetch(uri)


def require_prices(location: str | Path, run: RunConfig) -> None:
    """Raise ``UserError`` where a published run was trained on prices that stayed with its owner."""
    if run.data.dir == UNPUBLISHED:
        tickers = ", ".join(sorted({ticker for pair in run.data.pairs for ticker in pair.split("/")}))
        where = re.sub(r"^hf:/+", SCHEME, str(location))
        raise UserError(f"{where}: its prices are not published; give yours of {tickers} with --data-dir")


def parse(uri: str | Path) -> "HfUri":
    """Owner/name, revision and folder of a URI. Raises ``UserError`` when it names no model repository."""
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    uri = re.sub(r"^hf:/+", SCHEME, str(uri))
    try:
        place = parse_hf_uri(uri)
    except HfUriError as error:
        raise UserError(f"{uri!r} is no repository; write {SCHEME}user/name[@revision][/folder]") from error
    if place.type != "model":
        raise UserError(f"{uri!r} is a {place.type}; published runs are models: {SCHEME}user/name")
    if any(part in ("", ".", "..") for part in place.path_in_repo.split("/")) and place.path_in_repo:
        raise UserError(f"{uri!r}: {place.path_in_repo!r} is no folder of a repository")
    return place


def hub_api() -> "HfApi":
    """The hub's client, with the endpoint, token and cache of its environment variables."""
    from huggingface_hub import HfApi

    return HfApi(library_name="pairpbt")


def _download(api: "HfApi", repo: str, commit: str, where: str, target: Path) -> None:
    """Download the layout's files of one commit, check them, and put them together as ``target``."""
    from huggingface_hub import RepoFile, snapshot_download

    listed = (x for x in api.list_repo_tree(repo, recursive=True, revision=commit) if isinstance(x, RepoFile))
    files = admitted(where, ((x.path, x.size) for x in listed))
    _check_layout(where, files)
    snapshot = Path(snapshot_download(repo, revision=commit, allow_patterns=list(files), library_name="pairpbt"))
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix="making-", dir=target.parent))
    try:
        _assemble(where, files, snapshot, making)
        os.rename(making, target)
    except OSError:
        if not target.is_dir():  # else someone else was faster, with the same content
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _assemble(where: str, files: Mapping[str, int], snapshot: Path, making: Path) -> None:
    for name, size in files.items():
        source, place = snapshot / name, making / name
        if source.stat().st_size != size:
            raise refuse(where, name, f"arrived with {source.stat().st_size} bytes where the hub lists {size}")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
        check_content(where, name, place)
        if place.name == "config.json":
            config = _config(where, name, place)
            place.unlink()
            place.with_suffix(".yaml").write_text(config.to_yaml())
    run = build_config(_config_settings(where, "config.json", snapshot / "config.json"))
    _check_summary(where, read_json(where, "summary.json", making / "summary.json"), run, files)
    for name in _survivors(files):
        check_survivor(where, name, making / name)
    if any(name.startswith("base/") for name in files):
        check_encoder(where, making / "base")


def _config(where: str, name: str, path: Path) -> RunConfig:
    try:
        return build_config(_config_settings(where, name, path))
    except UserError as error:
        raise refuse(where, name, f"is no config of this version: {error}") from error


def _config_settings(where: str, name: str, path: Path) -> dict[str, Any]:
    """The settings of a published config; where it ran and what it logged to are not its reader's business."""
    settings = read_json(where, name, path)
    data = settings.get("data")
    location = data.get("dir") if isinstance(data, dict) else None
    if location not in (None, UNPUBLISHED) and not str(location).startswith(f"{SCHEME}datasets/"):
        raise refuse(where, name, "names a folder of your machine as data.dir")
    forecasts = settings.get("forecasts")
    if isinstance(forecasts, dict):
        settings["forecasts"] = {key: value for key, value in forecasts.items() if key not in HOME_FORECASTS}
    return {key: value for key, value in settings.items() if key not in ("resources", "tracking")}


def _check_layout(where: str, files: Mapping[str, int]) -> None:
    needed = ["config.json", "summary.json", "frames/summary.parquet"]
    missing = [name for name in needed if name not in files]
    survivors = _survivors(files)
    for name in survivors:
        parts = ("policy.safetensors", "policy.json", "scaler.json", "config.json")
        missing += [f"{name}/{part}" for part in parts if f"{name}/{part}" not in files]
    if any(name.startswith("base/") for name in files):
        needed = [f"base/{part}" for part in ("encoder.safetensors", "scalers.json", "base.json")]
        missing += [name for name in needed if name not in files]
    if not survivors:
        missing.append("survivors/<AAA_BBB>/<rank>/policy.safetensors")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{where}: is no published run: {', '.join(missing[:3])}{more} missing")


def _check_summary(where: str, summary: Mapping[str, Any], run: RunConfig, files: Mapping[str, int]) -> None:
    """What programs read from the summary must be what is there: paths are made from these fields."""
    pairs = summary.get("pairs")
    if summary.get("schema") != 1 or not isinstance(pairs, dict):
        raise refuse(where, "summary.json", "is no summary of schema 1")
    known = set(_survivors(files))
    for pair, entry in pairs.items():
        listed = entry.get("survivors") if isinstance(entry, dict) else None
        if pair not in run.data.pairs or not isinstance(listed, list):
            raise refuse(where, "summary.json", f"has a pair {pair[:40]!r} that is not in config.json")
        for survivor in listed:
            rank = survivor.get("rank") if isinstance(survivor, dict) else None
            if type(rank) is not int or f"survivors/{pair.replace('/', '_')}/{rank}" not in known:
                raise refuse(where, "summary.json", f"lists a survivor of {pair} (rank {rank!r:.20}) that is not there")
            named = isinstance(survivor.get("member"), str) and re.fullmatch(r"m\d{2,6}|prior|base", survivor["member"])
            if not named or type(survivor.get("generation")) is not int:
                raise refuse(where, "summary.json", f"gives no member and generation of {pair} rank {rank}")
        _check_splits(where, pair, entry.get("splits", {}))


def _check_splits(where: str, pair: str, splits: Any) -> None:
    try:
        for split, (first, last) in splits.items():
            if split not in ("train", "validation", "test") or not _naive(first) <= _naive(last):
                raise ValueError(split)
    except (AttributeError, TypeError, ValueError) as error:
        raise refuse(where, "summary.json", f"gives no first and last date by split of {pair}") from error


def _naive(text: str) -> datetime.datetime:
    stamp = datetime.datetime.fromisoformat(text)
    if stamp.tzinfo is not None:
        raise ValueError(f"{text} has a time zone")
    return stamp


def _survivors(files: Mapping[str, int]) -> list[str]:
    return sorted({str(Path(name).parent) for name in files if name.startswith("survivors/")})


def _folders(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir())[:12]


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub client's progress bars and warnings from the terminal: errors are ours to tell, in one line."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, shown = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            enable_progress_bars()


@contextlib.contextmanager
def hub_errors(where: str) -> Iterator[None]:
    """Turn what the hub's client raises into one line that says what to do.

    Args:
        where: The repository, ``hf://user/name``.

    Raises:
        UserError: For every error of network, access and disk; other errors pass.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"{where}: no login; {LOGIN}") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{where}: is gated; ask for access on its page, then {LOGIN}") from error
    except errors.DisabledRepoError as error:
        raise UserError(f"{where}: has been disabled by the hub") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{where}: has no such revision; give a branch, tag or commit of it") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{where}: no such repository, or a private one; check the name, or {LOGIN}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{where}: is no name of a repository; write user/name") from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"{where}: {_answer(error)}") from error
    except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.RevisionResolutionError) as error:
        raise UserError(f"{where}: the hub cannot be reached ({_cause(error)}); check the connection") from error
    except (errors.LocalEntryNotFoundError, errors.FileMetadataError) as error:
        raise UserError(f"{where}: not all files could be downloaded ({_cause(error)}); try again") from error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:160]
        raise UserError(f"{where}: {reason}") from error


def _answer(error: Any) -> str:
    status = error.response.status_code
    if status == 401:
        return f"the hub does not know this token; {LOGIN} with a valid one"
    if status == 403:
        return f"the token may not do this; {LOGIN} with one that has write access here"
    if status in (409, 412):
        return "someone else changed the repository meanwhile; run the command again"
    said = " ".join(str(error.server_message or "").split())[:120]
    detail = f" ({said})" if said else ""
    return (
        f"the hub answered {status}{detail}; {'try again later' if status >= 500 or status == 429 else 'see its page'}"
    )


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
