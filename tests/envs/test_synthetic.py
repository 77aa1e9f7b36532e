"""The embedded market: its moments are the specification's, and it is a pure function of its arguments."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis

from envs.bars import Bars
from envs.synthetic import log_spread, synthetic_pair, weekdays
from rayconf.errors import UserError
from rayconf.sections import SyntheticConfig

PHI, SD = 0.5 ** (1 / 20), 0.0460
COLUMNS = ("open", "high", "low", "close", "volume")


def plain(**changes: object) -> SyntheticConfig:
    return SyntheticConfig.model_validate({"form": "plain", **changes})


def same(a: Bars, b: Bars, bars: int) -> bool:
    return all(np.array_equal(getattr(a, name)[:bars], getattr(b, name)[:bars]) for name in ("dates", *COLUMNS))


@pytest.fixture(scope="module")
def long_plain() -> tuple[Bars, Bars]:
    return synthetic_pair("SYNA/SYNB", plain(bars=1_000_000))


@pytest.fixture(scope="module")
def long_full() -> tuple[Bars, Bars]:
    return synthetic_pair("SYNA/SYNB", SyntheticConfig(bars=400_000))


def test_spread_is_the_specified_ornstein_uhlenbeck(long_plain: tuple[Bars, Bars]) -> None:
    s = log_spread(*long_plain)
    slope = s[1:] @ s[:-1] / (s[:-1] @ s[:-1])
    assert slope == pytest.approx(PHI, abs=4 * np.sqrt((1 - PHI**2) / len(s)))
    effective = len(s) * (1 - PHI**2) / (1 + PHI**2)
    assert s.std() == pytest.approx(SD, rel=4 / np.sqrt(2 * effective))
    assert np.diff(s).std() == pytest.approx(0.012, rel=0.01)
    shocks = s[1:] - PHI * s[:-1]
    assert kurtosis(shocks) == pytest.approx(0, abs=4 * np.sqrt(24 / len(s)))
    # from the close that is seen to the next open: phi^0.3 of the spread is left
    a, b = long_plain
    opens = np.log(a.open[1:] / b.open[1:])
    assert opens @ s[:-1] / (s[:-1] @ s[:-1]) == pytest.approx(PHI**0.3, abs=0.0006)
    assert np.var(opens - PHI**0.3 * s[:-1]) == pytest.approx(SD**2 * (1 - PHI**0.6), rel=0.01)


def test_factor_is_independent_and_thirty_percent_falls_overnight(long_plain: tuple[Bars, Bars]) -> None:
    a, b = long_plain
    m_open, m_close = (np.log(getattr(a, name) * getattr(b, name)) / 2 for name in ("open", "close"))
    night, session = m_open[1:] - m_close[:-1], m_close[1:] - m_open[1:]
    assert night.var() / (night.var() + session.var()) == pytest.approx(0.3, abs=0.003)
    assert (night + session).std() == pytest.approx(0.01, rel=0.005)
    bound = 4 / np.sqrt(len(night))
    assert abs(np.corrcoef(night, session)[0, 1]) < bound
    change = np.diff(log_spread(a, b))
    assert abs(np.corrcoef(night + session, change)[0, 1]) < bound
    assert abs(np.corrcoef((night + session)[1:], (night + session)[:-1])[0, 1]) < bound


@pytest.mark.parametrize("price", ["open", "close"])
def test_simple_returns_are_fair_and_log_returns_are_not(long_plain: tuple[Bars, Bars], price: str) -> None:
    legs = np.stack([getattr(leg, price) for leg in long_plain])
    simple = (legs[:, 1:] / legs[:, :-1] - 1).mean(axis=0)
    logs = np.log(legs[:, 1:] / legs[:, :-1]).mean(axis=0)
    error = simple.std() / np.sqrt(len(simple))
    assert abs(simple.mean()) < 4 * error
    assert logs.mean() < -4 * error  # so the first line could have failed


def test_range_encloses_and_is_as_wide_as_a_brownian_path(long_plain: tuple[Bars, Bars]) -> None:
    for leg in long_plain:
        assert np.all(leg.high >= np.maximum(leg.open, leg.close))
        assert np.all(leg.low <= np.minimum(leg.open, leg.close))
        session_sd = np.log(leg.close / leg.open).std()
        assert np.log(leg.high / leg.low).mean() == pytest.approx(np.sqrt(8 / np.pi) * session_sd, rel=0.01)
        move = np.abs(np.log(leg.close / leg.open))
        assert 0.2 < np.corrcoef(np.log(leg.volume), move)[0, 1] < 0.8


def test_full_form_has_regimes_fat_tails_and_a_moving_mean(long_full: tuple[Bars, Bars]) -> None:
    def clustering(values: np.ndarray, lag: int) -> float:
        size = np.abs(values)
        return float(np.corrcoef(size[lag:], size[:-lag])[0, 1])

    a, b = long_full
    plain_a, plain_b = synthetic_pair("SYNA/SYNB", plain(bars=400_000))
    returns, quiet = (np.diff(np.log(leg.close)) for leg in (a, plain_a))
    assert kurtosis(returns) > 2
    assert abs(kurtosis(quiet)) < 0.1
    # the regimes' autocorrelation decays by 1 - 1/120 - 1/40 per bar
    near, far = clustering(returns, 5), clustering(returns, 35)
    assert near > 0.08
    assert far / near == pytest.approx((1 - 1 / 120 - 1 / 40) ** 30, abs=0.12)
    assert abs(clustering(quiet, 5)) < 4 / np.sqrt(len(quiet))
    assert returns.std() == pytest.approx(quiet.std(), rel=0.03)
    yearly, still = (
        log_spread(*legs)[: 250 * 1600].reshape(-1, 250).mean(axis=1) for legs in ((a, b), (plain_a, plain_b))
    )
    assert np.corrcoef(yearly[1:], yearly[:-1])[0, 1] > 0.3 > np.corrcoef(still[1:], still[:-1])[0, 1]
    assert yearly.std() > 1.3 * still.std()
    for leg in (a, b):
        assert abs(np.mean(leg.close[1:] / leg.close[:-1] - 1)) < 4 * returns.std() / np.sqrt(len(returns))


def test_walk_has_the_moves_of_plain_and_nothing_to_predict() -> None:
    legs = synthetic_pair("SYNA/SYNB", plain(form="walk", bars=400_000))
    s = log_spread(*legs)
    assert np.diff(s).std() == pytest.approx(0.012, rel=0.01)
    assert s.std() > 20 * SD  # it wanders
    prices = np.stack([leg.close for leg in legs])
    returns = prices[:, 1:] / prices[:, :-1] - 1
    assert np.all(np.abs(returns.mean(axis=1)) < 4 * returns.std(axis=1) / np.sqrt(returns.shape[1]))
    change, plain_change = (np.diff(log_spread(*pair)) for pair in (legs, synthetic_pair("SYNA/SYNB", plain())))
    for horizon in (1, 20, 250):  # the last move of each length says nothing of the next, and so much in plain

        def predicted(moves: np.ndarray, horizon: int = horizon) -> float:
            blocks = moves[: len(moves) // horizon * horizon].reshape(-1, horizon).sum(axis=1)
            return float(np.corrcoef(blocks[1:], blocks[:-1])[0, 1] * np.sqrt(len(blocks)))

        assert abs(predicted(change)) < 4
        if horizon < 250:
            assert predicted(plain_change) < -4


@pytest.mark.parametrize("form", ["plain", "full", "walk"])
def test_a_pure_function_of_pair_and_config(form: str) -> None:
    config = SyntheticConfig.model_validate({"form": form, "bars": 3000})
    legs = synthetic_pair("AA/BB", config)
    assert all(same(x, y, 3000) for x, y in zip(legs, synthetic_pair("AA/BB", config), strict=True))
    longer = synthetic_pair("AA/BB", config.model_copy(update={"bars": 7001}))
    assert all(same(x, y, 3000) for x, y in zip(legs, longer, strict=True))
    assert [leg.ticker for leg in legs] == ["AA", "BB"]
    for pair, seed in (("AA/CC", 0), ("BB/AA", 0), ("AA/BB", 1)):
        other = synthetic_pair(pair, config.model_copy(update={"seed": seed}))
        for x, y in zip(legs, other, strict=True):
            assert not same(x, y, 1)
            assert abs(np.corrcoef(np.diff(np.log(x.close)), np.diff(np.log(y.close)))[0, 1]) < 4 / np.sqrt(3000)


def test_dates_are_weekdays_and_the_default_market_ends_in_our_time() -> None:
    dates = weekdays(SyntheticConfig().bars)
    day = dates.astype("datetime64[D]")
    assert dates.dtype == "datetime64[us]"
    assert np.is_busday(day).all()
    assert np.array_equal(day, np.busday_offset(day[0], np.arange(len(day))))
    assert np.datetime64("2024") < dates[-1] < np.datetime64("2026")


def test_default_market_takes_less_than_half_a_second() -> None:
    start = time.process_time()
    synthetic_pair("SYNA/SYNB", SyntheticConfig(bars=65_294))
    assert time.process_time() - start < 0.5


@given(
    form=st.sampled_from(["plain", "full", "walk"]),
    bars=st.integers(1, 400),
    half_life=st.floats(0.5, 300),
    spread_sd=st.floats(1e-4, 0.3),
    overnight=st.floats(0, 1),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_bars_are_valid_whatever_the_settings(**settings_: object) -> None:
    for leg in synthetic_pair("AA/BB", SyntheticConfig.model_validate(settings_)):
        values = np.stack([getattr(leg, name) for name in COLUMNS])
        assert values.shape == (5, settings_["bars"])
        assert np.isfinite(values).all()
        assert (values > 0).all()
        assert np.all(leg.high >= np.maximum(leg.open, leg.close))
        assert np.all(leg.low <= np.minimum(leg.open, leg.close))


@pytest.mark.parametrize("pair", ["AA", "AA/BB/CC", "/BB"])
def test_what_is_no_pair_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match="write two tickers"):
        synthetic_pair(pair, SyntheticConfig(bars=10))
