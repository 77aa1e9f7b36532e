"""The rows of the ladder: what is measured, one change per row, over a base that is written down in full.

A row is a name, how its policies come to be (``kind``), and assignments over ``BASE``. Adding one is adding a line to
``ROWS``.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from benchmarks.folds import Fold
from rayconf.errors import UserError
from rayconf.loading import load_config
from rayconf.run_config import RunConfig
from rayconf.sections import DataConfig, SplitConfig

BUDGET = 400_000
"""Environment steps per member, about."""

BASE = (
    "costs.commission_bps=1",
    "costs.slippage_bps=1",
    "costs.leverage=1",
    "env.lag=1",
    "env.mapping=direct",
    "env.adjustment=1",
    "env.no_trade_band=0",
    "env.episode_bars=256",
    "features.prior=flat",
    "network.encoder=mlp",
    "network.hidden=[64, 64]",
    "network.dropout=0",
    "ppo.num_envs=256",
    "ppo.rollout_steps=64",
    "ppo.minibatch_size=4096",
    "ppo.epochs=4",
    "ppo.gamma=0.95",
    "optimizer.kind=adamw",
    "optimizer.learning_rate=3e-4",
    "optimizer.weight_decay=1e-4",
    "optimizer.schedule=constant",
    "pbt.arm=fixed",
    "pbt.fitness=sharpe",
    "backtest.vol_target=0.15",
    "backtest.vol_half_life=20",
    "resources.torch_threads=1",
    "tracking.tensorboard=false",
)

YARDSTICKS = ("vol_target", "equal_weight")
"""Rows that others are measured against, and what alpha, beta and volatility are to."""

Kind = Literal["baseline", "pair", "universe", "run", "ensemble", "weighted", "chosen"]
AVERAGES = ("ensemble", "weighted")
"""Kinds that train nothing and average what others learned."""


@dataclass(frozen=True)
class Row:
    """A rung of the ladder."""

    name: str
    kind: Kind
    """``baseline``: no learning, a policy of ``pbt.baselines`` by the name ``of``; ``pair``: a learner per pair, fold
    and seed; ``universe``: a learner per fold and seed that trains on all ordered pairs of all tickers, selected on the
    mean fitness of the run's pairs and evaluated on each; ``run``: a whole run per fold and seed by ``pbt.launch``, on
    the same universe, whose headline is evaluated; where it is ``of`` a row, one per pair, fold and seed, on the pair
    alone and from that row's policy; ``ensemble``: the mean of target weights over the seeds of the row ``of``, and
    ``weighted`` by how far their fitness on validation is apart in units of its error; ``chosen``: of every fold the
    best on validation among ``CANDIDATES``, see ``benchmarks.nested``."""
    assignments: tuple[str, ...] = ()
    """Over ``BASE``; ``path=value``."""
    snapshot: Literal["best", "last"] = "best"
    """Which snapshot of a learner is the row's policy: that of the best smoothed validation fitness, or the last."""
    of: str = ""
    budget: int = 1
    """Steps of a member as a multiple of the ladder's budget; one learner of a universe serves all pairs."""
    looks: int = 6
    """Generations, after each of which validation is looked at."""
    members: int = 1
    """Members of the population, as a multiple of the ladder's."""
    shown: tuple[str, ...] = ()
    """Pairs that the table shows; empty: all."""
    yardsticks: tuple[str, str] = YARDSTICKS
    """Rows that the table measures it against, on the same prices."""

    @property
    def policy(self) -> str:
        """Name of the row's policy in its cells."""
        return {"baseline": "rule", "run": "headline", "chosen": "chosen"}.get(self.kind, self.snapshot)

    @property
    def learns(self) -> bool:
        """Whether its cells train."""
        return self.kind not in ("baseline", "chosen", *AVERAGES)

    @property
    def together(self) -> bool:
        """Whether one training serves all pairs."""
        return self.kind in ("universe", "run") and not self.of


