"""``PairMember``: the Tune trainable. One ``step`` is one generation, a pure function of its ticket.

A ticket names everything a generation starts from: pair, member, number of the generation, hyperparameters,
the digest of a state, and whether the market encoder rests. Actors are interchangeable: whichever process gets
the ticket builds a fresh algorithm, loads the state, keys every random stream and trains, see ``pbt.generation``.
Tune's own checkpoint is a mere pointer.
"""

import contextlib
import ctypes
import gc
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune

from algos.config import PairPPOConfig
from algos.pair_ppo import PairPPO
from envs.market import PairMarket
from pbt.generation import Iteration, enter, initial_key, train_generation, training_key
from pbt.run_dir import folder_name
from pbt.store import ReturnStore, StateStore
from rayconf import node_probe
from rayconf.run_config import RunConfig
from rayconf.storage import storage_at


class Ticket(dict[str, Any]):
    """What a generation starts from; never changed, only replaced.

    For each trial Tune copies the grid of all trials deeply, which takes a start with the square of the members; a
    copy of a ticket is the ticket.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ticket":
        return self


def ticket(
    run: RunConfig,
    place: str | Path,
    pair: str,
    member: str,
    generation: int,
    hyperparameters: Mapping[str, float],
    state: str | None,
    frozen: bool = False,
) -> dict[str, Any]:
    """Trial config of the generation that follows ``generation`` finished ones.

    Args:
        run: The run.
        place: Where it lies for every node, a folder or a URI.
        pair: The pair.
        member: The member.
        generation: Generations finished.
        hyperparameters: In force in the next, by search name.
        state: Digest of what it starts from; None: the member's initial weights.
        frozen: Whether the encoder rests in it.
    """
    about = Ticket(
        run=run.model_dump_json(),  # one word: Tune walks through all values of all trials once per trial
        place=str(place),
        pair=pair,
        member=member,
        generation=generation,
        hyperparameters=dict(hyperparameters),
        state=state,
        frozen=frozen,
    )
    return {"ticket": about}


class PairMember(PairPPO):
    """A member of a pair's population, trained for one generation per ``step``."""

    _idle_since: float | None = None  # when this process last finished work
    _wait_seconds: float | None = None  # from then to its next ticket

    def __init__(self, config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(config=self._accept(config or {}), **kwargs)

    def __repr__(self) -> str:
        """What Ray calls the actor, from its first ticket on: the members it hosts in turn are of one run."""
        return f"{type(self).__name__}({self._run.name or ''})"

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """The member's CPUs and its share of a GPU."""
        return tune.PlacementGroupFactory([RunConfig.model_validate_json(config["ticket"]["run"]).resources.bundle])

    def setup(
        self,
        config: PairPPOConfig,
        markets: Mapping[str, ray.ObjectRef] | None = None,
        training: Mapping[str, ray.ObjectRef] | None = None,
        standard: tuple[dict[str, str], str] | None = None,
    ) -> None:
        """Build the algorithm on the market that the driver put into the object store, and load the state.

        ``standard`` holds the driver's versions and sources (``rayconf.node_probe``), which a process must share that
        trains beside others.
        """
        if standard is not None and PairMember._idle_since is None:
            _check_fit(*standard)
        pairs = self._run.judges(self._pair)
        self._market: PairMarket
        self._market, *self._others = ray.get([(markets or {})[pair] for pair in pairs])
        if training and self._pair in training:
            self._market = replace(self._market, training=ray.get(training[self._pair]))
        enter(self._run, self._pair, self._market)
        super().setup(config)
        digest = self._ticket["state"]
        self._start = None if digest is None else self._store.load(digest)

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
        _entitle(f"ray::{type(self).__name__} {folder_name(self._pair)}-{self._member}")
        number = self._ticket["generation"] + 1
        key = training_key(self._run, self._pair, self._member, number)
        frozen, others = self._ticket["frozen"], self._others
        trained = train_generation(self, self._market, self._start, key, number, frozen=frozen, others=others)
        iterations = [self._row(number, i, iteration) for i, iteration in enumerate(trained.iterations)]
        clock = time.perf_counter()
        for pair, net_return in trained.evaluation.net_returns.items():
            self._returns.save((pair, self._member, number), net_return)
        state = self._store.save(trained.state)
        figures, last = trained.evaluation.figures, iterations[-1]
        last.update(
            {name: value for name, value in figures.items() if name != "idle"},
            evaluation_seconds=trained.evaluation_seconds,
            checkpoint_seconds=trained.state_seconds + time.perf_counter() - clock,
            wall_time=time.time(),
        )
        if PairMember._idle_since is None:
            iterations[0]["startup_seconds"] = trained.began - psutil.Process().create_time()
        else:
            iterations[0]["switch_seconds"] = trained.began - PairMember._idle_since
            iterations[0]["wait_seconds"] = self._wait_seconds
        PairMember._idle_since = last["wall_time"]
        return {"generation": number, "state": state, "iterations": iterations, **figures}

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
        run = RunConfig.model_validate_json(new["run"])
        self._run = run.with_values(new["hyperparameters"])
        self._pair, self._member = new["pair"], new["member"]
        place = storage_at(new["place"])
        self._store, self._returns = StateStore(place), ReturnStore(place)
        return PairPPOConfig.from_run(self._run, self._pair, key=initial_key(run, self._pair, self._member))

    def _row(self, generation: int, index: int, done: Iteration) -> dict[str, Any]:
        metrics: dict[str, Any] = dict(done.figures)
        iteration = (generation - 1) * self._run.pbt.interval + index + 1
        steps = metrics.pop("env_steps")
        # RLlib's own bookkeeping around a training step belongs to no other part.
        metrics["learner_seconds"] = done.seconds - metrics["env_seconds"] - metrics["policy_seconds"]
        return {
            "pair": self._pair,
            "member": self._member,
            "generation": generation,
            "iteration": iteration,
            "env_steps": int(steps) * iteration,
            **metrics,
            **{f"hp_{name}": value for name, value in self._ticket["hyperparameters"].items()},
            "steps_per_second": steps / done.seconds,
            "wall_time": done.wall_time,
            "host": socket.gethostname(),
            "actor_pid": os.getpid(),
        }


class UnfitNodeError(RuntimeError):
    """A node whose versions or sources are not the driver's, so that its results would be others."""


UNFIT = f"{UnfitNodeError.__name__}: "
"""What precedes the message in a traceback that came as text."""


def _check_fit(versions: dict[str, str], code: str) -> None:
    found = node_probe.differences(node_probe.versions(), node_probe.code_digest(), versions, code)
    if found:
        address = ray.util.get_node_ip_address()
        raise UnfitNodeError(f"{address}: {'; '.join(found)}; install the driver's there, or `ray up` again")


def _entitle(title: str) -> None:
    """Name this process, if it is an actor's, in ``ps`` and in Ray's dashboard until Ray names it after its next task.

    The name stands for a series in Ray's metrics, so it holds nothing that grows with the run.
    """
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        with contextlib.suppress(AttributeError):  # Ray keeps it to itself
            ray._raylet.setproctitle(title)


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
