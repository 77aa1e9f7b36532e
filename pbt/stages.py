"""The stages before populations: pre-training the market encoder, and its specialists by pair.

Each stage is skipped where its outcome lies in the run's directory; one that was killed begins anew, and comes to the
same weights, because nothing but the config and the key decides them.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from rich.console import Console

from algos.pretraining import Epoch, Fit, Pretrained, places
from analysis.frames import append_jsonl
from envs.market import PairMarket
from envs.training_bars import TrainingBars
from envs.universe import joined
from pbt.base import BASE
from pbt.encoder_base import (
    JOURNAL,
    SPECIALIST,
    Checkpoint,
    check_names,
    read_checkpoint,
    write_checkpoint,
)
from pbt.manifest import Member
from pbt.run_dir import RunDir, folder_name, member_name
from pbt.search import initial_values
from pbt.stage_report import write_report
from pbt.store import StateStore
from pbt.streams import Stream
from pbt.tracking import Tracking
from pbt.windows import Window
from rayconf.errors import UserError
from rayconf.keys import derive_key
from rayconf.run_config import RunConfig

Row = dict[str, Any]


def run_stages(window: Window, console: Console) -> None:
    """Do the stages before ``population`` that are not done. Ray is up.

    Raises:
        UserError: Too few bars, or a checkpoint that does not fit.
    """
    run, directory = window.run, window.directory
    if not run.stages.pretrain or all(directory.manifest(pair).is_file() for pair in run.leaders):
        return
    base = _base_stage(window, console)
    for pair, market in window.markets.items():
        check_names(market.scaler.names, base.features, f"the base of {pair}'s encoder, {directory.base}")
        opens = None if market.training is None else market.training.opens
        if opens is not None and base.fit.trained_to >= opens:
            last, first = (np.datetime_as_string(date, unit="D") for date in (base.fit.trained_to, opens))
            raise UserError(f"stages.share: populations open at {first}, and {run.stages.base} was trained to {last}")
    if "specialists" in run.stages.run:
        _specialists(window, base, console)
    write_report(directory, run, base)
    directory.push()


def pretrained_members(run: RunConfig, directory: RunDir, market: PairMarket) -> dict[str, Member]:
    """The members of a pair as they start from its encoder, all else from weights of their own. Ray is up."""
    from algos.bar_network import BarActorCritic
    from algos.config import PairPPOConfig
    from pbt.generation import initial_key, untrained_state

    checkpoint, origin = encoder_of(run, directory, market.pair)
    start = {
        f"module/{place}": tensor
        for name, tensor in checkpoint.fit.weights.items()
        if name.startswith("encoder.")
        for place in places(run.network.encoder, name, run.network.encoder_sharing)
    }
    template, store, members = untrained_state(run, market, member_name(0)), StateStore(directory.storage), {}
    account = template["module/pi.account.weight"].shape[1]
    spaces = [gym.spaces.Box(-np.inf, np.inf, (count,), np.float32) for count in (1 + account, 2)]
    for index in range(run.pbt.population):
        name = member_name(index)
        spec = PairPPOConfig.from_run(run, market.pair, key=initial_key(run, market.pair, name))
        module = BarActorCritic(
            observation_space=spaces[0],
            action_space=spaces[1],
            model_config=spec.get_default_rl_module_spec().model_config,
        )
        own = {f"module/{key}": p.detach().clone() for key, p in module.named_parameters()}
        members[name] = Member(
            store.save({**template, **own, **start}), initial_values(run, market.pair, index), origin
        )
    return members


def encoder_of(run: RunConfig, directory: RunDir, pair: str) -> tuple[Checkpoint, str]:
    """The encoder that a pair's population starts from, and whose it is: its specialist's where that was kept.

    Raises:
        UserError: It cannot be read.
    """
    if "specialists" in run.stages.run:
        special = read_checkpoint(directory.base / folder_name(pair), SPECIALIST)
        if special.about["kept"]:
            return special, "specialist"
    return read_checkpoint(directory.base), BASE


def _base_stage(window: Window, console: Console) -> Checkpoint:
    run, directory = window.run, window.directory
    told = f"window {window.number}  " if window.number else ""
    try:
        base = read_checkpoint(directory.base)
    except UserError:
        if run.stages.base_digest is not None:  # came with the run: nothing here can make it again
            raise
    else:
        console.print(f"{told}base       done, loss {_ratio(base.fit)}", highlight=False, soft_wrap=True)
        return base
    if "base" not in run.stages.run:
        raise UserError(f"{directory.base}: holds no base to make specialists from")
    bars = _bars(window)
    key = derive_key(run.seed, BASE, "train")
    stream = Stream(BASE, "encoder", BASE, window.number)
    journal = directory.base / JOURNAL
    journal.unlink(missing_ok=True)
    tracking = Tracking(run, directory)
    fit = None
    try:
        for found in _results(ray.put(bars), run, key, None):
            if isinstance(found, Epoch):
                row = _row(directory, stream, found)
                append_jsonl(journal, [row])
                tracking.log(stream, [row])
                _tell(console, f"{told}base", found, run.stages.epochs)
            else:
                fit = found
        assert fit is not None, "a fit ends in its outcome"
        tracking.log(stream, [], complete=True)
    finally:
        tracking.close()
    scalers = dict(zip(bars.pairs, bars.scalers, strict=True))
    scalers |= {pair: market.scaler for pair, market in window.markets.items()}
    write_checkpoint(directory.base, fit, run, scalers)
    write_report(directory, run, read_checkpoint(directory.base))
    directory.push()
    return read_checkpoint(directory.base)


def _specialists(window: Window, base: Checkpoint, console: Console) -> None:
    """Fine-tune the base on every pair that has no specialist yet, side by side."""
    run, directory = window.run, window.directory
    todo = []
    for pair in window.markets:
        try:
            read_checkpoint(directory.base / folder_name(pair), SPECIALIST)
        except UserError:
            todo.append(pair)
    if not todo:
        return
    given, tasks = ray.put(base.fit), {}
    for pair in todo:
        (directory.base / folder_name(pair) / JOURNAL).unlink(missing_ok=True)
        bars = _opened(joined([window.markets[pair]], run), window.markets[pair])
        tasks[pair] = _results(ray.put(bars), run, derive_key(run.seed, pair, "specialist"), given)
    tracking = Tracking(run, directory)
    try:
        for pair, results in tasks.items():
            _specialist(window, pair, results, tracking, console)
    finally:
        tracking.close()


def _specialist(
    window: Window, pair: str, results: Iterator[Epoch | Pretrained], tracking: Tracking, console: Console
) -> None:
    run, directory = window.run, window.directory
    folder, stream = directory.base / folder_name(pair), Stream(pair, "specialist", BASE, window.number)
    fit = None
    for found in results:
        if isinstance(found, Epoch):
            row = _row(directory, stream, found)
            append_jsonl(folder / JOURNAL, [row])
            tracking.log(stream, [row])
        else:
            fit = found
    assert fit is not None, "a fit ends in its outcome"
    tracking.log(stream, [], complete=True)
    kept = bool(fit.gain > fit.gain_se)
    scalers = {pair: window.markets[pair].scaler}
    write_checkpoint(folder, fit, run, scalers, SPECIALIST, kept=kept)
    directory.push()
    told = "kept" if kept else "not kept, the base's encoder stays"
    line = f"specialist {pair}  loss {_ratio(fit)}  gain {fit.gain:+.5f} (se {fit.gain_se:.5f})  {told}"
    console.print(line, highlight=False, soft_wrap=True)


def _bars(window: Window) -> TrainingBars:
    """What the base trains on: the universe where the run has one, else the training spans of its pairs."""
    run, markets = window.run, list(window.markets.values())
    if run.universe.given:
        assert markets[0].training is not None
        return markets[0].training
    return _opened(joined(markets, run), markets[0])


def _opened(bars: TrainingBars, market: PairMarket) -> TrainingBars:
    """The bars, of which those are the policies' that are so in the market."""
    return bars if market.training is None else replace(bars, opens=market.training.opens)


