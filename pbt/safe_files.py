"""What may come from a repository: safetensors, JSON and Parquet, by name, size and content; anything else is refused.

No check here runs code from a file: safetensors and Parquet are data formats, JSON is read strictly. Pickles have no
way in, whatever they are called.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from envs.mapping import MAPPINGS
from rayconf.errors import UserError

MIB = 1 << 20
LIMITS = {".safetensors": 64 * MIB, ".json": 16 * MIB, ".parquet": 64 * MIB}
"""Largest file of each kind, bytes."""
TOTAL, COUNT = 512 * MIB, 5000
"""Largest repository: bytes and files."""
UNPACKED = 1 << 30
"""Largest Parquet file once unpacked, bytes: a few kilobytes can claim to unpack to terabytes."""
WIDTH, DEPTH = 4096, 16
"""Widest layer and most layers of a network that is built from a description."""
ENCODER_SIZES = ("encoder_window", "encoder_width", "encoder_layers", "encoder_heads")
IGNORED = frozenset({"README.md", ".gitattributes", "LICENSE", "LICENSE.md", "LICENSE.txt"})
"""For people and for git: neither downloaded nor refused."""

TICKER = r"[A-Za-z0-9][A-Za-z0-9.^=-]{0,15}"
SURVIVOR_FILES = ("policy.safetensors", "policy.json", "scaler.json", "config.json", "schedule.parquet")
LAYOUT = re.compile(
    r"config\.json|summary\.json|frames/(?:summary|evidence)\.parquet"
    r"|base/(?:encoder\.safetensors|scalers\.json|base\.json)"
    rf"|survivors/{TICKER}_{TICKER}/[1-9][0-9]{{0,3}}/(?:{'|'.join(map(re.escape, SURVIVOR_FILES))})"
)
"""Paths that belong to a published run."""
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._^=+-]{0,99}")


def refuse(where: str, name: str, problem: str) -> UserError:
    """The error that names a file of a repository and what is wrong with it; a name is shown, never obeyed."""
    return UserError(f"{where}: {name[:120]!r} {problem}")


def plain(name: str) -> bool:
    """Whether a path consists of at most six plain names, so that it leads nowhere else and is no pattern."""
    segments = name.split("/")
    return len(segments) <= 6 and all(_SEGMENT.fullmatch(segment) for segment in segments)


def admitted(where: str, files: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The files of a published run among those of a repository, by name, before any of them is downloaded.

    Args:
        where: The repository, for the error.
        files: Path and size in bytes of every file of the repository.

    Returns:
        Sizes by path of what belongs to the layout; other JSON, safetensors and Parquet files are left alone.

    Raises:
        UserError: A file is of another kind or too large, its name is no plain path, or there are too many of them.
    """
    kept: dict[str, int] = {}
    for count, (name, size) in enumerate(files, start=1):
        if count > COUNT:
            raise UserError(f"{where}: holds more than {COUNT} files, which no published run does")
        if name in IGNORED:
            continue
        if not plain(name):
            raise refuse(where, name, "is no plain path; nothing was downloaded")
        limit = LIMITS.get(Path(name).suffix)
        if limit is None:
            kinds = ", ".join(LIMITS)
            raise refuse(where, name, f"is refused: only {kinds} are taken from a repository; nothing was downloaded")
        if not LAYOUT.fullmatch(name):
            continue
        if size > limit:
            raise refuse(where, name, f"has {size} bytes, more than the {limit} allowed; nothing was downloaded")
        kept[name] = size
    if sum(kept.values()) > TOTAL:
        raise UserError(f"{where}: has {sum(kept.values())} bytes, more than the {TOTAL} allowed")
    return kept


def check_content(where: str, name: str, path: Path) -> None:
    """Check that a file is what its name says.

    Raises:
        UserError: Naming the file and what is wrong.
    """
    kind = Path(name).suffix
    if kind == ".json":
        read_json(where, name, path)
    elif kind == ".safetensors":
        _check_safetensors(where, name, path)
    else:
        _check_parquet(where, name, path)


def read_json(where: str, name: str, path: Path) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, finite numbers, and no others of JavaScript's.

    Raises:
        UserError: It is none.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise refuse(where, name, f"is no plain JSON: {' '.join(str(error).split())[:120]}") from error
    if not isinstance(value, dict):
        raise refuse(where, name, "must hold a JSON object")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _check_safetensors(where: str, name: str, path: Path) -> None:
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            kinds = {file.get_slice(key).get_dtype() for key in names}
            if not kinds <= {"F32", "F64"}:
                raise refuse(where, name, f"must hold float32 or float64 weights, found {', '.join(sorted(kinds))}")
            finite = all(np.isfinite(file.get_tensor(key)).all() for key in names)
    except (SafetensorError, ValueError, OSError) as error:
        raise refuse(where, name, f"is no safetensors file: {' '.join(str(error).split())[:120]}") from error
    if not finite:
        raise refuse(where, name, "holds weights that are no finite numbers")


