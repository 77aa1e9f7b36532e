"""Policies without learning, as target weights per decision bar. All are causal: row t reads closes up to t."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from envs.features import z_score
from envs.ledger import Terms
from envs.market import PairMarket
from envs.prior import vol_target_scale as scale_of
from envs.replay import replay
from pbt import fitness
from rayconf.run_config import RunConfig

Z_WINDOWS = (20, 60, 120, 250)
Z_ENTRIES = (1.0, 1.5, 2.0, 2.5)
Z_EXITS = (0.0, 0.5)


@dataclass(frozen=True)
class ZScoreRule:
    """The classical pairs rule on the z-score of the log-price spread over ``window`` bars (ddof 1).

    From flat: z above ``entry`` shorts the spread, below -``entry`` buys it; it exits when abs(z) falls below
    ``exit`` or z crosses zero, and reverses where the opposite entry fires.
    """

    window: int
    entry: float
    exit: float

    def __str__(self) -> str:
        """As told in the log: windows and thresholds."""
        return f"window {self.window}, in {self.entry:g}, out {self.exit:g}"


TEXTBOOK = ZScoreRule(60, 2.0, 0.5)
Z_GRID = tuple(ZScoreRule(*values) for values in product(Z_WINDOWS, Z_ENTRIES, Z_EXITS))


def spread_positions(z: np.ndarray, rules: tuple[ZScoreRule, ...]) -> np.ndarray:
    """Position in the spread, -1, 0 or 1, after each bar: [T, R] for z-scores [T, R], one column per rule.

    A z-score that is not known yet (NaN) leaves the account flat.
    """
    entry = np.array([rule.entry for rule in rules])
    leave = np.array([rule.exit for rule in rules])
    entered = np.where(z < -entry, 1.0, np.where(z > entry, -1.0, 0.0))
    near = np.abs(z) < leave
    bar = np.arange(len(z))[:, None]

    def latest(event: np.ndarray) -> np.ndarray:
        return np.maximum.accumulate(np.where(event, bar, -1), axis=0)

    # The last entry holds unless an exit came after it; where both fire on one bar the entry counts.
    since = latest(entered != 0)
    side = np.where(since >= 0, np.take_along_axis(entered, np.maximum(since, 0), axis=0), 0.0)
    left_long, left_short = (latest((near | crossed) & (entered == 0)) for crossed in (z > 0, z < 0))
    left = np.where(side > 0, left_long, left_short)
    return np.where(left > since, 0.0, side)


def z_score_targets(market: PairMarket, rules: tuple[ZScoreRule, ...], gross: float) -> np.ndarray:
    """Target weights [R, T, 2] of the rules at +- gross / 2 per leg."""
    spread = np.log(market.close[:, 0]) - np.log(market.close[:, 1])
    by_window = {window: z_score(spread, window) for window in {rule.window for rule in rules}}
    z = np.stack([by_window[rule.window] for rule in rules], axis=1)
    position = spread_positions(z, rules).T * (gross / 2)
    return np.stack((position, -position), axis=2)


def fit_z_score(market: PairMarket, run: RunConfig) -> ZScoreRule:
    """The rule of the grid with the best fitness on the training span under the run's real costs."""
    targets = torch.from_numpy(z_score_targets(market, Z_GRID, run.costs.leverage))
    record = replay(
        market,
        market.splits["train"],
        None,
        Terms.from_costs(run.costs),
        run.env.lag,
        batch=len(Z_GRID),
        leverage=run.costs.leverage,
        recorded=list(targets),
    )
    dates = market.dates[record.fill_bar[:, 0]]
    scores = [
        fitness.evaluate(
            record.net_return[:, i],
            record.gross[:, i],
            dates,
            market.sessions_per_year,
            bool(record.equity[-1, i] <= run.costs.ruin_fraction),
            run.pbt,
            run.seed,
            market.pair,
            "zscore",
        ).value
        for i in range(len(Z_GRID))
    ]
    return Z_GRID[int(np.argmax(scores))]


def vol_target_scale(market: PairMarket, run: RunConfig) -> np.ndarray:
    """min(1, target / volatility) [T] of equal weight, volatility exponentially weighted over past closes."""
    half_life = run.backtest.vol_half_life * market.bars_per_year / market.sessions_per_year
    return scale_of(market.close, run.backtest.vol_target, half_life, market.bars_per_year)


def constant(market: PairMarket, a: float, b: float) -> np.ndarray:
    """The same target weights [T, 2] at every bar."""
    return np.tile(np.array([[a, b]]), (len(market.dates), 1))


def baseline_targets(
    market: PairMarket, run: RunConfig, fitted: ZScoreRule, static: tuple[float, float]
) -> dict[str, np.ndarray]:
    """Target weights [T, 2] of every baseline by policy name.

    Args:
        market: The pair.
        run: Leverage limit and volatility target.
        fitted: The z-score rule chosen on train.
        static: Mean weights of the headline policy on validation, held by ``static_gross``.
    """
    limit = run.costs.leverage
    equal = constant(market, 0.5, 0.5)
    fitted_limit, textbook = z_score_targets(market, (fitted, TEXTBOOK), limit)
    return {
        "cash": constant(market, 0.0, 0.0),
        "equal_weight": equal,
        "hold_a": constant(market, 1.0, 0.0),
        "hold_b": constant(market, 0.0, 1.0),
        "static_gross": constant(market, *static),
        "vol_target": equal * vol_target_scale(market, run)[:, None],
        "zscore": fitted_limit,
        "zscore_gross1": z_score_targets(market, (fitted,), 1.0)[0],
        "zscore_textbook": textbook,
    }
