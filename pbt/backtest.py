"""``python -m pbt.backtest RUN``: the survivors of a run again, over a grid of scenarios of one's own."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayconf.errors import OneLineParser, UserError
from rayconf.loading import build_config, load_file, merge
from rayconf.origins import check_origins
from rayconf.run_config import RunConfig

GRID = {"costs": "cost_bps", "lag": "lags"}


def parse_grid(texts: Sequence[str]) -> dict[str, list[float]]:
    """``costs=1,5 lag=1,2`` as fields of the config's ``backtest`` section."""
    fields: dict[str, list[float]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if name not in GRID or not equals:
            raise UserError(f"--grid: {text!r} must be one of {', '.join(GRID)} with values, e.g. costs=1,5")
        try:
            fields[GRID[name]] = [float(value) for value in values.split(",")]
        except ValueError as error:
            raise UserError(f"--grid: {text!r} must list numbers, e.g. {name}=1,5") from error
    return fields


def with_grid(run: RunConfig, grid: dict[str, list[float]]) -> RunConfig:
    """The run with another grid of scenarios. Raises ``UserError`` when a value cannot be."""
    return build_config(merge(run.model_dump(mode="json"), {"backtest": grid}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = OneLineParser(prog="python -m pbt.backtest", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a complete run, e.g. runs/NAME")
    parser.add_argument(
        "--grid", nargs="+", default=[], metavar="NAME=A,B", help="costs=... in bps a side, lag=... in bars"
    )
    parser.add_argument("--address", metavar="ADDR", help="join this Ray cluster (auto: the local one)")
    try:
        check_origins()
        args = parser.parse_args(arguments)
        print(f"backtest {_backtest(args.run, parse_grid(args.grid), args.address)}")
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pairpbt: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _backtest(path: Path, grid: dict[str, list[float]], address: str | None) -> Path:
    import ray

    from algos.policy import EnsemblePolicy, Policy
    from analysis.frames import KEYS, daily_schema, write_frame
    from analysis.summary import write_summary
    from analysis.tables import print_final_table
    from pbt.base import markets_of
    from pbt.pipeline import summary_of
    from pbt.results import write_events
    from pbt.run_dir import RunDir
    from pbt.simulator import ENSEMBLE, backtest
    from rayconf.session import start_ray

    directory = RunDir(path)
    directory.require()
    stored = build_config(load_file(directory.config))
    directory.identity = stored.identity
    run = with_grid(stored, grid)
    known = [row for row in known_survivors(directory.summary_json) if row["pair"] in stored.data.pairs]
    policies: dict[str, Any] = {}
    for row in known:
        policy = Policy.load(directory.survivor(row["pair"], row["rank"]))
        policies.setdefault(row["pair"], {})[row["policy"]] = policy
    policies = {pair: {ENSEMBLE: EnsemblePolicy(list(own.values())), **own} for pair, own in policies.items()}
    markets = markets_of(run, directory)

    identity = time.strftime("%Y%m%d-%H%M%S")
    target = directory.path / "backtests" / identity
    with start_ray(run.resources, address):
        directory.event(
            "look", f"backtest {identity}: {len(run.backtest.cost_bps)} costs x {len(run.backtest.lags)} lags"
        )
        references = {pair: ray.put(markets[pair]) for pair in policies}
        rows, _ = backtest(run, directory.identity, references, policies, splits=("test",))
    daily = write_frame(rows, daily_schema(), KEYS["daily"], target / "frames" / "daily.parquet")
    summary = write_summary(summary_of(run, markets, known, daily), target)
    write_events(directory)
    print_final_table(summary, daily)
    return target


def known_survivors(path: Path) -> list[dict[str, Any]]:
    """Pair, policy name, rank, member and generation of every survivor of a complete run."""
    try:
        pairs = json.loads(path.read_text())["pairs"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path.parent}: the run is not complete; finish it with python -m pbt.launch --resume"
        ) from error
    return [
        {
            "pair": pair,
            "policy": f"survivor-{survivor['rank']}",
            "rank": survivor["rank"],
            "member": survivor["member"],
            "generation": survivor["generation"],
        }
        for pair, entry in pairs.items()
        for survivor in entry["survivors"]
    ]


if __name__ == "__main__":
    sys.exit(main())
