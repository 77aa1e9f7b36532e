"""The trainer's environment: N accounts replaying random training episodes, stepped as tensors."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from envs import ledger
from envs.account_view import AccountView, account_names, account_size
from envs.ledger import Account, Fill, Terms
from envs.mapping import ActionMap
from envs.market import PairMarket
from envs.prior import prior_columns
from envs.training_bars import TrainingBars
from rayconf.run_config import RunConfig

TAIL = 0.95
"""Confidence level of the CVaR term."""
TAIL_RATE = 0.1
"""Share of the way the tail quantile moves towards a rollout's own."""
DRAWS_AHEAD = 256
"""Draws of starts that lie on an accelerator at a time; the host waits for it once in as many steps."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one bar returned to N accounts."""

    observation: Tensor
    """[N, D] after automatic resets."""
    reward: Tensor
    """[N] shaped training reward, in training standard deviations of equal weight."""
    terminated: Tensor
    """[N] bool: ruined."""
    truncated: Tensor
    """[N] bool: the episode's length or the end of the training span."""
    final_observation: Tensor | None
    """[N, D] before the resets; None where the environment knows that no account finished."""
    log_growth: Tensor
    """[N] log-growth under training costs."""


def uses_drawdown(run: RunConfig) -> bool:
    """Whether observations hold the account's drawdown."""
    return run.env.risk_measure == "drawdown"


def observation_dim(market: PairMarket, run: RunConfig) -> int:
    """Number of observation columns: market features, then the account."""
    return market.features.shape[1] + account_size(uses_drawdown(run))


def observation_names(features: Sequence[str], run: RunConfig) -> tuple[str, ...]:
    """Names of the observation columns: those of the market's features, then the account's."""
    return (*features, *account_names(uses_drawdown(run)))


class Reward:
    """The shaped reward: log-growth less risk, turnover and tail terms, in units of the market's own noise.

    scale * [l - 1/2 risk_penalty * rho - 1e-4 * turnover_penalty * turnover^2 - cvar_weight * tau] with l the
    log-growth under training costs; rho = l^2, min(l, 0)^2 or, without the 1/2, the growth of the episode's
    maximum log-drawdown; tau = max(0, -l - q) / (1 - 0.95) (Rockafellar and Uryasev 2000).
    """

    def __init__(self, run: RunConfig, equal_weight_sd: float) -> None:
        env = run.env
        self._measure = env.risk_measure
        self._risk = env.default_risk_penalty if env.risk_penalty is None else env.risk_penalty
        self._turnover = env.turnover_penalty * 1e-4
        self._cvar = env.cvar_weight / (1 - TAIL)
        self._scale = 1 / equal_weight_sd

    def __call__(self, growth: Tensor, turnover: Tensor, deepened: Tensor | None, tail_quantile: float) -> Tensor:
        """[N] reward of a ledger step.

        Args:
            growth: [N] log-growth of the step.
            turnover: [N] its turnover.
            deepened: [N] growth of the episode's maximum log-drawdown, where that is the risk measure.
            tail_quantile: Running quantile of the raw loss.
        """
        if self._measure == "drawdown":
            assert deepened is not None
            risk = self._risk * deepened
        elif self._measure == "downside":
            risk = 0.5 * self._risk * growth.clamp(max=0).square()
        else:
            risk = 0.5 * self._risk * growth.square()
        tail = (-growth - tail_quantile).clamp(min=0)
        return self._scale * (growth - risk - self._turnover * turnover.square() - self._cvar * tail)


def training_terms(run: RunConfig) -> Terms:
    """Terms under which the trainer's accounts trade: the run's, with its training cost."""
    return Terms.from_costs(run.costs, run.env.train_cost_bps)


