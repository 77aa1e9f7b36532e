"""Eager PyTorch against ``torch.compile`` and CUDA graphs, for one rollout step and one gradient step.

The eager arms run the product's code: actor, environment and ledger; forward pass, loss, backward pass, clipping,
optimizer and averaged weights. The others run the same code recorded. Each arm starts from the same state, and its
results are compared with the eager ones. A recorded gradient step keeps the learning rate it was recorded with, which
is why the product does not record its own: there the rate changes from step to step.

On a CPU nothing is recorded and ``torch.compile`` only traces: the arms are then a test of this file.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Protocol

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from torch import Tensor

from algos.config import PairPPOConfig
from algos.env_runner import BatchedEnvRunner
from algos.pair_ppo import PairPPO
from benchmarks.arena import PAIR
from envs.batched import BatchedPairTrading
from envs.ledger import Account
from rayconf.run_config import RunConfig

KEY = 5
WARM_UP = 3
"""Calls before recording, as CUDA graphs ask for."""
GRADIENT_STEPS = 16
ACCOUNT = tuple(field.name for field in fields(Account))


class Step(Protocol):
    """One step over tensors that stay where they are, so that it can be recorded."""

    def restore(self) -> None:
        """Go back to the state that all arms start from."""

    def launch(self) -> None:
        """Take the step."""

    def results(self) -> list[Tensor]:
        """What the steps taken have led to."""


class RolloutStep:
    """Actor, noise and one bar of the environment; the environment's state is copied back into its place.

    Args:
        runner: A runner whose environment is branchless.
    """

    def __init__(self, runner: BatchedEnvRunner) -> None:
        env, module = runner.env, runner.module
        assert env is not None
        assert module is not None
        self._env: BatchedPairTrading = env
        self._actor, device = module.pi, module.log_std.device
        self._observation = env.reset()
        generator = torch.Generator(device).manual_seed(KEY)
        self._noise = 0.5 * torch.randn(env.num_envs, 2, generator=generator, device=device)
        self._reward = torch.zeros(env.num_envs, device=device)
        self._live = [*self._state(), self._observation, self._reward]
        self._start = [tensor.clone() for tensor in self._live]
        self._settle()

    def _state(self) -> list[Tensor]:
        env = self._env
        assert env._ahead is not None
        return [env._bar, env._age, env._ahead._used, *(getattr(env._account, name) for name in ACCOUNT)]

    def _settle(self) -> None:
        """Make the environment hold the tensors that stay."""
        env, (bar, age, used, *account) = self._env, self._live[:-2]
        assert env._ahead is not None
        env._bar, env._age, env._ahead._used = bar, age, used
        env._ahead._steps = 0  # no draw of starts is fetched from the host within a run of steps
        env._account = Account(*account)

    def restore(self) -> None:
        """See ``Step``."""
        torch._foreach_copy_(self._live, self._start)

    @torch.no_grad()
    def launch(self) -> None:
        """See ``Step``."""
        step = self._env.step(torch.tanh(self._actor(self._observation) + self._noise))
        moved = [*self._state(), step.observation, self._reward + step.reward]
        for place, tensor in zip(self._live, moved, strict=True):
            place.copy_(tensor)
        self._settle()

    def results(self) -> list[Tensor]:
        """See ``Step``: the summed rewards and the last observations."""
        return [self._reward.clone(), self._observation.clone()]


class GradientStep:
    """One gradient step of the product's learner on one minibatch.

    Args:
        algorithm: The product, with a learner that is branchless.
        rows: Samples of the minibatch.
    """

    def __init__(self, algorithm: PairPPO, rows: int) -> None:
        self._learner: Any = algorithm.learner_group._learner
        columns = algorithm._join([algorithm.env_runner.sample()[0]])[DEFAULT_MODULE_ID]
        self._batch = {name: column[:rows].clone() for name, column in columns.items()}
        self._names = [name for name in self._batch if name != Columns.ACTION_DIST_INPUTS]
        self.forward: Callable[[], Tensor] = self._forward
        for optimizer in self._learner._own_optimizers.values():  # the state is on the device and may be recorded
            for group in optimizer.param_groups:
                group["capturable"] = True
        self._start = self._learner.export_training_state()

    def _forward(self) -> Tensor:
        learner, net = self._learner, self._learner._net
        batch = {name: self._batch[name] for name in self._names}
        return learner.compute_loss_for_module(
            module_id=DEFAULT_MODULE_ID, config=learner.config, batch=batch, fwd_out=net._forward(batch)
        )

    def restore(self) -> None:
        """See ``Step``."""
        self._learner.import_training_state(self._start)

    def launch(self) -> None:
        """See ``Step``."""
        learner = self._learner
        learner._start_report()  # lists that grow would make a compiled step compile again
        learner.compute_gradients({DEFAULT_MODULE_ID: self.forward()})
        learner.apply_gradients(learner.postprocess_gradients({}))

    def results(self) -> list[Tensor]:
        """See ``Step``: the weights."""
        return [p.detach().clone() for p in self._learner._weights]


def record(launch: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """``launch`` as a CUDA graph; on a CPU ``launch`` itself, after the same warm-up."""
    if device.type != "cuda":
        for _ in range(WARM_UP):
            launch()
        return launch
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            launch()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay


@contextmanager
def timed(device: torch.device) -> Iterator[list[float]]:
    """Seconds of a ``with`` block to the last kernel's end, appended to the list it yields."""
    seconds: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds.append(time.perf_counter() - began)


