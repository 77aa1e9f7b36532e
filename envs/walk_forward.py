"""The windows of a walk-forward: expanding training spans whose test spans follow one another.

Window w trains on every bar from the burn-in to its validation, the ``split.walk_validation`` bars of the longest pair
before its test. Its test ends where that of window w + 1 begins. Each window is an ordinary run with dates and a seed
of its own, so that borders, embargo, scaler and whatever else a run does are those of ``envs.market``. Nothing of a
window's test enters its training, validation or scaler; windows that come later train on it, as a trader would.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from envs.bars import Bars
from envs.forecasts import Forecasts
from envs.market import PairMarket, iso_date, load_legs, load_markets, longest_pair
from rayconf.errors import UserError
from rayconf.run_config import RunConfig
from rayconf.sections import DEFAULT_FRACTIONS

FIELD = "split.walk_forward"


@dataclass(frozen=True)
class Walk:
    """One window of a walk-forward."""

    number: int
    """From 1."""
    run: RunConfig
    """The ordinary run that the window is."""
    markets: Mapping[str, PairMarket]
    """By pair, with the window's splits and scaler."""


def dated(run: RunConfig) -> RunConfig:
    """The run with the dates of its windows where its config only says how many.

    The bars of the longest pair after the training share are dealt into tests of equal length, up to one bar.

    Raises:
        UserError: The data has fewer bars than that.
    """
    count = run.split.walks
    if count is None:
        return run
    pair, dates = longest_pair(load_legs(run))
    usable = len(dates) - run.split.burn
    first = run.split.burn + int(usable * (run.split.fractions or DEFAULT_FRACTIONS)[0])
    if len(dates) - first < count:
        raise UserError(f"{FIELD}: {pair} has {max(0, len(dates) - first)} bars for {count} tests; ask for fewer")
    places = [first + (len(dates) - first) * i // count for i in range(count)]
    split = run.split.model_copy(update={"walk_forward": tuple(_text(dates[place]) for place in places)})
    return run.model_copy(update={"split": split})


def window_runs(run: RunConfig, pair: str, dates: np.ndarray) -> tuple[RunConfig, ...]:
    """The ordinary runs that the windows are, first to last.

    Args:
        run: A walk-forward whose windows have dates.
        pair: The longest pair.
        dates: Its dates [T], which the length of validation is counted in.

    Raises:
        UserError: There are too few bars before a window's test.
    """
    starts, size = run.split.walk_forward, run.split.walk_validation
    runs = []
    for number, (start, end) in enumerate(zip(starts, (*starts[1:], None), strict=True), start=1):
        place = int(np.searchsorted(dates, iso_date(start, "walk_forward")))
        if place - size <= run.split.burn:
            raise UserError(
                f"{FIELD}: window {number}: {pair} has {place} bars before {start}, no more than {run.split.burn} of "
                f"burn-in and {size} of validation; begin later, or lower split.walk_validation"
            )
        runs.append(run.window(number, _text(dates[place - size]), start, end))
    return tuple(runs)


def load_windows(run: RunConfig, forecasts: Forecasts | None = None) -> tuple[Walk, ...]:
    """The windows of a walk-forward with their markets; the data is read once.

    Raises:
        UserError: Prices do not fit the run, or a pair has too few bars in a window.
    """
    legs = load_legs(run)
    walks = []
    for number, own in enumerate(window_runs(run, *longest_pair(legs)), start=1):
        walks.append(Walk(number, own, _markets(number, own, legs, forecasts)))
    return _told_once(walks)


def _markets(
    number: int, run: RunConfig, legs: Mapping[str, tuple[Bars, Bars]], forecasts: Forecasts | None
) -> dict[str, PairMarket]:
    try:
        return load_markets(run, forecasts=forecasts, legs=legs)
    except UserError as error:
        raise UserError(f"{FIELD}: window {number} (test from {run.split.test_start}): {error}") from error


def _told_once(walks: Sequence[Walk]) -> tuple[Walk, ...]:
    """The same with the notes of the splits under the window's number; what is true of all windows stays as it is."""
    found = []
    for walk in walks:
        markets = {}
        for pair, market in walk.markets.items():
            spans = {f"{pair}: {split} " for split in market.splits}
            notes = tuple(
                f"{pair}: window {walk.number}: {note.removeprefix(f'{pair}: ')}"
                if any(note.startswith(span) for span in spans)
                else note
                for note in market.notes
            )
            markets[pair] = replace(market, notes=notes)
        found.append(replace(walk, markets=markets))
    return tuple(found)


def _text(date: np.datetime64) -> str:
    return str(date.astype("datetime64[us]").item().isoformat()).removesuffix("T00:00:00")
