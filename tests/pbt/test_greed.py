"""Arms, reference, frequencies and drops: what a barrier decides, case by case and in general."""

import dataclasses
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from pbt.decisions import decide
from pbt.fitness import BROKEN, Gap
from pbt.groups import deal
from pbt.manifest import Peak
from pbt.search import initial_values
from pbt.standings import LOST, Decision, Standing
from rayconf import RunConfig, UserError, load_config
from rayconf.sections import PBTConfig

REAL, NOISE = Gap(0.5, 0.2), Gap(0.1, 0.2)


def configured(*assignments: str) -> RunConfig:
    return load_config("demo", assignments=["seed=3", *assignments])


def standings(run: RunConfig, scores: list[float], idle: tuple[int, ...] = ()) -> list[Standing]:
    return [
        Standing(f"m{i:02d}", score, 0.3, score, initial_values(run, "A/B", i), i in idle)
        for i, score in enumerate(scores)
    ]


def decided(
    run: RunConfig, members: list[Standing], generation: int = 1, gap: Gap = REAL, fall: Gap | None = None
) -> dict[str, Decision]:
    found = decide(run, "A/B", generation, members, lambda d, m: gap, fall=lambda m: fall)
    return {decision.member: decision for decision in found}


def operations(found: dict[str, Decision]) -> list[str]:
    return [found[member].operation for member in sorted(found)]


# --- arms and reference


@pytest.mark.parametrize("arm", ["random", "fixed"])
def test_arms_without_selection_keep_everything(arm: str) -> None:
    run = configured(f"pbt.arm={arm}", "pbt.on_drop=rollback")
    members = standings(run, [8, BROKEN, 6, 5, 4, 3, 2, 1])
    found = decided(run, members, fall=REAL)
    assert operations(found) == ["keep"] * 8
    assert [found[s.member].values for s in members] == [s.values for s in members]
    own = initial_values(run, "A/B", 0)
    assert [s.values == own for s in members] == [arm == "fixed" or i == 0 for i in range(8)]


def test_the_worst_reference_is_left_alone_and_the_bottom_lies_among_the_others() -> None:
    run = configured()
    assert operations(decided(run, standings(run, [1, 8, 7, 6, 5, 4, 3, 2]))) == ["keep"] * 6 + ["exploit"] * 2
    without = configured("pbt.reference=false")
    found = decided(without, standings(without, [1, 8, 7, 6, 5, 4, 3, 2]))
    assert operations(found) == ["exploit"] + ["keep"] * 6 + ["exploit"]


def test_a_broken_reference_starts_over_and_a_good_one_is_donor() -> None:
    run = configured()
    found = decided(run, standings(run, [BROKEN, 8, 7, 6, 5, 4, 3, 2]))
    assert (found["m00"].operation, found["m00"].parent) == ("lost", "m00")
    pair = standings(configured("pbt.population=2"), [2, 1])
    found = decided(run, pair)
    assert (found["m00"].operation, found["m01"].operation, found["m01"].parent) == ("keep", "exploit", "m00")
    assert operations(decided(run, standings(run, [1, 2]))) == ["keep", "keep"]
    assert operations(decided(run, standings(run, [1]))) == ["keep"]


def test_a_lost_member_without_donor_says_so() -> None:
    run = configured()
    found = decided(run, standings(run, [1, LOST, BROKEN, LOST]))
    assert operations(found) == ["keep", "exploit", "exploit", "exploit"]
    found = decided(run, standings(run, [BROKEN, LOST, BROKEN, LOST]))
    assert operations(found) == ["lost", "lost", "lost", "lost"]


# --- frequencies


def test_members_are_dealt_in_turn_and_slow_groups_wait() -> None:
    run = configured("pbt.population=9", "pbt.frequencies=[1, 3]", "pbt.iterations=30")
    members = standings(run, [9, 8, 7, 6, 5, 4, 3, 2, 1])
    groups, reference = deal(run, members)
    assert [[s.member for s in group.ranked] for group in groups] == [
        ["m01", "m03", "m05", "m07"],
        ["m02", "m04", "m06", "m08"],
    ]
    assert reference == members[0]
    early = decided(run, members, generation=2)
    assert [m for m in early if early[m].operation != "keep"] == ["m05", "m07"]
    due = decided(run, members, generation=3)
    assert {m for m in due if due[m].operation != "keep"} == {"m05", "m06", "m07", "m08"}
    assert due["m07"].operation == due["m08"].operation == "exploit"


