"""Laws of the bound's parts: what a fixed variance weighs, and what the objectives make of it."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fewstep.denoiser import EPS, Cond, Denoiser, NetDenoiser
from fewstep.exact import Gaussian
from fewstep.objectives import Bound, Chain, Hybrid, bits_per_dim, log_likelihood, noised
from fewstep.prediction import Prediction
from fewstep.process import Process, Tabulated
from fewstep.reverse import posterior
from fewstep.shapes import Number, like
from fewstep.solvers import DDPM, grids
from laws.cases import PROCESSES, generator, largest, normal

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
TABLE = Tabulated()


def pictures(n: int, seed: int = 1) -> Tensor:
    """Return n images of 8-bit values, shape (n, 1, 2, 2)."""
    return LEVELS[torch.randint(256, (n, 1, 2, 2), generator=generator(seed))]


@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_step_of_fixed_variance_is_a_weighted_squared_error(variance: str) -> None:
    """L_(t-1) = beta^2 / (2 var alpha (1 - alpha-bar)) |eps - eps'|^2 + a constant, in nats."""
    t = torch.arange(2, 1001, dtype=torch.float64) / 1000
    beta, bar = TABLE.beta[1:], TABLE.alpha_bar[1:]
    var = {"large": beta, "small": beta * (1 - TABLE.alpha_bar[:-1]) / (1 - bar)}[variance]
    alpha, sigma = bar.sqrt()[:, None], (1 - bar).sqrt()[:, None]
    eps, said = normal(999, 3), normal(999, 3, seed=1)
    x_t = alpha * 0.3 + sigma * eps
    truth, guess = (Prediction(x_t, alpha, sigma, eps=e) for e in (eps, said))
    chain = Chain(variance=variance)
    got = chain.term(TABLE, guess, truth, t) - chain.term(TABLE, truth, truth, t)
    weight = beta**2 / (2 * var * (1 - beta) * (1 - bar))
    want = weight * (eps - said).square().mean(1) / math.log(2)
    assert largest(got / want, 1.0) < 1e-9


@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_the_prior_is_what_sampling_begins_with(p: Process) -> None:
    """KL(N(alpha x0, sigma^2) || N(0, alpha^2 + sigma^2)) at t = 1, each dimension in bits."""
    x0 = 1.7 * normal(5, 3)
    there = Normal(p.alpha(1.0) * x0, torch.tensor(p.sigma(1.0), dtype=torch.float64))
    start = Normal(0 * x0, torch.tensor(p.prior_std(1.0), dtype=torch.float64))
    want = kl_divergence(there, start).mean(1) / math.log(2)
    assert largest(Chain().prior(p, x0), want) < 1e-12


@pytest.mark.parametrize("v", [-1.0, 0.0, 1.0, 1.5])
def test_the_learned_variance_of_the_last_step(v: float) -> None:
    """Between beta-tilde of two steps, the floor, and beta of the first, and not cut at either."""
    t = torch.full((256,), 1 / 1000, dtype=torch.float64)
    x0, near = LEVELS[:, None], 0.999 * LEVELS[:, None]
    alpha, sigma = TABLE.alpha(t)[:, None], TABLE.sigma(t)[:, None]
    guess = Prediction(x0, alpha, sigma, x0=near, variance=torch.full_like(x0, v))
    bar = TABLE.alpha_bar
    floor = (1 - bar[0]) / (1 - bar[1]) * TABLE.beta[1]
    log_var = (1 + v) / 2 * TABLE.beta[0].log() + (1 - v) / 2 * floor.log()
    want = -log_likelihood(x0, near, log_var / 2)[:, 0] / math.log(2)
    got = Chain().term(TABLE, guess, Prediction(x0, alpha, sigma, x0=x0), t)
    assert largest(got, want) < 1e-9


