"""The embedded market: a seeded generator of two legs that share a factor and a mean-reverting spread.

``log P1 = m + s/2`` and ``log P2 = m - s/2``. In the plain form s is an Ornstein-Uhlenbeck process and m an
independent random walk, both Gaussian, so that the optimal growth rate is known (``envs.optimum``). The full form
adds volatility regimes, fat tails and a slowly moving mean of the spread; no optimum is claimed for it. In the form
``walk`` s is a random walk too, so that both prices are martingales: whoever finds skill there was lucky.
"""

import numpy as np
from numpy.random import PCG64, Generator

from envs.bars import Bars
from rayconf.errors import UserError
from rayconf.keys import derive_key
from rayconf.sections import SyntheticConfig

START = np.datetime64("1775-01-02", "D")
"""A Monday. The default number of weekdays from here ends in 2025, and nanoseconds still reach both ends."""
START_PRICE = 100.0

CALM, WILD = 0.7, 1.6
"""Multiples of volatility in the two regimes of the full form."""
CALM_STAY, WILD_STAY = 120.0, 40.0
"""Mean stay in each regime, in bars; the mean of the squared multiple is 1.0075."""
TAIL_FREEDOM = 5.0
SLOW_HALF_LIFE = 500.0
SLOW_SD_RATIO = 0.5
"""The spread's moving mean: half-life in bars, and SD as a share of the spread's own."""


def reversion(half_life: float) -> float:
    """AR(1) coefficient per bar of a process with this half-life in bars."""
    return 0.5 ** (1.0 / half_life)


def synthetic_pair(pair: str, config: SyntheticConfig) -> tuple[Bars, Bars]:
    """Daily bars of both legs of ``pair`` (``AAA/BBB``), a pure function of its arguments.

    Every pair is a market of its own: a ticker that occurs in two pairs has a different path in each. The first
    bars do not depend on ``config.bars``, so a longer market extends a shorter one. In the forms plain and walk the
    expected simple return of each leg is zero over a bar: the logs drift by
    ``-factor_sd^2 / 2 - var(change of s) / 8``.

    Raises:
        UserError: ``pair`` is not two tickers joined by ``/``.
    """
    tickers = pair.split("/")
    if len(tickers) != 2 or not all(tickers):
        raise UserError(f"data.pairs: {pair!r} is no pair; write two tickers as AAA/BBB")
    bars, full = config.bars, config.form == "full"
    volatility = _regimes(_stream(config, pair, "regime"), bars) if full else np.ones(bars)
    spread_variance = 2 * config.spread_sd**2 * (1 - reversion(config.half_life))
    if config.form == "walk":
        spread = _walk(_stream(config, pair, "spread"), config, bars, spread_variance)
    else:
        spread = _reverting(config, pair, "spread", config.half_life, config.spread_sd, volatility, full)
    if full:
        slow_sd = SLOW_SD_RATIO * config.spread_sd
        spread += _reverting(config, pair, "slow", SLOW_HALF_LIFE, slow_sd, np.ones(bars), False)
    factor = _factor(config, pair, volatility, spread_variance, full)
    leg_sd = np.sqrt(config.factor_sd**2 + spread_variance / 4)
    dates = weekdays(bars)
    first, second = (
        _leg(config, pair, ticker, dates, factor + sign * spread / 2, leg_sd, volatility)
        for ticker, sign in zip(tickers, (1, -1), strict=True)
    )
    return first, second


def log_spread(first: Bars, second: Bars) -> np.ndarray:
    """The log spread s at every close, [T]."""
    return np.log(first.close) - np.log(second.close)


