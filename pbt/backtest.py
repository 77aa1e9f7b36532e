"""``python -m pbt.backtest RUN``: the survivors of a run again, over a grid of scenarios of one's own."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbt.mirror import refusing
from rayconf.errors import OneLineParser, UserError
from rayconf.origins import check_origins
from rayconf.storage import place

if TYPE_CHECKING:
    import pyarrow as pa

    from envs.market import PairMarket
    from pbt.finished import FinishedRun
    from pbt.run_dir import RunDir
    from pbt.scenarios import Probe
    from pbt.simulator import Policies
    from rayconf.run_config import RunConfig

DONE, BROKEN, MISTAKE, INTERRUPTED = 0, 1, 2, 130
SHOWN_RISES = 20


class CostsRaiseReturnsError(RuntimeError):
    """Accounts of identical targets that end higher where they pay more."""


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = OneLineParser(prog="python -m pbt.backtest", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "run",
        type=place,
        metavar="RUN",
        help="directory of a complete run, e.g. runs/NAME, or s3://..., hf://user/name",
    )
    parser.add_argument(
        "--grid",
        nargs="+",
        default=[],
        metavar="NAME=A,B",
        help="costs=... in bps a side, lag=... in bars, leverage=... the ledger's gross limit, borrow=... a year; "
        "every combination is a scenario (default: the run's own grid)",
    )
    parser.add_argument(
        "--splits", default="test", metavar="A,B", help="some of train,validation,test (default: test, which is a look)"
    )
    parser.add_argument("--pairs", metavar="A/B,C/D", help="some of the run's pairs (default: all)")
    parser.add_argument(
        "--csv", action="store_true", help="write decisions-AAA_BBB.csv with the original log's columns"
    )
    parser.add_argument(
        "--policy", default="ensemble", metavar="NAME", help="whose decisions --csv writes (default: ensemble)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write here instead of RUN/backtests/<date-time> (of a published run: backtests/<name>-<date-time>)",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="other prices of the same tickers")
    parser.add_argument("--forecasts", metavar="FILE", help="forecasts of these, where the run has forecast features")
    parser.add_argument(
        "--all-daily",
        action="store_true",
        help="keep the daily rows of every policy in every scenario; without it the grid's are of the ensemble and "
        "equal weight alone, and all others are summed up",
    )
    parser.add_argument("--address", metavar="ADDR", help="join this Ray cluster (auto: the local one)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 done, 1 broken accounting, 2 and one line on a user's mistake."""
    try:
        check_origins()
        with refusing():
            print(f"backtest {_backtest(build_parser().parse_args(arguments))}")
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return MISTAKE
    except CostsRaiseReturnsError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return BROKEN
    except KeyboardInterrupt:
        print("pairpbt: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    return DONE


def _backtest(args: argparse.Namespace) -> str:
    """Run and write it; returns where it lies."""
    from pbt.finished import FinishedRun
    from pbt.hub import require_prices
    from pbt.scenario_files import content_of, write_csv, write_json
    from pbt.scenarios import check_spans, parse_grid, parse_splits, with_grid

    grid, splits = parse_grid(args.grid), parse_splits(args.splits)
    finished = FinishedRun.open(args.run)
    if args.pairs is not None:
        finished = finished.only([pair.strip() for pair in args.pairs.split(",")], "--pairs")
    if args.data_dir is None:
        require_prices(args.run, finished.run)
    run = with_grid(finished.on_data(args.data_dir), grid)
    policies = _policies(finished)
    _check_policy(args, policies)
    markets = finished.markets(args.data_dir, args.forecasts)
    if finished.window:
        print(f"window     {finished.window}, the last of a walk-forward: its survivors, on its own spans", flush=True)
    for market in markets.values():
        check_spans(market, run, splits)
    name = args.run.name if isinstance(args.run, Path) else finished.directory.name
    with _whole(_target(args.run, finished.directory, args.out)) as (folder, target):
        look = None
        if "test" in splits:
            look = _look(finished, f"backtest {target.name}: {_told(run)}{_of_prices(args.data_dir)}")
        identity = finished.on_data(args.data_dir).identity
        found, base, summary = _simulate(run, identity, finished, markets, policies, splits, args, folder)
        _write_events(finished, look, folder)
        content = content_of(run, identity, name, args.data_dir, splits, found, base)
        write_json(content, folder)
        if args.csv:
            write_csv(base, splits, args.policy, folder)
    finished.directory.push(everything=True)
    _print(content, summary, base, splits)
    return finished.directory.shown(target)


def _policies(finished: "FinishedRun") -> "dict[str, Policies]":
    """Ensembles and survivors of every pair by name."""
    from pbt.simulator import with_ensembles

    found: dict[str, Policies] = {}
    for pair in finished.pairs:
        own = finished.policies(pair)
        found[pair] = with_ensembles(own, finished.fitness(pair))
    return found


def _check_policy(args: argparse.Namespace, policies: "Mapping[str, Policies]") -> None:
    from analysis.labels import BASELINES

    for pair, own in policies.items():
        if args.policy not in {*own, *BASELINES}:
            raise UserError(f"--policy: {pair} has no {args.policy!r}; choose one of {', '.join([*own, *BASELINES])}")


def _simulate(
    run: "RunConfig",
    name: str,
    finished: "FinishedRun",
    markets: "Mapping[str, PairMarket]",
    policies: "Mapping[str, Policies]",
    splits: Sequence[str],
    args: argparse.Namespace,
    folder: Path,
) -> "tuple[dict[tuple[str, str], Probe], pa.Table, pa.Table]":
    """Run everything on Ray and write the frames; what the probes found, the base scenario's rows, the summary.

    Raises:
        CostsRaiseReturnsError: Before anything is written, if an account rises with costs.
    """
    import pyarrow as pa
    import ray

    from analysis.frames import KEYS, daily_schema, write_frame_blocks
    from analysis.summary import write_summary
    from pbt.scenarios import probing
    from pbt.simulator import ENSEMBLE, EQUAL_WEIGHT, Simulator
    from pbt.terms import BASE, scenarios
    from rayconf.session import start_ray

    base: list[pa.Table] = []
    summaries: list[pa.Table] = []
    prepared = {pair: finished.prepared(pair) for pair in policies}
    kept = None if args.all_daily else (ENSEMBLE, EQUAL_WEIGHT)

    def passing(simulator: Simulator) -> "Iterator[pa.Table]":
        wanted = {split: scenarios(run) for split in splits}
        for scenario, table in simulator.blocks(wanted, finished.known, kept, summaries):
            if scenario == BASE:
                base.append(table)
            yield table

    with start_ray(run.resources, args.address):
        references = {pair: ray.put(markets[pair]) for pair in policies}
        simulator = Simulator.start(run, name, references, policies, prepared)
        asked = {
            (pair, split): probing.remote(*simulator.of(pair, split), split) for pair in policies for split in splits
        }
        found = {key: ray.get(reference) for key, reference in asked.items()}
        _refuse([rise for one in found.values() for rise in one.rises])
        write_frame_blocks(passing(simulator), daily_schema(), KEYS["daily"], folder / "frames" / "daily.parquet")
    summary = write_summary(pa.concat_tables(summaries), folder)
    return found, pa.concat_tables(base), summary


def _refuse(rises: Sequence[Any]) -> None:
    """Raise where returns rise with costs."""
    if rises:
        lines = [f"  {rise}" for rise in rises[:SHOWN_RISES]]
        more = [f"  and {len(rises) - SHOWN_RISES} more"] if len(rises) > SHOWN_RISES else []
        raise CostsRaiseReturnsError(
            "\n".join(["THE ACCOUNTING IS BROKEN: equity rises with costs; nothing was written", *lines, *more])
        )


def _target(run: str | Path, directory: "RunDir", out: Path | None) -> Path:
    """Where the results go; nothing is made yet. A published run's go below the current folder, not into the cache."""
    from pbt.hub import is_hub

    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out: {out} exists and is not empty; name a new folder")
        return out.resolve()
    published = is_hub(run)
    folder = Path("backtests").resolve() if published else directory.path / "backtests"
    stem, number = time.strftime("%Y%m%d-%H%M%S"), 2
    stem = f"{Path(run).name}-{stem}" if published else stem
    target = folder / stem
    while target.exists() or directory.storage.within(f"backtests/{target.name}").occupied():
        target, number = folder / f"{stem}-{number}", number + 1
    return target


@contextmanager
def _whole(target: Path) -> Iterator[tuple[Path, Path]]:
    """A temporary folder beside the target that takes its name once all is written."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{target.parent}: cannot be written ({error.strerror}); name a folder with --out") from error
    try:
        yield temporary, target
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _told(run: "RunConfig") -> str:
    from pbt.scenarios import GRID

    counts = {name: len(getattr(run.backtest, field)) for name, field in GRID.items()}
    return " x ".join(f"{count} {name}" for name, count in counts.items() if count)


def _of_prices(data_dir: str | None) -> str:
    return f", on prices of {data_dir}" if data_dir else ""


def _look(finished: "FinishedRun", detail: str) -> dict[str, Any] | None:
    """Journal a look at the test span; the event itself where the run keeps no journal that can be written."""
    journal = finished.directory.events_journal
    if journal.is_file() and os.access(journal, os.W_OK):
        finished.directory.event("look", detail)
        finished.directory.push()
        return None
    return {
        "wall_time": time.time(),
        "seq": 0,
        "run": finished.directory.identity,
        "kind": "look",
        "window": 0,
        "detail": detail,
    }


def _write_events(finished: "FinishedRun", look: Mapping[str, Any] | None, folder: Path) -> None:
    from analysis.frames import KEYS, events_schema, write_frame
    from pbt.results import write_events

    if look is not None:
        write_frame([look], events_schema(), KEYS["events"], folder / "frames" / "events.parquet")
    elif finished.directory.events_journal.is_file() and os.access(finished.directory.frames, os.W_OK):
        write_events(finished.directory)


def _print(content: Mapping[str, Any], summary: "pa.Table", base: "pa.Table", splits: Sequence[str]) -> None:
    from analysis.scenario_tables import print_scenarios
    from analysis.tables import print_final_table

    if "test" in splits:
        print_final_table(summary, base)
    print_scenarios(content, summary)


if __name__ == "__main__":
    sys.exit(main())
