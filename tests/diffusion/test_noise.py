"""The noise schedule against its own calculus."""

import pytest
import torch

from sedd.diffusion.noise import LogLinearNoise

TIMES = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1])
def test_rate_is_the_derivative_of_total_noise(eps):
    noise = LogLinearNoise(eps)
    t = TIMES.clone().requires_grad_()

    (derivative,) = torch.autograd.grad(noise.total(t).sum(), t)

    torch.testing.assert_close(noise.rate(t), derivative, rtol=1e-12, atol=0)


@pytest.mark.parametrize("eps", [1e-3, 0.1])
def test_the_share_of_masked_genes_grows_in_proportion_to_time(eps):
    t = torch.cat([torch.zeros(1), TIMES, torch.ones(1)]).double()

    masked = -torch.expm1(-LogLinearNoise(eps).total(t))

    torch.testing.assert_close(masked, (1 - eps) * t, rtol=1e-12, atol=0)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1])
def test_a_masked_gene_is_revealed_at_rate_one_over_time_whatever_eps(eps):
    noise = LogLinearNoise(eps)

    reveal_rate = noise.rate(TIMES) / torch.expm1(noise.total(TIMES))

    torch.testing.assert_close(reveal_rate, 1 / TIMES, rtol=1e-12, atol=0)


def test_noise_of_the_shortest_time_survives_single_precision():
    """log(1 - x) would be 0 here; one part in 10^6 is eight times the spacing of float32."""
    t = torch.tensor([1e-9, 1e-7], dtype=torch.float32)

    torch.testing.assert_close(LogLinearNoise().total(t), 0.999 * t, rtol=1e-6, atol=0)
