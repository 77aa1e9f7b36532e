"""Actor and critic over a market encoder: what reads only the market runs once per bar, a small head per sample.

Observations hold the number of the bar and the account, [B, 1 + A]; the features of all bars lie in the module. The
market part of a network ends in the sums of its last hidden layer. To these the head adds what the account
contributes, applies the nonlinearity and the output layer: with the encoder ``factored`` this is the plain
perceptron with the account entering at the last hidden layer instead of the first, and of the same number of
parameters where the two are equally wide.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor, nn

from algos.distribution import SquashedGaussian
from algos.encoders import Encoder, build_encoder, dense, strip_rows
from algos.module import ACTION_DIM, ACTIVATIONS, ActorCritic
from rayconf.errors import UserError
from rayconf.keys import torch_seed

ACCOUNT_GAIN = 2.0
"""Size of a first weight of the account. With the gain of the other layers, 0.2 at 64 units, the account hardly moves
the sums at first and holding a position is learnt late: after 2 M steps on the plain market at 10 bps, 0.77 of the
optimal growth against the plain network's 0.84 (``benchmarks.optimality``, the mean of seeds 0 and 1)."""
LARGEST_BAR = 1 << 24
"""Bar numbers travel in float32 observations, exact below this."""
SECTION = 4096
"""Distinct bars per pass where no gradient is needed; bounds the memory of long markets."""
BAR_PLAN = "bar_plan"
"""Key of a minibatch under which the Learner leaves what ``plan_bars`` returned."""


def plan_bars(bars: Tensor, window: int) -> tuple[Tensor, ...]:
    """What a forward pass would have to ask an accelerator about the bars of its samples.

    Args:
        bars: [B] int64, on the CPU, neighbours of the same bar together.
        window: Bars that an embedding reads.

    Returns:
        [D] distinct bars, [B] each sample's place among them, and ``strip_rows`` of the distinct bars.
    """
    distinct, place = torch.unique_consecutive(bars, return_inverse=True)
    return distinct, place, *strip_rows(distinct, window)


