"""Universes and augmentation: what training episodes are drawn from, and that no later bar is in it."""

from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from envs.bars import Bars
from envs.batched import BatchedPairTrading
from envs.features import lookback
from envs.histories import histories, stationary_rows
from envs.market import Borders, PairMarket, build_market, load_markets
from envs.prior import PRIOR_COLUMNS
from envs.training_bars import TrainingBars
from envs.universe import MOST_TICKERS, listed, universe_of, universe_pairs, with_universe
from rayconf.errors import UserError
from rayconf.loading import build_config, load_config
from rayconf.run_config import RunConfig
from tests.algos.conftest import small_run
from tests.envs.conftest import make_bars, make_market, make_run, weekday_dates

DATES = weekday_dates(1600)
BORDERS = Borders(DATES[1000], DATES[1300])
FIELDS = ("features", "steps")


def legs(shift: float = 0.0) -> dict[str, tuple[Bars, Bars]]:
    """Three tickers, one of them younger; ``shift`` changes every price from the border of validation on."""
    tickers = {"AAA": make_bars("AAA", DATES, 1), "BBB": make_bars("BBB", DATES, 2)}
    tickers["NEW"] = make_bars("NEW", DATES[500:], 3)
    for name, bars in tickers.items():
        factor = np.where(bars.dates >= BORDERS.validation, 1 + shift, 1.0)
        tickers[name] = replace(bars, **{x: getattr(bars, x) * factor for x in ("open", "high", "low", "close")})
    return {pair: tuple(tickers[x] for x in pair.split("/")) for pair in ("AAA/BBB", "BBB/AAA", "AAA/NEW")}


def make_universe(run: RunConfig, shift: float = 0.0) -> TrainingBars:
    return universe_of(legs(shift), run, BORDERS)[0]


def test_pairs_of_a_universe() -> None:
    run = make_run({"universe": {"tickers": ["A", "B", "C", "D"], "pairs": ["X/Y", "A/B"], "held_out": ["D"]}})
    assert universe_pairs(run) == ("A/B", "A/C", "B/A", "B/C", "C/A", "C/B", "X/Y")


@pytest.mark.parametrize(
    ("universe", "message"),
    [
        ({"tickers": ["A", "B"], "held_out": ["B"]}, "leave no pair"),
        ({"pairs": ["A/B"], "held_out": ["B"]}, "pairs: A/B has a ticker that is held out"),
        ({"pairs": ["A-B"]}, "universe.pairs: 'A-B' is no pair"),
        ({"tickers": ["A", "B/C"]}, "universe: 'B/C' is no ticker"),
    ],
)
def test_universes_that_cannot_be_are_refused(universe: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config({"universe": universe})


def test_a_universe_holds_the_training_bars_of_its_pairs_and_no_later_one() -> None:
    run = make_run({"augment": {"histories": 2, "block": 20}})
    apart = {"AAA/OLD": (legs()["AAA/BBB"][0], make_bars("OLD", weekday_dates(1600) - np.timedelta64(8000, "D"), 4))}
    bars, left_out = universe_of(legs() | apart, run, BORDERS)
    assert left_out == ["AAA/NEW", "AAA/OLD"], "248 bars after burn-in are too few, and so are none"
    assert bars.pairs == ("AAA/BBB",) * 3 + ("BBB/AAA",) * 3
    for span in bars.spans:
        assert span.rows == 1000 - 1 - run.split.burn
    market = build_market("AAA/BBB", *legs()["AAA/BBB"], run, BORDERS)
    train, span = market.splits["train"], bars.spans[0]
    np.testing.assert_array_equal(bars.features[span.start : span.stop], market.features[train.start : train.stop])
    np.testing.assert_array_equal(
        bars.steps[span.start : span.stop - 1, :2], market.returns[train.start : train.stop - 1]
    )
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(bars, name), getattr(make_universe(run, shift=0.3), name))


def test_too_little_history_for_every_pair_is_refused() -> None:
    with pytest.raises(UserError, match=r"universe: none of its 3 pairs has 252 bars of training .* 2001-12"):
        universe_of(legs(), make_run(), Borders(DATES[250], DATES[1300]))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(count=st.integers(1, 400), block=st.floats(1, 50), seed=st.integers(0, 99))
def test_resampled_rows_are_runs_of_neighbours(count: int, block: float, seed: int) -> None:
    rows = stationary_rows(np.random.default_rng(seed), count, block)
    assert rows.shape == (count,)
    assert rows.min() >= 0
    assert rows.max() < count


