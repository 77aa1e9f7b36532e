"""Policies with a market encoder: the market part once per bar, in blocks of bars that never move.

A policy of this kind cannot be asked about features of one bar: ``algos.stack.decide_on`` binds it to a market.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from algos.bar_network import Branch
from algos.encoders import build_encoder
from algos.legs import doubled
from algos.module import ACTION_DIM, ACTIVATIONS
from algos.policy import Policy, read_action_map
from envs.batched import observation_names
from envs.legs import swap_legs
from envs.mapping import ActionMap
from rayconf.run_config import RunConfig

BARS = 256
"""Bars per pass of the market part, counted from the first bar of the market: what a bar gives depends neither on
which bars are asked about nor on torch's threads, which share out larger passes."""


class BarPolicy(Policy):
    """The mean action of an actor with a market encoder, as target weights rounded to 1e-4.

    Args:
        weights: Parameters of ``BarActorCritic`` by name; only the actor's are used.
        network: The run's network section.
        action_map: What actions ask for.
        feature_names: Names of the market features, in order.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        network: Mapping[str, Any],
        *,
        action_map: ActionMap,
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
        # The head as a plain policy over the market's sums, which reach its first layer as they are.
        into = torch.cat((torch.eye(branch.width), branch.account.weight.detach()), dim=1)
        head = [(into, torch.zeros(branch.width)), (branch.output.weight, branch.output.bias)]
        super().__init__(
            head,
            activation=activation,
            action_map=action_map,
            feature_names=feature_names,
            account_columns=columns,
        )

    def decide(self, features: Tensor, account: Tensor) -> Tensor:
        """Refused: the features of one bar are not enough, see ``algos.stack.decide_on``."""
        raise ValueError("a policy with a market encoder reads a window of bars: bind it with decide_on()")

    @torch.no_grad()
    def market_sums(self, features: Tensor, bars: range) -> Tensor:
        """The market's share of the last hidden layer's sums, [N, H] float64 for N bars; see ``Policy``."""
        blocks = range(bars.start // BARS, -(-bars.stop // BARS))
        sums = torch.cat([self._block(features, block) for block in blocks])
        first = bars.start - blocks.start * BARS
        return self._scale * sums[first : first + len(bars)]

    def _block(self, features: Tensor, block: int) -> Tensor:
        """Sums [BARS, H] of the bars from ``block * BARS`` on; rows beyond the market mean nothing."""
        past = self._encoder.window - 1
        strip = torch.zeros(past + BARS, features.shape[1], dtype=torch.float64)
        first = block * BARS - past
        part = features[max(0, first) : first + past + BARS]
        strip[max(0, -first) : max(0, -first) + len(part)] = part
        return self._trunk(self._encoder(strip))

    def actor_parameters(self) -> dict[str, Tensor]:
        """The actor's parameters and its encoder's by their names in ``BarActorCritic``, float64."""
        return dict(self._weights)

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
                action_map=read_action_map(about),
                feature_names=about["feature_names"],
            )
        except (RuntimeError, KeyError) as error:
            raise ValueError("policy.json and policy.safetensors describe different networks") from error

    def _description(self) -> dict[str, Any]:
        return {
            **super()._description(),
            "market_network": self.network,
        }


def build_policy(weights: Mapping[str, Tensor], run: RunConfig, feature_names: Sequence[str]) -> Policy:
    """The deterministic policy of an actor's weights, by the names of the run's network.

    Where the legs share their weights it is a plain perceptron of twice the width.

    Args:
        weights: Parameters by name; only the actor's are used.
        run: Its network, and what actions ask for.
        feature_names: Names of the market features, in order.
    """
    network, action_map = run.network, ActionMap.of(run)
    if network.legs == "shared":
        weights = doubled(weights, swap_legs(observation_names(feature_names, run)))
    if network.encoder == "mlp":
        return Policy.from_weights(
            weights, activation=network.activation, action_map=action_map, feature_names=feature_names
        )
    described = network.model_dump(mode="json", exclude={"dropout", "layer_norm", "legs"})
    return BarPolicy(weights, described, action_map=action_map, feature_names=feature_names)
