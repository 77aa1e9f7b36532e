"""``python -m pbt.forecast RUN --data-dir DIR --output FILE``: forecasts of today's prices for what a run trained.

RUN is a run's directory or a survivor's folder, here, in a bucket, or published (``hf://user/name``): its config says
which model, revision, horizons and quantiles. The forecaster itself comes from the flags alone, for a run may be
somebody else's: --python runs the shipped command for Toto, --command any other. The file is what --forecasts of
``pbt.decide`` and ``pbt.backtest`` takes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rayconf.errors import OneLineParser, UserError
from rayconf.origins import check_origins
from rayconf.run_config import RunConfig

OK, MISTAKE, INTERRUPTED = 0, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = OneLineParser(prog="python -m pbt.forecast", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run or one survivor's folder; also s3://... or hf://...")
    parser.add_argument("--data-dir", metavar="DIR", help="a CSV or Parquet file per ticker (default: the run's own)")
    parser.add_argument("--pair", metavar="A/B", help="this pair alone (default: all of the run)")
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help="Parquet file to write")
    parser.add_argument("--python", metavar="PATH", help="interpreter that has toto-ts, for the shipped command")
    parser.add_argument("--command", metavar="'PROGRAM ...'", help="another forecaster's program and first arguments")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0, or 2 and one line on a user's mistake."""
    try:
        check_origins()
        return _forecast(build_parser().parse_args(arguments))
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("pairpbt: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _forecast(args: argparse.Namespace) -> int:
    from envs.market import load_legs
    from pbt.forecaster import Forecaster, series_of
    from pbt.hub import require_prices
    from pbt.hub_model import fetch_model
    from rayconf.loading import build_config

    if args.command is not None and args.python is not None:
        raise UserError("--python: is for the shipped command; leave it out with --command")
    run = _config(args.run)
    if not run.forecasts.used:
        raise UserError(f"{args.run}: was trained without forecasts; there is nothing to make")
    if args.pair is not None and args.pair not in run.data.pairs:
        raise UserError(f"--pair: {args.pair!r} is no pair of {args.run}; it has {', '.join(run.data.pairs)}")
    if not args.output.resolve().parent.is_dir():
        raise UserError(f"--output: {args.output.parent} is no directory")
    if args.data_dir is None:
        require_prices(args.run, run)
    name, _, revision = str(run.forecasts.made_by).rpartition("@")
    forecaster = {"model": name, "revision": revision, "file": None, "command": args.command, "python": args.python}
    settings = run.model_dump()
    data = {"dir": args.data_dir or run.data.dir, "pairs": (args.pair,) if args.pair else run.data.pairs}
    settings["data"] |= {**data, "transferred": ()}
    settings["forecasts"] |= forecaster
    run = build_config(settings)
    series = series_of(load_legs(run), run.forecasts)
    made = Forecaster.of(run, fetch_model(name, revision)).forecasts(series)
    try:
        made.write(args.output)
    except OSError as error:
        raise UserError(f"--output: {args.output}: {error.strerror}") from error
    print(f"forecasts {args.output}")
    return OK


def _config(place: str) -> RunConfig:
    """The config of a run, of a survivor, or of the first survivor of a pair's folder."""
    from pbt.survivor import local_folder, survivor_folders
    from rayconf.loading import build_config, load_file

    folder = local_folder(place)
    for found in (folder, *survivor_folders(folder)[:1]):
        if (found / "config.yaml").is_file():
            return build_config(load_file(found / "config.yaml"))
    raise UserError(f"{place}: holds no run and no survivor: config.yaml is missing")


if __name__ == "__main__":
    sys.exit(main())
