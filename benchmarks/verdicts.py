"""How often a verdict is wrong without skill, and how often it finds skill, over thousands of simulated panels.

``python -m benchmarks.verdicts`` draws returns whose true Sharpe ratios are known, lets the product judge them, and
prints claims with binomial intervals beside the nominal rate, or beside the power computed beforehand. With ``--runs``
it reads the probability of backtest overfitting of finished runs by arm, to hold PBT against random search.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from analysis.metrics import sharpe
from analysis.overfitting import arms_overfitting, calibrated, probability_of_overfitting
from analysis.paired import sharpe_difference
from analysis.power import planned_claim_power, planned_power
from analysis.sharpe_tests import deflated_sharpe_ratio, selection_benchmark
from analysis.statistics import weigh
from analysis.superiority import superior_predictive_ability, superior_to
from analysis.verdict import ABOVE, BELOW, judged
from rayconf.keys import derive_key

YEAR = 252
VOLATILITY = 0.01
DEGREES = 5
"""Student's t of the simulated returns, scaled to unit variance."""


@dataclass(frozen=True)
class World:
    """A market of known truth. Sharpe ratios are per year.

    Attributes:
        name: What it shows.
        sessions: Length of test.
        headline: True Sharpe ratio of the headline on test.
        equal_weight: That of equal weight.
        vol_target: That of ``vol_target``.
        correlation: Of the headline's returns with both.
        validation: True Sharpe ratio of every trial on validation.
        validation_sessions: Length of validation.
        trials: Snapshots that selection sees.
        alike: Correlation of their streams.
        pairs: Pairs of a run, all alike.
        looks: Looks at test.
    """

    name: str
    sessions: int = 250
    headline: float = 0.0
    equal_weight: float = 0.0
    vol_target: float = 0.0
    correlation: float = 0.5
    validation: float = 0.0
    validation_sessions: int = 250
    trials: int = 24
    alike: float = 0.8
    pairs: int = 1
    looks: int = 1

    def correlations(self) -> np.ndarray:
        """Of headline, cash, equal weight and ``vol_target``; equal weight and ``vol_target`` correlate 0.95."""
        c = self.correlation
        return np.array([[1, 0, c, c], [0, 0, 0, 0], [c, 0, 1, 0.95], [c, 0, 0.95, 1]], np.float64)

    def planned(self) -> float:
        """Probability of the claim ``above``, computed beforehand."""
        return planned_claim_power(
            self.headline,
            [0.0, self.equal_weight, self.vol_target],
            self.correlations(),
            self.sessions,
            validation_sessions=self.validation_sessions,
            pairs=self.pairs,
            looks=self.looks,
        )


STRONG = {"validation": 6.0, "trials": 1}
"""Validation that leaves no doubt, so that test alone decides."""
NULLS = (
    World("no skill anywhere"),
    World("no skill, 3 years", sessions=750, validation_sessions=750),
    World("as good as vol_target, better than the rest", headline=3, vol_target=3, equal_weight=-3, **STRONG),
    World("the same, 3 years", sessions=750, headline=2, vol_target=2, equal_weight=-2, **STRONG),
    World("the same, 8 pairs", headline=3, vol_target=3, equal_weight=-3, pairs=8, **STRONG),
    World("the same, 4 looks", headline=3, vol_target=3, equal_weight=-3, looks=4, **STRONG),
    World("as good as cash, the rest lose", headline=0, vol_target=-4, equal_weight=-4, **STRONG),
)
SKILLS = (
    World("Sharpe 2 over 1 year", headline=2, validation=2, trials=1),
    World("Sharpe 3 over 1 year", headline=3, validation=3, trials=1),
    World("Sharpe 3 over 1 year, 24 trials", headline=3, validation=3),
    World("Sharpe 1.5 over 5 years", 1250, 1.5, 0.3, 0.3, validation=1.5, validation_sessions=1250, trials=1),
    World("Sharpe 1 over 5 years, EW 0.5", 1250, 1, 0.5, 0.5, 0.9, validation=1, validation_sessions=1250, trials=1),
)


def _noise(generator: np.random.Generator, *size: int) -> np.ndarray:
    return generator.standard_t(DEGREES, size) / math.sqrt(DEGREES / (DEGREES - 2))


