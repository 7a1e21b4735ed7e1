"""Laws of the variational bound: on Gaussian data it is known to the last digit."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.denoiser import EPS, NetDenoiser
from fewstep.errors import UsageError
from fewstep.objectives import Bound, Chain, Hybrid, bits_per_dim, log_likelihood
from fewstep.prediction import Prediction
from fewstep.process import Cosine, Tabulated
from fewstep.reverse import posterior
from laws.cases import largest, normal

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def exact_bound(s2: float, variance: str) -> float:
    """Return the bound in nats per dimension of N(0, s2) under its exact denoiser.

    Every term depends on x0 through (x0 - E[x0 | x_t])^2 alone, whose mean is the conditional
    variance, so a pair at that distance gives the expectation without sampling. The decoder is
    the continuous Gaussian of the last step.
    """
    p, steps = Tabulated("linear"), 1000
    t = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    alpha, sigma = p.alpha(t)[:, None], p.sigma(t)[:, None]
    left = s2 * sigma**2 / (alpha**2 * s2 + sigma**2)
    zero = torch.zeros(steps, 1, dtype=torch.float64)
    var_ts, tilde = (v[:, None] for v in posterior(p, t, t - 1 / steps))
    tilde[-1] = tilde[-2]
    c0 = p.alpha(t - 1 / steps)[:, None] * var_ts / sigma**2
    exact = tilde + c0**2 * left
    low, high = tilde.log(), var_ts.log()
    wide = 2 * (exact.log() - low) / (high - low) - 1
    guess = Prediction(zero, alpha, sigma, x0=zero, variance=wide)
    truth = Prediction(zero, alpha, sigma, x0=left.sqrt())
    bits = Chain(steps, variance).term(p, guess, truth, t)
    nats = math.log(2) * bits[:-1].sum()
    prior = math.log(2) * Chain(steps, variance).prior(
        p, torch.full((1, 1), math.sqrt(s2)).double()
    )
    return float(nats + prior) + decoder(s2, variance)


def decoder(s2: float, variance: str) -> float:
    """Return the nats of x0 under the last step taken for a continuous Gaussian."""
    p = Tabulated("linear")
    alpha, var = p.alpha(1e-3), p.sigma(1e-3) ** 2
    left = s2 * var / (alpha**2 * s2 + var)
    width = left if variance == "learned" else posterior(p, 2e-3, 1e-3)[1]
    return 0.5 * (math.log(2 * math.pi) + math.log(width) + left / width)


@pytest.mark.parametrize(
    ("s2", "variance", "want"),
    [
        (0.25, "learned", 0.725791),
        (0.25, "large", 0.840461),
        (0.25, "small", 1.295717),
        (1.0, "learned", 1.418939),
        (1.0, "large", 1.532641),
        (1.0, "small", 1.997533),
        (0.01, "learned", -0.883647),
        (0.01, "large", -0.754443),
        (0.01, "small", -0.382423),
    ],
)
def test_the_bound_of_gaussian_data(s2: float, variance: str, want: float) -> None:
    """With the exact variance it is the entropy; the fixed ones cost 0.11 and 0.57 nats."""
    got = exact_bound(s2, variance)
    assert got == pytest.approx(want, abs=1e-5)
    if variance == "learned":
        assert got == pytest.approx(0.5 * math.log(2 * math.pi * math.e * s2), abs=1e-6)


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("mean", [-1.3, -0.9, 0.013, 0.4, 1.0, 5.0])
@pytest.mark.parametrize("std", [0.01, 0.05, 1.0, 30.0])
def test_the_levels_share_all_the_mass(mean: float, std: float, approximate: bool) -> None:
    """256 probabilities sum to 1 within 1e-12, and the floor of 1e-12 that some are lifted to."""
    at = torch.full_like(LEVELS, mean)
    mass = log_likelihood(LEVELS, at, torch.tensor(math.log(std)).double(), approximate).exp()
    floored = int((mass < 1.0001e-12).sum())
    assert abs(float(mass.sum()) - 1) < 1e-12 * (1 + floored)
    assert floored == 0 or std < 1


def test_the_tanh_form_is_near_the_normal_distribution() -> None:
    at, log_std = torch.zeros_like(LEVELS), torch.tensor(math.log(0.3)).double()
    near, true = (log_likelihood(LEVELS, at, log_std, a).exp() for a in (True, False))
    assert 1e-7 < largest(near, true) < 2 * 1.8e-4


def test_the_prior_of_images() -> None:
    """E x^2 = 1/3: 9.70e-6 bits per dimension."""
    x = torch.full((1, 1), math.sqrt(1 / 3), dtype=torch.float64)
    assert float(Chain().prior(Tabulated("linear"), x)) == pytest.approx(9.70e-6, abs=5e-9)


def test_learned_variances_reach_both_bounds() -> None:
    """v = -1 is the posterior's variance, v = 1 the large one, at every step but the last."""
    p = Tabulated("cosine")
    t = torch.arange(2, 1001, dtype=torch.float64) / 1000
    alpha, sigma = p.alpha(t)[:, None], p.sigma(t)[:, None]
    x = torch.zeros(999, 1, dtype=torch.float64)
    truth = Prediction(x, alpha, sigma, x0=x + 0.1)
    for v, name in ((-1.0, "small"), (1.0, "large")):
        plain = Prediction(x, alpha, sigma, x0=x)
        said = Prediction(x, alpha, sigma, x0=x, variance=torch.full_like(x, v))
        want = Chain(variance=name).term(p, plain, truth, t)
        got = Chain(variance="learned").term(p, said, truth, t)
        assert float(((got - want) / want).abs().max()) < 1e-9


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_last_step_pays_for_the_values(variance: str) -> None:
    """The likelihood of 8 bits under the width of the step before: beta-tilde of two steps."""
    p = Tabulated("linear")
    t = torch.full((256,), 1 / 1000, dtype=torch.float64)
    x0, near = LEVELS[:, None], 0.97 * LEVELS[:, None]
    alpha, sigma = p.alpha(t)[:, None], p.sigma(t)[:, None]
    points = [Prediction(x0, alpha, sigma, x0=x) for x in (near, x0)]
    bar = p.alpha_bar
    width = math.sqrt(float((1 - bar[0]) / (1 - bar[1]) * (1 - bar[1] / bar[0])))
    above = torch.special.ndtr((x0 - near + 1 / 255) / width)
    below = torch.special.ndtr((x0 - near - 1 / 255) / width)
    above[-1], below[0] = 1, 0
    want = -torch.log2((above - below).clamp_min(1e-12))
    got = Chain(variance=variance).term(p, *points, t)
    assert largest(got, want[:, 0]) < 1e-6


