"""The checkpoint of a pre-trained encoder: ``RUN/base/``, written by the stage ``base`` and read by what comes after.

``encoder.safetensors`` holds the encoder and the output layer of its forecasts, ``scalers.json`` the scaler of every
pair that it was trained on, ``base.json`` all that is needed to know whether it fits; written last, with the digests of
the other two, it says that the checkpoint is whole. ``<AAA_BBB>/`` holds a pair's specialist in the same way, under
``specialist.json``. A run may start from the checkpoint of another; features that differ are an error.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from algos.pretraining import LEVELS, Epoch, Forecaster, Pretrained
from analysis.frames import write_text
from envs.market import raw_names
from envs.scaler import Scaler
from pbt.base import BASE, Base, check_named
from pbt.run_dir import RunDir
from pbt.survivor import local_folder
from rayconf.errors import UserError
from rayconf.run_config import RunConfig

SCHEMA = 1
ABOUT, SPECIALIST, WEIGHTS, SCALERS = "base.json", "specialist.json", "encoder.safetensors", "scalers.json"
FILES = (WEIGHTS, SCALERS, ABOUT)
"""What a checkpoint consists of."""
REPORT, JOURNAL = "run_report.md", "journal.jsonl"
WINDOWED = ("activation", "encoder_window", "encoder_width")
NETWORK = {
    "factored": ("activation",),
    "conv": WINDOWED,
    "gru": WINDOWED,
    "transformer": (*WINDOWED, "encoder_layers", "encoder_heads"),
}
"""Fields of the network section that an encoder's weights depend on; with ``factored`` the first width too."""


@dataclass(frozen=True)
class Checkpoint:
    """A base stage's or a specialist's outcome, as it is kept."""

    fit: Pretrained
    features: tuple[str, ...]
    """Names of the columns that it reads."""
    about: Mapping[str, Any]
    """The whole description."""


