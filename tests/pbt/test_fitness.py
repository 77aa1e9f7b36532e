"""Fitness against independent code, at its edges, and on planted policies."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from arch.bootstrap import CircularBlockBootstrap

from envs.ledger import Terms
from envs.market import PairMarket, load_markets
from envs.replay import replay
from pbt import fitness
from pbt.baselines import constant
from rayconf import RunConfig, load_config
from rayconf.sections import PBTConfig

PBT = PBTConfig(bootstrap=2000)
DATES = np.arange("2000-01-03", "2010-01-01", dtype="datetime64[D]")
DATES = DATES[np.is_busday(DATES)].astype("datetime64[us]")


def returns(seed: int, length: int = 1000, mean: float = 4e-4) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(seed))
    noise = rng.standard_normal(length + 4)
    return mean + 0.01 * np.convolve(noise, [1, 0.4, 0.2, 0.1, 0.05], "valid")  # correlated, so that blocks matter


def floored(x: np.ndarray, per_year: float = 252) -> float:
    """The definition, once more."""
    return math.sqrt(per_year) * x.mean() / math.sqrt(x.var() + 0.05**2 / per_year)


def full_gross(length: int) -> np.ndarray:
    return np.ones(length)


def test_standard_error_agrees_with_arch() -> None:
    x = returns(1)
    reference = CircularBlockBootstrap(21, x, seed=3)
    expected = reference.apply(floored, 2000).std(ddof=1)
    measured = fitness.evaluate(x, full_gross(1000), DATES[:1000], 252, False, PBT, 0).se
    assert measured == pytest.approx(expected, rel=0.06)  # two estimates from 2000 resamples each: 1.6 % apart


def test_value_is_the_median_of_windows_less_one_error() -> None:
    x = returns(3)
    result = fitness.evaluate(x, full_gross(1000), DATES[:1000], 252, False, PBT, 0)
    windows = [floored(x[s : s + 126]) for s in range(0, 1000 - 126 + 1, 21)]
    assert result.windows == len(windows) == 42
    assert result.value == pytest.approx(np.median(windows) - result.se, rel=1e-12)


def test_fitness_over_another_account_is_the_median_gain_less_the_error_of_the_paired_difference() -> None:
    other, x = returns(3), returns(3) + 0.3 * returns(8)
    found = fitness.evaluate(x, full_gross(1000), DATES[:1000], 252, False, PBT, 0, over=other)
    starts = range(0, 1000 - 126 + 1, 21)
    gains = [floored(x[s : s + 126]) - floored(other[s : s + 126]) for s in starts]
    assert found.value == pytest.approx(np.median(gains) - found.se, rel=1e-12)
    both = CircularBlockBootstrap(21, np.stack((x, other), axis=1), seed=3)
    expected = both.apply(lambda rows: floored(rows[:, 0]) - floored(rows[:, 1]), 2000).std(ddof=1)
    assert found.se == pytest.approx(expected, rel=0.06)
    assert found.se < fitness.evaluate(x, full_gross(1000), DATES[:1000], 252, False, PBT, 0).se
    same = fitness.evaluate(other, full_gross(1000), DATES[:1000], 252, False, PBT, 0, over=other)
    assert (same.value, same.se) == (0.0, 0.0)
    growth = replace_metric(PBT)
    found = fitness.evaluate(x, full_gross(1000), DATES[:1000], 252, False, growth, 0, over=other)
    gain = 252 * (np.log1p(x).mean() - np.log1p(other).mean())
    assert found.value == pytest.approx(gain - found.se, rel=1e-9)


def replace_metric(pbt: PBTConfig) -> PBTConfig:
    return pbt.model_copy(update={"fitness": "growth"})


def test_few_windows_pool() -> None:
    x = returns(4, 200)
    result = fitness.evaluate(x, full_gross(200), DATES[:200], 252, False, PBT, 0)
    assert result.windows == 4
    assert result.value == pytest.approx(floored(x) - result.se, rel=1e-12)


def test_growth_is_log_growth_per_year() -> None:
    pbt = PBT.model_copy(update={"fitness": "growth"})
    x = returns(5)
    result = fitness.evaluate(x, full_gross(1000), DATES[:1000], 252, False, pbt, 0)
    assert result.value + result.se == pytest.approx(252 * np.log1p(x).mean(), rel=1e-12)


def test_edges() -> None:
    cash = fitness.evaluate(np.zeros(500), np.zeros(500), DATES[:500], 252, False, PBT, 0)
    assert (cash.value, cash.se, cash.idle, cash.broken) == (0.0, 0.0, True, False)
    ruined = fitness.evaluate(np.zeros(500), np.zeros(500), DATES[:500], 252, True, PBT, 0)
    diverged = fitness.evaluate(np.full(500, np.nan), full_gross(500), DATES[:500], 252, False, PBT, 0)
    assert ruined.value == diverged.value == fitness.BROKEN
    assert ruined.broken
    assert diverged.broken


def test_intraday_bars_are_compounded_to_sessions() -> None:
    hours = np.timedelta64(1, "h").astype("timedelta64[us]")
    dates = (DATES[:300, None] + hours * np.arange(14, 21)).ravel()
    bars = returns(6, 2100) / 3
    daily = np.prod(1 + bars.reshape(300, 7), axis=1) - 1
    fine = fitness.evaluate(bars, full_gross(2100), dates, 252, False, PBT, 0)
    coarse = fitness.evaluate(daily, full_gross(300), DATES[:300], 252, False, PBT, 0)
    assert fine.value == pytest.approx(coarse.value, rel=1e-12)


def test_the_bootstrap_depends_on_its_key_alone() -> None:
    x = returns(7)
    one, again, other = (fitness.evaluate(x, full_gross(1000), DATES[:1000], 252, False, PBT, key) for key in (1, 1, 2))
    assert one == again
    assert one.se != other.se


def test_paired_gap_cancels_what_members_share() -> None:
    """A donor that is the member plus a small steady gain: tiny error beside that of either account."""
    member = returns(8)
    donor = member + 2e-4 + 1e-5 * returns(9)
    calendar = fitness.Calendar([DATES[:1000]], [252])
    gap = fitness.paired_gap([donor], [member], calendar, PBT, 0)
    alone = fitness.evaluate(member, full_gross(1000), DATES[:1000], 252, False, PBT, 0).se
    assert gap.value == pytest.approx(floored(donor) - floored(member), rel=1e-9)
    assert gap.se < alone / 10
    assert gap.exceeds(1.0)
    assert not fitness.paired_gap([member], [member], calendar, PBT, 0).exceeds(0.0)
    unrelated = fitness.paired_gap([returns(10)], [member], calendar, PBT, 0)
    assert unrelated.se > alone


def plain_market(seed: int) -> tuple[RunConfig, PairMarket]:
    run = load_config(
        "smoke",
        assignments=[
            "synthetic.form=plain",
            "synthetic.bars=5294",
            "split.fractions=[0.2, 0.6, 0.2]",
            f"synthetic.seed={seed}",
            "data.pairs=[SYNA/SYNB]",
        ],
    )
    return run, load_markets(run)["SYNA/SYNB"]


def planted_fitness(run: RunConfig, market: PairMarket, targets: dict[str, np.ndarray]) -> dict[str, fitness.Fitness]:
    tables = [torch.from_numpy(table) for table in targets.values()]
    record = replay(
        market,
        market.splits["validation"],
        None,
        Terms.from_costs(run.costs),
        1,
        batch=len(targets),
        leverage=1.5,
        recorded=tables,
    )
    return {
        name: fitness.evaluate(
            record.net_return[:, i],
            record.gross[:, i],
            market.dates[record.fill_bar[:, i]],
            252,
            bool(record.equity[-1, i] <= run.costs.ruin_fraction),
            run.pbt,
            run.seed,
        )
        for i, name in enumerate(targets)
    }


def planted_policies(market: PairMarket) -> dict[str, np.ndarray]:
    side = np.sign(np.log(market.close[:, 1] / market.close[:, 0]))
    rng = np.random.Generator(np.random.PCG64(0))
    return {
        "sign": np.stack((side, -side), axis=1) * 0.75,
        "cash": constant(market, 0.0, 0.0),
        "noise": 0.0005 * np.sign(rng.standard_normal((len(market.dates), 2))),
        "equal_weight": constant(market, 0.5, 0.5),
    }


def test_planted_policies_rank_in_the_right_order() -> None:
    """sign(s) first; then cash and noise of 0.1 % gross near it; equal weight, which pays its error; ruin last.

    Equal weight earns nothing on this market, and on one path its luck has as large an error as its penalty; so
    the order is that of the medians over nine markets.
    """
    found: dict[str, list[fitness.Fitness]] = {}
    for seed in range(9):
        run, market = plain_market(seed)
        planted = planted_policies(market)
        for name, value in planted_fitness(run, market, planted).items():
            found.setdefault(name, []).append(value)
        # Ruin needs a crash: a leveraged account when both legs fall by 99 %, then nothing but cash.
        crash = market.splits["validation"].start + 50
        fall = np.where(np.arange(len(market.dates)) >= crash, 0.01, 1.0)[:, None]
        crashed = replace(market, fill=market.fill * fall, close=market.close * fall)
        early = constant(market, 0.75, 0.75) * (np.arange(len(market.dates)) < crash + 10)[:, None]
        found.setdefault("ruined", []).append(planted_fitness(run, crashed, {"ruined": early})["ruined"])

    middle = {name: float(np.median([f.value for f in values])) for name, values in found.items()}
    assert middle["sign"] > 0.5
    assert middle["cash"] == 0.0
    assert abs(middle["noise"]) < 0.02
    assert middle["ruined"] == fitness.BROKEN
    assert sorted(middle, key=lambda name: -middle[name]) == ["sign", "cash", "noise", "equal_weight", "ruined"]
    assert {name for name, values in found.items() if all(f.idle for f in values)} == {"cash", "noise", "ruined"}


def test_without_the_floor_tiny_positions_score_like_real_ones() -> None:
    run, market = plain_market(0)
    bare = run.model_copy(update={"pbt": run.pbt.model_copy(update={"floor_volatility": 0.0})})
    noise = {"noise": planted_policies(market)["noise"]}
    floored_value = planted_fitness(run, market, noise)["noise"].value
    assert abs(planted_fitness(bare, market, noise)["noise"].value) > 10 * abs(floored_value)


def test_windows_that_fit() -> None:
    assert [len(fitness.window_starts(n, PBT)) for n in (125, 126, 146, 147, 1225)] == [0, 1, 1, 2, 53]
