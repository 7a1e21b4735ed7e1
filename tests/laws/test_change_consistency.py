"""Changing images with a consistency model: algorithm 4 of its paper, strokes, noise, walks."""

import math

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.edit import (
    BlockMeans,
    Luminance,
    Pixels,
    complete,
    decode,
    denoise,
    frames,
    put,
    stroke,
)
from fewstep.edit.measure import LUMINANCE
from fewstep.errors import UsageError
from fewstep.exact import Gaussian, GaussianEnd
from fewstep.guide import Clamp
from fewstep.prediction import Prediction
from fewstep.process import EDM, VE, VP, Cosine
from fewstep.solvers import DDIM, Consistency, PerImage, generate, grids
from fewstep.solvers.levels import listed
from tests.laws.cases import PROCESSES, generator, largest, normal

C, RHO, LEAST = 0.5, 0.9, 0.002
HALF = torch.zeros(4, 4, dtype=torch.bool)
HALF[:, 1:3] = True
MEASURES = {"pixels": Pixels(HALF), "luminance": Luminance(), "blocks": BlockMeans(2)}


def noise(seed=0):
    g = generator(seed)
    return lambda x: torch.randn(x.shape, generator=g, dtype=x.dtype)


def last(steps):
    *_, x = steps
    return x


def end(p, least=LEAST, shape=(3, 4, 4), dtype=torch.float64):
    return GaussianEnd(p, torch.zeros(shape, dtype=dtype), C, least)


def orthogonal(first):
    """Return an orthogonal matrix whose first column points along `first`."""
    start = torch.eye(len(first), dtype=torch.float64)
    start[:, 0] = torch.tensor(first, dtype=torch.float64)
    q = torch.linalg.qr(start).Q
    return q * q[:, 0].sum().sign()


# ---------------------------------------------------------------- the transforms of algorithm 4
def test_exchanging_the_measured_part_is_exchanging_a_coefficient_of_an_orthogonal_transform():
    """A^-1 [Om A y + (1 - Om) A x0]: A mixes RGB, or the four pixels of a block; A A^T = 1."""
    x, y = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)

    def exchanged(a, flat_x, flat_y):
        assert largest(a @ a.T, torch.eye(len(a), dtype=torch.float64)) < 1e-12
        known = flat_x @ a
        known[..., 0] = (flat_y @ a)[..., 0]
        return known @ a.T

    a = orthogonal(LUMINANCE)
    assert largest(a[:, 0] / a[0, 0], torch.tensor(LUMINANCE).double() / LUMINANCE[0]) < 1e-7
    want = exchanged(a, x.movedim(1, -1), y.movedim(1, -1)).movedim(-1, 1)
    assert largest(put(x, y, Luminance()), want) < 1e-12

    def cut(z):
        return z.reshape(2, 3, 2, 2, 2, 2).transpose(3, 4).reshape(2, 3, 2, 2, 4)

    a = orthogonal([0.5] * 4)
    assert largest(a[:, 0], 0.5) < 1e-12
    want = exchanged(a, cut(x), cut(y))
    assert largest(cut(put(x, y, BlockMeans(2))), want) < 1e-12


# ---------------------------------------------------------------- completing
@pytest.mark.parametrize("levels", [(40.0,), (40.0, 0.8), (40.0, 4.0, 0.8, 0.1)], ids=len)
@pytest.mark.parametrize("name", MEASURES)
def test_the_result_has_what_was_measured(name, levels):
    """In float32, clipped, to 1e-5 at the last step; the means of blocks among them."""
    y, measure = (2 * normal(2, 3, 4, 4)).clamp(-1, 1).float(), MEASURES[name]
    for p in PROCESSES:
        f = Clamp(end(p, dtype=torch.float32))
        x = last(complete(f, y, measure, listed(p, levels), noise(), solver=Consistency(LEAST)))
        assert largest(measure(x), measure(y)) < 1e-5
        assert largest(x - measure(x)) > 0.01
        if name == "pixels":
            assert torch.equal(x[..., 1:3], y[..., 1:3])
        if name == "blocks":
            means = [z.reshape(2, 3, 2, 2, 2, 2).mean((3, 5)) for z in (x, y)]
            assert largest(*means) < 1e-5


@pytest.mark.parametrize("name", MEASURES)
def test_every_step_is_that_of_algorithm_4(name):
    """Against the loop itself, with the same noise: clip, exchange, then noise on all of it."""
    p, y, measure = EDM(), normal(2, 3, 4, 4).clamp(-1, 1), MEASURES[name]
    f, levels = end(p), [80.0, 5.0, 0.5]
    times = listed(p, levels)
    got = list(complete(Clamp(f), y, measure, times, noise(), solver=Consistency(LEAST)))
    z = noise()
    first, other = z(y), z(y)
    x = put(p.prior_std(float(times[0])) * first, y + levels[0] * other, measure)
    for k, s in enumerate([*levels[1:], LEAST]):
        x0 = put(f(x, float(times[k])).x0.clamp(-1, 1), y, measure)
        x = x0 + math.sqrt(s**2 - LEAST**2) * (z(y) if s > LEAST else 0)
        assert largest(got[k], x) < 1e-12


