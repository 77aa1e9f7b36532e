"""Back to the last commit whose states are whole: when a run is resumed, and when a member finds its start damaged."""

from collections.abc import Sequence

from analysis.frames import KEYS, append_jsonl, keep_last, read_jsonl
from pbt.manifest import Population
from pbt.run_dir import RunDir
from pbt.store import StateStore
from pbt.windows import window_numbers
from rayconf.errors import UserError
from rayconf.run_config import RunConfig


class DamagedRunError(RuntimeError):
    """Neither the last commit of a pair nor the one before it can be gone on from."""


def recover(directory: RunDir, run: RunConfig) -> None:
    """Bring manifests, journals and states back to the last whole commit of every pair, in every window.

    Raises:
        DamagedRunError: A pair has none.
        UserError: A pair's manifests cannot be read.
    """
    committed = {}
    windows = [directory.in_window(number) for number in window_numbers(run)]
    for window in windows:
        for pair in run.leaders:
            population = last_whole(window, pair)
            if population is not None:
                committed[window.window, pair] = population
    directory.push()
    # Sweeping comes before the journals, for it makes room where the disk was full.
    for window in windows:
        states = (population.states() for (number, _), population in committed.items() if number == window.window)
        needed: set[str] = set().union(*states)
        StateStore(window.storage).sweep(needed)
    for journal, key in ((directory.progress_journal, "progress"), (directory.lineage_journal, "lineage")):
        rows = [
            row
            for row in keep_last(read_jsonl(journal), KEYS[key])
            if (of := (row["window"], row["pair"])) in committed and row["generation"] <= committed[of].generation
        ]
        fresh = journal.with_suffix(".tmp")  # renamed over the old one: a kill here loses neither
        fresh.unlink(missing_ok=True)
        append_jsonl(fresh, rows)
        fresh.replace(journal)
    places = (
        f"{f'window {number} ' if number else ''}{pair} at generation {population.generation}"
        for (number, pair), population in committed.items()
    )
    directory.event("resume", ", ".join(places))


def last_whole(directory: RunDir, pair: str) -> Population | None:
    """The last commit of a pair, or the one before where the last is damaged, which it then replaces; None: no commit.

    Raises:
        DamagedRunError: States of both are damaged.
        UserError: Neither manifest can be read.
    """
    newest, before = directory.manifest(pair), directory.manifest_before(pair)
    if not newest.is_file() and not before.is_file():
        return None
    try:
        population = Population.read(newest)
    except UserError as error:
        try:
            older = Population.read(before)
        except UserError:
            raise error from None
        directory.event(
            "corrupt", f"{directory.shown(newest)} cannot be read; back to generation {older.generation}", pair=pair
        )
        older.write(newest)
        population = older
    damaged = StateStore(directory.storage).damaged(population.own_states())
    return step_back(directory, population, damaged) if damaged else population


def step_back(directory: RunDir, population: Population, damaged: Sequence[str]) -> Population:
    """Make the commit before the last one again, since states of the last are damaged.

    The damaged files go: training makes them anew, under the same names.

    Raises:
        DamagedRunError: There is no commit before, or its states are damaged too.
    """
    pair, store = population.pair, StateStore(directory.storage)
    files = ", ".join(store.shown(name) for name in damaged)
    before = _before(directory, population)
    if before is None or store.damaged(before.own_states()):
        at = "has no commit before" if before is None else "and the commit before are damaged"
        raise DamagedRunError(
            f"{pair}: generation {population.generation} {at} ({files}): restore the files from a copy of the run, "
            "or start a new run"
        )
    detail = f"{files}: missing or damaged; back from generation {population.generation} to {before.generation}"
    directory.event("corrupt", detail, pair=pair, generation=population.generation)
    store.discard(damaged)
    before = before.advanced(previous=())
    before.write(directory.manifest(pair))
    return before


def _before(directory: RunDir, population: Population) -> Population | None:
    try:
        before = Population.read(directory.manifest_before(population.pair))
    except UserError:
        return None
    return before if before.generation < population.generation else None
