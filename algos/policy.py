"""Policies as evaluation, backtest and trading use them: deterministic, float64, equal to the bit everywhere."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import layer_norm

from envs.mapping import ActionMap, round_targets
from envs.prior import prior_columns

BLOCK = 16
"""Rows per matrix product. Products of fewer rows round differently, so that a row's result would depend on how many
others are asked about; in blocks of one fixed size, many of them in one batched product, it does not."""
ELEMENTS = (1 << 15) - 1
"""Numbers per pass, about: they stay in the cache, and torch's threads, which would cut a nonlinearity into parts of
other sizes, leave so few alone."""
SCHEMA = 1
_RENAMED = {"cap": "leverage_cap", "band": "no_trade_band"}
"""Fields of ``ActionMap`` that ``policy.json`` calls as the config does."""


def read_action_map(about: Mapping[str, Any]) -> ActionMap:
    """The action map that a ``policy.json`` describes; a field that it lacks has its default.

    Raises:
        KeyError: It names no mapping or leverage.
        ValueError: It names an unknown mapping.
    """
    names = {field.name: _RENAMED.get(field.name, field.name) for field in fields(ActionMap)}
    given = {name: about[key] for name, key in names.items() if key in about}
    return ActionMap(**{"mapping": about["mapping"], "leverage": about["leverage"], **given})


class Policy:
    """The mean action of an actor as target weights, rounded to 1e-4.

    The first layer is linear in market and account, so that the market's share of its sums is computed once per bar,
    for every account that asks about it. A tanh network is a network of logistic functions with other weights,
    tanh(x) = 2 * sigmoid(2x) - 1, and runs as one: the logistic function costs a fifth.

    Args:
        layers: Weight [out, in] and bias [out] per layer.
        activation: ``tanh`` or ``silu``, between layers.
        action_map: What actions ask for.
        feature_names: Names of the market features, in order.
        account_columns: Columns of the account, the last inputs; default: all inputs that are not features.
        norms: Weight [W] and bias [W] of the layer norm of each hidden layer, before its nonlinearity, which norms
            every W consecutive sums by themselves; empty: none.

    Raises:
        ValueError: If the norms do not fit the layers.
    """

    def __init__(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        *,
        activation: str,
        action_map: ActionMap,
        feature_names: Sequence[str],
        account_columns: int | None = None,
        norms: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        self.activation, self.action_map = activation, action_map
        self.feature_names = tuple(feature_names)
        self.prior_at = prior_columns(self.feature_names)
        self._layers, self._norms = (
            [(w.detach().cpu().double(), b.detach().cpu().double()) for w, b in pairs] for pairs in (layers, norms)
        )
        widths = [len(b) for _, b in self._layers]
        stretches = [len(weight) for weight, _ in norms]
        fits = zip(widths[:-1], stretches, strict=True) if norms else ()
        if any(not stretch or width % stretch for width, stretch in fits):
            raise ValueError(f"norms of widths {stretches} do not fit layers of {widths}")
        self.inputs = self._layers[0][0].shape[1]
        self.account_columns = self.inputs - len(self.feature_names) if account_columns is None else account_columns
        logistic = activation == "tanh"
        self._activate = torch.sigmoid_ if logistic else _silu_
        merged = []
        scaled = logistic and not norms  # where a logistic function follows; a norm doubles what leaves it
        for i, (weight, bias) in enumerate(self._layers):
            if i and logistic:  # its inputs are 2 s - 1 of the logistic s
                weight, bias = 2 * weight, bias - weight.sum(dim=1)
            if scaled or i == len(self._layers) - 1:
                weight, bias = 2 * weight, 2 * bias
            merged.append((weight.t().contiguous().unsqueeze(0), bias))
        (first, self._bias), *self._later = merged
        self._scale = 2.0 if scaled or len(merged) == 1 else 1.0
        self._normed = [(2 * w, 2 * b) if logistic else (w, b) for w, b in self._norms]
        markets = self.inputs - self.account_columns
        self._market, self._account = first[:, :markets].contiguous(), first[:, markets:].contiguous()
        self.width = len(self._bias)
        """Sums of the first layer, H."""
        widest = max(markets, *widths)
        self._rows = max(1, ELEMENTS // (widest * BLOCK)) * BLOCK

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        *,
        activation: str,
        action_map: ActionMap,
        feature_names: Sequence[str],
    ) -> "Policy":
        """From the parameters of ``ActorCritic`` by name; only the actor's are used."""
        numbers = sorted(int(name.split(".")[1]) for name in weights if re.fullmatch(r"pi\.\d+\.weight", name))
        layers = [(weights[f"pi.{i}.weight"], weights[f"pi.{i}.bias"]) for i in numbers]
        after = [f"pi.{i + 1}.0" for i in numbers if f"pi.{i + 1}.0.weight" in weights]
        norms = [(weights[f"{place}.weight"], weights[f"{place}.bias"]) for place in after]
        return cls(layers, activation=activation, action_map=action_map, feature_names=feature_names, norms=norms)

    def decide(self, features: Tensor, account: Tensor) -> Tensor:
        """Target weights [B, 2] float64 for features [B, F] and the account's view [B, A], both float64.

        Raises:
            ValueError: If F + A is not what the network was trained on.
        """
        count, width = features.shape
        if width + account.shape[1] != self.inputs:
            raise ValueError(f"policy expects {self.inputs} inputs, got {width} + {account.shape[1]}")
        actions = self.actions(self._sums(padded(features)), padded(account))[:count]
        prior = None if self.prior_at is None else features[:, self.prior_at]
        return round_targets(self.action_map.targets(actions, prior, account[:, :2] * self.action_map.leverage))

    def market_sums(self, features: Tensor, bars: range) -> Tensor:
        """The market's share of the first layer's sums, [N, H] float64 for N bars.

        Args:
            features: [T, F] scaled features of the whole market, of which only the past of a bar is read.
            bars: The bars.
        """
        return self._sums(padded(features[bars.start : bars.stop].double()))[: len(bars)]

    def _sums(self, features: Tensor) -> Tensor:
        return torch.cat([_blocks(part, self._market).add_(self._bias) for part in features.split(self._rows)])

    def actions(self, sums: Tensor, account: Tensor) -> Tensor:
        """Mean actions [B, 2] in [-1, 1] for market sums [B, H] and account [B, A], B a multiple of the block."""
        rows = self._rows
        if len(sums) <= rows:
            return self._actions(sums, account)
        return torch.cat([self._actions(s, a) for s, a in zip(sums.split(rows), account.split(rows), strict=True)])

    def _actions(self, sums: Tensor, account: Tensor) -> Tensor:
        hidden = _blocks(account, self._account).add_(sums)
        for i, (weight, bias) in enumerate(self._later):
            if self._normed:
                hidden = _norm(hidden, *self._normed[i])
            hidden = _blocks(self._activate(hidden), weight).add_(bias)
        return hidden.sigmoid_().mul_(2).sub_(1)

    def actor_parameters(self) -> dict[str, Tensor]:
        """The actor's parameters by their names in ``ActorCritic``, float64: what ``from_weights`` took."""
        named: dict[str, Tensor] = {}
        for i, (weight, bias) in enumerate(self._layers):
            named |= {f"pi.{2 * i}.weight": weight, f"pi.{2 * i}.bias": bias}
        for i, (weight, bias) in enumerate(self._norms):
            named |= {f"pi.{2 * i + 1}.0.weight": weight, f"pi.{2 * i + 1}.0.bias": bias}
        return named

    def save(self, folder: Path) -> None:
        """Write ``policy.safetensors`` and ``policy.json`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for i, (weight, bias) in enumerate(self._layers):
            tensors[f"{i}.weight"], tensors[f"{i}.bias"] = weight.contiguous(), bias.contiguous()
        for i, (weight, bias) in enumerate(self._norms):
            tensors[f"norm.{i}.weight"], tensors[f"norm.{i}.bias"] = weight, bias
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
        count = len(about.get("norms", ()))
        layers = [(tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(len(tensors) // 2 - count)]
        norms = [(tensors[f"norm.{i}.weight"], tensors[f"norm.{i}.bias"]) for i in range(count)]
        policy = cls(
            layers,
            activation=about["activation"],
            action_map=read_action_map(about),
            feature_names=about["feature_names"],
            norms=norms,
        )
        described = policy._description()
        if about["network"] != described["network"] or about.get("norms") != described.get("norms"):
            raise ValueError(f"{folder}: policy.json and policy.safetensors describe different networks")
        return policy

    def _description(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "network": [self.inputs, *(len(b) for _, b in self._layers)],
            "activation": self.activation,
            **({"norms": [len(w) for w, _ in self._norms]} if self._norms else {}),
            **{_RENAMED.get(name, name): value for name, value in asdict(self.action_map).items()},
            "account_columns": self.account_columns,
            "feature_names": list(self.feature_names),
        }


class EnsemblePolicy:
    """The mean of several policies' target weights, rounded to 1e-4.

    Args:
        members: Policies over the same inputs.
        shares: Weight of each in the mean, not negative; None: all alike.

    Raises:
        ValueError: Without members, or with shares that are none.
    """

    def __init__(self, members: Sequence[Policy], shares: Sequence[float] | None = None) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one policy")
        if shares is not None and (len(shares) != len(members) or min(shares) < 0 or not sum(shares) > 0):
            raise ValueError(f"shares {list(shares)} of {len(members)} policies must be numbers of 0 and more")
        self.members = tuple(members)
        self.shares = None if shares is None else tuple(share / sum(shares) for share in shares)

    def decide(self, features: Tensor, account: Tensor) -> Tensor:
        """Target weights [B, 2] float64, see ``Policy.decide``."""
        return mean_target([member.decide(features, account) for member in self.members], self.shares)


def padded(rows: Tensor) -> Tensor:
    """Rows [B, N] with the last one repeated up to whole blocks."""
    return rows if len(rows) % BLOCK == 0 else torch.cat((rows, rows[-1:].expand(-len(rows) % BLOCK, -1)))


def _blocks(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows [B, N] times a weight [1, N, M], block by block."""
    return torch.bmm(rows.view(-1, BLOCK, rows.shape[1]), weight.expand(len(rows) // BLOCK, -1, -1)).flatten(0, 1)


def mean_target(targets: Sequence[Tensor], shares: Sequence[float] | None) -> Tensor:
    """Mean of target weights, rounded; added one by one, so that the order of additions is always the same."""
    first, *others = targets if shares is None else [t * share for t, share in zip(targets, shares, strict=True)]
    total = first
    for other in others:
        total = total + other
    return round_targets(total / len(targets) if shares is None else total)


def _norm(sums: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm of sums [B, H], each stretch as wide as the weight [W] by itself."""
    return layer_norm(sums.unflatten(1, (-1, len(weight))), weight.shape, weight, bias).flatten(1)


def _silu_(x: Tensor) -> Tensor:
    return torch.nn.functional.silu(x, inplace=True)
