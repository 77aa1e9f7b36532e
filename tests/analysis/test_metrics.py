import math
import re

import empyrical
import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from analysis import metrics

streams = hnp.arrays(
    np.float64,
    st.integers(2, 60),
    elements=st.floats(-0.4, 0.4).map(lambda x: round(x, 6)),
)
RETURNS = np.random.default_rng(3).standard_t(4, 757) * 0.011 + 4e-4
MARKET = 0.6 * RETURNS + np.random.default_rng(4).normal(2e-4, 0.008, 757)


@pytest.mark.parametrize("periods", [252, 365])
def test_empyrical_agrees(periods: int) -> None:
    unbias = math.sqrt(len(RETURNS) / (len(RETURNS) - 1))  # empyrical divides by n - 1, the log by n
    expected = {
        "sharpe": empyrical.sharpe_ratio(RETURNS, annualization=periods) * unbias,
        "volatility": empyrical.annual_volatility(RETURNS, annualization=periods) / unbias,
        "sortino": empyrical.sortino_ratio(RETURNS, annualization=periods),
        "cagr": empyrical.annual_return(RETURNS, annualization=periods),
        "calmar": empyrical.calmar_ratio(RETURNS, annualization=periods),
    }
    for name, value in expected.items():
        assert getattr(metrics, name)(RETURNS, periods) == pytest.approx(value, rel=1e-10), name
    assert metrics.max_drawdown(RETURNS) == pytest.approx(empyrical.max_drawdown(RETURNS), rel=1e-12)
    assert metrics.equity_curve(RETURNS)[-1] - 1 == pytest.approx(empyrical.cum_returns_final(RETURNS), rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 20, 21, 41, 100, 757])
def test_cvar_agrees_with_empyrical_and_counts_at_least_one(size: int) -> None:
    part = RETURNS[:size]
    assert metrics.cvar(part) == pytest.approx(empyrical.conditional_value_at_risk(part, 0.05), rel=1e-12)
    assert metrics.cvar(part) <= part.mean()


def test_alpha_and_beta_are_ordinary_least_squares() -> None:
    fit = sm.OLS(RETURNS, sm.add_constant(MARKET)).fit()
    alpha, beta = metrics.alpha_beta(RETURNS, MARKET, 252)
    assert alpha == pytest.approx(fit.params[0] * 252, rel=1e-9)
    assert beta == pytest.approx(fit.params[1], rel=1e-10)
    assert metrics.alpha_beta(MARKET, MARKET, 252) == pytest.approx((0.0, 1.0), abs=1e-12)
    assert metrics.alpha_beta(RETURNS, np.zeros(757), 252) == pytest.approx((RETURNS.mean() * 252, 0.0))


def test_beta_and_extreme_sessions_agree_with_empyrical() -> None:
    assert metrics.alpha_beta(RETURNS, MARKET)[1] == pytest.approx(empyrical.beta(RETURNS, MARKET), rel=1e-10)
    alpha = metrics.alpha_beta(RETURNS, MARKET, 252)[0]  # empyrical compounds it over the year, this column does not
    assert (1 + alpha / 252) ** 252 - 1 == pytest.approx(empyrical.alpha(RETURNS, MARKET, annualization=252), rel=1e-9)


def test_the_original_logs_final_and_cumulative_columns(shared) -> None:
    text = (shared / "origin" / "000_9bcf52c95faf4f0e.txt").read_text(encoding="utf-8")
    row = r"^\| \w+ \| ([\d.]+) \| ([+-][\d.]+)% \| -?[\d.]+ \| [\d.]+% \| (-[\d.]+)% \|$"
    rows = re.findall(row, text, re.MULTILINE)
    assert len(rows) == 8
    for final, cumulative, drawdown in rows:
        path = np.array([float(drawdown) / 100, float(final) / (1 + float(drawdown) / 100) - 1])
        equity = metrics.equity_curve(path)
        assert f"{100 * (equity[-1] - 1):+.2f}" == cumulative
        assert f"{100 * metrics.max_drawdown(path):.2f}" == drawdown


