"""The network: separate actor and critic, a state-independent log standard deviation."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from algos.activation import FastTanh
from algos.distribution import SquashedGaussian
from algos.legs import MeanOverLegs, SharedLegs
from rayconf.keys import torch_seed

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": FastTanh, "silu": nn.SiLU}
ACTION_DIM = 2
"""One action per leg."""
POLICY_GAIN = 0.01
"""Scale of the actor's output layer: an untrained policy stays near cash. One that corrects a prior starts at 0."""


def perceptron(
    sizes: Sequence[int], activation: str, output_gain: float, generator: torch.Generator, layer_norm: bool = False
) -> nn.Sequential:
    """A multilayer perceptron with orthogonal weights and zero biases, drawn from ``generator`` alone.

    Linear layers stand at even places, what makes hidden units of their sums at odd ones.

    Args:
        sizes: Widths from the input to the output.
        activation: ``tanh`` or ``silu``, between layers.
        output_gain: Gain of the last layer; the others use the square root of two (Andrychowicz et al. 2021).
        generator: Source of the weights. Layers are created without torch's own initialisation, which would
            draw from the global generator.
        layer_norm: Norm the sums of each hidden layer (Ba, Kiros and Hinton 2016) before the nonlinearity.
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        nn.init.orthogonal_(linear.weight, output_gain if last else 2**0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if not last:
            activate = ACTIVATIONS[activation]()
            layers.append(nn.Sequential(nn.LayerNorm(outputs), activate) if layer_norm else activate)
    return nn.Sequential(*layers)


class ActorCritic(TorchRLModule, ValueFunctionAPI):
    """Actor ``pi``, critic ``vf`` and ``log_std``; the action is a squashed Gaussian.

    The log standard deviation does not depend on the state: exploration is a schedule of training here, not
    part of what the policy knows, and evaluation uses the mean. A squashed Gaussian rather than a Beta because
    its mean is a plain tanh, which is all that the deployed policy needs, and because its KL and ratio are
    cheap and finite (see ``SquashedGaussian``).

    ``model_config``: ``hidden`` widths, ``activation``, ``initial_log_std``, ``policy_gain``, the scale of the actor's
    output layer, and ``key``, from which the weights are drawn; ``layer_norm`` for norms in the hidden layers. With
    ``swap``, that of the observation's legs, the legs share their weights (``algos.legs``): the mean action and the
    value know no order of the legs, while the exploration's ``log_std`` stays one per leg.
    """

    def setup(self) -> None:
        """Build the networks from ``model_config``."""
        config: dict[str, Any] = dict(self.model_config)
        inputs = self.observation_space.shape[0]
        hidden = tuple(config["hidden"])
        generator = torch.Generator().manual_seed(torch_seed(config["key"], "weights"))
        swap = config.get("swap")
        activation, norm = config["activation"], config.get("layer_norm", False)
        outputs = ACTION_DIM if swap is None else 1
        pi = perceptron((inputs, *hidden, outputs), activation, config["policy_gain"], generator, norm)
        vf = perceptron((inputs, *hidden, 1), activation, 1.0, generator, norm)
        self.pi: nn.Module = pi if swap is None else SharedLegs(pi, swap)
        self.vf: nn.Module = vf if swap is None else MeanOverLegs(vf, swap)
        self.log_std = nn.Parameter(torch.full((ACTION_DIM,), float(config["initial_log_std"])))
        self.action_dist_cls = SquashedGaussian

    def parameters_of(self, observation: Tensor) -> Tensor:
        """Distribution parameters [B, 4] for observations [B, D]: means, then log standard deviations."""
        loc = self.pi(observation)
        return torch.cat((loc, self.log_std.expand_as(loc)), dim=-1)

    def encoder_parameters(self) -> set[str]:
        """Names of the parameters that read the market: here, without an encoder, the first layers, norms included."""
        first = ("pi.0.", "pi.1.", "vf.0.", "vf.1.")
        return {name for name, _ in self.named_parameters() if name.startswith(first)}

    def hidden_layers(self) -> list[nn.Module]:
        """The nonlinearities whose outputs are the hidden units of actor and critic."""
        return [layer for branch in (self.pi, self.vf) for layer in list(branch.children())[1::2]]

    def train(self, mode: bool = True) -> "ActorCritic":
        """Torch's, which visits every layer, only where it changes something: RLlib calls it per minibatch."""
        return self if self.training == mode else super().train(mode)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.parameters_of(batch[Columns.OBS])}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Value [B] of the batch's observations."""
        return self.vf(batch[Columns.OBS]).squeeze(-1)