class PairEnd(Denoiser):
    """The consistency function of two numbers of unit variance and correlation RHO."""

    def __init__(self, process):
        super().__init__()
        self.process = process
        cov = torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)
        self.var, self.axes = torch.linalg.eigh(cov)

    def forward(self, x_t, t, cond=None):
        alpha, sigma = self.levels(x_t, t)
        gain = (self.var / (alpha**2 * self.var + sigma**2)).sqrt()
        return Prediction.from_x0(x_t, alpha, sigma, (x_t @ self.axes * gain) @ self.axes.T)


def test_what_was_not_measured_fits_to_it():
    """It moves towards RHO y, the more so over more levels: 4000 samples, errors of 0.01."""
    y = torch.full((4000, 1, 1, 2), 1.5, dtype=torch.float64)
    left, p = Pixels(torch.tensor([[True, False]])), Cosine()
    means = []
    for n in (1, 4, 40):
        times = grids.karras(p, n, low=0.05)
        x = last(complete(PairEnd(p), y, left, times, noise(), solver=Consistency()))
        means.append(float(x[..., 1].mean()) / 1.5)
    assert means[0] < means[1] - 0.03 < means[2] - 0.06
    assert means[2] == pytest.approx(RHO, abs=0.2)


# ---------------------------------------------------------------- strokes, noise and walks
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8])
def test_a_sketch_goes_in_one_step_to_the_end_of_its_trajectory(strength):
    """Data N(0, C^2), r = sigma / alpha: (y + r z) C / sqrt(C^2 + r^2)."""
    r, p = math.tan(strength * math.pi / 2), VP()
    y = torch.full((20_000, 1), 1.5, dtype=torch.float64)
    x = last(stroke(end(p, 0, (1,)), y, grids.uniform(1), strength, noise(), None, Consistency()))
    share = C / math.hypot(C, r)
    assert float(x.mean()) == pytest.approx(1.5 * share, abs=0.02)
    assert float(x.std()) == pytest.approx(r * share, rel=0.03)


@pytest.mark.parametrize("ratio", [0.1, 0.8, 3.0])
@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_noise_is_taken_away_from_its_own_level_on(p, ratio):
    """One step of a consistency model needs no noise; the ODE goes to the same end."""
    y = normal(8, 3) * math.hypot(C, ratio)
    want = y * C / math.hypot(C, ratio)
    times = grids.karras(p, 1)
    got = last(denoise(end(p, 0, (3,)), y, times, ratio, noise(), solver=Consistency()))
    assert largest(got, want) < (5 * p.sigma(0.0) or 1e-9)  # VE ends with noise of 0.01
    data = Gaussian(p, torch.zeros(3, dtype=torch.float64), C)
    ode = last(denoise(data, y, grids.karras(p, 400, low=0.01), ratio, noise(), solver=DDIM()))
    assert largest(ode, want) < 0.05


def test_what_is_no_noise_of_the_grid_is_refused():
    f, y = end(EDM(), shape=(3,)), normal(2, 3)
    assert torch.equal(last(denoise(f, y, grids.uniform(1), 0.0, noise())), y)
    for bad in (-0.1, 81.0, math.nan):
        with pytest.raises(UsageError, match=r"noise .*: must be in 0\.\.80"):
            denoise(f, y, grids.uniform(1), bad, noise(), solver=Consistency())


def test_a_walk_between_noises_ends_on_the_images_of_their_seeds():
    p = Cosine()
    f, times = end(p, 0, dtype=torch.float32), grids.uniform(1)
    seeds = [4, 9]
    start = PerImage(seeds)(torch.empty(2, 3, 4, 4)) * p.prior_std(1.0)
    x = decode(f, frames(start[0], start[1], 5), times, None, Consistency())
    for k, seed in ((0, 4), (-1, 9)):
        alone = generate(f, (1, 3, 4, 4), times, Consistency(), seed=seed)
        assert torch.equal(x[k], alone[0])
    p = VE()  # ends with noise of 0.01, to which DDIM would add its own eps
    f, z = end(p, 0.01), 50 * normal(2, 3, 4, 4)
    assert largest(decode(f, z, times, None, Consistency(0.01)), f(z, 1.0).x0) < 1e-6
    sizes = x.square().flatten(1).mean(1)
    assert float(sizes.min()) > 0.9 * float(sizes[[0, -1]].min())  # not the shrunk middle