def test_the_tanh_form_is_off_by_less_than_two_in_ten_thousand() -> None:
    """Largest difference of the two distribution functions: 1.8e-4, seen at the first value."""
    std = torch.tensor(0.2, dtype=torch.float64).log()
    at = torch.linspace(-3, 1, 4001, dtype=torch.float64)
    x = torch.full_like(at, -1.0)
    near, true = (log_likelihood(x, at, std, a).exp() for a in (True, False))
    assert largest(near, true) == pytest.approx(1.8e-4, abs=0.05e-4)
    z = (-1 + 1 / 255 - at) / 0.2
    want = 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    assert largest(near, want.clamp_min(1e-12)) < 1e-12


@pytest.mark.parametrize("approximate", [False, True])
def test_both_tails_have_the_same_digits(approximate: bool) -> None:
    """p(x | mean) = p(-x | -mean), in single precision too, where 1 - p would be rounded away."""
    x, mean = LEVELS[None].float(), torch.linspace(-1, 1, 41)[:, None]
    for std in (0.01, 0.1, 1.0):
        log_std = torch.tensor(math.log(std))
        one = log_likelihood(x, mean, log_std, approximate)
        assert largest(one, log_likelihood(-x, -mean, log_std, approximate)) < 1e-4


class Exact(Denoiser):
    """The exact denoiser of N(0, c^2) with the exact variance of its reverse steps."""

    process = TABLE

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c
        self.data = Gaussian(TABLE, torch.zeros(1, dtype=torch.float64), c)

    def width(self, t: Number, s: Number) -> Number:
        """Return the variance of x_s given x_t: of the product of two Gaussians."""
        ratio = TABLE.alpha(t) / TABLE.alpha(s)
        own = (TABLE.alpha(s) * self.c) ** 2 + TABLE.sigma(s) ** 2
        return 1 / (1 / own + ratio**2 / posterior(TABLE, t, s)[0])

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        said = self.data(x_t, t)
        s = t - 1 / 1000
        low, high = (v.log() for v in reversed(posterior(TABLE, t, s)))
        share = (self.width(t, s).log() - low) / (high - low)
        said.variance = like(2 * share - 1, x_t).expand_as(x_t)
        return said


def test_the_exact_variance_of_a_reverse_step() -> None:
    """tilde + c0^2 Var(x0 | x_t): beta for unit data, tilde for one point, above beta for wide."""
    t = torch.arange(2, 1001, dtype=torch.float64) / 1000
    s = t - 1 / 1000
    beta, tilde = posterior(TABLE, t, s)
    for c in (1e-9, 0.1, 0.5, 1.0, 2.0):
        left = c**2 * TABLE.sigma(t) ** 2 / (TABLE.alpha(t) ** 2 * c**2 + TABLE.sigma(t) ** 2)
        c0 = TABLE.alpha(s) * beta / TABLE.sigma(t) ** 2
        exact = Exact(c).width(t, s)
        assert largest((tilde + c0**2 * left) / exact, 1.0) < 1e-12
        if c == 1:
            assert largest(exact / beta, 1.0) < 1e-12
        if c == 1e-9:
            assert largest(exact / tilde, 1.0) < 1e-12
        assert bool((exact > beta * (1 + 1e-12)).all()) == (c > 1)
        assert bool((exact > tilde * (1 - 1e-12)).all())


@pytest.mark.parametrize("c", [0.1, 0.5, 2.0])
def test_a_chain_of_learned_variance_keeps_the_marginals_of_a_gaussian(c: float) -> None:
    """With the exact mean and variance every x_s has exactly the variance of its noise level."""
    times = grids.strided(1000, "trailing")
    t, s = times[:-2], times[1:-1]
    data, line = Exact(c), torch.ones(len(t), 1, dtype=torch.float64)
    quiet, _ = DDPM("learned").step(data, line, t, s, noise=torch.zeros_like)
    loud, _ = DDPM("learned").step(data, line, t, s, noise=torch.ones_like)
    of = [(TABLE.alpha(u) * c) ** 2 + TABLE.sigma(u) ** 2 for u in (t, s)]
    got = quiet[:, 0] ** 2 * of[0] + (loud - quiet)[:, 0] ** 2
    assert largest(got / of[1], 1.0) < 1e-11


