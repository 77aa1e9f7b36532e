"""From the archive to ``survivors/``: choosing snapshots, and writing what trading or fine-tuning needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algos.bar_policy import build_policy
from algos.policy import Policy
from analysis.frames import KEYS, lineage_schema, write_frame
from envs.market import PairMarket
from pbt.manifest import Population, Snapshot
from pbt.run_dir import RunDir
from pbt.store import ReturnStore, State, StateStore
from rayconf.errors import UserError
from rayconf.run_config import RunConfig


@dataclass(frozen=True)
class Survivor:
    """A snapshot with its rank and policy."""

    rank: int
    snapshot: Snapshot
    policy: Policy

    @property
    def name(self) -> str:
        """Policy name in the frames."""
        return f"survivor-{self.rank}"


def choose(archive: Sequence[Snapshot], streams: Mapping[str, np.ndarray], count: int, limit: float) -> list[Snapshot]:
    """The best ``count`` snapshots, leaving out near copies while others remain.

    Best first; a snapshot whose validation returns correlate ``limit`` or more with one already taken waits. Where
    fewer than ``count`` are left that way, the best of those waiting fill up.

    Args:
        archive: Snapshots, best first.
        streams: Net returns on validation [K] by state digest.
        count: How many.
        limit: Correlation from which two streams count as copies.
    """
    taken: list[Snapshot] = []
    waiting: list[Snapshot] = []
    for snapshot in archive:
        stream = streams[snapshot.state]
        copies = any(_correlation(stream, streams[other.state]) >= limit for other in taken)
        (waiting if copies or len(taken) == count else taken).append(snapshot)
    return sorted(taken + waiting[: count - len(taken)], key=lambda s: s.rank)


def policy_from_state(state: State, run: RunConfig, feature_names: Sequence[str]) -> Policy:
    """The evaluation policy of a boundary state: averaged weights over their total weight."""
    return build_policy(averaged_weights(state), run, feature_names)


def averaged_weights(state: State) -> dict[str, torch.Tensor]:
    """The weights that evaluation uses, by parameter name: the averaged ones over their total weight."""
    weight = float(state["ema_weight"])
    source = "ema/" if weight > 0 else "module/"
    return {
        name.removeprefix(source): tensor / weight if weight > 0 else tensor
        for name, tensor in state.items()
        if name.startswith(source)
    }


def load_survivors(run: RunConfig, directory: RunDir, population: Population, market: PairMarket) -> list[Survivor]:
    """The survivors of one pair by rank, with their policies; empty when validation saw none worth keeping.

    Near copies are told by the returns on all pairs that the population is evaluated on, so that these have the same.
    """
    returns = ReturnStore(directory.storage)
    streams = {
        s.state: np.concatenate([returns.load((p, s.member, s.generation)) for p in run.judges(population.pair)])
        for s in population.archive
    }
    chosen = choose(population.archive, streams, run.pbt.survivors, run.pbt.survivor_correlation)
    store = StateStore(directory.storage)
    return [
        Survivor(
            rank,
            snapshot,
            # a leverage cap is part of the policy, and its own
            policy_from_state(
                store.load(snapshot.state), run.with_values(snapshot.hyperparameters), market.scaler.names
            ),
        )
        for rank, snapshot in enumerate(chosen, start=1)
    ]


def export(
    run: RunConfig, directory: RunDir, market: PairMarket, survivor: Survivor, lineage: Sequence[Mapping[str, Any]]
) -> Path:
    """Write ``survivors/<pair>/<rank>/``: policy, scaler, config and the schedule that made it."""
    folder = directory.survivor(market.pair, survivor.rank)
    write_policy(folder, survivor.policy, market, run.with_values(survivor.snapshot.hyperparameters))
    rows = schedule(lineage, market.pair, survivor.snapshot.member, survivor.snapshot.generation)
    write_frame(rows, lineage_schema(list(run.search)), KEYS["lineage"], folder / "schedule.parquet")
    return folder


def write_policy(folder: Path, policy: Policy, market: PairMarket, run: RunConfig) -> None:
    """Write what trading a policy needs: its weights, the scaler of its features and the config that made it."""
    policy.save(folder)
    (folder / "scaler.json").write_text(market.scaler.to_json() + "\n")
    (folder / "config.yaml").write_text(run.to_yaml())


def schedule(lineage: Sequence[Mapping[str, Any]], pair: str, member: str, generation: int) -> list[Mapping[str, Any]]:
    """The lineage rows that made a snapshot, first to last.

    The row of generation g names the member that trained generation g + 1, its hyperparameters, its key and the state
    that it started from. Walks back from the snapshot: a member's generation starts where ``parent_member`` ended
    ``parent_generation``, 0 being the untrained start.

    Raises:
        UserError: If a row is missing, or names a parent that came later.
    """
    rows = {(row["generation"], row["member"]): row for row in lineage if row["pair"] == pair}
    path = []
    while generation:
        row = rows.get((generation - 1, member))
        if row is None or row["parent_generation"] >= generation:
            what = "is missing" if row is None else f"names a later parent (generation {row['parent_generation']})"
            raise UserError(f"lineage: the row of {pair} {member} after generation {generation - 1} {what}")
        path.append(row)
        member, generation = row["parent_member"], row["parent_generation"]
    return path[::-1]


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if x.std() == 0 or y.std() == 0:
        return float(np.array_equal(x, y))
    return float(np.corrcoef(x, y)[0, 1])
