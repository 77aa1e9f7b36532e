"""``PairTradingEnv``: the Gymnasium environment, a batch of one over the ledger."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from envs import ledger
from envs.account_view import AccountView
from envs.batched import Reward, equal_weight_tail, observation_dim, training_terms, uses_drawdown
from envs.ledger import Terms
from envs.mapping import ActionMap, round_targets
from envs.market import SPLITS, PairMarket
from rayconf.run_config import RunConfig


class PairTradingEnv(gym.Env[np.ndarray, np.ndarray]):
    """One account trading one pair, in float64.

    On ``train`` an episode starts at a random bar, lasts ``env.episode_bars`` and pays training costs; observations
    are float32. On ``validation`` and ``test`` it is the whole split from its first bar under the run's real costs,
    with float64 observations and targets rounded as in evaluation: stepping it is the backtest, to the last bit.

    Action: two numbers in [-1, 1]; see ``env.mapping``. Observation: features of the bar, then the account
    marked at its close. Reward: the shaped reward in training standard deviations of equal weight.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (declared so by Gymnasium)

    def __init__(self, market: PairMarket, run: RunConfig, split: str = "train") -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
        self._market, self._run = market, run
        self._training = split == "train"
        self._lag = run.env.lag
        span = market.splits[split]
        self._first, self._last = span.start - self._lag, span.stop - 2 - self._lag
        self._terms = training_terms(run) if self._training else Terms.from_costs(run.costs)
        self._reward = Reward(run, market.equal_weight_sd)
        self._map = ActionMap.of(run)
        self._prior = None if market.prior is None else torch.tensor(market.prior, dtype=torch.float64)
        self._returns, self._moves, self._years = (
            torch.tensor(array) for array in (market.returns, market.moves, market.years)
        )
        self._view = AccountView(1, self._lag, run.costs.leverage, uses_drawdown(run), torch.float64)
        self.tail_quantile = equal_weight_tail(market)
        self._float = np.float32 if self._training else np.float64
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (observation_dim(market, run),), self._float)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Open a new account in cash."""
        super().reset(seed=seed)
        self._bar = int(self.np_random.integers(self._first, self._last + 1)) if self._training else self._first
        self._age = 0
        self._account = ledger.open_accounts(1)
        self._equity = torch.ones(1, dtype=torch.float64)
        self._log_equity = self._log_peak = self._depth = 0.0
        self._seen = self._view.reset()
        return self._observation(), {"date": self._date(self._bar)}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide at the close of the present bar; fill ``lag`` bars later and earn one bar."""
        prior = None if self._prior is None else self._prior[self._bar : self._bar + 1]
        held = self._seen[:, :2] * self._run.costs.leverage
        target = self._map.targets(torch.as_tensor(np.asarray(action, np.float64)).reshape(1, 2), prior, held)
        if not self._training:
            target = round_targets(target)
        k = self._bar + self._lag
        after, fill = ledger.step(self._account, target, self._returns[k : k + 1], self._years[k : k + 1], self._terms)
        deepened = self._deepen(float(fill.log_growth))
        reward = float(self._reward(fill.log_growth, fill.turnover, deepened, self.tail_quantile))
        self._seen = self._view.after(fill, self._moves[k : k + 1], self._equity)
        self._account, self._equity = ledger.rebased(after), self._equity * after.equity
        self._bar, self._age = self._bar + 1, self._age + 1
        terminated = bool(self._account.ruined)
        episode_over = self._training and self._age >= self._run.env.episode_bars
        truncated = not terminated and (episode_over or self._bar > self._last)
        info = {
            "date": self._date(k),
            "equity": float(self._equity),
            "net_return": float(fill.net_return),
            "weights": fill.weights[0].numpy(),
            "turnover": float(fill.turnover),
            "trading_cost": float(fill.trading_cost),
            "financing": float(fill.financing),
        }
        return self._observation(), reward, terminated, truncated, info

    def _deepen(self, log_growth: float) -> torch.Tensor:
        self._log_equity += log_growth
        self._log_peak = max(self._log_peak, self._log_equity)
        depth = max(self._depth, self._log_peak - self._log_equity)
        deepened, self._depth = depth - self._depth, depth
        return torch.tensor([deepened], dtype=torch.float64)

    def _observation(self) -> np.ndarray:
        return np.concatenate((self._market.features[self._bar], self._seen[0].numpy()), dtype=self._float)

    def _date(self, bar: int) -> str:
        return str(self._market.dates[bar])
