"""The leak detector: do a survivor's decisions change when what came after them does?

Nothing in here knows how features, scaler, market or replay work. Prices go in, as bars of both legs, and decisions
come out, through the very functions that train, evaluate and back-test. At a cut, a bar t, the bars after it are taken
away, or changed at random; every feature and every decision up to and including t must stay equal to the bit. The
reverse control changes bars up to t: decisions that stay as they were then too would prove nothing.

Splits stay where their dates are, and cuts inside the training span keep the survivor's stored scaler; from its end
on, the scaler is fitted anew to what is left, so that one that saw a later bar shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from algos.policy import Policy
from envs.bars import Bars
from envs.forecasts import Forecasts
from envs.ledger import Terms
from envs.market import SPLITS, Borders, PairMarket, Span, build_market
from envs.replay import Replay, replay
from envs.scaler import Scaler
from pbt.simulator import follow
from pbt.terms import base_scenario
from rayconf.keys import derive_key
from rayconf.run_config import RunConfig

LEVEL, BODY, VOLUME = 0.05, 0.02, 1.0
"""Standard deviations of the logs by which a changed bar's level, its prices against each other and its volume move."""
RECENT = 20
"""Bars up to the cut that the reverse control changes."""
CONTROLS = 10
"""Cuts at which the reverse control is made, at most."""
AROUND = 3
"""Fills before and after a cut whose returns are compared."""


@dataclass(frozen=True)
class Subject:
    """Survivors of one pair and all that their decisions are made of."""

    pair: str
    a: Bars
    b: Bars
    run: RunConfig
    borders: Borders
    scaler: Scaler
    """The survivors' stored one."""
    policies: Mapping[str, Policy]
    forecasts: Forecasts | None = None
    """The run's; whether they are causal themselves was looked at when they were made (``pbt.forecaster``)."""

    def market(self, a: Bars, b: Bars, scaler: Scaler | None) -> PairMarket:
        """The pair's market on other bars; without a scaler, with one fitted to them, as the run's own was."""
        if scaler is None and self.run.starts_from_base(self.pair):
            scaler = self.scaler  # it came with a base checkpoint, and was fitted to no bar of this run
        return build_market(self.pair, a, b, self.run, self.borders, scaler, self.forecasts)


@dataclass(frozen=True)
class Leak:
    """A bar that depends on a later one."""

    how: str
    """How it showed: ``truncated``, ``perturbed``, ``fill``, ``scaler`` or ``record``."""
    what: str
    """What differs, in words."""
    bar: str
    """Date of the first bar that differs."""
    cut: str
    """Date of the last bar that was left as it was."""
    policy: str | None = None
    """The survivor whose decision differs; None: what all of them see."""
    features: tuple[str, ...] = ()
    """Features that differ at the first such bar."""

    def __str__(self) -> str:
        """In one line."""
        who = f"{self.policy}: " if self.policy else ""
        ways = {
            "truncated": f"once the bars after {self.cut} are taken away",
            "perturbed": f"once the bars after {self.cut} are changed",
            "fill": f"once the prices up to the close of {self.cut} are changed",
            "scaler": f"once the bars after {self.cut}, the end of training, are changed",
            "record": "on the same prices",
        }
        return f"{who}{self.what} of {self.bar} changes {ways[self.how]}"


@dataclass
class Findings:
    """What the audit of one pair found."""

    cuts: list[str] = field(default_factory=list)
    """Dates of the cuts."""
    decisions: int = 0
    """Decisions compared, over all cuts and survivors."""
    recorded: int = 0
    """Decisions of the run's own record that were repeated."""
    controls: int = 0
    """Cuts at which the past was changed."""
    power: dict[str, int] = field(default_factory=dict)
    """By survivor, at how many of these its decisions changed."""
    leaks: list[Leak] = field(default_factory=list)

    def result(self, policy: str) -> str:
        """``leak``, ``clean`` or, where a changed past changed no decision either, ``inconclusive``."""
        if any(leak.policy in (None, policy) for leak in self.leaks):
            return "leak"
        return "clean" if self.power.get(policy) else "inconclusive"


