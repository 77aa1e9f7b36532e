"""Pre-training: its loss and targets against slow references, what it may read, and that it finds what is there."""

import itertools
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from algos.forecast_targets import LIMIT, build_targets
from algos.pretraining import LEVELS, Fit, Pretrained, blocked_mean, pinball
from envs.bars import Bars
from envs.market import Borders, load_markets
from envs.training_bars import TrainingBars
from envs.universe import joined, universe_of, with_universe
from rayconf import RunConfig, UserError, load_config
from tests.algos.conftest import small_run
from tests.envs.conftest import make_bars, weekday_dates

DATES = weekday_dates(1900)
BORDERS = Borders(DATES[1300], DATES[1600])
STAGED = ("stages.run=[base,population]", "network.encoder_window=12", "network.encoder_width=8")
NAMES = ("AAA/BBB", "BBB/AAA", "AAA/NEW")


def staged(*assignments: str, encoder: str = "conv") -> RunConfig:
    return small_run(*STAGED, f"network.encoder={encoder}", "stages.epochs=2", *assignments)


def legs(changed: int = len(DATES)) -> dict[str, tuple[Bars, Bars]]:
    """Three tickers, one of them younger; all prices from bar number ``changed`` on are others."""
    tickers = {"AAA": make_bars("AAA", DATES, 1), "BBB": make_bars("BBB", DATES, 2)}
    tickers["NEW"] = make_bars("NEW", DATES[500:], 3)
    for name, bars in tickers.items():
        late = np.arange(len(bars.dates)) >= changed - (len(DATES) - len(bars.dates))
        factor = np.where(late, 1.02 + 0.01 * np.cos(np.arange(len(late))), 1.0)
        tickers[name] = replace(bars, **{x: getattr(bars, x) * factor for x in ("open", "high", "low", "close")})
    return {pair: tuple(tickers[x] for x in pair.split("/")) for pair in NAMES}


def fitted(bars: TrainingBars, run: RunConfig, **how: Any) -> Pretrained:
    fit = Fit(bars, run, 5, **how)
    for _ in fit.epochs():
        pass
    return fit.outcome()


