"""Drift and shifts: against hand-computed values and an independent library, on planted changes and on none."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.tsa.arima_process import arma_generate_sample

from analysis.drift import independent, kolmogorov_smirnov, level_shifts, stability_index


def test_stability_index_by_hand() -> None:
    reference = np.arange(1000.0)
    assert stability_index(reference, reference) == 0
    lower_half = np.arange(500.0)
    # Ten equal bins of .1; the sample has .2 in five of them and, by the floor, 1e-4 in the others.
    expected = 5 * (0.2 - 0.1) * np.log(2) + 5 * (1e-4 - 0.1) * np.log(1e-3)
    assert stability_index(reference, lower_half) == pytest.approx(expected, rel=0.02)
    assert stability_index(np.zeros(50), np.zeros(20)) == 0  # a feature that never moves


def test_distance_is_scipys_and_its_p_value_counts_independent_values() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal(800), rng.standard_normal(500) + 0.15
    distance, p_value = kolmogorov_smirnov(a, b)
    known = stats.ks_2samp(a, b, method="asymp")
    assert distance == known.statistic
    assert p_value == pytest.approx(known.pvalue, abs=0.05)
    repeated = kolmogorov_smirnov(np.repeat(a, 20), np.repeat(b, 20))
    assert repeated[0] == pytest.approx(distance)
    assert repeated[1] > 1e3 * stats.ks_2samp(np.repeat(a, 20), np.repeat(b, 20), method="asymp").pvalue


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_independent_values_of_an_autoregression(phi: float) -> None:
    rng = np.random.default_rng(2)
    draws = [arma_generate_sample([1, -phi], [1], 4000, distrvs=rng.standard_normal) for _ in range(20)]
    # The long-run variance of an AR(1) is its variance times (1 + phi) / (1 - phi).
    assert np.median([independent(x) for x in draws]) / 4000 == pytest.approx((1 - phi) / (1 + phi), rel=0.2)


def test_planted_shifts_are_found_and_noise_has_few() -> None:
    rng = np.random.default_rng(3)
    noise = arma_generate_sample([1, -0.5], [1], 3000, distrvs=rng.standard_normal)
    planted = noise + np.where(np.arange(3000) < 1200, 0.0, 2.0) - np.where(np.arange(3000) < 2300, 0.0, 3.0)
    first, second = level_shifts(planted, least=126)
    assert abs(first.index - 1200) < 20
    assert abs(second.index - 2300) < 20
    assert second.before - first.before == pytest.approx(2, abs=0.3)
    assert second.after - second.before == pytest.approx(-3, abs=0.3)
    quiet = [arma_generate_sample([1, -0.5], [1], 1500, distrvs=rng.standard_normal) for _ in range(200)]
    assert sum(bool(level_shifts(x, least=126)) for x in quiet) <= 10  # 2 expected at 1 %


def test_series_that_never_move_or_are_short_have_no_shift() -> None:
    assert level_shifts(np.zeros(1000), least=100) == []
    assert level_shifts(np.r_[np.zeros(50), np.ones(50)], least=60) == []
    (step,) = level_shifts(np.r_[np.zeros(300), np.ones(300)], least=100)
    assert (step.index, step.before, step.after) == (300, 0, 1)
