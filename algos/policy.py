"""Policies as evaluation, backtest and trading use them: deterministic, float64, equal to the bit everywhere."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.mapping import round_targets, target_weights

BLOCK = 16
"""Rows per pass of the network. Matrix products of fewer rows round differently, so that a row's result would
depend on how many others are asked about; in blocks of one fixed size it does not. Larger blocks pay for padding: one
account over validation takes 83 us a bar with 16 rows and 121 us with 64, with the same bits."""
SCHEMA = 1


class Policy:
    """The mean action of an actor as target weights, rounded to 1e-4.

    The network runs in float64 in blocks of 16 rows, the last one padded. Not safe for threads: the padded
    buffer is reused.

    Args:
        layers: Weight [out, in] and bias [out] per layer.
        activation: ``tanh`` or ``silu``, between layers.
        mapping: Action mapping of the env.
        leverage: Gross limit that scales actions.
        feature_names: Names of the market features, in order.
    """

    def __init__(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        *,
        activation: str,
        mapping: str,
        leverage: float,
        feature_names: Sequence[str],
    ) -> None:
        self.activation, self.mapping, self.leverage = activation, mapping, float(leverage)
        self.feature_names = tuple(feature_names)
        self._layers = [(w.detach().cpu().double(), b.detach().cpu().double()) for w, b in layers]
        self._steps = [
            (w.t().contiguous(), b, torch.empty(BLOCK, len(b), dtype=torch.float64)) for w, b in self._layers
        ]
        self._activate = {"tanh": torch.tanh_, "silu": _silu_}[activation]
        # torch computes nonlinearities in strides of 16 numbers (two AVX-512 vectors) and what is left one by one,
        # with other last bits.
        self._stride = 8 if all(len(b) % 2 == 0 for _, b in self._layers) else 16
        self.inputs = self._layers[0][0].shape[1]
        self._block = torch.zeros(BLOCK, self.inputs, dtype=torch.float64)

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        *,
        activation: str,
        mapping: str,
        leverage: float,
        feature_names: Sequence[str],
    ) -> "Policy":
        """From the parameters of ``ActorCritic`` by name; only the actor's are used."""
        numbers = sorted(int(name.split(".")[1]) for name in weights if name.startswith("pi.") and "weight" in name)
        layers = [(weights[f"pi.{i}.weight"], weights[f"pi.{i}.bias"]) for i in numbers]
        return cls(layers, activation=activation, mapping=mapping, leverage=leverage, feature_names=feature_names)

    def decide(self, features: Tensor, account: Tensor) -> Tensor:
        """Target weights [B, 2] float64 for features [B, F] and the account's view [B, A], both float64.

        Raises:
            ValueError: If F + A is not what the network was trained on.
        """
        rows, width = features.shape
        if width + account.shape[1] != self.inputs:
            raise ValueError(f"policy expects {self.inputs} inputs, got {width} + {account.shape[1]}")
        if rows <= BLOCK:
            return self._decide_block(features, account, rows, width)
        parts = zip(features.split(BLOCK), account.split(BLOCK), strict=True)
        return torch.cat([self._decide_block(f, a, len(f), width) for f, a in parts])

    def _decide_block(self, features: Tensor, account: Tensor, rows: int, width: int) -> Tensor:
        self._block[:rows, :width] = features
        self._block[:rows, width:] = account
        return round_targets(target_weights(self._run_block(rows), self.mapping, self.leverage))

    def _run_block(self, rows: int) -> Tensor:
        """Mean actions [rows, 2] for the first rows of the block; overwritten by the next pass."""
        # Nonlinearities skip rows that nobody asked about, in whole strides, so that no element is computed by
        # another code path when the number of rows changes.
        whole = -(-rows // self._stride) * self._stride
        hidden = self._block
        for weight, bias, output in self._steps[:-1]:
            hidden = torch.addmm(bias, hidden, weight, out=output)
            self._activate(hidden[:whole])
        weight, bias, output = self._steps[-1]
        torch.addmm(bias, hidden, weight, out=output)
        return output[:whole].tanh_()[:rows]

    def save(self, folder: Path) -> None:
        """Write ``policy.safetensors`` and ``policy.json`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for i, (weight, bias) in enumerate(self._layers):
            tensors[f"{i}.weight"], tensors[f"{i}.bias"] = weight.contiguous(), bias.contiguous()
        save_file(tensors, folder / "policy.safetensors")
        (folder / "policy.json").write_text(json.dumps(self._description(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Policy":
        """Read what ``save`` wrote; decisions are equal to the bit.

        Raises:
            ValueError: If the files are of another schema or do not fit each other.
        """
        about = json.loads((folder / "policy.json").read_text())
        if about.get("schema") != SCHEMA:
            raise ValueError(f"{folder / 'policy.json'}: schema {about.get('schema')!r} is not {SCHEMA}")
        tensors = load_file(folder / "policy.safetensors")
        if "market_network" in about:
            from algos.bar_policy import BarPolicy  # stands on this module

            return BarPolicy.restore(about, tensors)
        layers = [(tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(len(tensors) // 2)]
        policy = cls(
            layers,
            activation=about["activation"],
            mapping=about["mapping"],
            leverage=about["leverage"],
            feature_names=about["feature_names"],
        )
        if about["network"] != policy._description()["network"]:
            raise ValueError(f"{folder}: policy.json and policy.safetensors describe different networks")
        return policy

    def _description(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "network": [self.inputs, *(len(b) for _, b in self._layers)],
            "activation": self.activation,
            "mapping": self.mapping,
            "leverage": self.leverage,
            "account_columns": self.inputs - len(self.feature_names),
            "feature_names": list(self.feature_names),
        }


class EnsemblePolicy:
    """The plain mean of several policies' target weights, rounded to 1e-4.

    Args:
        members: Policies over the same inputs.

    Raises:
        ValueError: Without members.
    """

    def __init__(self, members: Sequence[Policy]) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one policy")
        self.members = tuple(members)

    def decide(self, features: Tensor, account: Tensor) -> Tensor:
        """Target weights [B, 2] float64, see ``Policy.decide``."""
        first, *others = (member.decide(features, account) for member in self.members)
        return _mean(first, others)


class PolicyStack:
    """Several policies side by side, each over rows of its own: what they decide alone, to the bit.

    Every network runs once per call, over the rows of its own policy and of the ensembles it is a member of, in
    the same blocks as alone. Not safe for threads.

    Args:
        policies: Policies and ensembles in the order of their rows; members that are the same object are one.
        rows: Number of consecutive rows of each.

    Raises:
        ValueError: If inputs, mapping or leverage of the networks differ.
    """

    def __init__(self, policies: Sequence[Policy | EnsemblePolicy], rows: int) -> None:
        members = [policy.members if isinstance(policy, EnsemblePolicy) else (policy,) for policy in policies]
        networks = list({id(network): network for team in members for network in team}.values())
        if len({(n.inputs, n.mapping, n.leverage) for n in networks}) > 1:
            raise ValueError("policies of a stack need the same inputs, mapping and leverage")
        self._policy = networks[0]
        place: dict[tuple[int, int], int] = {}
        asked: list[tuple[Policy, Tensor, slice]] = []
        for network in networks:
            wanted = [p * rows + i for p, team in enumerate(members) if network in team for i in range(rows)]
            for part in (wanted[i : i + BLOCK] for i in range(0, len(wanted), BLOCK)):
                asked.append((network, torch.tensor(part), slice(len(place), len(place) + len(part))))
                place.update({(id(network), row): len(place) + i for i, row in enumerate(part)})
        self._actions = torch.empty(len(place), 2, dtype=torch.float64)
        self._passes = [
            (network, network._block[: len(part)], part, self._actions[where]) for network, part, where in asked
        ]
        # Targets of all passes, then those of the ensembles; from there every row takes its own.
        self._teams: list[tuple[int, Tensor]] = []
        order, size = [], len(place)
        for p, team in enumerate(members):
            sources = [[place[id(network), p * rows + i] for i in range(rows)] for network in team]
            if len(team) == 1:
                order.extend(sources[0])
            else:
                self._teams.append((len(team), torch.tensor(sources).flatten()))
                order.extend(range(size, size + rows))
                size += rows
        self._order = torch.tensor(order)

    def decide(self, features: Tensor, account: Tensor) -> Tensor:
        """Target weights [B, 2] float64 for B rows, policy by policy; see ``Policy.decide``."""
        seen = torch.cat((features, account), dim=1)
        if seen.shape[1] != self._policy.inputs or len(seen) != len(self._order):
            wanted = f"[{len(self._order)}, {self._policy.inputs}]"
            raise ValueError(f"the stack expects inputs {wanted}, got {list(seen.shape)}")
        for network, block, rows, actions in self._passes:
            torch.index_select(seen, 0, rows, out=block)
            actions.copy_(network._run_block(len(block)))
        targets = round_targets(target_weights(self._actions, self._policy.mapping, self._policy.leverage))
        means = []
        for count, sources in self._teams:
            first, *others = targets.index_select(0, sources).view(count, -1, 2).unbind()
            means.append(_mean(first, others))
        return torch.cat((targets, *means)).index_select(0, self._order)


def _mean(first: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Mean of target weights, rounded; added one by one, so that the order of additions is always the same."""
    total = first
    for other in others:
        total = total + other
    return round_targets(total / (1 + len(others)))


def _silu_(x: Tensor) -> Tensor:
    return torch.nn.functional.silu(x, inplace=True)