def write_checkpoint(
    folder: Path, fit: Pretrained, run: RunConfig, scalers: Mapping[str, Scaler], name: str = ABOUT, **more: Any
) -> None:
    """Write a checkpoint; its description comes last.

    Args:
        folder: Where.
        fit: What was trained.
        run: Its network, features and stages.
        scalers: By pair, of what it was trained on.
        name: File of the description.
        more: Further entries of the description.
    """
    features = next(iter(scalers.values())).names
    files = {
        WEIGHTS: save({key: tensor.contiguous() for key, tensor in fit.weights.items()}),
        SCALERS: (json.dumps({pair: json.loads(s.to_json()) for pair, s in sorted(scalers.items())}) + "\n").encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        temporary = folder / f".{file}.tmp"
        temporary.write_bytes(content)
        temporary.replace(folder / file)
    about = {
        "schema": SCHEMA,
        "features": list(features),
        "settings": run.features.model_dump(mode="json"),
        "forecasts": run.forecasts.made_by if run.forecasts.used else None,
        "network": _network(run),
        "lag": run.env.lag,
        "horizons": list(run.stages.horizons),
        "targets": list(fit.names),
        "naive": fit.naive.tolist(),
        "border": str(fit.border),
        "trained_to": str(fit.trained_to),
        "fitted": fit.fitted,
        "held_out": fit.held_out,
        "epoch": fit.best.number,
        "fit_loss": fit.best.fit_loss,
        "loss": fit.best.loss,
        "naive_loss": fit.best.naive_loss,
        "skill": fit.best.skill,
        "skills": dict(zip(fit.names, fit.skills, strict=True)),
        "last_epoch": fit.last.number,
        "last_loss": fit.last.loss,
        "gain": fit.gain,
        "gain_se": fit.gain_se if np.isfinite(fit.gain_se) else None,
        "files": {file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
        **more,
    }
    write_text(folder / name, json.dumps(about, indent=1) + "\n")


def read_checkpoint(folder: Path, name: str = ABOUT) -> Checkpoint:
    """A checkpoint with its weights, checked against their digest and their description.

    Raises:
        UserError: It is not there, damaged, or its files do not fit each other.
    """
    try:
        about = json.loads((folder / name).read_text())
        if about["schema"] != SCHEMA:
            raise UserError(f"{folder / name}: schema {about['schema']!r} is not {SCHEMA}")
        for file, digest in about["files"].items():
            if file not in (WEIGHTS, SCALERS) or hashlib.sha256((folder / file).read_bytes()).hexdigest() != digest:
                raise UserError(f"{folder / file}: is not what {name} describes; restore it from a copy")
        weights = load_file(folder / WEIGHTS)
        features, network = tuple(map(str, about["features"])), about["network"]
        names = tuple(map(str, about["targets"]))
        net = Forecaster(network, len(features), len(names), torch.Generator())
        net.load_state_dict(weights)
        best = Epoch(int(about["epoch"]), about["fit_loss"], about["loss"], about["naive_loss"], 0, 0.0)
        last = replace(best, number=int(about["last_epoch"]), loss=about["last_loss"])
        border, trained_to = (np.datetime64(about[key], "us") for key in ("border", "trained_to"))
        fit = Pretrained(
            weights,
            np.array(about["naive"], np.float32).reshape(len(names), len(LEVELS)),
            names,
            border,
            trained_to,
            int(about["fitted"]),
            int(about["held_out"]),
            best,
            last,
            tuple(float(about["skills"][target]) for target in names),
            float(about["gain"]),
            float("inf") if about["gain_se"] is None else float(about["gain_se"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{folder / name}: no readable checkpoint of an encoder ({reason})") from error
    return Checkpoint(fit, features, about)


def read_scalers(folder: Path) -> dict[str, Scaler]:
    """The scalers of a checkpoint by pair. Raises ``UserError`` where they cannot be read."""
    try:
        found = json.loads((folder / SCALERS).read_text())
        return {pair: Scaler.from_json(json.dumps(text)) for pair, text in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / SCALERS}: no readable scalers ({error})") from error


@dataclass(frozen=True)
class EncoderBase(Base):
    """What populations of a run with a base stage start from, where that is another run's checkpoint."""

    folder: Path | None = None

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return self.folder is not None

    @property
    def scalers(self) -> dict[str, Scaler]:
        """Those of the pairs that the base was trained on: their features keep the scale that it knows."""
        return {} if self.folder is None else read_scalers(self.folder)

    @property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over its files."""
        assert self.folder is not None
        sha = hashlib.sha256()
        for name in FILES:
            content = (self.folder / name).read_bytes()
            sha.update(f"{name}|{len(content)}|".encode() + content)
        return sha.hexdigest()[:16]

    def warnings(self, run: RunConfig) -> list[str]:
        """What a reader of the run's figures should know of its base."""
        if self.folder is None:
            return []
        from envs.market import run_borders

        last, first = read_checkpoint(self.folder).fit.trained_to, run_borders(run).validation
        if last < first:
            return []
        days = (np.datetime_as_string(date, unit="D") for date in (last, first))
        return ["base {}: was trained up to {}, and this run's validation begins {}".format(run.stages.base, *days)]

    def keep(self, directory: RunDir) -> None:
        """Copy the checkpoint into the run's directory, where the stage finds it done."""
        if self.folder is None:
            return
        directory.base.mkdir(parents=True)
        for name in FILES:
            shutil.copyfile(self.folder / name, directory.base / name)


def find_encoder(run: RunConfig) -> EncoderBase:
    """The checkpoint that ``stages.base`` names, fetched and checked against the run; none where it names nothing.

    Raises:
        UserError: There is none, or its network or features are others.
    """
    check_named(run)
    if run.stages.base is None:
        return EncoderBase()
    try:
        folder = local_folder(run.stages.base)
        if not (folder / ABOUT).is_file():
            folder = folder / BASE
        if not (folder / ABOUT).is_file():
            raise UserError(
                f"{run.stages.base}: has no {BASE}/{ABOUT}: no base stage was finished there; to start from survivors "
                "leave --stages out"
            )
        check_fits(run, read_checkpoint(folder), run.stages.base)
    except UserError as error:
        raise UserError(f"--base-checkpoint: {error}") from error
    return EncoderBase(folder=folder)


def check_fits(run: RunConfig, base: Checkpoint, where: str) -> None:
    """Refuse an encoder that reads other features or is of another network, naming the first field that differs."""
    for name, theirs in base.about["network"].items():
        ours = _network(run).get(name)
        if ours != theirs:
            raise UserError(f"network.{name}: {ours} does not fit {where}, which was trained with {theirs}")
    check_names(raw_names(run, intraday="time_sin" in base.features), base.features, where)
    if run.forecasts.used and run.forecasts.made_by != base.about["forecasts"]:
        ours, theirs = run.forecasts.made_by, base.about["forecasts"]
        raise UserError(f"forecasts.made_by: {ours} does not fit {where}, which was trained with {theirs}")
    for name, ours in run.features.model_dump(mode="json").items():
        theirs = base.about["settings"].get(name)
        if ours != theirs:
            raise UserError(f"features.{name}: {ours} does not fit {where}, which was trained with {theirs}")

    if "specialists" in run.stages.run:  # they go on forecasting what the base forecast
        for path, here, there in (
            ("stages.horizons", list(run.stages.horizons), base.about["horizons"]),
            ("env.lag", run.env.lag, base.about["lag"]),
        ):
            if here != there:
                raise UserError(f"{path}: {here} does not fit {where}, which was trained with {there}")


def check_names(ours: tuple[str, ...], theirs: tuple[str, ...], where: str) -> None:
    """Raise ``UserError`` naming the first feature that differs from those that an encoder reads."""
    for i in range(max(len(ours), len(theirs))):
        here, there = (names[i] if i < len(names) else "nothing" for names in (ours, theirs))
        if here != there:
            raise UserError(f"features: number {i + 1} is {here} here and {there} in {where}")


def _network(run: RunConfig) -> dict[str, Any]:
    """What ``Forecaster`` is built from, as far as it matters to its weights."""
    fields = run.network.model_dump(mode="json")
    found = {name: fields[name] for name in NETWORK[run.network.encoder]}
    if run.network.encoder == "factored":
        found["hidden"] = fields["hidden"][:1]
    return {"encoder": run.network.encoder, "encoder_width": 1, "encoder_window": 1, **found}
