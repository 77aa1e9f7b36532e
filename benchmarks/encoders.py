"""What evaluating the market once per bar is worth: steps per second of PairPPO end to end, arms interleaved.

``python -m benchmarks.encoders [--rounds K] [--arms NAME ...] [--out FOLDER]``

Every round trains one update of each arm, rollouts and learner, on one thread; ratios are of medians over the rounds,
in brackets the smallest and the largest ratio of one round. An arm is a network on a market of about 3,000 or 50,000
training bars (the presets ``smoke`` and ``demo``), with a number of accounts that start together. An update is
32,768 samples in 16 gradient steps, except in the arms ``.. per sample`` and their counterparts: naive evaluation of
windows, in rollouts and update, needs a batch of 4,096 to fit into memory.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from algos.bar_network import BarActorCritic
from algos.config import PairPPOConfig
from algos.pair_ppo import PairPPO
from rayconf import RunConfig, load_config

PAIR = "SYNA/SYNB"
SMALL = ("ppo.num_envs=64", "ppo.rollout_steps=64", "ppo.minibatch_size=1024")
BATCH = ("ppo.num_envs=512", "ppo.rollout_steps=64", "ppo.minibatch_size=8192")


@dataclass(frozen=True)
class Arm:
    """One configuration; its speed is compared with that of the arm ``baseline``."""

    market: str
    settings: tuple[str, ...]
    baseline: str
    per_sample: bool = False

    @property
    def run(self) -> RunConfig:
        """The run of this arm."""
        return load_config(self.market, assignments=[f"data.pairs=[{PAIR}]", *self.settings])


def _arms() -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    narrow = "network.hidden=[96, 32]"
    for market, size in (("smoke", "3k"), ("demo", "50k")):
        plain = f"mlp {size}"
        for starts in (1, 8):
            together = f" x{starts}" if starts > 1 else ""
            common = (*BATCH, f"ppo.accounts_per_start={starts}")
            arms[f"mlp {size}{together}"] = Arm(market, common, plain)
            factored = (*common, "network.encoder=factored")
            arms[f"factored {size}{together}"] = Arm(market, factored, plain)
            arms[f"factored 96-32 {size}{together}"] = Arm(market, (*factored, narrow), plain)
        for kind in ("conv", "transformer"):
            arms[f"{kind} {size}"] = Arm(market, (*BATCH, f"network.encoder={kind}"), plain)
        windows = (*SMALL, "network.encoder=transformer")
        naive = f"transformer {size} per sample"
        arms[naive] = Arm(market, windows, naive, per_sample=True)
        arms[f"transformer {size} small"] = Arm(market, windows, naive)
    return arms


ARMS = _arms()


class PerSample:
    """Naive evaluation in the place of a network's methods: every sample runs its own window, nothing is shared."""

    def __init__(self, module: BarActorCritic) -> None:
        self._module = module

    def embed(self, bars: Tensor, strip: None = None) -> tuple[Tensor, Tensor]:
        """Windows one after the other, of whose embeddings the last of each window counts; no plan is of use here."""
        module, window = self._module, self._module.encoder.window
        rows = bars.unsqueeze(1) + torch.arange(window)
        features = module.market.index_select(0, rows.flatten())
        place = torch.arange(len(bars)) * window
        other = module.critic_encoder if module.sharing == "separate" else module.encoder
        return module.encoder(features).index_select(0, place), other(features).index_select(0, place)

    def forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """The forward pass without looking for equal bars."""
        module, observation = self._module, batch[Columns.OBS]
        own, other = module.sums(observation[:, 0].long())
        loc = module.pi.head(own, observation[:, 1:])
        logits = torch.cat((loc, module.log_std.expand_as(loc)), dim=-1)
        return {Columns.ACTION_DIST_INPUTS: logits, Columns.EMBEDDINGS: (other, torch.arange(len(other)))}

    def table(self) -> "PerSample":
        """No table: a rollout asks sample by sample."""
        return self

    def evaluate(self, bars: Tensor) -> None:
        """Nothing is evaluated ahead."""

    def means(self, observation: Tensor) -> Tensor:
        """Mean latents, each from its own window."""
        return self._head(observation, 0)

    def values(self, observation: Tensor) -> Tensor:
        """Values, each from its own window."""
        return torch.cat([self._head(part, 1) for part in observation.split(1024)])

    def _head(self, observation: Tensor, which: int) -> Tensor:
        module = self._module
        branch = (module.pi, module.vf)[which]
        encoder = module.critic_encoder if which and module.sharing == "separate" else module.encoder
        window = encoder.window
        rows = observation[:, :1].long() + torch.arange(window)
        strip = module.market.index_select(0, rows.flatten())
        return branch.head(branch.trunk(encoder(strip)[::window]), observation[:, 1:])