def test_migration_is_asymmetric() -> None:
    run = configured("pbt.population=9", "pbt.frequencies=[1, 3]", "pbt.iterations=30")
    # Groups m01 m03 m05 m07 and m02 m04 m06 m08; above the bottom of each stands the one that outsiders challenge.
    slow_leads = decided(run, standings(run, [0, 4, 9, 3, 8, 2, 7, 1, 6]), generation=3)
    taken = slow_leads["m05"]
    assert (taken.operation, taken.parent, taken.copied) == ("migrate", "m02", "all")
    assert taken.values == initial_values(run, "A/B", 2)
    assert slow_leads["m06"].operation == "keep", "no outsider is better"

    fast_leads = decided(run, standings(run, [0, 9, 4, 8, 3, 7, 2, 6, 1]), generation=3)
    taken = fast_leads["m06"]
    assert (taken.operation, taken.parent, taken.copied) == ("migrate", "m01", "weights")
    assert taken.values == initial_values(run, "A/B", 2), "the best of its own group"
    assert fast_leads["m05"].operation == "keep"

    noise = decided(run, standings(run, [0, 4, 9, 3, 8, 2, 7, 1, 6]), generation=3, gap=NOISE)
    assert noise["m05"].operation == "keep"


def test_migrants_are_taken_once_and_never_idle() -> None:
    run = configured("pbt.population=16", "pbt.frequencies=[1, 2]", "pbt.reference=false")
    fast_best = [20.0 - i if i % 2 == 0 else 5.0 - i for i in range(16)]
    found = decided(run, standings(run, fast_best), generation=2)
    migrants = [d.parent for d in found.values() if d.operation == "migrate"]
    assert migrants == ["m00", "m02"]
    found = decided(run, standings(run, fast_best, idle=(0,)), generation=2)
    assert [d.parent for d in found.values() if d.operation == "migrate"] == ["m02", "m04"]


def test_in_groups_of_two_the_worst_meets_outsiders_first() -> None:
    run = configured("pbt.population=5", "pbt.frequencies=[1, 2]")
    found = decided(run, standings(run, [0, 2, 9, 1, 8]), generation=1)
    assert operations(found) == ["keep", "keep", "keep", "migrate", "keep"]
    assert found["m03"].parent == "m02"
    gaps: Callable[[str, str], Gap] = lambda d, m: NOISE if d == "m02" else REAL  # noqa: E731
    found = {d.member: d for d in decide(run, "A/B", 1, standings(run, [0, 2, 9, 1, 8]), gaps)}
    assert (found["m03"].operation, found["m03"].parent) == ("exploit", "m01")


def test_a_group_without_donor_takes_in_outsiders() -> None:
    run = configured("pbt.population=5", "pbt.frequencies=[1, 2]")
    found = decided(run, standings(run, [BROKEN, BROKEN, 9, BROKEN, 8]), generation=1)
    assert [(found[m].operation, found[m].parent) for m in ("m01", "m03")] == [("migrate", "m02"), ("migrate", "m04")]


@pytest.mark.parametrize("frequencies", ["[]", "[2, 1]", "[1, 1]", "[0, 1]", "[1, 2, 4, 8]"])
def test_impossible_frequencies_are_refused(frequencies: str) -> None:
    with pytest.raises(UserError, match="frequencies"):
        configured(f"pbt.frequencies={frequencies}")


def test_two_members_a_group_are_enough() -> None:
    assert PBTConfig(population=8, frequencies=(1, 2, 4, 8), reference=False).frequencies == (1, 2, 4, 8)
    with pytest.raises(ValidationError, match="7 to deal beside the reference"):
        PBTConfig(population=8, frequencies=(1, 2, 4, 8))


# --- drops


def with_peaks(run: RunConfig, scores: list[float], peak: float) -> list[Standing]:
    old = Peak("0" * 16, "m05", 1, peak, 1)
    return [dataclasses.replace(s, peak=old) for s in standings(run, scores)]


