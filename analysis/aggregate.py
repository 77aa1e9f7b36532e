"""``python -m analysis.aggregate RUNS_DIR -o results`` puts all complete runs below a folder side by side.

Into the output folder go ``aggregate.csv`` and ``.parquet`` (the table of the original log: run, pair, days and three
returns of the headline), ``summary.csv`` and ``.parquet`` (all summary rows of all runs) and ``comparison.html``.
A run is named by its directory, since two directories may hold the same computation. Runs are only read.
"""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.collection import LOG_COLUMNS, FinishedRun, collect, is_run
from analysis.columns import KEYS
from analysis.comparison_page import comparison_html
from analysis.frames import schema_of, write_frame, write_text
from rayconf.errors import OneLineParser, UserError
from rayconf.origins import check_origins

RUN_FIELD = pa.field("run", pa.string(), metadata={"meaning": "Directory of the run, below the folder aggregated."})
IDENTITY_FIELD = pa.field(
    "identity", pa.string(), metadata={"meaning": "What the run computed: its seed and a digest of its config."}
)
SEED_FIELD = pa.field("seed", pa.int64(), metadata={"meaning": "Seed of the run."})


def log_table(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """The original log's table: a row per run and pair, the headline on test under the run's own terms."""
    return [
        {**{name: row[name] for name in LOG_COLUMNS}, "run": run.name}
        for run in sorted(runs, key=lambda run: run.name)
        for row in run.headline().values()
    ]


def full_table(runs: Sequence[FinishedRun]) -> pa.Table:
    """All summary rows of all runs: ``run`` (the directory), ``identity``, ``seed``, then the summary's columns.

    A column that only some runs have, since another version wrote them, is null for the others.
    """
    parts = []
    for run in runs:
        table = run.summary.drop_columns(["run"]).replace_schema_metadata(None)
        for field, value in ((SEED_FIELD, run.seed), (IDENTITY_FIELD, run.identity), (RUN_FIELD, run.name)):
            table = table.add_column(0, field, pa.repeat(pa.scalar(value, field.type), table.num_rows))
        parts.append(table)
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise UserError(f"the summary frames do not fit together ({str(error).splitlines()[0]})") from error


def _stored(schema: pa.Schema) -> pa.Schema:
    """The schema as it is written: units and meanings stay; choices go, for a later version may know others."""
    fields = []
    for field in schema:
        told = {name: value for name, value in (field.metadata or {}).items() if name != b"choices"}
        fields.append(pa.field(field.name, field.type, metadata=told))
    return pa.schema(fields, metadata={"pairpbt.schema": "1"})


def csv_text(table: pa.Table) -> str:
    """A table as CSV: a header, every digit of every number, null as an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(["" if value is None else value for value in row.values()] for row in table.to_pylist())
    return stream.getvalue()


def check_output(output: Path, folder: Path) -> None:
    """Refuse an output folder that is a file, or that is a run or lies in one, whose files it would replace."""
    target = output.resolve()
    nearest = next(path for path in (target, *target.parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"-o: {nearest} is a file; give a folder")
    for path in (target, *target.parents):
        if is_run(path):
            raise UserError(f"-o: {output} is or lies in the run {path.name}; give a folder of its own, e.g. results")
    if target == folder.resolve():
        raise UserError(f"-o: {output} is the folder of the runs; give a folder of its own, e.g. results")


def aggregate(folder: Path, output: Path, reference: str | None = None) -> tuple[list[FinishedRun], dict[str, str]]:
    """Aggregate the runs below ``folder`` into ``output``.

    Args:
        folder: Folder of the runs.
        output: Folder to write to; it is made, and files of earlier calls in it are replaced.
        reference: Name of the run whose configuration the others are compared with; None: the first by name.

    Returns:
        The runs aggregated, and why each of the others is left out.

    Raises:
        UserError: No complete run, no such reference, or an output folder that cannot be written to.
    """
    check_output(output, folder)
    runs, left_out = collect(folder)
    if reference is not None and reference not in {run.name for run in runs}:
        raise UserError(
            f"--reference: {reference!r} is none of the runs; choose from {', '.join(r.name for r in runs)}"
        )
    full = full_table(runs)
    fields = [RUN_FIELD, *[schema_of("summary").field(name) for name in LOG_COLUMNS[1:]]]
    page = comparison_html(folder.resolve().name, runs, left_out, reference)
    try:
        log = write_frame(log_table(runs), _stored(pa.schema(fields)), ("run", "pair"), output / "aggregate.parquet")
        write_text(output / "aggregate.csv", csv_text(log))
        full = write_frame(full, _stored(full.schema), ("run", *KEYS["summary"]), output / "summary.parquet")
        write_text(output / "summary.csv", csv_text(full))
        write_text(output / "comparison.html", page)
    except OSError as error:
        raise UserError(f"-o: cannot write to {output}: {error.strerror or error}") from error
    return runs, left_out


def main(argv: Sequence[str] | None = None) -> int:
    """Aggregate runs; 0 with the paths written, 2 and one line on a user's mistake."""
    parser = OneLineParser(prog="python -m analysis.aggregate", description="Put all complete runs side by side.")
    parser.add_argument("folder", metavar="RUNS_DIR", type=Path, help="folder that holds runs, e.g. runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("results"), help="folder to write to (results)")
    parser.add_argument(
        "--reference", metavar="RUN", help="compare the other configurations with this run's (default: the first run's)"
    )
    try:
        check_origins()
        arguments = parser.parse_args(argv)
        runs, left_out = aggregate(arguments.folder, arguments.output, arguments.reference)
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return 2
    for name, reason in left_out.items():
        print(f"left out {name}: {reason}")
    print(f"aggregated {len(runs)} {'run' if len(runs) == 1 else 'runs'}")
    for name in ("aggregate.csv", "summary.csv", "comparison.html"):
        print(f"wrote {arguments.output / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
