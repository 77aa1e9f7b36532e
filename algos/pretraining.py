"""Pre-training of the market encoder: quantiles of what comes next, by the pinball loss (Koenker and Bassett 1978).

The pinball loss is a proper scoring rule: its mean is least where the forecasts are the true quantiles (Gneiting and
Raftery 2007). The yardstick is the naive forecast, the quantiles of all fitted targets whatever the bar, from which
training starts: the output layer's weights are zero and its biases are that forecast.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algos.bar_network import SECTION
from algos.encoders import BarFeatures, build_encoder, dense, strip_rows
from algos.forecast_targets import VOLATILITY_BARS, Targets, build_targets
from algos.module import ACTIVATIONS
from envs.training_bars import TrainingBars
from rayconf.errors import UserError
from rayconf.keys import torch_seed
from rayconf.run_config import RunConfig

LEVELS = tuple(round(0.1 * i, 1) for i in range(1, 10))
"""Probabilities of the quantiles that are forecast."""
SLAB_BARS = 64
"""Neighbours that are drawn together where an encoder reads a window, so that they share its bars."""
GRAD_NORM = 1.0
SMALLEST = 100
"""Decision bars to fit, and to hold out, below which there is nothing to learn from."""


def pinball(forecast: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Pinball loss [..., Q] of quantile forecasts [..., Q] at levels [Q] for targets [...]."""
    error = target.unsqueeze(-1) - forecast
    return torch.maximum(levels * error, (levels - 1) * error)


class Forecaster(nn.Module):
    """The encoder of a run's network with an output layer for the quantiles of K targets.

    Where the encoder has no weights (``factored``) the first hidden layer stands for it.

    Args:
        network: The run's network section.
        features: Columns of a bar.
        targets: K.
        generator: Source of the weights.
    """

    def __init__(self, network: Mapping[str, Any], features: int, targets: int, generator: torch.Generator) -> None:
        super().__init__()
        activation = ACTIVATIONS[network["activation"]]
        built = build_encoder(dict(network), features, activation, generator)
        self.window, width = built.window, built.width
        self.encoder: nn.Module = built
        self.activate: nn.Module = nn.Identity()
        if isinstance(built, BarFeatures):
            width = network["hidden"][0]
            self.encoder = dense(features, width, generator, 2**0.5)
            self.activate = activation()
        self.targets = targets
        self.head = dense(width, targets * len(LEVELS), generator, 0.0)

    def forward(self, strip: Tensor, place: Tensor) -> Tensor:
        """Quantiles [D, K, Q] of the bars that come out of a strip [L, F] at ``place`` [D], see ``strip_rows``."""
        embedded = self.activate(self.encoder(strip))
        return self.head(embedded.index_select(0, place)).unflatten(1, (self.targets, len(LEVELS)))


def places(encoder: str, name: str, sharing: str) -> tuple[str, ...]:
    """Parameters of ``BarActorCritic``, actor's and critic's, that a forecaster's ``encoder.*`` parameter starts."""
    own = name.removeprefix("encoder.")
    if encoder == "factored":
        return f"pi.trunk.0.{own}", f"vf.trunk.0.{own}"
    return (name, f"critic_encoder.{own}") if sharing == "separate" else (name,)


@dataclass(frozen=True)
class Epoch:
    """One pass over the bars; 0: before the first."""

    number: int
    fit_loss: float
    """Mean pinball loss while fitting; of epoch 0: of the naive forecast on the bars to fit."""
    loss: float
    """Mean pinball loss on the bars held out."""
    naive_loss: float
    """That of the naive forecast."""
    bars_read: int
    """Bars fitted so far, repetitions counted."""
    seconds: float

    @property
    def skill(self) -> float:
        """Share of the naive forecast's loss that is saved."""
        return 1 - self.loss / self.naive_loss


@dataclass(frozen=True)
class Pretrained:
    """The outcome of a fit."""

    weights: dict[str, Tensor]
    """``encoder.*`` and ``head.*``, CPU."""
    naive: np.ndarray
    """[K, Q] float32: the naive forecast."""
    names: tuple[str, ...]
    """Of the K targets."""
    border: np.datetime64
    """First date that was held out."""
    trained_to: np.datetime64
    """Date of the last bar that was read, held-out bars included."""
    fitted: int
    """Decision bars fitted."""
    held_out: int
    best: Epoch
    last: Epoch
    skills: tuple[float, ...]
    """[K] skill by target on the bars held out."""
    gain: float
    """Loss saved against the weights that the fit started from, on the bars held out."""
    gain_se: float
    """Its standard error, from means of blocks as long as the longest horizon; of one market alone."""


