import numpy as np
import pytest
from scipy.stats import binom

from analysis.superiority import superior_predictive_ability, superior_to
from benchmarks.verdicts import TESTS, rejections

RNG = np.random.default_rng(3)
MARKET = RNG.normal(0, 0.01, 750)


def like(shift: float, leverage: float = 1.0) -> np.ndarray:
    return leverage * (MARKET + RNG.normal(shift, 0.004, 750))


@pytest.mark.parametrize(
    "which", [test for test in TESTS if test[0].startswith(("superior", "stepwise"))], ids=lambda test: test[0]
)
def test_many_accounts_without_skill_are_rejected_at_the_nominal_rate(which) -> None:
    _, nominal, test = which
    assert rejections(test, 200) <= binom.ppf(0.999, 200, nominal * 1.2)


def test_one_good_account_among_idle_ones_is_found() -> None:
    policies = {"good": like(1.5e-3), "twin": like(0.0), "bad": like(-2e-3)}
    assert superior_predictive_ability(MARKET, policies, 199) == 1 / 200
    worse = {name: policies[name] for name in ("twin", "bad")}
    assert superior_predictive_ability(MARKET, worse, 199) > 0.05
    assert superior_predictive_ability(MARKET, {"levered": 3 * MARKET}) is None  # leverage alone is no difference
    assert superior_predictive_ability(MARKET[:19], {"good": MARKET[:19] + 1}) is None


def test_the_stepwise_test_names_those_that_are_beaten() -> None:
    good = like(1.5e-3)
    baselines = {"market": MARKET, "levered": like(0.0, 4.0), "cash": np.zeros(750), "better": good + like(1e-3) / 5}
    found = superior_to(good, baselines, repetitions=299)
    assert set(found) >= {"market", "levered"}
    assert "better" not in found
    assert superior_to(like(-2e-3), baselines, repetitions=299) == ()
    assert superior_to(good, {"itself": 2 * good}) == ()
    assert superior_to(good, baselines, repetitions=299) == found
