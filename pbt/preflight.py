"""What is looked at before a run starts: the cluster's room and nodes, the plan, and what it will take."""

from collections.abc import Sequence
from pathlib import Path

from pbt.search import space_lines, space_title
from pbt.windows import Window, plan_lines, training_memory
from rayconf.doctor import ensure_nodes
from rayconf.nodes import bring_up_slots
from rayconf.plan import plan, wanted_slots
from rayconf.run_config import RunConfig
from rayconf.session import Machine, offered, start_ray

BRING_UP_SECONDS = 900
"""How long machines of a cluster may take to come."""


def fit_cluster(run: RunConfig, folder: str | Path, found: Machine) -> Machine:
    """What a cluster that Ray has joined offers, once there is room for one member; more may come while it trains.

    Every node is checked, with the folder of runs, which all of them must share.

    Raises:
        UserError: when no room comes, or a node is not fit to train.
    """
    with_room(run, found)
    print(f"cluster    {len(ensure_nodes(str(folder)))} nodes checked", flush=True)
    return offered()


def with_room(run: RunConfig, found: Machine) -> Machine:
    """What Ray offers, once there is room for one member."""
    if found.slots(run.resources) or not found.joined:
        return found
    wanted = wanted_slots(run.resources, len(run.leaders) * run.pbt.population)
    print(f"cluster    has no room for a member; asks for {wanted} slots and waits for the first", flush=True)
    bring_up_slots(run.resources, wanted, BRING_UP_SECONDS)
    return offered()


def describe(
    run: RunConfig,
    training: RunConfig,
    windows: Sequence[Window],
    machine: Machine | None,
    address: str | None,
    *,
    measured: bool,
) -> None:
    """Print plan, estimate, notes on the data and search space; nothing is written.

    Args:
        run: The run.
        training: The same, with the pairs alone that will be trained.
        windows: Its windows.
        machine: This machine; None: a cluster at ``address``, which is joined and asked.
        address: Where the cluster is.
        measured: Whether to train for some updates, in a Ray, for hours and cost.
    """
    estimate: Sequence[str] = ("time       add --measure to time a few updates, for hours and cost",)
    held = training_memory(training, windows)
    if machine is not None and not measured:
        planned = plan(training, machine, held)
    else:
        with start_ray(run.resources, address, held.store) as found:
            if measured:
                from pbt.estimate import estimate_lines, measure  # with RLlib, which takes seconds

                planned = plan(training, with_room(run, found), held)
                markets = [windows[-1].markets[pair] for pair in training.judges(training.leaders[0])]
                pace = measure(training, markets, planned.slots)
                estimate = estimate_lines(training, planned, pace)
            else:
                planned = plan(training, found, held)
    for line in (*planned.lines(), *estimate, *plan_lines(training, windows)):
        print(line)
    print(space_title(run))
    for line in space_lines(run):
        print(f"  {line}")
