"""PB2: it finds a planted optimum, spreads, starts when it may, and depends on its inputs alone."""

import random
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from pbt import population
from pbt.decisions import decide
from pbt.fitness import BROKEN, Gap
from pbt.manifest import Observation
from pbt.pb2 import Bandit, rows_needed
from pbt.search import draw, explore, from_unit, initial_values, to_unit
from pbt.standings import Standing
from rayconf import load_config
from rayconf.search import Range
from tests.pbt.rehearsal import Rehearsal

SEARCH = {
    "rate": Range(path="optimizer.learning_rate", low=1e-5, high=1e-1),
    "tail": Range(path="env.cvar_weight", low=0.0, high=2.0, scale="linear", step=0.1),
}
RUN = load_config("demo", assignments=["pbt.explore=pb2", "pbt.iterations=60"])
BEST = {"rate": 0.8, "tail": 0.3}


def history(rows: int, noise: float = 0.1, best: dict[str, float] = BEST, start: int = 1) -> list[Observation]:
    """Random hyperparameters, eight a generation, and a gain that falls with the distance from ``best``."""
    rng = np.random.Generator(np.random.PCG64(rows))
    found = []
    for i in range(rows):
        shares = {name: float(rng.random()) for name in SEARCH}
        gain = 1 - 8 * sum((shares[n] - best[n]) ** 2 for n in SEARCH) + noise * float(rng.standard_normal())
        values = {name: from_unit(share, SEARCH[name]) for name, share in shares.items()}
        found.append(Observation(start + i // 8, f"m{i % 8:02d}", values, gain))
    return found


def shares(values: dict[str, float]) -> dict[str, float]:
    return {name: to_unit(values[name], space) for name, space in SEARCH.items()}


def test_it_goes_where_most_was_gained() -> None:
    bandit = Bandit(SEARCH, 7, history(48), [])
    found = [shares(bandit({}, draw("x", i))) for i in range(4)]
    assert all(abs(f["rate"] - 0.8) < 0.25 and abs(f["tail"] - 0.3) < 0.25 for f in found)
    flipped = Bandit(
        SEARCH, 7, [Observation(o.generation, o.member, o.hyperparameters, -(o.change or 0)) for o in history(48)], []
    )
    away = shares(flipped({}, draw("x", 0)))
    assert abs(away["rate"] - 0.8) > 0.4 or abs(away["tail"] - 0.3) > 0.4


def test_what_pays_now_counts_more_than_what_paid_once() -> None:
    old, new = history(48), history(24, best={"rate": 0.2, "tail": 0.7}, start=40)
    found = shares(Bandit(SEARCH, 43, [*old, *new], [])({}, draw("x")))
    assert found["rate"] == pytest.approx(0.2, abs=0.25)
    assert found["tail"] == pytest.approx(0.7, abs=0.25)


def test_pending_values_push_others_away() -> None:
    rows = history(12, noise=1.0)
    first = Bandit(SEARCH, 3, rows, [])
    values = [tuple(shares(first({}, draw("same"))).values()) for _ in range(6)]
    assert len(set(values)) >= 4, "equal candidates, yet the members spread"
    alone = shares(Bandit(SEARCH, 3, rows, [])({}, draw("same")))
    taken = {name: from_unit(share, SEARCH[name]) for name, share in alone.items()}
    assert shares(Bandit(SEARCH, 3, rows, [taken])({}, draw("same"))) != alone


def test_broken_accounts_count_as_the_worst() -> None:
    broken = [
        Observation(
            o.generation, o.member, o.hyperparameters, None if shares(o.hyperparameters)["rate"] > 0.5 else 0.1 * i - 9
        )
        for i, o in enumerate(history(40))
    ]
    found = shares(Bandit(SEARCH, 6, broken, [])({}, draw("x")))
    assert found["rate"] < 0.6
    nothing = [Observation(1, "m00", o.hyperparameters, None) for o in history(12)]
    assert set(Bandit(SEARCH, 2, nothing, [])({}, draw("x"))) == set(SEARCH)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), rows=st.integers(2, 30), scale=st.floats(1e-6, 1e6))
