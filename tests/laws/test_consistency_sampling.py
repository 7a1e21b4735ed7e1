"""Laws of consistency sampling, on the exact consistency function of Gaussian data.

The standard deviations are of 200,000 numbers: one standard error is 0.16 %, so that the 1 % that
is allowed is 6.3 of them, and a false alarm of one statistic has probability 3e-10.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.denoiser import CONSISTENCY, EDM, Cond, NetDenoiser, V
from fewstep.errors import UsageError
from fewstep.exact import Gaussian, GaussianEnd
from fewstep.process import EDM as EDMProcess
from fewstep.process import VE, VP, Cosine, Process
from fewstep.solvers import Consistency, generate, grids, nfe, sample
from fewstep.solvers.levels import listed
from laws.cases import PROCESSES, counted, generator, largest, normal, truth, walk

C, LEAST = 0.5, 0.002
ENDS = (0.0, LEAST)
every_process = pytest.mark.parametrize("p", PROCESSES, ids=str)
every_end = pytest.mark.parametrize("least", ENDS)


def gaussian(p: Process, least: float = 0.0, mean: float = 0.3, size: int = 3) -> GaussianEnd:
    """Return the consistency function of N(mean, C^2)."""
    return GaussianEnd(p, torch.full((size,), mean, dtype=torch.float64), C, least)


def refuse(x: Tensor) -> Tensor:
    """A source of noise that is not to be asked."""
    raise AssertionError("noise was drawn")


class Random(nn.Module):
    """A network of random weights, as large outputs as a network might have."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = 3 * torch.randn(16, 16, generator=generator(seed))

    def forward(self, x: Tensor, label: Tensor, cond: Cond = None) -> Tensor:
        del cond
        out = x.float().flatten(1) @ self.weight + label.float()[:, None]
        return (10 * out.sin()).reshape(x.shape).to(x.dtype)


