"""Windows of a walk-forward: where they lie, what they may know, and what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from envs.bars import Bars
from envs.market import build_market, load_legs, load_markets, split_borders, split_spans
from envs.walk_forward import dated, load_windows, window_runs
from rayconf import RunConfig, UserError
from rayconf.loading import build_config
from tests.envs.conftest import weekday_dates

PAIR = "SYNA/SYNB"


def walked(starts: object = 3, **split: Any) -> RunConfig:
    fields = {"walk_forward": starts, "walk_validation": 150, **split}
    return build_config(
        {
            "data": {"pairs": [PAIR]},
            "synthetic": {"bars": 1600},
            "split": fields,
            "pbt": {"window": 63},
            "seed": 7,
        }
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    bars=st.integers(1200, 4000),
    late=st.integers(0, 900),
    places=st.lists(st.floats(0.3, 0.97), min_size=1, max_size=6),
    validation=st.integers(30, 300),
    embargo=st.integers(0, 40),
)
def test_windows_expand_and_their_tests_follow_one_another(
    bars: int, late: int, places: list[float], validation: int, embargo: int
) -> None:
    """Of any pair on the run's borders: nothing of a window's test is in what it learns from or chooses by."""
    dates = weekday_dates(bars)
    starts = sorted({int(place * bars) for place in places})
    assume(starts[0] > validation + 100)
    days = [str(dates[start])[:10] for start in starts]
    run = walked(days, walk_validation=validation, burn=100)
    own, ends, before = dates[late:], [], None
    for number, window in enumerate(window_runs(run, PAIR, dates)):
        splits = split_spans(own, split_borders(PAIR, dates, window.split), window.split.burn, embargo)
        seen = {name: set(range(span.start, span.stop)) for name, span in splits.items()}
        assert not seen["test"] & (seen["train"] | seen["validation"])
        assert not seen["train"] & seen["validation"]
        test = splits["test"]
        border = int(np.searchsorted(own, dates[starts[number]]))
        assert test.start == border + embargo
        assert max(seen["train"] | seen["validation"], default=-1) < border
        assert splits["train"].start == window.split.burn
        if before is not None:
            assert splits["train"].stop >= before["train"].stop
            # Every bar of a test is of one test alone, and the embargo alone lies between them.
            assert border == before["test"].stop
        # Counted in the longest pair's bars.
        whole = split_spans(dates, split_borders(PAIR, dates, window.split), window.split.burn, 0)
        assert whole["validation"].stop - whole["validation"].start == validation
        before, ends = splits, [*ends, test.stop]
    assert ends[-1] == len(own)


def test_a_whole_number_deals_the_last_part_into_equal_tests() -> None:
    run = dated(walked(3))
    assert dated(run) == run
    windows = load_windows(run)
    (market,) = load_markets(walked(())).values()
    first = 252 + int((1600 - 252) * 0.6)
    places = [int(np.searchsorted(market.dates, np.datetime64(start))) for start in run.split.walk_forward]
    assert places[0] == first
    sizes = np.diff([*places, 1600])
    assert sizes.max() - sizes.min() <= 1
    assert [walk.number for walk in windows] == [1, 2, 3]
    assert build_config(run.model_dump(mode="json")) == run


def test_a_window_is_an_ordinary_run() -> None:
    """Its config alone gives its market, to the bit; its seed is its own."""
    windows = load_windows(dated(walked(3)))
    assert len({walk.run.seed for walk in windows} | {7}) == 4
    for walk in windows:
        ordinary = build_config(walk.run.model_dump(mode="json"))
        assert ordinary == walk.run
        again, here = load_markets(ordinary)[PAIR], walk.markets[PAIR]
        assert again.splits == here.splits
        assert again.scaler.to_json() == here.scaler.to_json()
        np.testing.assert_array_equal(again.features, here.features)


def changed_from(legs: Mapping[str, tuple[Bars, Bars]], bar: int) -> dict[str, tuple[Bars, Bars]]:
    """Other prices from a bar on."""
    rng = np.random.default_rng(1)
    found = {}
    for pair, both in legs.items():
        bent = []
        for leg in both:
            factor = np.ones(len(leg.close))
            factor[bar:] = np.exp(np.cumsum(0.05 * rng.standard_normal(len(factor) - bar)))
            prices = {name: getattr(leg, name) * factor for name in ("open", "high", "low", "close")}
            bent.append(replace(leg, **prices))
        found[pair] = (bent[0], bent[1])
    return found


@pytest.mark.parametrize("number", [1, 2, 3])
def test_prices_from_a_test_on_change_nothing_that_its_window_learns_from(number: int) -> None:
    run = dated(walked(3))
    walk = load_windows(run)[number - 1]
    before = walk.markets[PAIR]
    border = int(np.searchsorted(before.dates, np.datetime64(str(walk.run.split.test_start))))
    after = load_markets(walk.run, legs=changed_from(load_legs(run), border))[PAIR]
    assert after.splits == before.splits
    assert after.scaler.to_json() == before.scaler.to_json()
    assert after.equal_weight_sd == before.equal_weight_sd
    for name in ("features", "fill", "close"):
        old, new = getattr(before, name), getattr(after, name)
        np.testing.assert_array_equal(old[:border], new[:border])
        assert not np.array_equal(old[border:], new[border:])
    # One bar earlier is the last that validation knows: the same change there shows.
    late = load_markets(walk.run, legs=changed_from(load_legs(run), border - 1))[PAIR]
    assert not np.array_equal(late.close[:border], before.close[:border])


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"starts": "1779-06-01,1779-01-01"}, "walk_forward: dates must rise, but 1779-01-01 follows 1779-06-01"),
        ({"starts": "1779-06-01,1779-06-01"}, "walk_forward: dates must rise"),
        ({"starts": "soon"}, "list ISO dates, e.g. 2010-01-01,2013-01-01, or give one whole number"),
        ({"starts": "0"}, "walk_forward: 0 windows; give 1 to 99"),
        ({"starts": "2010"}, "walk_forward: 2010 windows; give 1 to 99, or dates as 2010-01-01"),
        (
            {"starts": "1779-01-01", "validation_start": "1778-01-01", "test_start": "1779-01-01"},
            "walk_forward makes its own borders; leave validation_start and test_start out",
        ),
        ({"test_end": "1779-01-01"}, "test_end needs validation_start and test_start"),
        ({"starts": "90"}, r"window 1 \(test from 1779-01-25\): SYNA/SYNB: .* test has -?\d+ bars .* needs 21"),
        ({"starts": "1776-06-01"}, "window 1: SYNA/SYNB has 370 bars before 1776-06-01, no more than 252 of"),
        ({"starts": "1777-06-01"}, r"window 1 \(test from 1777-06-01\): SYNA/SYNB: .* train has \d+ bars"),
        (
            {"starts": "1779-01-01,1780-01-01", "walk_validation": 70},
            r"window 1 \(test from 1779-01-01\): SYNA/SYNB: .* validation has 48 sessions .* needs 63",
        ),
        ({"starts": "1779-01-01,1781-02-10"}, r"window 2 \(test from 1781-02-10\): SYNA/SYNB: .* test has 0 bars"),
        ({"starts": "1779-01-01,1779-01-20"}, r"window 1 \(test from 1779-01-01\): .* test has 0 bars"),
    ],
)
def test_what_cannot_be_is_refused(split: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_windows(dated(walked(**{"starts": (), **split})))


def test_an_ordinary_run_may_end_its_test_early() -> None:
    legs = load_legs(walked(()))[PAIR]
    dates = {"validation_start": "1778-06-01", "test_start": "1779-01-01", "test_end": "1780-01-03"}
    run = walked((), **dates)
    market = build_market(PAIR, *legs, run)
    test = market.splits["test"]
    assert str(market.dates[test.stop])[:10] == "1780-01-03"
    with pytest.raises(UserError, match=r"test_start: 1779-01-01 must lie before split\.test_end 1779-01-01"):
        build_market(PAIR, *legs, walked((), **{**dates, "test_end": "1779-01-01"}))
    with pytest.raises(UserError, match=r"split\.test_end: 'late' is no ISO date"):
        build_market(PAIR, *legs, walked((), **{**dates, "test_end": "late"}))
