"""The fast tangent is the tangent, in value and gradient."""

import pytest
import torch

from algos.activation import FastTanh


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_tanh(dtype: torch.dtype) -> None:
    x = torch.cat((torch.linspace(-30, 30, 4001), torch.logspace(-12, 0, 200), torch.tensor([0.0]))).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    fast, exact = FastTanh()(ours), torch.tanh(theirs)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(fast, exact, rtol=0, atol=2 * eps)
    weight = torch.linspace(-2, 3, len(x)).to(dtype)
    (fast * weight).sum().backward()
    (exact * weight).sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=20 * eps)
    assert bool((fast.abs() <= 1).all())
    assert fast[-1] == 0


def test_the_gradient_is_that_of_the_values() -> None:
    x = torch.linspace(-3, 3, 25, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(FastTanh(), (x,))


def test_infinite_inputs_have_the_limits() -> None:
    x = torch.tensor([float("-inf"), float("inf"), float("nan")])
    assert FastTanh()(x)[:2].tolist() == [-1.0, 1.0]
    assert bool(FastTanh()(x)[2].isnan())
