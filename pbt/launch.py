"""``python -m pbt.launch``: train, back-test and report; without arguments on the embedded synthetic market."""

import argparse
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbt.mirror import RemoteRuns, refusing
from rayconf.errors import OneLineParser, UserError
from rayconf.loading import assign, build_config, load_config, load_file, merge, parse_assignment
from rayconf.origins import check_origins
from rayconf.run_config import RunConfig
from rayconf.storage import place

if TYPE_CHECKING:
    from pbt.base import Base
    from pbt.forecasts import Found
    from pbt.run_dir import RunDir
    from pbt.windows import Window
    from rayconf.session import Machine

OK, FAILED, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
ALIASES = {
    "data_dir": "data.dir",
    "pairs": "data.pairs",
    "population": "pbt.population",
    "iterations": "pbt.iterations",
    "seed": "seed",
    "dashboard": "resources.dashboard",
    "wandb": "tracking.wandb",
    "wandb_project": "tracking.wandb_project",
    "wandb_entity": "tracking.wandb_entity",
    "wandb_group": "tracking.wandb_group",
    "wandb_tags": "tracking.wandb_tags",
    "stages": "stages.run",
    "base_checkpoint": "stages.base",
    "walk_forward": "split.walk_forward",
}
NEEDS_PRICES = ("log-pairs",)
"""Presets that say nothing on the embedded market."""
MAY_DIFFER = (
    "resources.cpus",
    "resources.cpus_per_member",
    "resources.gpus_per_member",
    "resources.object_store_mb",
    "resources.dashboard",
    "resources.usd_per_cpu_hour",
    "resources.usd_per_gpu_hour",
    "tracking",
    "versions",
    "name",
    "stages.base_digest",
    "forecasts.digest",
    "forecasts.made_by",
)


