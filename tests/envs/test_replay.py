"""Replay: against slow accounts, rows independent to the bit, and nothing read before its time."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.bars import Bars
from envs.ledger import Terms
from envs.mapping import round_targets
from envs.market import PairMarket, Span, build_market
from envs.replay import ByRow, Replay, replay
from rayconf.run_config import RunConfig
from tests.envs.conftest import LEVERAGE, SlowAccount, make_bars, make_market, make_run, reading_policy, weekday_dates

REAL = Terms(cost=2e-4, leverage=LEVERAGE, borrow_rate=0.0675, short_rate=0.005)
COLUMNS = ("target", "weight", "turnover", "trading_cost", "financing", "net_return", "equity")


def decide(_bars: torch.Tensor, features: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
    return round_targets(LEVERAGE * reading_policy(features, account))


def f64(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def always(a: float, b: float, market: PairMarket) -> ByRow:
    return ByRow(lambda bars, features, account: f64([a, b]).expand(len(bars), 2), market.features)


@pytest.mark.parametrize("crashes", [0.0, 0.05])
@pytest.mark.parametrize("lag", [1, 2, 3])
def test_equals_a_slow_account(lag: int, crashes: float) -> None:
    market = make_market(seed=5, crashes=crashes)
    span = market.splits["test"]
    seen: list[torch.Tensor] = []

    def recorded(bars: torch.Tensor, features: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        seen.append(account[0])
        target = decide(bars, features, account)
        return 0.3 * target + 1.0 if crashes else target  # long enough for a crash to ruin it

    record = replay(
        market, span, ByRow(recorded, market.features), REAL, lag, batch=1, leverage=LEVERAGE, drawdown=True
    )  # fmt: skip
    assert record.fill_bar[:, 0].tolist() == list(range(span.start, span.stop - 1))
    assert (record.fill_bar - record.decision_bar == lag).all()
    slow = SlowAccount(market, REAL, lag, span.start - lag)
    for i, k in enumerate(record.fill_bar[:, 0].tolist()):
        if not (slow.ruined and lag > 1):  # the orders of a dead account count as cancelled from its death on
            np.testing.assert_allclose(seen[i].numpy(), slow.view(k - lag, True), rtol=1e-9, atol=1e-12)
        done = slow.act(k - lag, record.target[i, 0].tolist())
        np.testing.assert_allclose(record.weight[i, 0], slow.asked, rtol=1e-12)
        for column in ("turnover", "trading_cost", "financing"):
            np.testing.assert_allclose(getattr(record, column)[i, 0], done[column], rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(record.net_return[i, 0], done["growth"] - 1, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(record.equity[i, 0], slow.equity, rtol=1e-11)
    assert slow.ruined == (crashes > 0)
    np.testing.assert_allclose(np.cumprod(1 + record.net_return), record.equity[:, 0], rtol=1e-11)


def test_rows_equal_replays_of_one_to_the_bit() -> None:
    """13 rows with mixed lags, costs, leverage and spans against 13 replays of their own."""
    market = make_market(600, seed=2)
    b = 13
    lags = torch.tensor([1 + i % 4 for i in range(b)])
    costs = f64([i * 1e-4 for i in range(b)])
    leverage = f64([1.5, 1.0, 0.7] * 4 + [1.5])
    spans = [Span(50 + 7 * i, 50 + 7 * i + 120) for i in range(b)]
    who = ByRow(decide, market.features)
    for drawdown in (False, True):
        terms = replace(REAL, cost=costs, leverage=leverage, borrow_rate=100 * costs, short_rate=30 * costs)
        whole = replay(market, spans, who, terms, lags, batch=b, leverage=LEVERAGE, drawdown=drawdown)
        for i in range(b):
            cost, limit = float(costs[i]), float(leverage[i])
            rates = (float((100 * costs)[i]), float((30 * costs)[i]))
            terms = replace(REAL, cost=cost, leverage=limit, borrow_rate=rates[0], short_rate=rates[1])
            one = replay(
                market, spans[i], who, terms, int(lags[i]), batch=1, leverage=LEVERAGE, drawdown=drawdown
            )  # fmt: skip
            for column in (*COLUMNS, "fill_bar", "decision_bar"):
                np.testing.assert_array_equal(getattr(whole, column)[:, i], getattr(one, column)[:, 0], err_msg=column)
        # the rows do differ
        assert len(np.unique(whole.equity[-1])) == b


def test_dearer_rows_end_lower_and_ruin_is_final() -> None:
    market = make_market(seed=5, crashes=0.05)
    calm = replay(
        make_market(seed=5), Span(50, 150), always(0.9, -0.3, market), replace(REAL, cost=f64([0.0, 1e-3, 1e-2])), 1,
        batch=3, leverage=LEVERAGE,
    )  # fmt: skip
    assert (np.diff(calm.equity[-1]) < 0).all()
    record = replay(market, market.splits["test"], always(0.75, 0.75, market), REAL, 1, batch=1, leverage=LEVERAGE)
    dead = np.flatnonzero(record.equity[:, 0] <= 0.05)
    assert dead.size
    after = slice(dead[0] + 1, None)
    for column in ("weight", "turnover", "trading_cost", "financing", "net_return"):
        assert not getattr(record, column)[after].any()
    assert (record.equity[after] == record.equity[dead[0]]).all()


# --- pieces walked side by side are the chain ---------------------------------------------------------------------


def holding(bars: torch.Tensor, features: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
    """Keeps what it holds until the first feature is far out, so that an account remembers its start for long."""
    fresh = round_targets(LEVERAGE * torch.tanh(features[:, :2]))
    far = (features[:, :1].abs() > 2).expand(-1, 2)
    return torch.where(far, fresh, round_targets(LEVERAGE * account[:, :2]))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), lag=st.sampled_from([1, 2, 3]), rows=st.integers(1, 4),
    crashes=st.sampled_from([0, 0.003, 0.02]),
    act=st.sampled_from([decide, holding]), longest=st.sampled_from([97, 1 << 15]),
    gross=st.booleans(),
)  # fmt: skip
def test_pieces_equal_the_chain_to_the_bit(
    seed: int, lag: int, rows: int, crashes: float, act: Callable[..., torch.Tensor], longest: int, gross: bool
) -> None:
    """Also with a policy that remembers, accounts that are ruined, recorded rows, and spans prepared in sections."""
    market = make_market(700, seed=seed, crashes=crashes)
    costs = f64([1e-3 * i for i in range(rows + 1)])
    terms = replace(REAL, cost=costs, gross_financing=gross)
    table = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (700, 2)))
    lags = torch.tensor([lag + i % 2 for i in range(rows + 1)])
    asked = {"batch": rows + 1, "leverage": LEVERAGE, "recorded": [table]}
    span = market.splits["train"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("envs.walker.LONGEST", longest)
        pieces = replay(market, span, ByRow(act, market.features), terms, lags, **asked)  # type: ignore[arg-type]
    chain = replay(market, span, ByRow(act, market.features), terms, lags, **asked, in_pieces=False)  # type: ignore[arg-type]
    for column in (*COLUMNS, "fill_bar", "decision_bar"):
        np.testing.assert_array_equal(getattr(pieces, column), getattr(chain, column), err_msg=column)
    assert np.abs(chain.weight).max() > 0


def test_a_policy_that_is_not_a_number_ends() -> None:
    market = make_market(300, seed=3)
    span = market.splits["test"]
    nothing = always(float("nan"), 0.0, market)
    records = [replay(market, span, nothing, REAL, 1, batch=1, leverage=LEVERAGE, in_pieces=p) for p in (True, False)]
    np.testing.assert_array_equal(records[0].equity, records[1].equity)
    assert np.isnan(records[0].equity).all()


def test_pieces_that_keep_their_guess_are_not_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: without the second walk every piece starts from cash, and the record shows it."""
    market = make_market(700, seed=3)
    who = ByRow(holding, market.features)
    chain = replay(market, market.splits["train"], who, REAL, 1, batch=1, leverage=LEVERAGE, in_pieces=False)
    pieces = replay(market, market.splits["train"], who, REAL, 1, batch=1, leverage=LEVERAGE)
    np.testing.assert_array_equal(pieces.equity, chain.equity)
    monkeypatch.setattr("envs.walker.different", lambda new, old: torch.zeros(len(new), dtype=torch.bool))
    guessed = replay(market, market.splits["train"], who, REAL, 1, batch=1, leverage=LEVERAGE)
    assert (guessed.equity != chain.equity).any()