class Twice(torch.nn.Module):
    """Says eps = 0.9 x and the variance v = 0.3, and remembers what it was told."""

    heard: Cond = None

    def forward(self, x: Tensor, label: Tensor, cond: Cond = None) -> Tensor:
        self.heard = cond
        shift = 0 * x if cond is None else 0 * x + 0.1 * cond.reshape(-1, 1, 1, 1)
        return torch.cat([0.9 * x + shift, 0 * x + 0.3], dim=1)


class First:
    """The first times of a table, of which the first is the step that codes the values."""

    def __call__(self, process: Tabulated, n: int, noise: torch.Generator) -> Tensor:
        return torch.arange(1, n + 1) / process.steps


@pytest.mark.parametrize("steps", [1000, 4000])
def test_the_hybrid_is_the_error_and_a_thousandth_of_the_chain(steps: int) -> None:
    """mse(eps) + T / 1000 bits of a step, whatever T: as the programs' rescaled loss."""
    p, x0 = Tabulated("cosine", steps), pictures(16)
    denoiser = NetDenoiser(Twice(), p, EPS)
    got = Hybrid(times=First())(denoiser, x0, None, 0, generator(2))
    t = First()(p, 16, generator())
    truth = noised(denoiser, x0, t, generator(2))
    guess = denoiser(truth.x_t, t)
    bits = Chain(steps, "learned", approximate=True).term(p, guess, truth, t)
    mse = (0.9 * truth.x_t - truth.eps).square().flatten(1).mean(1)
    assert largest(got, mse + steps / 1000 * bits) < 1e-12 * float(got.max())
    exact = Chain(steps, "learned").term(p, guess, truth, t)
    assert ((exact - bits).abs() > 1e-9).tolist() == [True] + 15 * [False]
    bound = Bound(times=First())(denoiser, x0, None, 0, generator(2))
    assert largest(bound, steps * bits) < 1e-12 * float(bound.max())


@pytest.mark.parametrize("goal", [Hybrid(drop=0.2), Bound(drop=0.2)], ids=str)
def test_labels_are_dropped_for_the_bound_too(goal: Hybrid | Bound) -> None:
    net, cond = Twice(), torch.arange(4000) % 10
    goal(NetDenoiser(net, TABLE, EPS), pictures(4000), cond, 0, generator(3))
    assert net.heard is not None
    gone = net.heard < 0
    assert abs(float(gone.double().mean()) - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 4000)
    assert torch.equal(net.heard[~gone], cond[~gone])


def test_the_bits_of_an_image_are_those_of_its_class() -> None:
    """Every step is asked with the classes that are given."""
    p, x0 = Tabulated("cosine", 8), pictures(3)
    denoiser = NetDenoiser(Twice(), p, EPS)
    told = bits_per_dim(denoiser, x0, torch.tensor([5, 5, 0]), noise=generator(4))
    free = bits_per_dim(denoiser, x0, noise=generator(4))
    assert ((told - free).abs() > 1e-3).tolist() == [True, True, False]


def test_the_bits_of_an_image_are_the_prior_and_every_step() -> None:
    """The whole bound from its parts, on the same draws."""
    p, x0 = Tabulated("cosine", 8), pictures(3)
    denoiser, chain = NetDenoiser(Twice(), p, EPS), Chain(8, "small")
    got = bits_per_dim(denoiser, x0, noise=generator(5))
    g, want = generator(5), chain.prior(p, x0)
    torch.rand(3, dtype=torch.float64, generator=g)  # which steps to take, of which all are taken
    for i in range(1, 9):
        t = torch.full((3,), i / 8, dtype=torch.float64)
        truth = noised(denoiser, x0, t, g)
        want = want + chain.term(p, denoiser(truth.x_t, t), truth, t)
    assert largest(got, want) < 1e-12 * float(got.max())
