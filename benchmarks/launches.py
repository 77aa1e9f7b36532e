"""Whole runs through the command, measured from outside: steps per second of all slots, and peak memory."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import psutil

from benchmarks.scaling_worker import peak_mb
from rayconf.origins import HOME

POLL_SECONDS = 0.5
NAME = "measured"


def measure_launch(assignments: Sequence[str]) -> dict[str, float]:
    """Run the preset ``smoke`` with these settings to its report.

    Returns:
        ``population``, steps per second of all slots together; ``driver_mb`` and ``slot_mb``, the peak resident
        memory of the driver and of the largest slot, pages shared with others counted; ``slots``.

    Raises:
        RuntimeError: The run failed, with its last line.
    """
    updates, peaks, driver = launched(assignments)
    slots = updates.actor_pid.unique()
    return {
        "population": population_speed(updates),
        "driver_mb": peaks[driver],
        "slot_mb": max(peaks[int(pid)] for pid in slots),
        "slots": len(slots),
    }


def launched(
    assignments: Sequence[str], *arguments: str, preset: str = "smoke", report: bool = True
) -> tuple[pd.DataFrame, dict[int, float], int]:
    """Run a preset with these settings and arguments, in a folder that is deleted afterwards.

    Args:
        assignments: Settings.
        arguments: Further arguments.
        preset: The preset.
        report: To its report; else the run is ended as soon as it has trained.

    Returns:
        Its frame ``progress``; peak resident memory in MB by process id; the process id of the driver.

    Raises:
        RuntimeError: The run failed, with its last line.
    """
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        command = [sys.executable, "-m", "pbt.launch", "--preset", preset, "--run-dir", folder, "--name", NAME]
        command += [*arguments, *(part for setting in assignments for part in ("--set", setting))]
        log, frame = Path(folder) / "output.txt", Path(folder) / NAME / "frames" / "progress.parquet"
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=HOME, stdout=output, stderr=subprocess.STDOUT)
            try:
                peaks = watch(process, None if report else frame)
            finally:
                process.terminate()  # the command ends its Ray; without effect once it has finished
                process.wait()
        if process.returncode and (report or not frame.is_file()):
            raise RuntimeError(f"{' '.join(command)}: {log.read_text(errors='replace').strip().splitlines()[-1:]}")
        return pd.read_parquet(frame), peaks, process.pid


def watch(process: subprocess.Popen[bytes], until: Path | None = None) -> dict[int, float]:
    """Peak resident memory in MB of a process and its descendants, by process id, until it ends or a file is there."""
    peaks: dict[int, float] = {}
    root = psutil.Process(process.pid)
    while process.poll() is None and not (until is not None and until.is_file()):
        try:
            pids = [root.pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.NoSuchProcess:
            break
        for pid in pids:
            try:
                peaks[pid] = max(peaks.get(pid, 0.0), peak_mb(pid))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
        time.sleep(POLL_SECONDS)
    return peaks


def population_speed(updates: pd.DataFrame) -> float:
    """Steps per second of all slots together, from when each has made its first update to the end of the last.

    Start-up is left out; evaluation, barriers, exploits and idle slots count. An update under way at the beginning
    counts by the share of its time that lies after it.

    Args:
        updates: The frame ``progress`` of a run.
    """
    steps = updates.env_steps / updates.iteration
    end = updates.wall_time
    seconds = steps / updates.steps_per_second
    since, until = end.groupby(updates.actor_pid).min().max(), end.max()
    inside = ((end - since) / seconds).clip(0, 1)
    return float((steps * inside).sum() / (until - since))
