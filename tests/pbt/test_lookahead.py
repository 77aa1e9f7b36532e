"""The leak detector: an honest run passes, and every planted leak is found and named."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import envs.features
import envs.market
import envs.replay
from algos.policy import Policy
from envs.bars import Bars, join_bars
from envs.features import compute_features, lookback, z_score
from envs.market import PairMarket, build_market, load_legs, run_borders
from envs.scaler import Scaler
from envs.walker import Walker
from pbt.lookahead import Findings, Recorded, Subject, audit, changed
from pbt.terms import base_scenario
from rayconf import RunConfig
from tests.pbt.test_simulator import PAIR, survivors

Array = NDArray[np.float64]
CUTS = 24


def subject_of(run: RunConfig, legs: tuple[Bars, Bars] | None = None) -> Subject:
    """Restless survivors on the tiny market, with the scaler that the present code fits: planted leaks reach it."""
    a, b = legs or load_legs(run)[PAIR]
    borders = run_borders(run)
    market = build_market(PAIR, a, b, run, borders)
    own = {name: policy for name, policy in survivors(run, market).items() if isinstance(policy, Policy)}
    return Subject(PAIR, a, b, run, borders, market.scaler, own)


@pytest.fixture(scope="module")
def honest(tiny_run: RunConfig) -> Subject:
    return subject_of(tiny_run)


def ways(found: Findings) -> set[str]:
    return {leak.how for leak in found.leaks}


CHANGES: dict[str, tuple[str, str, Any] | None] = {
    "as it is": None,
    "lag 2": ("env", "lag", 2),
    "drawdown seen": ("env", "risk_measure", "drawdown"),
    "fills at closes": ("data", "fill", "close"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_honest_run_passes_and_the_control_has_power(change: str, tiny_run: RunConfig) -> None:
    run = tiny_run
    if way := CHANGES[change]:
        section, name, value = way
        run = run.model_copy(update={section: getattr(run, section).model_copy(update={name: value})})
    subject = subject_of(run)
    if change == "drawdown seen":
        wide = {name: with_another_column(policy) for name, policy in subject.policies.items()}
        subject = replace(subject, policies=wide)
    found = audit(subject, 9)
    assert found.leaks == []
    assert len(found.cuts) >= 9 + 3
    assert all(count >= found.controls - 1 >= 8 for count in found.power.values())
    assert {found.result(name) for name in subject.policies} == {"clean"}
    assert found.decisions > 3 * len(found.cuts)


def with_another_column(policy: Policy) -> Policy:
    """The policy with a further account column that it reads: the drawdown."""
    layers = [(weight.float(), bias.float()) for weight, bias in policy._layers]
    weight, bias = layers[0]
    layers[0] = (torch.cat((weight, weight[:, -1:]), dim=1), bias)
    return Policy(
        layers,
        activation=policy.activation,
        action_map=policy.action_map,
        feature_names=policy.feature_names,
    )


def test_the_same_seed_cuts_the_same_bars(honest: Subject) -> None:
    first, again, other = (audit(honest, 3, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.cuts != other.cuts


# --- planted leaks -------------------------------------------------------------------------------------------------


def centred_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every z-score is of a window that reaches five bars beyond its own bar."""

    def centred(values: Array, window: int) -> Array:
        late = z_score(values, window)
        late[:-5] = late[5:]
        return late

    monkeypatch.setattr(envs.features, "z_score", centred)


def full_sample_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler is fitted to validation and test, too."""
    seen: dict[str, Array] = {}
    fit = Scaler.fit

    def remembered(a: Bars, b: Bars, config: Any, bars_per_year: float | None) -> Array:
        values = compute_features(a, b, config, bars_per_year)
        seen["values"] = values[lookback(config) - 1 :]
        return values

    def on_all(cls: type[Scaler], values: Array, names: Any, config: Any) -> Scaler:
        return fit(seen["values"], names, config)

    monkeypatch.setattr(envs.market, "compute_features", remembered)
    monkeypatch.setattr(Scaler, "fit", classmethod(on_all))


def same_bar_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders earn from the fill price of the bar that was just observed."""

    def early(market: PairMarket) -> Array:
        returns = market.fill[1:] / market.fill[:-1] - 1
        return np.concatenate((returns[:1], returns[:-1]))

    monkeypatch.setattr(PairMarket, "returns", property(early))


def decided_on_the_fills_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions that fill at a bar's open see its close, though they carry the date of the bar before."""

    class Early(Walker):
        def __init__(self, market: PairMarket, decide: Any, terms: Any, lag: Any, *rest: Any) -> None:
            super().__init__(market, decide, terms, lag - 1, *rest)

    monkeypatch.setattr(envs.replay, "Walker", Early)


