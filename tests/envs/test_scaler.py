"""The scaler: what it fits, its bound, and its JSON."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.scaler import Scaler
from rayconf.sections import FeaturesConfig

NAMES = ("x", "y", "z")
CLIP = FeaturesConfig()
TANH = FeaturesConfig(extremes="tanh")


def training_rows(seed: int = 0, count: int = 2000) -> np.ndarray:
    return np.random.default_rng(seed).normal([1.0, -200.0, 1e-6], [2.0, 50.0, 1e-7], (count, 3))


def test_fit_is_the_mean_and_deviation_of_winsorised_rows() -> None:
    rows = training_rows()
    scaler = Scaler.fit(rows, NAMES, CLIP)
    for column in range(3):
        ordered = np.sort(rows[:, column])
        # the definition of the linear quantile, by hand: position (n - 1) q between two order statistics
        position = np.array([0.01, 0.99]) * (len(rows) - 1)
        below = np.floor(position).astype(int)
        low, high = ordered[below] + (position - below) * (ordered[below + 1] - ordered[below])
        bounded = [min(max(value, low), high) for value in rows[:, column]]
        assert scaler.mean[column] == pytest.approx(np.mean(bounded), rel=1e-12)
        assert scaler.scale[column] == pytest.approx(np.std(bounded), rel=1e-12)


def test_one_bad_print_does_not_set_the_scale() -> None:
    rows = training_rows()
    clean = Scaler.fit(rows, NAMES, CLIP)
    rows[7] = [1e6, -1e9, 1e3]
    dirty = Scaler.fit(rows, NAMES, CLIP)
    np.testing.assert_allclose(dirty.scale, clean.scale, rtol=0.01)
    np.testing.assert_allclose(dirty.mean, clean.mean, atol=0.01 * clean.scale.max(), rtol=0.01)


def test_standardises_and_bounds() -> None:
    rows = training_rows()
    scaler = Scaler.fit(rows, NAMES, CLIP)
    scaled = scaler.apply(rows)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=0.05)
    far = scaler.mean + scaler.scale * np.array([[7.0, -7.0, 3.0]])
    np.testing.assert_allclose(scaler.apply(far), [[5, -5, 3]], rtol=1e-6)
    squashed = Scaler.fit(rows, NAMES, TANH).apply(far)
    np.testing.assert_allclose(squashed, 5 * np.tanh(np.array([[1.4, -1.4, 0.6]])), rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=False), min_size=3, max_size=3),
    limit=st.floats(1e-3, 1e3),
    extremes=st.sampled_from(["clip", "tanh"]),
)
def test_the_bound_holds_for_any_number(values: list[float], limit: float, extremes: str) -> None:
    config = FeaturesConfig(extremes=extremes, extreme_limit=limit)
    with np.errstate(over="ignore"):
        scaled = Scaler.fit(training_rows(), NAMES, config).apply(np.array([values]))
    assert (np.abs(scaled.astype(np.float64)) <= limit).all()


def test_a_still_feature_and_a_rare_event() -> None:
    rows = training_rows()
    rows[:, 0] = 0.1
    rows[:, 1] = 0.0
    rows[::400, 1] = 1.0  # rarer than the winsorised tail
    scaler = Scaler.fit(rows, NAMES, CLIP)
    assert scaler.scale[0] == 1
    assert np.abs(scaler.apply(rows)[:, 0]).max() < 1e-6
    assert scaler.scale[1] == pytest.approx(rows[:, 1].std())


def test_incomplete_rows_stay_nan_and_are_no_training_rows() -> None:
    rows = training_rows()
    scaler = Scaler.fit(rows, NAMES, TANH)
    rows[3, 1] = np.nan
    scaled = scaler.apply(rows)
    assert np.isnan(scaled[3, 1])
    assert np.isnan(scaled).sum() == 1
    for bad in (rows, rows[:0], rows[:, :2]):
        with pytest.raises(ValueError, match="training features"):
            Scaler.fit(bad, NAMES, CLIP)
    with pytest.raises(ValueError, match="do not fit 3 names"):
        scaler.apply(rows[:, :2])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), extremes=st.sampled_from(["clip", "tanh"]), limit=st.floats(0.1, 100))
def test_json_restores_the_same_bits(seed: int, extremes: str, limit: float) -> None:
    rows = training_rows(seed, 50)
    scaler = Scaler.fit(rows, NAMES, FeaturesConfig(extremes=extremes, extreme_limit=limit))
    again = Scaler.from_json(scaler.to_json())
    assert again.to_json() == scaler.to_json()
    assert again.names == NAMES
    np.testing.assert_array_equal(again.mean, scaler.mean)
    np.testing.assert_array_equal(again.scale, scaler.scale)
    np.testing.assert_array_equal(again.apply(rows), scaler.apply(rows))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"mean": [0.0]},
        {"scale": [1.0, 0.0, 1.0]},
        {"mean": [0.0, float("nan"), 0.0]},
        {"extremes": "cut"},
        {"limit": 0},
        {"names": None},
    ],
)
def test_a_damaged_scaler_is_refused(change: dict) -> None:
    text = json.dumps(json.loads(Scaler.fit(training_rows(), NAMES, CLIP).to_json()) | change)
    with pytest.raises(ValueError, match=r"scaler|scales|extremes"):
        Scaler.from_json(text)
