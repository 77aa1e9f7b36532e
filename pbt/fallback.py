"""Falling back: what a pair trades where validation does not speak for what was learned, its prior or its base."""

import numpy as np

from analysis.overfitting import archive_overfitting
from envs.market import PairMarket
from pbt.base import BASE, base_state
from pbt.generation import untrained_state
from pbt.manifest import Population, Snapshot
from pbt.run_dir import RunDir
from pbt.store import StateStore
from pbt.survivors import Survivor, policy_from_state
from rayconf.run_config import RunConfig

PRIOR = "prior"
"""Stands for the member where nobody trained a survivor; ``BASE`` where another run did."""


def why_fallback(run: RunConfig, population: Population, streams: np.ndarray | None) -> str | None:
    """Why prior or base take the place of a pair's survivors; None: they do not.

    Args:
        run: ``pbt.min_gain`` and ``pbt.max_overfitting``.
        population: With its archive, whose scores are smoothed gains over prior or base.
        streams: [D, N] session returns of all that validation saw, by generation; None: unknown.
    """
    least, most = run.pbt.min_gain, run.pbt.max_overfitting
    gains = [snapshot.score for snapshot in population.archive if not snapshot.idle]
    if least is not None and not gains:
        return "every snapshot idles on validation"
    if least is not None and max(gains) < least:
        where = "validation, a mean over pairs," if run.pbt.pooled else "validation,"
        return f"the best gain over it on {where} {max(gains):.2g} less one error, is below pbt.min_gain {least:g}"
    overfitting = None if most is None or streams is None else archive_overfitting(streams)
    if overfitting is not None and most is not None and overfitting > most:
        return f"a probability of overfitting of {overfitting:.2f} on validation is above pbt.max_overfitting {most:g}"
    return None


def fallback(run: RunConfig, directory: RunDir, market: PairMarket) -> Survivor:
    """What a pair falls back to as its only survivor, its state in the store: the policy that it started from.

    That is the base checkpoint's with ``pbt.fitness_over: base``, else the untrained policy, which is the prior. Ray
    is up.
    """
    if run.pbt.fitness_over == "base":
        name, state = BASE, base_state(run, market, directory.base_survivor(market.pair))
    else:
        name, state = PRIOR, untrained_state(run, market, PRIOR)
    snapshot = Snapshot(StateStore(directory.storage).save(state), name, 0, 0.0, 0.0, 0.0, False, {})
    return Survivor(1, snapshot, policy_from_state(state, run, market.scaler.names))
