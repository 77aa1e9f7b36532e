"""A run from its config to its report: train, choose, back-test, write. Every stage may be repeated."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from rich.console import Console

from analysis.frames import KEYS, daily_schema, evidence_schema, read_frame, read_jsonl, write_frame, write_text
from analysis.overfitting import snapshot_streams
from analysis.report import write_report
from analysis.statistics import evidence_of, evidence_rows
from analysis.summary import build_summary, headline_window, with_deflated, write_summary
from analysis.tables import print_final_table
from analysis.timing import time_line, time_split
from analysis.walk_forward import strung
from envs.market import PairMarket
from envs.training_bars import TrainingBars
from pbt import fitness
from pbt import population as populations_of
from pbt.base import base_members
from pbt.extension import join, joining, plan_lines, write_extension
from pbt.fallback import fallback, why_fallback
from pbt.gauges import Gauges
from pbt.manifest import Population
from pbt.population import PairPopulation
from pbt.progress import ProgressView
from pbt.results import known_notes, window_entries, write_events, write_summary_json, write_training_frames
from pbt.run_dir import RunDir
from pbt.scheduler import Listener
from pbt.simulator import Policies, backtest, with_ensembles
from pbt.stages import pretrained_members, run_stages
from pbt.startup import StartUp
from pbt.survivors import Survivor, export, load_survivors
from pbt.tracking import Tracking
from pbt.training import train
from pbt.windows import Window, calendar_of, numbered, pooled_line
from rayconf.plan import plan
from rayconf.run_config import RunConfig
from rayconf.session import Machine

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


def begin(run: RunConfig, directory: RunDir, windows: Sequence[Window]) -> None:
    """Write the config and the first events of a fresh run."""
    write_text(directory.config, with_versions(run).to_yaml())
    directory.event("start", f"seed {run.seed}")
    if run.pbt.pooled:
        directory.event("plan", pooled_line(run))
    for window in windows:
        for pair, market in window.markets.items():
            notes = (*market.notes, *_fitness_note(window.run, window.markets, pair))
            window.directory.event("plan", "\n".join(notes), pair=pair)


def begin_extension(run: RunConfig, directory: RunDir, markets: Mapping[str, PairMarket], new: Sequence[str]) -> None:
    """Write the config of a finished run with ``new`` pairs and the first events of its extension."""
    finished = [pair for pair in run.data.pairs if pair not in new]
    other = other_versions(run)
    write_extension(directory, with_versions(run))
    note = f"; the finished pairs were made with {', '.join(other)}" if other else ""
    directory.event("resume", f"extended by {', '.join(new)}{note}")
    for pair in new:
        lines = (*markets[pair].notes, *_fitness_note(run, markets, pair), *plan_lines(run, directory, pair, finished))
        directory.event("plan", "\n".join(lines), pair=pair)


def _fitness_note(run: RunConfig, markets: Mapping[str, PairMarket], pair: str) -> tuple[str, ...]:
    sessions = len(calendar_of([markets[judge] for judge in run.judges(pair)]))
    windows = len(fitness.window_starts(sessions, run.pbt))
    if windows >= fitness.FEW_WINDOWS:
        return ()
    return (f"{pair}: validation holds {windows} rolling windows only, so fitness pools the whole span",)


def execute(run: RunConfig, directory: RunDir, windows: Sequence[Window], machine: Machine, console: Console) -> None:
    """Train what is not trained yet, window by window, then back-test and report; Ray is up."""
    if machine.dashboard is not None:
        console.print(f"dashboard  {machine.dashboard}", highlight=False, soft_wrap=True)
    if "population" not in run.stages.run:
        for window in windows:
            run_stages(window, console)
        directory.event("done")
        directory.push(everything=True)
        directory.reserve.unlink(missing_ok=True)
        return
    pairs, start_up = joining(directory, run), StartUp(directory)
    done = [train_window(window, pairs, len(windows), machine, console, start_up) for window in windows]
    finish(run, directory, done)


@dataclass(frozen=True)
class Done:
    """A trained window."""

    window: Window
    references: Mapping[str, ray.ObjectRef]
    """Markets in the object store, by pair; a pair without one was finished before."""
    populations: Mapping[str, Population]
    """By pair the one that serves it."""
    tracking: Tracking


def train_window(
    window: Window, pairs: Sequence[str], count: int, machine: Machine, console: Console, start_up: StartUp
) -> Done:
    """Train what is not trained yet of a window.

    Args:
        window: The window.
        pairs: Those that train.
        count: Windows of the run.
        machine: Where.
        console: Where progress is shown.
        start_up: The run's, which notes the first steps of all windows.
    """
    run, directory, markets = window.run, window.directory, window.markets
    run_stages(window, console)
    references = {pair: ray.put(replace(markets[pair], training=None)) for pair in pairs}
    # The last window's lies in the store too, see training_memory.
    training = _put_once({pair: markets[pair].training for pair in pairs})
    slots = plan(run, machine).slots
    populations = {}
    for pair in run.leaders:
        market, *others = (markets[judge] for judge in run.judges(pair))
        populations[pair] = load_population(run, directory, market, others)
    directory.push()
    tracking = Tracking(run, directory)
    told = f"window {window.number}/{count}  " if window.number else ""
    with Gauges(run, directory, populations) as gauges:
        try:
            with ProgressView(run, populations, console, told) as view:
                listeners: list[Listener] = [start_up, view, tracking, gauges]
                train(run, directory, references, populations, slots, listeners, training, elastic=machine.joined)
        finally:
            tracking.close()
    trained = {pair: populations[run.leader(pair)].committed for pair in markets}
    return Done(window, references, trained, tracking)


def _put_once(training: Mapping[str, TrainingBars | None]) -> dict[str, ray.ObjectRef]:
    """References by pair to what its policies train on; what pairs share lies in the object store once."""
    kept: dict[int, ray.ObjectRef] = {}
    for bars in training.values():
        if bars is not None and id(bars) not in kept:
            kept[id(bars)] = ray.put(bars)
    return {pair: kept[id(bars)] for pair, bars in training.items() if bars is not None}


def finish(run: RunConfig, directory: RunDir, done: Sequence[Done]) -> None:
    """Survivors, backtest, frames, summary and report of a trained run.

    Pairs without a reference were finished before: their survivors and daily rows stay as they are.
    """
    lineage = write_training_frames(run, directory, [(one.window, one.populations) for one in done])
    seen = snapshot_streams(read_frame(directory.frame("validation")))
    survivors = [_survivors(one, directory if one is done[-1] else one.window.directory, lineage, seen) for one in done]
    references, last = done[-1].references, survivors[-1]
    extended = len(references) < len(last)
    for which in references if extended else (None,):  # the finished pairs of an extension are not looked at again
        directory.event("look", "launch: survivors, ensemble and baselines over all scenarios", pair=which)
    directory.push()
    blocks = []
    for one, ranked in zip(done, survivors, strict=True):
        policies = {pair: _policies(ranked[pair]) for pair in one.references}
        rows, prepared = backtest(one.window.run, directory.identity, one.references, policies)
        blocks.append(numbered(rows, one.window.number))
    notes: dict[str, dict[str, Any]] = {
        pair: {
            "trials": run.pbt.population * sum(one.populations[pair].generation for one in done),
            "zscore": str(p.zscore),
            "static_gross": list(p.static),
        }
        for pair, p in prepared.items()
    }
    rows = pa.concat_tables(blocks)
    if extended:
        before = read_frame(directory.frame("daily"))
        kept = pc.is_in(before.column("pair"), pa.array([pair for pair in last if pair not in references]))
        rows = pa.concat_tables([rows, before.filter(kept)])
        notes |= known_notes(directory, [pair for pair in last if pair not in references])
    rows = pa.concat_tables([strung(rows), rows])
    daily = write_frame(rows, daily_schema(), KEYS["daily"], directory.frame("daily"))
    markets = done[-1].window.markets
    by_window = {
        number: evidence_of(
            daily,
            read_frame(directory.frame("validation")),
            lineage,
            read_jsonl(directory.events_journal),
            window=number,
            annual={pair: market.sessions_per_year for pair, market in markets.items()},
            thorough=number == headline_window(daily),
        )
        for number in sorted(set(daily.column("window").to_pylist()))
    }
    judged = [row for number, found in by_window.items() for row in evidence_rows(found, directory.identity, number)]
    write_frame(judged, evidence_schema(), KEYS["evidence"], directory.frame("evidence"))
    summary = summary_of(run, markets, _known(survivors, [one.window.number for one in done]), daily)
    for number, found in by_window.items():
        summary = with_deflated(summary, {pair: item.deflated for pair, item in found.items()}, number)
    summary = write_summary(summary, directory.path)
    found = by_window[headline_window(daily)]
    directory.event("done")
    write_events(directory)
    write_report(directory.path, found)
    verdicts = {pair: item.sentence() for pair, item in found.items()}
    done[-1].tracking.results(verdicts)
    for pair, entries in window_entries([one.window for one in done], summary).items():
        notes[pair]["windows"] = entries
    write_summary_json(directory, summary, last, notes, found, "complete")  # last: it says that the run is whole
    directory.push(everything=True)
    print_final_table(summary, daily, verdicts)
    print(time_line(time_split(read_jsonl(directory.progress_journal))))
    for one in done:
        one.window.directory.storage.within("tune").clear()
    if directory.extension.is_file():
        directory.extension.replace(directory.config)
    directory.reserve.unlink(missing_ok=True)


def load_population(
    run: RunConfig, directory: RunDir, market: PairMarket, others: Sequence[PairMarket] = ()
) -> PairPopulation:
    """The population of a pair at its last commit, or a fresh one; ``others`` it is evaluated on beside the pair's."""
    manifest = directory.manifest(market.pair)
    known = manifest.is_file()
    if known:
        committed = Population.read(manifest)
    elif market.pair in run.data.transferred:
        new = joining(directory, run)
        committed = join(run, directory, market, [pair for pair in run.data.pairs if pair not in new])
    elif run.stages.pretrain:
        members = pretrained_members(run, directory, market)
        committed = populations_of.start(run, market.pair, directory, members, copied="weights")
    elif run.starts_from_base(market.pair):
        members = base_members(run, directory, market)
        committed = populations_of.start(run, market.pair, directory, members, copied="weights")
    else:
        committed = populations_of.start(run, market.pair, directory)
    return PairPopulation(run, directory, calendar_of([market, *others]), committed)


