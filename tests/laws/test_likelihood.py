"""The likelihood by the probability-flow ODE is that of the data, where it is known."""

import math

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.exact import Gaussian
from fewstep.likelihood import bits_per_dim, dequantise, log_density, rademacher
from fewstep.prediction import Prediction
from fewstep.process import EDM, VP, Cosine, Process
from tests.laws.cases import PROCESSES, generator, largest, mixture, normal

COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)


class Correlated(Denoiser):
    """The exact denoiser of N(0, COVARIANCE): x0 = alpha C (alpha^2 C + sigma^2)^-1 x_t."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t, t, cond=None):
        alpha, sigma = self.levels(x_t, t)
        total = alpha**2 * COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64)
        return Prediction.from_eps(x_t, alpha, sigma, sigma * torch.linalg.solve(total, x_t.T).T)


def true_density(x):
    return torch.distributions.MultivariateNormal(x.new_zeros(2), COVARIANCE).log_prob(x)


def noisy_end(exact, cond=None):
    """The density of the data at the noisy end, where N(0, prior_std^2) is an approximation."""
    return lambda x, t: exact.log_density(x, t, cond)


def data(n):
    x = normal(n, 2, seed=3) * 0.3
    return x + mixture(Cosine()).means[torch.arange(n) % 3]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_a_mixture_has_its_density(p, given):
    """Of the data with the noise that the process begins with, and given the class too."""
    exact, x = mixture(p), data(12)
    cond = torch.arange(12) % 3 // 2 if given else None
    share = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64).log()[cond] if given else 0.0

    def density(x_t, t):
        return exact.log_density(x_t, t, cond) - share  # p(x | y) of p(x, y)

    first = 1 / p.steps if hasattr(p, "steps") else 0.0
    t = max(first, float(p.time(-2 * math.log(1e-3))))
    alpha = float(p.alpha(t))
    want = density(alpha * x, t) + 2 * math.log(alpha)
    got = log_density(exact, x, cond, 64, prior=density)
    assert largest(got.nats, want) < 1e-3
    assert largest(got.error) == 0


@pytest.mark.parametrize("p", [EDM(), VP(), Cosine()], ids=str)
def test_a_correlated_gaussian_has_its_density(p):
    """With the plain prior, from sigma / alpha = 0.001 up."""
    x = normal(16, 2) @ torch.linalg.cholesky(COVARIANCE).T
    got = log_density(Correlated(p), x, steps=64)
    assert largest(got.nats, true_density(x)) < 1e-3
    assert got.evaluations == 256


def test_with_the_matched_prior_a_gaussian_has_it_to_five_digits():
    """N(0, C + 80^2) at the noisy end in place of N(0, 80^2)."""
    x = normal(8, 2) @ torch.linalg.cholesky(COVARIANCE).T

    def matched(x_t, t):
        wide = COVARIANCE + 80.0**2 * torch.eye(2, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(x_t.new_zeros(2), wide).log_prob(x_t)

    got = log_density(Correlated(EDM()), x, steps=256, prior=matched)
    assert largest(got.nats, true_density(x)) < 1e-5
    plain = log_density(Correlated(EDM()), x, steps=256)
    assert 1e-5 < largest(plain.nats, true_density(x)) < 1e-3


def test_the_error_falls_by_the_fourth_power_of_the_steps():
    x, exact = data(4), mixture(Cosine())
    want = log_density(exact, x, steps=256, prior=noisy_end(exact)).nats
    error = [
        float((log_density(exact, x, steps=n, prior=noisy_end(exact)).nats - want).norm())
        for n in (64, 128)
    ]
    assert 12 < error[0] / error[1] < 20


def test_probes_have_the_exact_trace_as_their_mean():
    """4096 probes, as 16 for each of 256 copies: the mean within 4 standard errors, which are
    those stated."""
    exact = Correlated(Cosine())
    x = (0.8 * normal(1, 2)).expand(256, 2)
    want = log_density(exact, x[:1], steps=24).nats
    got = log_density(exact, x, steps=24, probes=rademacher(x, 16, generator(1)))
    stated = float(got.error.square().mean().sqrt())
    assert stated > 0.01
    assert float(got.nats.std()) == pytest.approx(stated, rel=0.15)
    assert largest(got.nats.mean(), want) < 4 * stated / 16
    one = log_density(exact, x, steps=1, probes=rademacher(x, 1, generator(1)))
    assert bool(one.error.isnan().all())  # a single probe says nothing of its error


def test_a_diagonal_jacobian_needs_one_probe():
    exact = Gaussian(Cosine(), torch.zeros(3, dtype=torch.float64), 0.4)
    x = 0.4 * normal(5, 3)
    got = log_density(exact, x, steps=40, probes=rademacher(x, 3, generator(1)))
    assert largest(got.nats, log_density(exact, x, steps=40).nats) < 1e-10
    assert largest(got.error) < 1e-10


def test_equally_likely_levels_cost_eight_bits():
    """256 bins of width w hold all: the density is 1 / (256 w)."""
    for width in (1 / 127.5, 2 / 256):
        nats = torch.full((4,), -10 * math.log(256 * width), dtype=torch.float64)
        assert largest(bits_per_dim(nats, 10, width), 8.0) < 1e-12
    assert float(bits_per_dim(torch.zeros(1), 10, 2 / 256)) == 7


def test_dequantised_levels_fill_their_bins():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(64, 1)
    x = dequantise(pixels, generator(0))
    assert torch.equal(((x + 1) * 127.5).round().to(torch.uint8), pixels)
    part = (x.double() + 1) * 127.5 - pixels + 0.5
    assert 0 <= float(part.min()) < 0.001
    assert 0.999 < float(part.max()) <= 1.0001  # float32
    assert float(part.mean()) == pytest.approx(0.5, abs=4 / 12**0.5 / 128)
    with pytest.raises(ValueError, match="uint8"):
        dequantise(pixels.float(), generator(0))


def test_what_makes_no_sense_is_refused():
    exact, x = mixture(Cosine()), data(2)
    with pytest.raises(UsageError, match="at least 1"):
        log_density(exact, x, steps=0)
    with pytest.raises(UsageError, match="at least 1"):
        rademacher(x, 0, generator())
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        log_density(exact, x, probes=x)


@pytest.mark.parametrize("probes", [False, True])
def test_an_adaptive_solver_agrees(probes):
    """At a tolerance of 1e-6 with 192 steps of the fixed one."""
    pytest.importorskip("torchdiffeq")
    exact, x = Correlated(Cosine()), normal(4, 2)
    v = rademacher(x, 2, generator(1)) if probes else None
    want = log_density(exact, x, steps=192, probes=v)
    got = log_density(exact, x, probes=v, tolerance=1e-6)
    assert largest(got.nats, want.nats) < 1e-4
    assert largest(got.error, want.error) < 1e-4
    assert 20 < got.evaluations < 1000
    coarse = log_density(exact, x, probes=v, tolerance=1e-3)
    assert coarse.evaluations < got.evaluations
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="tolerance"):
            log_density(exact, x, tolerance=wrong)
