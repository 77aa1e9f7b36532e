"""One generation of training, as members run it under Tune and as a replay runs it again.

It is a pure function of (run, pair, market, hyperparameters, state, key): a fresh algorithm loads the state, keys
every random stream and trains; then its averaged weights are evaluated on validation.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from algos.bar_policy import build_policy
from algos.config import PairPPOConfig
from algos.markets import provide
from algos.pair_ppo import PairPPO
from algos.policy import Policy
from algos.stack import decide_on
from analysis.metrics import session_returns, sharpe
from envs.batched import uses_drawdown
from envs.ledger import Terms
from envs.mapping import round_targets
from envs.market import PairMarket, Span
from envs.replay import replay
from pbt import fitness
from pbt.store import State, digest
from rayconf.keys import derive_key
from rayconf.run_config import RunConfig

_BASE_RETURNS: dict[tuple[str, str, str], np.ndarray] = {}
"""What ``base_returns`` knows in this process."""


def training_key(run: RunConfig, pair: str, member: str, generation: int) -> int:
    """Key of all random streams of one member's generation (counted from 1)."""
    return derive_key(run.seed, pair, member, generation, "train")


def initial_key(run: RunConfig, pair: str, member: str) -> int:
    """Key of the weights that a member starts from when it starts from nothing."""
    return derive_key(run.seed, pair, member, "init")


@dataclass(frozen=True)
class Iteration:
    """One update."""

    figures: dict[str, float | None]
    """As ``PairPPO.last_iteration``."""
    seconds: float
    wall_time: float
    """When it was done, unix seconds."""


@dataclass(frozen=True)
class Evaluation:
    """What validation says of a generation."""

    figures: dict[str, Any]
    """fitness, fitness_se, idle, val_sharpe and train_sharpe (None where train is the shorter span); the Sharpe ratios
    are means over pairs."""
    net_returns: dict[str, np.ndarray]
    """[K] float64 by pair, per validation fill."""


@dataclass(frozen=True)
class Trained:
    """A finished generation."""

    state: State
    iterations: tuple[Iteration, ...]
    evaluation: Evaluation
    began: float
    """Unix time of the first step."""
    evaluation_seconds: float
    state_seconds: float
    """Time to take the state out of the algorithm."""


def enter(run: RunConfig, pair: str, market: PairMarket) -> None:
    """Make this process ready for the pair: torch's threads as the run says, and the market at hand."""
    torch.set_num_threads(run.resources.torch_threads)
    provide(run, pair, market)


def train_generation(
    algorithm: PairPPO,
    market: PairMarket,
    state: State | None,
    key: int,
    generation: int,
    *,
    frozen: bool = False,
    others: Sequence[PairMarket] = (),
) -> Trained:
    """Train one generation in an algorithm that was built for it and has trained nothing yet.

    Args:
        algorithm: Its config holds the run, with the hyperparameters in force, the pair and the key of initial weights.
        market: The pair's market.
        state: Boundary state to start from; None: the algorithm's own initial weights.
        key: Key of the generation's random streams, see ``training_key``.
        generation: Number of the generation, from 1; the bootstrap of fitness is keyed by it.
        frozen: Whether the market encoder stays as it is; a pre-trained one also where the run says so.
        others: Markets of the other pairs that it is evaluated on.

    Raises:
        ValueError: If the state is not one of this network.
    """
    run = algorithm.config.run
    if state is not None:
        algorithm.load_boundary_state(state)
    if frozen or run.stages.freezes:
        algorithm.freeze_encoder()
    algorithm.reseed(key)
    began = time.time()
    iterations = tuple(_iterate(algorithm) for _ in range(run.pbt.interval))
    clock = time.perf_counter()
    over = None
    if run.pbt.fitness_over == "base":
        start = algorithm.anchor_weights()
        over = {each.pair: base_returns(run, each, start) for each in (market, *others)}
    evaluation = evaluate(run, market, algorithm.evaluation_policy(), generation, others, over)
    last = iterations[-1].figures
    if last["skipped_steps"] and not last["grad_norm"]:
        # Not one finite gradient: it trains no longer, whatever its averaged weights still earn.
        evaluation.figures.update(fitness=fitness.BROKEN, fitness_se=0.0)
    evaluated = time.perf_counter()
    state = algorithm.boundary_state()
    return Trained(state, iterations, evaluation, began, evaluated - clock, time.perf_counter() - evaluated)


def train_segment(
    run: RunConfig,
    market: PairMarket,
    hyperparameters: Mapping[str, float],
    state: State | None,
    key: int,
    generation: int,
    *,
    init_key: int,
    frozen: bool = False,
    others: Sequence[PairMarket] = (),
) -> Trained:
    """``train_generation`` in an algorithm of its own; Ray is up.

    Args:
        run: The run, at its own hyperparameters.
        market: The pair's market.
        hyperparameters: In force in this generation, by search name.
        state: As in ``train_generation``.
        key: As in ``train_generation``.
        generation: As in ``train_generation``.
        init_key: Key of the initial weights, see ``initial_key``; without effect where there is a state.
        frozen: As in ``train_generation``.
        others: As in ``train_generation``.
    """
    in_force = run.with_values(dict(hyperparameters))
    enter(in_force, market.pair, market)
    algorithm = PairPPO(config=PairPPOConfig.from_run(in_force, market.pair, key=init_key))
    try:
        return train_generation(algorithm, market, state, key, generation, frozen=frozen, others=others)
    finally:
        algorithm.stop()


