"""A finished run opened again: its survivors, and prices cut along the dates that the run was trained on.

Borders of the splits given as fractions move when the prices grow or are others. A run that is looked at again must
not: its test span begins where it began, and its features are scaled by what training saw.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.bars import Bars, join_bars
from envs.forecasts import Forecasts
from envs.market import Borders, PairMarket, Span, build_market, iso_date, load_legs, run_borders, split_borders
from envs.scaler import Scaler
from pbt.forecasts import given_forecasts, kept_forecasts
from pbt.hub import fetch_run, is_hub
from pbt.run_dir import RunDir, open_run
from pbt.windows import window_numbers
from rayconf.errors import UserError
from rayconf.loading import build_config, load_file
from rayconf.run_config import RunConfig

if TYPE_CHECKING:
    from algos.policy import Policy
    from pbt.simulator import Prepared

Fills = dict[str, tuple[np.datetime64, np.datetime64]]
"""Dates of the first and the last fill by split."""


@dataclass(frozen=True)
class FinishedRun:
    """A complete run on disk."""

    directory: RunDir
    run: RunConfig
    known: tuple[Mapping[str, Any], ...]
    """Pair, policy name, rank, member and generation of every survivor."""

    @classmethod
    def open(cls, path: str | Path) -> "FinishedRun":
        """Open a run's directory, a run at a URI, or a published run by its ``hf://user/name``.

        Raises:
            UserError: There is none, it is not complete, or it cannot be fetched.
        """
        directory = RunDir(fetch_run(path)) if is_hub(path) else open_run(path)
        directory.require()
        run = build_config(load_file(directory.config))
        directory.identity = run.identity
        known = tuple(row for row in known_survivors(directory.summary_json) if row["pair"] in run.data.pairs)
        return cls(directory, run, known)

    @property
    def window(self) -> int:
        """The window that the survivors are of: the last of a walk-forward; 0: the run is none."""
        return window_numbers(self.run)[-1]

    @property
    def pairs(self) -> list[str]:
        """Pairs with survivors, in the run's order."""
        return list(dict.fromkeys(row["pair"] for row in self.known))

    def only(self, pairs: Sequence[str], flag: str) -> "FinishedRun":
        """The same run with some of its pairs alone. Raises ``UserError`` naming the flag where it has no such pair."""
        for pair in pairs:
            if pair not in self.pairs:
                raise UserError(f"{flag}: {pair!r} is no pair of this run; choose from {', '.join(self.pairs)}")
        return replace(self, known=tuple(row for row in self.known if row["pair"] in pairs))

    def policies(self, pair: str) -> dict[str, "Policy"]:
        """The survivors of a pair by name, best first."""
        from algos.policy import Policy

        found = {}
        for row in self.known:
            if row["pair"] == pair:
                folder = self.directory.survivor(pair, row["rank"])
                try:
                    found[row["policy"]] = Policy.load(folder)
                except (OSError, ValueError) as error:
                    raise UserError(f"{folder}: the survivor cannot be read: {error}") from error
        return found

    def fitness(self, pair: str) -> list[tuple[float, float]]:
        """Fitness on validation and its standard error of the survivors of a pair, best first."""
        return [(row["fitness"], row["fitness_se"]) for row in self.known if row["pair"] == pair]

    def scaler(self, pair: str) -> Scaler:
        """The scaler of a pair's features, which all its survivors share."""
        texts = {}
        for row in self.known:
            if row["pair"] == pair:
                path = self.directory.survivor(pair, row["rank"]) / "scaler.json"
                try:
                    texts[path] = path.read_text()
                except OSError as error:
                    raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        first = next(iter(texts))
        for path, text in texts.items():
            if text != texts[first]:
                raise UserError(f"{path}: another scaler than {first}; survivors of one run share theirs")
        try:
            return Scaler.from_json(texts[first])
        except ValueError as error:
            raise UserError(f"{first}: {error}") from error

    def prepared(self, pair: str) -> "Prepared":
        """What the run's baselines were fitted to, on its own prices. Raises ``UserError`` where it does not say."""
        from pbt.baselines import Z_GRID
        from pbt.simulator import Prepared

        path = self.directory.summary_json
        try:
            entry = json.loads(path.read_text())["pairs"][pair]
            rule = next(rule for rule in Z_GRID if str(rule) == entry["zscore"])
            a, b = entry["static_gross"]
            return Prepared(rule, (float(a), float(b)))
        except (KeyError, ValueError, TypeError, StopIteration) as error:
            raise UserError(f"{path}: does not say what the baselines of {pair} were fitted to") from error

    def on_data(self, folder: str | None) -> RunConfig:
        """The run's config, on the prices of another directory where one is given."""
        if folder is None:
            return self.run
        return self.run.model_copy(update={"data": self.run.data.model_copy(update={"dir": folder})})

    def legs(self, data_dir: str | None = None) -> dict[str, tuple[Bars, Bars]]:
        """Both legs' bars of every pair with survivors, the run's own or those of another directory."""
        run = self.on_data(data_dir)
        chosen = run.model_copy(update={"data": run.data.model_copy(update={"pairs": tuple(self.pairs)})})
        return load_legs(chosen)

    @cached_property
    def forecasts(self) -> Forecasts | None:
        """The run's own forecasts; None for a run without."""
        return kept_forecasts(self.run, self.directory)

    def markets(self, data_dir: str | None = None, forecasts: str | None = None) -> dict[str, PairMarket]:
        """The pairs' markets as their survivors know them: their scaler, and splits by the run's own dates.

        Args:
            data_dir: Prices other than the run's own.
            forecasts: File of forecasts of these prices; None: the run's own.

        Raises:
            UserError: If prices are missing or their features are not those that the survivors were trained on.
        """
        run, found = self.on_data(data_dir), {}
        known = self.forecasts if forecasts is None else given_forecasts(run, forecasts, tuple(self.pairs))
        for pair, (a, b) in self.legs(data_dir).items():
            borders = self.borders(pair, join_bars(a, b)[0].dates)
            found[pair] = self.pinned(build_market(pair, a, b, run, borders, self.scaler(pair), known))
        return found

    def borders(self, pair: str, dates: np.ndarray) -> Borders:
        """First dates of validation and test on the pair's ``dates`` [T], as they were when the run was made."""
        fills = self.fills(pair)
        if not {"train", "validation"} <= fills.keys():
            if self.window:
                raise UserError(
                    f"{self.directory.frame('daily')}: missing, so that the last window's dates are unknown"
                )
            dated = self.run.split.test_start is not None
            return split_borders(pair, dates, self.run.split) if dated else self._own_borders
        # A split's last fill is one bar before its own last bar, which is the one before the next split's border.
        after = [int(np.searchsorted(dates, fills[split][1], side="right")) + 1 for split in ("train", "validation")]
        far = dates[-1] + np.timedelta64(1, "D")
        end = self.run.split.test_end
        validation, test = (dates[i] if i < len(dates) else far for i in after)
        return Borders(validation, test, None if end is None else iso_date(end, "test_end"))

    def pinned(self, market: PairMarket) -> PairMarket:
        """The market with no split beginning before the run's own did."""
        fills = self.fills(market.pair)
        splits = {
            split: Span(max(span.start, int(np.searchsorted(market.dates, fills[split][0]))), span.stop)
            if split in fills
            else span
            for split, span in market.splits.items()
        }
        return replace(market, splits=splits)

    def fills(self, pair: str) -> Fills:
        """Dates of the run's first and last fills of a pair by split, as recorded; empty without a record.

        A published run has no daily frame; its ``summary.json`` has these dates instead.
        """
        from analysis.frames import read_frame

        path = self.directory.frame("daily")
        if not path.is_file():
            entry = json.loads(self.directory.summary_json.read_text())["pairs"][pair]
            ends = entry.get("splits", {}).items()
            return {name: (np.datetime64(first, "us"), np.datetime64(last, "us")) for name, (first, last) in ends}
        table = read_frame(
            path, ["split", "date"], window=self.window, scenario="base", pair=pair, policy="equal_weight"
        )
        split, date = (table.column(name).to_numpy(zero_copy_only=False) for name in ("split", "date"))
        return {name: (date[split == name].min(), date[split == name].max()) for name in sorted(set(split))}

    @cached_property
    def _own_borders(self) -> Borders:
        """Borders of a run that records no dates: its fractions of its own prices."""
        try:
            return run_borders(self.run)
        except UserError as error:
            raise UserError(
                f"{self.directory.frame('daily')}: missing, so that the run's splits are known only from its own "
                f"prices, which cannot be read ({error})"
            ) from error


def known_survivors(path: Path) -> list[dict[str, Any]]:
    """Pair, policy name, rank, member, generation and fitness with its error of every survivor of a complete run."""
    try:
        pairs = json.loads(path.read_text())["pairs"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path.parent}: the run is not complete; finish it with python -m pbt.launch --resume"
        ) from error
    return [
        {
            "pair": pair,
            "policy": f"survivor-{survivor['rank']}",
            "rank": survivor["rank"],
            "member": survivor["member"],
            "generation": survivor["generation"],
            "fitness": survivor["fitness"],
            "fitness_se": survivor["fitness_se"],
        }
        for pair, entry in pairs.items()
        for survivor in entry["survivors"]
    ]