RESIDUAL = ("env.mapping=residual", "features.prior=vol_target", "env.reach=0.25")

DIRECT = ("algo=direct", "direct.windows=512", "network.dropout=0.4", "optimizer.weight_decay=0.01")
HISTORIES = ("augment.histories=3",)
SHARED = (*RESIDUAL, *DIRECT, *HISTORIES, "network.legs=shared")
MORE = ("augment.histories=6",)
NEUTRAL = ("env.mapping=neutral",)
REGULARISED = (
    "network.dropout=0.3",
    "optimizer.weight_decay=0.1",
    "optimizer.critic_decay_factor=0",
    "ppo.kl_stop=0.02",
)
SHUFFLED = ("data.placebo=shuffled_days",)
HELD_OUT = ("universe.held_out=[AAPL, AMZN, MSFT]",)
POPULATION = (
    "pbt.pooled=true",
    "universe.tickers=['*']",  # those of a fold, whichever it is
    "pbt.archive_of=last",
    "pbt.survivors=6",
    "backtest.cost_bps=[]",
    "resources.cpus=1",
    "search={learning_rate: {path: optimizer.learning_rate, low: 1e-4, high: 1e-3},"
    " dropout: {path: network.dropout, low: 0.2, high: 0.6, scale: logit},"
    " weight_decay: {path: optimizer.weight_decay, low: 0.001, high: 0.1, step: 3},"
    " turnover_penalty: {path: env.turnover_penalty, low: 0.05, high: 20, step: 3},"
    " train_cost_bps: {path: env.train_cost_bps, low: 2, high: 20}}",
)
"""Members of one population, whose last snapshots are the headline together, whatever the arm."""
ARM = (*RESIDUAL, *DIRECT, *POPULATION)
ARMS = ("pbt", "random")
DEFAULT = (*RESIDUAL, *DIRECT, *HISTORIES, *POPULATION, "pbt.window=252")
"""The preset ``default``."""
ENCODER = ("network.encoder=conv", "network.encoder_window=20", "network.encoder_width=16")
PRETRAINED = ("stages.run=[base, population]", "stages.epochs=4")
LEASH = (
    "stages.base=.",  # a cell's, whichever it is
    "optimizer.pull=100",
    "optimizer.learning_rate=3e-5",
    "direct.windows=64",
    "pbt.arm=fixed",
    "pbt.fitness_over=base",
    "pbt.min_gain=0",
    "pbt.archive_of=last",
    "backtest.cost_bps=[]",
    "resources.cpus=1",
)
"""Few steps at a tenth of the learning rate, kept where validation gains more than its error."""
UNMET = ("AAPL/AMZN", "AMZN/MSFT")
"""Pairs of the benchmark whose legs are held out alike."""

