"""``python -m pbt.audit RUN --lookahead``: do the survivors of a run decide on anything that came later?

Decisions are made again on prices that end, or change, after a bar, and compared with those of all prices, bar by bar.
The test span is read as prices alone: what an account earned there is neither shown nor weighed, only whether decisions
repeat. So this is no look at the test span, and may be done before one.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pbt.mirror import refusing
from rayconf.errors import OneLineParser, UserError
from rayconf.origins import check_origins
from rayconf.storage import place

if TYPE_CHECKING:
    from pbt.finished import FinishedRun
    from pbt.lookahead import Findings, Recorded

CLEAN, FOUND, MISTAKE, INTERRUPTED = 0, 1, 2, 130
SCHEMA = 1
SHOWN = 10


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = OneLineParser(
        prog="python -m pbt.audit",
        description="Audit the survivors of a run and their features.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", type=place, metavar="RUN", help="directory of a complete run, e.g. runs/NAME, or s3://..."
    )
    parser.add_argument(
        "--lookahead", action="store_true", help="decide again on truncated and on changed prices, and compare"
    )
    parser.add_argument(
        "--features", action="store_true", help="drift, shifts, extremes and importance of every feature"
    )
    parser.add_argument("--test", action="store_true", help="with --features: the test span too, which is a look at it")
    parser.add_argument("--repeats", type=int, default=5, metavar="R", help="shuffles per feature (5)")
    parser.add_argument("--pair", metavar="A/B", help="one of the run's pairs (default: all)")
    parser.add_argument("--rank", type=int, metavar="K", help="which survivor (default: all)")
    parser.add_argument(
        "--bars", type=int, default=50, metavar="N", help="bars to cut after, beside the borders of the splits (50)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the cuts and the changed prices (0)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 no look-ahead, 1 a leak or nothing that can be said, 2 and one line on a user's mistake."""
    try:
        check_origins()
        with refusing():
            return _audit(build_parser().parse_args(arguments))
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("pairpbt: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FOUND


def _audit(args: argparse.Namespace) -> int:
    from pbt.finished import FinishedRun

    if args.lookahead == args.features:
        raise UserError("say what to audit: --lookahead, or --features")
    if args.test and not args.features:
        raise UserError("--test: give it with --features")
    for flag, value, least in (("bars", args.bars, 1), ("seed", args.seed, 0), ("repeats", args.repeats, 1)):
        if value < least:
            raise UserError(f"--{flag}: {value} must be {least} or more")
    finished = FinishedRun.open(args.run)
    chosen = _chosen(finished, args.pair, args.rank)
    return _features(finished, chosen, args) if args.features else _lookahead(finished, chosen, args)


def _lookahead(finished: "FinishedRun", chosen: Mapping[str, list[Mapping[str, Any]]], args: argparse.Namespace) -> int:
    legs = finished.legs()
    pairs: dict[str, Any] = {}
    for pair, rows in chosen.items():
        found = audit_pair(finished, pair, legs[pair], [row["policy"] for row in rows], args.bars, args.seed)
        for line in told(pair, found):
            print(line, flush=True)
        pairs[pair] = _entry(rows, found)
    about = {"bars": args.bars, "seed": args.seed, "result": _result(pairs), "pairs": pairs}
    _write(finished, "lookahead", about)
    return _conclude(pairs)


def _features(finished: "FinishedRun", chosen: Mapping[str, Any], args: argparse.Namespace) -> int:
    """Drift and worth of the features: nothing is judged, so that the status is 0."""
    from pbt.feature_audit import audit_features, entry, lines

    if args.rank is not None:
        raise UserError("--rank: --features shuffles under the ensemble of all survivors; leave it out")
    splits = ("validation", "test") if args.test else ("validation",)
    if args.test:
        finished.directory.event("look", "audit: features of the test span")
        finished.directory.push()
    pairs = {}
    for pair in chosen:
        reports = audit_features(finished, pair, splits, args.repeats, args.seed)
        for line in lines(pair, reports, splits):
            print(line, flush=True)
        pairs[pair] = {report.name: entry(report) for report in reports}
    _write(finished, "features", {"splits": splits, "repeats": args.repeats, "seed": args.seed, "pairs": pairs})
    return CLEAN


def _chosen(finished: "FinishedRun", pair: str | None, rank: int | None) -> dict[str, list[Mapping[str, Any]]]:
    """The survivors asked for by pair."""
    if pair is not None and pair not in finished.pairs:
        raise UserError(f"--pair: {pair!r} is no pair of this run; choose one of {', '.join(finished.pairs)}")
    chosen: dict[str, list[Mapping[str, Any]]] = {}
    for row in finished.known:
        if pair in (None, row["pair"]) and rank in (None, row["rank"]):
            chosen.setdefault(row["pair"], []).append(row)
    for one in [pair] if pair is not None else finished.pairs:
        if one not in chosen:
            ranks = ", ".join(str(row["rank"]) for row in finished.known if row["pair"] == one)
            raise UserError(f"--rank: {one} has survivors {ranks}, not {rank}")
    return chosen


def audit_pair(
    finished: "FinishedRun", pair: str, legs: tuple[Any, Any], names: Sequence[str], bars: int, seed: int
) -> "Findings":
    """Audit the named survivors of a pair on the run's own prices, against its record where it has one."""
    from envs.bars import join_bars
    from pbt.lookahead import Subject, audit

    borders = finished.borders(pair, join_bars(*legs)[0].dates)
    own = finished.policies(pair)
    policies = {name: own[name] for name in names}
    subject = Subject(pair, *legs, finished.run, borders, finished.scaler(pair), policies, finished.forecasts)
    return audit(subject, bars, _recorded(finished, pair, names), seed)


def _recorded(finished: "FinishedRun", pair: str, names: Sequence[str]) -> "list[Recorded]":
    from analysis.frames import group_slices, read_frame
    from pbt.lookahead import Recorded

    path = finished.directory.frame("daily")
    if not path.is_file():
        return []
    compared = ["target_weight_a", "target_weight_b", "weight_a", "weight_b", "net_return"]
    records = []
    for name in names:
        columns = ["split", "decision_date", *compared]
        table = read_frame(path, columns, window=finished.window, scenario="base", pair=pair, policy=name)
        for (split,), rows in group_slices(table, ["split"]):
            part = table.slice(rows.start, rows.stop - rows.start)
            values = {column: part.column(column).to_numpy() for column in compared}
            records.append(Recorded(name, split, part.column("decision_date").to_numpy(), values))
    return records


def told(pair: str, found: "Findings") -> list[str]:
    """The findings of a pair as lines."""
    record = f"{found.recorded:,} recorded decisions repeated" if found.recorded else "no record to compare with"
    lines = [
        f"{pair}  {found.decisions:,} decisions of {len(found.power)} survivors at {len(found.cuts)} cuts; {record}"
    ]
    power = ", ".join(f"{name} {count}/{found.controls}" for name, count in found.power.items())
    lines.append(f"  control   decisions changed with the past: {power}")
    lines += [f"  LEAK      {leak}" for leak in found.leaks[:SHOWN]]
    if len(found.leaks) > SHOWN:
        lines.append(f"  LEAK      and {len(found.leaks) - SHOWN} more, all in audit.json")
    return lines


def _entry(rows: Sequence[Mapping[str, Any]], found: "Findings") -> dict[str, Any]:
    """What ``audit.json`` says of a pair."""
    return {
        "decisions": found.decisions,
        "recorded": found.recorded,
        "controls": found.controls,
        "cuts": found.cuts,
        "survivors": {
            str(row["rank"]): {
                "member": row["member"],
                "generation": row["generation"],
                "controls_changed": found.power[row["policy"]],
                "result": found.result(row["policy"]),
            }
            for row in rows
        },
        "leaks": [{**vars(leak), "features": list(leak.features), "told": str(leak)} for leak in found.leaks],
    }


def _write(finished: "FinishedRun", kind: str, about: Mapping[str, Any]) -> None:
    """Put the findings into ``audit.json``, beside those of the other kind."""
    from analysis.frames import write_text

    path, identity = finished.directory.path / "audit.json", finished.run.identity
    content: dict[str, Any] = {"schema": SCHEMA, "run": identity}
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(path.read_text())
        if isinstance(before, dict) and before.get("run") == identity:
            content = before
    content[kind] = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **about}
    try:
        write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        print(f"pairpbt: {path} cannot be written: {error.strerror}", file=sys.stderr)
    finished.directory.push(everything=True)


def _result(pairs: Mapping[str, Any]) -> str:
    results = {one["result"] for entry in pairs.values() for one in entry["survivors"].values()}
    return next(result for result in ("leak", "inconclusive", "clean") if result in results)


def _conclude(pairs: Mapping[str, Any]) -> int:
    """The last line, and the exit status."""
    result = _result(pairs)
    decisions, cuts = (
        sum(count) for count in zip(*((e["decisions"], len(e["cuts"])) for e in pairs.values()), strict=True)
    )
    if result == "clean":
        print(f"no look-ahead in {decisions:,} decisions at {cuts} cuts")
        return CLEAN
    if result == "inconclusive":
        unmoved = [
            f"{pair} survivor {rank}"
            for pair, entry in pairs.items()
            for rank, one in entry["survivors"].items()
            if one["result"] == result
        ]
        print(f"inconclusive: no decision of {', '.join(unmoved)} depends on recent prices at all")
        return FOUND
    print(f"LOOK-AHEAD FOUND: {sum(len(entry['leaks']) for entry in pairs.values())} findings, all in audit.json")
    return FOUND


if __name__ == "__main__":
    sys.exit(main())
