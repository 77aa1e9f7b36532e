"""Tests of many policies at once against a benchmark: Hansen's SPA and the stepwise test of Romano and Wolf.

Both compare means, so every account is first brought to one volatility (divided by its own standard deviation; cash
stays 0): the difference in mean is then the difference in Sharpe ratio, and leverage wins nothing. Differences are
studentised by their bootstrap standard error before they go to ``arch``, which compares them as they come.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from analysis.bootstrap import DEGENERATE, FEWEST, automatic_block, resampled_means
from analysis.metrics import is_flat
from rayconf.keys import derive_key

Array = NDArray[np.float64]

REPETITIONS = 499


def _scaled(returns: Array) -> Array:
    return np.zeros_like(returns) if is_flat(returns) else returns / returns.std()


def studentised(differences: Mapping[str, Array], repetitions: int = REPETITIONS) -> tuple[list[str], Array, int]:
    """Differences of returns at one volatility over their standard error per session; constant ones are left out.

    Args:
        differences: Differences of scaled returns [D] by name.
        repetitions: Bootstrap repetitions behind the standard error.

    Returns:
        Names in alphabetical order, the studentised differences [D, K], and the longest automatic block of them.
    """
    # Accounts at one volatility that are the same differ by rounding.
    names = sorted(name for name, values in differences.items() if values.std() > DEGENERATE)
    if not names:
        return [], np.empty((0, 0)), 1
    block = max(automatic_block(differences[name]) for name in names)
    columns = np.stack([differences[name] for name in names], axis=1)
    error = resampled_means(columns - columns.mean(axis=0), block, repetitions).std(axis=0)
    return names, columns / (error * np.sqrt(len(columns))), block


def superior_predictive_ability(
    benchmark: Array, policies: Mapping[str, Array], repetitions: int = REPETITIONS
) -> float | None:
    """p-value of the hypothesis that none of the policies is better than the benchmark (Hansen 2005, consistent).

    Args:
        benchmark: Session returns [D] of the benchmark.
        policies: Session returns [D] by policy: everything that was chosen among.
        repetitions: Bootstrap repetitions; p is never below 1 / (repetitions + 1).

    Returns:
        The p-value; None under 20 sessions or where no policy differs from the benchmark.
    """
    base = _scaled(benchmark)
    differences = {name: _scaled(returns) - base for name, returns in policies.items()}
    names, columns, block = studentised(differences, repetitions)
    if base.size < FEWEST or not names:
        return None
    from arch.bootstrap import SPA

    # nested: the variance behind the choice of hopeless policies from the bootstrap, not from a sum over all lags
    seed = derive_key("superior predictive ability", *columns.shape) % 2**32
    test = SPA(np.zeros(base.size), -columns, block_size=block, reps=repetitions, nested=True, seed=seed)
    test.compute()
    return max(float(test.pvalues["consistent"]), 1 / (repetitions + 1))


def superior_to(
    returns: Array, baselines: Mapping[str, Array], level: float = 0.05, repetitions: int = REPETITIONS
) -> tuple[str, ...]:
    """The baselines that an account beats, all tested at once (StepM, Romano and Wolf 2005).

    Args:
        returns: Session returns [D] of the account.
        baselines: Session returns [D] by baseline.
        level: Family-wise one-sided level: a false name is among them at most so often.
        repetitions: Bootstrap repetitions.

    Returns:
        Names in alphabetical order; none under 20 sessions.
    """
    base = _scaled(returns)
    names, columns, block = studentised({name: base - _scaled(other) for name, other in baselines.items()}, repetitions)
    if base.size < FEWEST or not names:
        return ()
    from arch.bootstrap import SPA

    seed = derive_key("stepwise", *columns.shape) % 2**32
    test = SPA(np.zeros(base.size), -columns, block_size=block, reps=repetitions, nested=True, seed=seed)
    # arch.bootstrap.StepM takes the same steps, but raises where a later one leaves no baseline.
    left = np.ones(len(names), bool)
    while left.any():
        test.subset(left)
        test.compute()
        beaten = [int(index) for index in test.better_models(level)]
        if not beaten:
            break
        left[beaten] = False
    return tuple(name for name, unbeaten in zip(names, left, strict=True) if not unbeaten)
