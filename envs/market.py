"""``PairMarket``: the aligned tensors of one pair, and its chronological splits with embargo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from envs.bars import Bars, infer_bars_per_year, is_intraday, join_bars, load_bars, resolve_directory, sessions
from envs.features import compute_features, feature_names, has_prior, lookback
from envs.forecasts import Forecasts, forecast_columns, forecast_names
from envs.placebo import shuffled_days
from envs.prior import PRIOR_COLUMNS, prior_columns
from envs.scaler import Scaler
from envs.synthetic import synthetic_pair
from rayconf.errors import UserError
from rayconf.run_config import RunConfig
from rayconf.sections import DEFAULT_FRACTIONS, FeaturesConfig, SplitConfig

if TYPE_CHECKING:
    from envs.training_bars import TrainingBars

SPLITS = ("train", "validation", "test")
MIN_TRAIN_BARS = 252
MIN_TEST_BARS = 21
EMBARGO_BARS, EMBARGO_SESSIONS = 21, 5
DAYS_PER_YEAR = 365.0


class Span(NamedTuple):
    """Bars of a split: fills at bars ``start`` .. ``stop - 2``, each earning to the next bar of the split."""

    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of fills."""
        return max(0, self.stop - 1 - self.start)


@dataclass(frozen=True)
class PairMarket:
    """Everything that is exogenous about one pair. T bars, F features."""

    pair: str
    dates: np.ndarray
    """[T] datetime64[us], the bars' own labels."""
    fill: np.ndarray
    """[T, 2] price at which orders fill at each bar."""
    close: np.ndarray
    """[T, 2] closing prices."""
    features: np.ndarray
    """[T, F] float32, standardised by the scaler; zero before the first complete row."""
    scaler: Scaler
    splits: dict[str, Span]
    bars_per_year: float
    session: np.ndarray
    """[T] int32 index of the session each bar belongs to."""
    equal_weight_sd: float
    """Standard deviation of equal weight's log return per bar on the training span."""
    notes: tuple[str, ...]
    """Lines for the log and the report: what was dropped, how the splits lie."""
    training: "TrainingBars | None" = None
    """What training episodes are drawn from; None: the pair's own training span."""

    @property
    def prior(self) -> np.ndarray | None:
        """[T, 2] weights of the features' prior, float32; None: there is none, which is flat."""
        columns = prior_columns(self.scaler.names)
        return None if columns is None else self.features[:, columns]

    @property
    def training_features(self) -> np.ndarray:
        """[T', F] features of the bars that training episodes are drawn from."""
        return self.features if self.training is None else self.training.features

    @property
    def returns(self) -> np.ndarray:
        """[T - 1, 2] simple return of each leg from the fill at bar k to the fill at bar k + 1."""
        return self.fill[1:] / self.fill[:-1] - 1

    @property
    def moves(self) -> np.ndarray:
        """[T, 2] simple return of each leg from the fill at a bar to the close of the same bar."""
        return self.close / self.fill - 1

    @property
    def years(self) -> np.ndarray:
        """[T - 1] time from the fill at bar k to the fill at bar k + 1 in years of 365 days."""
        return np.diff(self.dates).astype("timedelta64[us]").astype(np.float64) / (86_400e6 * DAYS_PER_YEAR)

    @property
    def sessions_per_year(self) -> float:
        """Sessions per year for annualising session returns: 252, or 365 for a market that never closes."""
        return self.bars_per_year / float(np.median(np.bincount(self.session)))

    @property
    def intraday(self) -> bool:
        """Whether the typical session has more than one bar."""
        return is_intraday(self.dates)


class Borders(NamedTuple):
    """First dates of validation, of test and of what comes after it, common to all pairs of a run."""

    validation: np.datetime64
    test: np.datetime64
    end: np.datetime64 | None = None
    """None: test reaches to the end of the data."""


