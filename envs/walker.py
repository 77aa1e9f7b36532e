"""The walk of a replay: accounts stepped bar by bar, each in units of its own equity.

An account is one long chain of small steps, and such steps cost mostly their start. So a span is cut into pieces
that are walked side by side as rows of one batch, each from a guess (cash). Then every piece whose true start
differs from its guess is walked again from the end of the piece before, until its state meets the one of the walk
before to the last bit: from there on both are the same walk. What comes out is the chain's own result, because
every recorded step was taken from exactly the state that the step before it left.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from envs import ledger
from envs.account_view import AccountView
from envs.ledger import Account, Fill, Terms
from envs.market import PairMarket

if TYPE_CHECKING:
    from envs.replay import Decide, Replay

LONGEST = 1 << 15
"""Bars that are prepared at once, at most."""
LARGEST = 1 << 20
"""Bars times rows that are prepared at once, about; 100 bytes each."""
MEETING = 4
"""Bars between two looks at whether a second walk has met the first."""
HORIZON = 64
"""Bars that a second walk prepares at once; most are over before."""


class Walker:
    """Steps accounts, each in units of its own equity."""

    def __init__(
        self,
        market: PairMarket,
        decide: "Decide | None",
        terms: Terms,
        lag: int | Tensor,
        starts: Tensor,
        count: int,
        asked: int,
        leverage: float,
        drawdown: bool,
        recorded: Sequence[Tensor],
    ) -> None:
        self._decide, self._terms, self._lag, self._leverage = decide, terms, lag, leverage
        self._starts, self._count, self._asked = starts, count, asked
        self._drawdown, self._recorded = drawdown, recorded
        # one gather a bar: both legs' returns to the next fill, both legs' moves to the close, years to the next fill
        self._bars = torch.from_numpy(
            np.column_stack((market.returns, market.moves[: len(market.returns)], market.years))
        )

    def in_one(self, rows: Tensor, record: "Replay") -> None:
        """Walk ``rows`` bar after bar and write their columns of the record."""
        view = self._view(rows)
        account, seen = ledger.open_accounts(len(rows)), view.reset()
        unit: Tensor | float = 1.0
        size = max(1, min(LONGEST, LARGEST // len(rows)))
        for first in range(0, self._count, size):
            tape = _Tape(min(size, self._count - first), len(rows), view.size)
            start = self._starts[rows] + first
            bars = self._decision_bars(first, tape.length)
            for i, step in enumerate(self._walk(rows, start, tape.length, bars, account, seen, view, unit)):
                account, seen, unit = step.account, step.seen, step.unit
                tape.write(i, None, step)
            tape.into(record, slice(first, first + tape.length), rows, 1)

    def in_pieces(self, rows: Tensor, record: "Replay") -> None:
        """Walk ``rows`` as pieces side by side and write their columns of the record."""
        carry = torch.cat((torch.zeros(len(rows), 2, dtype=torch.float64), self._view(rows).reset()), dim=1)
        wealth = np.ones((1, len(rows)))
        size = max(1, min(LONGEST, LARGEST // len(rows)))
        for first in range(0, self._count, size):
            if not len(rows):
                return
            count = min(size, self._count - first)
            # A walk costs a fixed sum per bar and a small one per row, and every piece is walked for some bars in vain.
            pieces = max(1, round(math.sqrt(count / len(rows))))
            length = -(-count // pieces)
            pieces = -(-count // length)
            tape = self._walk_pieces(rows, first, count, carry, pieces, length)
            tape.into(record, slice(first, first + count), rows, pieces)
            # The start in units of the equity before each step, as the chain has it, and with it the steps that ruin.
            growth = record.equity[first : first + count, rows.numpy()]
            with np.errstate(divide="ignore", invalid="ignore"):  # only after an account's end
                start = np.divide.accumulate(np.vstack((wealth, growth)), axis=0)
            low = growth <= self._terms.ruin_fraction * start[:-1]
            ruined = low.any(axis=0)
            left = tape.state.view(length, len(rows), pieces, -1)
            for b in np.flatnonzero(ruined).tolist():
                bar = int(low[:, b].argmax())
                before = left[(bar - 1) % length, b, (bar - 1) // length] if bar else carry[b]
                self._end(rows[b : b + 1], first + bar, before, float(start[bar, b]), record)
            alive = torch.from_numpy(~ruined)
            carry = left[count - 1 - (pieces - 1) * length, :, -1][alive]
            rows, wealth = rows[alive], start[-1:, ~ruined]

    def _end(self, row: Tensor, bar: int, state: Tensor, start: float, record: "Replay") -> None:
        """Write a ruined row from the fill that ruins it; from the second one after it, nothing depends on the past."""
        view = self._view(row)
        account = replace(
            ledger.open_accounts(1), holdings=state[None, :2], start=torch.tensor([start], dtype=torch.float64)
        )
        few = min(2, self._count - bar)
        tape = _Tape(few, 1, view.size)
        bars = self._decision_bars(bar, few)
        for i, step in enumerate(self._walk(row, self._starts[row] + bar, few, bars, account, state[None, 2:], view)):
            tape.write(i, None, step)
        tape.into(record, slice(bar, bar + few), row, 1)
        for first in range(bar + few, self._count, LONGEST):
            count = min(LONGEST, self._count - first)
            everyone, bars = row.expand(count), self._decision_bars(first, count)
            closed = replace(ledger.open_accounts(count), ruined=torch.ones(count, dtype=torch.bool))
            view, tape = self._view(everyone), _Tape(1, count, view.size)
            at = self._starts[everyone] + torch.arange(first, first + count)
            for step in self._walk(everyone, at, 1, bars, closed, view.reset(), view):
                tape.write(0, None, step)
            tape.into(record, slice(first, first + count), row, count)

    def _walk_pieces(self, rows: Tensor, first: int, count: int, carry: Tensor, pieces: int, length: int) -> "_Tape":
        """A tape with row ``b * pieces + c`` for piece c of row b, equal to the chain's."""
        owner = rows.repeat_interleave(pieces)
        piece = torch.arange(pieces).repeat(len(rows))
        starts = (self._starts[rows] + first).repeat_interleave(pieces)
        start, last = starts + length * piece, starts + count - 1
        bars = self._decision_bars(first, count)
        tape = _Tape(length, len(owner), carry.shape[1] - 2)
        begun = torch.zeros(len(owner), carry.shape[1], dtype=torch.float64)
        begun[piece == 0] = carry
        active, again = torch.arange(len(owner)), False
        while len(active):
            i = 0
            while i < length and len(active):
                view = self._view(owner[active])
                source = tape.state[i - 1][active] if i else begun[active]
                # a piece does not know what was lost before it: losing everything alone closes its account
                opened = ledger.open_accounts(len(active))
                account = replace(opened, holdings=source[:, :2], start=torch.zeros_like(opened.start))
                steps = min(length - i, HORIZON) if again else length
                met = torch.zeros(len(active), dtype=torch.bool)
                begin, until = start[active] + i, last[active]
                for step in self._walk(owner[active], begin, steps, bars, account, source[:, 2:], view, until=until):
                    if again and i % MEETING == 0:
                        met = ~different(tape.state[i][active], step.state)
                    tape.write(i, active, step)
                    i += 1
                    if 4 * int(met.sum()) > len(active):
                        break
                active = active[~met]
            ends = tape.state[length - 1]
            follows = torch.zeros_like(begun)
            follows[1:] = ends[:-1]
            changed = (piece > 0) & different(follows, begun)
            begun[changed] = follows[changed]
            active, again = changed.nonzero().squeeze(1), True
        return tape

    def _view(self, rows: Tensor) -> AccountView:
        lag = self._lag if isinstance(self._lag, int) else self._lag[rows]
        return AccountView(len(rows), lag, self._leverage, self._drawdown, torch.float64)

    def _walk(
        self,
        rows: Tensor,
        start: Tensor,
        steps: int,
        bars: range,
        account: Account,
        seen: Tensor,
        view: AccountView,
        unit: Tensor | float = 1.0,
        until: Tensor | None = None,
    ) -> Iterator["_Step"]:
        """Step accounts in ``rows`` from fill bars ``start`` [M]; bars beyond ``until`` repeat it and mean nothing."""
        k = start + torch.arange(steps).unsqueeze(1)
        if until is not None:
            k = torch.minimum(k, until)
        lag = self._lag if isinstance(self._lag, int) else self._lag[rows]
        t = k - lag
        asked = int((rows < self._asked).sum())
        target = torch.empty(*k.shape, 2, dtype=torch.float64)
        for row, table in enumerate(self._recorded, start=self._asked):
            own = (rows == row).nonzero().squeeze(1)
            target[:, own] = table[t.expand(k.shape)[:, own]]
        facts = self._bars.index_select(0, k.flatten()).view(*k.shape, 5)
        returns, moves = facts[..., :2].contiguous().unbind(), facts[..., 2:4].contiguous().unbind()
        years = facts[..., 4].contiguous().unbind()
        terms = _terms_of(self._terms, rows)
        answer = None
        if asked:
            assert self._decide is not None
            answer = self._decide.among(rows[:asked], bars)
            decided_at, answers = t[:, :asked].unbind(), target[:, :asked].unbind()
        for i, wanted in enumerate(target.unbind()):
            if answer is not None:
                answers[i].copy_(answer(decided_at[i], seen[:asked]))
            after, fill = ledger.step(account, wanted, returns[i], years[i], terms)
            if answer is not None:
                seen = view.after(fill, moves[i], unit)
            if self._drawdown:
                unit = unit * after.equity
            account = ledger.rebased(after)
            yield _Step(wanted, fill, account, seen, unit)

    def _decision_bars(self, first: int, count: int) -> range:
        """Bars that decisions of fills ``first .. first + count - 1`` of any row are taken at."""
        lag = torch.as_tensor(self._lag)
        return range(
            int(self._starts.min()) + first - int(lag.max()), int(self._starts.max()) + first + count - int(lag.min())
        )