def weekdays(bars: int) -> np.ndarray:
    """The first ``bars`` weekdays from ``START``, datetime64[us] [T]; Friday to Monday is three days."""
    index = np.arange(bars)
    return (START + (7 * (index // 5) + index % 5)).astype("datetime64[us]")


def _stream(config: SyntheticConfig, pair: str, *purpose: str) -> Generator:
    return Generator(PCG64(derive_key("synthetic", config.seed, pair, *purpose)))


def _shocks(rng: Generator, bars: int, fat: bool) -> np.ndarray:
    """Unit-variance innovations [T, 2]: overnight and in the session, drawn bar by bar."""
    if not fat:
        return rng.standard_normal((bars, 2))
    return rng.standard_t(TAIL_FREEDOM, (bars, 2)) * np.sqrt((TAIL_FREEDOM - 2) / TAIL_FREEDOM)


def _regimes(rng: Generator, bars: int) -> np.ndarray:
    """Volatility multiples [T] of a two-state Markov chain that starts in its stationary distribution."""
    starts_wild = rng.random() < WILD_STAY / (CALM_STAY + WILD_STAY)
    order = np.array([WILD, CALM] if starts_wild else [CALM, WILD])
    stay = np.array([WILD_STAY, CALM_STAY] if starts_wild else [CALM_STAY, WILD_STAY])
    lengths = rng.geometric(1 / stay, ((bars + 1) // 2, 2))
    return np.repeat(np.tile(order, len(lengths)), lengths.ravel())[:bars]


def _reverting(
    config: SyntheticConfig,
    pair: str,
    purpose: str,
    half_life: float,
    sd: float,
    volatility: np.ndarray,
    fat: bool,
) -> np.ndarray:
    """An Ornstein-Uhlenbeck path at every open and close, [T, 2], stationary from the first bar."""
    from scipy.signal import lfilter  # half a second that the actors, which are given their markets, save

    rng = _stream(config, pair, purpose)
    before = sd * rng.standard_normal()
    shocks = _shocks(rng, len(volatility), fat) * volatility[:, None]
    phi, night = reversion(half_life), config.overnight
    night_phi, session_phi = phi**night, phi ** (1 - night)
    gap = sd * np.sqrt(1 - night_phi**2) * shocks[:, 0]
    session = sd * np.sqrt(1 - session_phi**2) * shocks[:, 1]
    close, _ = lfilter([1.0], [1.0, -phi], session_phi * gap + session, zi=[phi * before])
    open_ = night_phi * np.concatenate(([before], close[:-1])) + gap
    return np.stack([open_, close], axis=1)


def _walk(rng: Generator, config: SyntheticConfig, bars: int, variance: float) -> np.ndarray:
    """A Gaussian random walk with ``variance`` per bar at every open and close, [T, 2], from about 0."""
    share = np.array([config.overnight, 1 - config.overnight])
    return np.cumsum((np.sqrt(variance * share) * _shocks(rng, bars, False)).ravel()).reshape(-1, 2)


def _factor(
    config: SyntheticConfig, pair: str, volatility: np.ndarray, spread_variance: float, fat: bool
) -> np.ndarray:
    """The common log factor at every open and close, [T, 2], with the drift that makes simple returns fair."""
    shocks = _shocks(_stream(config, pair, "factor"), len(volatility), fat) * volatility[:, None]
    share = np.array([config.overnight, 1 - config.overnight])
    drift = -(config.factor_sd**2 / 2 + spread_variance / 8) * volatility[:, None] ** 2 * share
    steps = drift + config.factor_sd * np.sqrt(share) * shocks
    return np.cumsum(steps.ravel()).reshape(-1, 2)


def _leg(
    config: SyntheticConfig,
    pair: str,
    ticker: str,
    dates: np.ndarray,
    log_price: np.ndarray,
    leg_sd: float,
    volatility: np.ndarray,
) -> Bars:
    """One leg from its log price at opens and closes [T, 2], its SD per bar and the multiples of that SD [T].

    High and low are the extremes of a Brownian bridge from open to close (each exact in distribution). Volume is
    lognormal around a level that rises with the size of the session's move.
    """
    open_, close = log_price.T
    move = close - open_
    session_sd = leg_sd * np.sqrt(1 - config.overnight)
    exponential = _stream(config, pair, "range", ticker).exponential(size=(len(open_), 2))
    reach = np.sqrt(move[:, None] ** 2 + 2 * (session_sd * volatility[:, None]) ** 2 * exponential)
    middle = (open_ + close) / 2
    noise = _stream(config, pair, "volume", ticker).standard_normal(len(open_))
    size = np.abs(move) / session_sd if session_sd > 0 else np.zeros(len(open_))
    volume = np.round(1e6 * np.exp(0.3 * size + 0.3 * noise))
    prices = START_PRICE * np.exp(np.stack([open_, middle + reach[:, 0] / 2, middle - reach[:, 1] / 2, close]))
    high, low = prices.max(axis=0), prices.min(axis=0)  # rounding must not leave an extreme inside the body
    return Bars(ticker, dates, prices[0], high, low, prices[3], volume)
