"""Universes: many markets that one policy trains on, so that it cannot learn a single history by heart."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations

import numpy as np

from envs.bars import Bars, join_bars, tickers_at
from envs.forecasts import Forecasts
from envs.histories import histories
from envs.market import MIN_TRAIN_BARS, Borders, PairMarket, build_market, common_borders, load_legs
from envs.scaler import Scaler
from envs.training_bars import TrainingBars
from rayconf.errors import UserError
from rayconf.run_config import RunConfig

Legs = Mapping[str, tuple[Bars, Bars]]
MOST_TICKERS = 32
"""Tickers that ``universe.tickers=*`` may find: 992 ordered pairs."""


def listed(run: RunConfig) -> RunConfig:
    """The run with the tickers of its universe where its config only says that it wants all.

    Raises:
        UserError: The prices cannot be listed, or there are fewer than two tickers or too many.
    """
    if not run.universe.everything:
        return run
    if run.data.dir is None:
        found = tuple(dict.fromkeys(ticker for pair in run.data.pairs for ticker in pair.split("/")))
    else:
        found = tickers_at(run.data.dir)
    left = set(found) - set(run.universe.held_out)
    if not 2 <= len(left) <= MOST_TICKERS:
        raise UserError(
            f"universe.tickers: '*' finds {len(left)} tickers in {run.data.dir}; list between 2 and {MOST_TICKERS} by "
            "name, or more if the memory holds them"
        )
    return run.model_copy(update={"universe": run.universe.model_copy(update={"tickers": found})})


def universe_pairs(run: RunConfig) -> tuple[str, ...]:
    """The pairs that training episodes are drawn from, each once: all ordered pairs of the tickers, then the others.

    A pair in both orders is two markets: features and actions of the legs change places, a symmetry of trading that
    plain networks do not know.
    """
    universe = listed(run).universe
    tickers = [ticker for ticker in universe.tickers if ticker not in universe.held_out]
    return tuple(dict.fromkeys([*("/".join(pair) for pair in permutations(tickers, 2)), *universe.pairs]))


def with_universe(
    markets: Mapping[str, PairMarket], run: RunConfig, forecasts: Forecasts | None = None
) -> dict[str, PairMarket]:
    """The run's markets, with what their policies train on where that is not the pair's own training span alone.

    Args:
        markets: The run's.
        run: The run.
        forecasts: Those that the run has among its features.

    Raises:
        UserError: Prices are missing or do not fit, or no pair of the universe has enough of them.
    """
    found = _with_others(markets, run, forecasts)
    return found if run.stages.share == 1 else _after_encoder(found, run)


def _after_encoder(markets: Mapping[str, PairMarket], run: RunConfig) -> dict[str, PairMarket]:
    """The markets without decisions in the first ``stages.share`` of the training span, on which the encoder trains."""
    longest = max(markets.values(), key=lambda market: market.splits["train"].rows)
    train = longest.splits["train"]
    opens = longest.dates[train.start + int(train.rows * run.stages.share)]
    day = np.datetime_as_string(opens, unit="D")
    shared: dict[int, TrainingBars] = {}  # what pairs share stays one
    found = {}
    for pair, market in markets.items():
        left = shared.get(id(market.training))
        if left is None:
            left = replace(market.training or TrainingBars.of(market), opens=opens)
            if market.training is not None:
                shared[id(market.training)] = left
        rows = sum(span.stop - span.start for span in left.decisions(run.env.lag))
        if rows < max(MIN_TRAIN_BARS, run.direct.window_bars):
            raise UserError(
                f"stages.share: leaves populations {rows} bars of {pair} from {day} on; choose a smaller one"
            )
        note = f"{pair}: populations train on {rows:,} bars from {day} on, the encoder on those before"
        found[pair] = replace(market, training=left, notes=(*market.notes, note))
    return found


def _with_others(
    markets: Mapping[str, PairMarket], run: RunConfig, forecasts: Forecasts | None
) -> dict[str, PairMarket]:
    if run.universe.given:
        # A base checkpoint's scale is not fitted here, so that its pairs keep it in the universe too.
        kept = {} if run.stages.base_digest is None else {pair: market.scaler for pair, market in markets.items()}
        bars, left_out = load_universe(run, forecasts, kept)
        return {pair: replace(m, training=bars, notes=(*m.notes, _note(bars, left_out))) for pair, m in markets.items()}
    if not run.augment.histories:
        return dict(markets)
    legs = load_legs(run)
    borders = common_borders(legs, run)
    return {pair: with_histories(market, *legs[pair], run, borders) for pair, market in markets.items()}


def with_histories(market: PairMarket, a: Bars, b: Bars, run: RunConfig, borders: Borders) -> PairMarket:
    """The market of two legs, which trains on resampled histories beside its own."""
    note = f"{market.pair}: trains on {run.augment.histories} resampled histories beside its own"
    training = joined([market, *histories(market, a, b, run, borders)], run)
    return replace(market, training=training, notes=(*market.notes, note))


def load_universe(
    run: RunConfig, forecasts: Forecasts | None = None, scalers: Mapping[str, Scaler] | None = None
) -> tuple[TrainingBars, list[str]]:
    """The training spans of the run's universe under the run's own split borders, and pairs left out as too short.

    Args:
        run: The run.
        forecasts: Those that the run has among its features.
        scalers: By pair, those that are not fitted.

    Raises:
        UserError: Prices are missing or do not fit, or no pair has enough of them.
    """
    pairs = universe_pairs(run)
    wanted = tuple(dict.fromkeys([*run.data.pairs, *pairs]))
    legs = load_legs(run.model_copy(update={"data": run.data.model_copy(update={"pairs": wanted})}))
    borders = common_borders({pair: legs[pair] for pair in run.data.pairs}, run)
    return universe_of({pair: legs[pair] for pair in pairs}, run, borders, forecasts, scalers)


def universe_of(
    legs: Legs,
    run: RunConfig,
    borders: Borders,
    forecasts: Forecasts | None = None,
    scalers: Mapping[str, Scaler] | None = None,
) -> tuple[TrainingBars, list[str]]:
    """As ``load_universe``, from prices at hand."""
    markets: list[PairMarket] = []
    left_out = []
    for pair, both in legs.items():
        a, b = (leg.before(borders.validation) for leg in both)
        if len(np.intersect1d(a.dates, b.dates)) - 1 - run.split.burn < MIN_TRAIN_BARS:
            left_out.append(pair)
            continue
        a, b, _ = join_bars(a, b)
        scaler = (scalers or {}).get(pair)
        markets.append(build_market(pair, a, b, run, borders, scaler, forecasts, training_only=True))
        markets += histories(markets[-1], a, b, run, borders)
    if not markets:
        before = np.datetime_as_string(borders.validation, unit="D")
        raise UserError(
            f"universe: none of its {len(legs)} pairs has {MIN_TRAIN_BARS} bars of training between burn-in and "
            f"{before}; give other tickers, or a later split.validation_start"
        )
    return joined(markets, run), left_out


def joined(markets: list[PairMarket], run: RunConfig) -> TrainingBars:
    """Their training spans, with what networks and lags read before them."""
    window = run.network.encoder_window if run.network.encoder not in ("mlp", "factored") else 1
    return TrainingBars.joined(markets, run.env.lag + window)


def _note(bars: TrainingBars, left_out: list[str]) -> str:
    pairs = len(set(bars.pairs))
    text = f"universe: trains on {sum(span.rows for span in bars.spans):,} fills of {pairs} pairs"
    if len(bars.pairs) > pairs:
        text += f" and {len(bars.pairs) - pairs} resampled histories"
    return text + (f"; too short for it: {', '.join(left_out)}" if left_out else "")
