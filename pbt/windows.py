"""The windows of a run, each of which trains and is tested by itself: one, or those of a walk-forward.

A window of a walk-forward is the ordinary run with its dates and its seed (``envs.walk_forward``), kept below
``windows/<number>`` of the run's directory. Journals and frames are the run's, where rows carry the window's number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from envs.forecasts import Forecasts
from envs.market import PairMarket, load_markets
from envs.scaler import Scaler
from envs.universe import with_universe
from envs.walk_forward import load_windows
from pbt.fitness import Calendar
from pbt.manifest import Population
from pbt.run_dir import RunDir
from rayconf.errors import UserError
from rayconf.plan import TrainingMemory
from rayconf.run_config import RunConfig

ROW_BYTES = 48
"""Of a row that an environment holds for itself: its step and prior, float32, and two bar numbers."""


@dataclass(frozen=True)
class Window:
    """What is trained and tested as one."""

    run: RunConfig
    """With the window's own dates and seed."""
    directory: RunDir
    """The run's, as the window sees it."""
    markets: Mapping[str, PairMarket]
    """By pair, with the window's splits, scaler and what its policies train on."""

    @property
    def number(self) -> int:
        """From 1 in a walk-forward; 0: the run itself, without one."""
        return self.directory.window


def window_numbers(run: RunConfig) -> range:
    """Numbers of the windows, first to last; 0 alone without a walk-forward."""
    return range(1, len(run.split.walk_forward) + 1) if run.split.walk_forward else range(1)


def current_window(directory: RunDir, run: RunConfig) -> RunDir:
    """The run as its first window sees it that is not trained to the end, or else its last.

    Raises:
        UserError: A commit cannot be read.
    """
    for number in window_numbers(run):
        window = directory.in_window(number)
        manifests = [window.manifest(pair) for pair in run.leaders]
        if not all(path.is_file() and Population.read(path).status == "complete" for path in manifests):
            break
    return window


def windows_of(
    run: RunConfig,
    directory: RunDir,
    scalers: Mapping[str, Scaler] | None = None,
    forecasts: Forecasts | None = None,
) -> tuple[Window, ...]:
    """The windows of a run with their markets and what is trained on them, first to last.

    Args:
        run: The run; its walk-forward, if it is one, has dates.
        directory: Its directory.
        scalers: As ``load_markets`` takes them; a walk-forward fits its own.
        forecasts: Those that the run has among its features.

    Raises:
        UserError: If prices do not fit the run.
    """
    if not run.split.walk_forward:
        windows = [Window(run, directory, with_universe(load_markets(run, scalers, forecasts), run, forecasts))]
    else:
        windows = [
            Window(walk.run, directory.in_window(walk.number), with_universe(walk.markets, walk.run, forecasts))
            for walk in load_windows(run, forecasts)
        ]
    if run.pbt.pooled:
        for window in windows:
            _check_pooled(window)
    return tuple(windows)


def _check_pooled(window: Window) -> None:
    """Refuse pairs that no one policy can trade, or whose validation spans share too few sessions."""
    first, *others = window.markets.values()
    for market in others:
        if market.scaler.names != first.scaler.names:
            raise UserError(
                f"pbt.pooled: {market.pair} has other features than {first.pair}, as intraday and daily prices have; "
                "train it in a run of its own"
            )
    common, least = len(calendar_of([first, *others])), window.run.pbt.window
    if common < least:
        raise UserError(
            f"pbt.pooled: the pairs have {common} sessions of validation in common and need {least} (pbt.window); "
            "train those of other calendars in a run of their own"
        )


def calendar_of(markets: Sequence[PairMarket]) -> Calendar:
    """The sessions that the validation fills of some pairs have in common."""
    spans = [market.splits["validation"] for market in markets]
    dates = [market.dates[span.start : span.stop - 1] for market, span in zip(markets, spans, strict=True)]
    return Calendar(dates, [market.sessions_per_year for market in markets])


def pooled_line(run: RunConfig) -> str:
    """What is said of a population that is pooled over the run's pairs."""
    return (
        f"one population, under the name of {run.leaders[0]}, whose fitness is pooled over {', '.join(run.data.pairs)}"
    )


def training_memory(run: RunConfig, windows: Sequence[Window]) -> TrainingMemory:
    """What holds a universe or resampled histories of the pairs of ``run``, window after window.

    The driver has those of all windows, and those that it is building twice. The object store has two windows' at a
    time: Tune keeps what the last one trained on until the next one's population starts. A slot has of every row what
    an environment computes from it, with ``algo: direct`` the learner's too; networks that look bars up, runner's and
    learner's, have their own features.
    """
    trained = [[window.markets[pair].training for pair in run.data.pairs] for window in windows]
    found = [{id(bars): bars for bars in of_window if bars is not None} for of_window in trained]
    each = [sum(bars.nbytes for bars in distinct.values()) for distinct in found]
    environments, networks = 2 if run.algo == "direct" else 1, 0 if run.network.encoder == "mlp" else 2
    slots = [
        len(bars.features) * environments * ROW_BYTES + networks * bars.features.nbytes
        for distinct in found
        for bars in distinct.values()
    ]
    store = max(map(sum, pairwise([0, *each])))
    return TrainingMemory(*(-(-size // 2**20) for size in (sum(each) + max(each), store, max(slots, default=0))))


def numbered(table: pa.Table, number: int) -> pa.Table:
    """Rows of a frame under a window's number."""
    index = table.schema.get_field_index("window")
    column = pa.array(np.full(table.num_rows, number, np.int32))
    return table.set_column(index, table.schema.field(index), column)


def plan_lines(run: RunConfig, windows: Sequence[Window]) -> tuple[str, ...]:
    """What a plan says of the windows, and the notes on the data of the pairs of ``run``, each once."""
    starts = run.split.walk_forward
    told = (
        f"windows    {len(starts)}, each of these steps, one after the other; tests from {', '.join(starts)}, less the "
        "embargo at the start of each",
    )
    notes = dict.fromkeys(note for pair in run.data.pairs for window in windows for note in window.markets[pair].notes)
    then = f"; populations start from a pre-trained encoder, {run.stages.encoder}"
    stages = (f"stages     {', '.join(run.stages.run)}{then if 'population' in run.stages.run else ''}",)
    pooled = (f"pooled     {pooled_line(run)}",) if run.pbt.pooled else ()
    made_up = ("data       the synthetic market, whatever its pairs are called; --data-dir DIR reads real prices",)
    return (
        *(made_up if run.data.dir is None else ()),
        *(stages if run.stages.pretrain else ()),
        *pooled,
        *(told if starts else ()),
        *notes,
    )
