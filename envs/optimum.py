"""The yardstick: the optimal growth rate of the plain synthetic market under real costs, by dynamic programming.

The controlled chain has two states: the spread s at close t and the position u of the last decision. A decision v
means the target weights (v, -v). With x the change of the spread over the bar that the decision earns, Gaussian
given s, relative value iteration solves

    V(s, u) + g = max_v  E[log(1 + v 2 sinh(x / 2) - rate(v) dt) | s] - 2 c |v - u| + E[V(s', v) | s].

A lag adds no state, because costs depend on successive decisions only; the drift of weights between decisions is
neglected. The factor has no expected return and is independent, so a net position only adds variance.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.special import roots_hermitenorm

from envs.ledger import Terms, open_accounts, step
from envs.synthetic import log_spread, reversion, synthetic_pair, weekdays
from rayconf.errors import UserError
from rayconf.sections import CostsConfig, SyntheticConfig

SPREAD_RANGE = 4.5
"""The grid of the spread reaches this many stationary standard deviations to either side."""
BAR_YEARS = 7 / 5 / 365
"""Mean length of a weekday bar in years of 365 days: five bars a week."""
BARS_PER_YEAR = 252
MAX_SWEEPS = 20_000


@dataclass(frozen=True)
class Optimum:
    """Solution of the control problem: growth rate, decision table and relative values."""

    growth_per_year: float
    """Optimal expected log growth g per year of 252 bars."""
    spread: np.ndarray
    """[S] grid of the log spread at the close."""
    position: np.ndarray
    """[U] grid of positions u: target weights (u, -u)."""
    policy: np.ndarray
    """[S, U] index into ``position`` of the best decision."""
    reward: np.ndarray
    """[S, U] expected log growth of a bar held at ``position``, before trading cost."""
    value: np.ndarray
    """[S, U] relative value of spread and last position."""
    continuation: np.ndarray
    """[S, U] expected relative value after the bar, given the spread and the decision."""

    def decide(self, spread: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Positions [B] for spreads [B] and last positions [B]; ``last`` stays where its nearest grid point is best."""
        rows = nearest(self.spread, spread)
        columns = nearest(self.position, last)
        best = self.policy[rows, columns]
        return np.where(best == columns, last, self.position[best])