def test_the_original_logs_annualised_column(shared) -> None:
    text = (shared / "origin" / "000_9bcf52c95faf4f0e.txt").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (\d+) \| (-?[\d.]+) \| (-?[\d.]+) \| (-?[\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 8
    for run, pair, days, average, printed, _ in rows:
        # The average is itself rounded to six digits, so the printed figure must lie between the ends of that rounding.
        low, high = (
            metrics.annualized_return(np.full(int(days), float(average) + shift)) for shift in (-5.0e-7, 5.0e-7)
        )
        assert low - 5e-5 <= float(printed) <= high + 5e-5, (run, pair)
        assert high - low < 7e-4
        assert metrics.annualized_return(np.full(int(days), float(average))) == pytest.approx(
            float(printed), abs=1.5e-4
        )


def test_the_drawdown_counts_the_initial_value() -> None:
    assert metrics.max_drawdown(np.array([-0.5, 0.1])) == pytest.approx(-0.5)
    assert metrics.max_drawdown(np.array([0.1, -1.0, 0.0])) == -1.0
    assert metrics.max_drawdown(np.array([0.1, 0.0, 0.2])) == 0.0


def test_a_drawdown_against_a_loop() -> None:
    equity, peak, deepest = 1.0, 1.0, 0.0
    for value in RETURNS:
        equity *= 1 + value
        peak = max(peak, equity)
        deepest = min(deepest, equity / peak - 1)
    assert metrics.max_drawdown(RETURNS) == pytest.approx(deepest, rel=1e-12)


@pytest.mark.parametrize("level", [0.0, 0.01, 0.1, -0.003, 1e-17])
def test_a_stream_without_variance_has_sharpe_zero(level: float) -> None:
    constant = np.full(333, level)
    assert metrics.sharpe(constant) == 0.0
    assert metrics.volatility(constant) == 0.0


def test_unbounded_ratios_are_none_not_infinite() -> None:
    winning = np.array([0.01, 0.02, 0.0])
    assert metrics.sortino(winning) is None
    assert metrics.calmar(winning) is None
    assert metrics.sortino(np.zeros(5)) == 0.0
    assert metrics.calmar(np.zeros(5)) == 0.0


def test_annualized_return_and_cagr_differ_by_the_variance() -> None:
    swing = np.tile([0.5, -0.4], 126)
    assert metrics.annualized_return(swing) > 0
    assert metrics.cagr(swing) == pytest.approx(0.9**126 - 1)
    assert metrics.cagr(np.array([0.3, -1.0, 0.0])) == -1.0


@given(streams)
@settings(deadline=None)
def test_drawdown_and_growth_stay_in_range(returns: np.ndarray) -> None:
    depth = metrics.max_drawdown(returns)
    assert -1 <= depth <= 0
    assert depth <= min(0.0, float(np.prod(1 + returns)) - 1) + 1e-12
    assert metrics.cvar(returns) <= returns.mean() + 1e-15
    assert metrics.cvar(returns) >= returns.min() - 1e-15
    assert metrics.cagr(returns) >= -1


@given(streams, st.floats(0.1, 2.4))
@settings(deadline=None)
def test_scaling_every_return_scales_risk_and_leaves_ratios(returns: np.ndarray, factor: float) -> None:
    scaled = returns * factor
    assert metrics.sharpe(scaled) == pytest.approx(metrics.sharpe(returns), abs=1e-6, rel=1e-6)
    assert metrics.volatility(scaled) == pytest.approx(factor * metrics.volatility(returns), abs=1e-12)
    assert metrics.cvar(scaled) == pytest.approx(factor * metrics.cvar(returns), abs=1e-12)
    first, second = metrics.sortino(returns), metrics.sortino(scaled)
    assert (first is None) == (second is None)
    if first is not None:
        assert second == pytest.approx(first, abs=1e-9, rel=1e-9)
    benchmark = np.arange(len(returns)) * 1e-3
    alpha, beta = metrics.alpha_beta(returns, benchmark)
    assert metrics.alpha_beta(scaled, benchmark) == pytest.approx((factor * alpha, factor * beta), abs=1e-9)


@given(streams, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_matters_to_the_drawdown_alone(returns: np.ndarray, random) -> None:
    order = list(range(len(returns)))
    random.shuffle(order)
    shuffled = returns[order]
    for name in ("sharpe", "volatility", "cagr", "annualized_return", "cvar"):
        assert getattr(metrics, name)(shuffled) == pytest.approx(getattr(metrics, name)(returns), abs=1e-8, rel=1e-8)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=12), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_hourly_bars_compound_to_the_equity_of_each_days_last_bar(bars: list[int], random) -> None:
    dates, days = [], []
    for day, count in enumerate(bars):
        start = np.datetime64("2024-03-04T13:30", "us") + np.timedelta64(day, "D")
        dates += [start + np.timedelta64(hour, "h") for hour in range(count)]
        days += [start.astype("datetime64[D]")]
    returns = np.array([random.uniform(-0.1, 0.1) for _ in dates])
    sessions, found = metrics.session_returns(returns, np.array(dates))
    ends = np.cumsum(bars) - 1
    sampled = np.cumprod(1 + returns)[ends]
    np.testing.assert_allclose(np.cumprod(1 + sessions), sampled, rtol=1e-12)
    assert list(found) == days


def test_daily_bars_are_their_own_sessions_to_the_bit() -> None:
    dates = np.arange(np.datetime64("2020-01-01"), np.datetime64("2020-01-01") + 757)
    sessions, _ = metrics.session_returns(RETURNS, dates)
    assert np.array_equal(sessions, RETURNS)
