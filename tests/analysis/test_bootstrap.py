import numpy as np
import pytest
from arch.bootstrap import StationaryBootstrap, optimal_block_length

from analysis import bootstrap
from analysis.metrics import max_drawdown, sharpe

RNG = np.random.default_rng(11)


def autocorrelated(size: int, seed: int, memory: float = 0.3) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.01, size)
    series = np.zeros(size)
    for t in range(1, size):
        series[t] = memory * series[t - 1] + noise[t]
    return series + 5e-4


@pytest.mark.parametrize(("size", "block"), [(100, 1), (100, 7), (105, 21), (250, 21), (64, 16)])
def test_circular_block_sums_equal_joining_the_blocks(size: int, block: int) -> None:
    returns = autocorrelated(size, 1)
    starts = bootstrap.block_starts(size, block, 25, 3)
    for row, value in zip(starts, bootstrap.block_sums(returns, starts, block), strict=True):
        index = np.concatenate([(start + np.arange(block)) % size for start in row])[:size]
        assert value == pytest.approx(returns[index].sum(), rel=1e-9)


@pytest.mark.parametrize(("size", "block"), [(50, 1), (50, 4), (257, 8), (3000, 2)])
def test_counts_are_those_of_the_sessions_drawn_and_blocks_are_geometric(size: int, block: int) -> None:
    counts = bootstrap.resampled_counts(size, block, 300)
    indices = np.concatenate(bootstrap.resampled_indices(size, block, 300))
    assert np.array_equal(counts, np.stack([np.bincount(row, minlength=size) for row in indices]))
    assert (counts.sum(axis=1) == size).all()
    restarts = np.mean(np.diff(indices, axis=1) % size != 1)
    assert restarts == pytest.approx((1 - 1 / size) / block, abs=4 * 0.5 / np.sqrt(300 * size))


def test_the_sharpe_interval_is_archs() -> None:
    returns = autocorrelated(900, 2)
    block = bootstrap.automatic_block(returns)
    found = optimal_block_length(returns)["stationary"].iloc[0]
    assert found <= block < 2 * found  # rounded up to a power of two
    ours = bootstrap.sharpe_interval(returns, resamples=4000)
    theirs = StationaryBootstrap(block, returns, seed=5).conf_int(lambda x: sharpe(x), 4000, method="percentile")
    assert np.array(ours) == pytest.approx(theirs.ravel(), abs=0.08)
    wider = bootstrap.sharpe_interval(autocorrelated(900, 2, 0.6), resamples=4000)
    assert wider[1] - wider[0] > 1.3 * (ours[1] - ours[0])  # the block follows the series' memory


def test_growth_and_drawdown_intervals_are_archs() -> None:
    returns = RNG.normal(5e-4, 0.01, 600)
    block = max(bootstrap.automatic_block(returns), bootstrap.automatic_block(np.abs(returns)))
    theirs = StationaryBootstrap(block, returns, seed=5).conf_int(max_drawdown, 2000, method="percentile").ravel()
    assert np.array(bootstrap.drawdown_interval(returns, resamples=2000)) == pytest.approx(theirs, abs=0.02)
    low, high = bootstrap.growth_interval(returns)
    yearly = np.expm1(252 * np.log1p(returns).mean())
    error = 252 * np.log1p(returns).std() / np.sqrt(600)
    assert (low, high) == pytest.approx(
        tuple((1 + yearly) * np.exp(z * error) - 1 for z in (-1.96, 1.96)), rel=0.15, abs=0.03
    )


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    streams = [np.random.default_rng(seed).normal(0.01 / np.sqrt(252), 0.01, 756) for seed in range(400)]
    hits = sum(low <= 1.0 <= high for low, high in bootstrap.sharpe_intervals(streams, resamples=299))
    assert 364 <= hits <= 394


def test_neither_company_nor_repetition_changes_a_bit() -> None:
    streams = [autocorrelated(400, seed) for seed in range(30)] + [RNG.standard_t(2, 333) * 0.02]
    together = bootstrap.sharpe_intervals(streams, resamples=200)
    assert together == [bootstrap.sharpe_interval(stream, resamples=200) for stream in streams]
    columns = RNG.standard_t(1.5, (512, 40)) * 10 ** RNG.uniform(-6, 6, 40)
    means = bootstrap.resampled_means(columns, 4, 50)
    assert np.array_equal(means[:, 7:8], bootstrap.resampled_means(columns[:, 7:8], 4, 50))
    # Sums are exact, so their order cannot matter: turn the sessions around, and the resamples with them.
    counts = bootstrap.resampled_counts(512, 4, 50).astype(float)
    assert means == pytest.approx(counts @ columns / 512, rel=1e-9, abs=1e-9 * np.abs(columns).max())


def test_years_scale_and_lengths_differ() -> None:
    returns = autocorrelated(300, 3)
    low, high = bootstrap.sharpe_interval(returns, sessions_per_year=365)
    assert (low, high) == pytest.approx(np.array(bootstrap.sharpe_interval(returns)) * np.sqrt(365 / 252))
    assert bootstrap.sharpe_intervals([returns, returns], sessions_per_year=[252, 365])[1] == (low, high)


def test_cash_and_short_streams() -> None:
    assert bootstrap.sharpe_interval(np.zeros(300)) == (0.0, 0.0)
    assert bootstrap.sharpe_interval(np.full(300, 0.01)) == (0.0, 0.0)
    for interval in (bootstrap.sharpe_interval, bootstrap.growth_interval, bootstrap.drawdown_interval):
        assert interval(RNG.normal(size=19) * 0.01) == (None, None)
        assert interval(np.zeros(30)) == (0.0, 0.0)
    low, high = bootstrap.sharpe_interval(RNG.normal(size=25))
    assert low < high
    mostly_idle = np.zeros(300)
    mostly_idle[5] = 0.01
    assert all(np.isfinite(bootstrap.sharpe_interval(mostly_idle)))
    ruined = np.append(np.full(30, 0.01), -1.0)
    assert all(np.isfinite(bootstrap.growth_interval(ruined)))
    assert bootstrap.drawdown_interval(ruined)[0] == pytest.approx(-1.0)