def _correlated(generator: np.random.Generator, sessions: int, matrix: np.ndarray) -> np.ndarray:
    """Noise [D, K] of unit variance; the draws of one session share their scale, as markets do."""
    scale = np.sqrt(DEGREES / generator.chisquare(DEGREES, (sessions, 1))) / math.sqrt(DEGREES / (DEGREES - 2))
    return scale * (generator.normal(size=(sessions, len(matrix))) @ np.linalg.cholesky(matrix).T)


def claims(world: World, generator: np.random.Generator, resamples: int = 499) -> list[str]:
    """The claims on one run of a world: a claim per pair, adjusted over the pairs."""
    found = []
    for pair in range(world.pairs):
        moving = np.array([0, 2, 3])
        noise = _correlated(generator, world.sessions, world.correlations()[np.ix_(moving, moving)])
        drift = np.array([world.headline, world.equal_weight, world.vol_target]) / math.sqrt(YEAR)
        returns = VOLATILITY * (noise + drift)
        test = dict(zip(("survivor-1", "equal_weight", "vol_target"), returns.T.copy(), strict=True))
        test["cash"] = np.zeros(world.sessions)
        common = _noise(generator, world.validation_sessions, 1)
        own = _noise(generator, world.validation_sessions, world.trials)
        noise = math.sqrt(world.alike) * common + math.sqrt(1 - world.alike) * own
        snapshots = VOLATILITY * (noise + world.validation / math.sqrt(YEAR))
        best = int(np.argmax([sharpe(stream) for stream in snapshots.T]))
        found.append(
            weigh(
                f"P{pair}/Q{pair}",
                test,
                {"survivor-1": snapshots[:, best]},
                [snapshots],
                looks=world.looks,
                thorough=False,
                resamples=resamples,
            )
        )
    return [one.claim for one in judged(found)]


def rates(world: World, runs: int, seed: int = 0) -> tuple[int, int]:
    """Runs of a world with at least one claim ``above``, and with at least one ``below``."""
    generator = np.random.Generator(np.random.PCG64(derive_key("verdicts", world.name, seed)))
    above = below = 0
    for _ in range(runs):
        found = claims(world, generator)
        above += ABOVE in found
        below += BELOW in found
    return above, below


