"""Against the numbers that Bailey and Lopez de Prado print, and against simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, kurtosis, skew

from analysis import sharpe_tests
from analysis.metrics import sharpe
from benchmarks.verdicts import TESTS, rejections


def test_the_deflated_sharpe_ratio_of_the_paper() -> None:
    # "The Deflated Sharpe Ratio" (2014), numerical example: 5 years of days, Sharpe 2.5 per year of 250 days, best of
    # 100 trials whose ratios have variance 1/2 per year, skewness -3, kurtosis 10.
    ratio, variance = 2.5 / math.sqrt(250), 0.5 / 250
    benchmark = sharpe_tests.expected_maximum(100, variance)
    assert benchmark == pytest.approx(0.1132, abs=5e-5)
    assert sharpe_tests.probabilistic_sharpe_ratio(ratio, benchmark, 1250, -3, 10) == pytest.approx(0.9004, abs=5e-5)
    fewer = sharpe_tests.expected_maximum(46, variance)
    assert sharpe_tests.probabilistic_sharpe_ratio(ratio, fewer, 1250, -3, 10) == pytest.approx(0.9505, abs=5e-5)
    normal = sharpe_tests.expected_maximum(88, variance)
    assert sharpe_tests.probabilistic_sharpe_ratio(ratio, normal, 1250) == pytest.approx(0.9505, abs=5e-5)


def test_the_probabilistic_sharpe_ratio_and_track_records_of_the_paper() -> None:
    # "The Sharpe Ratio Efficient Frontier" (2012): 24 months, mean 3.6 %, deviation 7.9 %, skewness -2.448, kurtosis
    # 10.164; and the lengths until a Sharpe ratio of 2 differs from 1.
    ratio = 0.036 / 0.079
    assert sharpe_tests.probabilistic_sharpe_ratio(ratio, 0, 24) == pytest.approx(0.982, abs=1.5e-3)
    assert sharpe_tests.probabilistic_sharpe_ratio(ratio, 0, 24, -2.448, 10.164) == pytest.approx(0.913, abs=5e-4)
    lengths = {(252, 0.0, 3.0): 2.73, (12, 0.0, 3.0): 3.24, (12, -0.72, 5.78): 4.99}
    for (year, skewness, kurt), years in lengths.items():
        found = sharpe_tests.minimum_track_record(2 / math.sqrt(year), 1 / math.sqrt(year), skewness, kurt)
        assert found is not None
        assert found / year == pytest.approx(years, abs=5e-3)
    assert sharpe_tests.minimum_track_record(0.05, 0.05) is None


@given(st.floats(0.005, 0.3), st.floats(-2, 1), st.floats(4, 12))
@settings(deadline=None, max_examples=40)
def test_at_the_minimum_track_record_the_probability_is_the_confidence(ratio: float, skewness: float, kurt: float):
    length = sharpe_tests.minimum_track_record(ratio, 0.0, skewness, kurt)
    assert length is not None
    below, above = (
        sharpe_tests.probabilistic_sharpe_ratio(ratio, 0, n, skewness, kurt)
        for n in (math.floor(length), math.ceil(length) + 1)
    )
    assert below <= 0.95 + 1e-9
    assert above >= 0.95 - 1e-9


def test_moments_are_scipys() -> None:
    returns = np.random.default_rng(0).standard_t(4, 500) * 0.01
    assert sharpe_tests.shape(returns) == pytest.approx((skew(returns), kurtosis(returns, fisher=False)))
    assert sharpe_tests.shape(np.zeros(30)) == (0.0, 3.0)


@pytest.mark.parametrize("trials", [5, 10, 100, 1000])
def test_the_expected_maximum_is_that_of_normal_draws(trials: int) -> None:
    draws = np.random.default_rng(trials).normal(size=(4000, trials)).max(axis=1)
    assert sharpe_tests.expected_maximum(trials, 1.0) == pytest.approx(draws.mean(), abs=0.06)
    assert sharpe_tests.expected_maximum(1, 1.0) == 0.0


def nested(groups: int, size: int, alike: float, sessions: int = 500, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    common = np.repeat(rng.normal(size=(sessions, groups)), size, axis=1)
    return 0.01 * (math.sqrt(alike) * common + math.sqrt(1 - alike) * rng.normal(size=(sessions, groups * size)))


def test_near_copies_are_one_trial() -> None:
    streams = nested(5, 8, 0.9)
    labels = sharpe_tests.clusters(streams)
    assert len(set(labels)) == 5
    assert all(len(set(labels[first : first + 8])) == 1 for first in range(0, 40, 8))
    chosen = sharpe_tests.representatives(streams, labels)
    assert sorted(column // 8 for column in chosen) == [0, 1, 2, 3, 4]
    mirrored = np.concatenate([streams, -streams], axis=1)
    assert sharpe_tests.selection_benchmark(mirrored)[1] == 10  # opposites are no copies
    assert len(set(sharpe_tests.clusters(np.concatenate([streams, np.zeros((500, 3))], axis=1)))) == 6  # idle: one


def test_one_trial_and_exact_copies_deflate_nothing() -> None:
    stream = nested(1, 1, 0.0)
    assert sharpe_tests.selection_benchmark(stream) == (0.0, 1)
    benchmark, effective = sharpe_tests.selection_benchmark(np.repeat(stream, 30, axis=1))
    assert effective == 1
    assert benchmark == pytest.approx(0.0, abs=1e-6)
    one = sharpe_tests.deflated_sharpe_ratio(stream[:, 0], 0.0)
    moments = sharpe_tests.shape(stream[:, 0])
    assert one == sharpe_tests.probabilistic_sharpe_ratio(sharpe(stream[:, 0], 1), 0, 500, *moments)
    assert sharpe_tests.deflated_sharpe_ratio(stream[:19, 0], 0.0) is None
    few, many = (sharpe_tests.selection_benchmark(nested(groups, 1, 0.0))[0] for groups in (3, 60))
    assert 0 < few < many


@pytest.mark.parametrize("which", [test for test in TESTS if "deflated" in test[0]], ids=lambda test: test[0])
def test_without_skill_the_best_of_many_passes_at_most_at_the_nominal_rate(which) -> None:
    _, nominal, test = which
    assert rejections(test, 250) <= binom.ppf(0.999, 250, nominal)


def test_planted_skill_survives_deflation() -> None:
    passed = 0
    for seed in range(40):
        streams = nested(20, 1, 0.0, sessions=1000, seed=seed)
        streams[:, 3] += 0.01 * 0.2  # Sharpe 3.2 per year among 20 trials
        benchmark, _ = sharpe_tests.selection_benchmark(streams)
        passed += (sharpe_tests.deflated_sharpe_ratio(streams[:, 3], benchmark) or 0) >= 0.95
    assert passed >= 36
