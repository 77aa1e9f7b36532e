import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, wilcoxon

from analysis import paired
from analysis.metrics import sharpe
from analysis.power import planned_power
from analysis.verdict import holm
from benchmarks.verdicts import TESTS, rejections

RNG = np.random.default_rng(4)


def accounts(size: int, seed: int, alike: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    market = rng.standard_t(5, size) * 0.01
    return market + 4e-4, alike * market + rng.standard_t(6, size) * 0.006 + 2e-4


def influence(returns: np.ndarray) -> np.ndarray:
    z, ratio = (returns - returns.mean()) / returns.std(), returns.mean() / returns.std()
    return z - ratio / 2 * (z**2 - 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_standard_error_is_that_of_the_influence_functions(seed: int) -> None:
    first, second = accounts(300, seed)
    first = first + 0.01 * seed  # also where the ratios are large
    (x, a), (y, b) = paired._standardised(first), paired._standardised(second)
    index = np.random.default_rng(seed).integers(0, 300, 300)
    for rows in (np.arange(300), index):
        means = paired._moments(x[rows], y[rows]).mean(axis=0, keepdims=True)
        point, variance, _ = paired._differences(y, a, b, means)
        assert point[0] == pytest.approx(sharpe(first[rows], 1) - sharpe(second[rows], 1))
        assert variance[0] == pytest.approx(np.var(influence(first[rows]) - influence(second[rows])), rel=1e-6)
        alone = paired._differences(np.zeros(300), a, 0.0, means)
        assert alone[1][0] == pytest.approx(np.var(influence(first[rows])), rel=1e-6)


@given(st.integers(0, 10_000), st.floats(0.1, 3), st.integers(20, 120))
@settings(deadline=None, max_examples=30)
def test_interval_and_p_value_agree_and_turn_with_the_sign(seed: int, leverage: float, size: int) -> None:
    first, second = accounts(size, seed)
    found = paired.sharpe_difference(first, second, resamples=199)
    assert found.value == pytest.approx(sharpe(first) - sharpe(second))
    assert found.low is not None
    assert found.p is not None
    assert found.low <= found.value <= (found.high or 0)
    assert found.noise == (found.p > 0.05)
    turned = paired.sharpe_difference(second, leverage * first, resamples=199)  # nor does leverage change anything
    assert (turned.low, turned.p) == (pytest.approx(-(found.high or 0), abs=1e-6), found.p)
    cash = paired.sharpe_difference(np.zeros(size), first, resamples=199)
    alone = paired.sharpe_difference(first, np.zeros(size), resamples=199)
    assert (cash.value, cash.p) == (-alone.value, alone.p)


@pytest.mark.parametrize("which", [test for test in TESTS if "paired" in test[0]], ids=lambda test: test[0])
def test_equal_accounts_are_told_apart_at_the_nominal_rate(which) -> None:
    _, nominal, test = which
    found = rejections(test, 300)
    assert binom.ppf(0.001, 300, nominal * 0.8) <= found <= binom.ppf(0.999, 300, nominal * 1.2)


def test_a_planted_difference_is_found_as_often_as_planned() -> None:
    rng, found, draws = np.random.default_rng(8), 0, 300
    matrix = np.linalg.cholesky(np.array([[1, 0.9], [0.9, 1]]))
    for _ in range(draws):
        streams = rng.normal(size=(1000, 2)) @ matrix.T + np.array([0.85, 0.2]) / np.sqrt(252)
        found += paired.sharpe_difference(streams[:, 0], streams[:, 1], resamples=299).p_above <= 0.05
    planned = planned_power(0.65, 1000, correlation=0.9, other=0.2)
    assert 0.7 < planned < 0.95
    assert binom.ppf(0.001, draws, planned - 0.02) <= found <= binom.ppf(0.999, draws, planned + 0.02)


def test_pairing_narrows_the_difference_of_like_accounts() -> None:
    market = RNG.normal(4e-4, 0.01, 800)
    like = paired.sharpe_difference(market + RNG.normal(0, 0.001, 800), market)
    alone = paired.sharpe_difference(market, np.zeros(800))
    assert like.high - like.low < 0.3 * (alone.high - alone.low)


def test_edges() -> None:
    market = RNG.normal(4e-4, 0.01, 300)
    same = paired.sharpe_difference(market, 0.5 * market)
    assert (same.low, same.high, same.p) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9), 1.0)
    assert paired.sharpe_difference(np.zeros(30), np.zeros(30)) == paired.Difference(0.0, 0.0, 0.0, 1.0)
    assert paired.sharpe_difference(market[:19], np.zeros(19)).low is None
    with pytest.raises(ValueError, match="cannot be paired"):
        paired.sharpe_difference(np.zeros(30), np.zeros(31))
    once = np.zeros(300)
    once[5] = 0.01  # one session that moves allows no comparison
    assert paired.sharpe_difference(once, np.zeros(300)).noise
    assert paired.sharpe_difference(market, np.zeros(300)) == paired.sharpe_difference(market, np.zeros(300))


def test_policies_among_each_other_are_adjusted_together() -> None:
    base = RNG.normal(0, 0.01, 500)
    streams = {name: base + RNG.normal(shift, 0.004, 500) for name, shift in (("a", 0.0), ("b", 0.0), ("c", 3e-3))}
    found = paired.between_policies(streams, resamples=499)
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    raw = [paired.sharpe_difference(streams[one], streams[two], resamples=499).p for one, two in found]
    assert [difference.p for difference in found.values()] == holm(raw)
    assert found["a", "c"].high < 0


def test_holm_and_looks() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03], [1, 2, 3]) == pytest.approx([0.03, 0.12, 0.18])
    assert holm([0.4], [3]) == [1.0]
    assert holm([]) == []


def test_seeds_are_compared_in_pairs() -> None:
    rng = np.random.default_rng(2)
    seeds = rng.normal(0, 1, 12)  # what a seed does to both arms is far larger than the gain
    gained = seeds + 0.3 + rng.normal(0, 0.1, 12)
    found = paired.between_seeds(gained, seeds)
    assert found.permutation_p == pytest.approx(2 / 2**12)
    assert found.wilcoxon_p == wilcoxon(gained - seeds).pvalue
    assert found.low < 0.3 < found.high
    few = paired.between_seeds(gained[:4], seeds[:4])
    assert (few.low, few.permutation_p) == (None, 2 / 2**4)  # four seeds cannot say more
    assert paired.between_seeds([1.0], [1.0]).permutation_p == 1.0
    with pytest.raises(ValueError, match="seeds"):
        paired.between_seeds([], [])
    null = [paired.between_seeds(rng.normal(size=8), rng.normal(size=8)) for _ in range(300)]
    for name in ("permutation_p", "wilcoxon_p"):
        assert sum(getattr(one, name) <= 0.05 for one in null) <= binom.ppf(0.999, 300, 0.05)
    covered = sum(one.low <= 0 <= one.high for one in null)
    assert covered >= binom.ppf(0.001, 300, 0.95)
