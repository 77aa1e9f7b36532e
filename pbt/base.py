"""Base checkpoints: survivors of an earlier run, or published ones, whose weights a launch starts from.

Every member of a pair starts from the survivor's actor, with a critic, optimizers, schedule and tail quantile that are
fresh and common to them. Features keep the scale that the weights know: the survivor's scaler is the pair's. What was
used is copied into ``RUN/base/<PAIR>/`` before anything trains, and the state made of it lies in the store for good, so
that resumes, backtests and replays need the base no more.
"""

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.batched import uses_drawdown
from envs.market import PairMarket
from envs.scaler import Scaler
from pbt.manifest import Member
from pbt.run_dir import RunDir, folder_name, member_name
from pbt.search import initial_values
from pbt.store import State, StateStore
from pbt.survivor import is_survivor, local_folder, read_survivor
from rayconf.errors import UserError
from rayconf.run_config import RunConfig
from rayconf.search import OF_POLICY

MATTERS = ("policy.json", "policy.safetensors", "scaler.json")
"""Files of a survivor that decide what training starts from."""
FILES = (*MATTERS, "config.yaml")
ORIGIN = "schedule.parquet"
BASE = "base"


@dataclass(frozen=True)
class Base:
    """What the pairs of a run start from; without folders: from nothing."""

    folders: Mapping[str, Path] = field(default_factory=dict)
    """Folder of a survivor by pair."""

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return bool(self.folders)

    @property
    def scalers(self) -> dict[str, Scaler]:
        """The survivors' scalers by pair."""
        return {pair: Scaler.from_json((at / "scaler.json").read_text()) for pair, at in self.folders.items()}

    @property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over pairs, names and contents of the files that matter."""
        sha = hashlib.sha256()
        for pair, folder in sorted(self.folders.items()):
            for name in MATTERS:
                content = (folder / name).read_bytes()
                sha.update(f"{pair}|{name}|{len(content)}|".encode() + content)
        return sha.hexdigest()[:16]

    def recorded(self, run: RunConfig) -> RunConfig:
        """The run's config with the digest of its base.

        Raises:
            UserError: If the config was made with another base.
        """
        if not self.given:
            return run
        was, now = run.stages.base_digest, self.digest
        if was not in (None, now):
            raise UserError(f"stages.base_digest: {run.stages.base} is {now} now, this config was made with {was}")
        return run.model_copy(update={"stages": run.stages.model_copy(update={"base_digest": now})})

    def warnings(self, run: RunConfig) -> list[str]:
        """What a reader of the run's figures should know of its base."""
        found = []
        for at in dict.fromkeys(self.folders.values()):
            base = read_survivor(at)[0]
            if not _same_spans(run, base):
                found.append(
                    f"base {at}: trained with other splits or prices; what it was trained and selected on may be among "
                    "this run's validation and test dates"
                )
            own = at.resolve().parent.name
            others = [p for p, folder in self.folders.items() if folder == at and folder_name(p) != own]
            if base.universe.given and others:
                found.append(
                    f"base {at}: brings its scale of features to {', '.join(others)}, though its universe gave each "
                    "pair one of its own; train the base with these --pairs, and start from its run"
                )
        return found

    def keep(self, directory: RunDir) -> None:
        """Copy the survivors into the run's directory."""
        for pair, folder in self.folders.items():
            target = directory.base_survivor(pair)
            target.mkdir(parents=True)
            for name in (*FILES, ORIGIN):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, target / name)


def find_base(run: RunConfig) -> Base:
    """The base that ``stages.base`` names: fetched where it is published, and checked against the run.

    Raises:
        UserError: There is none, it lacks a pair, or a field of the run does not fit it.
    """
    if run.stages.pretrain:
        from pbt.encoder_base import find_encoder  # stands on this module

        return find_encoder(run)
    if run.stages.base is None:
        check_named(run)
        return Base()
    try:
        folder = local_folder(run.stages.base)
        folders = dict.fromkeys(run.data.pairs, folder) if is_survivor(folder) else _of_run(run, folder)
        for at in dict.fromkeys(folders.values()):
            _check(run, at, read_survivor(at)[0])
        if run.pbt.pooled and len({(at / "policy.safetensors").read_bytes() for at in folders.values()}) > 1:
            raise UserError(
                f"{folder}: its pairs have survivors of their own, and with pbt.pooled all start from one; name one "
                "survivor's folder"
            )
    except UserError as error:
        raise UserError(f"--base-checkpoint: {error}") from error
    return Base(folders)


def check_named(run: RunConfig) -> None:
    """Refuse a config that started from a base and does not say where that lies, as published ones do not."""
    if run.stages.base is None and run.stages.base_digest is not None:
        raise UserError(f"--base-checkpoint: missing; this config started from a base ({run.stages.base_digest})")