def test_a_fall_rolls_back_or_freezes_whom_nobody_replaced() -> None:
    scores = [4.0, 8, 7, 6, 5, 3, 2, 1]
    for mode in ("rollback", "freeze"):
        run = configured(f"pbt.on_drop={mode}")
        members = with_peaks(run, scores, 5.5)
        found = decided(run, members, generation=2, fall=REAL)
        assert operations(found) == ["keep"] * 4 + [mode] * 2 + ["exploit"] * 2
        fallen = found["m04"]
        assert fallen.gap == REAL
        assert fallen.parent_fitness == 5.5
        assert fallen.parent == ("m05" if mode == "rollback" else "m04")
        assert fallen.copied == ("weights" if mode == "rollback" else "none")
        assert (fallen.values == members[4].values) == (mode == "freeze")
        shut = decided(run, members, generation=2, fall=NOISE)
        assert operations(shut) == ["keep"] * 6 + ["exploit"] * 2
        assert operations(decided(configured(), members, generation=2, fall=REAL)) == operations(shut)


def test_a_broken_member_without_donor_goes_back_to_its_peak() -> None:
    run = configured("pbt.on_drop=rollback")
    found = decided(run, with_peaks(run, [BROKEN] * 3 + [LOST], 1.0), generation=2)
    assert operations(found) == ["lost", "rollback", "rollback", "lost"]
    frozen = configured("pbt.on_drop=freeze")
    assert operations(decided(frozen, with_peaks(frozen, [BROKEN] * 3, 1.0), generation=2))[1:] == ["lost"] * 2


# --- in general

FITNESS = st.one_of(st.floats(-3, 3), st.sampled_from([BROKEN, LOST, 0.0]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    scores=st.lists(FITNESS, min_size=8, max_size=14),
    data=st.data(),
    frequencies=st.sampled_from(["[1]", "[1, 2]", "[1, 2, 3]"]),
    drop=st.sampled_from(["none", "rollback", "freeze"]),
    arm=st.sampled_from(["pbt", "pbt", "random", "fixed"]),
    reference=st.booleans(),
    quantile=st.sampled_from([0.1, 0.25, 0.5]),
)
def test_every_barrier_keeps_the_rules(
    scores: list[float],
    data: st.DataObject,
    frequencies: str,
    drop: str,
    arm: str,
    reference: bool,
    quantile: float,
) -> None:
    run = configured(
        f"pbt.population={len(scores)}",
        f"pbt.frequencies={frequencies}",
        f"pbt.on_drop={drop}",
        f"pbt.arm={arm}",
        f"pbt.reference={reference}",
        f"pbt.quantile={quantile}",
    )
    idle = tuple(data.draw(st.sets(st.integers(0, len(scores) - 1), max_size=4)))
    peak = Peak("0" * 16, "m05", 1, data.draw(st.floats(-1, 1)), 1)
    members = [dataclasses.replace(s, peak=peak) for s in standings(run, scores, idle)]
    generation = data.draw(st.integers(1, run.pbt.generations))
    shuffled = data.draw(st.permutations(members))

    def gap(donor: str, member: str) -> Gap:
        assert by_name[donor].eligible
        assert not by_name[member].broken
        return Gap(by_name[donor].fitness - by_name[member].fitness, 0.4)

    def fall(member: str) -> Gap:
        return Gap(peak.fitness - by_name[member].fitness, 0.4)

    by_name = {s.member: s for s in members}
    found = decide(run, "A/B", generation, members, gap, fall=fall)
    assert found == decide(run, "A/B", generation, shuffled, gap, fall=fall)
    assert [d.member for d in found] == sorted(by_name)
    for d in found:
        assert d.parent in by_name
        for name, space in run.search.items():
            assert space.low <= d.values[name] <= space.high
        if d.parent != d.member and d.operation != "rollback":
            assert by_name[d.parent].eligible
            assert d.operation in ("exploit", "migrate")
        if d.operation in ("keep", "freeze", "stop"):
            assert d.values == by_name[d.member].values
        if arm != "pbt":
            assert d.operation in ("keep", "stop", "lost")
            assert d.values == by_name[d.member].values
    if arm == "pbt" and reference:
        assert (found[0].parent, found[0].copied, found[0].values) == ("m00", "none", members[0].values)
