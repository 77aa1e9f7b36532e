"""``load_policy`` and ``decide``: what the backtest decided on the same day, to the bit, without any later price."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch

from algos.bar_network import BarActorCritic
from algos.bar_policy import build_policy
from algos.module import POLICY_GAIN, perceptron
from algos.policy import EnsemblePolicy, Policy
from algos.stack import decide_on
from analysis.frames import read_frame
from envs.bars import Bars
from envs.batched import uses_drawdown
from envs.ledger import Terms
from envs.market import PairMarket, build_market, load_markets
from envs.replay import Replay, replay
from envs.synthetic import synthetic_pair
from pbt import TradingAccount, TradingPolicy, load_policy
from pbt.survivors import write_policy
from rayconf import RunConfig, UserError
from rayconf.loading import build_config, merge
from tests.commands import environment
from tests.conftest import ROOT

PAIR = "SYNA/SYNB"


def as_frame(bars: Bars) -> pd.DataFrame:
    columns = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
    return pd.DataFrame(columns, index=pd.DatetimeIndex(bars.dates))


def until(legs: tuple[Bars, Bars], bar: int) -> dict[str, Bars]:
    return {leg.ticker: leg.select(slice(0, bar + 1)) for leg in legs}


def accounts_of(rows: pd.DataFrame, market: PairMarket) -> tuple[np.ndarray, np.ndarray]:
    """Equity [K] and dollar holdings [K, 2] at each close decided on, from the daily rows alone: lag 1, in cash before.

    After the fill of the row before, in units of the equity just before it.
    """
    bar = np.searchsorted(market.dates, rows.date.to_numpy())
    move = market.close[bar] / market.fill[bar] - 1
    held = rows[["weight_a", "weight_b"]].to_numpy()
    earned = held * move
    equity = 1 - rows.trading_cost.to_numpy() - rows.financing.to_numpy() + (earned[:, 0] + earned[:, 1])
    cash = np.zeros((1, 2))
    return np.concatenate(([1.0], equity[:-1])), np.concatenate((cash, (held * (1 + move))[:-1]))


@pytest.fixture(scope="module")
def markets(undisturbed: Path) -> Mapping[str, PairMarket]:
    return load_markets(load_policy(undisturbed / "survivors" / "SYNA_SYNB" / "1").run)


@pytest.mark.parametrize("pair", [PAIR, "SYNC/SYND"])
@pytest.mark.parametrize("rank", [None, 1, 3])
def test_decides_what_the_backtest_decided(
    rank: int | None, pair: str, undisturbed: Path, markets: Mapping[str, PairMarket]
) -> None:
    market, folder = markets[pair], undisturbed / "survivors" / pair.replace("/", "_")
    policy = load_policy(folder if rank is None else folder / str(rank))
    assert policy.name == ("ensemble" if rank is None else f"survivor-{rank}")
    assert policy.pair == pair
    daily = read_frame(undisturbed / "frames" / "daily.parquet", scenario="base", pair=pair, policy=policy.name)
    history = policy.history(None)
    legs = synthetic_pair(pair, policy.run.synthetic)
    for split in ("train", "validation", "test"):
        rows = daily.to_pandas().query("split == @split").reset_index(drop=True)
        target = rows[["target_weight_a", "target_weight_b"]].to_numpy()
        assert len(np.unique(target, axis=0)) > 0.9 * len(target), "constant targets would prove nothing"
        equity, holdings = accounts_of(rows, market)
        every = policy.decide(history, TradingAccount(equity, holdings), rows.decision_date)
        assert np.array_equal(every, target), split
        if split != "test":
            continue
        for i in (0, 1, 2, *range(20, len(rows), 37), len(rows) - 1):
            known = until(legs, int(np.searchsorted(market.dates, rows.decision_date[i].to_datetime64())))
            prices = known if i % 2 else {ticker: as_frame(bars) for ticker, bars in known.items()}
            account = TradingAccount(float(equity[i]), holdings[i]) if i else None
            found = policy.decide(prices, account)
            assert found.shape == (2,)
            assert np.array_equal(found, target[i]), rows.decision_date[i]


def test_the_account_matters(undisturbed: Path) -> None:
    """Else the test above would not notice a wrong one."""
    policy = load_policy(undisturbed / "survivors" / "SYNA_SYNB")
    held = np.array([[0.0, 0.0], [0.5, -0.5], [-0.5, 0.5]])
    many = policy.decide(None, TradingAccount(1.0, held))
    assert many.shape == (3, 2)
    assert len(np.unique(many, axis=0)) == 3
    assert np.array_equal(many[1], policy.decide(None, TradingAccount(1.0, held[1])))
    dollars = TradingAccount(np.full(3, 25_000.0), 25_000 * held)
    assert np.array_equal(policy.decide(None, dollars), many)


CONTRACTS = {
    "lag 2 with drawdown": {"env": {"lag": 2, "risk_measure": "drawdown"}},
    "lag 1 with drawdown": {"env": {"lag": 1, "risk_measure": "drawdown"}},
    "lag 3": {"env": {"lag": 3}, "costs": {"leverage": 1.2}},
    "capped": {"env": {"leverage_cap": 0.8}},
    "convolution": {"network": {"encoder": "conv", "encoder_window": 11, "encoder_width": 8, "hidden": [12, 8]}},
}


def some_policy(run: RunConfig, market: PairMarket, seed: int) -> Policy:
    """Random weights that react to market and account."""
    features, account = len(market.scaler.names), 3 if uses_drawdown(run) else 2
    g = torch.Generator().manual_seed(seed)
    if run.network.encoder == "mlp":
        net = perceptron((features + account, *run.network.hidden, 2), run.network.activation, 1.0, g)
        weights = {f"pi.{name}": p for name, p in net.named_parameters()}
    else:
        spaces = [gym.spaces.Box(-np.inf, np.inf, (size,), np.float32) for size in (1 + account, 2)]
        config = {**run.network.model_dump(), "policy_gain": POLICY_GAIN, "key": seed, "features": features}
        module = BarActorCritic(observation_space=spaces[0], action_space=spaces[1], model_config=config)
        weights = {name: p + 0.3 * torch.randn(p.shape, generator=g) for name, p in module.named_parameters()}
    return build_policy(weights, run, market.scaler.names)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_every_contract_of_time_and_account(contract: str, tiny_run: RunConfig, tmp_path: Path) -> None:
    """Lags, drawdown, caps and windows of bars: against a replay, with no more than the past in prices and account."""
    run = build_config(
        merge(merge(tiny_run.model_dump(mode="json"), CONTRACTS[contract]), {"data": {"pairs": [PAIR]}, "search": {}})
    )
    legs = synthetic_pair(PAIR, run.synthetic)
    market = build_market(PAIR, *legs, run)
    members = [some_policy(run, market, seed) for seed in (1, 2)]
    for rank, member in enumerate(members, start=1):
        write_policy(tmp_path / "run" / "survivors" / "SYNA_SYNB" / str(rank), member, market, run)
    policy = load_policy(tmp_path / "run")
    assert policy.name == "ensemble"
    record = backtested(policy.policy, market, run)
    lag, terms = run.env.lag, Terms.from_costs(run.costs)
    assert np.abs(record.target).sum(axis=-1).max() > run.costs.leverage or run.env.leverage_cap, "the cap never bites"

    level = np.concatenate(([1.0], record.equity[:-1, 0]))  # before each fill, in units of the start
    peak, marks = 1.0, [1.0] * lag
    for i in range(120):
        bar = int(record.decision_bar[i, 0])
        assert bar == int(record.fill_bar[i, 0]) - lag
        account = None
        if i:
            now, mark = marks[0], 1.0
            move = market.moves[record.fill_bar[i - 1, 0]]
            held = record.weight[i - 1, 0]
            if lag == 1:
                holdings, pending = held * (1 + move) * level[i - 1], None
            else:
                holdings, pending = None, record.target[i - 1, 0]
            cost = record.turnover[i - 1, 0] * terms.cost + record.financing[i - 1, 0]
            mark = level[i - 1] * (1 - cost + (held * move).sum())
            marks = [*marks[1:], mark]
            now = marks[0]
            peak = max(peak, now)
            account = TradingAccount(now, holdings, pending=pending, peak=peak if uses_drawdown(run) else None)
        if i % 7 == 0 or i < 4:
            found = policy.decide(until(legs, bar), account)
            assert np.array_equal(found, record.target[i, 0]), (i, bar)


def backtested(policy: Policy | EnsemblePolicy, market: PairMarket, run: RunConfig) -> Replay:
    return replay(
        market,
        market.splits["test"],
        decide_on([policy], torch.tensor(market.features)),
        Terms.from_costs(run.costs),
        run.env.lag,
        batch=1,
        leverage=run.costs.leverage,
        drawdown=uses_drawdown(run),
    )


def test_orders_are_what_the_ledger_would_trade(undisturbed: Path) -> None:
    policy = load_policy(undisturbed / "survivors" / "SYNA_SYNB" / "1")
    shares = {"SYNB": -30.0, "SYNA": 400.0}
    found = policy.orders(None, TradingAccount(20_000.0, shares=shares))
    close = np.array([leg.close[-1] for leg in synthetic_pair(PAIR, policy.run.synthetic)])
    assert np.array_equal(found.close, close)
    held = np.array([400.0, -30.0]) * close
    assert found.current == pytest.approx(held / 20_000)
    assert np.array_equal(found.target, policy.decide(None, TradingAccount(20_000.0, held)))
    assert np.array_equal(found.weights, found.target)
    assert found.value == pytest.approx(found.target * 20_000 - held)
    assert found.shares * close == pytest.approx(found.value)
    assert found.cost == pytest.approx(2e-4 * np.abs(found.value).sum())


def with_config(folder: Path, **sections: object) -> Path:
    import yaml

    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(merge(config, sections)))
    return folder


@pytest.fixture
def survivors(undisturbed: Path, tmp_path: Path) -> Path:
    shutil.copytree(undisturbed / "survivors", tmp_path / "survivors")
    return tmp_path / "survivors"


def test_a_folder_that_is_no_survivor_is_named(survivors: Path, tmp_path: Path) -> None:
    pair = survivors / "SYNA_SYNB"
    with pytest.raises(UserError, match=r"survivors of several pairs; give one of .*SYNA_SYNB, .*SYNC_SYND"):
        load_policy(tmp_path)
    assert load_policy(tmp_path, PAIR).pair == PAIR
    with pytest.raises(UserError, match=r"has no survivors of A/B; it has SYNA/SYNB, SYNC/SYND"):
        load_policy(tmp_path, "A/B")
    with pytest.raises(UserError, match=r"nowhere is no folder"):
        load_policy(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no survivor lies here"):
        load_policy(tmp_path / "empty")
    shutil.copytree(pair / "1", tmp_path / "mine")
    with pytest.raises(UserError, match=r"mine: a survivor of which pair\? its run has SYNA/SYNB, SYNC/SYND"):
        load_policy(tmp_path / "mine")
    assert load_policy(tmp_path / "mine", PAIR).pair == PAIR
    (pair / "2" / "policy.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"SYNA_SYNB/2: no readable survivor"):
        load_policy(pair)
    shutil.copy(survivors / "SYNC_SYND" / "2" / "policy.safetensors", pair / "2")
    shutil.copy(survivors / "SYNC_SYND" / "2" / "scaler.json", pair / "2")
    with pytest.raises(UserError, match=r"survivor-1 and survivor-2 do not fit each other"):
        load_policy(pair)
    scaler = json.loads((pair / "1" / "scaler.json").read_text())
    scaler["names"][0] = "b_return_1"
    (pair / "1" / "scaler.json").write_text(json.dumps(scaler))
    with pytest.raises(UserError, match=r"scaler.json is of other features than policy.json"):
        load_policy(pair / "1")
    (pair / "1" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config.yaml"):
        load_policy(pair / "1")


def test_prices_and_accounts_that_do_not_fit(survivors: Path) -> None:
    policy = load_policy(survivors / "SYNA_SYNB")
    legs = synthetic_pair(PAIR, policy.run.synthetic)
    bars = {leg.ticker: leg for leg in legs}

    def refused(what: str, prices: object = None, account: TradingAccount | None = None, **asked: object) -> None:
        with pytest.raises(UserError, match=what):
            policy.decide(prices, account, **asked)  # type: ignore[arg-type]

    refused(r"SYNB missing; the policy trades SYNA and SYNB \(given: SYNA, KO\)", {"SYNA": legs[0], "KO": legs[1]})
    refused(r"249 bars are too few; this policy needs 250", until(legs, 248))
    assert policy.decide(until(legs, 249)).shape == (2,)
    refused(r"249 common bars up to 1775-12-14 are too few; this policy needs 250", bars, dates=legs[0].dates[248])
    refused(r"date 1776-02-03: the prices have no common bar", bars, dates="1776-02-03")
    refused(r"date 'soon'", bars, dates="soon")
    broken = as_frame(legs[0])
    broken.iloc[3, 3] = -1
    refused(r"prices of SYNA: data row 4: close is", {**bars, "SYNA": broken})
    hourly = pd.date_range("2020-01-06", periods=1600, freq="h")
    frames = {leg.ticker: as_frame(leg).set_axis(hourly) for leg in legs}
    refused(r"the policy was trained on daily bars, these are intraday", frames)
    refused(r"equity 0 must be positive", account=TradingAccount(0.0))
    refused(r"equity must be one finite", account=TradingAccount(float("nan")))
    refused(r"holdings of KO, but the policy trades SYNA and SYNB", account=TradingAccount(holdings={"KO": 1.0}))
    refused(r"holdings must be two finite", account=TradingAccount(holdings=[1.0, 2.0, 3.0]))
    refused(r"not both", account=TradingAccount(holdings=[1.0, 2.0], shares=[1.0, 2.0]))
    refused(
        r"dates has 2 rows where another field has 3",
        account=TradingAccount([1.0, 1.0, 1.0]),
        dates=legs[0].dates[[300, 301]],
    )
    refused(r"pending must be left out; with lag 1", account=TradingAccount(pending=[0.1, 0.1]))
    for rank in (1, 2, 3):
        with_config(survivors / "SYNA_SYNB" / str(rank), env={"risk_measure": "drawdown"})
    policy = load_policy(survivors / "SYNA_SYNB")
    refused(r"peak is missing; this policy sees the drawdown", account=TradingAccount(2.0))
    for rank in (1, 2, 3):
        with_config(survivors / "SYNA_SYNB" / str(rank), env={"risk_measure": "variance"}, data={"dir": "prices"})
    policy = load_policy(survivors / "SYNA_SYNB")
    refused(r"was trained on prices from files")


def test_prices_of_other_lengths_say_so(undisturbed: Path) -> None:
    policy: TradingPolicy = load_policy(undisturbed / "survivors" / "SYNA_SYNB")
    a, b = synthetic_pair(PAIR, policy.run.synthetic)
    history = policy.history({"SYNA": a, "SYNB": b.select(slice(0, 1500)), "MORE": a})
    assert history.notes == ("SYNA has bars up to 1781-02-16; the last that both have is 1780-09-29",)
    assert np.array_equal(policy.decide(history), policy.decide(until((a, b), 1499)))


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, pbt; assert 'torch' not in sys.modules; pbt.load_policy; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=True)
    assert "load_policy" in __import__("pbt").__all__
