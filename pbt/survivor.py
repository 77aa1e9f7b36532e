"""Using what a run left: ``load_policy`` reads a survivor, whose ``decide`` gives the target weights of an order.

Deciding reads prices up to one close and never a return after it, so that it is no look at the test span.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from algos.policy import EnsemblePolicy, Policy
from algos.stack import decide_on
from envs import ledger
from envs.bars import Bars, bars_from_frame, join_bars, load_bars, resolve_directory
from envs.batched import uses_drawdown
from envs.features import lookback
from envs.forecasts import Forecasts
from envs.ledger import Account, Terms
from envs.market import raw_features, standardised
from envs.scaler import Scaler
from envs.synthetic import synthetic_pair
from pbt.forecasts import given_forecasts
from pbt.run_dir import folder_name
from pbt.trading_account import TradingAccount, capped, is_batch, mark
from rayconf.errors import UserError
from rayconf.loading import build_config, load_file
from rayconf.run_config import RunConfig
from rayconf.storage import is_uri

Prices = Mapping[str, pd.DataFrame | Bars] | str | Path | None
"""By ticker a frame with the columns of a price file, or ``Bars``; a folder of such files; None: the embedded market's
own prices, for a policy that was trained on it."""


@dataclass(frozen=True)
class History:
    """Joined prices of a pair and their scaled features; T bars."""

    dates: np.ndarray
    """[T] datetime64[us]."""
    close: np.ndarray
    """[T, 2]."""
    features: Tensor
    """[T, F] float32, standardised with the policy's own scaler."""
    first: int
    """First bar that can be decided at: features need bars before it."""
    notes: tuple[str, ...]
    """What a trader should know of these prices."""

    def bars_at(self, dates: Sequence[Any] | None) -> np.ndarray:
        """Bars [D] labelled ``dates``; None: the last one.

        Raises:
            UserError: There is no such bar, or too little history before it.
        """
        if dates is None:
            bars = np.array([len(self.dates) - 1])
        else:
            wanted = np.array([_stamp(date) for date in dates], "datetime64[us]")
            bars = np.searchsorted(self.dates, wanted)
            missing = (bars == len(self.dates)) | (self.dates[np.minimum(bars, len(self.dates) - 1)] != wanted)
            if missing.any():
                where = f"they span {_label(self.dates[0])} .. {_label(self.dates[-1])}"
                raise UserError(f"date {_label(wanted[missing][0])}: the prices have no common bar of it; {where}")
        if bars.min() < self.first:
            raise UserError(
                f"prices: {int(bars.min()) + 1} common bars up to {_label(self.dates[bars.min()])} are too few; this "
                f"policy needs {self.first + 1}"
            )
        return bars


@dataclass(frozen=True)
class Orders:
    """What one account trades. Arrays [2] in the order of the pair's legs; dollars at the close decided on."""

    tickers: tuple[str, str]
    date: np.datetime64
    """Bar whose close is the last that was seen."""
    equity: float
    close: np.ndarray
    target: np.ndarray
    """Target weights, as ``decide`` gives them."""
    weights: np.ndarray
    """The same after the leverage limit."""
    current: np.ndarray
    """Weights now; orders that have not filled count as filled."""
    value: np.ndarray
    """Dollars to buy (positive) or sell."""
    cost: float
    """Estimated commission and slippage, dollars."""

    @property
    def shares(self) -> np.ndarray:
        """Shares to buy (positive) or sell at the close; the broker's own rounding is left to the trader."""
        return self.value / self.close