def test_spans_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="same length"):
        replay(make_market(), [Span(50, 90), Span(50, 91)], None, REAL, 1, batch=2, leverage=LEVERAGE)


# --- nothing is known before its time: prices of a real build are changed from one moment on ----------------------

Change = Callable[[Bars], Bars]
Plant = Callable[[PairMarket], PairMarket]
SHORT = {"pbt": {"window": 63}}


def from_bar(first: int, *, intrabar: bool) -> Change:
    """Changes all prices of bars after ``first``; with ``intrabar`` also those of its bar after the open."""

    def change(bars: Bars) -> Bars:
        rng = np.random.default_rng(first)
        factor = np.ones(len(bars))
        factor[first + 1 :] = np.exp(0.05 * rng.standard_normal(len(bars) - first - 1))
        later = factor.copy()
        if intrabar:
            later[first] = 1.07
        volume = bars.volume * later
        return replace(
            bars, open=bars.open * factor, high=bars.high * later, low=bars.low * later, close=bars.close * later,
            volume=volume,
        )  # fmt: skip

    return change


def trade(run: RunConfig, change: Change, plant: Plant) -> tuple[np.ndarray, Replay]:
    """Build the market from (changed) bars and replay its test split; what decisions saw, and the record."""
    dates = weekday_dates(860)
    a, b = make_bars("AAA", dates, 1), make_bars("BBB", dates, 2)
    market = plant(build_market("AAA/BBB", change(a), change(b), run))
    seen: list[np.ndarray] = []

    def recorded(bars: torch.Tensor, features: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        seen.append(torch.cat((features, account), dim=1)[0].numpy())
        return decide(bars, features, account)

    drawdown = run.env.risk_measure == "drawdown"
    record = replay(
        market, market.splits["test"], ByRow(recorded, market.features), Terms.from_costs(run.costs), run.env.lag,
        batch=1, leverage=LEVERAGE, drawdown=drawdown, in_pieces=False,
    )  # fmt: skip
    return np.stack(seen), record


def check_observations(run: RunConfig, plant: Plant) -> None:
    """Changing prices after the close of bar t changes no observation up to t, and some of t + 1."""
    seen, record = trade(run, lambda bars: bars, plant)
    for i in (3, 40, 77):
        t = int(record.decision_bar[i, 0])
        changed, _ = trade(run, from_bar(t, intrabar=False), plant)
        np.testing.assert_array_equal(changed[: i + 1], seen[: i + 1])
        assert (changed[i + 1] != seen[i + 1]).any()


def check_fills(run: RunConfig, plant: Plant) -> None:
    """Changing prices after open[t + lag] changes no fill of decision t, and what that fill earned."""
    _, record = trade(run, lambda bars: bars, plant)
    for i in (3, 40, 77):
        _, changed = trade(run, from_bar(int(record.fill_bar[i, 0]), intrabar=True), plant)
        for column in ("target", "weight", "turnover", "trading_cost", "financing"):
            np.testing.assert_array_equal(getattr(changed, column)[: i + 1], getattr(record, column)[: i + 1], column)
        np.testing.assert_array_equal(changed.net_return[:i], record.net_return[:i])
        assert changed.net_return[i] != record.net_return[i]


def honest(market: PairMarket) -> PairMarket:
    return market


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("measure", ["variance", "drawdown"])
def test_nothing_is_seen_before_its_time(lag: int, measure: str) -> None:
    run = make_run(SHORT, lag=lag, risk_measure=measure)
    check_observations(run, honest)
    check_fills(run, honest)


def same_bar_fill(market: PairMarket) -> PairMarket:
    """Decisions see the close of the bar at whose open they fill (planted for lag 1)."""
    return replace(market, features=np.roll(market.features, -1, axis=0))


class MarkedAtTheNextOpen(PairMarket):
    @property
    def moves(self) -> np.ndarray:
        return np.concatenate((self.returns, self.returns[-1:]))


def marked_at_the_next_open(market: PairMarket) -> PairMarket:
    return MarkedAtTheNextOpen(**vars(market))


@pytest.mark.parametrize(
    ("check", "measure", "lag", "plant"),
    [
        (check_observations, "variance", 1, same_bar_fill),
        (check_fills, "variance", 1, same_bar_fill),
        (check_observations, "variance", 1, marked_at_the_next_open),
        (check_observations, "drawdown", 1, marked_at_the_next_open),
        (check_observations, "drawdown", 2, marked_at_the_next_open),
    ],
)
def test_a_planted_leak_is_caught(
    check: Callable[[RunConfig, Plant], None], measure: str, lag: int, plant: Plant
) -> None:
    with pytest.raises(AssertionError, match="not equal"):
        check(make_run(SHORT, lag=lag, risk_measure=measure), plant)
