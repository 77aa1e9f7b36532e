"""A run from its config to its report: train, choose, back-test, write. Every stage may be repeated."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from rich.console import Console

from algos.policy import EnsemblePolicy
from analysis.frames import KEYS, daily_schema, evidence_schema, read_frame, read_jsonl, write_frame, write_text
from analysis.report import write_report
from analysis.statistics import evidence_of, evidence_rows
from analysis.summary import build_summary, with_deflated, write_summary
from analysis.tables import print_final_table
from analysis.timing import time_line, time_split
from envs.market import PairMarket
from envs.training_bars import TrainingBars
from pbt import fitness
from pbt import population as populations_of
from pbt.base import base_members
from pbt.extension import join, joining, plan_lines, write_extension
from pbt.gauges import Gauges
from pbt.manifest import Population
from pbt.population import PairClock, PairPopulation
from pbt.progress import ProgressView
from pbt.results import known_notes, write_events, write_summary_json, write_training_frames
from pbt.run_dir import RunDir
from pbt.scheduler import Listener
from pbt.simulator import ENSEMBLE, Policies, backtest
from pbt.startup import StartUp
from pbt.survivors import Survivor, export, load_survivors
from pbt.tracking import Tracking
from pbt.training import train
from rayconf.run_config import RunConfig
from rayconf.session import Machine, plan

PACKAGES = ("ray", "torch", "numpy", "pandas", "pyarrow", "gymnasium", "pydantic")

log = logging.getLogger("pbt")


class NoSurvivorError(RuntimeError):
    """A pair of which validation saw nothing worth keeping."""


def with_versions(run: RunConfig) -> RunConfig:
    """The config with the versions of the packages that will make the run."""
    found = {name: version(name) for name in PACKAGES}
    return run.model_copy(update={"versions": {"python": sys.version.split()[0], **found}})


def other_versions(run: RunConfig) -> list[str]:
    """Packages of another version here than made the run, as text."""
    here = with_versions(run).versions
    return [f"{name} {was} (here {here[name]})" for name, was in run.versions.items() if here.get(name, was) != was]


def begin(run: RunConfig, directory: RunDir, markets: Mapping[str, PairMarket]) -> None:
    """Write the config and the first events of a fresh run."""
    write_text(directory.config, with_versions(run).to_yaml())
    directory.event("start", f"seed {run.seed}")
    for pair, market in markets.items():
        directory.event("plan", "\n".join((*market.notes, *_fitness_note(run, market))), pair=pair)


def begin_extension(run: RunConfig, directory: RunDir, markets: Mapping[str, PairMarket], new: Sequence[str]) -> None:
    """Write the config of a finished run with ``new`` pairs and the first events of its extension."""
    finished = [pair for pair in run.data.pairs if pair not in new]
    other = other_versions(run)
    write_extension(directory, with_versions(run))
    note = f"; the finished pairs were made with {', '.join(other)}" if other else ""
    directory.event("resume", f"extended by {', '.join(new)}{note}")
    for pair in new:
        lines = (*markets[pair].notes, *_fitness_note(run, markets[pair]), *plan_lines(run, directory, pair, finished))
        directory.event("plan", "\n".join(lines), pair=pair)


def _fitness_note(run: RunConfig, market: PairMarket) -> tuple[str, ...]:
    span = market.splits["validation"]
    windows = len(fitness.window_starts(len(np.unique(market.session[span.start : span.stop - 1])), run.pbt))
    if windows >= fitness.FEW_WINDOWS:
        return ()
    return (f"{market.pair}: validation holds {windows} rolling windows only, so fitness pools the whole span",)


def execute(
    run: RunConfig, directory: RunDir, markets: Mapping[str, PairMarket], machine: Machine, console: Console
) -> None:
    """Train what is not trained yet, then back-test and report; Ray is up."""
    if machine.dashboard is not None:
        console.print(f"dashboard  {machine.dashboard}", highlight=False, soft_wrap=True)
    new = joining(directory, run)
    references = {pair: ray.put(replace(markets[pair], training=None)) for pair in new}
    training = _put_once({pair: markets[pair].training for pair in new})
    slots = plan(run, machine).slots
    populations = {pair: load_population(run, directory, market) for pair, market in markets.items()}
    directory.push()
    tracking = Tracking(run, directory)
    with Gauges(run, directory, populations) as gauges:
        try:
            with ProgressView(run, populations, console) as view:
                listeners: list[Listener] = [StartUp(directory), view, tracking, gauges]
                train(run, directory, references, populations, slots, listeners, training, elastic=machine.joined)
        finally:
            tracking.close()
        committed = {pair: p.committed for pair, p in populations.items()}
        finish(run, directory, markets, references, committed, tracking)


def _put_once(training: Mapping[str, TrainingBars | None]) -> dict[str, ray.ObjectRef]:
    """References by pair to what its policies train on; what pairs share lies in the object store once."""
    kept: dict[int, ray.ObjectRef] = {}
    for bars in training.values():
        if bars is not None and id(bars) not in kept:
            kept[id(bars)] = ray.put(bars)
    return {pair: kept[id(bars)] for pair, bars in training.items() if bars is not None}


def finish(
    run: RunConfig,
    directory: RunDir,
    markets: Mapping[str, PairMarket],
    references: Mapping[str, ray.ObjectRef],
    populations: Mapping[str, Population],
    tracking: Tracking,
) -> None:
    """Survivors, backtest, frames, summary and report of a trained run.

    Pairs without a reference were finished before: their survivors and daily rows stay as they are.
    """
    lineage = write_training_frames(run, directory, markets, populations)
    survivors: dict[str, list[Survivor]] = {}
    for pair, population in populations.items():
        survivors[pair] = load_survivors(run, directory, population, markets[pair])
        for survivor in survivors[pair] if pair in references else ():
            export(run, directory, markets[pair], survivor, lineage)
    missing = [pair for pair, ranked in survivors.items() if not ranked]
    if missing:
        raise NoSurvivorError(f"{', '.join(missing)}: no survivor, every account was ruined or diverged on validation")
    extended = len(references) < len(survivors)
    for which in references if extended else (None,):  # the finished pairs of an extension are not looked at again
        directory.event("look", "launch: survivors, ensemble and baselines over all scenarios", pair=which)
    directory.push()
    policies = {pair: _policies(survivors[pair]) for pair in references}
    rows, prepared = backtest(run, directory.identity, references, policies)
    notes: dict[str, dict[str, Any]] = {
        pair: {
            "trials": run.pbt.population * populations[pair].generation,
            "zscore": str(p.zscore),
            "static_gross": list(p.static),
        }
        for pair, p in prepared.items()
    }
    if extended:
        before = read_frame(directory.frame("daily"))
        kept = pc.is_in(before.column("pair"), pa.array([pair for pair in survivors if pair not in references]))
        rows = pa.concat_tables([rows, before.filter(kept)])
        notes |= known_notes(directory, [pair for pair in survivors if pair not in references])
    daily = write_frame(rows, daily_schema(), KEYS["daily"], directory.frame("daily"))
    found = evidence_of(
        daily,
        read_frame(directory.frame("validation")),
        lineage,
        read_jsonl(directory.events_journal),
        annual={pair: market.sessions_per_year for pair, market in markets.items()},
    )
    write_frame(
        evidence_rows(found, directory.identity), evidence_schema(), KEYS["evidence"], directory.frame("evidence")
    )
    summary = summary_of(run, markets, _known(survivors), daily)
    summary = write_summary(with_deflated(summary, {pair: one.deflated for pair, one in found.items()}), directory.path)
    directory.event("done")
    write_events(directory)
    write_report(directory.path, found)
    verdicts = {pair: one.sentence() for pair, one in found.items()}
    tracking.results(verdicts)
    write_summary_json(directory, summary, survivors, notes, found, "complete")  # last: it says that the run is whole
    directory.push(everything=True)
    print_final_table(summary, daily, verdicts)
    print(time_line(time_split(read_jsonl(directory.progress_journal))))
    directory.storage.within("tune").clear()
    if directory.extension.is_file():
        directory.extension.replace(directory.config)
    directory.reserve.unlink(missing_ok=True)


def load_population(run: RunConfig, directory: RunDir, market: PairMarket) -> PairPopulation:
    """The population of a pair at its last commit, or a fresh one."""
    manifest = directory.manifest(market.pair)
    known = manifest.is_file()
    if known:
        committed = Population.read(manifest)
    elif market.pair in run.data.transferred:
        new = joining(directory, run)
        committed = join(run, directory, market, [pair for pair in run.data.pairs if pair not in new])
    elif run.starts_from_base(market.pair):
        members = base_members(run, directory, market)
        committed = populations_of.start(run, market.pair, directory, members, copied="weights")
    else:
        committed = populations_of.start(run, market.pair, directory)
    span = market.splits["validation"]
    clock = PairClock(market.dates[span.start : span.stop - 1], market.sessions_per_year)
    return PairPopulation(run, directory, clock, committed)


def _policies(ranked: list[Survivor]) -> Policies:
    ensemble = EnsemblePolicy([survivor.policy for survivor in ranked])
    return {ENSEMBLE: ensemble, **{survivor.name: survivor.policy for survivor in ranked}}


def _known(survivors: Mapping[str, list[Survivor]]) -> list[dict[str, Any]]:
    return [
        {
            "pair": pair,
            "policy": survivor.name,
            "rank": survivor.rank,
            "member": survivor.snapshot.member,
            "generation": survivor.snapshot.generation,
        }
        for pair, ranked in survivors.items()
        for survivor in ranked
    ]


def summary_of(
    run: RunConfig, markets: Mapping[str, PairMarket], survivors: Sequence[Mapping[str, Any]], daily: pa.Table
) -> pa.Table:
    """The summary frame under the run's own terms; ``survivors`` as ``build_summary`` takes them."""
    return build_summary(
        daily,
        survivors,
        base_cost_bps=run.costs.real_bps,
        base_lag=run.env.lag,
        annual_sessions={pair: market.sessions_per_year for pair, market in markets.items()},
    )