@dataclass(frozen=True)
class TradingPolicy:
    """A survivor, or the ensemble of a pair's survivors, with all that deciding needs."""

    pair: str
    name: str
    """``ensemble`` or ``survivor-1``, as the frames call it."""
    run: RunConfig
    """Of the (first) survivor: features, costs, lag, leverage."""
    scaler: Scaler
    policy: Policy | EnsemblePolicy

    @property
    def tickers(self) -> tuple[str, str]:
        """The pair's legs."""
        a, _, b = self.pair.partition("/")
        return a, b

    @property
    def terms(self) -> Terms:
        """The run's own costs and leverage limit."""
        return Terms.from_costs(self.run.costs)

    def decide(
        self,
        prices: Prices | History,
        account: TradingAccount | None = None,
        dates: Any = None,
    ) -> np.ndarray:
        """Target weights for the fill ``lag`` bars after a close, as the backtest decides them, to the bit.

        Args:
            prices: Enough history up to that close; later bars change nothing. See ``Prices``; what ``history``
                made of them saves work where many decisions follow one another.
            account: What is held at that close; None: all cash, never traded. Fields of B rows make a batch.
            dates: Label of the bar decided at, or D labels for a batch: one account at D closes, B accounts at one,
                or row by row where D = B. None: the last common bar.

        Returns:
            Signed fractions of equity before the leverage limit, rounded to 1e-4, float64: [2], or [rows, 2] where
            account or dates are a batch.

        Raises:
            UserError: Prices or account do not fit the policy.
        """
        account = self._opened(account)
        several = dates is not None and not _is_label(dates)
        history = prices if isinstance(prices, History) else self.history(prices)
        bars = history.bars_at(dates if several or dates is None else [dates])
        found = self._targets(history, bars, account)
        return found if several or is_batch(account) else found[0]

    def orders(self, prices: Prices | History, account: TradingAccount | None = None, date: Any = None) -> Orders:
        """The orders of one account, valued at the close decided on.

        Args:
            prices: As in ``decide``.
            account: A single one; its equity is in dollars.
            date: Label of the bar decided at; None: the last common bar.

        Raises:
            UserError: Prices or account do not fit the policy.
        """
        account = self._opened(account)
        if is_batch(account):
            raise UserError("account: orders are those of one account; ask decide() about a batch")
        history = prices if isinstance(prices, History) else self.history(prices)
        bars = history.bars_at(None if date is None else [date])
        target = torch.from_numpy(self._targets(history, bars, account))
        close = history.close[bars]
        now = mark(account, self.tickers, close, **self._terms_of_trade)
        open_account = Account(now.equity, now.holdings, now.equity, torch.zeros(1, dtype=torch.bool))
        _, fill = ledger.step(open_account, target, torch.zeros_like(target), 0.0, self.terms)
        return Orders(
            tickers=self.tickers,
            date=history.dates[bars[0]],
            equity=float(now.equity),
            close=close[0],
            target=target[0].numpy(),
            weights=capped(target, self.terms)[0].numpy(),
            current=now.weights[0].numpy(),
            value=(fill.held - now.holdings)[0].numpy(),
            cost=float(fill.cost),
        )

    def history(self, prices: Prices, forecasts: str | Path | None = None) -> History:
        """Join prices and compute the features of every bar with the policy's own config and scaler.

        Args:
            prices: See ``Prices``.
            forecasts: Parquet file of forecasts of these prices, for a policy whose features hold some.

        Raises:
            UserError: A leg is missing, bars are malformed, daily where the policy knows intraday, or too few; or
                forecasts are missing or others than the policy was trained with.
        """
        known = self._forecasts(forecasts)
        legs = self._legs(prices)
        a, b, joined = join_bars(*legs)
        config = self.run.features
        names, values = raw_features(a, b, self.run, known)
        if names != self.scaler.names:
            kinds = ["intraday" if "time_sin" in x else "daily" for x in (self.scaler.names, names)]
            why = f"{kinds[0]} bars, these are {kinds[1]}" if kinds[0] != kinds[1] else "other features than its config"
            raise UserError(f"prices: {self.pair}: the policy was trained on {why}")
        first = lookback(config) - 1
        if self.run.network.encoder not in ("mlp", "factored"):
            first += self.run.network.encoder_window - 1
        if len(a) <= first:
            raise UserError(
                f"prices: {self.pair}: {joined.text}: {len(a)} bars are too few; this policy needs {first + 1}"
            )
        features = standardised(values, self.scaler, config)
        notes = [
            f"{leg.ticker} has bars up to {_label(leg.dates[-1])}; the last that both have is {_label(joined.last)}"
            for leg in legs
            if leg.dates[-1] != joined.last
        ]
        close = np.stack([a.close, b.close], axis=1)
        return History(a.dates, close, torch.from_numpy(features), first, tuple(notes))

    def _forecasts(self, place: str | Path | None) -> Forecasts | None:
        if place is not None:
            return given_forecasts(self.run, place, (self.pair,))
        if self.run.forecasts.used:
            raise UserError(
                f"--forecasts: missing; {self.pair} was trained with forecasts of {self.run.forecasts.made_by}, so "
                "give those of these prices (python -m pbt.forecast makes them)"
            )
        return None

    @property
    def _terms_of_trade(self) -> dict[str, Any]:
        return {"terms": self.terms, "lag": self.run.env.lag, "drawdown": uses_drawdown(self.run)}

    @staticmethod
    def _opened(account: TradingAccount | None) -> TradingAccount:
        return TradingAccount(peak=1.0) if account is None else account

    @torch.inference_mode()
    def _targets(self, history: History, bars: np.ndarray, account: TradingAccount) -> np.ndarray:
        marked = mark(account, self.tickers, history.close[bars], **self._terms_of_trade)
        count = len(marked.equity)
        at = torch.from_numpy(np.broadcast_to(bars, count).astype(np.int64))
        asked = range(int(bars.min()), int(bars.max()) + 1)
        answer = decide_on([self.policy], history.features).among(torch.arange(count), asked)
        return answer(at, marked.view(self.run.costs.leverage)).numpy()

    def _legs(self, prices: Prices) -> tuple[Bars, Bars]:
        a, b = self.tickers
        data = self.run.data
        if prices is None:
            if data.dir is not None:
                raise UserError(f"prices: {self.pair} was trained on prices from files; give some of your own")
            return synthetic_pair(self.pair, self.run.synthetic)
        if isinstance(prices, str | Path):
            data = data.model_copy(update={"dir": str(prices)})
            try:
                folder = resolve_directory(data, (a, b))
                return load_bars(folder, a, data), load_bars(folder, b, data)
            except UserError as error:
                raise UserError(f"the policy trades {a} and {b}: {error}") from error
        if missing := [ticker for ticker in (a, b) if ticker not in prices]:
            given = ", ".join(map(str, prices)) or "nothing"
            raise UserError(f"prices: {' and '.join(missing)} missing; the policy trades {a} and {b} (given: {given})")
        first, second = (
            x if isinstance(x, Bars) else bars_from_frame(x, ticker, data)
            for ticker, x in ((a, prices[a]), (b, prices[b]))
        )
        return first, second


