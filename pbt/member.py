"""``PairMember``: the Tune trainable. One ``step`` is one generation, a pure function of its ticket.

A ticket names everything a generation starts from: pair, member, number of the generation, hyperparameters,
the digest of a state, and whether the market encoder rests. Actors are interchangeable: whichever process gets
the ticket builds a fresh algorithm, loads the state, keys every random stream and trains. Tune's own checkpoint
is a mere pointer.
"""

import contextlib
import ctypes
import gc
import io
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from ray import tune

from algos.config import PairPPOConfig
from algos.markets import provide
from algos.pair_ppo import PairPPO
from algos.policy import Policy
from algos.stack import decide_on
from analysis.metrics import session_returns, sharpe
from envs.batched import uses_drawdown
from envs.ledger import Terms
from envs.market import PairMarket, Span
from envs.replay import replay
from pbt import fitness
from pbt.run_dir import RunDir
from pbt.store import StateStore
from rayconf.keys import derive_key
from rayconf.run_config import RunConfig


def training_key(run: RunConfig, pair: str, member: str, generation: int) -> int:
    """Key of all random streams of one member's generation (counted from 1)."""
    return derive_key(run.seed, pair, member, generation, "train")


def ticket(
    run: RunConfig,
    directory: Path,
    pair: str,
    member: str,
    generation: int,
    hyperparameters: Mapping[str, float],
    state: str | None,
    frozen: bool = False,
) -> dict[str, Any]:
    """Trial config of the generation that follows ``generation`` finished ones; frozen: the encoder rests in it."""
    return {
        "ticket": {
            "run": run.model_dump(mode="json"),
            "directory": str(directory),
            "pair": pair,
            "member": member,
            "generation": generation,
            "hyperparameters": dict(hyperparameters),
            "state": state,
            "frozen": frozen,
        }
    }


