"""Priors: what they are, that they see no later bar and no earlier one than they say, and that policies start there."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from algos.bar_policy import build_policy
from algos.config import PairPPOConfig
from algos.evaluation import replay_policy
from algos.policy import EnsemblePolicy, Policy
from algos.stack import decide_on
from envs.bars import Bars
from envs.features import compute_features, feature_names, lookback, z_score
from envs.ledger import Terms
from envs.mapping import ActionMap
from envs.market import PairMarket
from envs.prior import PRIOR_COLUMNS, fading_mean
from envs.replay import replay
from envs.scaler import Scaler
from pbt.baselines import vol_target_scale
from pbt.generation import evaluate
from rayconf.run_config import RunConfig
from rayconf.sections import FeaturesConfig
from tests.algos.conftest import small_run
from tests.envs.conftest import make_bars, weekday_dates

PRIORS = ("vol_target", "spread")


def config(prior: str) -> FeaturesConfig:
    return FeaturesConfig(prior=prior, prior_volatility=0.15, prior_half_life=20)


def legs(bars: int = 600) -> tuple[Bars, Bars]:
    dates = weekday_dates(bars)
    return make_bars("AAA", dates, 1), make_bars("BBB", dates, 2)


def columns(a: Bars, b: Bars, prior: str) -> np.ndarray:
    names = feature_names(config(prior), intraday=False)
    assert names[-2:] == PRIOR_COLUMNS
    return compute_features(a, b, config(prior))[:, -2:]


def test_a_fading_mean_is_pandas_exponential_mean_but_for_what_it_forgets() -> None:
    values = np.random.default_rng(0).standard_normal(700) ** 2
    expected = pd.Series(values).ewm(halflife=12.5).mean().to_numpy()
    found = fading_mean(values, 12.5)
    np.testing.assert_allclose(found[:125], expected[:125], rtol=1e-12)
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_volatility_target_shrinks_equal_weight() -> None:
    a, b = legs()
    weights = columns(a, b, "vol_target")
    change = np.diff(np.stack((a.close, b.close), axis=1), axis=0) / np.stack((a.close, b.close), axis=1)[:-1]
    t = 450
    past = change.mean(axis=1)[t - 200 : t][::-1]
    volatility = np.sqrt(252 * np.average(past**2, weights=0.5 ** (np.arange(200) / 20)))
    np.testing.assert_allclose(weights[t], 0.5 * min(1.0, 0.15 / volatility), rtol=1e-9)


def test_the_spread_prior_leans_against_the_spread() -> None:
    a, b = legs()
    weights = columns(a, b, "spread")
    aim = np.clip(-z_score(np.log(a.close) - np.log(b.close), 60) / 2, -1, 1)
    t = 450
    lean = 0.5 * np.average(aim[t - 99 : t + 1][::-1], weights=0.5 ** (np.arange(100) / 10))
    np.testing.assert_allclose(weights[t], [lean, -lean], rtol=1e-9)


@pytest.mark.parametrize("prior", PRIORS)
def test_a_prior_is_a_function_of_its_window_to_the_bit(prior: str) -> None:
    a, b = legs()
    whole, need = columns(a, b, prior), lookback(config(prior))
    for first, stop in ((0, 420), (37, 600), (600 - need, 600)):
        part = columns(*(replace(x, **{n: getattr(x, n)[first:stop] for n in FIELDS}) for x in (a, b)), prior)
        assert np.isnan(part[: need - 1]).all()
        np.testing.assert_array_equal(part[need - 1 :], whole[first + need - 1 : stop])


FIELDS = ("dates", "open", "high", "low", "close", "volume")


@pytest.mark.parametrize("extremes", ["clip", "tanh"])
def test_no_scaler_touches_a_prior(extremes: str) -> None:
    a, b = legs()
    chosen = config("vol_target").model_copy(update={"extremes": extremes, "extreme_limit": 0.1})
    values = compute_features(a, b, chosen)[lookback(chosen) :]
    scaler = Scaler.fit(values, feature_names(chosen, False), chosen)
    scaled = scaler.apply(values)
    np.testing.assert_array_equal(scaled[:, -2:], values[:, -2:].astype(np.float32))
    assert np.abs(scaled[:, :-2]).max() <= 0.1


# --- policies -------------------------------------------------------------------------------------------------------


def residual_run(*settings: str) -> RunConfig:
    return small_run("env.mapping=residual", *settings)


def market_of(run: RunConfig) -> PairMarket:
    from envs.market import load_markets

    return load_markets(run)["SYNA/SYNB"]


@pytest.mark.parametrize("encoder", ["mlp", "factored"])
def test_an_untrained_policy_is_the_prior(ray_session: None, encoder: str) -> None:
    run = residual_run(f"network.encoder={encoder}")
    assert run.features.prior == "vol_target"
    market = market_of(run)
    algorithm = PairPPOConfig.from_run(run, market.pair).build_algo()
    policy = algorithm.evaluation_policy()
    algorithm.stop()
    found = replay_policy(policy, market, run, "test")
    baseline = np.repeat(0.5 * vol_target_scale(market, run)[:, None], 2, axis=1).round(4)
    expected = replay(
        market, market.splits["test"], None, Terms.from_costs(run.costs), run.env.lag,
        batch=1, leverage=run.costs.leverage, recorded=[torch.from_numpy(baseline)],
    )  # fmt: skip
    np.testing.assert_allclose(found.target, expected.target, rtol=0, atol=1.01e-4)  # a float32 may round otherwise
    np.testing.assert_allclose(found.equity, expected.equity, rtol=1e-4)
    assert np.ptp(found.target) > 0
    evaluation = evaluate(run, market, policy, 1)
    assert (evaluation.figures["fitness"], evaluation.figures["fitness_se"]) == (0.0, 0.0), (
        "it gains nothing over itself"
    )
    assert evaluation.figures["val_sharpe"] != 0


def residual_policy(run: RunConfig, market: PairMarket, seed: int) -> Policy:
    generator = torch.Generator().manual_seed(seed)
    inputs = len(market.scaler.names) + 2
    weights = {
        "pi.0.weight": 0.3 * torch.randn(8, inputs, generator=generator),
        "pi.0.bias": torch.zeros(8),
        "pi.2.weight": torch.randn(2, 8, generator=generator),
        "pi.2.bias": torch.zeros(2),
    }
    return build_policy(weights, run, market.scaler.names)


def test_policies_of_different_maps_share_a_stack_and_a_file(tmp_path) -> None:
    run = residual_run()
    market = market_of(run)
    settings = [{}, {"reach": 0.5}, {"adjustment": 0.2, "no_trade_band": 0.01}, {"leverage_cap": 0.4}]
    policies = [
        residual_policy(run.model_copy(update={"env": run.env.model_copy(update=changed)}), market, i)
        for i, changed in enumerate(settings)
    ]
    team = [EnsemblePolicy(policies), *policies]
    features = torch.tensor(market.features)
    bars = range(400, 440)
    at = torch.arange(400, 440).repeat(len(team))
    account = torch.randn(len(at), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 3
    rows = torch.arange(len(at))
    together = decide_on(team, features, len(bars)).among(rows, bars)(at, account)
    apart = [policy.decide(features[at[:40]].double(), account[40 * i : 40 * (i + 1)]) for i, policy in enumerate(team)]
    assert torch.equal(together, torch.cat(apart))
    for i, policy in enumerate(policies):
        policy.save(tmp_path / str(i))
        assert Policy.load(tmp_path / str(i)).action_map == policy.action_map
    action = torch.zeros(3, 2, dtype=torch.float64)
    prior = torch.tensor([[0.2, 0.3], [0.4, -0.1], [0.0, 0.1]], dtype=torch.float64)
    assert torch.equal(ActionMap.of(run).targets(action, prior), prior)