def _survivors(
    done: Done, home: RunDir, lineage: Sequence[Mapping[str, Any]], seen: Mapping[tuple[int, str], np.ndarray]
) -> dict[str, list[Survivor]]:
    """The survivors of a window by pair, written to ``home``; ``seen`` is what ``snapshot_streams`` returns.

    Raises:
        NoSurvivorError: A pair has none.
    """
    window, found = done.window, {}
    rows = [row for row in lineage if row["window"] == window.number]
    for pair, population in done.populations.items():
        ranked = load_survivors(window.run, window.directory, population, window.markets[pair])
        reason = why_fallback(window.run, population, seen.get((window.number, pair))) if ranked else None
        if reason is not None:
            ranked = [fallback(window.run, window.directory, window.markets[pair])]
            if pair in done.references:
                window.directory.event("fallback", reason, pair=pair, member=ranked[0].snapshot.member)
        found[pair] = ranked
        for survivor in found[pair] if pair in done.references else ():
            export(window.run, home, window.markets[pair], survivor, rows)
    missing = [pair for pair, ranked in found.items() if not ranked]
    if missing:
        where = f"window {window.number}: " if window.number else ""
        raise NoSurvivorError(
            f"{where}{', '.join(missing)}: no survivor, every account was ruined or diverged on validation"
        )
    return found


def _policies(ranked: list[Survivor]) -> Policies:
    own = {survivor.name: survivor.policy for survivor in ranked}
    return with_ensembles(own, [(s.snapshot.fitness, s.snapshot.fitness_se) for s in ranked])


def _known(survivors: Sequence[Mapping[str, list[Survivor]]], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Survivors as ``build_summary`` takes them, of each window."""
    return [
        {
            "window": number,
            "pair": pair,
            "policy": survivor.name,
            "rank": survivor.rank,
            "member": survivor.snapshot.member,
            "generation": survivor.snapshot.generation,
        }
        for number, by_pair in zip(numbers, survivors, strict=True)
        for pair, ranked in by_pair.items()
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
