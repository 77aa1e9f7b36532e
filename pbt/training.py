"""Training the populations of a run under Ray Tune."""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback

from pbt.fleet import Fleet
from pbt.member import PairMember, ticket
from pbt.population import PairPopulation
from pbt.run_dir import RunDir, folder_name
from pbt.scheduler import KeepActors, Listener, PairPBT, Revival
from pbt.watchdog import Watchdog
from rayconf import node_probe
from rayconf.remote_storage import RemoteStorage
from rayconf.run_config import RunConfig
from rayconf.session import check_signals

# Loggers and progress are ours; one result at a time keeps barriers exact; Tune's own state is never restored, so it
# need not be written often. Pending trials beyond the slots would take actors from one another.
TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def train(
    run: RunConfig,
    directory: RunDir,
    markets: Mapping[str, ray.ObjectRef],
    populations: Mapping[str, PairPopulation],
    slots: int,
    listeners: Sequence[Listener],
    training: Mapping[str, ray.ObjectRef] | None = None,
    trainable: type[tune.Trainable] | None = None,
    *,
    elastic: bool = False,
) -> None:
    """Train every population to its last generation.

    Args:
        run: The run.
        directory: Where states and journals go.
        markets: Markets in the object store, by pair.
        populations: Committed populations; complete ones are left alone.
        slots: Actors that train side by side, to begin with.
        listeners: Told of results, failures and barriers.
        training: What policies train on in the object store, by pair, where that is not in the market.
        trainable: What trains a ticket's generation; default: ``PairMember``.
        elastic: Whether Ray is a cluster whose nodes may come and go: slots follow them, and more are asked for.

    Raises:
        DiskFullError: The run's disk is full.
        DamagedRunError: States of a pair's last two commits are damaged.
        UnfitNodeError: A node that came later has other versions or sources than the driver.
        RuntimeError: Every member of a pair was lost.
    """
    tickets = [
        ticket(
            run,
            directory.storage.place,
            pair,
            name,
            population.generation,
            member.hyperparameters,
            member.state,
            member.frozen,
        )["ticket"]
        for pair, population in populations.items()
        if not population.complete
        for name, member in population.committed.members.items()
    ]
    if not tickets:
        return
    os.environ.update(TUNE_SETTINGS, TUNE_MAX_PENDING_TRIALS_PG=str(slots))
    _keep_off_the_terminal()
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
    scheduler = PairPBT(run, directory.storage.place, populations, slots)
    extra: dict[str, Any] = {"training": dict(training)} if training else {}
    if elastic:
        extra["standard"] = (node_probe.versions(), node_probe.code_digest())
    kind = tune.with_parameters(trainable or PairMember, markets=dict(markets), **extra)
    fleet = Fleet(run, directory, scheduler, elastic)
    kind.__qualname__ = kind.__name__  # which is what Ray's dashboard and metrics call the actors
    attempts = directory.storage.within("tune")
    attempt = 1 + len({name.partition("/")[0] for name in attempts.names()})
    tuner = tune.Tuner(
        kind,
        param_space={"ticket": tune.grid_search(tickets)},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=KeepActors(scheduler.free),
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{attempt}",
            storage_path=attempts.path if isinstance(attempts, RemoteStorage) else attempts.place,
            storage_filesystem=attempts.system if isinstance(attempts, RemoteStorage) else None,
            verbose=0,
            callbacks=[Signals(), Revival(scheduler), Watchdog(run, scheduler), fleet, NoProgress()],
            failure_config=tune.FailureConfig(max_failures=-1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    scheduler.listeners.extend(listeners)
    try:
        results = tuner.fit()
    except Exception as error:
        raise scheduler.fatal or error from None  # Tune knows its own wrapping only
    finally:
        fleet.close()
    check_signals()
    unfinished = [pair for pair, population in scheduler.populations.items() if not population.complete]
    if unfinished or len(results) != len(tickets):
        raise RuntimeError(f"training ended before {', '.join(unfinished) or 'all members'} finished")


def _keep_off_the_terminal() -> None:
    """Ray's log goes where ours goes: Tune shows the traceback of every failure, also of those that are retried."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    log = logging.getLogger("ray")
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.propagate = True


class Signals(Callback):
    """Ends training at the next turn of Tune's loop if what a signal raised was lost."""

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look for a signal."""
        check_signals()


class NoProgress(TrialProgressCallback):
    """Stands where Tune would put a callback that prints a line per trial: progress is ours to show."""

    def _print(self, *args: Any, **kwargs: Any) -> None:
        return


def _trial_name(trial: Trial) -> str:
    place = trial.config["ticket"]
    return f"{folder_name(place['pair'])}-{place['member']}"
