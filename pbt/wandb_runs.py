"""Weights & Biases: a run per member and one for the results, each under an id that a resume finds again.

Offline, W&B keeps rows in memory until a run ends, so a killed driver leaves a log without its last rows; and where two
logs of one id are uploaded, the later replaces the earlier. So a run that is opened again offline is written anew and
whole, from the run's own journal, and the logs before it go. Online the server says which steps it holds.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis.frames import part_of, read_frame, write_text
from analysis.metrics import METRICS
from analysis.summary import headline_window
from pbt.run_dir import RunDir, folder_name
from pbt.streams import Row, Stream, Streams, numbers
from rayconf.run_config import RunConfig

INIT_SECONDS = 30.0
"""How long the server may take to answer before the run goes on offline."""
UPLOAD_SECONDS = 60.0
"""How long a finished run may take to upload what is left."""
COMPLETE = "complete.json"
"""File in W&B's folder of a member that is logged to its end."""

log = logging.getLogger("pbt")


def run_id(directory: RunDir, *parts: str) -> str:
    """An id of letters, digits, ``.``, ``_`` and ``-``, at most 128 long, equal for equal run, directory and parts."""
    parts = (directory.name, *parts)
    digest = hashlib.blake2b("\n".join((directory.identity, *parts)).encode(), digest_size=6).hexdigest()
    return f"{_plain('-'.join(parts))[:100]}-{digest}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)


def missing_login() -> str | None:
    """Why W&B would not log in, without asking the server; None: there is a login."""
    os.environ.setdefault("WANDB_SILENT", "true")
    from wandb.errors import AuthenticationError
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    host = wandb_setup.singleton().settings.base_url
    try:
        found = wbauth.authenticate_session(host=host, source="pairpbt", prompt=False, update_session=False)
    except AuthenticationError as error:
        return " ".join(str(error).split())
    return None if found else "no login found"