@dataclass(frozen=True, slots=True)
class _Step:
    target: Tensor
    fill: Fill
    account: Account
    seen: Tensor
    unit: Tensor | float
    """Equity in units of the start."""

    @property
    def state(self) -> Tensor:
        return torch.cat((self.account.holdings, self.seen), dim=1)


class _Tape:
    """What was done at each of ``length`` bars by M rows, and the state that each bar left."""

    def __init__(self, length: int, rows: int, size: int) -> None:
        self.length = length
        self.state = torch.zeros(length, rows, 2 + size, dtype=torch.float64)
        """Holdings and account view after each bar: all that the next one depends on."""
        self._pairs = torch.empty(length, rows, 4, dtype=torch.float64)
        self._shares = torch.empty(4, length, rows, dtype=torch.float64)

    def write(self, i: int, rows: Tensor | None, step: _Step) -> None:
        """Write bar i of ``rows``, or of all."""
        fill = step.fill
        state = step.state
        pairs = torch.cat((step.target, fill.weights), dim=1)
        shares = torch.stack((fill.traded, fill.cost, fill.interest, fill.growth))
        if rows is None or len(rows) == self.state.shape[1]:
            self.state[i], self._pairs[i], self._shares[:, i] = state, pairs, shares
        else:
            self.state[i, rows], self._pairs[i, rows], self._shares[:, i, rows] = state, pairs, shares

    def into(self, record: "Replay", bars: slice, rows: Tensor, pieces: int) -> None:
        """Write columns ``rows`` of the record; pieces become bars again."""
        count = bars.stop - bars.start

        def unrolled(values: Tensor) -> np.ndarray:
            parts = values.view(self.length, len(rows), pieces, *values.shape[2:])
            return parts.transpose(0, 1).transpose(1, 2).reshape(len(rows), -1, *values.shape[2:])[:, :count].numpy()

        columns = rows.numpy()
        record.target[bars, columns] = unrolled(self._pairs[..., :2]).swapaxes(0, 1)
        record.weight[bars, columns] = unrolled(self._pairs[..., 2:]).swapaxes(0, 1)
        names = ("turnover", "trading_cost", "financing", "equity")
        for name, values in zip(names, self._shares, strict=True):
            getattr(record, name)[bars, columns] = unrolled(values).swapaxes(0, 1)
        record.net_return[bars, columns] = record.equity[bars, columns] - 1


def different(new: Tensor, old: Tensor) -> Tensor:
    """[M] whether states [M, S] differ in any bit that counts; not a number is like itself."""
    return ((new != old) & ~(new.isnan() & old.isnan())).any(dim=1)


def _terms_of(terms: Terms, rows: Tensor) -> Terms:
    values = {field.name: getattr(terms, field.name) for field in fields(Terms)}
    own: dict[str, Any] = {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
    return replace(terms, **own)