# ---------------------------------------------------------------- the boundary
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_consistency_network_is_the_identity_at_the_boundary_to_the_last_bit(
    dtype: torch.dtype,
) -> None:
    """100 random networks; with a bare reading of EDM the result would differ."""
    p = EDMProcess()
    t = LEAST / p.sigma_max
    assert p.sigma(t) == LEAST
    times = torch.full((4,), t, dtype=torch.float64)
    x = (2 * normal(4, 1, 4, 4)).to(dtype)
    for seed in range(100):
        d = NetDenoiser(Random(seed), p, CONSISTENCY)
        assert torch.equal(d(x, t).x0, x)
        assert torch.equal(d(x, times).x0, x)
        assert not torch.equal(d(x, 2 * t).x0, x)
    assert not torch.equal(NetDenoiser(Random(0), p, EDM)(x, t).x0, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("param", [V, EDM], ids=repr)
@every_process
def test_other_readings_are_the_identity_at_clean_data(
    p: Process, param: Any, dtype: torch.dtype
) -> None:
    """Hence `least` = 0 for them."""
    if p.sigma(0.0) != 0:
        return
    x = (2 * normal(4, 1, 4, 4)).to(dtype)
    for seed in range(100 if p == Cosine() else 3):
        d = NetDenoiser(Random(seed), p, param)
        assert torch.equal(d(x, 0.0).x0, x)
        assert torch.equal(d(x, torch.zeros(4, dtype=torch.float64)).x0, x)


# ---------------------------------------------------------------- the exact function
@every_end
@every_process
def test_the_exact_function_is_constant_along_the_trajectory(p: Process, least: float) -> None:
    """Along that in closed form, to 1e-12, and the identity at its end."""
    f, mean = gaussian(p, least), 0.3
    y = normal(6, 3)
    floor = float(p.sigma(0.0)) / float(p.alpha(0.0))
    for ratio in (4.0, 0.7, 0.05, 1e-2):
        t = float(p.time(-2 * math.log(max(ratio, floor))))
        alpha, sigma = (float(level) for level in p.levels(t))
        x = alpha * mean + math.hypot(alpha * C, sigma) * y
        want = mean + math.hypot(C, least) * y
        assert largest(f(x, t).x0, want) < 1e-12
        assert largest(f(x, torch.full((6,), t, dtype=torch.float64)).x0, want) < 1e-12
    t = float(p.time(-2 * math.log(0.02)))
    ends = gaussian(p, 0.02)
    assert largest(ends(y, t).x0 * float(p.alpha(t)), y) < 1e-9


@pytest.mark.parametrize("p", [VP(), Cosine(), VE(), EDMProcess()], ids=str)
def test_the_exact_function_ends_where_the_ode_does(p: Process) -> None:
    """Judged by classical Runge-Kutta on the posterior mean, which knows nothing of its root."""
    times = p.time(-2 * torch.tensor([4.0, 0.05], dtype=torch.float64).log())
    x = normal(6, 3) * float(p.prior_std(float(times[0])))
    data = Gaussian(p, torch.full((3,), 0.3, dtype=torch.float64), C)
    end = truth(data, x, times, 512) / float(p.alpha(float(times[1])))
    assert largest(gaussian(p, 0.05)(x, float(times[0])).x0, end) < 1e-8


def test_bad_numbers_are_refused() -> None:
    for std, least in ((0.0, 0.1), (0.5, -0.1)):
        with pytest.raises(ValueError, match="must be > 0"):
            GaussianEnd(VP(), torch.zeros(1), std, least)
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(UsageError, match=r"least .* must be a number >= 0"):
            Consistency(bad)


# ---------------------------------------------------------------- steps
@every_end
@every_process
def test_a_step_keeps_the_variance_of_gaussian_data(p: Process, least: float) -> None:
    """gain^2 Var x_t + std^2 = alpha_s^2 C^2 + sigma_s^2 at every pair of levels, to 1e-12."""
    f, solver = gaussian(p, least, mean=0.0, size=1), Consistency(least)
    floor = float(p.sigma(0.0)) / float(p.alpha(0.0))
    ratios = [r for r in (60.0, 3.0, 0.8, 0.05, 0.003) if floor < r <= p.sigma(1.0) / p.alpha(1.0)]
    clock = [float(p.time(-2 * math.log(r))) for r in ratios]
    one = torch.ones(1, 1, dtype=torch.float64)
    for k, t in enumerate(clock):
        for s in clock[k + 1 :]:
            gain = float(solver.step(f, one, t, s, noise=torch.zeros_like)[0])
            std = float(solver.step(f, 0 * one, t, s, noise=torch.ones_like)[0])
            (a_t, s_t), (a_s, s_s) = (p.levels(u) for u in (t, s))
            var = gain**2 * (a_t**2 * C**2 + s_t**2) + std**2
            assert var == pytest.approx(a_s**2 * C**2 + s_s**2, rel=1e-12)


@every_end
@pytest.mark.parametrize("levels", [(40.0,), (40.0, 0.8), (40.0, 4.0, 0.8, 0.1)], ids=len)
@every_process
def test_samples_have_the_variance_of_the_data(
    p: Process, levels: tuple[float, ...], least: float
) -> None:
    """One step, two and four: standard deviation / C is 1 to 1 %.

    The mean is 0.3 to 5 standard errors, and what one step keeps of the start's, which is 0.
    """
    x = generate(gaussian(p, least, size=200), (1000, 200), listed(p, levels), Consistency(least))
    assert float(x.std()) / C == pytest.approx(1, abs=0.01)
    assert float(x.mean()) == pytest.approx(0.3, abs=5 * C / 200_000**0.5 + 0.3 * C / 40)


def test_the_posterior_mean_is_no_consistency_function() -> None:
    """The negative control: its samples have hardly any variance after one step."""
    data = Gaussian(Cosine(), torch.zeros(200, dtype=torch.float64), C)
    x = generate(data, (100, 200), listed(Cosine(), (40.0,)), Consistency())
    assert float(x.std()) < 0.1 * C


def test_no_noise_is_drawn_where_none_is_added() -> None:
    """To clean data and to the boundary: one step is a function of the starting noise."""
    p = EDMProcess()
    x, f = 80 * normal(4, 3), gaussian(p, LEAST)
    for s in (0.0, LEAST / p.sigma_max, LEAST / p.sigma_max / 2):
        end, _ = Consistency(LEAST).step(f, x, 1.0, s, noise=refuse)
        assert torch.equal(end, f(x, 1.0).x0)
    with pytest.raises(AssertionError, match="noise was drawn"):
        Consistency(LEAST).step(f, x, 1.0, 2 * LEAST / p.sigma_max, noise=refuse)
    end = walk(f, x, grids.uniform(1), Consistency(LEAST), noise=refuse)
    assert torch.equal(end, f(x, 1.0).x0)


def test_a_finished_image_gets_no_noise() -> None:
    """Where a process has noise left at t = 0, as VE has 0.01: the image is what f says."""
    p = VE()
    assert float(p.sigma(0.0)) > 0
    x, f = 50 * normal(4, 3), gaussian(p, 0.0)
    assert torch.equal(walk(f, x, grids.uniform(1), Consistency(), noise=refuse), f(x, 1.0).x0)


def test_each_step_costs_one_evaluation() -> None:
    for n in (1, 2, 5):
        d = counted(EDMProcess())
        times = grids.uniform(n)
        assert nfe(d, times, Consistency(LEAST)) == n
        walk(d, normal(7, 2), times, Consistency(LEAST), noise=torch.ones_like)
        assert d.net.images == 7 * n


def test_an_image_is_its_own_whatever_the_batch() -> None:
    f, times = gaussian(Cosine(), size=6), listed(Cosine(), (40.0, 4.0, 0.8))
    whole = generate(f, (10, 6), times, Consistency(), seed=3)
    for batch in (1, 3, 4):
        assert torch.equal(generate(f, (10, 6), times, Consistency(), None, 3, batch), whole)
    *_, alone = sample(f, (1, 6), times, Consistency(), seed=8)
    assert torch.equal(alone.x[0], whole[5])


def test_a_step_from_below_the_boundary_is_refused() -> None:
    p, f = EDMProcess(), gaussian(EDMProcess(), LEAST)
    with pytest.raises(UsageError, match=r"sigma / alpha = 0\.001: .* ends at 0\.002"):
        sample(f, (1, 3), listed(p, (80.0, 0.001)), Consistency(LEAST))
    sample(f, (1, 3), listed(p, (80.0, LEAST)), Consistency(LEAST))


def test_a_grid_that_reaches_the_boundary_is_made_without_its_last_step() -> None:
    """Karras' levels of n + 1 steps without that of 0.002, whose step would be the identity."""
    p, solver = EDMProcess(), Consistency(LEAST)
    for n, want in ((1, [80.0]), (2, [80.0, 2.515]), (3, [80.0, 9.723, 0.470])):
        times = solver.started_above(grids.karras(p, n), p, lambda k: grids.karras(p, k))
        assert p.sigma(times).tolist() == pytest.approx([*want, 0.0], abs=1e-3)
    even = grids.uniform(3)
    assert solver.started_above(even, p, grids.uniform) is even
    whole = grids.karras(p, 3)
    assert Consistency().started_above(whole, p, lambda k: grids.karras(p, k)) is whole
