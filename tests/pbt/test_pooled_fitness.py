"""Fitness that is pooled over pairs, against its definition written out day by day and resample by resample."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.bootstrap import block_length, block_starts
from pbt import fitness
from pbt.fitness import Account, Calendar
from rayconf.keys import derive_key
from rayconf.sections import PBTConfig
from tests.pbt.test_fitness import DATES, floored, returns

PBT = PBTConfig(bootstrap=199)
LENGTH = 600
DAYS = DATES[:LENGTH]
HOLIDAYS = np.isin(np.arange(LENGTH), [0, 1, 50, 51, 300, LENGTH - 1])
EVERY_DAY = np.arange(DAYS[0], DAYS[-1] + 1, np.timedelta64(1, "D").astype("timedelta64[us]"))


def account(seed: int, dates: np.ndarray = DAYS, per_year: float = 252, shared: float = 0.0) -> Account:
    own = returns(seed, len(dates)) + shared * returns(99, len(dates))
    return Account(own, np.ones(len(dates)), dates, per_year, False, over=returns(seed + 100, len(dates)))


THREE = (account(1), account(2, DAYS[~HOLIDAYS]), account(3, EVERY_DAY, 365))
"""One market that knows no holiday of the others, one with holidays, one that never closes."""
OVER = [one.over for one in THREE if one.over is not None]


def on_common_days(accounts: Sequence[Account], streams: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Growth of each account from one day that all share to the next."""
    common = pd.DatetimeIndex(accounts[0].dates)
    for other in accounts[1:]:
        common = common.intersection(pd.DatetimeIndex(other.dates))
    found = []
    for one, stream in zip(accounts, streams, strict=True):
        equity = pd.Series(np.cumprod(1 + stream), pd.DatetimeIndex(one.dates))
        before = equity.shift(fill_value=1.0)
        ends = equity[common]
        begins = np.concatenate([[before[common[0]]], ends.to_numpy()[:-1]])
        found.append(ends.to_numpy() / begins - 1)
    return found


def resamples(sessions: int, *key: object) -> list[np.ndarray]:
    """The sessions of each resample, in order."""
    block = block_length(sessions, PBT.block)
    starts = block_starts(sessions, block, PBT.bootstrap, derive_key(*key))
    return [((row[:, None] + np.arange(block)) % sessions).ravel()[:sessions] for row in starts]


@pytest.mark.parametrize("over", [False, True])
def test_it_is_the_mean_over_accounts_in_every_window_less_the_joint_error(over: bool) -> None:
    accounts = THREE if over else [replace(one, over=None) for one in THREE]
    found = fitness.evaluate_each(accounts, PBT, 7, "A/B", 1)
    own = on_common_days(accounts, [one.net_return for one in accounts])
    others = on_common_days(THREE, OVER) if over else []
    sessions = LENGTH - int(HOLIDAYS.sum())
    assert {len(x) for x in own} == {sessions}

    def score(chosen: np.ndarray | slice) -> float:
        each = [floored(x[chosen]) for x in own]
        base = [floored(x[chosen]) for x in others] if over else [0.0] * len(each)
        return float(np.mean(np.array(each) - base))

    windows = [score(slice(s, s + PBT.window)) for s in range(0, sessions - PBT.window + 1, PBT.window_step)]
    se = np.std([score(rows) for rows in resamples(sessions, 7, "A/B", 1)], ddof=1)
    assert found.windows == len(windows)
    assert found.se == pytest.approx(se, rel=1e-9)
    assert found.value == pytest.approx(np.median(windows) - se, rel=1e-9)


def test_of_one_account_it_is_that_accounts_to_the_bit() -> None:
    one = account(1)
    assert one.over is not None
    calendar, sample = Calendar([DAYS], [252]), fitness.Resampler(LENGTH, PBT, 7)
    np.testing.assert_array_equal(calendar.returns([one.net_return])[0], one.net_return)
    se = float((sample.scores(one.net_return, 252) - sample.scores(one.over, 252)).std(ddof=1))
    gains = fitness.windowed_scores(one.net_return, 252, PBT) - fitness.windowed_scores(one.over, 252, PBT)
    found = fitness.evaluate_each([one], PBT, 7)
    assert (found.value, found.se) == (float(np.median(gains)) - se, se)


def test_what_accounts_share_does_not_cancel_and_what_they_do_not_share_does() -> None:
    alone = fitness.evaluate_each([replace(account(1), over=None)], PBT, 0)
    same = fitness.evaluate_each([replace(account(1), over=None)] * 4, PBT, 0)
    assert (same.value, same.se) == pytest.approx((alone.value, alone.se), rel=1e-12)
    apart = fitness.evaluate_each([replace(account(seed), over=None) for seed in range(1, 10)], PBT, 0)
    assert apart.se == pytest.approx(alone.se / 3, rel=0.3)
    together = [replace(account(seed, shared=2.0), over=None) for seed in range(1, 10)]
    assert fitness.evaluate_each(together, PBT, 0).se > 2 * apart.se


def test_the_gap_is_the_mean_over_accounts_with_the_joint_error() -> None:
    donor, member = [one.net_return for one in THREE], OVER
    calendar = Calendar([one.dates for one in THREE], [one.per_year for one in THREE])
    gap = fitness.paired_gap(donor, member, calendar, PBT, 7, "A/B", 2)
    pairs = list(zip(on_common_days(THREE, donor), on_common_days(THREE, member), strict=True))
    assert gap.value == pytest.approx(np.mean([floored(d) - floored(m) for d, m in pairs]), rel=1e-9)
    spread = [
        np.mean([floored(d[rows]) - floored(m[rows]) for d, m in pairs])
        for rows in resamples(len(calendar), 7, "A/B", 2)
    ]
    assert gap.se == pytest.approx(np.std(spread, ddof=1), rel=1e-9)


def test_one_broken_account_breaks_a_policy_and_one_active_account_keeps_it_from_being_idle() -> None:
    good, idle = replace(account(1), over=None), replace(account(2), gross=np.zeros(LENGTH), over=None)
    ruined = replace(good, ruined=True)
    wild = replace(good, net_return=np.full(LENGTH, np.nan))
    for bad in (ruined, wild):
        found = fitness.evaluate_each([good, bad], PBT, 0)
        assert (found.value, found.broken) == (fitness.BROKEN, True)
    assert not fitness.evaluate_each([good, idle], PBT, 0).idle
    assert fitness.evaluate_each([idle, idle], PBT, 0).idle
