"""``python -m pbt.replay RUN --pair P --rank K``: a survivor trained again along its schedule, from nothing."""

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbt.mirror import refusing
from rayconf.errors import OneLineParser, UserError
from rayconf.loading import build_config, load_file
from rayconf.origins import check_origins
from rayconf.run_config import RunConfig
from rayconf.storage import place

if TYPE_CHECKING:
    import pyarrow as pa

    from algos.policy import Policy
    from envs.market import PairMarket
    from pbt.manifest import Snapshot
    from pbt.run_dir import RunDir
    from pbt.segments import Replayed

EQUAL, DIFFERENT, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = OneLineParser(prog="python -m pbt.replay", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "run", type=place, metavar="RUN", help="directory of a complete run, e.g. runs/NAME, or s3://..."
    )
    parser.add_argument("--pair", required=True, metavar="A/B", help="one of the run's pairs")
    parser.add_argument("--rank", type=int, default=1, metavar="K", help="which survivor (default: 1)")
    parser.add_argument(
        "--seed", type=int, metavar="S", help="other random numbers: how much of the survivor is its seed?"
    )
    parser.add_argument(
        "--test", action="store_true", help="read the test span, also where the result is another; it is logged"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 equal (or trained under another seed), 1 different, 2 and one line on a user's mistake."""
    try:
        check_origins()
        with refusing():
            return _replay(build_parser().parse_args(arguments))
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("pairpbt: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _replay(args: argparse.Namespace) -> int:
    from analysis.frames import read_frame
    from pbt.base import kept_base
    from pbt.forecasts import kept_forecasts
    from pbt.pipeline import other_versions
    from pbt.run_dir import open_run
    from pbt.segments import base_state, difference, retrain, segments_of
    from pbt.store import StateStore
    from pbt.windows import window_numbers, windows_of
    from rayconf.session import start_ray

    directory = open_run(args.run)
    directory.require()
    run = build_config(load_file(directory.config))
    directory.identity = run.identity
    directory = directory.in_window(window_numbers(run)[-1])  # whose survivors are those of the run
    snapshot = _chosen(run, directory, args)
    lineage = read_frame(directory.frame("lineage"), pair=args.pair, window=directory.window).to_pylist()
    segments, store = segments_of(run, lineage, args.pair, snapshot), StateStore(directory.storage)
    base = base_state(segments, store)
    window = windows_of(run, directory, kept_base(run, directory).scalers, kept_forecasts(run, directory))[-1]
    run, market = window.run, window.markets[args.pair]
    trained, *others = (window.markets[pair] for pair in run.judges(args.pair))
    for line in _warnings(run, other_versions(run)):
        print(f"warning    {line}", flush=True)

    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    done: list[Replayed] = []
    # What Ray may use changes no result; without Ray at all RLlib would start one of its own, with all CPUs.
    with start_ray(run.resources.model_copy(update={"cpus": 1})):
        for one in retrain(run, trained, segments, base, args.seed, others):
            done.append(one)
            where = f"{len(done)}/{len(segments)}  {one.segment.name}  {one.segment.operation:8}"
            if args.seed is None:
                verdict = f"state {one.state}  equal" if one.equal else f"differs: {difference(one, store)}"
            else:
                verdict = f"fitness {_signed(one.trained.evaluation.figures['fitness'])}"
                verdict += f"  recorded {_signed(one.segment.fitness)}"
            print(f"segment    {where}  key {one.key:016x}  {verdict}", flush=True)
    return _conclude(args, run, directory, market, snapshot, done)


def _chosen(run: RunConfig, directory: "RunDir", args: argparse.Namespace) -> "Snapshot":
    """The snapshot behind the survivor asked for."""
    from pbt.fallback import PRIOR
    from pbt.finished import known_survivors
    from pbt.manifest import Population

    known = [row for row in known_survivors(directory.summary_json) if row["pair"] == args.pair in run.data.pairs]
    if not known:
        raise UserError(f"--pair: {args.pair!r} is no pair of this run; choose one of {', '.join(run.data.pairs)}")
    if args.seed is not None and args.seed < 0:
        raise UserError(f"--seed: {args.seed} must be 0 or more")
    places = {row["rank"]: (row["member"], row["generation"]) for row in known}
    if args.rank not in places:
        raise UserError(f"--rank: {args.pair} has survivors {', '.join(map(str, places))}, not {args.rank}")
    if not places[args.rank][1]:
        own = "prior, which nothing trained" if places[args.rank][0] == PRIOR else "base, which another run trained"
        raise UserError(f"--pair: {args.pair} trades its {own}: there is no schedule to replay")
    manifest = directory.manifest(run.leader(args.pair))
    for snapshot in Population.read(manifest).archive:
        if (snapshot.member, snapshot.generation) == places[args.rank]:
            return snapshot
    raise UserError(f"{manifest}: the archive lacks survivor {args.rank}; restore it from a copy")


def _warnings(run: RunConfig, versions: Sequence[str]) -> list[str]:
    found = []
    if versions:
        found.append(f"made with {', '.join(versions)}: bits may differ")
    if run.resources.gpus_per_member:
        found.append("trained on a GPU: its bits may differ from run to run")
    return found


def _conclude(
    args: argparse.Namespace,
    run: RunConfig,
    directory: "RunDir",
    market: "PairMarket",
    snapshot: "Snapshot",
    done: "list[Replayed]",
) -> int:
    """Compare what the frames hold, write the replay, say the verdict."""
    from analysis.frames import read_frame
    from pbt.results import write_events
    from pbt.survivors import policy_from_state
    from pbt.windows import numbered

    policy = policy_from_state(done[-1].trained.state, run, market.scaler.names)
    # Equal states have the test results that the run already holds; any others would be a new look at the test span.
    known = args.seed is None and done[-1].equal
    if args.test and not known:
        directory.event("look", f"replay of survivor {args.rank}{_under(args.seed)}", pair=args.pair)
        write_events(directory)
        directory.push(everything=True)
    splits = ("test", "train", "validation") if args.test or known else ("train", "validation")
    name = f"survivor-{args.rank}"
    recorded = read_frame(
        directory.frame("daily"), scenario="base", pair=args.pair, policy=name, window=directory.window
    )
    identity = recorded.column("run")[0].as_py() + ("" if args.seed is None else f"-replay{args.seed}")
    daily = numbered(_daily(run, market, name, policy, splits, identity), directory.window)
    verdicts, code = _verdicts(args, market.sessions_per_year, recorded, daily, done)
    target = _write(directory, args, run, market, policy, snapshot, done, daily)
    directory.push(everything=True)
    for line in verdicts:
        print(line)
    print(f"replay     {directory.shown(target)}")
    return code


def _verdicts(
    args: argparse.Namespace, per_year: float, recorded: "pa.Table", daily: "pa.Table", done: "list[Replayed]"
) -> tuple[list[str], int]:
    """What to say in the end, and the exit status."""
    from analysis.frames import part_of
    from analysis.metrics import session_returns, sharpe

    if args.seed is None:
        first = next((number for number, one in enumerate(done, start=1) if not one.equal), None)
        if first is not None:
            return [f"different  from segment {first} on ({done[first - 1].segment.name})"], DIFFERENT
        where = first_difference(recorded, daily)
        if where is not None:
            return [f"different  equal states, but the daily rows differ {where}"], DIFFERENT
        rows = f"{daily.num_rows} daily rows"
        return [f"equal      every segment ({len(done)}) and all {rows}, to the bit"], EQUAL
    ours, theirs = done[-1].trained.evaluation.figures["fitness"], done[-1].segment.fitness
    lines = [f"fitness    {_signed(ours)} under seed {args.seed}, recorded {_signed(theirs)}"]
    if args.test:
        figures = []
        for table in (daily, recorded):
            part = part_of(table, split="test")
            returns, _ = session_returns(part.column("net_return").to_numpy(), part.column("date").to_numpy())
            figures.append(sharpe(returns, per_year))
        lines.append(f"test       Sharpe {_signed(figures[0])}, recorded {_signed(figures[1])}")
    return lines, EQUAL


def first_difference(recorded: "pa.Table", ours: "pa.Table") -> str | None:
    """The first split, date and column of two tables of one policy that differ; None where all rows are equal."""
    if recorded.num_rows != ours.num_rows:
        return f"in number: {ours.num_rows}, recorded {recorded.num_rows}"
    for old, new in zip(recorded.to_pylist(), ours.to_pylist(), strict=True):
        for name, value in old.items():
            if new[name] != value:
                return f"in {name} on {old['date']} ({old['split']}): {new[name]}, recorded {value}"
    return None


def _daily(
    run: RunConfig, market: "PairMarket", name: str, policy: "Policy", splits: Sequence[str], identity: str
) -> "pa.Table":
    """Rows of the ``daily`` frame of one policy under the run's own terms, in the order of the frame's key."""
    import pyarrow as pa
    import torch

    from pbt.simulator import Batch
    from pbt.terms import BASE, base_scenario

    torch.set_num_threads(1)
    batch = Batch({name: policy}, {}, [base_scenario(run)])
    return pa.concat_tables([batch.daily(market, run, split, identity)[BASE, name] for split in sorted(splits)])


def _write(
    directory: "RunDir",
    args: argparse.Namespace,
    run: RunConfig,
    market: "PairMarket",
    policy: "Policy",
    snapshot: "Snapshot",
    done: "list[Replayed]",
    daily: "pa.Table",
) -> Path:
    """Write ``RUN/replays/<id>/``: into a temporary folder, renamed when it is whole."""
    from analysis.frames import KEYS, daily_schema, write_frame
    from pbt.pipeline import with_versions
    from pbt.run_dir import folder_name
    from pbt.segments import segments_table
    from pbt.survivors import write_policy

    seed = "" if args.seed is None else f"-seed{args.seed}"
    stem = f"{folder_name(args.pair)}-{args.rank}{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    target, number = directory.replays / stem, 2
    while directory.storage.within(f"replays/{target.name}").occupied():
        target, number = directory.replays / f"{stem}-{number}", number + 1
    temporary = directory.replays / f".{target.name}.tmp"
    seeded = run if args.seed is None else run.model_copy(update={"seed": args.seed})
    try:
        write_policy(temporary, policy, market, with_versions(seeded.with_values(snapshot.hyperparameters)))
        segments = segments_table(done)
        write_frame(segments, segments.schema, ("segment",), temporary / "segments.parquet")
        write_frame(daily, daily_schema(), KEYS["daily"], temporary / "daily.parquet")
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _under(seed: int | None) -> str:
    return "" if seed is None else f" under seed {seed}"


def _signed(value: Any) -> str:
    return "?" if value is None else f"{value:+.2f}"


if __name__ == "__main__":
    sys.exit(main())