def build_parser() -> argparse.ArgumentParser:
    """All flags. Each is an alias of one field of the run, or says where and how the run lives."""
    parser = OneLineParser(prog="python -m pbt.launch", description=__doc__, allow_abbrev=False)
    field = parser.add_argument_group("the run (each an alias of one config field)")
    field.add_argument("--data-dir", metavar="DIR", help="data.dir: one CSV or Parquet file per ticker")
    field.add_argument("--pairs", metavar="A/B,C/D", help="data.pairs")
    field.add_argument("--population", type=int, metavar="N", help="pbt.population: members per pair, or all if pooled")
    field.add_argument("--iterations", type=int, metavar="N", help="pbt.iterations: updates per member")
    field.add_argument("--seed", type=int, metavar="S", help="seed")
    field.add_argument("--dashboard", action="store_const", const=True, help="resources.dashboard: Ray's web page")
    field.add_argument("--wandb", choices=("off", "offline", "online"), help="tracking.wandb (WANDB_MODE)")
    field.add_argument("--wandb-project", metavar="NAME", help="tracking.wandb_project (WANDB_PROJECT; pairpbt)")
    field.add_argument("--wandb-entity", metavar="NAME", help="tracking.wandb_entity (WANDB_ENTITY)")
    field.add_argument("--wandb-group", metavar="NAME", help="tracking.wandb_group (WANDB_RUN_GROUP; the run's name)")
    field.add_argument("--wandb-tags", metavar="A,B", help="tracking.wandb_tags (WANDB_TAGS)")
    field.add_argument("--stages", metavar="A,B", help="stages.run: base,specialists,population (default: population)")
    field.add_argument("--base-checkpoint", metavar="RUN", help="stages.base: what to start from; also s3://, hf://")
    field.add_argument("--walk-forward", metavar="DATES", help="split.walk_forward: first dates of the tests, or N")
    parser.add_argument("--preset", metavar="NAME", help="default, demo, smoke, log-pairs, study (default: default)")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML, e.g. another run's config; over --preset if given"
    )
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", dest="assignments", help="any field")
    parser.add_argument(
        "--run-dir", type=place, metavar="DIR", help="where runs live (default: runs); also s3://BUCKET/PREFIX"
    )
    parser.add_argument("--name", help="name of the run's directory (default: preset, date and time)")
    parser.add_argument("--address", metavar="ADDR", help="join this Ray cluster (auto: the local one)")
    parser.add_argument("--resume", action="store_true", help="go on with the run --name from its last commit")
    parser.add_argument("--extend", type=Path, metavar="RUN", help="train --pairs in addition to a finished run's")
    parser.add_argument("--dry-run", action="store_true", help="print plan and search space, write nothing")
    parser.add_argument("--measure", action="store_true", help="with --dry-run: time some updates, for hours and cost")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    try:
        check_origins()
        return _launch(build_parser().parse_args(arguments))
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("pairpbt: interrupted; go on with --resume and the run's --name", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _launch(args: argparse.Namespace) -> int:
    if not isinstance(args.run_dir, str):
        return _run(args, args.run_dir or Path("runs"))
    if args.extend:
        raise UserError("--extend: the run must lie in a folder; copy it there, e.g. with `aws s3 sync`, and back")
    runs = RemoteRuns(args.run_dir)
    try:
        with refusing("--run-dir"):
            status = _run(args, runs.folder, runs)
    finally:
        whole = runs.close()
    return status if whole else status or FAILED


def _run(args: argparse.Namespace, folder: Path, runs: RemoteRuns | None = None) -> int:
    """Launch one run in a folder of runs, or in the working copy of one at a URI."""
    from rayconf.plan import plan
    from rayconf.session import machine_resources, start_ray

    if args.measure and not args.dry_run:
        raise UserError("--measure: give it with --dry-run")
    if args.extend:
        path = args.extend if args.run_dir is None else folder / args.extend
        folder, config = path.resolve().parent, _extended(args, path)
    else:
        config = _resumed(args, folder, runs) if args.resume else _fresh(args)
    config = config.model_copy(update={"tracking": config.tracking.in_force(os.environ)})
    # A cluster is asked what it has when it is joined; a plan without it is this machine's.
    machine = machine_resources(config.resources) if args.address is None else None

    from envs.universe import listed
    from envs.walk_forward import dated
    from pbt.base import find_base, kept_base
    from pbt.forecasts import Found, find_forecasts, kept_forecasts
    from pbt.run_dir import RunDir
    from pbt.windows import training_memory, windows_of

    fresh = not args.resume and not args.extend
    directory = RunDir(folder / (config.name or ""), mirror=runs.mirror(config.name or "") if runs else None)
    if fresh and directory.storage.occupied() and not args.dry_run:
        directory.create()  # raises: the name is taken
    forecasts = find_forecasts(config) if fresh else Found(kept_forecasts(config, directory))
    config = forecasts.recorded(config) if fresh else config
    base = find_base(config) if fresh else kept_base(config, directory)
    config = listed(dated(base.recorded(config)))
    directory.identity = config.identity
    windows = windows_of(config, directory, base.scalers, forecasts.forecasts)
    working = _training(config, directory, args)
    held = training_memory(working, windows)
    if machine is not None:
        plan(working, machine, held)  # raises: no member fits, or what it trains on does not
    if args.extend:
        from pbt.extension import check_features

        check_features(windows[0].markets, working.data.pairs)
    if args.dry_run:
        from pbt.preflight import describe

        for line in forecasts.warnings():
            print(f"warning    {line}")
        describe(config, working, windows, machine, args.address, measured=args.measure)
        return OK
    if args.resume and _complete(directory):
        print(f"complete; report {directory.shown(directory.report)}")
        return OK
    from rich.console import Console

    from pbt.pipeline import execute
    from pbt.preflight import fit_cluster

    try:
        if machine is not None:
            _open(args, config, working, directory, windows, base, forecasts, machine)
        with start_ray(config.resources, args.address, held.store) as found:
            if machine is None:  # a cluster that does not answer, or is not fit, leaves no run behind
                found = fit_cluster(config, args.run_dir if runs else folder, found)
                _open(args, config, working, directory, windows, base, forecasts, found)
            execute(config, directory, windows, found, Console())
    except SystemExit:  # SIGTERM
        print(f"pairpbt: terminated; go on with --resume --name {directory.name}", file=sys.stderr)
        return TERMINATED
    except UserError:
        raise
    except Exception as error:
        from pbt.disk import give_up, is_full

        full = give_up(directory) if is_full(error) else None
        logging.getLogger("pbt").exception("run failed")
        first = full or next(iter(str(error).strip().splitlines()), type(error).__name__)
        print(
            f"pairpbt: failed: {first}; see {directory.shown(directory.log)}, go on with --resume --name "
            f"{directory.name}",
            file=sys.stderr,
        )
        return FAILED
    print(_reports(config, windows))
    return OK


@refusing("--run-dir")
def _open(
    args: argparse.Namespace,
    config: RunConfig,
    working: RunConfig,
    directory: "RunDir",
    windows: "Sequence[Window]",
    base: "Base",
    forecasts: "Found",
    machine: "Machine",
) -> None:
    """Make the run's directory, or bring that of a resumed run back to its last commit; say what will happen."""
    from pbt.disk import keep_reserve
    from pbt.pipeline import begin, begin_extension
    from pbt.recovery import recover
    from pbt.windows import plan_lines, training_memory
    from rayconf.plan import plan

    if not args.resume and not args.extend:
        directory.create()
        base.keep(directory)
        forecasts.keep(directory)
    logging.basicConfig(
        filename=directory.log, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("pbt").setLevel(logging.INFO)
    logging.raiseExceptions = False  # a log on a full disk is no reason to write to the terminal
    threading.excepthook = _log_thread
    if args.resume:
        recover(directory, config)
    elif args.extend:
        begin_extension(config, directory, windows[0].markets, working.data.pairs)
    else:
        begin(config, directory, windows)
        for line in (*forecasts.warnings(), *base.warnings(config)):
            directory.event("plan", line)
            print(f"warning    {line}")
    directory.push()
    keep_reserve(directory)
    planned = plan(working, machine, training_memory(working, windows))
    for line in (*planned.lines(), *plan_lines(working, windows)):
        print(line, flush=True)


def _log_thread(failure: threading.ExceptHookArgs) -> None:
    """Errors of other threads, such as a tracker's writer, go to the log."""
    name = failure.thread.name if failure.thread else "?"
    value = failure.exc_value
    logging.getLogger("pbt").error(
        "thread %s failed", name, exc_info=(failure.exc_type, value, failure.exc_traceback) if value else None
    )


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    return {path: getattr(args, flag) for flag, path in ALIASES.items() if getattr(args, flag) is not None}


def _preset(args: argparse.Namespace) -> str | None:
    """What a config stands on: a file without a preset on the fields' own defaults, so that one repeats its run."""
    return args.preset or (None if args.config else "default")


def _fresh(args: argparse.Namespace) -> RunConfig:
    preset = _preset(args)
    config = load_config(preset, args.config, _flags(args), args.assignments)
    name = args.name or config.name or f"{preset or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = build_config({**config.model_dump(), "name": name, "versions": {}})
    if config.data.transferred:
        joined = ", ".join(config.data.transferred)
        raise UserError(f"data.transferred: {joined} joined another run; launch without them and add them by --extend")
    if preset in NEEDS_PRICES and config.data.dir is None:
        raise UserError(
            f"--data-dir: preset {preset} needs prices; give a directory with one CSV or Parquet per ticker"
        )
    return config


def _extended(args: argparse.Namespace, path: Path) -> RunConfig:
    """The config of a finished run with more pairs. Raises ``UserError`` where that cannot be."""
    from pbt.extension import extended_config
    from pbt.run_dir import RunDir

    given = [name for name in ("preset", "config", "name", "resume") if getattr(args, name)]
    given += [flag for flag in ALIASES if flag != "pairs" and getattr(args, flag) is not None]
    if given or args.assignments:
        flag = (given or ["set"])[0].replace("_", "-")
        raise UserError(f"--{flag}: leave it out, the config of the run that is extended holds; give --pairs alone")
    if args.pairs is None:
        raise UserError("--extend: by which pairs? give --pairs")
    directory = RunDir(path.resolve())
    directory.require()
    if directory.extension.is_file():
        raise UserError(f"--extend: {path} is being extended already; go on with --resume --name {directory.name}")
    stored = build_config(load_file(directory.config))
    if stored.stages.pretrain:
        raise UserError(
            f"--extend: {path} has a base stage; launch the pairs in a run of their own, from its base: "
            f"--stages base,population --base-checkpoint {path}"
        )
    if stored.split.walk_forward:
        raise UserError(f"--extend: {path} is a walk-forward, which takes no more pairs; launch them in another run")
    if stored.pbt.pooled:
        raise UserError(f"--extend: {path} has one population for all pairs (pbt.pooled); launch them in another run")
    if stored.anchored:
        raise UserError(
            f"--extend: {path} holds on to its base; launch the pairs in a run of their own with that --base-checkpoint"
        )
    if not _complete(directory):
        raise UserError(f"--extend: {path} is not finished; finish it with --resume --name {directory.name}")
    return extended_config(directory, args.pairs)


def _training(config: RunConfig, directory: "RunDir", args: argparse.Namespace) -> RunConfig:
    """The config with the pairs alone that will be trained: not those of a finished run that others join."""
    from pbt.extension import joining

    if args.extend:
        finished = build_config(load_file(directory.config)).data.pairs
        pairs = tuple(pair for pair in config.data.pairs if pair not in finished)
    else:
        pairs = joining(directory, config)
    return config.model_copy(update={"data": config.data.model_copy(update={"pairs": pairs})})


def _resumed(args: argparse.Namespace, folder: Path, runs: RemoteRuns | None) -> RunConfig:
    """The stored config, with what may change changed. Raises ``UserError`` naming any other difference."""
    from envs.universe import listed
    from envs.walk_forward import dated
    from pbt.run_dir import RunDir

    if args.name is None:
        raise UserError("--resume: which run? give its --name")
    directory = RunDir(folder / args.name, mirror=runs.fetched(args.name) if runs else None)
    if not directory.config.is_file():
        raise UserError(f"--resume: {directory.shown(directory.path)} holds no run to go on with")
    stored = build_config(load_file(directory.config_in_force))
    if args.preset or args.config:
        wanted = load_config(_preset(args), args.config, _flags(args), args.assignments)
    else:
        settings: dict[str, Any] = stored.model_dump(mode="json")
        for path, value in [*_flags(args).items(), *map(parse_assignment, args.assignments)]:
            part: dict[str, Any] = {}
            assign(part, path, value)
            settings = merge(settings, part)
        wanted = build_config(settings)
    wanted = listed(dated(wanted))
    different = _difference(stored.model_dump(), wanted.model_dump())
    if different is not None:
        path, old, new = different
        raise UserError(f"--resume: {path} was {old!r} and cannot become {new!r}; start a new run for that")
    # The directory may have been renamed since; its name is the run's.
    kept = {"resources": wanted.resources, "tracking": wanted.tracking, "name": args.name}
    return stored.model_copy(update=kept)


def _difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    for key in old.keys() | new.keys():
        if f"{prefix}{key}" in MAY_DIFFER:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found = _difference(a, b, f"{prefix}{key}.")
            if found:
                return found
        elif a != b:
            return f"{prefix}{key}", a, b
    return None


def _reports(config: RunConfig, windows: "Sequence[Window]") -> str:
    """Where a person reads what came out."""
    if "population" in config.stages.run:
        paths = [windows[0].directory.shown(windows[0].directory.report)]
    else:
        paths = [window.directory.shown(window.directory.base / "run_report.md") for window in windows]
    return "\n".join(f"report {path}" for path in paths)


def _complete(directory: "RunDir") -> bool:
    import json

    if directory.extension.is_file():
        return False
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads(directory.summary_json.read_text())["status"] == "complete")
    return False


if __name__ == "__main__":
    sys.exit(main())