def share(hits: int, runs: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """Share of hits and its binomial interval (Clopper and Pearson 1934)."""
    interval = binomtest(hits, runs).proportion_ci(confidence)
    return hits / runs, float(interval.low), float(interval.high)


def _selected(generator: np.random.Generator, trials: int, alike: float, sessions: int = 500) -> np.ndarray:
    common = _noise(generator, sessions, 1)
    return math.sqrt(alike) * common + math.sqrt(1 - alike) * _noise(generator, sessions, trials)


def _deflated(trials: int, alike: float) -> Callable[[np.random.Generator], bool]:
    def passes(generator: np.random.Generator) -> bool:
        streams = _selected(generator, trials, alike)
        best = max(range(trials), key=lambda column: sharpe(streams[:, column]))
        return (deflated_sharpe_ratio(streams[:, best], selection_benchmark(streams)[0]) or 0.0) >= 0.95

    return passes


def _paired(sessions: int, correlation: float, memory: float = 0.0) -> Callable[[np.random.Generator], bool]:
    matrix = np.array([[1, correlation], [correlation, 1]])

    def rejects(generator: np.random.Generator) -> bool:
        noise = _correlated(generator, sessions + 1, matrix)
        streams = noise[1:] + memory * noise[:-1] + 0.05
        return not sharpe_difference(streams[:, 0], streams[:, 1], resamples=499).noise

    return rejects


def _spa(generator: np.random.Generator) -> bool:
    streams = _noise(generator, 250, 6)
    others = {str(column): streams[:, column] for column in range(1, 6)}
    return (superior_predictive_ability(streams[:, 0], others, 199) or 1.0) <= 0.05


def _stepwise(generator: np.random.Generator) -> bool:
    streams = _noise(generator, 250, 6)
    return bool(superior_to(streams[:, 0], {str(column): streams[:, column] for column in range(1, 6)}, 0.05, 199))


TESTS: tuple[tuple[str, float, Callable[[np.random.Generator], bool]], ...] = (
    ("paired Sharpe difference, 250 sessions, correlation 0.5", 0.05, _paired(250, 0.5)),
    ("paired Sharpe difference, 1250 sessions, correlation 0.9", 0.05, _paired(1250, 0.9)),
    ("paired, 1250 sessions, autocorrelation 0.2", 0.05, _paired(1250, 0.5, 0.2)),
    ("deflated Sharpe of the best of 1", 0.05, _deflated(1, 0.0)),
    ("deflated Sharpe of the best of 20, independent", 0.05, _deflated(20, 0.0)),
    ("deflated Sharpe of the best of 64, correlation 0.6", 0.05, _deflated(64, 0.6)),
    ("deflated Sharpe of the best of 64, correlation 0.95", 0.05, _deflated(64, 0.95)),
    ("superior ability of 5 against 1", 0.05, _spa),
    ("stepwise, any of 5", 0.05, _stepwise),
)
"""Name, nominal rate, and one draw under the null: whether the test rejects."""


def rejections(test: Callable[[np.random.Generator], bool], draws: int, seed: int = 0) -> int:
    """Rejections among draws under the null."""
    generator = np.random.Generator(np.random.PCG64(derive_key("rejections", seed)))
    return sum(bool(test(generator)) for _ in range(draws))


def null_overfitting(draws: int, sessions: int = 1226, snapshots: int = 64, alike: float = 0.8) -> np.ndarray:
    """Probability of overfitting [draws] of archives whose streams differ by luck alone."""
    generator = np.random.Generator(np.random.PCG64(derive_key("null overfitting", sessions, snapshots, alike)))
    return np.array(
        [probability_of_overfitting(_selected(generator, snapshots, alike, sessions)) for _ in range(draws)]
    )


def _line(name: str, hits: int, runs: int, beside: str) -> str:
    value, low, high = share(hits, runs)
    return f"{name:58} {100 * value:6.2f} % [{100 * low:5.2f}, {100 * high:5.2f}]  {beside}"


def _read_runs(runs: Sequence[Path]) -> None:
    found = arms_overfitting(runs)
    print(f"\n{'run':32} {'arm':10} {'pair':12} snapshots  sessions   PBO")
    for one in found:
        value = "-" if one.probability is None else f"{one.probability:.3f}"
        print(f"{one.run:32} {one.arm:10} {one.pair:12} {one.snapshots:9} {one.sessions:9}   {value}")
    for pair in sorted({one.pair for one in found}):
        known = [one for one in found if one.pair == pair and one.probability is not None]
        random = [one.probability for one in known if one.arm == "random" and one.probability is not None]
        for arm in sorted({one.arm for one in known} - {"random"}):
            own = [one.probability for one in known if one.arm == arm and one.probability is not None]
            line = f"{pair} {arm}: mean {np.mean(own):.3f} over {len(own)}"
            if random:
                line += f"; random search {np.mean(random):.3f} over {len(random)}"
            if len(random) > 1:
                line += f", {calibrated(float(np.mean(own)), random):+.1f} of its standard deviations"
            print(line)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.verdicts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000, help="simulated runs per line")
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=[], metavar="DIR", help="read PBO of finished runs, only"
    )
    arguments = parser.parse_args(argv)
    if arguments.runs:
        _read_runs(arguments.runs)
        return
    draws, began = arguments.draws, time.perf_counter()
    print(f"Rejections under the null, {draws} draws each (95 % binomial interval)")
    for name, nominal, test in TESTS:
        print(_line(name, rejections(test, draws), draws, f"nominal {100 * nominal:g} % at most"), flush=True)
    print(f"\nRuns with a false claim `above`, {draws} runs each; the claim is one-sided, so nominal is 2.5 %")
    for world in NULLS:
        above, below = rates(world, draws)
        print(_line(world.name, above, draws, f"below: {100 * below / draws:.2f} %"), flush=True)
    print(f"\nPower of the claim `above`, {draws} runs each, beside the power computed beforehand")
    for world in SKILLS:
        above, _ = rates(world, draws)
        print(_line(world.name, above, draws, f"planned {100 * world.planned():.1f} %"), flush=True)
    alone = planned_power(1.0, 1250, correlation=0.9, other=0.5)
    print(f"\nA Sharpe ratio 1 above equal weight's 0.5, correlation 0.9, 5 years: planned power {100 * alone:.0f} %")
    values = null_overfitting(max(20, draws // 20))
    tenth, ninth = np.quantile(values, [0.1, 0.9])
    print(
        f"PBO of {len(values)} archives without skill (64 snapshots, correlation 0.8, 1226 sessions): mean "
        f"{values.mean():.3f}, standard deviation {values.std(ddof=1):.3f}, 80 % between {tenth:.2f} and {ninth:.2f}"
    )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