def compare(settings: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Time all arms, interleaved by rounds. A row per timed call; ``note`` says why an arm has none.

    Args:
        settings: The run, as ``RunConfig.model_dump(mode="json")``.
        rounds: Timed rounds.
    """
    run = RunConfig.model_validate(settings)
    torch.set_num_threads(1)
    algorithm: PairPPO = PairPPOConfig.from_run(run, PAIR, key=KEY).build_algo()
    runner, learner = algorithm.env_runner, algorithm.learner_group._learner
    device = learner._device
    runner.branchless = learner.branchless = True
    runner.make_env()
    gradient = GradientStep(algorithm, run.ppo.minibatch_size)
    traced: dict[str, Any] = {} if device.type == "cuda" else {"backend": "aot_eager"}
    rollout = RolloutStep(runner)
    rows = _compare_step(
        "rollout step", rollout, torch.compile(rollout.launch, **traced), run.ppo.rollout_steps, rounds, device
    )
    compiled, eager_loss = torch.compile(gradient._forward, **traced), gradient._forward

    def launch_compiled() -> None:
        gradient.forward = compiled
        gradient.launch()
        gradient.forward = eager_loss

    rows += _compare_step("gradient step", gradient, launch_compiled, GRADIENT_STEPS, rounds, device)
    algorithm.stop()
    return rows


def _compare_step(
    what: str, step: Step, compiled: Callable[[], None], times: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    ways = {
        "eager": lambda: step.launch,
        "torch.compile": lambda: compiled,
        "CUDA graph": lambda: record(step.launch, device),
        "CUDA graph of torch.compile": lambda: record(compiled, device),
    }
    arms: dict[str, Callable[[], None]] = {}
    rows: list[dict[str, Any]] = []
    for name, prepare in ways.items():
        step.restore()
        try:
            arms[name] = prepare()
            for _ in range(WARM_UP):
                arms[name]()
        except RuntimeError as error:  # what compilers and recorders cannot take is a finding, not the end
            if name == "eager":
                raise
            arms.pop(name, None)
            first = f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append({"what": what, "arm": name, "note": f"not measured: {first[:100]}"})
    expected: list[Tensor] = []
    for round_ in range(rounds):
        for name, call in arms.items():
            step.restore()
            with timed(device) as seconds:
                for _ in range(times):
                    call()
            found = step.results()
            expected = found if name == "eager" else expected
            apart = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
            head = {"what": what, "arm": name, "round": round_, "note": ""}
            rows.append({**head, "microseconds": 1e6 * seconds[0] / times, "difference": apart})
    return rows
