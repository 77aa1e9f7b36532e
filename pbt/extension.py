"""New pairs join a finished run: ``python -m pbt.launch --extend RUN --pairs C/D``.

The new pairs get populations of their own, which start from the archives of the finished pairs. Member i takes the
i-th best snapshot (each pair's best, then each pair's second, ...): its hyperparameters and its averaged weights, with
fresh optimizers, schedule and tail quantile. m00 is the control: the run's own values, weights from nothing. The
states so made lie in the store and are named by the population's commit for good, so that a replay can start there.

While they train, ``extension.yaml`` holds the config with all pairs; it becomes ``config.yaml`` as the very last step.
Until then the finished run is as it was, and a resume goes on with the extension.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from algos.env_runner import TAIL_QUANTILE
from analysis.frames import write_text
from envs.batched import equal_weight_tail
from envs.market import PairMarket, run_borders
from pbt.manifest import Member, Population, Snapshot
from pbt.population import start
from pbt.run_dir import RunDir, member_name
from pbt.search import initial_values
from pbt.store import State, StateStore
from pbt.survivors import averaged_weights
from rayconf.errors import UserError
from rayconf.loading import build_config, load_file, merge
from rayconf.run_config import RunConfig


@dataclass(frozen=True)
class Source:
    """Where a member of a new pair comes from."""

    pair: str
    snapshot: Snapshot

    @property
    def name(self) -> str:
        """Pair, member and generation in one word."""
        return f"{self.pair}:{self.snapshot.member}:{self.snapshot.generation}"


def extended_config(directory: RunDir, pairs: str) -> RunConfig:
    """The config of a finished run with more pairs, its split borders written as the dates they are.

    Args:
        directory: The finished run.
        pairs: ``AAA/BBB,CCC/DDD``.

    Raises:
        UserError: If a pair is there already or is no pair.
    """
    stored = build_config(load_file(directory.config))
    new = [pair.strip() for pair in pairs.split(",") if pair.strip()]
    if not new:
        raise UserError("--pairs: name at least one pair, AAA/BBB")
    for pair in new:
        if pair in stored.data.pairs:
            raise UserError(f"--pairs: {pair} is a pair of {directory.path} already")
    # Borders from fractions would move with a pair of longer history, and with them the finished pairs' results.
    borders = run_borders(stored)
    change = {
        "name": directory.name,
        "data": {"pairs": [*stored.data.pairs, *new], "transferred": [*stored.data.transferred, *new]},
        "split": {"validation_start": _text(borders.validation), "test_start": _text(borders.test)},
    }
    return build_config(merge(stored.model_dump(mode="json"), change))


def _text(date: np.datetime64) -> str:
    return str(date.astype("datetime64[us]").item().isoformat()).removesuffix("T00:00:00")


def joining(directory: RunDir, run: RunConfig) -> tuple[str, ...]:
    """The pairs that train: all of a run, or those that join a finished one."""
    if not directory.extension.is_file():
        return run.data.pairs
    finished = build_config(load_file(directory.config)).data.pairs
    return tuple(pair for pair in run.data.pairs if pair not in finished)


def check_features(markets: Mapping[str, PairMarket], new: Sequence[str]) -> None:
    """Weights can move between pairs of the same features only. Raises ``UserError`` where they are not."""
    old = next(market for pair, market in markets.items() if pair not in new)
    for pair in new:
        if markets[pair].scaler.names != old.scaler.names:
            raise UserError(
                f"--pairs: {pair} has other features than {old.pair}, as intraday and daily prices have; "
                "train it in a run of its own"
            )


def sources(run: RunConfig, directory: RunDir, pairs: Sequence[str]) -> dict[str, Source]:
    """By member m01 and up, the snapshot it starts from.

    Args:
        run: The run, for the size of a population.
        directory: Where the finished pairs are committed.
        pairs: The finished pairs.
    """
    archives = [
        [Source(pair, snapshot) for snapshot in Population.read(directory.manifest(pair)).archive] for pair in pairs
    ]
    archives = sorted((a for a in archives if a), key=lambda archive: (archive[0].snapshot.rank, archive[0].pair))
    longest = max(map(len, archives))
    ranked = [archive[place] for place in range(longest) for archive in archives if place < len(archive)]
    return {member_name(i): ranked[(i - 1) % len(ranked)] for i in range(1, run.pbt.population)}


def plan_lines(run: RunConfig, directory: RunDir, pair: str, finished: Sequence[str]) -> tuple[str, ...]:
    """Where every member of a new pair comes from, in words."""
    control = f"{pair}: {member_name(0)} starts from nothing, as the control"
    lines = [
        f"{pair}: {name} starts from {source.name}, state {source.snapshot.state}, "
        f"fitness {source.snapshot.fitness:+.2f}"
        for name, source in sources(run, directory, finished).items()
    ]
    return (control, *lines)


def write_extension(directory: RunDir, run: RunConfig) -> Path:
    """Begin: from now on the run is not complete, and a resume goes on with the new pairs."""
    write_text(directory.extension, run.to_yaml())
    return directory.extension


def join(run: RunConfig, directory: RunDir, market: PairMarket, finished: Sequence[str]) -> Population:
    """The population of a new pair: weights and hyperparameters from the finished pairs; committed."""
    store = StateStore(directory.storage)
    control = member_name(0)
    members = {control: Member(None, initial_values(run, market.pair, 0), control)}
    for name, source in sources(run, directory, finished).items():
        base = store.save(transferred(store.load(source.snapshot.state), market))
        members[name] = Member(base, dict(source.snapshot.hyperparameters), source.name)
    return start(run, market.pair, directory, members)


def transferred(state: State, market: PairMarket) -> State:
    """A boundary state for another pair: the averaged weights, which validation has judged, and all else fresh."""
    fresh = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    fresh |= {f"module/{name}": weight for name, weight in averaged_weights(state).items()}
    fresh[TAIL_QUANTILE] = torch.tensor(equal_weight_tail(market), dtype=torch.float64)
    return fresh