def nearest(grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Index of the nearest point of a uniform grid, values beyond its ends counting as its ends."""
    index = np.rint((np.asarray(values) - grid[0]) / (grid[1] - grid[0]))
    return np.clip(index, 0, len(grid) - 1).astype(np.int64)


def solve_optimum(
    synthetic: SyntheticConfig,
    costs: CostsConfig,
    lag: int = 1,
    *,
    spread_points: int = 601,
    position_points: int = 61,
    nodes: int = 21,
    tolerance: float = 1e-10,
) -> Optimum:
    """Solve for the optimal policy of the plain market by relative value iteration in float64.

    Args:
        synthetic: The market; its form must be ``plain``.
        costs: Trading cost, leverage and rates in force.
        lag: Bars between the close that is seen and the fill.
        spread_points: Points of the spread's grid.
        position_points: Points of the position's grid over [-leverage / 2, leverage / 2]; odd, so that 0 is one.
        nodes: Gauss-Hermite nodes of the expectations.
        tolerance: Span of the change of values at which iteration ends.

    Raises:
        UserError: ``synthetic.form`` is not ``plain``, or the spread does not move.
        RuntimeError: Iteration does not converge.
    """
    if synthetic.form != "plain":
        raise UserError(f"synthetic.form: the optimum is known for 'plain' only (got {synthetic.form!r})")
    if position_points % 2 == 0 or min(spread_points, position_points) < 3:
        raise UserError("position_points must be odd and both grids need 3 points or more")
    phi, sd = reversion(synthetic.half_life), synthetic.spread_sd
    spread = np.linspace(-SPREAD_RANGE * sd, SPREAD_RANGE * sd, spread_points)
    position = np.linspace(-costs.leverage / 2, costs.leverage / 2, position_points)
    points, weights = roots_hermitenorm(nodes)
    weights = weights / weights.sum()

    to_fill = phi ** (lag - 1 + synthetic.overnight)  # from the close that is seen to the open that fills
    wander = (1 - phi) ** 2 * (1 - to_fill**2) + 1 - phi**2
    change = to_fill * (phi - 1) * spread[:, None] + sd * np.sqrt(wander) * points
    legs = 2 * np.sinh(change / 2)
    financing = _financing(position, costs)
    reward = np.stack(
        [np.log1p(u * legs - rate) @ weights for u, rate in zip(position, financing, strict=True)], axis=1
    )
    ahead = phi * spread[:, None] + sd * np.sqrt(1 - phi**2) * points
    transition = _transition(spread, ahead, weights)
    trade = 2e-4 * costs.real_bps * position

    value = np.zeros_like(reward)
    for _ in range(MAX_SWEEPS):
        total = reward + transition @ value
        fresh = np.maximum(_best_above(total - trade) + trade, _best_below(total + trade) - trade)
        change_of_value = fresh - value
        value = fresh - fresh[spread_points // 2, position_points // 2]
        if np.ptp(change_of_value) < tolerance:
            break
    else:
        raise RuntimeError(f"value iteration did not converge in {MAX_SWEEPS} sweeps")

    continuation = transition @ value
    moves = np.abs(trade[:, None] - trade)
    total = reward + continuation
    policy = np.stack([np.argmax(total - moves[u], axis=1) for u in range(position_points)], axis=1)
    growth = BARS_PER_YEAR * (change_of_value.max() + change_of_value.min()) / 2
    return Optimum(float(growth), spread, position, policy, reward, value, continuation)


def _financing(position: np.ndarray, costs: CostsConfig) -> np.ndarray:
    """Interest and short fee of a mean bar as fractions of equity, for positions u."""
    size = np.abs(position)
    borrowed = np.maximum(0, (2 * size if costs.financing == "gross" else size) - 1)
    return (costs.short_rate * size + costs.borrow_rate * borrowed) * BAR_YEARS


def _transition(grid: np.ndarray, ahead: np.ndarray, weights: np.ndarray) -> csr_array:
    """Matrix of expectations under linear interpolation: row s spreads each node of ``ahead`` [S, N] on the grid."""
    place = np.clip((ahead - grid[0]) / (grid[1] - grid[0]), 0, len(grid) - 1)
    left = np.minimum(place.astype(np.int64), len(grid) - 2)
    right_share = place - left
    rows = np.broadcast_to(np.arange(len(grid))[:, None], left.shape)
    data = np.concatenate(((weights * (1 - right_share)).ravel(), (weights * right_share).ravel()))
    index = (np.tile(rows.ravel(), 2), np.concatenate((left.ravel(), left.ravel() + 1)))
    return csr_array((data, index), shape=(len(grid), len(grid)))


def _best_below(values: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(values, axis=1)


def _best_above(values: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(values[:, ::-1], axis=1)[:, ::-1]


@dataclass(frozen=True)
class Simulation:
    """What the optimal policy earned through the ledger, over independent paths."""

    growth: np.ndarray
    """[B] realised log growth per year of each path."""
    luck: np.ndarray
    """[B] the part of ``growth`` with expectation zero: surprises of return and of value in the solved chain,
    and what a tilt earned."""
    volatility: float
    """Standard deviation of simple net returns per year."""
    sharpe: float
    """Annualised Sharpe ratio of simple net returns."""
    turnover: float
    """Mean two-sided turnover per bar."""

    @property
    def growth_per_year(self) -> tuple[float, float]:
        """Mean of the realised growth and its standard error."""
        return _mean_and_error(self.growth)

    @property
    def expected_growth(self) -> tuple[float, float]:
        """Growth with its luck removed (a control variate with known mean zero), and its standard error."""
        return _mean_and_error(self.growth - self.luck)


def simulate(
    optimum: Optimum,
    synthetic: SyntheticConfig,
    costs: CostsConfig,
    lag: int = 1,
    *,
    paths: int = 256,
    tilt: float = 0.0,
) -> Simulation:
    """Run the optimal policy through the ledger on ``paths`` fresh markets of ``synthetic.bars`` bars each.

    ``tilt`` is added to the weight of both legs: a net position, which the restriction to (u, -u) rules out.
    """
    opens, spreads, dates = _fresh_paths(synthetic, paths)
    decisions = len(dates) - lag - 1
    returns = torch.from_numpy(np.expm1(np.diff(opens, axis=0)))
    years = np.diff(dates).astype("timedelta64[s]").astype(float) / (365 * 86_400)
    change = np.diff(opens[..., 0] - opens[..., 1], axis=0)
    financing = _financing(optimum.position, costs)

    terms, account = Terms.from_costs(costs), open_accounts(paths)
    last = np.zeros(paths)
    log_growth, net_return, turnover, luck = (np.empty((decisions, paths)) for _ in range(4))
    for t in range(decisions):
        fill = t + lag
        last = optimum.decide(spreads[t], last)
        target = torch.from_numpy(np.stack((last + tilt, tilt - last), axis=1))
        account, outcome = step(account, target, returns[fill], float(years[fill]), terms)
        log_growth[t], net_return[t], turnover[t] = outcome.log_growth, outcome.net_return, outcome.turnover
        column = nearest(optimum.position, last)
        earned = np.log1p(2 * last * np.sinh(change[fill] / 2) - financing[column])
        surprise = earned - _at(optimum.spread, optimum.reward, spreads[t], column)
        drift = _at(optimum.spread, optimum.continuation, spreads[t], column)
        luck[t] = surprise + _at(optimum.spread, optimum.value, spreads[t + 1], column) - drift
        luck[t] += tilt * (returns[fill, :, 0] + returns[fill, :, 1]).numpy()  # fair, by the market's drift
    volatility = float(net_return.std()) * BARS_PER_YEAR**0.5
    return Simulation(
        growth=BARS_PER_YEAR * log_growth.mean(axis=0),
        luck=BARS_PER_YEAR * luck.mean(axis=0),
        volatility=volatility,
        sharpe=BARS_PER_YEAR * float(net_return.mean()) / volatility,
        turnover=float(turnover.mean()),
    )


def _fresh_paths(synthetic: SyntheticConfig, paths: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log opens [T, B, 2], log spreads at the closes [T, B] and dates [T] of ``paths`` independent markets."""
    opens = np.empty((synthetic.bars, paths, 2))
    spreads = np.empty((synthetic.bars, paths))
    for path in range(paths):
        first, second = synthetic_pair(f"P{path}A/P{path}B", synthetic)
        opens[:, path] = np.log(np.stack((first.open, second.open), axis=1))
        spreads[:, path] = log_spread(first, second)
    return opens, spreads, weekdays(synthetic.bars)


def _at(grid: np.ndarray, table: np.ndarray, values: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Linear interpolation along the grid, column by column: [B] from a table [S, U]."""
    place = np.clip((values - grid[0]) / (grid[1] - grid[0]), 0, len(grid) - 1)
    left = np.minimum(place.astype(np.int64), len(grid) - 2)
    share = place - left
    return table[left, column] * (1 - share) + table[left + 1, column] * share


def _mean_and_error(rows: np.ndarray) -> tuple[float, float]:
    return float(rows.mean()), float(rows.std(ddof=1) / np.sqrt(len(rows)))
