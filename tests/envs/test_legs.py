"""The swap of the legs: what it makes of A/B's observations are those of B/A."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from envs.bars import Bars
from envs.batched import BatchedPairTrading, observation_names
from envs.features import compute_features, feature_names
from envs.forecasts import Forecasts, forecast_columns, forecast_names
from envs.legs import swap_legs
from envs.market import PairMarket
from rayconf.run_config import RunConfig
from rayconf.sections import FeaturesConfig, ForecastConfig
from tests.envs.conftest import make_bars, make_market, make_run
from tests.envs.test_features import daily, hourly

WINDOWS = {"return_horizons": (1, 5), "z_windows": (5, 60), "volatility_window": 6, "regime_window": 20}
CHANGES = ("a_return_1", "b_return_1", "spread_z_20", "prior_a", "prior_b")
"""Names for the features of ``make_market``."""


def mirrored(market: PairMarket) -> PairMarket:
    """The market under the other order of its legs, its features those that the swap says."""
    index, sign = swap_legs(CHANGES)
    return replace(
        market,
        fill=market.fill[:, ::-1].copy(),
        close=market.close[:, ::-1].copy(),
        features=market.features[:, index] * np.float32(sign),
    )


def named_market() -> PairMarket:
    market = make_market()
    market.features[:, 0] = np.sin(market.features[:, 0])
    return replace(market, scaler=replace(market.scaler, names=CHANGES))


def made_forecasts(a: Bars, b: Bars, config: ForecastConfig, seed: int) -> tuple[Forecasts, Forecasts]:
    """Forecasts for A/B, and the same ones for B/A."""
    rng = np.random.default_rng(seed)
    shape = (len(a.dates), len(config.horizons), len(config.quantiles))
    leg_a, leg_b, spread = (np.sort(rng.standard_normal(shape), axis=2) for _ in range(3))
    both = []
    for pair, values in (("AAA/BBB", spread), ("BBB/AAA", -spread[:, :, ::-1])):
        series = {"AAA": leg_a, "BBB": leg_b, pair: values}
        made = Forecasts(
            "made", "owner/tiny", "c0ffee", config.horizons, config.quantiles, dict.fromkeys(series, a.dates), series
        )
        both.append(made)
    return both[0], both[1]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    prior=st.sampled_from(["flat", "vol_target", "spread"]),
    intraday=st.booleans(),
)
def test_features_of_the_swapped_market_are_the_swapped_features(seed: int, prior: str, intraday: bool) -> None:
    config = FeaturesConfig(**WINDOWS, prior=prior, prior_volatility=0.1, prior_half_life=10.0)
    asked = ForecastConfig(
        series=("b", "spread", "a"), horizons=(1, 5), quantiles=(0.05, 0.1, 0.5, 0.9, 0.95), digest="0" * 16
    )
    dates = hourly(60) if intraday else daily(400)
    a, b = make_bars("AAA", dates, seed), make_bars("BBB", dates, seed + 1)
    ours, theirs = made_forecasts(a, b, asked, seed)
    here = np.concatenate((compute_features(a, b, config), forecast_columns(ours, a, b, config, asked)), axis=1)
    there = np.concatenate((compute_features(b, a, config), forecast_columns(theirs, b, a, config, asked)), axis=1)
    names = (*feature_names(config, intraday), *forecast_names(asked))
    index, sign = swap_legs(names)
    kept = np.array(names) != "hedge_ratio"
    np.testing.assert_allclose((here[:, index] * sign)[:, kept], there[:, kept], rtol=0, atol=1e-9)
    assert not np.allclose(here[200:, ~kept], there[200:, ~kept]), "one slope is not the other"
    again = here[:, index] * sign
    assert np.array_equal(again[:, index] * sign, here, equal_nan=True), "swapping twice is nothing"


@pytest.mark.parametrize(
    "env",
    [
        {"risk_measure": "drawdown", "lag": 2},
        {"mapping": "neutral"},
        {"mapping": "residual", "adjustment": 0.5, "no_trade_band": 0.01},
    ],
)
def test_accounts_of_the_swapped_market_see_the_swapped_observations(env: dict[str, object]) -> None:
    """Under swapped actions, and earn the same."""
    run: RunConfig = make_run(**env)
    here, there = (
        BatchedPairTrading(market, run, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for market in (named_market(), mirrored(named_market()))
    )
    index, sign = swap_legs(observation_names(CHANGES, run))
    seen, other = here.open_windows(30), there.open_windows(30)
    draw = torch.Generator().manual_seed(2)
    for _ in range(30):
        torch.testing.assert_close(seen[:, index] * torch.tensor(sign), other, rtol=0, atol=1e-12)
        action = 2 * torch.rand(20, 2, generator=draw, dtype=torch.float64) - 1
        (seen, ours), (other, theirs) = here.advance(action), there.advance(action.flip(1))
        torch.testing.assert_close(ours.net_return, theirs.net_return, rtol=0, atol=1e-12)
    assert (seen[:, 5] - seen[:, 6]).abs().min() > 1e-3, "the legs of an account differ"


def test_a_column_without_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="column a_gap has no mirror image: b_gap is missing"):
        swap_legs(("a_gap", "a_weight", "b_weight"))
    with pytest.raises(ValueError, match=r"forecast_spread_5_q0\.1 has no mirror image: forecast_spread_5_q0\.9"):
        swap_legs(("forecast_spread_5_q0.1",))
    with pytest.raises(ValueError, match="column moon: nothing is known of it"):
        swap_legs(("moon",))
