"""Barrier decisions: bounds, gate, edge cases, and dependence on nothing but their inputs."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pbt.decisions import Decision, Standing, decide
from pbt.fitness import BROKEN, Gap
from pbt.search import draw, explore, initial_values
from rayconf import load_config
from rayconf.search import Range

RUN = load_config("demo", assignments=["seed=3"])
REAL, NOISE = Gap(0.5, 0.2), Gap(0.1, 0.2)


def population(scores: list[float], idle: tuple[int, ...] = ()) -> list[Standing]:
    return [
        Standing(f"m{i:02d}", score, 0.3, score, initial_values(RUN, "A/B", i), i in idle)
        for i, score in enumerate(scores)
    ]


def by_member(decisions: list[Decision]) -> dict[str, Decision]:
    return {decision.member: decision for decision in decisions}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(key=st.integers(), share=st.dictionaries(st.sampled_from(sorted(RUN.search)), st.floats(0, 1)))
def test_explore_stays_in_bounds_and_within_one_step(key: int, share: dict[str, float]) -> None:
    values = {name: space.low * (space.high / space.low) ** share.get(name, 0.5) for name, space in RUN.search.items()}
    moved = explore(values, RUN.search, draw(key))
    for name, space in RUN.search.items():
        assert space.low <= moved[name] <= space.high
        assert moved[name] <= values[name] * space.step * (1 + 1e-12)
        assert moved[name] >= values[name] / space.step * (1 - 1e-12)


def test_explore_on_a_linear_scale_adds() -> None:
    space = Range(path="ppo.gamma", low=0.0, high=1.0, scale="linear", step=0.1)
    moved = [explore({"x": 0.5}, {"x": space}, draw(i))["x"] for i in range(200)]
    assert 0.4 <= min(moved) < 0.42
    assert 0.58 < max(moved) <= 0.6


def test_initial_values_are_drawn_inside_the_space_and_keyed() -> None:
    first = initial_values(RUN, "A/B", 0)
    assert first["learning_rate"] == RUN.optimizer.learning_rate
    others = [initial_values(RUN, "A/B", i) for i in range(1, 8)]
    assert others == [initial_values(RUN, "A/B", i) for i in range(1, 8)]
    assert len({values["learning_rate"] for values in others}) == 7
    assert initial_values(RUN, "A/B", 1) != initial_values(RUN, "C/D", 1)
    assert all(RUN.search[n].low <= v <= RUN.search[n].high for values in others for n, v in values.items())


def test_the_bottom_takes_over_a_donor_when_the_gap_is_real() -> None:
    found = by_member(decide(RUN, "A/B", 1, population([8, 7, 6, 5, 4, 3, 2, 1]), lambda d, m: REAL))
    assert [found[m].operation for m in sorted(found)] == ["keep"] * 6 + ["exploit"] * 2
    for member in ("m06", "m07"):
        assert found[member].parent in ("m00", "m01")
        assert found[member].gap == REAL
        donor = initial_values(RUN, "A/B", int(found[member].parent[1:]))
        assert found[member].values != donor
        for name, space in RUN.search.items():
            assert found[member].values[name] <= min(space.high, donor[name] * space.step) * (1 + 1e-12)


def test_where_the_gate_is_shut_only_hyperparameters_move() -> None:
    found = by_member(decide(RUN, "A/B", 1, population([8, 7, 6, 5, 4, 3, 2, 1]), lambda d, m: NOISE))
    for member in ("m06", "m07"):
        assert found[member].operation == "explore"
        assert found[member].parent == member
        assert found[member].values != initial_values(RUN, "A/B", int(member[1:]))
        assert found[member].gap == NOISE


def test_broken_members_are_replaced_without_gate_wherever_they_rank() -> None:
    def gap(donor: str, member: str) -> Gap:
        assert member != "m01", "a broken member has no returns to pair"
        return NOISE

    found = by_member(decide(RUN, "A/B", 1, population([8, BROKEN, 6, 5, 4, 3, 2, 1]), gap))
    assert found["m01"].operation == "exploit"
    assert found["m01"].gap is None


def test_idle_and_broken_members_are_never_donors() -> None:
    scores = population([8, 7, 6, 5, 4, 3, 2, 1], idle=(0,))
    donors = {by_member(decide(RUN, "A/B", g, scores, lambda d, m: REAL))["m07"].parent for g in range(1, 7)}
    assert donors == {"m01"}
    nobody = decide(RUN, "A/B", 1, population([BROKEN] * 8), lambda d, m: REAL)
    assert [d.operation for d in nobody] == ["lost"] * 8


def test_ties_are_broken_by_member_and_order_of_input_is_irrelevant() -> None:
    scores = population([1.0] * 8)
    first = decide(RUN, "A/B", 2, scores, lambda d, m: REAL)
    assert decide(RUN, "A/B", 2, scores[::-1], lambda d, m: REAL) == first
    assert [d.operation for d in first] == ["keep"] * 6 + ["exploit"] * 2


def test_decisions_depend_on_seed_pair_and_generation() -> None:
    scores = population([8, 7, 6, 5, 4, 3, 2, 1])
    other_seed = RUN.model_copy(update={"seed": 4})
    base = decide(RUN, "A/B", 1, scores, lambda d, m: REAL)
    assert base == decide(RUN, "A/B", 1, scores, lambda d, m: REAL)
    for variant in (
        decide(other_seed, "A/B", 1, scores, lambda d, m: REAL),
        decide(RUN, "C/D", 1, scores, lambda d, m: REAL),
        decide(RUN, "A/B", 2, scores, lambda d, m: REAL),
    ):
        assert by_member(variant)["m07"].values != by_member(base)["m07"].values


def test_the_last_generation_stops_everybody() -> None:
    found = decide(RUN, "A/B", RUN.pbt.generations, population([8, 7, 6, 5, 4, 3, 2, 1]), lambda d, m: REAL)
    assert {d.operation for d in found} == {"stop"}


@pytest.mark.parametrize(("size", "moving"), [(1, 0), (2, 1), (3, 1), (4, 1), (8, 2)])
def test_the_bottom_never_overlaps_the_top(size: int, moving: int) -> None:
    scores = population([float(-i) for i in range(size)])
    found = decide(RUN, "A/B", 1, scores, lambda d, m: REAL)
    assert sum(d.operation == "exploit" for d in found) == moving


def test_zero_z_takes_every_positive_gap() -> None:
    smoke = load_config("smoke")
    assert smoke.pbt.replace_z == 0
    assert Gap(1e-6, 0.5).exceeds(smoke.pbt.replace_z)
    assert not Gap(-1e-6, 0.5).exceeds(smoke.pbt.replace_z)