def untrained_state(run: RunConfig, market: PairMarket, member: str) -> State:
    """The boundary state of a member that starts from nothing; Ray is up."""
    # Only what a state consists of is wanted, which is the same on every device.
    run = run.model_copy(update={"resources": run.resources.model_copy(update={"gpus_per_member": 0.0})})
    enter(run, market.pair, market)
    algorithm = PairPPO(config=PairPPOConfig.from_run(run, market.pair, key=initial_key(run, market.pair, member)))
    try:
        return algorithm.boundary_state()
    finally:
        algorithm.stop()


def _iterate(algorithm: PairPPO) -> Iteration:
    started = time.perf_counter()
    PairPPO.step(algorithm)  # a member's own step is the whole generation
    return Iteration(algorithm.last_iteration(), time.perf_counter() - started, time.time())


def evaluate(
    run: RunConfig,
    market: PairMarket,
    policy: Policy,
    generation: int,
    others: Sequence[PairMarket] = (),
    over: Mapping[str, np.ndarray] | None = None,
) -> Evaluation:
    """Run the deterministic policy over validation, beside it over the end of train, from cash.

    Args:
        run: The run.
        market: Of the pair that the population trains under.
        policy: The policy.
        generation: Keys the bootstrap of fitness.
        others: Markets of the other pairs that fitness is pooled over.
        over: By pair net returns [K] on validation of the base, see ``base_returns``, where fitness is over it.

    Raises:
        ValueError: The base's returns are given and not asked for, or the other way round.
    """
    if (run.pbt.fitness_over == "base") != (over is not None):
        raise ValueError("fitness over the base needs its returns, and no other does")
    played = {each.pair: _play(run, each, policy, (over or {}).get(each.pair)) for each in (market, *others)}
    accounts = {pair: account for pair, (account, *_) in played.items()}
    measured = fitness.evaluate_each(list(accounts.values()), run.pbt, run.seed, market.pair, generation)
    _, own, trained = zip(*played.values(), strict=True)
    figures = {
        "fitness": measured.value,
        "fitness_se": measured.se,
        "idle": measured.idle,
        "val_sharpe": float(np.mean(own)),
        "train_sharpe": None if None in trained else float(np.mean(trained)),
    }
    return Evaluation(figures, {pair: account.net_return for pair, account in accounts.items()})


def _play(
    run: RunConfig, market: PairMarket, policy: Policy, over: np.ndarray | None = None
) -> tuple[fitness.Account, float, float | None]:
    """The policy's account on validation, and its Sharpe ratios there and at the end of train, if that is as long."""
    span = market.splits["validation"]
    spans = [span]
    train = market.splits["train"]
    if train.rows >= span.rows:
        spans.append(Span(train.stop - 1 - span.rows, train.stop))
    recorded = []
    if run.pbt.fitness_over == "prior":  # one more account, on validation
        recorded = [prior_targets(market)]
        spans.append(span)
    result = replay(
        market,
        spans,
        decide_on([policy], torch.tensor(market.features)),
        Terms.from_costs(run.costs),
        run.env.lag,
        batch=len(spans),
        recorded=recorded,
        leverage=run.costs.leverage,
        drawdown=uses_drawdown(run),
    )
    dates = market.dates[result.fill_bar]
    per_year = market.sessions_per_year
    account = fitness.Account(
        result.net_return[:, 0],
        result.gross[:, 0],
        dates[:, 0],
        per_year,
        bool(result.equity[-1, 0] <= run.costs.ruin_fraction),
        over=result.net_return[:, -1] if recorded else over,
    )
    own = len(spans) - len(recorded)
    sharpes = [sharpe(session_returns(result.net_return[:, row], dates[:, row])[0], per_year) for row in range(own)]
    return account, sharpes[0], sharpes[1] if len(sharpes) > 1 else None


def base_returns(run: RunConfig, market: PairMarket, weights: State) -> np.ndarray:
    """Net returns [K] on validation of the policy that a pair started from, computed once in a process.

    Args:
        run: The run; what PBT moves changes nothing here (``RunConfig`` sees to it).
        market: The pair's market.
        weights: The actor's, see ``PairPPO.anchor_weights``.
    """
    fixed = run.with_values(dict.fromkeys(run.search, 0.0)).identity
    key = (fixed, market.pair, digest(weights))
    if key not in _BASE_RETURNS:
        account, *_ = _play(run, market, build_policy(weights, run, market.scaler.names))
        _BASE_RETURNS[key] = account.net_return
    return _BASE_RETURNS[key]


def prior_targets(market: PairMarket) -> torch.Tensor:
    """Target weights [T, 2] of the account that follows the features' prior, as policies round them; cash if flat."""
    if market.prior is None:
        return torch.zeros(len(market.dates), 2, dtype=torch.float64)
    return round_targets(torch.tensor(market.prior, dtype=torch.float64))