@given(st.integers(0, 99), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_pinball_is_the_textbooks_and_least_at_the_quantile(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    target, forecast = rng.standard_normal(count), rng.standard_normal((count, len(LEVELS)))
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    found = pinball(torch.tensor(forecast), torch.tensor(target), levels).numpy()
    for i, q in itertools.product(range(count), range(len(LEVELS))):
        y, f, tau = target[i], forecast[i, q], LEVELS[q]
        assert found[i, q] == pytest.approx(tau * (y - f) if y >= f else (1 - tau) * (f - y), abs=1e-12)
    best = torch.tensor(np.quantile(target, LEVELS, method="inverted_cdf"))
    y = torch.tensor(target)
    least, other = (pinball(f.expand(count, -1), y, levels).mean(0) for f in (best, torch.tensor(forecast[0])))
    assert bool((least <= other + 1e-12).all())


@pytest.mark.parametrize("lag", [1, 3])
def test_targets_are_those_of_a_slow_reference(lag: int) -> None:
    """From fill prices by hand: what a decision asks about begins at its fill and ends within the training span."""
    run = staged(f"env.lag={lag}")
    markets = list(load_markets(run).values())
    bars = joined(markets, run)
    targets = build_targets(bars, lag, (1, 4), 12)
    (market,), (block,) = markets, bars.blocks
    offset = market.splits["train"].stop - block.stop
    fills, stop = np.log(market.fill), market.splits["train"].stop
    series = np.column_stack((fills, fills[:, 0] - fills[:, 1]))
    assert len(targets.rows) > 1000
    for n in [0, 1, 2, 700, *range(len(targets.rows) - 30, len(targets.rows))]:
        t = targets.rows[n] + offset
        assert market.dates[t] == targets.dates[n]
        for j, side in enumerate(("a", "b", "spread")):
            past = np.array([series[i + 1, j] - series[i, j] for i in range(t - 21, t)])
            unit, expected = np.sqrt((past**2).mean()), {}
            for k in (1, 4):
                inside = t + lag + k < stop
                moved = (series[t + lag + k, j] - series[t + lag, j]) / (unit * k**0.5)
                expected[f"{side}_return_{k}"] = np.clip(moved, -LIMIT, LIMIT) if inside else np.nan
            ahead = np.array([series[i + 1, j] - series[i, j] for i in range(t + lag, t + lag + 21)])
            log = np.log(np.sqrt((ahead**2).mean()) / unit)
            expected[f"{side}_volatility"] = log if t + lag + 21 < stop else np.nan
            for name, value in expected.items():
                found = targets.values[n, targets.names.index(name)]
                assert found == pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True), (n, name)
    assert np.isfinite(targets.values).any(1).all(), "the last decision still has its return of one bar"
    assert targets.rows[-1] + offset + lag + 1 == stop - 1


def test_the_internal_split_is_one_date_for_all_markets_and_purged() -> None:
    run = staged("augment.histories=1")
    bars, _ = universe_of(legs(), run, BORDERS)
    assert len(bars.pairs) == 6
    targets = build_targets(bars, 1, (1, 5, 21), 12)
    real, _ = universe_of(legs(), staged(), BORDERS)
    assert len(targets.rows) == len(build_targets(real, 1, (1, 5, 21), 12).rows), "histories hold days of the split"
    fit, held = targets.split(targets.border)
    assert targets.ends[fit].max() < targets.border <= targets.dates[held].min()
    assert 0.1 < len(held) / len(targets.rows) < 0.2
    assert targets.ends.max() < BORDERS.validation
    purged = np.setdiff1d(np.arange(len(targets.rows)), np.concatenate((fit, held)))
    assert len(purged) == len(NAMES) * 22  # the longest horizon and the lag, in each market


@pytest.mark.parametrize("encoder", ["factored", "conv"])
def test_no_bar_from_validation_on_changes_a_weight(encoder: str) -> None:
    """Twice the same gives the same bits; a bar within training changes them."""
    run, ends = staged(encoder=encoder), []
    for changed in (1900, 1900, 1300, 1299):
        fit = Fit(universe_of(legs(changed), run, BORDERS)[0], run, 5)
        losses = [(epoch.fit_loss, epoch.loss, epoch.naive_loss) for epoch in fit.epochs()]
        assert len(losses) == 3
        ends.append((losses, dict(fit.net.state_dict())))  # as trained, whichever pass is kept
    plain, again, after, within = ends
    for name, weight in plain[1].items():
        assert weight.equal(again[1][name]), name
        assert weight.equal(after[1][name]), name
    assert plain[0] == again[0] == after[0] != within[0]
    assert not any(weight.equal(within[1][name]) for name, weight in plain[1].items() if "weight" in name)


@pytest.mark.parametrize("encoder", ["factored", "conv"])
def test_planted_reversion_is_found_and_a_random_walk_teaches_nothing(encoder: str) -> None:
    found = {}
    for form in ("plain", "walk"):
        run = load_config(
            "smoke",
            assignments=[
                *(
                    "network.hidden=[16, 16]",
                    "network.encoder_window=20",
                    "network.encoder_width=16",
                    "stages.epochs=8",
                ),
                *("stages.run=[base,population]", f"network.encoder={encoder}", f"synthetic.form={form}"),
            ],
        )
        fit = Fit(joined(list(load_markets(run).values()), run), run, 1)
        first, *_ = fit.epochs()
        assert (first.number, first.skill) == (0, 0.0), "it starts as the naive forecast"
        outcome = fit.outcome()
        found[form] = dict(zip(outcome.names, outcome.skills, strict=True))
    assert found["plain"]["spread_return_21"] > 0.03
    assert found["plain"]["spread_return_5"] > 0.01
    returns = [skill for name, skill in found["walk"].items() if "return" in name]
    assert len(returns) == 9
    assert max(returns) < 0.005


def test_a_specialist_stays_near_its_base_and_keeps_its_split() -> None:
    run = staged("stages.specialist_epochs=2")
    bars, _ = universe_of(legs(), run, BORDERS)
    base = fitted(bars, run)
    own, _ = universe_of({"AAA/BBB": legs()["AAA/BBB"]}, run, BORDERS)

    def distance(*assignments: str) -> float:
        special = fitted(own, staged("stages.specialist_epochs=2", *assignments), base=base)
        assert (special.border, special.best.number) == (base.border, 2)
        assert np.array_equal(special.naive, base.naive)
        return sum(float((special.weights[n] - w).square().sum()) for n, w in base.weights.items())

    free, short, tight = (distance(f"stages.pull={pull}") for pull in (0, 1, 1000))
    assert 0 < tight < short < free


def test_the_error_of_a_gain_is_that_of_block_means() -> None:
    values = np.random.default_rng(0).standard_normal(103)
    means = [np.mean(values[i : i + 10]) for i in range(0, 100, 10)]
    mean, error = blocked_mean(values, 10)
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(np.std(means, ddof=1) / 10**0.5)
    assert blocked_mean(values, 60)[1] == float("inf")


def test_shares_of_the_span_do_not_meet() -> None:
    """Nothing that the encoder is fitted to reaches into the bars that policies train on, nor the reverse."""
    run = staged("stages.share=0.5")
    market = with_universe(load_markets(run), run)["SYNA/SYNB"]
    assert market.training is not None
    opens, train = market.training.opens, market.splits["train"]
    assert opens == market.dates[train.start + train.rows // 2]
    (decisions,) = market.training.decisions(1)
    assert market.dates[decisions.start] == opens
    assert decisions.stop == train.stop - 2
    targets = build_targets(market.training, 1, (1, 21), 12)
    assert targets.ends.max() == market.dates[decisions.start - 1]
    whole = with_universe(load_markets(staged()), staged())["SYNA/SYNB"]
    assert whole.training is None
    with pytest.raises(UserError, match=r"stages\.share: leaves populations \d+ bars of SYNA/SYNB from"):
        with_universe(load_markets(run), staged("stages.share=0.95"))


def test_too_few_bars_are_refused() -> None:
    run = staged("synthetic.bars=1500", "stages.share=0.1")
    market = with_universe(load_markets(run), run)["SYNA/SYNB"]
    assert market.training is not None
    with pytest.raises(UserError, match=r"SYNA/SYNB: \d+ decision bars to fit and \d+ to hold out are too few"):
        Fit(market.training, run, 1)


MISTAKES = {
    "mlp": (["network.encoder=mlp"], r"stages\.run: base and specialists train a market encoder, .* mlp has none"),
    "order": (["stages.run=[population,base]"], r"stages: run: population, base: give each of base, specialists, pop"),
    "unknown": (["stages.run=[base,finetune]"], r"stages\.run\.1: Input should be 'base', 'specialists' or 'populat"),
    "none": (["stages.run=[]"], r"stages: run: no stage"),
    "specialists": (["stages.run=[specialists,population]"], r"specialists go on from a base"),
    "horizons": (["stages.horizons=[5, 1]"], r"horizons \[5, 1\] must rise"),
    "share": (["stages.share=0.5", "stages.run=[population]"], r"share 0\.5: needs the stage base"),
    "histories": (["stages.share=0.5", "augment.histories=1"], r"stages\.share: needs augment\.histories 0"),
    "frozen": (
        ["stages.encoder=frozen", "search.e={path: optimizer.encoder_lr_factor, low: 0.01, high: 1}"],
        r"search\.e\.path: 'optimizer\.encoder_lr_factor' changes nothing while stages\.encoder is frozen",
    ),
    "walk": (["stages.base=x", "split.walk_forward=2"], r"split\.walk_forward: leave stages\.base out"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_stages_that_cannot_be_are_refused(mistake: str) -> None:
    changes, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message):
        staged(*changes)