class BatchedPairTrading:
    """N accounts in units of their own equity, each at its own training bar, with automatic resets.

    Args:
        market: The pair, and what its policies train on.
        run: Mapping, lag, reward, costs, episode length and augmentation.
        num_envs: Number of accounts N.
        generator: CPU generator that draws episode starts.
        dtype: Float type of observations and accounting.
        device: Where the tensors live.
        numbered: Observations hold the number of the bar instead of its features, [N, 1 + A]: for networks that
            look a bar up in what they have computed about it.
        branchless: Reset accounts without asking whether any has finished, and keep the next starts on the device:
            the same episodes to the bit, more arithmetic, and no step waits for the device. Default: unless the
            device is the CPU, where asking is cheaper.
    """

    def __init__(
        self,
        market: PairMarket,
        run: RunConfig,
        num_envs: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        numbered: bool = False,
        branchless: bool | None = None,
    ) -> None:
        self.num_envs = num_envs
        self._numbered = numbered
        self.observation_dim = (1 if numbered else market.features.shape[1]) + account_size(uses_drawdown(run))
        source = market.training or TrainingBars.of(market)
        self._features = _shared(source.features, dtype, device)
        self._bars = torch.tensor(source.steps, dtype=dtype, device=device)  # one gather a step
        self._lag, self._map, self._leverage = run.env.lag, ActionMap.of(run), run.costs.leverage
        columns = prior_columns(market.scaler.names)
        self._prior = None if columns is None else self._features[:, columns].contiguous()
        self._episode_bars, self._per_start = run.env.episode_bars, run.ppo.accounts_per_start
        decisions = source.decisions(self._lag)
        self._beginnings = torch.cat([torch.arange(*span) for span in decisions])
        last = torch.zeros(len(source.features), dtype=torch.int64)
        for span in decisions:
            last[span.start : span.stop + 1] = span.stop - 1
        self._last = last.to(device)
        self._terms = training_terms(run)
        self._cost = self._terms.cost
        self._reward = Reward(run, 1.0)
        self._drawdown = uses_drawdown(run)
        self._view = AccountView(num_envs, self._lag, self._leverage, self._drawdown, dtype, device)
        self._generator, self._dtype, self._device = generator, dtype, torch.device(device)
        self.branchless = self._device.type != "cpu" if branchless is None else branchless
        self._ahead: _DrawsAhead | None = None
        self.tail_quantile = equal_weight_tail(market)
        self._noise: Tensor | None = None
        if run.augment.noise:
            self._noise = torch.full(self._features.shape[1:], run.augment.noise, dtype=dtype, device=device)
            if columns is not None:
                self._noise[columns] = 0
        self._cost_factor = run.augment.cost_factor
        self._variation = torch.Generator(self._device)
        self.unit = torch.ones(num_envs, dtype=dtype, device=device)
        """[N] of the newest bar, 1 / training standard deviation of equal weight's log return in its market."""

    def reset(self) -> Tensor:
        """Fresh accounts at random bars, their episode clocks staggered; observations [N, D]."""
        self._bar = self._starts(self._generator)
        self._age = self._draw(self._episode_bars, self._generator).to(self._device)
        self._vary()
        if self.branchless:
            self._ahead = _DrawsAhead(lambda: self._starts_drawn(self._generator), self._device)
        return self._open()

    def open_windows(self, length: int) -> Tensor:
        """Fresh accounts for ``length`` calls of ``advance``, each at a random bar; observations [N, D].

        Every start is as likely whose window lies in one training span, so the first and last bars of a span are in
        fewer windows.

        Raises:
            ValueError: If all training spans are shorter.
        """
        ends = self._beginnings + (length - 1)
        whole = self._beginnings[ends <= self._last.cpu()[self._beginnings]]
        if not len(whole):
            raise ValueError(f"windows of {length} bars are longer than any training span")
        self._bar = whole[torch.randint(len(whole), (self.num_envs,), generator=self._generator)].to(self._device)
        self._age = torch.zeros_like(self._bar)
        self._vary()
        return self._open()

    def _vary(self) -> None:
        """Begin the noise of features and draw the costs of fresh accounts."""
        if self._noise is not None or self._cost_factor > 1:
            self._variation.manual_seed(int(torch.randint(1 << 62, (), generator=self._generator)))
        self._terms = self._dearer(torch.ones(self.num_envs, dtype=torch.bool, device=self._device))

    def _open(self) -> Tensor:
        self._account = ledger.open_accounts(self.num_envs, self._dtype, self._device)
        self._fresh = self._account
        self._equity = self._account.equity
        self._log_equity = torch.zeros(self.num_envs, dtype=self._dtype, device=self._device)
        self._log_peak, self._depth = self._log_equity, self._log_equity
        self._seen = self._view.reset()
        return self._observe(self._seen)

    def _target(self, action: Tensor) -> Tensor:
        prior = None if self._prior is None else self._prior.index_select(0, self._bar)
        held = self._seen[:, :2] * self._leverage if self._map.brakes else None
        return self._map.targets(action, prior, held)

    def step(self, action: Tensor) -> Step:
        """Trade on actions [N, 2] in [-1, 1] and earn one bar."""
        observation, fill = self.advance(action)
        log_growth = fill.log_growth
        reward = self.shaped(fill)
        terminated = self._account.ruined
        truncated = ((self._age >= self._episode_bars) | (self._bar > self._last[self._bar])) & ~terminated
        done = terminated | truncated
        final = None
        if self._ahead is not None:
            final = observation
            observation = self._restart(done, self._ahead.take(done.any()))
        elif bool(done.any()):
            final = observation
            observation = self._restart(done, self._starts(self._generator))
        return Step(observation, reward, terminated, truncated, final, log_growth)

    def advance(self, action: Tensor) -> tuple[Tensor, Fill]:
        """As ``step``, without reward and resets: the next observations [N, D], and what the accounts did.

        Differentiable in the action and, through the accounts, in those before.
        """
        k = self._bar + self._lag
        target = self._target(action)
        returns, moves, years, unit = self._bars.index_select(0, k).split_with_sizes((2, 2, 1, 1), dim=1)
        after, fill = ledger.step(self._account, target, returns, years.squeeze(1), self._terms)
        self.unit = unit.squeeze(1)
        self._bar, self._age = self._bar + 1, self._age + 1
        self._seen = self._view.after(fill, moves, self._equity)
        self._account = ledger.rebased(after)
        if self._drawdown:
            self._equity = self._equity * after.equity
        return self._observe(self._seen), fill

    def shaped(self, fill: Fill) -> Tensor:
        """[N] training reward of the newest bar; to be asked once per bar, for it keeps the episodes' drawdowns."""
        growth = fill.log_growth
        return self._reward(growth, fill.turnover, self._deepen(growth), self.tail_quantile) * self.unit

    def observe_tail(self, log_growth: Tensor) -> None:
        """Move the tail quantile towards that of a rollout's raw losses [T, N]."""
        target = float(torch.quantile(-log_growth.flatten(), TAIL))
        self.tail_quantile += TAIL_RATE * (target - self.tail_quantile)

    def upcoming(self, steps: int) -> Tensor:
        """Bars of all observations of the next ``steps`` steps, final ones and the present ones too, [M].

        They are known ahead as long as no account is ruined: the future draws of starts are read from a copy of the
        generator. Not for a branchless environment, whose generator has run ahead: see ``observable``.
        """
        assert not self.branchless
        ahead = torch.Generator()
        ahead.set_state(self._generator.get_state())
        bar, age, seen = self._bar, self._age, [self._bar]
        for _ in range(steps):
            bar, age = bar + 1, age + 1
            seen.append(bar)
            done = (age >= self._episode_bars) | (bar > self._last[bar])
            if bool(done.any()):
                bar, age = torch.where(done, self._starts(ahead), bar), age.masked_fill(done, 0)
                seen.append(bar)
        return torch.cat(seen)

    def observable(self) -> Tensor:
        """Bars of all observations that there can be, final ones too, ascending."""
        return torch.unique(torch.cat((self._beginnings, self._beginnings + 1))).to(self._device)

    def _observe(self, view: Tensor) -> Tensor:
        if self._numbered:
            return torch.cat((self._bar.to(self._dtype).unsqueeze(1), view), dim=1)
        features = self._features.index_select(0, self._bar)
        if self._noise is not None:
            drawn = torch.randn(features.shape, generator=self._variation, dtype=self._dtype, device=self._device)
            features = features + self._noise * drawn
        return torch.cat((features, view), dim=1)

    def _starts(self, generator: torch.Generator) -> Tensor:
        return self._starts_drawn(generator).to(self._device)

    def _starts_drawn(self, generator: torch.Generator) -> Tensor:
        # Any bar, also close to the end, where truncation bootstraps: the latest bars count as much as others.
        return self._beginnings[self._draw(len(self._beginnings), generator)]

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        """[N] numbers below ``count`` on the CPU, the same for accounts that start together."""
        drawn = torch.randint(count, (self.num_envs // self._per_start,), generator=generator)
        return drawn.repeat_interleave(self._per_start)

    def _dearer(self, rows: Tensor) -> Terms:
        """The terms with costs drawn anew for the accounts selected by the mask [N]."""
        if self._cost_factor == 1:
            return self._terms
        share = torch.rand(self.num_envs, generator=self._variation, dtype=self._dtype, device=self._device)
        dearer = self._cost * (1 + (self._cost_factor - 1) * share)
        return replace(self._terms, cost=torch.where(rows, dearer, self._terms.cost))

    def _deepen(self, log_growth: Tensor) -> Tensor | None:
        if not self._drawdown:
            return None
        self._log_equity = self._log_equity + log_growth
        self._log_peak = torch.maximum(self._log_peak, self._log_equity)
        depth = torch.maximum(self._depth, self._log_peak - self._log_equity)
        deepened, self._depth = depth - self._depth, depth
        return deepened

    def _restart(self, done: Tensor, starts: Tensor) -> Tensor:
        account, fresh = self._account, self._fresh
        self._account = Account(
            equity=fresh.equity,
            holdings=account.holdings.masked_fill(done.unsqueeze(1), 0.0),
            start=torch.where(done, fresh.start, account.start),
            ruined=account.ruined & ~done,
        )
        self._bar = torch.where(done, starts, self._bar)
        self._age = self._age.masked_fill(done, 0)
        self._terms = self._dearer(done)
        if self._drawdown:
            self._equity = self._equity.masked_fill(done, 1.0)
            self._log_equity, self._log_peak, self._depth = (
                level.masked_fill(done, 0.0) for level in (self._log_equity, self._log_peak, self._depth)
            )
        self._view.reset_rows(done)
        self._seen = self._seen.masked_fill(done.unsqueeze(1), 0.0)
        return self._observe(self._seen)


def _shared(array: np.ndarray, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """The array as a tensor to read; on the CPU and of the same type, in the memory where it lies.

    The processes of a machine then share a universe, which lies read-only in Ray's object store.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(array, dtype=dtype, device=device)


class _DrawsAhead:
    """The next draws of starts on a device that is not waited for: it counts there which draws have been used.

    Args:
        draw: Draws the next starts [N] on the CPU.
        device: Where they are wanted.
    """

    def __init__(self, draw: Callable[[], Tensor], device: torch.device) -> None:
        self._draw = draw
        self._rows = torch.stack([draw() for _ in range(DRAWS_AHEAD)]).to(device)
        self._used = torch.zeros(1, dtype=torch.int64, device=device)
        self._steps = 0

    def take(self, wanted: Tensor) -> Tensor:
        """The next draw [N], used up if ``wanted`` (0-dim bool)."""
        if self._steps == DRAWS_AHEAD:  # at most one draw a step has been used, how many only the device knows
            self._refill()
        starts = self._rows.index_select(0, self._used).squeeze(0)
        self._used = self._used + wanted
        self._steps += 1
        return starts

    def _refill(self) -> None:
        used = int(self._used)
        if used:
            fresh = torch.stack([self._draw() for _ in range(used)]).to(self._rows.device)
            self._rows = torch.cat((self._rows[used:], fresh))
        self._used, self._steps = torch.zeros_like(self._used), 0


def equal_weight_tail(market: PairMarket) -> float:
    """The tail quantile to start from: that of equal weight's training losses, as for a Gaussian."""
    return 1.645 * market.equal_weight_sd