@dataclass(frozen=True)
class Recorded:
    """Decisions of one survivor in one split as the run recorded them, K bars."""

    policy: str
    split: str
    decision_date: np.ndarray
    """[K] datetime64[us]."""
    columns: Mapping[str, np.ndarray]
    """Target weights, held weights and net return [K] by name of the ``daily`` frame."""


def audit(subject: Subject, bars: int, recorded: Sequence[Recorded] = (), seed: int = 0) -> Findings:
    """Look for look-ahead in the survivors of a pair.

    Args:
        subject: The pair.
        bars: Cuts drawn over all splits, beside the first and the last decision of each.
        recorded: The run's own record of these decisions.
        seed: Seed of the cuts and of the changed bars.
    """
    torch.set_num_threads(1)
    rng = np.random.Generator(np.random.PCG64(derive_key("audit", seed, subject.pair)))
    full = subject.market(subject.a, subject.b, subject.scaler)
    decided = {split: _decide(subject, full, split, full.splits[split]) for split in SPLITS}
    found = Findings(power=dict.fromkeys(subject.policies, 0))
    _check_record(subject, full, decided, recorded, found)
    _check_scaler(subject, full, rng, found)
    cuts = draw_cuts(full, subject.run.env.lag, bars, rng)
    chosen = set(np.unique(np.linspace(0, len(cuts) - 1, min(CONTROLS, len(cuts))).astype(int)).tolist())
    for number, (split, t) in enumerate(cuts):
        found.cuts.append(_day(full.dates[t]))
        before = subject.a.dates <= full.dates[t], subject.b.dates <= full.dates[t]
        a, b = (leg.select(known) for leg, known in zip((subject.a, subject.b), before, strict=True))
        cut = subject.market(a, b, subject.scaler)
        _compare(
            subject, "truncated", full, padded(cut, full, subject.run.env.lag + 1), split, t, decided[split], found
        )
        a, b = (changed(leg, ~known, rng) for leg, known in zip((subject.a, subject.b), before, strict=True))
        trained = t >= full.splits["train"].stop - 1
        cut = subject.market(a, b, None if trained else subject.scaler)
        _compare(subject, "perturbed", full, cut, split, t, decided[split], found)
        _check_fills(subject, full, split, t, decided[split], rng, found)
        if number in chosen:
            _control(subject, full, split, t, decided[split], rng, found)
    return found


