"""Policies with a market encoder: the market part once per bar, in blocks of bars that never move.

A policy of this kind cannot be asked about features of one bar. ``decide_on`` binds any policies to the features of a
whole market and returns what ``envs.replay`` calls; the plain ones are asked as ever.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from algos.bar_network import Branch
from algos.encoders import build_encoder
from algos.module import ACTION_DIM, ACTIVATIONS
from algos.policy import EnsemblePolicy, Policy, PolicyStack, _mean
from envs.replay import Decide
from rayconf.run_config import RunConfig

BARS = 256
"""Bars per pass of the market part, counted from the first bar of the market: what a bar gives depends neither on
which bars are asked about nor on torch's threads, which share out larger passes."""


class BarPolicy(Policy):
    """The mean action of an actor with a market encoder, as target weights rounded to 1e-4.

    Args:
        weights: Parameters of ``BarActorCritic`` by name; only the actor's are used.
        network: The run's network section.
        mapping: Action mapping of the env.
        leverage: Gross limit that scales actions.
        feature_names: Names of the market features, in order.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        network: Mapping[str, Any],
        *,
        mapping: str,
        leverage: float,
        feature_names: Sequence[str],
    ) -> None:
        self.network = dict(network)
        self._weights = {
            name: tensor.detach().cpu().double()
            for name, tensor in sorted(weights.items())
            if name.startswith(("encoder.", "pi."))
        }
        activation, unused = network["activation"], torch.Generator()
        self._encoder = build_encoder(self.network, len(feature_names), ACTIVATIONS[activation], unused).double()
        columns = self._weights["pi.account.weight"].shape[1]
        hidden = tuple(network["hidden"])
        branch = Branch(self._encoder.width, columns, hidden, ACTION_DIM, activation, 1.0, unused).double()
        for prefix, part in (("encoder.", self._encoder), ("pi.", branch)):
            part.load_state_dict({k.removeprefix(prefix): v for k, v in self._weights.items() if k.startswith(prefix)})
        self._trunk = branch.trunk
        # The head as a plain policy over the market's sums: they pass through an identity to the account's.
        into = torch.cat((torch.eye(branch.width), branch.account.weight.detach()), dim=1)
        head = [(into, torch.zeros(branch.width)), (branch.output.weight, branch.output.bias)]
        super().__init__(head, activation=activation, mapping=mapping, leverage=leverage, feature_names=feature_names)

    def decide(self, features: Tensor, account: Tensor) -> Tensor:
        """Refused: the features of one bar are not enough, see ``decide_on``."""
        raise ValueError("a policy with a market encoder reads a window of bars: bind it with decide_on()")

    def decide_from(self, sums: Tensor, account: Tensor) -> Tensor:
        """Target weights [B, 2] from market sums [B, H] and the account's view [B, A], all float64."""
        return super().decide(sums, account)

    @torch.no_grad()
    def market_sums(self, features: Tensor, block: int) -> Tensor:
        """Market sums [BARS, H] of the bars from ``block * BARS`` on; rows beyond the market mean nothing.

        Args:
            features: [T, F] scaled features of the whole market.
            block: Number of the block.
        """
        past = self._encoder.window - 1
        strip = torch.zeros(past + BARS, features.shape[1], dtype=torch.float64)
        first = block * BARS - past
        part = features[max(0, first) : first + past + BARS]
        strip[max(0, -first) : max(0, -first) + len(part)] = part
        return self._trunk(self._encoder(strip))

    def save(self, folder: Path) -> None:
        """Write ``policy.safetensors`` and ``policy.json`` into ``folder``."""
        super().save(folder)
        save_file({name: tensor.contiguous() for name, tensor in self._weights.items()}, folder / "policy.safetensors")

    @classmethod
    def restore(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "BarPolicy":
        """From the two files' contents.

        Raises:
            ValueError: If they do not fit each other.
        """
        try:
            return cls(
                tensors,
                about["market_network"],
                mapping=about["mapping"],
                leverage=about["leverage"],
                feature_names=about["feature_names"],
            )
        except (RuntimeError, KeyError) as error:
            raise ValueError("policy.json and policy.safetensors describe different networks") from error

    def _description(self) -> dict[str, Any]:
        return {
            **super()._description(),
            "account_columns": self._weights["pi.account.weight"].shape[1],
            "market_network": self.network,
        }


def build_policy(weights: Mapping[str, Tensor], run: RunConfig, feature_names: Sequence[str]) -> Policy:
    """The deterministic policy of an actor's weights, by the names of the run's network.

    Args:
        weights: Parameters by name; only the actor's are used.
        run: Its network, mapping and leverage.
        feature_names: Names of the market features, in order.
    """
    network, mapping, leverage = run.network, run.env.mapping, run.costs.leverage
    if network.encoder == "mlp":
        return Policy.from_weights(
            weights,
            activation=network.activation,
            mapping=mapping,
            leverage=leverage,
            feature_names=feature_names,
        )
    return BarPolicy(
        weights, network.model_dump(mode="json"), mapping=mapping, leverage=leverage, feature_names=feature_names
    )


def decide_on(policies: Sequence[Policy | EnsemblePolicy], features: Tensor, rows: int | None = None) -> Decide:
    """Bind policies to a market: what ``envs.replay`` asks at every bar.

    Each decides what it decides alone, to the bit, whoever else is asked.

    Args:
        policies: In the order of their rows.
        features: [T, F] scaled features of the whole market, of which only the past of a bar is read.
        rows: Consecutive rows of each policy; None: all rows belong to the only one.

    Raises:
        ValueError: If several policies share an unknown number of rows.
    """
    members = {id(m): m for p in policies for m in (p.members if isinstance(p, EnsemblePolicy) else (p,))}
    if not any(isinstance(member, BarPolicy) for member in members.values()):
        if rows is None:
            (only,) = policies
            return lambda _bars, seen, account: only.decide(seen, account)
        stack = PolicyStack(policies, rows)
        return lambda _bars, seen, account: stack.decide(seen, account)
    if rows is None and len(policies) > 1:
        raise ValueError("several policies need the number of rows of each")
    single = {key: _Bound(member, features) for key, member in members.items()}

    def ask(policy: Policy | EnsemblePolicy, bars: Tensor, seen: Tensor, account: Tensor) -> Tensor:
        team = policy.members if isinstance(policy, EnsemblePolicy) else (policy,)
        first, *others = (single[id(member)](bars, seen, account) for member in team)
        return _mean(first, others) if isinstance(policy, EnsemblePolicy) else first

    def decide(bars: Tensor, seen: Tensor, account: Tensor) -> Tensor:
        size = rows or len(bars)
        parts = zip(policies, bars.split(size), seen.split(size), account.split(size), strict=True)
        return torch.cat([ask(*part) for part in parts])

    return decide


class _Bound:
    """One policy with the market part of the bars that it has been asked about."""

    def __init__(self, policy: Policy, features: Tensor) -> None:
        self._policy, self._features = policy, features
        self._blocks: dict[int, Tensor] = {}

    def __call__(self, bars: Tensor, seen: Tensor, account: Tensor) -> Tensor:
        policy = self._policy
        if not isinstance(policy, BarPolicy):
            return policy.decide(seen, account)
        rows = [divmod(bar, BARS) for bar in bars.tolist()]
        for block in {block for block, _ in rows} - self._blocks.keys():
            self._blocks[block] = policy.market_sums(self._features, block)
        return policy.decide_from(torch.stack([self._blocks[block][row] for block, row in rows]), account)