def _results(bars: ray.ObjectRef, run: RunConfig, key: int, base: ray.ObjectRef | None) -> Iterator[Epoch | Pretrained]:
    """What a fit in a task of its own tells, epoch by epoch, and then its outcome; the task has begun."""
    resources = run.resources
    task = ray.remote(num_cpus=resources.cpus_per_member, num_gpus=resources.gpus_per_member)(_fit)
    told = task.remote(bars, run.model_dump_json(), key, base)
    return _each(told)


def _each(told: Any) -> Iterator[Epoch | Pretrained]:
    try:
        for reference in told:
            yield ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _fit(bars: TrainingBars, run: str, key: int, base: Pretrained | None) -> Iterator[Epoch | Pretrained]:
    """The task."""
    config = RunConfig.model_validate_json(run)
    torch.set_num_threads(config.resources.torch_threads)
    device = "cuda" if config.resources.gpus_per_member else "cpu"
    fit = Fit(bars, config, key, base, device)
    yield from fit.epochs()
    yield fit.outcome()


def _row(directory: RunDir, stream: Stream, epoch: Epoch) -> Row:
    """An epoch as a row of the journal, named as trackers read rows."""
    return {
        "run": directory.identity,
        "window": stream.window,
        "pair": stream.pair,
        "member": stream.member,
        "arm": stream.arm,
        "generation": 0,
        "iteration": epoch.number,
        "env_steps": epoch.bars_read,
        "fit_loss": epoch.fit_loss,
        "loss": epoch.loss,
        "naive_loss": epoch.naive_loss,
        "skill": epoch.skill,
        "train_seconds": epoch.seconds,
        "wall_time": time.time(),
    }


def _tell(console: Console, who: str, epoch: Epoch, most: int) -> None:
    line = f"{who:10} epoch {epoch.number}/{most}  loss {epoch.loss:.5f}  naive {epoch.naive_loss:.5f}"
    console.print(f"{line}  skill {epoch.skill:+.4f}", highlight=False, soft_wrap=True)


def _ratio(fit: Pretrained) -> str:
    return f"{fit.best.loss:.5f} against {fit.best.naive_loss:.5f} of the naive forecast"
