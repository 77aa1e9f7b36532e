"""The squashed Gaussian against torch's own distributions."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution, kl_divergence

from algos.distribution import SquashedGaussian


def both(seed: int, rows: int = 50) -> tuple[SquashedGaussian, Independent]:
    g = torch.Generator().manual_seed(seed)
    loc = torch.randn(rows, 2, generator=g, dtype=torch.float64)
    log_std = 0.5 * torch.randn(rows, 2, generator=g, dtype=torch.float64) - 0.5
    ours = SquashedGaussian.from_logits(torch.cat((loc, log_std), dim=-1))
    return ours, Independent(Normal(loc, log_std.exp()), 1)


def test_density_and_divergence_are_those_of_the_latent() -> None:
    (p, p_ref), (q, q_ref) = both(0), both(1)
    latent = p.sample(generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(p.logp(latent), p_ref.log_prob(latent))
    torch.testing.assert_close(p.kl(q), kl_divergence(p_ref, q_ref))


def test_probability_ratio_is_that_of_the_squashed_action() -> None:
    (p, p_ref), (q, q_ref) = both(0), both(1)
    latent = p.sample(generator=torch.Generator().manual_seed(2)).clamp(-3, 3)
    squash = [TanhTransform()]
    squashed = [TransformedDistribution(ref, squash).log_prob(torch.tanh(latent)) for ref in (p_ref, q_ref)]
    torch.testing.assert_close(p.logp(latent) - q.logp(latent), squashed[0] - squashed[1], rtol=1e-6, atol=1e-6)


def test_ratio_is_finite_where_the_action_touches_its_bound() -> None:
    p, q = both(0)[0], both(1)[0]
    far = torch.full_like(p.loc, 25.0)
    assert bool((torch.tanh(far) == 1).all())
    assert bool(torch.isfinite(p.logp(far) - q.logp(far)).all())


def test_entropy_is_that_of_the_action() -> None:
    loc = torch.tensor([[0.0, 0.4], [-1.0, 0.2]], dtype=torch.float64)
    p = SquashedGaussian(loc, torch.full_like(loc, -0.5))
    latent = p.sample(sample_shape=(400_000,), generator=torch.Generator().manual_seed(0))
    ref = TransformedDistribution(Normal(p.loc, p.log_std.exp()), [TanhTransform(cache_size=1)])
    action = ref.transforms[0](latent)
    monte_carlo = -ref.log_prob(action).mean(dim=0).sum(-1)
    torch.testing.assert_close(p.entropy(), monte_carlo, rtol=0, atol=0.01)
    assert bool((p.entropy() < 2 * math.log(2)).all())


def test_a_wide_latent_has_less_entropy_than_a_moderate_one() -> None:
    loc = torch.zeros(1, 2)
    wide, moderate = (float(SquashedGaussian(loc, torch.full_like(loc, s)).entropy()) for s in (1.5, -0.2))
    assert wide < moderate


def test_samples_come_from_the_given_generator_alone() -> None:
    p = both(0)[0]
    state = torch.get_rng_state()
    a = p.sample(generator=torch.Generator().manual_seed(5))
    assert torch.equal(a, p.sample(generator=torch.Generator().manual_seed(5)))
    assert torch.equal(state, torch.get_rng_state())
    assert p.to_deterministic().sample() is not None
    with pytest.raises(AssertionError):
        torch.testing.assert_close(a, p.sample(generator=torch.Generator().manual_seed(6)))
