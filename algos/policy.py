"""Policies as evaluation, backtest and trading use them: deterministic, float64, equal to the bit everywhere."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.mapping import round_targets, target_weights

BLOCK = 64
"""Rows per pass of the network. Matrix products of fewer rows round differently, so that a row's result would
depend on how many others are asked about; in blocks of one fixed size it does not."""
SCHEMA = 1


class Policy:
    """The mean action of an actor as target weights, rounded to 1e-4.

    The network runs in float64 in blocks of 64 rows, the last one padded. Not safe for threads: the padded
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
        # Nonlinearities skip rows that nobody asked about; whole vectors of 8, so that no element is computed
        # by another code path when the number of rows changes.
        whole = -(-rows // 8) * 8
        hidden = self._block
        for weight, bias, output in self._steps[:-1]:
            hidden = torch.addmm(bias, hidden, weight, out=output)
            self._activate(hidden[:whole])
        weight, bias, output = self._steps[-1]
        action = torch.addmm(bias, hidden, weight, out=output)[:whole].tanh_()
        return round_targets(target_weights(action[:rows], self.mapping, self.leverage))

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
        total = self.members[0].decide(features, account)
        for member in self.members[1:]:
            total = total + member.decide(features, account)
        return round_targets(total / len(self.members))


def _silu_(x: Tensor) -> Tensor:
    return torch.nn.functional.silu(x, inplace=True)