def _check_parquet(where: str, name: str, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = pq.read_metadata(path)
        size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        schema = about.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise refuse(where, name, f"is no Parquet file: {' '.join(str(error).split())[:120]}") from error
    if size > UNPACKED:
        raise refuse(where, name, f"unpacks to {size} bytes, more than the {UNPACKED} allowed")
    if (schema.metadata or {}).get(b"pairpbt.schema") != b"1":
        raise refuse(where, name, "is no frame of pairpbt.schema 1")


def check_survivor(where: str, name: str, folder: Path) -> None:
    """Check that the files of one survivor fit each other, by loading its policy.

    Args:
        where: The repository, for the error.
        name: Path of the survivor in it.
        folder: Local folder of its files, each checked already.

    Raises:
        UserError: Naming the survivor and what does not fit.
    """
    from algos.policy import Policy
    from envs.scaler import Scaler

    about = read_json(where, f"{name}/policy.json", folder / "policy.json")
    _check_network(where, f"{name}/policy.json", about)
    try:
        scaler = Scaler.from_json((folder / "scaler.json").read_text())
    except (ValueError, TypeError) as error:
        raise refuse(where, f"{name}/scaler.json", f"is no scaler: {error}") from error
    try:
        policy = Policy.load(folder)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split()).replace(f"{folder}: ", "").replace(str(folder), name)[:160]
        raise refuse(where, f"{name}/policy.safetensors", f"does not fit policy.json: {reason}") from error
    if policy.feature_names != scaler.names:
        raise refuse(where, f"{name}/scaler.json", "names other features than policy.json")


def check_encoder(where: str, folder: Path) -> None:
    """Check that the files of a base stage fit each other, by building its encoder.

    Args:
        where: The repository, for the error.
        folder: Local folder ``base`` of its files, each checked already.

    Raises:
        UserError: Naming what does not fit.
    """
    from pbt.encoder_base import read_checkpoint, read_scalers

    about = read_json(where, "base/base.json", folder / "base.json")
    network, features = about.get("network"), about.get("features")
    wide = [len(x) > WIDTH for x in (features, about.get("targets")) if isinstance(x, list)]
    if not isinstance(network, dict) or len(wide) != 2 or any(wide):
        raise refuse(where, "base/base.json", "describes no encoder")
    _check_sizes(where, "base/base.json", network)
    if network.get("activation") not in ("tanh", "silu"):
        raise refuse(where, "base/base.json", "has an unknown activation")
    try:
        read_checkpoint(folder)
        scalers = read_scalers(folder)
    except UserError as error:
        raise refuse(where, "base/base.json", str(error).replace(f"{folder}/", "")) from error
    if any(scaler.names != tuple(features or ()) for scaler in scalers.values()):
        raise refuse(where, "base/scalers.json", "names other features than base.json")


def _check_network(where: str, name: str, about: Mapping[str, Any]) -> None:
    """A description is built before the weights can contradict it, so it must not ask for more than fits."""
    described = about.get("market_network", {})
    if not isinstance(described, dict):
        raise refuse(where, name, "has a market_network that is no JSON object")
    _check_sizes(where, name, described)
    leverage, cap = about.get("leverage"), about.get("leverage_cap")
    if type(leverage) not in (int, float) or not (cap is None or type(cap) in (int, float)):
        raise refuse(where, name, "has a leverage that is no number")
    odd = [x for x in ("reach", "adjustment", "no_trade_band") if type(about.get(x, 1.0)) not in (int, float)]
    if odd:
        raise refuse(where, name, f"has no number as its {odd[0]}")
    if about.get("mapping") not in MAPPINGS or about.get("activation") not in ("tanh", "silu"):
        raise refuse(where, name, "has an unknown mapping or activation")


def _check_sizes(where: str, name: str, described: Mapping[str, Any]) -> None:
    hidden = described.get("hidden", [])
    numbers = [*(hidden if isinstance(hidden, list) else [hidden])]
    numbers += [described[key] for key in ENCODER_SIZES if key in described]
    wrong = [x for x in numbers if type(x) is not int or not 0 < x <= WIDTH]
    if wrong or len(numbers) > DEPTH or not 0 < described.get("encoder_layers", 1) <= DEPTH:
        raise refuse(where, name, f"describes no network of up to {DEPTH} layers of up to {WIDTH} units")
