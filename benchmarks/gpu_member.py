"""One member of the GPU benchmark: the product's algorithm in a Ray actor of its own."""

import time
from dataclasses import dataclass
from typing import Any

import ray
import torch

from algos.config import PairPPOConfig
from algos.markets import provide
from algos.pair_ppo import PairPPO
from benchmarks.arena import PAIR
from rayconf.run_config import RunConfig

MIB = 2**20


@dataclass(frozen=True)
class Trained:
    """What a member did between two moments of the machine's clock."""

    device: str
    began: float
    ended: float
    steps: int
    allocated_mib: float
    """Largest memory of the member's tensors on the GPU; NaN on the CPU."""
    reserved_mib: float
    """Largest memory that torch held for them."""


class Member:
    """Trains one ``PairPPO`` as a trial of the product does: ``Algorithm.train``, one torch thread.

    Args:
        settings: The run, as ``RunConfig.model_dump(mode="json")``.
        market: The pair's market in the object store, in a list, so that Ray does not resolve it.
        key: Key of weights and random streams.
    """

    def __init__(self, settings: dict[str, Any], market: list[ray.ObjectRef], key: int) -> None:
        run = RunConfig.model_validate(settings)
        provide(run, PAIR, ray.get(market[0]))
        self._algorithm: PairPPO = PairPPOConfig.from_run(run, PAIR, key=key).build_algo()
        self._device = next(self._algorithm.env_runner.module.parameters()).device

    def train(self, updates: int) -> Trained:
        """Train for a number of PPO updates."""
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        began = time.time()
        for _ in range(updates):
            self._algorithm.train()
        if on_gpu:
            torch.cuda.synchronize(self._device)
        ended = time.time()
        allocated, reserved = float("nan"), float("nan")
        if on_gpu:
            allocated = torch.cuda.max_memory_allocated(self._device) / MIB
            reserved = torch.cuda.max_memory_reserved(self._device) / MIB
        steps = updates * self._algorithm.config.total_train_batch_size
        return Trained(str(self._device), began, ended, steps, allocated, reserved)