def load_policy(path: str | Path, pair: str | None = None) -> TradingPolicy:
    """Read a survivor or, of a pair's folder, the equal-weight ensemble of its survivors.

    Args:
        path: ``RUN/survivors/AAA_BBB/1`` (one survivor), ``RUN/survivors/AAA_BBB`` (the headline ensemble), a run's
            directory, or the same at a URI (``s3://...``) or of a published run,
            ``hf://user/name[@revision][/subfolder]``.
        pair: ``AAA/BBB``: which pair of a run, or of which pair a survivor is whose folder does not say.

    Raises:
        UserError: There is no survivor, or its files are damaged or do not fit each other.
    """
    folder = local_folder(path)
    if pair is not None and (folder / "survivors").is_dir():
        folder = folder / "survivors" / folder_name(pair)
        if not folder.is_dir():
            raise UserError(f"{path}: has no survivors of {pair}; it has {_pairs_of(folder.parent)}")
    elif (folder / "survivors").is_dir() or not is_survivor(folder):
        folder = _only_pair(folder)
    if is_survivor(folder):
        return _load_one(folder, pair)
    ranked = [_load_one(x, pair) for x in survivor_folders(folder)]
    if not ranked:
        raise UserError(f"{path}: no survivor lies here; give RUN/survivors/AAA_BBB, one of its folders, or hf://...")
    first = ranked[0]
    for other in ranked[1:]:
        _check_alike(folder, first, other)
    members = [survivor.policy for survivor in ranked if isinstance(survivor.policy, Policy)]
    return TradingPolicy(first.pair, "ensemble", first.run, first.scaler, EnsemblePolicy(members))


def local_folder(path: str | Path) -> Path:
    """A folder as it is, or a local copy of one at a URI or of a published run.

    Raises:
        UserError: It cannot be fetched, or is no folder.
    """
    if str(path).startswith("hf:/"):  # a Path has lost one of the slashes
        from pbt.hub import fetch

        return fetch(str(path))
    if is_uri(path):
        from pbt.mirror import fetched

        return fetched(str(path)).folder
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{path} is no folder; give a survivor's folder, RUN/survivors/AAA_BBB, or hf://user/name")
    return folder


