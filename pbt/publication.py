"""The folder that is published of a run: what others need to use and to judge its survivors, and nothing private."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.frames import read_frame
from analysis.summary import headline_window
from pbt.finished import FinishedRun
from pbt.hub import HOME_FORECASTS, SCHEME, UNPUBLISHED
from pbt.model_card import Card
from pbt.run_dir import RunDir, open_run
from pbt.windows import window_numbers
from rayconf.errors import UserError
from rayconf.loading import build_config, load_file
from rayconf.run_config import RunConfig

COPIED = ("policy.safetensors", "policy.json", "scaler.json", "schedule.parquet")
FRAMES = ("summary", "evidence")
ENCODER = ("encoder.safetensors", "scalers.json", "base.json")
"""Files of a base stage."""
_PATH = re.compile(r"^~|\\|/(?!\d\d(/|$))")
"""A local path, absolute or relative; a date with slashes is none."""


@dataclass(frozen=True)
class Publication:
    """A complete run and those of its pairs that are published."""

    directory: RunDir
    run: RunConfig
    summary: Mapping[str, Any]
    pairs: Sequence[str]

    @classmethod
    def of(cls, path: str | Path, pairs: Sequence[str] | None = None) -> "Publication":
        """The publication of a run's pairs; None: of all.

        Raises:
            UserError: The run is not complete, or a pair is not of it.
        """
        directory = open_run(path)
        directory.require()
        run = build_config(load_file(directory.config))
        try:
            summary = json.loads(directory.summary_json.read_text())
            status, known = summary["status"], list(summary["pairs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: the run is not complete; finish it with python -m pbt.launch --resume") from error
        if status != "complete" or directory.extension.is_file():
            raise UserError(f"{path}: the run is {status}; only a complete one is published, see --resume")
        for pair in pairs or ():
            if pair not in known:
                raise UserError(f"--pair: {pair} is not in {path}; it has {', '.join(known)}")
        return cls(directory, run, summary, [pair for pair in known if pairs is None or pair in pairs])


def build(plan: Publication, folder: Path, repo: str, license: str | None = None) -> None:
    """Write everything that is published into a folder.

    Args:
        plan: What to publish.
        folder: An empty folder.
        repo: ``user/name[@branch]``, for the card.
        license: Identifier for the card; None: not said.

    Raises:
        UserError: A file of the run is missing, or would give something private away.
    """
    splits = _splits(plan)
    entries = {pair: {**plan.summary["pairs"][pair], "splits": splits[pair]} for pair in plan.pairs}
    run = portable(plan.run, plan.pairs)
    _write_json(folder / "config.json", run.model_dump(mode="json", exclude={"resources", "tracking"}))
    _write_json(folder / "summary.json", {**plan.summary, "pairs": entries})
    for name in FRAMES:
        _copy_frame(plan.directory.frame(name), folder / "frames" / f"{name}.parquet", plan.pairs)
    for pair, entry in entries.items():
        for survivor in entry["survivors"]:
            source = plan.directory.survivor(pair, survivor["rank"])
            _copy_survivor(source, folder / source.relative_to(plan.directory.path), plan.pairs)
    if plan.run.stages.pretrain and len(plan.pairs) == len(plan.summary["pairs"]):  # it names all pairs it has seen
        base = plan.directory.in_window(window_numbers(plan.run)[-1]).base  # that of the survivors
        (folder / "base").mkdir()
        for name in ENCODER:
            _copy(base / name, folder / "base" / name)
    card = Card(repo, run, entries, _headline(plan), len(plan.summary["pairs"]), license)
    (folder / "README.md").write_text(card.text())
    _check_private(folder, plan)


def portable(run: RunConfig, pairs: Sequence[str]) -> RunConfig:
    """A config without what belongs to one machine or person: local paths, resources, trackers.

    A local ``data.dir`` becomes ``unpublished``, a hub data set stays. Other local paths become null, and so does the
    command of a forecaster.
    """
    settings = run.model_dump(mode="json", exclude={"resources", "tracking"})
    data, forecasts, universe = (settings.pop(name) for name in ("data", "forecasts", "universe"))
    forecasts |= dict.fromkeys(HOME_FORECASTS)
    settings = _without_paths(settings)
    location = data["dir"]
    if location is not None and not location.startswith(f"{SCHEME}datasets/"):
        data["dir"] = UNPUBLISHED
    data["pairs"] = [pair for pair in data["pairs"] if pair in pairs]
    data["transferred"] = [pair for pair in data["transferred"] if pair in pairs]
    return build_config({**settings, "data": data, "forecasts": forecasts, "universe": universe})


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return None if isinstance(value, str) and _PATH.search(value) and not value.startswith(SCHEME) else value


def _copy_survivor(source: Path, target: Path, pairs: Sequence[str]) -> None:
    target.mkdir(parents=True)
    for name in COPIED:
        _copy(source / name, target / name)
    config = portable(build_config(load_file(source / "config.yaml")), pairs)
    _write_json(target / "config.json", config.model_dump(mode="json", exclude={"resources", "tracking"}))


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); restore it from a copy") from error


def _copy_frame(source: Path, target: Path, pairs: Sequence[str]) -> None:
    if source.stem == "evidence" and not source.is_file():
        return  # runs of before there was one have none
    table = read_frame(source)
    kept = table.filter(pc.is_in(table.column("pair"), pa.array(pairs)))
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(kept, target)


def _splits(plan: Publication) -> dict[str, dict[str, list[str]]]:
    """Dates of the first and the last fill by pair and split: what a test on other prices must keep to.

    They stand in for the daily frame, from whose returns the prices could be read off.
    """
    finished = FinishedRun.open(plan.directory.path)
    return {
        pair: {split: [str(date) for date in ends] for split, ends in finished.fills(pair).items()}
        for pair in plan.pairs
    }


def _headline(plan: Publication) -> pa.Table:
    """The summary rows that the card shows."""
    summary = read_frame(plan.directory.frame("summary"), split="test", scenario="base")
    return summary.filter(pc.equal(summary.column("window"), pa.scalar(headline_window(summary), pa.int32())))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    except ValueError as error:
        raise UserError(f"{path.name}: holds a number that JSON has not (infinite); set it to a finite one") from error


def _check_private(folder: Path, plan: Publication) -> None:
    """The last look before anything leaves: no file may name where the run or its prices lie."""
    secrets = {plan.directory.path.resolve()}
    location = plan.run.data.dir
    if location and not location.startswith(SCHEME):
        secrets.add(Path(location).expanduser().resolve())
    found = re.compile("|".join(rf"(?<![\w/:.-]){re.escape(str(secret))}(?![\w-])" for secret in secrets))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and any(found.search(text) for text in _texts(path)):
            raise UserError(f"{path.relative_to(folder)}: names a local folder of yours, so nothing is published")


def _texts(path: Path) -> Iterator[str]:
    if path.suffix == ".json":
        yield json.dumps(json.loads(path.read_text()), ensure_ascii=False)
    elif path.suffix == ".parquet":
        table = pq.read_table(path)
        yield str(table.schema)
        for column in table.columns:
            if pa.types.is_string(column.type):
                yield from (value for value in pc.unique(column).to_pylist() if value)
    else:
        yield path.read_bytes().decode("utf-8", "replace")
