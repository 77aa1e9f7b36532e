"""Under the real Tune: a pair that ends early while the other goes on; a member whose ticket freezes its encoder."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray import tune
from ray.tune.experiment import Trial

from analysis.frames import read_jsonl
from envs.market import PairMarket
from pbt.decisions import Decision
from pbt.manifest import Mark, Peak
from pbt.member import PairMember, ticket
from pbt.pipeline import load_population
from pbt.population import PairPopulation
from pbt.run_dir import RunDir
from pbt.scheduler import PairPBT
from pbt.store import ReturnStore, StateStore
from pbt.training import train
from rayconf import RunConfig

EARLY, LATE = "SYNA/SYNB", "SYNC/SYND"


def changed(run: RunConfig, **pbt: object) -> RunConfig:
    return run.model_copy(update={"pbt": run.pbt.model_copy(update=pbt)})


def test_one_pair_ends_early_and_the_other_goes_on(
    ray_session: None,
    tiny_run: RunConfig,
    tiny_markets: Mapping[str, PairMarket],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = changed(tiny_run, iterations=3, patience=2, fitness_smoothing=0.0, on_drop="freeze")
    directory = RunDir(tmp_path / "run", run.identity)
    directory.create()
    populations = {pair: load_population(run, directory, market) for pair, market in tiny_markets.items()}
    # Nothing beats this mark, so two generations without progress end the pair; the other has at most one by then.
    early = populations[EARLY]
    early.committed = early.committed.advanced(mark=Mark(1000.0, 0.0))
    # Nobody comes near this peak either, so whoever is not replaced at the other's first barrier is frozen.
    late = populations[LATE]
    ReturnStore(directory.storage).save((LATE, "m09", 0), np.linspace(0.04, 0.05, len(late._calendar)))
    peak = Peak("0" * 16, "m09", 0, 1000.0, 0)
    members = {name: replace(m, peak=peak, frozen=name == "m00") for name, m in late.committed.members.items()}
    late.committed = late.committed.advanced(members=members)
    first: dict[str, bool] = {}
    tickets: list[dict[str, bool]] = []
    barriers: list[tuple[str, int, set[str]]] = []
    schedulers: list[PairPBT] = []
    build = PairPBT.__init__

    def remember(self: PairPBT, *args: object) -> None:
        schedulers.append(self)
        build(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(PairPBT, "__init__", remember)

    def listen(event: str, population: PairPopulation, decisions: list[Decision] | None) -> None:
        own = {m: t.config["ticket"]["frozen"] for (p, m), t in schedulers[0]._trials.items() if p == population.pair}
        if population.pair == LATE and not population.complete:
            asked = {name: member.frozen for name, member in population.committed.members.items()}
            assert own.items() <= asked.items()  # a trial may still be missing when the first results come
            if population.generation == 0:
                first.update(own)
            elif event == "barrier":
                tickets.append(own)
        if event == "barrier":
            barriers.append((population.pair, population.generation, {d.operation for d in decisions or ()}))

    references = {pair: ray.put(market) for pair, market in tiny_markets.items()}
    train(run, directory, references, populations, 2, [listen])

    found = {pair: population.committed for pair, population in populations.items()}
    assert {pair: (p.generation, p.status) for pair, p in found.items()} == {
        EARLY: (2, "complete"),
        LATE: (3, "complete"),
    }
    assert (EARLY, 2, {"stop"}) in barriers
    assert (LATE, 3, {"stop"}) in barriers
    assert barriers.index((EARLY, 2, {"stop"})) < barriers.index((LATE, 3, {"stop"}))
    assert first == {"m00": True, "m01": False, "m02": False}
    assert tickets[0] in ({"m00": False, "m01": i, "m02": j} for i, j in ((True, False), (False, True), (True, True)))
    trials = schedulers[0]._trials
    assert len(trials) == 6
    assert {trial.status for trial in trials.values()} == {Trial.TERMINATED}
    rows = read_jsonl(directory.progress_journal)
    assert {pair: max(r["iteration"] for r in rows if r["pair"] == pair) for pair in found} == {EARLY: 2, LATE: 3}
    assert {r["arm"] for r in rows if r["member"] == "m00"} == {"reference"}
    # A resume has nothing left to train.
    train(run, directory, references, populations, 2, [listen])
    assert {pair: population.committed for pair, population in populations.items()} == found


@pytest.mark.parametrize("frozen", [False, True])
def test_a_ticket_freezes_the_encoder_for_its_generation(
    ray_session: None,
    tiny_run: RunConfig,
    tiny_markets: Mapping[str, PairMarket],
    tmp_path: Path,
    frozen: bool,
) -> None:
    directory = RunDir(tmp_path / "run", tiny_run.identity)
    store = StateStore(directory.storage)
    values = {name: tiny_run.value_of(name) for name in tiny_run.search}
    kind = tune.with_parameters(PairMember, markets={EARLY: ray.put(tiny_markets[EARLY])})
    member = kind(ticket(tiny_run, directory.path, EARLY, "m01", 0, values, None))
    try:
        start = member.step()["state"]
        member.reset_config(ticket(tiny_run, directory.path, EARLY, "m01", 1, values, start, frozen))
        middle = member.step()["state"]
        member.reset_config(ticket(tiny_run, directory.path, EARLY, "m01", 2, values, middle))
        end = member.step()["state"]
    finally:
        member.stop()
    states = [store.load(name) for name in (start, middle, end)]

    def moved(name: str) -> list[bool]:
        tensors = [state[f"module/{name}"] for state in states]
        return [not torch.equal(a, b) for a, b in pairwise(tensors)]

    for layer in ("pi.0.weight", "vf.0.bias"):
        assert moved(layer) == [not frozen, True], "the generation after trains the whole network again"
    assert moved("pi.2.weight") == [True, True]
