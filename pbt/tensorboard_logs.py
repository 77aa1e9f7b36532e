"""TensorBoard: a folder per member with its curves and its entry in the HPARAMS tab.

Every progress row is one record of the event file, so a killed driver leaves whole rows and at most one torn record,
which readers pass over. What a folder holds is read back before more is written: no step comes twice.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pbt.run_dir import folder_name
from pbt.streams import Row, Stream, numbers

COMPARED = ("fitness", "fitness_smoothed", "val_sharpe")
"""Curves whose last values the HPARAMS tab shows beside the hyperparameters."""
_START, _END = "_hparams_/session_start_info", "_hparams_/session_end_info"


class TensorBoardLogs:
    """Event files under a folder, one stream each, by the member's own environment steps."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[Stream, _Log] = {}
        self._finished: set[Stream] = set()

    def log(self, stream: Stream, rows: Iterable[Row]) -> None:
        """Write the rows that the folder lacks, on disk when this returns."""
        self._log(stream).write(rows)

    def finish(self, stream: Stream) -> None:
        """Mark the session in the HPARAMS tab as ended and close the file."""
        if stream not in self._finished:
            self._log(stream).end()
            self._open.pop(stream).close()
            self._finished.add(stream)

    def close(self) -> None:
        """Close all files."""
        for log in self._open.values():
            log.close()
        self._open.clear()

    def _log(self, stream: Stream) -> "_Log":
        if stream not in self._open:
            self._open[stream] = _Log(self._folder / stream.name, stream)
        return self._open[stream]


class _Log:
    """The folder of one member."""

    def __init__(self, folder: Path, stream: Stream) -> None:
        self._folder, self._stream = folder, stream
        self._last, self._tags = _held(folder)
        self._writer: Any = None

    def write(self, rows: Iterable[Row]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        fresh = [row for row in rows if row["env_steps"] > self._last]
        for row in fresh:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(row).items()]
            self._opened().add_summary(Summary(value=values), row["env_steps"], walltime=row["wall_time"])
            self._last = row["env_steps"]
        if fresh:
            self._writer.flush()

    def end(self) -> None:
        if _END not in self._tags:
            self._opened().add_summary(self._session()[2])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _opened(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import FileWriter

            self._writer = FileWriter(str(self._folder))
            if _START not in self._tags:
                experiment, start, _ = self._session()
                self._writer.add_summary(experiment)
                self._writer.add_summary(start)
        return self._writer

    def _session(self) -> tuple[Any, Any, Any]:
        """Experiment, start and end of a session as the HPARAMS plugin takes them."""
        from torch.utils.tensorboard.summary import hparams

        stream = self._stream
        labels = {"pair": folder_name(stream.pair), "member": stream.member, "arm": stream.arm}
        found: tuple[Any, Any, Any] = hparams({**labels, **stream.hyperparameters}, dict.fromkeys(COMPARED, 0.0))
        return found


def _held(folder: Path) -> tuple[int, set[str]]:
    """The last step of the curves in a folder (-1: none) and all tags there."""
    files = sorted(folder.glob("events.out.tfevents.*"))
    last, tags = -1, set[str]()
    if files:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        for file in files:
            for event in EventFileLoader(str(file)).Load():
                found = {value.tag for value in event.summary.value}
                tags |= found
                if any(not tag.startswith("_hparams_/") for tag in found):
                    last = max(last, event.step)
    return last, tags