def build(arm: Arm) -> PairPPO:
    """The arm's algorithm, its networks made naive where it is."""
    algorithm = PairPPOConfig.from_run(arm.run, PAIR).build_algo()
    if arm.per_sample:
        for module in (algorithm.env_runner.module, algorithm.learner_group._learner._net):
            naive = PerSample(module)
            module.embed, module._forward, module.table = naive.embed, naive.forward, naive.table
    return algorithm


def sharing(algorithm: PairPPO) -> tuple[float, float]:
    """Distinct bars per minibatch and samples per distinct bar in one update; a training step is spent on it."""
    learner = algorithm.learner_group._learner
    module = learner._net
    seen: list[tuple[int, int]] = []
    if not isinstance(module, BarActorCritic):
        return float("nan"), float("nan")
    plain = module._forward

    def counted(batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        bars = batch[Columns.OBS][:, 0]
        seen.append((len(bars), len(bars.unique())))
        return plain(batch, **kwargs)

    module._forward = counted
    algorithm.train()
    module._forward = plain
    samples, distinct = (sum(column) / len(seen) for column in zip(*seen, strict=True))
    return distinct, samples / distinct


def measure(names: Sequence[str], rounds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train the arms in turn; a row per arm and round, and a row per arm."""
    algorithms = {name: build(ARMS[name]) for name in names}
    shares = {name: sharing(algorithm) for name, algorithm in algorithms.items()}
    records = []
    for number in range(rounds):
        for name, algorithm in algorithms.items():
            start = time.perf_counter()
            algorithm.train()
            seconds = time.perf_counter() - start
            last = algorithm.last_iteration()
            split = {part: last[f"{part}_seconds"] for part in ("env", "policy", "learner")}
            records.append({"arm": name, "round": number, "steps_per_second": last["env_steps"] / seconds, **split})
    long = pd.DataFrame(records)
    speeds = long.pivot_table(index="round", columns="arm", values="steps_per_second")
    rows = []
    for name, algorithm in algorithms.items():
        speed, baseline = speeds[name], ARMS[name].baseline
        row: dict[str, Any] = {
            "arm": name,
            "parameters": sum(p.numel() for p in algorithm.env_runner.module.parameters()),
            "bars_per_minibatch": shares[name][0],
            "samples_per_bar": shares[name][1],
            "steps_per_second": speed.median(),
            "slowest": speed.min(),
            "fastest": speed.max(),
            "baseline": baseline,
        }
        if baseline in speeds:
            each = speed / speeds[baseline]
            row |= {"ratio": speed.median() / speeds[baseline].median(), "lowest": each.min(), "highest": each.max()}
        rows.append(row)
        algorithm.stop()
    return long, pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.encoders", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="updates per arm")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the Parquet files")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    long, table = measure(arguments.arms, arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    long.to_parquet(arguments.out / "encoders-rounds.parquet", index=False)
    table.to_parquet(arguments.out / "encoders.parquet", index=False)
    for row in table.itertuples():
        shared = (
            ""
            if pd.isna(row.samples_per_bar)
            else (f"{row.bars_per_minibatch:6,.0f} bars per minibatch, {row.samples_per_bar:5.1f} samples per bar")
        )
        against = f"{row.ratio:5.2f} x {row.baseline} [{row.lowest:.2f}, {row.highest:.2f}]" if "ratio" in table else ""
        print(
            f"{row.arm:28s} {row.parameters:7,d} parameters {row.steps_per_second:9,.0f} steps/s  {against}  {shared}"
        )


if __name__ == "__main__":
    main()