class WandbRuns:
    """A tracker.

    Args:
        run: The run, whose ``tracking.wandb`` is online or offline.
        directory: Where W&B's own files go, below ``wandb``.
        streams: The run's members.
        tell: Takes a line for the user.
    """

    name = "wandb"

    def __init__(self, run: RunConfig, directory: RunDir, streams: Streams, tell: Callable[[str], None]) -> None:
        self._run, self._directory, self._streams, self._tell = run, directory, streams, tell
        self._path = directory.path.resolve() / "wandb"
        self._online = run.tracking.wandb == "online"
        self._open: dict[Stream, Any] = {}
        self._last: dict[Stream, int] = {}
        self._late = False
        if self._online and (reason := missing_login()):
            self._online = False
            self._tell_offline(reason)

    def log(self, stream: Stream, rows: Iterable[Row]) -> None:
        """Log the rows that the member's run lacks, by iteration; open the run where it is not."""
        rows = list(rows)
        if stream not in self._last:
            self._last[stream] = self._complete(stream)
        if stream not in self._open and any(row["iteration"] > self._last[stream] for row in rows):
            try:
                self._begin(stream)
            except Exception as error:
                if not self._online:
                    raise
                self._fall_back(error)
                for known, committed in self._streams.so_far().items():
                    if known in self._last:
                        self.log(known, committed)
                return
        for row in rows:
            if row["iteration"] > self._last[stream]:
                values = {**numbers(row), "env_steps": row["env_steps"], "generation": row["generation"]}
                self._open[stream].log(values, step=row["iteration"], commit=True)
                self._last[stream] = row["iteration"]

    def finish(self, stream: Stream) -> None:
        """End the member's run."""
        if stream in self._open:
            run = self._open.pop(stream)
            try:
                run.finish()
            except TimeoutError:
                self._tell_late()
                return
            write_text(Path(run.dir).parent / COMPLETE, json.dumps({"iteration": self._last[stream]}) + "\n")

    def close(self) -> None:
        """End runs that are left as failed, and W&B's own process."""
        import wandb

        self._open.clear()
        wandb.teardown(exit_code=1)

    def results(self, verdicts: Mapping[str, str]) -> None:
        """A run with the headline's metrics, the survivors and the frames; W&B's own process ends.

        Args:
            verdicts: The plain sentence of the final table by pair.
        """
        import wandb

        identity = run_id(self._directory, "results")
        title = f"{self._directory.name}-results"
        try:
            run = self._init(identity, title, "results", {})
        except Exception as error:
            if not self._online:
                raise
            self._fall_back(error)
            run = self._init(identity, title, "results", {})
        run.summary.update(self._headline(verdicts))
        metadata = {"run": self._directory.name, "identity": self._directory.identity, "verdicts": dict(verdicts)}
        with self._staging():
            for name, kind in (("survivors", "model"), ("frames", "dataset")):
                artifact = wandb.Artifact(f"{_plain(self._directory.name)}-{name}", type=kind, metadata=metadata)
                artifact.add_dir(str(self._directory.path / name), name=name, skip_cache=True)
                for file in (self._directory.config, self._directory.summary_csv, self._directory.report):
                    if kind == "dataset" and file.is_file():
                        artifact.add_file(str(file), skip_cache=True)
                run.log_artifact(artifact)
        try:
            run.finish()
        except TimeoutError:
            self._tell_late()
        else:
            if self._online:
                shutil.rmtree(self._path / "data", ignore_errors=True)
        wandb.teardown()

    def _begin(self, stream: Stream) -> None:
        labels = {"pair": stream.pair, "member": stream.member, "arm": stream.arm}
        if stream.window:
            labels["window"] = str(stream.window)
        config = {**labels, "hyperparameters": dict(stream.hyperparameters)}
        run = self._init(self._id(stream), stream.name, "member", config)
        run.define_metric("env_steps", hidden=True)
        run.define_metric("*", step_metric="env_steps")
        self._open[stream] = run
        self._last[stream] = run.starting_step - 1 if self._online else -1

    def _init(self, identity: str, title: str, job: str, config: Mapping[str, Any]) -> Any:
        """W&B's run; offline a new log, and logs that it stands for are removed."""
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        before = self._logs(identity)
        if not self._online:
            for folder in before:
                shutil.rmtree(folder)
        tracking = self._run.tracking
        run = wandb.init(
            project=tracking.wandb_project or "pairpbt",
            entity=tracking.wandb_entity,
            group=tracking.wandb_group or self._directory.name,
            tags=list(tracking.wandb_tags or ()),
            name=title,
            id=identity,
            job_type=job,
            resume="allow" if self._online else None,
            mode="online" if self._online else "offline",
            dir=str(self._path.parent),
            config={
                **self._run.model_dump(mode="json", exclude={"name"}),
                "run": self._directory.name,
                "identity": self._directory.identity,
                **config,
            },
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                init_timeout=INIT_SECONDS,
                finish_timeout=UPLOAD_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        if self._online:  # uploaded later, they would replace what the server holds
            for folder in before:
                if folder.name.startswith("offline-"):
                    shutil.rmtree(folder)
        return run

    def _fall_back(self, error: Exception) -> None:
        """Offline from here on, with all rows since the start; a new service, for the old one holds the ids."""
        import wandb

        log.warning("wandb failed online", exc_info=error)
        self._online = False
        self._open.clear()
        wandb.teardown(exit_code=1)
        reason = " ".join(str(error).split()) or type(error).__name__
        self._tell_offline(reason)
        self._last = {stream: self._complete(stream) for stream in self._last}

    def _tell_offline(self, reason: str) -> None:
        folder = self._directory.path / "wandb"
        self._tell(f"wandb: {reason}, logging offline to {folder}; upload with wandb sync {folder}/offline-run-*")

    def _tell_late(self) -> None:
        if not self._late:
            folder = self._directory.path / "wandb"
            self._tell(f"wandb: not all was uploaded within {UPLOAD_SECONDS:g} s; go on with wandb sync {folder}/run-*")
        self._late = True

    def _id(self, stream: Stream) -> str:
        return run_id(self._directory, *stream.parts)

    def _logs(self, identity: str) -> list[Path]:
        """Folders of W&B's logs of a run, of any session."""
        name = re.compile(rf"(offline-)?run-\d{{8}}_\d{{6}}-{re.escape(identity)}")
        return sorted(path for path in self._path.glob(f"*run-*-{identity}") if name.fullmatch(path.name))

    def _complete(self, stream: Stream) -> int:
        """The last iteration of a member whose run was logged to its end; else -1."""
        marks = [folder / COMPLETE for folder in self._logs(self._id(stream))]
        return max((json.loads(mark.read_text())["iteration"] for mark in marks if mark.is_file()), default=-1)

    def _headline(self, verdicts: Mapping[str, str]) -> dict[str, Any]:
        summary = read_frame(self._directory.frame("summary"))
        rows = part_of(summary, window=headline_window(summary), split="test", scenario="base", policy="ensemble")
        found: dict[str, Any] = {f"{folder_name(pair)}/verdict": sentence for pair, sentence in verdicts.items()}
        for row in rows.to_pylist():
            found |= {f"{folder_name(row['pair'])}/{name}": row[name] for name in METRICS if row[name] is not None}
        return found

    @contextlib.contextmanager
    def _staging(self) -> Iterator[None]:
        """W&B copies an artifact's files before it uploads them: into the run, unless WANDB_DATA_DIR says where."""
        if "WANDB_DATA_DIR" in os.environ:
            yield
            return
        folder = self._path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        os.environ["WANDB_DATA_DIR"] = str(folder)
        try:
            yield
        finally:
            del os.environ["WANDB_DATA_DIR"]