class PairMember(PairPPO):
    """A member of a pair's population, trained for one generation per ``step``."""

    _idle_since: float | None = None  # when this process last finished work
    _wait_seconds: float | None = None  # from then to its next ticket

    def __init__(self, config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(config=self._accept(config or {}), **kwargs)

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """One CPU and the member's share of a GPU."""
        share = RunConfig.model_validate(config["ticket"]["run"]).resources.gpus_per_member
        return tune.PlacementGroupFactory([{"CPU": 1, **({"GPU": share} if share else {})}])

    def setup(self, config: PairPPOConfig, markets: Mapping[str, ray.ObjectRef] | None = None) -> None:
        """Build the algorithm on the market that the driver put into the object store, and load the state."""
        torch.set_num_threads(self._run.resources.torch_threads)
        self._market: PairMarket = ray.get((markets or {})[self._pair])
        provide(self._run, self._pair, self._market)
        super().setup(config)
        if self._ticket["state"] is not None:
            self.load_boundary_state(self._store.load(self._ticket["state"]))
        if self._ticket["frozen"]:
            self.freeze_encoder()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next ticket in the same process; everything is rebuilt."""
        if PairMember._idle_since is not None:
            self._wait_seconds = time.time() - PairMember._idle_since
        done = super().reset_config(self._accept(new_config))
        _release()
        return done

    def step(self) -> dict[str, Any]:
        """Train, evaluate and save one generation.

        The seconds of a row add up to the time since this process's previous row, or since it was started.
        """
        number = self._ticket["generation"] + 1
        self.reseed(training_key(self._run, self._pair, self._member, number))
        started = time.time()
        iterations = [self._iterate(number, i) for i in range(self._run.pbt.interval)]

        clock = time.perf_counter()
        policy = self.evaluation_policy()
        evaluation = self._evaluate(policy, number)
        evaluated = time.perf_counter()
        state = self._store.save(self.boundary_state())
        last = iterations[-1]
        if last["skipped_steps"] and not last["grad_norm"]:
            # Not one finite gradient: it trains no longer, whatever its averaged weights still earn.
            evaluation.update(fitness=fitness.BROKEN, fitness_se=0.0)
        last.update(
            fitness=evaluation["fitness"],
            fitness_se=evaluation["fitness_se"],
            val_sharpe=evaluation["val_sharpe"],
            train_sharpe=evaluation["train_sharpe"],
            evaluation_seconds=evaluated - clock,
            checkpoint_seconds=time.perf_counter() - evaluated,
            wall_time=time.time(),
        )
        if PairMember._idle_since is None:
            iterations[0]["startup_seconds"] = started - psutil.Process().create_time()
        else:
            iterations[0]["switch_seconds"] = started - PairMember._idle_since
            iterations[0]["wait_seconds"] = self._wait_seconds
        PairMember._idle_since = last["wall_time"]
        return {"generation": number, "state": state, "iterations": iterations, **evaluation}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A pointer: the state itself was saved by content when the generation ended."""
        (Path(checkpoint_dir) / "pointer.json").write_text(json.dumps({"generation": self._ticket["generation"] + 1}))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to do: the ticket, not Tune's checkpoint, names the state a generation starts from."""

    def get_auto_filled_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Tune's own metrics without the dumped config."""
        metrics = super().get_auto_filled_metrics(*args, **kwargs)
        metrics.pop("config", None)
        return metrics

    def _accept(self, config: dict[str, Any]) -> PairPPOConfig:
        new = self._ticket = config["ticket"]
        run = RunConfig.model_validate(new["run"])
        self._run = run.with_values(new["hyperparameters"])
        self._pair, self._member = new["pair"], new["member"]
        directory = RunDir(Path(new["directory"]))
        self._directory, self._store = directory, StateStore(directory.states)
        key = derive_key(run.seed, self._pair, self._member, "init")
        return PairPPOConfig.from_run(self._run, self._pair, key=key)

    def _iterate(self, generation: int, index: int) -> dict[str, Any]:
        started = time.perf_counter()
        super().step()
        metrics = self.last_iteration()
        iteration = (generation - 1) * self._run.pbt.interval + index + 1
        steps = metrics.pop("env_steps")
        seconds = time.perf_counter() - started
        # RLlib's own bookkeeping around a training step belongs to no other part.
        metrics["learner_seconds"] = seconds - metrics["env_seconds"] - metrics["policy_seconds"]
        return {
            "pair": self._pair,
            "member": self._member,
            "generation": generation,
            "iteration": iteration,
            "env_steps": int(steps) * iteration,
            **metrics,
            **{f"hp_{name}": value for name, value in self._ticket["hyperparameters"].items()},
            "steps_per_second": steps / seconds,
            "wall_time": time.time(),
            "host": socket.gethostname(),
            "actor_pid": os.getpid(),
        }

    def _evaluate(self, policy: Policy, generation: int) -> dict[str, Any]:
        """Run the deterministic policy over validation, beside it over the end of train, from cash."""
        market, run = self._market, self._run
        span = market.splits["validation"]
        spans = [span]
        train = market.splits["train"]
        if train.rows >= span.rows:
            spans.append(Span(train.stop - 1 - span.rows, train.stop))
        result = replay(
            market,
            spans,
            decide_on([policy], torch.tensor(market.features)),
            Terms.from_costs(run.costs),
            run.env.lag,
            batch=len(spans),
            leverage=run.costs.leverage,
            drawdown=uses_drawdown(run),
        )
        dates = market.dates[result.fill_bar]
        per_year = market.sessions_per_year
        measured = fitness.evaluate(
            result.net_return[:, 0],
            result.gross[:, 0],
            dates[:, 0],
            per_year,
            bool(result.equity[-1, 0] <= run.costs.ruin_fraction),
            run.pbt,
            run.seed,
            self._pair,
            generation,
        )
        self._keep(result.net_return[:, 0], generation)
        sharpes = [
            sharpe(session_returns(result.net_return[:, row], dates[:, row])[0], per_year) for row in range(len(spans))
        ]
        return {
            "fitness": measured.value,
            "fitness_se": measured.se,
            "idle": measured.idle,
            "val_sharpe": sharpes[0],
            "train_sharpe": sharpes[1] if len(sharpes) > 1 else None,
        }

    def _keep(self, net_return: np.ndarray, generation: int) -> None:
        path = self._directory.validation_file(self._pair, self._member, generation)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written by Python, because numpy's own writer does not say when the disk is full.
        content = io.BytesIO()
        np.save(content, net_return)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content.getbuffer())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _release() -> None:
    """Give back what the last algorithm of this process held.

    Algorithms are full of reference cycles, so that several would lie in memory until Python looks for them, and what
    they leave free between what lives on would stay with the process. Objects of the first time, mostly imported
    modules, are set aside: they need not be looked through again (0.3 s).
    """
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()
    with contextlib.suppress(OSError, AttributeError):  # glibc's; others return memory by themselves
        ctypes.CDLL(None).malloc_trim(0)
