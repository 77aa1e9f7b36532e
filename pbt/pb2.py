"""Population-Based Bandits (PB2, Parker-Holder et al. 2020, arXiv:2002.02518): where to explore, from what was gained.

A Gaussian process models the fitness gained in a generation over time and the hyperparameters in force, in unit space.
Its kernel is Ray's own for PB2: squared exponential in the hyperparameters, times a factor that forgets with time
(Bogunovic et al. 2016). New values maximise an upper confidence bound. Members that move at the same barrier, or go on
with values of their own, shrink the uncertainty where they will look, so that they spread (Desautels et al. 2014).

Whole numbers and choices are ordered positions in unit space too: candidates are moved to positions that have a value
before they are compared, so that the process is asked about what would really be in force (Garrido-Merchan and
Hernandez-Lobato 2020).

Unlike Ray's scheduler: candidates are a keyed Sobol sequence instead of numpy's global random numbers, the bound uses
the standard deviation of the paper's equation, and noise is a fitted term of its own.
"""

import math
import random
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from ray.tune.schedulers.pb2_utils import TV_SquaredExp, standardize
from scipy.stats import qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import WhiteKernel

from pbt.manifest import Observation
from pbt.search import Values, from_unit, is_discrete, to_unit
from rayconf.search import Range

CANDIDATES_LOG2 = 9
"""The bound is maximised over 512 points."""
BETA = (0.2, 0.4)
"""Constants of the bound's width sqrt(c1 + max(0, log(c2 * rows))), as the paper's authors set them."""


def rows_needed(search: Mapping[str, Range]) -> int:
    """Observations from which the process is trusted: two per dimension, time included."""
    return 2 * (len(search) + 1)


class Bandit:
    """The explore step of one barrier; it remembers what it has proposed.

    Args:
        search: The search space.
        generation: The generation that is to come.
        observations: What past generations gained; one that broke the account counts as the worst gain seen.
        pending: Hyperparameters already in force for that generation.
    """

    def __init__(
        self,
        search: Mapping[str, Range],
        generation: int,
        observations: Sequence[Observation],
        pending: Sequence[Values],
    ) -> None:
        self._search, self._generation = dict(sorted(search.items())), generation
        self._pending = [self._point(generation, values) for values in pending]
        self._rows = np.array([self._point(o.generation, o.hyperparameters) for o in observations])
        gained = [o.change for o in observations if o.change is not None]
        worst = min(gained, default=0.0)
        target = standardize(np.array([worst if o.change is None else o.change for o in observations]))
        kernel = TV_SquaredExp(lengthscale_bounds=(1e-2, 1e2)) + WhiteKernel(0.5, (1e-2, 2.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told of parameters that end at a bound
            self._mean = GaussianProcessRegressor(kernel).fit(self._rows, target)

    def __call__(self, values: Values, rng: random.Random) -> Values:
        """New hyperparameters; the old ones do not matter."""
        sobol = qmc.Sobol(len(self._search), rng=np.random.Generator(np.random.PCG64(rng.getrandbits(64))))
        points = np.insert(sobol.random_base2(CANDIDATES_LOG2), 0, self._generation, axis=1)
        for column, space in enumerate(self._search.values(), start=1):
            if is_discrete(space):
                points[:, column] = [to_unit(from_unit(share, space), space) for share in points[:, column].tolist()]
        best = points[int(np.argmax(self._bound(points)))]
        self._pending.append(best.tolist())
        shares = zip(self._search.items(), best[1:], strict=True)
        return {name: from_unit(float(share), space) for (name, space), share in shares}

    def _bound(self, points: np.ndarray) -> np.ndarray:
        """Upper confidence bound [N] at points [N, 1 + H]: time, then shares."""
        rows = np.vstack([self._rows, *self._pending])
        known = GaussianProcessRegressor(self._mean.kernel_, optimizer=None).fit(rows, np.zeros(len(rows)))
        _, deviation = known.predict(points, return_std=True)
        noise = self._mean.kernel_.k2.noise_level
        beta = BETA[0] + max(0.0, math.log(BETA[1] * len(self._rows)))
        return self._mean.predict(points) + np.sqrt(beta * np.maximum(deviation**2 - noise, 0))

    def _point(self, generation: int, values: Mapping[str, float]) -> list[float]:
        return [float(generation), *(to_unit(values[name], space) for name, space in self._search.items())]