def kept_base(run: RunConfig, directory: RunDir) -> Base:
    """The base as it was copied into a run's directory.

    Raises:
        UserError: It is gone or altered.
    """
    if run.stages.base_digest is None:
        return Base()
    if run.stages.pretrain:
        from pbt.encoder_base import EncoderBase  # stands on this module

        base: Base = EncoderBase(folder=directory.base)
    else:
        base = Base({pair: directory.base_survivor(pair) for pair in run.data.pairs if run.starts_from_base(pair)})
    try:
        intact = base.digest == run.stages.base_digest
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; restore it from a copy of the run") from error
    if not intact:
        raise UserError(f"{directory.base}: is not what the run started from; restore it from a copy of the run")
    return base


def base_members(run: RunConfig, directory: RunDir, market: PairMarket) -> dict[str, Member]:
    """The members of a pair as they start from the run's base; the state lies in the store. Ray is up."""
    folder = directory.base_survivor(market.pair)
    digest = StateStore(directory.storage).save(base_state(run, market, folder))
    origin = _origin(folder)
    return {
        member_name(index): Member(digest, initial_values(run, market.pair, index), origin)
        for index in range(run.pbt.population)
    }


def base_state(run: RunConfig, market: PairMarket, folder: Path) -> State:
    """A boundary state with a survivor's actor, and all else as in a run that starts from nothing. Ray is up.

    Args:
        run: The run.
        market: The pair's market.
        folder: The survivor's.

    Raises:
        UserError: If the weights are those of another network.
    """
    from algos.legs import folded
    from algos.policy import Policy
    from pbt.generation import untrained_state

    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    state = untrained_state(run, market, BASE)
    actor = Policy.load(folder).actor_parameters()
    if run.network.legs == "shared":
        actor = folded(actor)
    for name, weight in actor.items():
        fresh = state.get(f"module/{name}")
        if fresh is None or fresh.shape != weight.shape:
            raise UserError(f"{folder}: {name} of shape {tuple(weight.shape)} has no place in the run's network")
        state[f"module/{name}"] = weight.to(fresh.dtype)
        if run.anchored:
            state[f"anchor/{name}"] = state[f"module/{name}"]
    return state


def _of_run(run: RunConfig, folder: Path) -> dict[str, Path]:
    """Per pair the survivor of rank 1 in a run's directory."""
    if not (folder / "survivors").is_dir():
        if (folder / BASE / "base.json").is_file() or (folder / "base.json").is_file():
            raise UserError(f"{folder}: has a base stage and no survivors; start from it with --stages base,population")
        raise UserError(f"{folder}: neither a finished run nor one survivor's folder, RUN/survivors/AAA_BBB/1")
    folders = {pair: folder / "survivors" / folder_name(pair) / "1" for pair in run.data.pairs}
    if missing := [pair for pair, at in folders.items() if not is_survivor(at)]:
        raise UserError(
            f"{folder}: has no survivor of {', '.join(missing)}; leave them out of --pairs, or name one survivor's "
            "folder for all pairs"
        )
    return folders


def _check(run: RunConfig, folder: Path, base: RunConfig) -> None:
    """Refuse weights that would mean something else in this run, naming the first field."""
    for path in _fields(run):
        ours, theirs = _value(run, path), _value(base, path)
        if ours != theirs:
            raise UserError(f"{path}: {_shown(ours)} does not fit {folder}, which was trained with {_shown(theirs)}")
    if uses_drawdown(run) != uses_drawdown(base):
        ours, theirs = run.env.risk_measure, base.env.risk_measure
        raise UserError(
            f"env.risk_measure: {ours} does not fit {folder}, which was trained with {theirs}; a policy sees its "
            "drawdown under the one, not under the other"
        )


def _fields(run: RunConfig) -> Sequence[str]:
    """Paths of what the meaning of weights depends on."""
    network = ["hidden", "activation", "layer_norm", "legs", "encoder"]
    if run.network.encoder not in ("mlp", "factored"):
        network += ["encoder_window", "encoder_width"]
    if run.network.encoder == "transformer":
        network += ["encoder_layers", "encoder_heads"]
    paths = [f"network.{name}" for name in network]
    paths += [f"features.{name}" for name in type(run.features).model_fields]
    searched = {space.path for space in run.search.values()}
    paths += ["forecasts.made_by", "env.mapping", "costs.leverage"]
    return [*paths, *(path for path in OF_POLICY if path not in searched)]


def _value(run: RunConfig, path: str) -> Any:
    section, _, name = path.partition(".")
    return getattr(getattr(run, section), name)


def _same_spans(run: RunConfig, base: RunConfig) -> bool:
    """Whether train, validation and test of two runs are known to be the same dates."""
    dated = run.split.validation_start is not None and run.split.test_start is not None
    prices = (run.data.dir, run.data.pairs, run.synthetic) == (base.data.dir, base.data.pairs, base.synthetic)
    return run.split == base.split and (dated or prices)


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _origin(folder: Path) -> str:
    """Where a survivor came from, PAIR:member:generation; ``base`` where nothing says so."""
    from analysis.frames import read_frame

    path = folder / ORIGIN
    if not path.is_file():
        return BASE
    last = max(read_frame(path).to_pylist(), key=lambda row: row["generation"], default=None)  # a prior has no row
    return f"{last['pair']}:{last['member']}:{last['generation'] + 1}" if last else BASE
