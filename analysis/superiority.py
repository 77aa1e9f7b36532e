"""Tests of many policies at once against a benchmark: Hansen's SPA and the stepwise test of Romano and Wolf.

Both compare means, so every account is first brought to one volatility (divided by its own standard deviation; cash
stays 0): the difference in mean is then the difference in Sharpe ratio, and leverage wins nothing.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from analysis.bootstrap import FEWEST, automatic_block
from analysis.metrics import is_flat
from rayconf.keys import derive_key

Array = NDArray[np.float64]

REPETITIONS = 500


def _scaled(returns: Array) -> Array:
    return np.zeros_like(returns) if is_flat(returns) else returns / returns.std()


def _prepared(benchmark: Array, others: Mapping[str, Array]) -> tuple[Array, dict[str, Array], int]:
    """Benchmark and those of the others that differ from it, at one volatility, and the block length for all."""
    base = _scaled(benchmark)
    moving = {name: scaled for name, returns in others.items() if not is_flat((scaled := _scaled(returns)) - base)}
    block = max((automatic_block(returns - base) for returns in moving.values()), default=1)
    return base, moving, block


def superior_predictive_ability(
    benchmark: Array, policies: Mapping[str, Array], repetitions: int = REPETITIONS
) -> float | None:
    """p-value of the hypothesis that none of the policies is better than the benchmark (Hansen 2005, consistent).

    Args:
        benchmark: Session returns [D] of the benchmark.
        policies: Session returns [D] by policy: everything that was chosen among.
        repetitions: Bootstrap repetitions.

    Returns:
        The p-value; None under 20 sessions or where no policy differs from the benchmark.
    """
    base, moving, block = _prepared(benchmark, policies)
    if base.size < FEWEST or not moving:
        return None
    from arch.bootstrap import SPA

    losses = -np.stack(list(moving.values()), axis=1)
    seed = derive_key("superior predictive ability", base.size, losses.shape[1]) % 2**32
    test = SPA(-base, losses, block_size=block, reps=repetitions, bootstrap="stationary", seed=seed)
    test.compute()
    return float(test.pvalues["consistent"])


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
    base, moving, block = _prepared(returns, baselines)
    if base.size < FEWEST or not moving:
        return ()
    from arch.bootstrap import StepM

    # The account takes the place of the benchmark and returns that of losses: a baseline whose "loss" is lower than
    # the account's is one that earned less.
    names = sorted(moving)
    streams = np.stack([moving[name] for name in names], axis=1)
    seed = derive_key("stepwise", base.size, len(names)) % 2**32
    test = StepM(base, streams, size=level, block_size=block, reps=repetitions, bootstrap="stationary", seed=seed)
    test.compute()
    return tuple(names[index] for index in sorted(int(found) for found in test.superior_models))
