"""``python -m rayconf.doctor``: is every node of a cluster fit to train? One line per node, then what to mend.

Asked of each node, the head included: versions of what all must share and the project's own code, CPUs, GPUs that torch
can use, free disk, shared memory, open files, the clock, whether the storage can be written, read and cleared and holds
what the other nodes wrote, and whether the data are the driver's. Exit status 0, or 2 when something is off.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rayconf import node_probe
from rayconf.errors import OneLineParser, UserError
from rayconf.nodes import NodeReport, bring_up, check_nodes

CLOCK_SECONDS = 2.0
OPEN_FILES = 4096
MIN_DISK_GB = 5.0
INSTALL = "install from constraints.txt there, or `ray up` again"


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = OneLineParser(prog="python -m rayconf.doctor", description=__doc__, allow_abbrev=False)
    parser.add_argument("--address", default="auto", metavar="ADDR", help="the cluster (default auto: the local one)")
    parser.add_argument("--storage", metavar="URI", help="where runs go: a path that all nodes share, s3://, gs://")
    parser.add_argument("--data-dir", metavar="DIR", help="the folder of prices that all nodes must have")
    parser.add_argument("--min-disk-gb", type=float, default=MIN_DISK_GB, metavar="N", help="default: 5")
    parser.add_argument(
        "--cpus", type=int, default=0, metavar="N", help="first bring workers up until there are N CPUs"
    )
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="and N GPUs")
    parser.add_argument("--wait", type=float, default=900.0, metavar="S", help="for them, seconds (default: 900)")
    parser.add_argument("--json", action="store_true", help="reports and problems as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    try:
        args = build_parser().parse_args(arguments)
        return _examine(args)
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _examine(args: argparse.Namespace) -> int:
    from rayconf.run_config import RunConfig
    from rayconf.session import start_ray

    with start_ray(RunConfig().resources, args.address):
        if args.cpus or args.gpus:
            bring_up(args.cpus, args.gpus, args.wait)
        reports = check_nodes(args.storage, args.data_dir)
    problems = complaints(reports, args.data_dir, args.min_disk_gb)
    if args.json:
        print(json.dumps({"nodes": [asdict(report) for report in reports], "problems": problems}, indent=2))
    else:
        for report in reports:
            print(report.line())
        if not any(report.cpus for report in reports):
            print("no worker is up, so none was asked; --cpus N brings them up first")
    for problem in problems:
        print(f"pairpbt: {problem}", file=sys.stderr)
    return 2 if problems else 0


def complaints(
    reports: Sequence[NodeReport], data_dir: str | None = None, min_disk_gb: float = MIN_DISK_GB
) -> list[str]:
    """What is off, one line each with the node and the fix; empty: every node is fit.

    Args:
        reports: Of every node.
        data_dir: The folder of prices that was asked about; a node whose files are not the driver's is off.
        min_disk_gb: Free disk in GB that a node must have.
    """
    ours, code = node_probe.versions(), node_probe.code_digest()
    data = _our_data(data_dir)
    found = []
    for report in reports:
        faults = [report.error] if report.error else _faults(report, ours, code, data, min_disk_gb)
        found += [f"{report.address} ({'head' if report.head else 'worker'}): {fault}" for fault in faults]
    return found


def _our_data(data_dir: str | None) -> str:
    if data_dir is None or "://" in data_dir:
        return ""
    try:
        return node_probe.data_digest(str(Path(data_dir).expanduser()))
    except OSError as error:
        raise UserError(f"--data-dir: cannot read {data_dir} here: {error.strerror}") from error


def _faults(report: NodeReport, ours: dict[str, str], code: str, data: str, min_disk_gb: float) -> list[str]:
    found = [
        f"{difference}; {INSTALL}" for difference in node_probe.differences(report.versions, report.code, ours, code)
    ]
    if report.gpus and report.cuda_devices < report.gpus:
        found.append(
            f"Ray offers {report.gpus:g} GPUs, torch {report.versions.get('torch')} finds {report.cuda_devices}; "
            "install torch without the CPU index in an image that ends in -gpu"
        )
    for where, free in (
        ("Ray's files", report.tmp_gb),
        ("the storage", None if report.storage_error else report.storage_gb),
    ):
        if free is not None and free < min_disk_gb:
            found.append(f"{free:.1f} GB free for {where}, under {min_disk_gb:g}; clear the disk or take a larger one")
    if report.shm_gb < report.object_store_gb:
        found.append(
            f"/dev/shm has {report.shm_gb:.1f} GB for an object store of {report.object_store_gb:.1f}; "
            "start the container with --shm-size"
        )
    if report.open_files < OPEN_FILES:
        found.append(f"a process may open {report.open_files} files; call `ulimit -n 65536` before `ray start`")
    if abs(report.clock_seconds) > CLOCK_SECONDS:
        found.append(f"its clock is off by {report.clock_seconds:+.1f} s; turn time synchronisation (NTP) on")
    if report.storage_error:
        found.append(f"storage: {report.storage_error}; let this node write there (mount, owner, instance profile)")
    if report.unseen:
        found.append(
            f"storage: does not see what {', '.join(report.unseen)} wrote; it is another folder of the same name: "
            "mount one for all"
        )
    if report.data_error:
        found.append(f"data: {report.data_error}; put the folder there, at the same path")
    elif data and report.data != data:
        found.append("data: other files than the driver's; copy the folder there again")
    return found


def ensure_nodes(
    storage: str | None = None, data_dir: str | None = None, min_disk_gb: float = MIN_DISK_GB
) -> list[NodeReport]:
    """Check every node before training starts; the reports.

    Raises:
        UserError: with the first thing that is off, its fix, and how many more there are.
    """
    reports = check_nodes(storage, data_dir)
    found = complaints(reports, data_dir, min_disk_gb)
    if found:
        more = f" ({len(found) - 1} more: python -m rayconf.doctor)" if len(found) > 1 else ""
        raise UserError(f"--address: {found[0]}{more}")
    return reports


if __name__ == "__main__":
    sys.exit(main())
