"""Market encoders: causal networks over the last bars, evaluated once per bar for any set of bars.

The market is exogenous, so an embedding depends on the bar alone, not on the account that looks at it. All encoders
read a *strip*: bars in order, of which the first ``window - 1`` are only context, [L, F] in and [L - window + 1, W]
out. Convolution and attention use weights that depend on the distance between bars, never on the place in the
window: a hidden value of a bar is then the same in all the windows it lies in, and is computed once as well.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from rayconf.sections import ENCODERS

BLOCK = 32
"""Queries that attend together: a block sees its own bars and the context before them."""


def dense(inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    """A linear layer with orthogonal weights and zero biases, drawn from ``generator`` alone."""
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


class Encoder(nn.Module):
    """[L, F] features of a strip of bars to [L - window + 1, W] embeddings."""

    window: int
    width: int


class BarFeatures(Encoder):
    """The bar's own features: what comes after is a trunk per bar."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.window, self.width = 1, features

    def forward(self, strip: Tensor) -> Tensor:
        """The strip itself."""
        return strip


class CausalConvolution(Encoder):
    """Residual layers of two taps, ``dilation`` bars apart (van den Oord et al. 2016).

    Dilations double while they fit and the last one takes what is left, so that an embedding reads exactly
    ``window`` bars.

    Args:
        features: Columns of a bar.
        width: Channels.
        window: Bars that an embedding reads.
        activation: Module class of the nonlinearity.
        generator: Source of the weights.
    """

    def __init__(
        self, features: int, width: int, window: int, activation: type[nn.Module], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.window, self.width = window, width
        self.dilations = dilations(window)
        self.inputs = dense(features, width, generator)
        self.taps = nn.ModuleList(dense(2 * width, width, generator) for _ in self.dilations)
        self.activate = activation()

    def forward(self, strip: Tensor) -> Tensor:
        """Embeddings of all bars of the strip but the context."""
        hidden = self.inputs(strip)
        for dilation, taps in zip(self.dilations, self.taps, strict=True):
            now = hidden[dilation:]
            hidden = now + self.activate(taps(torch.cat((hidden[:-dilation], now), dim=1)))
        return hidden


def dilations(window: int) -> tuple[int, ...]:
    """Distances between the two taps of each layer; they sum to ``window - 1``."""
    rest, step, result = window - 1, 1, []
    while rest:
        step = min(step, rest)
        result.append(step)
        rest -= step
        step *= 2
    return tuple(result)


class GatedRecurrence(Encoder):
    """A gated recurrent unit (Cho et al. 2014) over the window, from a state of zero at its first bar.

    The inputs' share of the gates is computed once per bar; the recurrence itself has to run through every window,
    all windows side by side.

    Args:
        features: Columns of a bar.
        width: Size of the state.
        window: Bars that an embedding reads.
        generator: Source of the weights.
    """

    def __init__(self, features: int, width: int, window: int, generator: torch.Generator) -> None:
        super().__init__()
        self.window, self.width = window, width
        self.inputs = dense(features, 3 * width, generator)
        self.state = dense(width, 3 * width, generator)

    def forward(self, strip: Tensor) -> Tensor:
        """Embeddings of all bars of the strip but the context."""
        gates = self.inputs(strip)
        count, width = len(strip) - self.window + 1, self.width
        hidden = gates.new_zeros(count, width)
        for age in range(self.window):
            now = gates[age : age + count]
            before = self.state(hidden)
            reset, update = torch.sigmoid(now[:, : 2 * width] + before[:, : 2 * width]).chunk(2, dim=1)
            proposal = torch.tanh(now[:, 2 * width :] + reset * before[:, 2 * width :])
            hidden = proposal + update * (hidden - proposal)
        return hidden


class LocalTransformer(Encoder):
    """Pre-norm transformer layers whose attention reaches a bounded number of bars back.

    The reaches of the layers sum to the window. Positions enter as a learned bias per head and distance (Shaw et
    al. 2018; Press et al. 2022), not as an encoding of the place in the window, see the module's docstring.

    Args:
        features: Columns of a bar.
        width: Width of the stream.
        window: Bars that an embedding reads.
        layers: Number of layers.
        heads: Attention heads.
        activation: Module class of the feed-forward nonlinearity.
        generator: Source of the weights.
    """

    def __init__(
        self,
        features: int,
        width: int,
        window: int,
        layers: int,
        heads: int,
        activation: type[nn.Module],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.window, self.width = window, width
        past = window - 1
        reaches = [past // layers + (i < past % layers) for i in range(layers)]
        self.inputs = dense(features, width, generator)
        self.layers = nn.ModuleList(LocalLayer(width, reach, heads, activation, generator) for reach in reaches)
        self.norm = nn.LayerNorm(width)

    def forward(self, strip: Tensor) -> Tensor:
        """Embeddings of all bars of the strip but the context."""
        hidden = self.inputs(strip)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)


class LocalLayer(nn.Module):
    """Attention over a bar and the ``reach`` bars before it, then a feed-forward network; both residual."""

    def __init__(
        self, width: int, reach: int, heads: int, activation: type[nn.Module], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.reach, self.heads = reach, heads
        self.attention_norm, self.mixing_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (dense(width, width, generator) for _ in range(3))
        self.output = dense(width, width, generator, 0.5)
        self.widen = dense(width, 2 * width, generator, math.sqrt(2))
        self.narrow = dense(2 * width, width, generator, 0.5)
        self.bias = nn.Parameter(torch.zeros(heads, reach + 1))
        self.activate = activation()
        seen = torch.arange(BLOCK + reach) - torch.arange(BLOCK).unsqueeze(1)  # 0: the oldest bar in reach
        self.register_buffer("distance", seen.clamp(0, reach), persistent=False)
        self.register_buffer("hidden", (seen < 0) | (seen > reach), persistent=False)
        self.distance: Tensor
        self.hidden: Tensor

    def forward(self, stream: Tensor) -> Tensor:
        """[L, W] to [L - reach, W]."""
        normed = self.attention_norm(stream)
        count = len(stream) - self.reach
        blocks = -(-count // BLOCK)
        spare = blocks * BLOCK - count
        query = self._heads(self.query(normed[self.reach :]), spare).unfold(1, BLOCK, BLOCK).transpose(2, 3)
        key = self._heads(self.key(normed), spare).unfold(1, BLOCK + self.reach, BLOCK)
        value = self._heads(self.value(normed), spare).unfold(1, BLOCK + self.reach, BLOCK).transpose(2, 3)
        bias = self.bias[:, self.distance].masked_fill(self.hidden, -math.inf).unsqueeze(1)
        scores = (query / math.sqrt(query.shape[-1])) @ key + bias
        mixed = (torch.softmax(scores, dim=-1) @ value).permute(1, 2, 0, 3).reshape(blocks * BLOCK, -1)[:count]
        stream = stream[self.reach :] + self.output(mixed)
        return stream + self.narrow(self.activate(self.widen(self.mixing_norm(stream))))

    def _heads(self, values: Tensor, spare: int) -> Tensor:
        """[L, W] to [H, L + spare, W / H]; the spare rows at the end belong to no bar and are dropped again."""
        padded = nn.functional.pad(values, (0, 0, 0, spare))
        return padded.view(len(padded), self.heads, -1).transpose(0, 1)


def build_encoder(
    network: dict[str, Any], features: int, activation: type[nn.Module], generator: torch.Generator
) -> Encoder:
    """The encoder that a run's network section names, for bars of ``features`` columns.

    Raises:
        ValueError: For ``mlp``, which has none.
    """
    kind, width, window = network["encoder"], network["encoder_width"], network["encoder_window"]
    if kind == "factored":
        return BarFeatures(features)
    if kind == "conv":
        return CausalConvolution(features, width, window, activation, generator)
    if kind == "gru":
        return GatedRecurrence(features, width, window, generator)
    if kind == "transformer":
        layers, heads = network["encoder_layers"], network["encoder_heads"]
        return LocalTransformer(features, width, window, layers, heads, activation, generator)
    raise ValueError(f"{kind!r} is no market encoder: {', '.join(ENCODERS)}")


def strip_rows(bars: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Bars that have to be read for the embeddings of ``bars``, and where those come out.

    Runs of bars less than ``window`` apart share their context; where the next bar is further away or earlier, a
    new run begins with a context of its own. Runs are laid end to end in one strip: what an encoder computes for
    context bars mixes two runs and is never used.

    Args:
        bars: [D] int64, any order, cheapest in ascending runs without repetitions.
        window: Bars that an embedding reads.

    Returns:
        [L] bars of the strip, none below ``1 - window``, and [D] rows of the strip's embeddings.
    """
    if window == 1:
        return bars, torch.arange(len(bars), device=bars.device)
    gap = torch.diff(bars)
    begins = torch.ones_like(bars, dtype=torch.bool)
    begins[1:] = (gap < 1) | (gap >= window)
    # A run occupies (last - first + 1) bars and window - 1 before them.
    advance = torch.where(begins, window, torch.cat((gap.new_zeros(1), gap)))
    place = advance.cumsum(0) - 1  # of each bar in the strip
    first = begins.nonzero().squeeze(1)
    start = place[first] - (window - 1)
    ends = torch.cat((start[1:], place[-1:] + 1))
    offset = (bars[first] - place[first]).repeat_interleave(ends - start)
    rows = torch.arange(len(offset), device=bars.device) + offset
    return rows, place - (window - 1)
