"""A whole run by the command as the policies of a cell: its survivors, whose mean is the run's headline."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from algos.policy import EnsemblePolicy
from pbt.finished import FinishedRun
from rayconf.origins import HOME
from rayconf.run_config import RunConfig

NAME = "cell"


def headlines(run: RunConfig) -> tuple[dict[str, EnsemblePolicy], dict[str, float]]:
    """Train a run to its report in a folder that is deleted afterwards.

    Returns:
        The run's headline, the equal-weight ensemble of the survivors, by pair; its environment steps, over all
        members, and ``train_seconds``, ``construct_seconds`` and ``validate_seconds``, those of all processes.

    Raises:
        RuntimeError: The run failed, with its last line.
    """
    with tempfile.TemporaryDirectory(prefix="cell-") as place:
        folder = Path(place)
        config, log = folder / "config.yaml", folder / "output.txt"
        config.write_text(run.model_copy(update={"name": None}).to_yaml())
        command = [sys.executable, "-m", "pbt.launch", "--config", str(config), "--run-dir", place, "--name", NAME]
        with log.open("wb") as output:
            done = subprocess.run(command, cwd=HOME, stdout=output, stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {log.read_text(errors='replace').strip().splitlines()[-1:]}")
        finished = FinishedRun.open(folder / NAME)
        policies = {pair: EnsemblePolicy(list(finished.policies(pair).values())) for pair in finished.pairs}
        updates = pd.read_parquet(finished.directory.frame("progress"))
    steps = updates.env_steps / updates.iteration
    return policies, {
        "env_steps": int(steps.sum()),
        "train_seconds": float((steps / updates.steps_per_second).sum()),
        "construct_seconds": float(updates[["startup_seconds", "switch_seconds"]].sum().sum()),
        "validate_seconds": float(updates.evaluation_seconds.sum()),
    }
