"""The schedule of a survivor as segments, each trained again under its own key, and what must come out of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from analysis.frames import SCHEMA_VERSION
from envs.market import PairMarket
from pbt.generation import Trained, initial_key, train_segment, training_key
from pbt.manifest import Snapshot
from pbt.search import Values
from pbt.store import CorruptStateError, State, StateStore, digest
from pbt.survivors import schedule
from rayconf.errors import UserError
from rayconf.run_config import RunConfig


@dataclass(frozen=True)
class Segment:
    """One generation of one ancestor."""

    member: str
    generation: int
    operation: str
    """Decision after which it trained: start, keep, exploit, explore, ..."""
    key: int
    hyperparameters: Values
    start: str | None
    """Digest of the state it started from; null: untrained."""
    recorded: str
    """Digest of the state it ended in."""
    fitness: float | None
    """As recorded at its end."""

    @property
    def frozen(self) -> bool:
        """Whether the market encoder stood still."""
        return self.operation == "freeze"

    @property
    def name(self) -> str:
        """Member and generation, for people."""
        return f"{self.member} generation {self.generation}"


@dataclass(frozen=True)
class Replayed:
    """A segment trained again."""

    segment: Segment
    key: int
    """Key it was trained under."""
    trained: Trained
    state: str
    """Digest of the state it ended in."""

    @property
    def equal(self) -> bool:
        """Whether it ended in the recorded state, to the bit."""
        return self.state == self.segment.recorded


def segments_of(run: RunConfig, lineage: Sequence[Mapping[str, Any]], pair: str, snapshot: Snapshot) -> list[Segment]:
    """The segments that made a snapshot, first to last.

    Args:
        run: The run, for the names of its hyperparameters.
        lineage: Rows of the lineage frame.
        pair: The pair.
        snapshot: What the last segment ended in.

    Raises:
        UserError: If the lineage lacks a row of the schedule, or tells a key or value that cannot be.
    """
    rows = schedule(lineage, pair, snapshot.member, snapshot.generation)
    fitness = {(row["member"], row["generation"]): row["fitness"] for row in lineage if row["pair"] == pair}
    ends = [*(row["state"] for row in rows[1:]), snapshot.state]
    segments: list[Segment] = []
    for row, end in zip(rows, ends, strict=True):
        member, generation = row["member"], row["generation"] + 1
        try:
            key = int(row["key"], 16)
            values = {name: float(row[f"hp_{name}"]) for name in run.search}
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(
                f"lineage: the row of {pair} {member} after generation {row['generation']} is damaged ({error})"
            ) from error
        segments.append(
            Segment(
                member,
                generation,
                row["operation"],
                key,
                values,
                row["state"] if not segments else ends[len(segments) - 1],
                end,
                fitness.get((member, generation)),
            )
        )
    return segments


def base_state(segments: Sequence[Segment], store: StateStore) -> State | None:
    """What the first segment starts from: nothing, or the state that a transfer recorded.

    Raises:
        UserError: If that state is gone or damaged.
    """
    start = segments[0].start
    if start is None:
        return None
    try:
        return store.load(start)
    except (FileNotFoundError, CorruptStateError) as error:
        raise UserError(f"the schedule starts from state {start}, which cannot be read: {error}") from error


def retrain(
    run: RunConfig,
    market: PairMarket,
    segments: Sequence[Segment],
    base: State | None,
    seed: int | None = None,
    others: Sequence[PairMarket] = (),
) -> Iterator[Replayed]:
    """Train the segments one after the other, each in a fresh algorithm; Ray is up.

    Args:
        run: The run.
        market: Of the pair that its population trained under.
        segments: First to last.
        base: What the first one starts from; see ``base_state``.
        seed: None: under the recorded keys; else under keys derived from this seed instead of the run's.
        others: Markets of the other pairs that the population was evaluated on.
    """
    source = run if seed is None else run.model_copy(update={"seed": seed})
    pair, state = market.pair, base
    for segment in segments:
        key = segment.key if seed is None else training_key(source, pair, segment.member, segment.generation)
        trained = train_segment(
            run,
            market,
            segment.hyperparameters,
            state,
            key,
            segment.generation,
            init_key=initial_key(source, pair, segment.member),
            frozen=segment.frozen,
            others=others,
        )
        state = trained.state
        yield Replayed(segment, key, trained, digest(state))


def difference(replayed: Replayed, store: StateStore) -> str:
    """Where a segment's state differs from the recorded one, as far as that is still kept."""
    text = f"state {replayed.state}, recorded {replayed.segment.recorded}"
    if replayed.segment.recorded not in store.names():
        return text
    try:
        ours, theirs = replayed.trained.state, store.load(replayed.segment.recorded)
    except CorruptStateError as error:
        return f"{text}; {error}"
    odd = [
        n for n in sorted(ours.keys() | theirs.keys()) if n not in ours or n not in theirs or _unlike(ours, theirs, n)
    ]
    first = odd[0]
    if first not in ours or first not in theirs or ours[first].shape != theirs[first].shape:
        return f"{text}: {len(odd)} of {len(ours)} tensors, first {first}"
    most = float((ours[first].double() - theirs[first].double()).abs().max())
    return f"{text}: {len(odd)} of {len(ours)} tensors, first {first} by up to {most:.1e}"


def _unlike(ours: State, theirs: State, name: str) -> bool:
    return not ours[name].equal(theirs[name])


def segments_table(replayed: Sequence[Replayed]) -> pa.Table:
    """A row per segment: what it was, what was recorded, what came out."""
    names = sorted(replayed[0].segment.hyperparameters)
    kinds = {
        "segment": pa.int32(),
        "member": pa.string(),
        "generation": pa.int32(),
        "operation": pa.string(),
        "key": pa.string(),
        **{f"hp_{name}": pa.float64() for name in names},
        "start": pa.string(),
        "state": pa.string(),
        "recorded_state": pa.string(),
        "fitness": pa.float64(),
        "recorded_fitness": pa.float64(),
    }
    rows = [
        {
            "segment": number,
            "member": one.segment.member,
            "generation": one.segment.generation,
            "operation": one.segment.operation,
            "key": f"{one.key:016x}",
            **{f"hp_{name}": one.segment.hyperparameters[name] for name in names},
            "start": one.segment.start if number == 1 else replayed[number - 2].state,
            "state": one.state,
            "recorded_state": one.segment.recorded,
            "fitness": one.trained.evaluation.figures["fitness"],
            "recorded_fitness": one.segment.fitness,
        }
        for number, one in enumerate(replayed, start=1)
    ]
    schema = pa.schema(list(kinds.items()), metadata={"pairpbt.schema": SCHEMA_VERSION})
    return pa.Table.from_pylist(rows, schema=schema)
