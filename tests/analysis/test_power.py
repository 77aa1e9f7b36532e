import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.power import detectable_difference, difference_covariance, planned_claim_power, planned_power


def test_the_covariance_is_that_of_simulated_estimates() -> None:
    correlations = np.array([[1, 0.8, 0.5], [0.8, 1, 0.6], [0.5, 0.6, 1]])
    ratios, sessions = np.array([0.4, 0.1, -0.3]), 400
    draws = np.random.default_rng(0).normal(size=(3000, sessions, 3)) @ np.linalg.cholesky(correlations).T + ratios
    estimates = draws.mean(axis=1) / draws.std(axis=1)
    differences = estimates[:, :1] - estimates[:, 1:]
    expected = difference_covariance(0.4, [0.1, -0.3], correlations)
    assert np.cov(differences.T) * sessions == pytest.approx(expected, rel=0.08)
    # Against cash it is the variance of the ratio alone (Lo 2002): 1 + S^2 / 2.
    cash = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert difference_covariance(0.4, [0.0], cash)[0, 0] == pytest.approx(1 + 0.4**2 / 2)
    assert np.var(estimates[:, 0]) * sessions == pytest.approx(1 + 0.4**2 / 2, rel=0.08)


@given(st.floats(0.3, 3), st.integers(100, 5000), st.floats(-0.5, 0.95), st.integers(1, 20), st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_power_rises_with_length_and_falls_with_multiplicity(
    difference: float, sessions: int, correlation: float, pairs: int, looks: int
) -> None:
    power = planned_power(difference, sessions, correlation=correlation)
    assert power <= planned_power(difference, 2 * sessions, correlation=correlation)
    assert planned_power(difference, sessions, correlation=correlation, pairs=pairs, looks=looks) <= power
    assert planned_power(0.0, sessions, correlation=correlation) == pytest.approx(0.025)
    found = detectable_difference(sessions, correlation=correlation, pairs=pairs, looks=looks)
    assert planned_power(found, sessions, correlation=correlation, pairs=pairs, looks=looks) == pytest.approx(
        0.8, abs=1e-4
    )


def test_one_baseline_alone_is_the_plain_formula() -> None:
    matrix = np.array([[1, 0.7], [0.7, 1]])
    joint = planned_claim_power(1.0, [0.2], matrix, 800, pairs=3)
    assert joint == pytest.approx(planned_power(0.8, 800, correlation=0.7, other=0.2, pairs=3), abs=1e-6)
    more = np.array([[1, 0.7, 0.7], [0.7, 1, 0.95], [0.7, 0.95, 1]])
    assert planned_claim_power(1.0, [0.2, 0.2], more, 800, pairs=3) < joint
    assert planned_claim_power(1.0, [0.2], matrix, 800, validation_sessions=500) < planned_claim_power(
        1.0, [0.2], matrix, 800
    )