class Twice(torch.nn.Module):
    """A network with two parameters: one for the mean, one for the variance."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor(0.95, dtype=torch.float64))
        self.wide = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.cat([self.mean * x, self.wide * torch.ones_like(x)], dim=1)


def test_the_bound_of_the_hybrid_moves_the_variance_alone() -> None:
    """The gradient of the mean's parameter is that of the squared error, bit for bit."""
    x0 = LEVELS[torch.randint(256, (8, 1, 4, 4), generator=torch.Generator().manual_seed(1))]
    found = []
    for rate in (0.0, 1e-3):
        net = Twice()
        denoiser = NetDenoiser(net, Tabulated("linear"), EPS)
        noise = torch.Generator().manual_seed(0)
        Hybrid(rate)(denoiser, x0, None, 0, noise).mean().backward()
        found.append((net.mean.grad, net.wide.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == 0
    assert found[1][1] != 0


def test_a_random_step_stands_for_the_whole_bound() -> None:
    """The mean of T times a uniformly drawn step is the sum over all steps without the prior."""
    p = Tabulated("cosine", 8)
    x0 = LEVELS[torch.randint(256, (1, 1, 2, 2), generator=torch.Generator().manual_seed(1))]
    denoiser = NetDenoiser(Twice(), p, EPS)
    whole = torch.stack([
        bits_per_dim(denoiser, x0, variance="learned", noise=torch.Generator().manual_seed(i))
        for i in range(400)
    ])  # fmt: skip
    want = float(whole.mean() - Chain(8).prior(p, x0))
    noise = torch.Generator().manual_seed(7)
    many = x0.expand(8 * 400, -1, -1, -1)
    with torch.no_grad():
        got = Bound()(denoiser, many, None, 0, noise)
    # the times are stratified: 400 of each step, so both means have the same standard error;
    # 6 of them are a false alarm in fewer than one of 10^8 seeds
    error = math.sqrt(2) * float(whole.std()) / 20
    assert abs(float(got.mean()) - want) < 6 * error
    assert error < 0.05 * abs(want)


@pytest.mark.parametrize("steps", [8, 1000, 4000])
def test_times_are_moved_to_the_end_of_their_step(steps: int) -> None:
    """Ends stay where they are, in float32 too; any other time goes up to the next."""
    chain = Chain(steps)
    ends = torch.arange(1, steps + 1) / steps
    assert ends.dtype == torch.float32
    assert torch.equal(chain.whole(ends), ends)
    assert torch.equal(chain.whole(ends - 0.5 / steps), ends)


@pytest.mark.parametrize("goal", [Hybrid(1.0), Bound()], ids=str)
def test_a_process_without_a_table_is_trained_at_whole_steps(goal) -> None:
    """The pair lies where its term is: a thousand steps of a process that is continuous."""
    seen = []

    class Watched(NetDenoiser):
        def forward(self, x_t, t, cond=None):
            seen.append(t)
            return super().forward(x_t, t, cond)

    x0 = LEVELS[torch.randint(256, (64, 1, 2, 2), generator=torch.Generator().manual_seed(1))]
    goal(Watched(Twice(), Cosine()), x0, None, 0, torch.Generator().manual_seed(0))
    index = seen[0].double() * 1000
    assert float((index - index.round()).abs().max()) < 1e-3


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Chain(variance="medium"),
        lambda: Chain(steps=1),
        lambda: Hybrid(rate=-1.0),
        lambda: Hybrid(rate=math.nan),
        lambda: Bound(variance="none"),
        lambda: Bound(drop=2.0),
    ],
)
def test_bad_settings_are_refused(bad) -> None:
    with pytest.raises(UsageError):
        bad()


def test_a_network_without_a_variance_is_refused() -> None:
    x = normal(2, 1, 2, 2)
    one = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    point = Prediction(x, one, one, x0=x)
    with pytest.raises(UsageError, match="predicts no variance"):
        Chain().term(Tabulated(), point, point, torch.tensor([0.5, 0.6]).double())