def survivor_folders(folder: Path) -> list[Path]:
    """Folders of a pair's survivors, by rank."""
    found = [x for x in folder.iterdir() if x.name.isdigit() and is_survivor(x)]
    return sorted(found, key=lambda x: int(x.name))


def is_survivor(folder: Path) -> bool:
    """Whether a folder is that of one survivor."""
    return (folder / "policy.json").is_file()


def _pairs_of(survivors: Path) -> str:
    return ", ".join(sorted(x.name.replace("_", "/") for x in survivors.iterdir() if x.is_dir())) or "none"


def _only_pair(folder: Path) -> Path:
    """The one pair's folder of a run or of ``survivors/``; the folder itself where it is neither."""
    root = folder / "survivors" if (folder / "survivors").is_dir() else folder
    pairs = [x for x in sorted(root.iterdir()) if x.is_dir() and survivor_folders(x)]
    if len(pairs) > 1:
        raise UserError(f"{folder}: survivors of several pairs; give one of {', '.join(map(str, pairs))}")
    return pairs[0] if pairs else folder


def read_survivor(folder: Path) -> tuple[RunConfig, Scaler, Policy]:
    """Config, scaler and policy of one survivor's folder.

    Raises:
        UserError: Files are damaged or do not fit each other.
    """
    run = build_config(_read(folder / "config.yaml", load_file))
    scaler = _read(folder / "scaler.json", lambda path: Scaler.from_json(path.read_text()))
    policy = _read(folder, Policy.load)
    if policy.feature_names != scaler.names:
        raise UserError(f"{folder}: scaler.json is of other features than policy.json")
    leverage = policy.action_map.leverage
    if leverage != run.costs.leverage:
        raise UserError(
            f"{folder}: costs.leverage is {run.costs.leverage:g} in config.yaml and {leverage:g} in policy.json"
        )
    return run, scaler, policy


def _load_one(folder: Path, pair: str | None) -> TradingPolicy:
    run, scaler, policy = read_survivor(folder)
    name = f"survivor-{folder.name}" if folder.name.isdigit() else "survivor"
    return TradingPolicy(_pair_of(folder, run, pair), name, run, scaler, policy)


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    from safetensors import SafetensorError

    try:
        return reader(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: no readable survivor ({reason}); restore it from a copy") from error


def _pair_of(folder: Path, run: RunConfig, pair: str | None) -> str:
    """The pair that a survivor trades: as asked, as its folder says, or the only one of its run."""
    inside = folder.resolve().parent.name.replace("_", "/")
    found = pair or (inside if inside in run.data.pairs else None)
    if found is None and len(run.data.pairs) == 1:
        found = run.data.pairs[0]
    if found not in run.data.pairs:
        known = ", ".join(run.data.pairs)
        raise UserError(f"{folder}: a survivor of which pair? its run has {known}; keep it in a folder AAA_BBB")
    return found


def _check_alike(folder: Path, first: TradingPolicy, other: TradingPolicy) -> None:
    """An ensemble's members read the same features and trade on the same terms."""
    for section in ("data", "features", "forecasts", "costs"):
        if getattr(first.run, section) != getattr(other.run, section):
            raise UserError(f"{folder}: {first.name} and {other.name} differ in {section}; they are of different runs")
    same = first.run.env.lag == other.run.env.lag and uses_drawdown(first.run) == uses_drawdown(other.run)
    if not same or first.scaler.to_json() != other.scaler.to_json():
        raise UserError(f"{folder}: {first.name} and {other.name} do not fit each other; they are of different runs")


def _is_label(date: Any) -> bool:
    return isinstance(date, str) or np.ndim(date) == 0


def _stamp(date: Any) -> np.datetime64:
    try:
        stamp = pd.Timestamp(date)
    except (TypeError, ValueError) as error:
        raise UserError(f"date {date!r}: write an ISO date such as 2020-12-31") from error
    if stamp is pd.NaT:
        raise UserError(f"date {date!r}: write an ISO date such as 2020-12-31")
    return (stamp.tz_convert("UTC").tz_localize(None) if stamp.tz else stamp).to_datetime64().astype("datetime64[us]")


def _label(date: np.datetime64) -> str:
    return str(np.datetime_as_string(date, unit="s")).removesuffix("T00:00:00")
