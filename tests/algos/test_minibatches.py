"""Minibatches in slabs of bars: every sample once, samples of a bar together, slabs in random order."""

import pytest
import torch

from algos.minibatches import SlabOrder


def drawn(bars: torch.Tensor, width: int, seed: int = 0, epochs: int = 1) -> list[torch.Tensor]:
    order, generator = SlabOrder(bars, width), torch.Generator().manual_seed(seed)
    return [order.draw(generator) for _ in range(epochs)]


@pytest.mark.parametrize("width", [1, 8, 1000])
def test_every_sample_once_and_bars_together(width: int) -> None:
    bars = torch.randint(40, 700, (3000,), generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    epochs = drawn(bars, width, epochs=3)
    assert torch.equal(before, torch.get_rng_state())
    distinct = len(bars.unique())
    for order in epochs:
        assert torch.equal(order.sort().values, torch.arange(3000))
        runs = torch.unique_consecutive(bars[order])
        assert len(runs) == distinct  # no bar comes up twice
        parts = sum(len(bars[part].unique()) for part in order.tensor_split(6))
        assert parts <= distinct + 5  # only those at the five cuts
        breaks = int((torch.diff(runs) != 1).sum())
        gaps = int((torch.diff(bars.unique()) != 1).sum())
        assert breaks <= gaps + 660 / width + 2
        if width == 1:
            assert breaks > 0.9 * distinct
    if width < 1000:
        assert not torch.equal(epochs[0], epochs[1])


def test_borders_move_and_the_generator_decides() -> None:
    bars = torch.arange(1000)
    first = drawn(bars, 50, epochs=20)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(bars, 50, epochs=20), strict=True))
    assert not torch.equal(first[0], drawn(bars, 50, seed=1)[0])
    borders = {int(order[1:][torch.diff(order) != 1][0]) % 50 for order in first}
    assert len(borders) > 8


def test_samples_of_a_bar_keep_their_order() -> None:
    bars = torch.tensor([7, 3, 7, 3, 7])
    assert drawn(bars, 1)[0].tolist() in ([1, 3, 0, 2, 4], [0, 2, 4, 1, 3])