def split_borders(pair: str, dates: np.ndarray, split: SplitConfig) -> Borders:
    """Borders from the config's dates, or from its fractions of the dates [T] of ``pair``, the longest of the run.

    Raises:
        UserError: If the dates are unusable or the pair is shorter than the burn-in.
    """
    if split.validation_start is not None and split.test_start is not None:
        end = None if split.test_end is None else iso_date(split.test_end, "test_end")
        borders = Borders(
            iso_date(split.validation_start, "validation_start"), iso_date(split.test_start, "test_start"), end
        )
        if borders.validation >= borders.test:
            raise UserError(
                f"split.validation_start: {split.validation_start} must lie before split.test_start {split.test_start}"
            )
        if end is not None and borders.test >= end:
            raise UserError(f"split.test_start: {split.test_start} must lie before split.test_end {split.test_end}")
        return borders
    usable = len(dates) - split.burn
    if usable < 4:
        raise UserError(
            f"{pair}: {len(dates)} bars are too few: {split.burn} of burn-in, then train, validation and test"
        )
    first, second = (int(usable * share) for share in np.cumsum(split.fractions or DEFAULT_FRACTIONS)[:2])
    return Borders(dates[split.burn + first], dates[split.burn + second])


def split_spans(dates: np.ndarray, borders: Borders, burn: int, embargo: int) -> dict[str, Span]:
    """Spans of the three splits of one pair; the embargo is left out at the start of validation and of test."""
    validation, test = (int(np.searchsorted(dates, border)) for border in borders[:2])
    end = len(dates) if borders.end is None else int(np.searchsorted(dates, borders.end))
    return {
        "train": Span(burn, validation),
        "validation": Span(max(burn, validation) + embargo, test),
        "test": Span(test + embargo, end),
    }


def build_market(
    pair: str,
    a: Bars,
    b: Bars,
    run: RunConfig,
    borders: Borders | None = None,
    scaler: Scaler | None = None,
    forecasts: Forecasts | None = None,
    *,
    training_only: bool = False,
) -> PairMarket:
    """Join two tickers' bars, compute features, fit the scaler on train and cut the splits.

    With a ``scaler``, a trained policy's own, none is fitted, and the market may be too short to train on. A run with
    forecasts needs its ``forecasts``. One that is for ``training_only`` may lack the other splits.

    Raises:
        UserError: If the pair has too few bars for windows plus splits, or its features are not the scaler's.
    """
    a, b, joined = join_bars(a, b)
    notes = [f"{pair}: {joined.text}"]
    if run.data.placebo != "none":
        notes.append(f"{pair}: a placebo, days in another order (seed {run.data.placebo_seed}): no edge is real here")
    session = sessions(a.dates)
    per_session = int(np.median(np.bincount(session)))
    embargo = run.split.embargo
    if embargo is None:
        embargo = EMBARGO_BARS if per_session == 1 else EMBARGO_SESSIONS * per_session
    _check_lookback(run)
    borders = borders or split_borders(pair, a.dates, run.split)
    splits = split_spans(a.dates, borders, run.split.burn, embargo)
    if scaler is None:
        _check_lengths(pair, splits, session, run, SPLITS[:1] if training_only else SPLITS)

    names, values = raw_features(a, b, run, forecasts)
    if forecasts is not None:
        notes.append(f"{pair}: features hold forecasts of {forecasts.made_by}")
    train = splits["train"]
    if scaler is None:
        scaler = Scaler.fit(values[train.start : train.stop], names, run.features)
    elif scaler.names != names:
        raise UserError(f"{pair}: {_first_other(scaler.names, names)}; the bars must be of the kind it was trained on")
    features = standardised(values, scaler, run.features)

    fill = np.stack([getattr(leg, run.data.fill) for leg in (a, b)], axis=1)
    if run.data.fill == "close":
        notes.append(f"{pair}: orders fill at closes, because data.fill is 'close'")
    legs = fill[train.start + 1 : train.stop] / fill[train.start : train.stop - 1] - 1
    for name, span in splits.items():
        if not span.rows:
            continue
        notes.append(f"{pair}: {name} {_day(a.dates[span.start])} .. {_day(a.dates[span.stop - 1])}, {span.rows} fills")
    return PairMarket(
        pair=pair,
        dates=a.dates,
        fill=fill,
        close=np.stack([a.close, b.close], axis=1),
        features=features,
        scaler=scaler,
        splits=splits,
        bars_per_year=run.data.bars_per_year or infer_bars_per_year(a.dates),
        session=session,
        equal_weight_sd=float(np.log1p(legs.mean(axis=1)).std()) if len(legs) else float("nan"),
        notes=tuple(notes),
    )