def test_proposals_stay_inside_and_use_no_global_numbers(seed: int, rows: int, scale: float) -> None:
    past = [Observation(o.generation, o.member, o.hyperparameters, scale * (o.change or 0)) for o in history(rows)]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = Bandit(SEARCH, 9, past, [])({}, draw(seed))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert first == Bandit(SEARCH, 9, past, [])({}, draw(seed))
    assert all(space.low <= first[name] <= space.high for name, space in SEARCH.items())


def observed(rows: int) -> list[Observation]:
    return [
        Observation(1 + i // 8, f"m{i % 8:02d}", initial_values(RUN, "A/B", 1 + i), 0.1 * (i % 5)) for i in range(rows)
    ]


def test_it_perturbs_until_it_has_enough_rows() -> None:
    members = [Standing(f"m{i:02d}", -i, 0.3, -i, initial_values(RUN, "A/B", i)) for i in range(8)]
    perturb = RUN.model_copy(update={"pbt": RUN.pbt.model_copy(update={"explore": "perturb"})})

    def gap(donor: str, member: str) -> Gap:
        return Gap(0.5, 0.2) if member == "m07" else Gap(0.0, 0.2)

    plain = decide(perturb, "A/B", 3, members, gap)
    need = rows_needed(RUN.search)
    assert need == 12
    assert decide(RUN, "A/B", 3, members, gap, observations=observed(need - 1)) == plain
    found = decide(RUN, "A/B", 3, members, gap, observations=observed(need))
    assert found == decide(RUN, "A/B", 3, members[::-1], gap, observations=observed(need))
    assert [d.operation for d in found] == [d.operation for d in plain] == ["keep"] * 6 + ["explore", "exploit"]
    assert [d.values == p.values for d, p in zip(found, plain, strict=True)] == [True] * 6 + [False] * 2
    step = explore(members[6].values, RUN.search, draw(RUN.seed, "A/B", 3, "m06", "exploit"))
    assert found[6].values != step


def test_the_history_is_committed_bounded_and_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Rehearsal(tmp_path, "pbt.explore=pb2", "pbt.iterations=4", "pbt.replace_z=1000")
    started = {name: m.hyperparameters for name, m in stage.population.committed.members.items()}
    stage.play(1.0, 0.5, 0.2, 0.1)
    assert stage.population.committed.observations == (), "the untrained start has no fitness"
    before = {name: m.hyperparameters for name, m in stage.population.committed.members.items()}
    stage.play(1.5, 0.25, -10.0, None)
    rows = stage.population.committed.observations
    assert [(o.generation, o.member, o.change) for o in rows] == [(2, "m00", 0.5), (2, "m01", -0.25), (2, "m02", None)]
    assert [o.hyperparameters for o in rows] == [before[o.member] for o in rows]
    assert before["m00"] == started["m00"]
    monkeypatch.setattr(population, "HISTORY", 5)
    stage.play(1.0, 0.5, 0.2, 0.1)
    latest = stage.population.committed.observations
    assert [(o.generation, o.member) for o in latest] == [(2, "m02"), *((3, f"m0{i}") for i in range(4))]
    taken = {name: stage.rows(2)[name] for name in ("m02", "m03")}
    assert {row["operation"] for row in taken.values()} == {"exploit"}
    gains = {o.member: o.change for o in latest if o.generation == 3}
    scores = dict(zip(("m02", "m03"), (0.2, 0.1), strict=True))
    assert {name: gains[name] for name in taken} == {
        name: scores[name] - row["parent_fitness"] for name, row in taken.items()
    }, "a gain counts from the donor's fitness"


def test_a_gain_is_not_counted_from_a_broken_start(tmp_path: Path) -> None:
    stage = Rehearsal(tmp_path, "pbt.explore=pb2", "pbt.iterations=4")
    stage.play(*[BROKEN] * 4)
    stage.play(1.0, 0.5, 0.2, 0.1)
    assert stage.population.committed.observations == ()