def test_runs_have_the_mean_length_that_is_asked_for() -> None:
    rows = stationary_rows(np.random.default_rng(0), 200_000, 25.0)
    breaks = np.count_nonzero((np.diff(rows) % len(rows)) != 1)
    assert len(rows) / breaks == pytest.approx(25, rel=0.05)
    assert np.bincount(rows // 20_000, minlength=10).max() < 2 * 20_000, "days count alike"


def test_a_history_is_made_of_the_days_of_training_with_both_legs_together() -> None:
    run = make_run({"augment": {"histories": 1, "block": 10}})
    a, b = legs()["AAA/BBB"]
    market = build_market("AAA/BBB", a, b, run, BORDERS)
    made = histories(market, a, b, run, BORDERS)[0]
    days = {tuple(np.round(row, 10)) for row in np.diff(np.log(market.close[:1000]), axis=0)}
    assert {tuple(np.round(row, 10)) for row in np.diff(np.log(made.close), axis=0)} <= days
    assert len(made.dates) == 1000
    assert made.scaler is market.scaler
    first = lookback(run.features)
    assert np.isfinite(made.features[first:]).all()
    assert not np.array_equal(made.features[first:], market.features[first:1000])


# --- variation within the environment -------------------------------------------------------------------------------


def environment(market: PairMarket, accounts: int = 256, **augment: float) -> BatchedPairTrading:
    run = make_run({"augment": augment}, train_cost_bps=7.0)
    return BatchedPairTrading(market, run, accounts, generator=torch.Generator().manual_seed(0))


def test_noise_is_on_features_alone_and_new_at_each_step() -> None:
    market = make_market()
    market = replace(market, scaler=replace(market.scaler, names=("0", "1", "2", *PRIOR_COLUMNS)))
    env = environment(market, noise=0.25)
    offsets = []
    for _ in range(20):
        seen = env.reset() if not offsets else env.step(torch.ones(256, 2)).observation
        offsets.append(seen[:, :5] - torch.tensor(market.features)[env._bar])
    offset = torch.stack(offsets)
    assert bool((offset[..., 3:] == 0).all())
    assert float(offset[..., :3].std()) == pytest.approx(0.25, rel=0.05)
    assert not torch.equal(offset[1], offset[0])


def test_costs_are_drawn_once_an_episode_between_the_cost_and_its_multiple() -> None:
    env = environment(make_market(), cost_factor=3.0)
    env.reset()
    drawn = [env._terms.cost]
    ended = torch.zeros(256, dtype=torch.bool)
    for _ in range(30):
        step = env.step(torch.ones(256, 2))
        ended |= step.truncated
        drawn.append(env._terms.cost)
        fresh = drawn[-1] != drawn[-2]
        assert torch.equal(fresh, step.truncated)
    assert bool(ended.all())
    costs = torch.stack(drawn) * 1e4
    assert float(costs.min()) >= 7 * (1 - 1e-6)
    assert float(costs.max()) <= 21 * (1 + 1e-6)
    assert float(drawn[0].mean()) * 1e4 == pytest.approx(14, rel=0.1)


# --- training -------------------------------------------------------------------------------------------------------


def test_the_run_says_what_it_trains_on() -> None:
    run = small_run("universe.pairs=SYNC/SYND,SYNE/SYNF", "augment.histories=2")
    market = with_universe(load_markets(run), run)["SYNA/SYNB"]
    rows = market.splits["train"].rows
    assert market.notes[-1] == f"universe: trains on {6 * rows:,} fills of 2 pairs and 4 resampled histories"
    assert market.training is not None


def test_all_tickers_are_written_out(tmp_path: Path) -> None:
    """``*`` is what the folder holds; on the embedded market, the tickers of the pairs."""
    everything = ("universe.tickers=*",)
    run = load_config("smoke", assignments=everything)
    assert listed(run).universe.tickers == ("SYNA", "SYNB", "SYNC", "SYND")
    assert universe_pairs(run) == universe_pairs(listed(run))
    names = ("BBB.csv", "AAA.Parquet", "no_ticker.csv", "notes.txt")
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "CCC.csv").mkdir()
    there = f"data.dir={tmp_path}"
    found = listed(load_config("smoke", assignments=[*everything, there, "data.pairs=[AAA/BBB]"]))
    assert found.universe.tickers == ("AAA", "BBB")
    assert listed(found) is found
    with pytest.raises(UserError, match=r"universe.tickers: '\*' finds 1 tickers in .*; list between 2 and 32 by name"):
        listed(load_config("smoke", assignments=[*everything, there, "universe.held_out=[AAA]"]))
    for number in range(MOST_TICKERS):
        (tmp_path / f"T{number}.csv").touch()
    with pytest.raises(UserError, match="finds 34 tickers"):
        listed(load_config("smoke", assignments=[*everything, there]))