def raw_features(a: Bars, b: Bars, run: RunConfig, forecasts: Forecasts | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of all F features of a run and their unscaled values, float64 [T, F], NaN before the first complete row.

    Args:
        a: First leg.
        b: Second leg, on the same dates.
        run: The run.
        forecasts: The run's, where it has any.

    Raises:
        UserError: The forecasts do not cover the bars.
        ValueError: The run has forecasts and they are not given, or the other way round.
    """
    if run.forecasts.used != (forecasts is not None):
        raise ValueError("features of a run with forecasts need them, and those of others take none")
    names = raw_names(run, intraday=is_intraday(a.dates))
    values = compute_features(a, b, run.features, run.data.bars_per_year)
    if forecasts is None:
        return names, values
    columns = forecast_columns(forecasts, a, b, run.features, run.forecasts)
    end = values.shape[1] - len(PRIOR_COLUMNS) * has_prior(run.features)
    return names, np.concatenate((values[:, :end], columns, values[:, end:]), axis=1)


def raw_names(run: RunConfig, *, intraday: bool) -> tuple[str, ...]:
    """Names of all F features of a run: the prior's stay last, after forecasts."""
    names = feature_names(run.features, intraday)
    end = len(names) - len(PRIOR_COLUMNS) * has_prior(run.features)
    return (*names[:end], *forecast_names(run.forecasts), *names[end:])


def standardised(values: np.ndarray, scaler: Scaler, config: FeaturesConfig) -> np.ndarray:
    """Features as policies read them, float32 [T, F]: scaled, and zero before the first complete row.

    Args:
        values: float64 [T, F] of ``raw_features``.
        scaler: Of these features.
        config: Their windows.
    """
    features = np.zeros(values.shape, np.float32)
    first = lookback(config) - 1
    features[first:] = scaler.apply(values[first:])
    return features


def load_markets(
    run: RunConfig,
    scalers: Mapping[str, Scaler] | None = None,
    forecasts: Forecasts | None = None,
    legs: Mapping[str, tuple[Bars, Bars]] | None = None,
) -> dict[str, PairMarket]:
    """All pairs of a run, from its data directory or the synthetic market, on common split borders.

    Args:
        run: The run.
        scalers: By pair, the scalers that are not fitted; a run that starts from a checkpoint has its.
        forecasts: Those that the run has among its features.
        legs: What ``load_legs`` read, where that is done already.

    Raises:
        UserError: If prices or forecasts do not fit the run.
        ValueError: If the run starts from a checkpoint or has forecasts, and its scalers or they are not given.
    """
    if run.forecasts.wanted and run.forecasts.digest is None:
        raise ValueError("forecasts that a run asks for are looked for before its markets are built")
    if scalers is None and run.stages.base_digest is not None:
        raise ValueError("features of this run are on the scale of its base checkpoint: pass its scalers")
    if run.split.walk_forward:
        raise ValueError("a walk-forward has markets by window: see envs.walk_forward")
    legs = load_legs(run) if legs is None else legs
    borders = common_borders(legs, run)
    markets = {}
    for pair, (a, b) in legs.items():
        scaler = (scalers or {}).get(pair)
        market = build_market(pair, a, b, run, borders, scaler, forecasts)
        if scaler is not None:
            _check_lengths(pair, market.splits, market.session, run)
            market = replace(market, notes=(*market.notes, f"{pair}: features keep the scale of the base checkpoint"))
        markets[pair] = market
    return markets


def run_borders(run: RunConfig) -> Borders:
    """The split borders of a run's markets, without building them."""
    return common_borders(load_legs(run), run)


def common_borders(legs: Mapping[str, tuple[Bars, Bars]], run: RunConfig) -> Borders:
    """The split borders of a run's pairs, which are those of the longest of them."""
    return split_borders(*longest_pair(legs), run.split)


def longest_pair(legs: Mapping[str, tuple[Bars, Bars]]) -> tuple[str, np.ndarray]:
    """The pair with the most common bars, the first of several, and its dates [T]."""
    dates = {pair: join_bars(a, b)[0].dates for pair, (a, b) in legs.items()}
    longest = max(dates, key=lambda pair: len(dates[pair]))
    return longest, dates[longest]


def load_legs(run: RunConfig) -> dict[str, tuple[Bars, Bars]]:
    """Both legs of every pair; the directory is looked up, and each ticker read, once."""
    legs = _read_legs(run)
    if run.data.placebo == "none":
        return legs
    return {pair: shuffled_days(*both, run.data.placebo_seed) for pair, both in legs.items()}


def _read_legs(run: RunConfig) -> dict[str, tuple[Bars, Bars]]:
    if run.data.dir is None:
        return {pair: synthetic_pair(pair, run.synthetic) for pair in run.data.pairs}
    tickers = {pair: pair.split("/") for pair in run.data.pairs}
    wanted = list(dict.fromkeys(ticker for legs in tickers.values() for ticker in legs))
    directory = resolve_directory(run.data, wanted)
    bars = {ticker: load_bars(directory, ticker, run.data) for ticker in wanted}
    return {pair: (bars[a], bars[b]) for pair, (a, b) in tickers.items()}


def _first_other(trained: tuple[str, ...], here: tuple[str, ...]) -> str:
    """Where two lists of features part, in words."""
    i = next((i for i, (x, y) in enumerate(zip(trained, here, strict=False)) if x != y), min(len(trained), len(here)))
    known, found = (names[i] if i < len(names) else "nothing" for names in (trained, here))
    return f"feature {i + 1} is {found} here and {known} in the policy's scaler"


def _check_lookback(run: RunConfig) -> None:
    longest_lag = max(run.env.lag + run.augment.lags, *run.backtest.lags)
    need = lookback(run.features) - 1 + longest_lag
    if run.split.burn < need:
        raise UserError(f"split.burn: {run.split.burn} is below {need} = longest feature window plus longest lag")


def _check_lengths(
    pair: str, splits: dict[str, Span], session: np.ndarray, run: RunConfig, needed: Sequence[str] = SPLITS
) -> None:
    span = splits["validation"]
    seen = len(np.unique(session[span.start : max(span.start, span.stop - 1)]))
    have = {"train": splits["train"].rows, "validation": seen, "test": splits["test"].rows}
    train = max(MIN_TRAIN_BARS, run.direct.window_bars) if run.algo == "direct" else MIN_TRAIN_BARS
    need = {"train": train, "validation": run.pbt.window, "test": MIN_TEST_BARS}
    for name in needed:
        if have[name] < need[name]:
            unit, why = ("sessions", " (pbt.window)") if name == "validation" else ("bars", "")
            raise UserError(
                f"{pair}: {len(session)} bars are too few: {name} has {have[name]} {unit} after burn-in and embargo "
                f"and needs {need[name]}{why}; give more history or other split borders"
            )


def iso_date(text: str, field: str) -> np.datetime64:
    """A date of the split section. Raises ``UserError`` naming the field where it is none."""
    try:
        return np.datetime64(datetime.fromisoformat(text).replace(tzinfo=None), "us")
    except ValueError as error:
        raise UserError(f"split.{field}: {text!r} is no ISO date, e.g. 2020-01-01") from error


def _day(date: np.datetime64) -> Any:
    return np.datetime_as_string(date, unit="D")
