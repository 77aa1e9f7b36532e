"""Falling back to the prior: what a pair trades where validation does not speak for what was learned."""

import numpy as np

from analysis.overfitting import archive_overfitting
from envs.market import PairMarket
from pbt.generation import untrained_state
from pbt.manifest import Population, Snapshot
from pbt.run_dir import RunDir
from pbt.store import StateStore
from pbt.survivors import Survivor, policy_from_state
from rayconf.run_config import RunConfig

PRIOR = "prior"
"""Stands for the member where nobody trained a survivor."""


def why_prior(run: RunConfig, population: Population, streams: np.ndarray | None) -> str | None:
    """Why the prior takes the place of a pair's survivors; None: it does not.

    Args:
        run: ``pbt.min_gain`` and ``pbt.max_overfitting``.
        population: With its archive, whose scores are smoothed gains over the prior.
        streams: [D, N] session returns of all that validation saw, by generation; None: unknown.
    """
    least, most = run.pbt.min_gain, run.pbt.max_overfitting
    best = max((snapshot.score for snapshot in population.archive if not snapshot.idle), default=0.0)
    if least is not None and best < least:
        return f"the best gain over it on validation, {best:.2f} less one error, is below pbt.min_gain {least:g}"
    overfitting = None if most is None or streams is None else archive_overfitting(streams)
    if overfitting is not None and most is not None and overfitting > most:
        return f"a probability of overfitting of {overfitting:.2f} on validation is above pbt.max_overfitting {most:g}"
    return None


def the_prior(run: RunConfig, directory: RunDir, market: PairMarket) -> Survivor:
    """The untrained policy, which is the prior, as a pair's only survivor; its state goes into the store. Ray is up."""
    state = untrained_state(run, market, PRIOR)
    snapshot = Snapshot(StateStore(directory.storage).save(state), PRIOR, 0, 0.0, 0.0, 0.0, False, {})
    return Survivor(1, snapshot, policy_from_state(state, run, market.scaler.names))