def marked_at_the_next_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account that a policy sees is valued at the next fill instead of the close."""
    moves = property(lambda market: np.concatenate((market.returns, market.returns[-1:])))
    monkeypatch.setattr(PairMarket, "moves", moves)


def back_filled_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dates that one leg lacks are filled with its next bar instead of being dropped."""

    def filled(leg: Bars, dates: Any) -> Bars:
        return replace(leg.select(np.minimum(np.searchsorted(leg.dates, dates), len(leg) - 1)), dates=dates)

    def back_filled(a: Bars, b: Bars) -> tuple[Bars, Bars, Any]:
        dates = np.union1d(a.dates, b.dates)
        return filled(a, dates), filled(b, dates), join_bars(a, b)[2]

    monkeypatch.setattr(envs.market, "join_bars", back_filled)


PLANTED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], set[str], str]] = {
    "centred window": (centred_window, {"truncated", "perturbed"}, "feature spread_z_"),
    "full-sample scaler": (full_sample_scaler, {"perturbed", "scaler"}, "the scaler (a_return_1"),
    "same-bar fill": (same_bar_fill, {"fill"}, "the return earned by the decision"),
    "decided on the fill's bar": (decided_on_the_fills_bar, {"truncated", "perturbed"}, "the decision"),
    "marked at the next open": (marked_at_the_next_open, {"truncated", "perturbed"}, "the decision"),
    "back-filled join": (back_filled_join, {"truncated", "perturbed"}, "a price"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_leak_is_found(planted: str, tiny_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, expected, told = PLANTED[planted]
    plant(monkeypatch)
    a, b = load_legs(tiny_run)[PAIR]
    rng = np.random.default_rng(3)
    kept = np.sort(rng.choice(len(b), len(b) - 100, replace=False))
    subject = subject_of(tiny_run, (a, b.select(kept)) if planted == "back-filled join" else (a, b))
    found = audit(subject, CUTS)
    assert expected <= ways(found), found.leaks
    assert any(leak.what.startswith(told) for leak in found.leaks), [str(leak) for leak in found.leaks]
    assert {found.result(name) for name in subject.policies} == {"leak"}
    if planted == "centred window":
        leak = next(leak for leak in found.leaks if leak.features)
        assert all(name.startswith("spread_z_") for name in leak.features)
        gap = np.busday_count(leak.bar, leak.cut)
        assert 0 <= gap <= 4, "the first bar that differs lies within the window's reach of the cut"


def test_without_a_leak_the_same_holes_pass(tiny_run: RunConfig) -> None:
    a, b = load_legs(tiny_run)[PAIR]
    kept = np.sort(np.random.default_rng(3).choice(len(b), len(b) - 100, replace=False))
    assert audit(subject_of(tiny_run, (a, b.select(kept))), 6).leaks == []


def test_a_policy_that_reads_no_prices_is_inconclusive(honest: Subject) -> None:
    policy = honest.policies["survivor-1"]
    still = Policy(
        [(torch.zeros_like(weight), torch.zeros_like(bias)) for weight, bias in policy._layers],
        activation=policy.activation,
        action_map=policy.action_map,
        feature_names=policy.feature_names,
    )
    found = audit(replace(honest, policies={"survivor-1": still, "survivor-2": policy}), 6)
    assert [found.result(name) for name in ("survivor-1", "survivor-2")] == ["inconclusive", "clean"]


def test_a_record_of_other_decisions_is_named(honest: Subject) -> None:
    from pbt.simulator import Batch

    market = build_market(PAIR, honest.a, honest.b, honest.run, honest.borders)
    record = Batch(honest.policies, {}, [base_scenario(honest.run)]).run(market, honest.run, "validation")
    columns = {
        "target_weight_a": record.target[:, 1, 0],
        "target_weight_b": record.target[:, 1, 1],
        "net_return": record.net_return[:, 1].copy(),
    }
    dates = market.dates[record.decision_bar[:, 1]]
    row = Recorded("survivor-2", "validation", dates, columns)
    found = audit(honest, 1, [row])
    assert (found.leaks, found.recorded) == ([], len(dates))
    columns["net_return"][7] += 1e-15
    (leak,) = audit(honest, 1, [row]).leaks
    assert (leak.how, leak.policy, leak.bar) == ("record", "survivor-2", str(dates[7].astype("datetime64[D]")))
    assert "net_return" in leak.what


def test_changed_bars_are_bars(honest: Subject) -> None:
    rows = honest.a.dates > honest.a.dates[700]
    other = changed(honest.a, rows, np.random.default_rng(0))
    for name in ("open", "high", "low", "close", "volume"):
        before, after = getattr(honest.a, name), getattr(other, name)
        assert (before[~rows] == after[~rows]).all()
        assert (before[rows] != after[rows]).all()
    assert (other.high >= np.maximum(other.open, other.close)).all()
    assert (other.low <= np.minimum(other.open, other.close)).all()
    assert (other.low > 0).all()