ROWS = (
    Row("cash", "baseline", of="cash"),
    Row("equal_weight", "baseline", of="equal_weight"),
    Row("vol_target", "baseline", of="vol_target"),
    Row("zscore", "baseline", of="zscore"),
    Row("zscore_textbook", "baseline", of="zscore_textbook"),
    Row("ppo_last", "pair", snapshot="last"),
    Row("ppo", "pair"),
    Row("ppo_ensemble", "ensemble", of="ppo"),
    Row("ppo_neutral_last", "pair", NEUTRAL, "last"),
    Row("residual", "pair", RESIDUAL),
    Row("residual_ensemble", "ensemble", of="residual"),
    Row("universe", "universe", RESIDUAL, budget=6, looks=12),
    Row("universe_last", "universe", RESIDUAL, "last", budget=6, looks=12),
    Row("universe_ensemble", "ensemble", of="universe"),
    Row("universe_augmented_last", "universe", (*RESIDUAL, *HISTORIES), "last", budget=6, looks=12),
    Row("universe_regularised", "universe", (*RESIDUAL, *REGULARISED), budget=6, looks=12),
    Row("universe_regularised_last", "universe", (*RESIDUAL, *REGULARISED), "last", budget=6, looks=12),
    Row("direct", "universe", (*RESIDUAL, *DIRECT), budget=12, looks=14),
    Row("direct_last", "universe", (*RESIDUAL, *DIRECT), "last", budget=12, looks=14),
    Row("direct_ensemble", "ensemble", of="direct"),
    Row("direct_long_last", "universe", (*RESIDUAL, *DIRECT), "last", budget=24, looks=14),
    Row("direct_augmented", "universe", (*RESIDUAL, *DIRECT, *HISTORIES), budget=24, looks=14),
    Row("direct_augmented_last", "universe", (*RESIDUAL, *DIRECT, *HISTORIES), "last", budget=24, looks=14),
    Row("direct_augmented_ensemble", "ensemble", of="direct_augmented"),
    Row("direct_augmented_last_ensemble", "ensemble", snapshot="last", of="direct_augmented_last"),
    Row("direct_augmented_last_weighted", "weighted", snapshot="last", of="direct_augmented_last"),
    Row("direct_brief_last", "universe", (*RESIDUAL, *DIRECT, *HISTORIES), "last", budget=12, looks=14),
    *(
        Row(
            f"direct_costs{bps}_last",
            "universe",
            (*RESIDUAL, *DIRECT, *HISTORIES, f"env.train_cost_bps={bps}"),
            "last",
            budget=24,
            looks=14,
        )
        for bps in (6, 10)
    ),
    Row("shared", "universe", SHARED, budget=24, looks=14),
    Row("shared_last", "universe", SHARED, "last", budget=24, looks=14),
    Row("more", "universe", (*SHARED, *MORE), budget=24, looks=14),
    Row("more_last", "universe", (*SHARED, *MORE), "last", budget=24, looks=14),
    Row("more_last_ensemble", "ensemble", snapshot="last", of="more_last"),
    Row("more_run", "run", (*SHARED, *MORE, *POPULATION, "pbt.arm=fixed"), budget=24, looks=14, members=4),
    Row("neutral_last", "universe", (*SHARED, *NEUTRAL, "features.prior=flat"), "last", budget=24, looks=14),
    Row("neutral_spread_last", "universe", (*SHARED, "features.prior=spread"), "last", budget=24, looks=14),
    *(Row(f"direct_{arm}", "run", (*ARM, f"pbt.arm={arm}"), budget=6, looks=8, members=6) for arm in (*ARMS, "fixed")),
    Row("default", "run", (*DEFAULT, "pbt.arm=fixed"), budget=12, looks=14, members=4),
    *(Row(f"default_{arm}", "run", (*DEFAULT, f"pbt.arm={arm}"), budget=12, looks=14, members=4) for arm in ARMS),
    Row("default_gain", "run", (*DEFAULT, "pbt.arm=fixed", "pbt.min_gain=0"), budget=12, looks=14),
    Row("direct_encoder", "run", (*ARM, "pbt.arm=fixed", *ENCODER), budget=6, looks=8, members=2),
    Row("direct_base", "run", (*ARM, "pbt.arm=fixed", *ENCODER, *PRETRAINED), budget=6, looks=8, members=2),
    Row("direct_base_long", "run", (*ARM, "pbt.arm=fixed", *ENCODER, *PRETRAINED), budget=24, looks=8, members=2),
    Row(
        "direct_base_apart",
        "run",
        (*ARM, "pbt.arm=fixed", *ENCODER, *PRETRAINED, "stages.share=0.5"),
        budget=6,
        looks=8,
        members=2,
    ),
    Row("encoder_histories", "run", (*ARM, "pbt.arm=fixed", *ENCODER, *HISTORIES), budget=24, looks=8, members=2),
    Row(
        "base_histories",
        "run",
        (*ARM, "pbt.arm=fixed", *ENCODER, *PRETRAINED, *HISTORIES),
        budget=24,
        looks=8,
        members=2,
    ),
    Row("leashed", "run", (*SHARED, *LEASH), of="shared_last", budget=2, members=2),
    Row("met", "universe", SHARED, "last", budget=24, looks=14, shown=UNMET),
    Row("held_out", "universe", (*SHARED, *HELD_OUT), "last", budget=24, looks=14, shown=UNMET),
    Row("equal_weight_shuffled", "baseline", SHUFFLED, of="equal_weight"),
    Row("vol_target_shuffled", "baseline", SHUFFLED, of="vol_target"),
    Row(
        "shuffled",
        "universe",
        (*SHARED, *SHUFFLED),
        "last",
        budget=24,
        looks=14,
        yardsticks=("vol_target_shuffled", "equal_weight_shuffled"),
    ),
    Row("chosen", "chosen"),
)