def draw_cuts(market: PairMarket, lag: int, bars: int, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Bars to cut after, with their split: an equal share of each split's decisions, its first and its last."""
    cuts = []
    for i, split in enumerate(SPLITS):
        span = market.splits[split]
        decisions = np.arange(span.start, span.stop - 1) - lag
        if len(decisions):
            share = len(range(i, bars, len(SPLITS)))
            drawn = rng.choice(decisions, min(share, len(decisions)), replace=False)
            cuts += [(split, int(t)) for t in np.union1d(drawn, decisions[[0, -1]])]
    return cuts


def changed(bars: Bars, rows: np.ndarray, rng: np.random.Generator) -> Bars:
    """The bars with those of the mask ``rows`` [T] moved at random, high still the highest and low the lowest."""
    count = int(rows.sum())
    level = np.exp(LEVEL * rng.standard_normal(count))
    body = {name: np.exp(BODY * rng.standard_normal(count)) for name in ("open", "high", "low", "close")}
    moved = {name: getattr(bars, name)[rows] * level * body[name] for name in body}
    moved["volume"] = bars.volume[rows] * np.exp(VOLUME * rng.standard_normal(count))
    moved["high"] = np.maximum.reduce([moved[name] for name in body])
    moved["low"] = np.minimum.reduce([moved[name] for name in body])
    columns = {}
    for name, values in moved.items():
        columns[name] = getattr(bars, name).copy()
        columns[name][rows] = values
    return replace(bars, **columns)


def padded(market: PairMarket, full: PairMarket, bars: int) -> PairMarket:
    """The market with bars behind its last one, where orders of the last decisions fill; nobody decides there.

    They have the dates of the full market, and nothing else of it: an account is charged at a fill for the time to the
    next one, so that it knows the calendar, as traders do.
    """
    count = len(market.dates)

    def held(values: np.ndarray) -> np.ndarray:
        return np.concatenate((values, np.repeat(values[-1:], bars, axis=0)))

    return replace(
        market,
        dates=np.concatenate((market.dates, full.dates[count : count + bars])),
        fill=held(market.fill),
        close=held(market.close),
        features=np.concatenate((market.features, np.zeros((bars, market.features.shape[1]), np.float32))),
        session=held(market.session),
    )


def _decide(subject: Subject, market: PairMarket, split: str, span: Span) -> Replay:
    """Decisions of every survivor, a row each, over a span."""
    own = replace(market, splits={split: span})
    return follow(subject.policies, {}, own, subject.run, split, [base_scenario(subject.run)] * len(subject.policies))


def _check_record(
    subject: Subject,
    full: PairMarket,
    decided: Mapping[str, Replay],
    recorded: Sequence[Recorded],
    found: Findings,
) -> None:
    """The record of the run must be what its survivors decide on its prices."""
    names = list(subject.policies)
    for record in recorded:
        again, row = decided[record.split], names.index(record.policy)
        ours = {
            **{f"target_weight_{leg}": again.target[:, row, i] for i, leg in enumerate("ab")},
            **{f"weight_{leg}": again.weight[:, row, i] for i, leg in enumerate("ab")},
            "net_return": again.net_return[:, row],
        }
        dates = full.dates[again.decision_bar[:, row]]
        count = len(record.decision_date)  # prices that have grown since add decisions
        found.recorded += count
        same = np.zeros(count, bool)
        known = min(count, len(dates))
        same[:known] = dates[:known] == record.decision_date[:known]
        other = [name for name, values in record.columns.items() if _differ(ours[name][:known], values[:known]).any()]
        for name in other:
            same[:known] &= ~_differ(ours[name][:known], record.columns[name][:known])
        if not same.all():
            first = int(np.argmin(same))
            what = f"the recorded decision ({record.split}: {', '.join(other) or 'its bar'})"
            date = _day(record.decision_date[first])
            found.leaks.append(Leak("record", what, date, date, record.policy))


def _check_scaler(subject: Subject, full: PairMarket, rng: np.random.Generator, found: Findings) -> None:
    """The stored scaler must be the one of the training span alone."""
    end = full.dates[full.splits["train"].stop - 1]
    a, b = (changed(leg, leg.dates > end, rng) for leg in (subject.a, subject.b))
    fitted = subject.market(a, b, None).scaler
    stored = subject.scaler
    other = (fitted.mean != stored.mean) | (fitted.scale != stored.scale)
    if other.any() or (fitted.extremes, fitted.limit) != (stored.extremes, stored.limit):
        names = tuple(np.array(stored.names)[other].tolist())
        found.leaks.append(Leak("scaler", f"the scaler ({_listed(names)})", _day(end), _day(end), None, names))


def _compare(
    subject: Subject, how: str, full: PairMarket, cut: PairMarket, split: str, t: int, decided: Replay, found: Findings
) -> None:
    """Bars, features and decisions up to bar t of a market that is cut there, against those of the full one."""
    date = _day(full.dates[t])
    shared = min(t + 1, len(cut.dates))
    if shared <= t or (cut.dates[: t + 1] != full.dates[: t + 1]).any():
        wrong = cut.dates[:shared] != full.dates[:shared]
        first = int(wrong.argmax()) if wrong.any() else shared
        found.leaks.append(Leak(how, "the list of bars", _day(full.dates[first]), date))
        return
    for what, ours, theirs in (("a price", cut.close, full.close), ("a price", cut.fill, full.fill)):
        wrong = _differ(ours[: t + 1], theirs[: t + 1]).any(axis=1)
        if wrong.any():
            found.leaks.append(Leak(how, what, _day(full.dates[int(wrong.argmax())]), date))
            break
    wrong = _differ(cut.features[: t + 1], full.features[: t + 1])
    if wrong.any():
        first = int(wrong.any(axis=1).argmax())
        names = tuple(np.array(subject.scaler.names)[wrong[first]].tolist())
        found.leaks.append(Leak(how, f"feature {_listed(names)}", _day(full.dates[first]), date, None, names))
    span = full.splits[split]
    again = _decide(subject, cut, split, Span(span.start, t + subject.run.env.lag + 2))
    count = len(again.target)
    found.decisions += count * len(subject.policies)
    wrong = np.asarray(_differ(again.target, decided.target[:count]).any(axis=2))
    for row, name in enumerate(subject.policies):
        if wrong[:, row].any():
            first = int(wrong[:, row].argmax())
            bar = _day(full.dates[decided.decision_bar[first, row]])
            found.leaks.append(Leak(how, "the decision", bar, date, name))


def _check_fills(
    subject: Subject,
    full: PairMarket,
    split: str,
    t: int,
    decided: Replay,
    rng: np.random.Generator,
    found: Findings,
) -> None:
    """Returns of the fills of decision t and after must not depend on a price up to close t.

    The targets are held fixed and trading is free, so that what an account earns is its weights times the returns.
    """
    span, lag = full.splits[split], subject.run.env.lag
    around = Span(max(span.start, t + lag - AROUND), min(span.stop, t + lag + AROUND + 2))
    until = (t + 1, 2)
    moved = [
        np.concatenate((values[: t + 1] * np.exp(LEVEL * rng.standard_normal(until)), values[t + 1 :]))
        for values in (full.fill, full.close)
    ]
    other = replace(full, fill=moved[0], close=moved[1])
    first = around.start - span.start
    tables = []
    for row in range(len(subject.policies)):
        table = np.zeros((len(full.dates), 2))
        rows = slice(first, first + around.rows)
        table[decided.decision_bar[rows, row]] = decided.target[rows, row]
        tables.append(torch.from_numpy(table))
    terms = replace(Terms.from_costs(subject.run.costs, 0.0), ruin_fraction=0.0)
    limit, batch = subject.run.costs.leverage, len(tables)
    ours, theirs = (
        replay(market, around, None, terms, lag, batch=batch, leverage=limit, recorded=tables)
        for market in (other, full)
    )
    late = ours.decision_bar >= t
    wrong = _differ(ours.net_return, theirs.net_return) & late
    for row, name in enumerate(subject.policies):
        if wrong[:, row].any():
            bar = _day(full.dates[ours.decision_bar[int(wrong[:, row].argmax()), row]])
            found.leaks.append(Leak("fill", "the return earned by the decision", bar, _day(full.dates[t]), name))


def _control(
    subject: Subject,
    full: PairMarket,
    split: str,
    t: int,
    decided: Replay,
    rng: np.random.Generator,
    found: Findings,
) -> None:
    """Whether decisions up to t change once the bars before and at t do, as they should."""
    start, end = full.dates[max(0, t - RECENT + 1)], full.dates[t]
    legs = []
    for leg in (subject.a, subject.b):
        known = leg.select(leg.dates <= end)
        legs.append(changed(known, known.dates >= start, rng))
    cut = padded(subject.market(legs[0], legs[1], subject.scaler), full, subject.run.env.lag + 1)
    again = _decide(subject, cut, split, Span(full.splits[split].start, t + subject.run.env.lag + 2))
    wrong = np.asarray(_differ(again.target, decided.target[: len(again.target)]).any(axis=(0, 2)))
    found.controls += 1
    for row, name in enumerate(subject.policies):
        found.power[name] += int(wrong[row])


def _differ(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where arrays differ in a bit that counts; not a number is like itself."""
    return (x != y) & ~(np.isnan(x) & np.isnan(y))


def _listed(names: Sequence[str]) -> str:
    few = ", ".join(names[:4])
    return f"{few} and {len(names) - 4} more" if len(names) > 4 else few


def _day(date: np.datetime64) -> str:
    return str(date.astype("datetime64[s]")).removesuffix("T00:00:00")