class Fit:
    """The base stage on the training spans of many markets, or of a specialist on those of one.

    Args:
        bars: What is trained on.
        run: Network, lag and stages.
        key: Key of initial weights and of the order of bars.
        base: What a specialist goes on from, and whose internal split and naive forecast it keeps; None: from nothing.
        device: Where to train.

    Raises:
        UserError: Too few bars.
    """

    def __init__(
        self,
        bars: TrainingBars,
        run: RunConfig,
        key: int,
        base: "Pretrained | None" = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._stages, self._base = run.stages, base
        network = run.network.model_dump(mode="json")
        features = bars.features.shape[1]
        window = 1 if run.network.encoder == "factored" else run.network.encoder_window
        self._targets = targets = build_targets(bars, run.env.lag, run.stages.horizons, window)
        if not len(targets.rows):
            raise UserError(_too_few(bars, 0, 0))
        self._border = targets.border if base is None else base.border
        self._fitted, self._held = targets.split(self._border)
        if min(len(self._fitted), len(self._held)) < SMALLEST:
            raise UserError(_too_few(bars, len(self._fitted), len(self._held)))
        self._trained_to = targets.ends.max()
        generator = torch.Generator().manual_seed(torch_seed(key, "weights"))
        self._order = torch.Generator().manual_seed(torch_seed(key, "order"))
        self._levels = torch.tensor(LEVELS, dtype=torch.float32, device=device)
        naive = naive_forecast(targets, self._fitted) if base is None else base.naive
        self._naive = torch.tensor(naive, device=device)
        self.net = Forecaster(network, features, len(targets.names), generator)
        if base is None:
            self.net.head.bias.data.copy_(torch.tensor(naive.ravel()))
        else:
            self.net.load_state_dict(base.weights)
        self.net.to(device)
        before = np.zeros((window - 1, features), np.float32)
        self._features = torch.tensor(np.concatenate((before, bars.features)), device=device)
        self._rows = torch.tensor(targets.rows, device=device)
        self._values = torch.tensor(targets.values, device=device)

    def epochs(self) -> Iterator[Epoch]:
        """Train to the end, telling of each pass; ``outcome`` is known afterwards."""
        stages, special, net = self._stages, self._base is not None, self.net
        rate = stages.learning_rate * (stages.specialist_lr_factor if special else 1.0)
        matrices, vectors = ([p for p in net.parameters() if (p.ndim >= 2) == many] for many in (True, False))
        decay = 0.0 if special else stages.weight_decay  # a specialist is pulled to the base instead
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=rate)
        anchor = [p.detach().clone() for p in net.parameters()] if special else []
        naive = self._mean(self._naive_losses(self._held))
        fit_loss = (
            self._mean(self._naive_losses(self._fitted)) if not special else self._mean(self.losses(self._fitted))
        )
        start = self.losses(self._held)
        loss, read, seconds = self._mean(start), 0, 0.0
        self._start, self._best = start, (Epoch(0, fit_loss, loss, naive, 0, 0.0), start, _copied(net))
        self._last = self._best[0]
        yield self._last
        for number in range(1, 1 + (stages.specialist_epochs if special else stages.epochs)):
            began = time.perf_counter()
            fit_loss = self._pass(optimizer, anchor)
            read += len(self._fitted)
            held = self.losses(self._held)
            seconds += time.perf_counter() - began
            self._last = epoch = Epoch(number, fit_loss, self._mean(held), naive, read, seconds)
            # A specialist's passes are few and all made: its last weights stand the test, not the luckiest.
            if special or epoch.loss < self._best[0].loss:
                self._best = (epoch, held, _copied(net))
            yield epoch
            if not special and number - self._best[0].number >= stages.patience:
                break

    def outcome(self) -> Pretrained:
        """What ``epochs`` came to."""
        best, losses, weights = self._best
        naive = self._naive_losses(self._held)
        skills = 1 - torch.nanmean(losses, 0) / torch.nanmean(naive, 0)
        difference = torch.nanmean(self._start - losses, 1).double().cpu().numpy()
        gain, error = blocked_mean(difference, max(*self._stages.horizons, VOLATILITY_BARS))
        return Pretrained(
            weights,
            self._naive.cpu().numpy(),
            self._targets.names,
            self._border,
            self._trained_to,
            len(self._fitted),
            len(self._held),
            best,
            self._last,
            tuple(skills.tolist()),
            gain,
            error,
        )

    @torch.no_grad()
    def losses(self, chosen: np.ndarray) -> Tensor:
        """Pinball loss [N, K] of the chosen decisions, the mean over levels; NaN where there is no target."""
        picked = torch.from_numpy(chosen).to(self._rows.device)
        return torch.cat([self._loss(part, self._forecast(part)) for part in picked.split(SECTION)])

    def _naive_losses(self, chosen: np.ndarray) -> Tensor:
        picked = torch.from_numpy(chosen).to(self._rows.device)
        return torch.cat([self._loss(part, self._naive.expand(len(part), -1, -1)) for part in picked.split(SECTION)])

    def _forecast(self, chosen: Tensor) -> Tensor:
        window = self.net.window
        rows, place = strip_rows(self._rows[chosen], window)
        return self.net(self._features.index_select(0, rows + (window - 1)), place)

    def _loss(self, chosen: Tensor, forecast: Tensor) -> Tensor:
        return pinball(forecast, self._values[chosen], self._levels).mean(-1)

    def _pass(self, optimizer: torch.optim.Optimizer, anchor: list[Tensor]) -> float:
        """One pass over the decisions to fit; its mean loss."""
        net, size = self.net, 1 if self.net.window == 1 else SLAB_BARS
        picked = torch.from_numpy(self._fitted)
        slabs = picked.split(size)
        order = torch.randperm(len(slabs), generator=self._order).tolist()
        # The slabs of a batch in order of time: neighbours then share what they read.
        per_batch = max(1, self._stages.batch_bars // size)
        total, count = 0.0, 0
        for first in range(0, len(order), per_batch):
            chosen = torch.cat([slabs[i] for i in sorted(order[first : first + per_batch])]).to(self._rows.device)
            losses = self._loss(chosen, self._forecast(chosen))
            known = ~losses.isnan()
            loss = torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)
            pulled = loss
            if anchor:
                distance = sum((p - was).square().sum() for p, was in zip(net.parameters(), anchor, strict=True))
                pulled = loss + 0.5 * self._stages.pull * distance
            optimizer.zero_grad()
            pulled.backward()
            nn.utils.clip_grad_norm_(net.parameters(), GRAD_NORM)
            optimizer.step()
            total, count = total + float(loss.detach()) * len(chosen), count + len(chosen)
        return total / count

    @staticmethod
    def _mean(losses: Tensor) -> float:
        return float(torch.nanmean(losses.double()))


def naive_forecast(targets: Targets, fitted: np.ndarray) -> np.ndarray:
    """Quantiles [K, Q] float32 of the targets of the decisions to fit."""
    found = np.nanquantile(targets.values[fitted].astype(np.float64), LEVELS, axis=0)
    return np.ascontiguousarray(found.T.astype(np.float32))


def blocked_mean(values: np.ndarray, block: int) -> tuple[float, float]:
    """Mean of a series [N] and its standard error from the means of whole blocks; infinite below two of them."""
    blocks = len(values) // block
    if blocks < 2:
        return float(values.mean()), float("inf")
    means = values[: blocks * block].reshape(blocks, block).mean(axis=1)
    return float(values.mean()), float(means.std(ddof=1) / np.sqrt(blocks))


def _copied(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in net.state_dict().items()}


def _too_few(bars: TrainingBars, fitted: int, held: int) -> str:
    pairs = ", ".join(dict.fromkeys(bars.pairs))
    shown = pairs if len(pairs) <= 60 else f"{len(set(bars.pairs))} pairs"
    return (
        f"stages.run: {shown}: {fitted} decision bars to fit and {held} to hold out are too few to pre-train on; "
        f"{SMALLEST} of each are needed: give a longer training span or shorter stages.horizons"
    )
