"""Schemas of a run's frames, and reading and writing them as Parquet.

Rows are sorted by a unique key, NaN is written as null, there is no index, and equal content gives
equal bytes (within one version of pyarrow). A file appears under its name only when it is complete.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.columns import FRAMES, KEYS, PER_HYPERPARAMETER, Column
from analysis.journal import append_jsonl, read_jsonl
from rayconf.errors import UserError

__all__ = [
    "KEYS",
    "append_jsonl",
    "daily_schema",
    "diversity_schema",
    "events_schema",
    "evidence_schema",
    "frame_block",
    "frame_path",
    "group_slices",
    "keep_last",
    "lineage_schema",
    "part_of",
    "progress_schema",
    "read_frame",
    "read_jsonl",
    "schema_of",
    "summary_schema",
    "validation_schema",
    "write_frame",
    "write_text",
]

SCHEMA_VERSION = "1"
ROW_GROUP = 1 << 18

_TYPES = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "timestamp": pa.timestamp("us"),
}

Rows: TypeAlias = Sequence[Mapping[str, Any]] | Mapping[str, Any] | pd.DataFrame | pa.Table


def _field(column: Column, name: str) -> pa.Field:
    metadata = {"unit": column.unit, "meaning": column.meaning, "choices": "|".join(column.choices)}
    return pa.field(name, _TYPES[column.type], metadata={k: v for k, v in metadata.items() if v})


def schema_of(frame: str, names: Sequence[str] = ()) -> pa.Schema:
    """The schema of a frame by name.

    Args:
        frame: ``progress``, ``lineage``, ``diversity``, ``validation``, ``daily``, ``summary``, ``evidence`` or
            ``events``.
        names: The run's search names; they become ``hp_<name>`` (also ``old_hp_<name>`` in lineage; ``spread_<name>``
            in diversity).

    Returns:
        A schema whose metadata is ``pairpbt.schema=1``; each field carries unit and meaning.
    """
    fields = []
    for column in FRAMES[frame]:
        if column.name in PER_HYPERPARAMETER:
            fields += [_field(column, column.name.replace("*", name)) for name in names]
        else:
            fields.append(_field(column, column.name))
    return pa.schema(fields, metadata={"pairpbt.schema": SCHEMA_VERSION})


def progress_schema(names: Sequence[str]) -> pa.Schema:
    """Schema of ``progress``: a row per member and iteration."""
    return schema_of("progress", names)


def lineage_schema(names: Sequence[str]) -> pa.Schema:
    """Schema of ``lineage``: a row per pair, generation and member with the decision taken."""
    return schema_of("lineage", names)


def diversity_schema(names: Sequence[str]) -> pa.Schema:
    """Schema of ``diversity``: a row per pair and generation."""
    return schema_of("diversity", names)


def validation_schema() -> pa.Schema:
    """Schema of ``validation``: net return per pair, member, generation and date."""
    return schema_of("validation")


def daily_schema() -> pa.Schema:
    """Schema of ``daily``: a row per split, scenario, pair, policy and bar."""
    return schema_of("daily")


def summary_schema() -> pa.Schema:
    """Schema of ``summary``: a row per split, scenario, pair and policy with every metric."""
    return schema_of("summary")


def evidence_schema() -> pa.Schema:
    """Schema of ``evidence``: a row per pair, policy and statistic of selection."""
    return schema_of("evidence")


def events_schema() -> pa.Schema:
    """Schema of ``events``: starts, resumes, losses, retries, and every look at the test span."""
    return schema_of("events")


def part_of(table: pa.Table, **values: Any) -> pa.Table:
    """The rows of a frame whose named columns hold the given values, e.g. ``split="test", scenario="base"``."""
    mask = np.ones(table.num_rows, bool)
    for name, value in values.items():
        mask &= pc.equal(table.column(name), pa.scalar(value, table.schema.field(name).type)).to_numpy()
    return table.filter(pa.array(mask))


def frame_path(run: Path, frame: str) -> Path:
    """Where a run keeps a frame: ``RUN/frames/<frame>.parquet``."""
    return run / "frames" / f"{frame}.parquet"


def frame_block(schema: pa.Schema, constants: Mapping[str, Any], columns: Mapping[str, Any]) -> pa.Table:
    """A table of rows that share their identity columns, without a Python object per row.

    Args:
        schema: Schema of the frame.
        constants: Columns with one value for all rows.
        columns: Columns as arrays of one length [T]. Columns named nowhere are null.

    Returns:
        A table of T rows in the schema's column order; join several with ``pyarrow.concat_tables``.
    """
    unknown = (set(constants) | set(columns)) - set(schema.names)
    if unknown:
        raise ValueError(f"no such column: {', '.join(sorted(unknown))}")
    length = len(next(iter(columns.values())))
    arrays = []
    for field in schema:
        if field.name in columns:
            arrays.append(_array(columns[field.name], field.type))
        else:
            arrays.append(pa.repeat(pa.scalar(constants.get(field.name), field.type), length))
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(kind)
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        values = values.astype("datetime64[us]")
    elif pa.types.is_timestamp(kind) and isinstance(values, list) and any(isinstance(v, str) for v in values):
        values = np.array(values, "datetime64[us]")  # ISO text, as JSON lines hold it; None becomes NaT
    return pa.array(values, type=kind, from_pandas=True)


def _table(rows: Rows, schema: pa.Schema) -> pa.Table:
    if isinstance(rows, pa.Table):
        given = {name: rows.column(name) for name in rows.column_names}
    elif isinstance(rows, pd.DataFrame):
        given = {str(name): rows[name].array for name in rows.columns}
    elif isinstance(rows, Mapping):
        given = dict(rows)
    else:
        names = {name for row in rows for name in row}
        given = {name: [row.get(name) for row in rows] for name in names}
    unknown = sorted(set(given) - set(schema.names))
    if unknown:
        raise ValueError(f"no such column: {', '.join(unknown)}")
    length = len(next(iter(given.values()))) if given else 0
    arrays = [
        _array(given[field.name], field.type) if field.name in given else pa.nulls(length, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _without_nan(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            column = table.column(index)
            isnan = pc.is_nan(column)
            if pc.any(isnan).as_py():
                column = pc.if_else(isnan, pa.scalar(None, field.type), column)
                table = table.set_column(index, field, column)
    return table


def _check_choices(table: pa.Table, schema: pa.Schema) -> None:
    for field in schema:
        choices = (field.metadata or {}).get(b"choices")
        if choices:
            allowed = choices.decode().split("|")
            found = {value for value in pc.unique(table.column(field.name)).to_pylist() if value is not None}
            if found - set(allowed):
                raise ValueError(f"{field.name}: {sorted(found - set(allowed))} is not one of {allowed}")


def _codes(table: pa.Table, key: Sequence[str]) -> list[np.ndarray]:
    """Per key column, integers [rows] in the order of its values; strings cost one pass, not a sort of rows."""
    codes = []
    for name in key:
        column = table.column(name)
        if pa.types.is_string(column.type):
            encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
            words = encoded.dictionary.to_pylist()
            rank = np.empty(len(words), np.int32)
            rank[sorted(range(len(words)), key=words.__getitem__)] = np.arange(len(words), dtype=np.int32)
            codes.append(rank[encoded.indices.to_numpy(zero_copy_only=False)] if words else np.empty(0, np.int32))
        else:
            values = column.combine_chunks()
            if pa.types.is_timestamp(column.type):
                values = values.cast(pa.int64())
            codes.append(values.to_numpy())
    return codes


def _strictly_sorted(codes: Sequence[np.ndarray]) -> tuple[bool, int]:
    """Whether rows rise strictly in lexicographic order, and the first row equal to its predecessor (or -1)."""
    size = len(codes[0])
    if size < 2:
        return True, -1
    equal = np.ones(size - 1, bool)
    rises = np.zeros(size - 1, bool)
    for code in codes:
        rises |= equal & (code[1:] > code[:-1])
        equal &= code[1:] == code[:-1]
    duplicate = int(np.argmax(equal)) + 1 if equal.any() else -1
    return bool(rises.all()), duplicate


def _sorted(table: pa.Table, key: Sequence[str]) -> pa.Table:
    for name in key:
        if table.column(name).null_count:
            raise ValueError(f"key column {name} holds a null")
    codes = _codes(table, key)
    if table.num_rows == 0 or _strictly_sorted(codes)[0]:
        return table
    order = np.lexsort(codes[::-1])
    codes = [code[order] for code in codes]
    duplicate = _strictly_sorted(codes)[1]
    table = table.take(pa.array(order)).combine_chunks()
    if duplicate >= 0:
        row = {name: table.column(name)[duplicate].as_py() for name in key}
        raise ValueError(f"key ({', '.join(key)}) is not unique: {row}")
    return table


def group_slices(table: pa.Table, names: Sequence[str]) -> list[tuple[tuple[Any, ...], slice]]:
    """Runs of equal values in a table that is sorted by ``names`` first.

    Returns:
        Per run, the values of ``names`` and the slice of rows, in the table's order.
    """
    if table.num_rows == 0:
        return []
    change = np.zeros(table.num_rows - 1, bool)
    for code in _codes(table, names):
        change |= code[1:] != code[:-1]
    starts = np.concatenate([[0], np.flatnonzero(change) + 1, [table.num_rows]])
    columns = [table.column(name) for name in names]
    return [
        (tuple(column[int(start)].as_py() for column in columns), slice(int(start), int(stop)))
        for start, stop in itertools.pairwise(starts)
    ]


def keep_last(rows: Sequence[Mapping[str, Any]], key: Sequence[str]) -> list[Mapping[str, Any]]:
    """Rows with the last one of each key only, in order of first appearance: repeats after a resume vanish."""
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        found[tuple(row.get(name) for name in key)] = row
    return list(found.values())


def _publish(temporary: Path, path: Path) -> None:
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_frame(rows: Rows, schema: pa.Schema, key: Sequence[str], path: Path) -> pa.Table:
    """Write a frame: NaN to null, checked, sorted by its key, to a temporary name and then renamed.

    Args:
        rows: Rows as mappings, columns by name, a DataFrame or a Table. Columns left out become null.
        schema: One of this module's schemas.
        key: Columns that identify a row, ``KEYS[frame]``.
        path: File to write; its folder is made.

    Returns:
        The table as written.

    Raises:
        ValueError: A column that the schema does not have, a value outside a column's choices, a null
            in the key, or a key that is not unique.
    """
    table = _without_nan(_table(rows, schema))
    _check_choices(table, schema)
    table = _sorted(table, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # Everything that shapes the bytes is pinned, so that equal frames are equal files.
        pq.write_table(
            table,
            temporary,
            version="2.6",
            data_page_version="1.0",
            compression="zstd",
            compression_level=3,
            use_dictionary=True,
            write_statistics=True,
            row_group_size=ROW_GROUP,
        )
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return table


def read_frame(path: Path, columns: Sequence[str] | None = None, **values: Any) -> pa.Table:
    """Read a frame, or some of its columns and rows.

    Args:
        path: File to read.
        columns: Columns wanted, in this order; None: all.
        **values: Keep the rows whose named columns hold these values, e.g. ``scenario="base"``. Rows are sorted, so
            the rest of the file is mostly skipped.

    Raises:
        UserError: The file is missing, is no Parquet, or was written under another schema version.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; a finished run has it, so finish the run with --resume")
    try:
        filters = [(name, "==", value) for name, value in values.items()] or None
        table = pq.read_table(path, columns=list(columns) if columns is not None else None, filters=filters)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read as a frame ({str(error).splitlines()[0]})") from error
    version = (table.schema.metadata or {}).get(b"pairpbt.schema", b"none").decode()
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema {version}; this version reads schema {SCHEMA_VERSION}")
    return table


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole: to a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
