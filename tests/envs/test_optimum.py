"""The optimum: known growth rates, an independent solution without costs, and the policy run through the ledger."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from envs import synthetic
from envs.optimum import BAR_YEARS, Optimum, simulate, solve_optimum
from rayconf.errors import UserError
from rayconf.sections import CostsConfig, SyntheticConfig

PLAIN = SyntheticConfig(form="plain")
PATHS = SyntheticConfig(form="plain", bars=4002)
"""256 of these are 1.02 million decisions."""


def costs(bps: float) -> CostsConfig:
    return CostsConfig(commission_bps=bps, slippage_bps=0)


@pytest.fixture(scope="module")
def optimum() -> Optimum:
    return solve_optimum(PLAIN, costs(2))


@pytest.mark.parametrize(
    ("bps", "lag", "growth"),
    [(0, 1, 0.220), (1, 1, 0.215), (2, 1, 0.211), (5, 1, 0.203), (10, 1, 0.192), (20, 1, 0.176), (2, 2, 0.204)],
)
def test_growth_rates_of_the_specification(bps: float, lag: int, growth: float) -> None:
    assert solve_optimum(PLAIN, costs(bps), lag).growth_per_year == pytest.approx(growth, abs=0.001)


def test_without_costs_it_is_the_best_single_bar_averaged_over_the_spread() -> None:
    """Without costs the position has no memory: maximise each bar's growth by itself, with adaptive quadrature."""
    phi, sd, lag, night = 0.5 ** (1 / 20), 0.046, 2, 0.3
    to_fill = phi ** (lag - 1 + night)
    noise = sd * np.sqrt((1 - phi) ** 2 * (1 - to_fill**2) + 1 - phi**2)

    def growth(v: float, z: float) -> float:
        mean = to_fill * (phi - 1) * sd * z

        def density(e: float) -> float:
            gain = v * 2 * np.sinh((mean + noise * e) / 2) - 0.005 * abs(v) * BAR_YEARS
            return np.log1p(gain) * np.exp(-e * e / 2) / np.sqrt(2 * np.pi)

        return quad(density, -9, 9)[0]

    def best(z: float) -> float:
        return -minimize_scalar(lambda v: -growth(v, z), bounds=(-0.75, 0.75), method="bounded").fun

    z = np.linspace(0, 6, 121)
    weights = 2 * np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    weights[0] /= 2
    expected = 252 * sum(w * best(x) for w, x in zip(weights, z, strict=True))
    assert solve_optimum(PLAIN, costs(0), lag).growth_per_year == pytest.approx(expected, rel=0.002)


def test_halving_the_grid_steps_moves_it_less_than_half_a_percent(optimum: Optimum) -> None:
    fine = solve_optimum(PLAIN, costs(2), spread_points=1201, position_points=121, nodes=31)
    assert fine.growth_per_year == pytest.approx(optimum.growth_per_year, rel=0.005)


@pytest.mark.parametrize(("bps", "edge"), [(2, 0.075), (10, 0.285)])
def test_policy_fades_the_spread_and_costs_widen_its_band(bps: float, edge: float) -> None:
    solution = solve_optimum(PLAIN, costs(bps))
    assert np.all(np.diff(solution.policy, axis=0) <= 0)  # a dearer first leg is never bought more
    assert np.all(np.diff(solution.policy, axis=1) >= 0)
    assert np.array_equal(solution.policy, (len(solution.position) - 1 - solution.policy)[::-1, ::-1])
    leaves = solution.spread[np.argmax(solution.policy[:, -1] < len(solution.position) - 1)]
    assert leaves / 0.046 == pytest.approx(edge, abs=0.016)


def test_decide_holds_the_last_position_inside_the_band(optimum: Optimum) -> None:
    last = np.array([0.7431, -0.7431, 0.0, 0.5])
    decided = optimum.decide(np.array([0.0, 0.0, -0.2, 5.0]), last)
    assert decided.tolist() == pytest.approx([0.7431, -0.7431, 0.75, -0.75], abs=1e-12)


@pytest.mark.parametrize("lag", [1, 2])
def test_the_policy_earns_its_value_through_the_ledger(lag: int) -> None:
    solution = solve_optimum(PLAIN, costs(2), lag)
    run = simulate(solution, PATHS, costs(2), lag)
    growth, error = run.growth_per_year
    expected, small = run.expected_growth
    assert abs(run.luck.mean()) < 3.5 * run.luck.std(ddof=1) / 16  # the control variate is unbiased
    assert small < 0.002 * solution.growth_per_year
    assert expected == pytest.approx(solution.growth_per_year, rel=0.01)
    assert growth == pytest.approx(solution.growth_per_year, abs=3 * error)
    if lag == 1:
        assert run.sharpe == pytest.approx(1.59, abs=0.05)
        assert run.volatility == pytest.approx(0.137, abs=0.003)
        assert run.turnover == pytest.approx(0.145, abs=0.01)


def test_a_policy_that_decides_worse_earns_less(optimum: Optimum) -> None:
    """The check above can fail: the solution for 20 bps, run at 2 bps, misses its 1 %."""
    run = simulate(solve_optimum(PLAIN, costs(20)), PATHS, costs(2), paths=128)
    assert run.expected_growth[0] < 0.99 * optimum.growth_per_year


@pytest.mark.parametrize("tilt", [-0.05, 0.05, 0.2])
def test_a_net_position_does_not_help(optimum: Optimum, tilt: float) -> None:
    neutral, tilted = (simulate(optimum, PATHS, costs(2), paths=128, tilt=t) for t in (0.0, tilt))
    gain = tilted.expected_growth[0] - neutral.expected_growth[0]
    assert gain < 0.002 * optimum.growth_per_year


def test_a_net_position_would_help_if_logs_were_driftless(optimum: Optimum, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail: without the market's drift a tilt of 0.2 per leg adds about 2.6 % of growth."""
    factor = synthetic._factor
    variance = 2 * PATHS.spread_sd**2 * (1 - synthetic.reversion(PATHS.half_life))
    drift = PATHS.factor_sd**2 / 2 + variance / 8

    def driftless(config: SyntheticConfig, pair: str, volatility: np.ndarray, *rest: object) -> np.ndarray:
        return factor(config, pair, volatility, *rest) + drift * np.arange(1, len(volatility) + 1)[:, None]

    monkeypatch.setattr(synthetic, "_factor", driftless)
    neutral, tilted = (simulate(optimum, PATHS, costs(2), paths=128, tilt=t) for t in (0.0, 0.2))
    expected_luck = 252 * 0.2 * 2 * np.expm1(drift)  # the tilt's return is no longer fair
    gain = tilted.expected_growth[0] - neutral.expected_growth[0] + expected_luck
    assert gain == pytest.approx(0.0056, abs=0.0006)


def test_the_full_form_has_no_known_optimum() -> None:
    with pytest.raises(UserError, match="plain"):
        solve_optimum(SyntheticConfig(form="full"), costs(2))
