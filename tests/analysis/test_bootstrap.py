import numpy as np
import pytest
from arch.bootstrap import CircularBlockBootstrap

from analysis import bootstrap
from analysis.metrics import sharpe

RNG = np.random.default_rng(11)


def autocorrelated(size: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.01, size)
    series = np.zeros(size)
    for t in range(1, size):
        series[t] = 0.3 * series[t - 1] + noise[t]
    return series + 5e-4


@pytest.mark.parametrize(("size", "block"), [(100, 1), (100, 7), (105, 21), (250, 21), (64, 16)])
def test_block_sums_equal_joining_the_blocks(size: int, block: int) -> None:
    returns = autocorrelated(size, 1)
    starts = bootstrap.block_starts(size, block, 25, 3)
    fast = bootstrap.resampled_sharpes(returns, starts, block, 252)
    for row, value in zip(starts, fast, strict=True):
        index = np.concatenate([(start + np.arange(block)) % size for start in row])[:size]
        assert value == pytest.approx(sharpe(returns[index]), rel=1e-9)


def test_the_interval_agrees_with_arch() -> None:
    returns = autocorrelated(900, 2)
    ours = bootstrap.sharpe_interval(returns, resamples=4000)
    theirs = CircularBlockBootstrap(21, returns, seed=5).conf_int(lambda x: sharpe(x), 4000, method="percentile")
    assert np.array(ours) == pytest.approx(theirs.ravel(), abs=0.08)
    assert ours[0] < sharpe(returns) < ours[1]


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth, hits = 1.0, 0
    for seed in range(200):
        returns = np.random.default_rng(seed).normal(truth * 0.01 / np.sqrt(252), 0.01, 756)
        low, high = bootstrap.sharpe_interval(returns, resamples=299)
        assert low is not None
        assert high is not None
        hits += low <= truth <= high
    assert 174 <= hits <= 199


def test_seeded_and_paired() -> None:
    returns = autocorrelated(400, 3)
    assert bootstrap.sharpe_interval(returns, seed=1) == bootstrap.sharpe_interval(returns, seed=1)
    assert bootstrap.sharpe_interval(returns, seed=1) != bootstrap.sharpe_interval(returns, seed=2)
    # Paired: an account against itself differs by nothing, in every resample.
    assert bootstrap.sharpe_difference(returns, returns) == (0.0, 0.0, 0.0)


def test_pairing_narrows_the_difference_of_like_accounts() -> None:
    market = autocorrelated(800, 4)
    like = market + np.random.default_rng(5).normal(0, 0.001, 800)
    difference, low, high = bootstrap.sharpe_difference(like, market)
    assert difference == pytest.approx(sharpe(like) - sharpe(market))
    alone = bootstrap.sharpe_interval(market)
    assert low is not None
    assert high is not None
    assert alone[0] is not None
    assert alone[1] is not None
    assert high - low < 0.3 * (alone[1] - alone[0])


def test_cash_and_short_streams() -> None:
    assert bootstrap.sharpe_interval(np.zeros(300)) == (0.0, 0.0)
    assert bootstrap.sharpe_interval(np.full(300, 0.01)) == (0.0, 0.0)
    assert bootstrap.sharpe_interval(RNG.normal(size=19)) == (None, None)
    low, high = bootstrap.sharpe_interval(RNG.normal(size=25))
    assert low is not None
    assert high is not None
    assert low < high  # a block as long as the series would give an interval of no width
    mostly_idle = np.zeros(300)
    mostly_idle[5] = 0.01
    assert all(np.isfinite(bootstrap.sharpe_interval(mostly_idle)))
    with pytest.raises(ValueError, match="cannot be paired"):
        bootstrap.sharpe_difference(np.zeros(30), np.zeros(31))
