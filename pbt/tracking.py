"""TensorBoard and Weights & Biases: the progress rows, written by the driver at every barrier."""

import os
from typing import Any

from pbt.decisions import Decision
from pbt.population import PairPopulation
from pbt.run_dir import RunDir, folder_name
from rayconf.run_config import RunConfig

_LABELS = {"run", "arm", "window", "pair", "member", "generation", "iteration", "env_steps", "host"}


class Tracking:
    """A listener that logs every member as a stream of its own, by the member's environment steps."""

    def __init__(self, run: RunConfig, directory: RunDir) -> None:
        self._run, self._directory = run, directory
        self._boards: dict[str, Any] = {}
        self._streams: dict[str, Any] = {}

    def __call__(self, event: str, population: PairPopulation, decisions: list[Decision] | None) -> None:
        """Log the rows of a barrier."""
        if event != "barrier":
            return
        for row in population.journaled:
            stream = f"{folder_name(row['pair'])}-{row['member']}"
            numbers = {
                name: value for name, value in row.items() if name not in _LABELS and isinstance(value, int | float)
            }
            if self._run.tracking.tensorboard:
                board = self._board(stream)
                for name, value in numbers.items():
                    board.add_scalar(name, value, row["env_steps"], walltime=row["wall_time"])
            if self._run.tracking.wandb != "off":
                self._wandb(stream).log({**numbers, "env_steps": row["env_steps"]})
        for board in self._boards.values():
            board.flush()

    def close(self) -> None:
        """Finish all streams."""
        for board in self._boards.values():
            board.close()
        for stream in self._streams.values():
            stream.finish()

    def _board(self, stream: str) -> Any:
        if stream not in self._boards:
            from torch.utils.tensorboard import SummaryWriter

            self._boards[stream] = SummaryWriter(str(self._directory.tensorboard / stream))
        return self._boards[stream]

    def _wandb(self, stream: str) -> Any:
        if stream not in self._streams:
            import wandb

            os.environ.setdefault("WANDB_SILENT", "true")
            self._streams[stream] = wandb.init(
                project=self._run.tracking.wandb_project,
                group=self._directory.name,
                name=stream,
                id=f"{self._directory.name}-{stream}",
                resume="allow",
                mode="online" if self._run.tracking.wandb == "online" else "offline",
                dir=str(self._directory.path),
                config=self._run.model_dump(mode="json"),
                reinit="create_new",
            )
        return self._streams[stream]
