"""Finding the runs below a folder, and reading the complete ones."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from analysis.columns import KEYS
from analysis.frames import frame_path, part_of, read_frame
from analysis.summary import headline_window
from rayconf.errors import UserError

LOG_COLUMNS = ("run", "pair", "days", "avg_daily_return", "annualized_return", "cumulative_return")
"""Columns of the original log's table."""

COMPARED = ("annualised_sharpe", "sharpe_ci_low", "sharpe_ci_high", "cagr", "max_drawdown")
"""Further columns of ``summary`` that a comparison of runs reads."""

ASIDE = ("name", "seed", "versions", "resources", "tracking")
"""Parts of a config that make no other experiment of a run: what it is called, its luck, and where it ran."""


class LeftOutError(Exception):
    """A run that cannot be aggregated, and why, in one line."""


@dataclass(frozen=True)
class FinishedRun:
    """One complete run.

    Attributes:
        name: Its directory relative to the folder aggregated, ``/`` between parts.
        identity: Seed and digest of the config, equal for two runs of one computation.
        seed: Its seed.
        settings: Every setting that makes it another experiment, by dotted path, as text; the seed is not one.
        summary: Its ``summary`` frame, headline window or not.
        verdicts: What the run says of each pair, a sentence.
    """

    name: str
    identity: str
    seed: int
    settings: Mapping[str, str]
    summary: pa.Table
    verdicts: Mapping[str, str]

    def headline(self) -> dict[str, dict[str, Any]]:
        """By pair, the summary row of its headline (ensemble, else first survivor) on test under base terms."""
        found: dict[str, dict[str, Any]] = {}
        for policy in ("ensemble", "survivor-1"):
            for row in self.on_test(policy):
                found.setdefault(row["pair"], row)
        return dict(sorted(found.items()))

    def on_test(self, policy: str) -> list[dict[str, Any]]:
        """Summary rows of one policy on test under base terms, a row per pair."""
        window = headline_window(self.summary)
        rows: list[dict[str, Any]] = part_of(
            self.summary, window=window, split="test", scenario="base", policy=policy
        ).to_pylist()
        return rows


def is_run(folder: Path) -> bool:
    """Whether a folder is the directory of a run, in whatever state."""
    if (folder / "summary.json").is_file():
        return True
    return (folder / "config.yaml").is_file() and any((folder / part).is_dir() for part in ("state", "frames"))


def run_folders(folder: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The directories of runs in a folder and below, sorted; hidden ones are passed over, nothing is sought in a run.

    Symbolic links are followed, circles of them are not.
    """
    if is_run(folder):
        yield folder
        return
    inside = seen | {folder.resolve()}
    try:
        parts = sorted(part for part in folder.iterdir() if part.is_dir() and not part.name.startswith("."))
    except OSError:
        return
    for part in parts:
        if part.resolve() not in inside:
            yield from run_folders(part, inside)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted paths to text."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.dumps(value, default=str, ensure_ascii=False).strip('"')
    return found


def read_run(folder: Path, name: str) -> FinishedRun:
    """Read one run.

    Raises:
        LeftOutError: It is not complete, or a part of it is missing or unreadable.
    """
    try:
        told = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        status = told["status"]
        verdicts = {pair: str(entry.get("verdict") or "") for pair, entry in told["pairs"].items()}
    except FileNotFoundError as error:
        raise LeftOutError("not finished (it has no summary.json); go on with --resume") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LeftOutError("its summary.json is not that of a run") from error
    if status != "complete":
        raise LeftOutError(f"its status is {status}; go on with --resume")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        seed = int(config["seed"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise LeftOutError("its config.yaml is missing, is no config, or names no seed") from error
    try:
        summary = read_frame(frame_path(folder, "summary"))
    except UserError as error:
        raise LeftOutError(str(error)) from error
    if missing := sorted({*KEYS["summary"], *LOG_COLUMNS, *COMPARED} - set(summary.column_names)):
        raise LeftOutError(f"its summary frame lacks {', '.join(missing)}")
    identities = pc.unique(summary.column("run")).to_pylist()
    settings = flat({key: value for key, value in config.items() if key not in ASIDE})
    run = FinishedRun(name, str(identities[0]) if identities else "", seed, settings, summary, verdicts)
    if not run.headline():
        raise LeftOutError("it has no test results under its own terms")
    return run


def collect(folder: Path) -> tuple[list[FinishedRun], dict[str, str]]:
    """Every run below a folder: the complete ones by name, and why each of the others is left out.

    Raises:
        UserError: The folder does not exist, or holds no complete run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds your runs, e.g. runs")
    runs: list[FinishedRun] = []
    left_out: dict[str, str] = {}
    for path in run_folders(folder):
        name = (path.relative_to(folder) if path != folder else Path(path.resolve().name)).as_posix()
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
        try:
            runs.append(read_run(path, name))
        except LeftOutError as reason:
            left_out[name] = str(reason)
    if not runs:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"{folder}: no complete run in it or below" + (f" ({why})" if why else ""))
    return runs, left_out