class Branch(nn.Module):
    """Layers from an embedding to the sums of the last hidden layer, per bar, and the head, per sample.

    Args:
        width: Width of the embedding.
        account: Columns of the account.
        hidden: Widths of the hidden layers; the account enters at the last.
        outputs: Outputs of the head.
        activation: ``tanh`` or ``silu``.
        output_gain: Gain of the output layer.
        generator: Source of the weights.
    """

    def __init__(
        self,
        width: int,
        account: int,
        hidden: tuple[int, ...],
        outputs: int,
        activation: str,
        output_gain: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.width = hidden[-1]
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [dense(width, size, generator, 2**0.5), ACTIVATIONS[activation]()]
            width = size
        self.trunk = nn.Sequential(*layers[:-1])
        self.account = nn.utils.skip_init(nn.Linear, account, width, bias=False)
        nn.init.orthogonal_(self.account.weight, ACCOUNT_GAIN * width**0.5, generator=generator)
        self.activate = ACTIVATIONS[activation]()
        self.output = dense(width, outputs, generator, output_gain)

    def head(self, sums: Tensor, account: Tensor) -> Tensor:
        """Outputs [B, O] from the market's share of the last hidden layer's sums [B, H] and the account [B, A]."""
        return self.output(self.activate(torch.addmm(sums, account, self.account.weight.t())))


class BarActorCritic(ActorCritic):
    """``ActorCritic`` whose market part runs once per bar.

    By default the critic has an encoder of its own, like the plain network: rewards are mostly noise, the critic's
    gradient is the larger one by far, and in a shared encoder it would decide what the actor sees. ``shared`` and
    ``detached`` save the second encoder.

    ``model_config``: that of ``ActorCritic``, the network section's fields on encoders, and ``features``, the number
    of market columns. ``attach`` gives it the market before the first call.
    """

    pi: Branch
    vf: Branch

    def setup(self) -> None:
        """Build the networks from ``model_config``."""
        config: dict[str, Any] = dict(self.model_config)
        account = self.observation_space.shape[0] - 1
        hidden, activation = tuple(config["hidden"]), config["activation"]
        generator = torch.Generator().manual_seed(torch_seed(config["key"], "weights"))
        self.sharing = config["encoder_sharing"]

        def encoder() -> Encoder:
            return build_encoder(config, config["features"], ACTIVATIONS[activation], generator)

        self.encoder = encoder()
        width = self.encoder.width
        self.pi = Branch(width, account, hidden, ACTION_DIM, activation, config["policy_gain"], generator)
        if self.sharing == "separate":
            self.critic_encoder = encoder()
        self.vf = Branch(width, account, hidden, 1, activation, 1.0, generator)
        self.log_std = nn.Parameter(torch.full((ACTION_DIM,), float(config["initial_log_std"])))
        self.action_dist_cls = SquashedGaussian
        self.register_buffer("market", torch.empty(0, config["features"]), persistent=False)
        self.market: Tensor

    def attach(self, features: np.ndarray) -> None:
        """Take the market's features [T, F]; no state of the module, every process attaches its own.

        Raises:
            ValueError: If the columns are not those that the networks were built for.
            UserError: If the market has too many bars to be numbered.
        """
        if len(features) > LARGEST_BAR:
            raise UserError(f"network.encoder: {len(features)} bars are more than {LARGEST_BAR}; use mlp or fewer bars")
        if features.shape[1] != self.market.shape[1]:
            raise ValueError(f"the network reads {self.market.shape[1]} features, the market has {features.shape[1]}")
        before = np.zeros((self.encoder.window - 1, features.shape[1]), features.dtype)
        like = self.log_std
        self.market = torch.from_numpy(np.concatenate((before, features))).to(like.device, like.dtype)

    def hidden_matrices(self) -> list[str]:
        """Names of the matrices between two hidden layers: not those that read features or account, nor the outputs."""
        outer = {"pi.account.weight", "vf.account.weight", "pi.output.weight", "vf.output.weight"}
        outer |= {"encoder.inputs.weight", "critic_encoder.inputs.weight"}
        if self.encoder.window == 1:
            outer |= {"pi.trunk.0.weight", "vf.trunk.0.weight"}
        return [name for name, p in self.named_parameters() if p.ndim == 2 and name not in outer and "bias" not in name]

    def encoder_parameters(self) -> set[str]:
        """Names of the encoders' parameters; of the first layers where the encoder has none (``factored``)."""
        names = {name for name, _ in self.named_parameters()}
        encoders = {name for name in names if name.startswith(("encoder.", "critic_encoder."))}
        return encoders or {name for name in names if name.startswith(("pi.trunk.0.", "vf.trunk.0."))}

    def hidden_layers(self) -> list[nn.Module]:
        """As for ``ActorCritic``, all but the last per bar; the encoder's own layers are not among them."""
        return [layer for branch in (self.pi, self.vf) for layer in (*list(branch.trunk)[1::2], branch.activate)]

    def embed(self, bars: Tensor, strip: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The actor's and the critic's embeddings [D, W] of bars [D]; ``strip`` as ``strip_rows`` returns it."""
        features, place = self._read(bars, strip)
        own = self.encoder(features)
        if self.sharing == "separate":
            other = self.critic_encoder(features)
        else:
            other = own.detach() if self.sharing == "detached" else own
        if self.encoder.window == 1:
            return own, other
        return own.index_select(0, place), other.index_select(0, place)

    def _read(self, bars: Tensor, strip: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
        """What an encoder has to read, and where the embeddings of ``bars`` come out."""
        if not len(self.market):
            raise RuntimeError("attach() the market's features before the network is asked about bars")
        window = self.encoder.window
        rows, place = strip or strip_rows(bars, window)
        return self.market.index_select(0, rows + (window - 1)), place

    def sums(self, bars: Tensor, strip: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Market shares [D, H] of the last hidden layers' sums of actor and critic for bars [D]; see ``embed``."""
        own, other = self.embed(bars, strip)
        return self.pi.trunk(own), self.vf.trunk(other)

    def actor_sums(self, bars: Tensor) -> Tensor:
        """The actor's part of ``sums`` alone, [D, H]."""
        features, place = self._read(bars, None)
        own = self.encoder(features)
        return self.pi.trunk(own if self.encoder.window == 1 else own.index_select(0, place))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        observation = batch[Columns.OBS]
        account = observation[:, 1:]
        # Neighbours of the same bar share its evaluation; the Learner orders its minibatches so that they meet.
        if BAR_PLAN in batch:
            distinct, place, *strip = batch[BAR_PLAN]
            own, other = self.sums(distinct, strip)
        else:
            distinct, place = torch.unique_consecutive(observation[:, 0], return_inverse=True)
            own, other = self.sums(distinct.long())
        loc = self.pi.head(own.index_select(0, place), account)
        logits = torch.cat((loc, self.log_std.expand_as(loc)), dim=-1)
        return {Columns.ACTION_DIST_INPUTS: logits, Columns.EMBEDDINGS: (other, place)}

    def parameters_of(self, observation: Tensor) -> Tensor:
        """Distribution parameters [B, 4] for observations [B, 1 + A]: means, then log standard deviations."""
        return self._forward({Columns.OBS: observation})[Columns.ACTION_DIST_INPUTS]

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Value [B] of the batch's observations; ``embeddings`` as the forward pass returned them."""
        if embeddings is None:
            embeddings = self._forward(batch)[Columns.EMBEDDINGS]
        sums, place = embeddings
        return self.vf.head(sums.index_select(0, place), batch[Columns.OBS][:, 1:]).squeeze(-1)

    def table(self) -> "BarTable":
        """An empty table of evaluations, valid for as long as the weights do not change."""
        return BarTable(self)


class BarTable:
    """Market parts of actor and critic, evaluated once per bar for one state of the weights.

    Args:
        module: The network, with its market attached.
    """

    def __init__(self, module: BarActorCritic) -> None:
        self._module = module
        bars = len(module.market) - module.encoder.window + 1
        self._place = torch.full((bars,), -1, device=module.market.device)
        self._actor = self._critic = module.market.new_empty(0, module.pi.width)

    @torch.no_grad()
    def evaluate(self, bars: Tensor) -> None:
        """Evaluate those of ``bars`` (any shape, repetitions allowed) that have not been evaluated."""
        wanted = torch.zeros(len(self._place), dtype=torch.bool, device=bars.device)
        wanted[bars.flatten()] = True
        new = (wanted & (self._place < 0)).nonzero().squeeze(1)
        if not len(new):
            return
        self._place[new] = torch.arange(len(self._actor), len(self._actor) + len(new), device=bars.device)
        parts = [self._module.sums(part) for part in new.split(SECTION)]
        self._actor = torch.cat((self._actor, *(own for own, _ in parts)))
        self._critic = torch.cat((self._critic, *(other for _, other in parts)))

    def means(self, observation: Tensor) -> Tensor:
        """Mean latents [B, 2] for observations [B, 1 + A] of evaluated bars."""
        return self._module.pi.head(self._actor.index_select(0, self._at(observation)), observation[:, 1:])

    def values(self, observation: Tensor) -> Tensor:
        """Values [B, 1] for observations [B, 1 + A] of evaluated bars."""
        return self._module.vf.head(self._critic.index_select(0, self._at(observation)), observation[:, 1:])

    def _at(self, observation: Tensor) -> Tensor:
        return self._place.index_select(0, observation[:, 0].long())