CANDIDATES = (
    "universe_last",
    "universe_augmented_last",
    "universe_regularised_last",
    "direct_last",
    "direct_long_last",
    "direct_augmented_last",
    "direct_brief_last",
    "direct_costs6_last",
    "direct_costs10_last",
    "shared_last",
    "more_last",
    "direct_pbt",
    "direct_random",
    "direct_encoder",
    "direct_base",
    "encoder_histories",
    "base_histories",
)
"""Rows that correct the prior on all pairs alike, among which ``chosen`` chooses."""


@dataclass(frozen=True)
class Ladder:
    """Rows with the size of their training, which is part of what they are."""

    rows: tuple[Row, ...] = ROWS
    base: tuple[str, ...] = BASE
    budget: int = BUDGET
    population: int = 1
    """Members per learner; the best on validation is the learner."""
    seeds: int = 5

    def row(self, name: str) -> Row:
        """The row of a name. Raises ``UserError`` naming those there are."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(f"--rows: {name!r} is no row; choose from {', '.join(row.name for row in self.rows)}")

    def trained(self, row: Row) -> Row:
        """The row whose learners the row's policies are: an ensemble's members', else its own."""
        return self.row(row.of) if row.kind in AVERAGES else row

    def run(self, row: Row, fold: Fold, pairs: Sequence[str], seed: int) -> RunConfig:
        """The run of a cell."""
        where = [*fold.assignments(), f"data.pairs=[{', '.join(pairs)}]", f"seed={seed}"]
        if row.together:  # whatever has prices in the fold
            where.append(f"universe.tickers=[{', '.join(sorted(fold.digests))}]")
        return self._config(row, *where)

    @cache  # noqa: B019  asked for every cell, and there are few ladders
    def digest(self, row: Row) -> str:
        """What the row computes, whatever the fold, pair and seed: its kind and its whole config."""
        run = self._config(self.trained(row))
        data = DataConfig(placebo=run.data.placebo, placebo_seed=run.data.placebo_seed)
        run = run.model_copy(update={"data": data, "split": SplitConfig(), "seed": 0})
        # what is at its default does not count, so that a field that comes to be leaves the cells as they are
        settings = run.model_dump(mode="json", exclude_defaults=True, exclude={"name", "resources", "tracking"})
        parts = [row.kind, json.dumps(settings, sort_keys=True)]
        if row.kind == "baseline":
            parts.append(row.of)
        if row.kind in AVERAGES:
            parts += [self.trained(row).kind, str(self.seeds)]
        if row.kind == "run" and row.of:
            parts.append(self.digest(self.row(row.of)))
        return hashlib.blake2b("|".join(parts).encode(), digest_size=6).hexdigest()

    def _config(self, row: Row, *where: str) -> RunConfig:
        run = load_config("demo", assignments=[*self.base, *row.assignments, *where])
        if not self.trained(row).learns:
            return run
        batch = run.env_steps_per_update
        source = self.trained(row)
        updates = max(1, round(source.budget * self.budget / (batch * source.looks)))
        size = {"interval": updates, "iterations": updates * source.looks}
        size["population"] = source.members * self.population
        return run.model_copy(update={"pbt": run.pbt.model_copy(update=size)})
