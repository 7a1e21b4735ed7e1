"""Changing images: what was measured stays, the rest fits to it, a sketch shows as it should."""

import math
from itertools import pairwise

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.edit import (
    BlockMeans,
    Luminance,
    Pixels,
    Repeat,
    complete,
    enlarged,
    nearest,
    put,
    remaining,
    stroke,
    within,
)
from fewstep.edit.measure import LUMINANCE
from fewstep.errors import NumericError, UsageError
from fewstep.exact import DataSet, Gaussian
from fewstep.prediction import Prediction
from fewstep.process import VE, VP, Cosine
from fewstep.solvers import DDIM, DDPM, DPMSolverPP, Heun, PerImage, generate, grids
from tests.laws.cases import PROCESSES, generator, largest, normal

RHO = 0.9
HALF = torch.zeros(4, 4, dtype=torch.bool)
HALF[:, 1:3] = True
MEASURES = {"pixels": Pixels(HALF), "luminance": Luminance(), "blocks": BlockMeans(2)}


class Pair(Denoiser):
    """The exact denoiser of two numbers of unit variance and correlation RHO, (B, 1, 1, 2)."""

    def __init__(self, process):
        super().__init__()
        self.process = process
        self.cov = torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)

    def forward(self, x_t, t, cond=None):
        alpha, sigma = self.levels(x_t, t)
        total = alpha**2 * self.cov + sigma**2 * torch.eye(2, dtype=torch.float64)
        x0 = alpha * x_t @ torch.linalg.solve(total, self.cov)
        return Prediction.from_x0(x_t, alpha, sigma, x0)


def noise(seed=0):
    g = generator(seed)
    return lambda x: torch.randn(x.shape, generator=g, dtype=x.dtype)


def last(steps):
    *_, x = steps
    return x


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_a_measure_is_an_orthogonal_projection(measure):
    x, y = normal(3, 3, 4, 4), normal(3, 3, 4, 4, seed=1)
    assert largest(measure(measure(x)), measure(x)) < 1e-15
    across = (measure(x) * (y - measure(y))).flatten(1).sum(1)
    assert largest(across) < 1e-14
    mixed = put(x, y, measure)
    assert largest(measure(mixed), measure(y)) < 1e-15
    assert largest(mixed - measure(mixed), x - measure(x)) < 1e-15
    assert largest(measure(x), x) > 0.1
    assert largest(measure(x)) > 0.1


def test_what_the_measures_are():
    x = normal(2, 3, 4, 4)
    kept = put(normal(2, 3, 4, 4, seed=1), x, Pixels(HALF))
    assert torch.equal(kept[..., 1:3], x[..., 1:3])
    assert bool((kept[..., 0] != x[..., 0]).all())
    means = x.reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    assert largest(BlockMeans(2)(x)[..., ::2, 1::2], means) < 1e-15
    assert torch.equal(BlockMeans(2)(enlarged(means, 2)), enlarged(means, 2))
    shares = torch.tensor(LUMINANCE, dtype=torch.float64).reshape(3, 1, 1)
    red = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    red[:, 0] = 1.0
    assert largest((shares * (x - Luminance()(x))).sum(1)) < 1e-15
    assert largest(Luminance()(red), 0.2989 * shares / float(shares.square().sum())) < 1e-15


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_an_image_of_bytes_can_have_the_measured_part_too(measure):
    """Cutting off alone is far from it; dark blocks and saturated colours are the hard ones."""
    y = (2 * normal(8, 3, 4, 4)).clamp(-1, 1)
    x = put(1.5 * normal(8, 3, 4, 4, seed=1), y, measure)
    end = within(x, y, measure)
    assert float(end.abs().max()) <= 1
    assert largest(measure(end), measure(y)) < 1e-3
    if not isinstance(measure, Pixels):
        assert largest(measure(x.clamp(-1, 1)), measure(y)) > 0.1
    inside = put(0.1 * normal(8, 3, 4, 4, seed=1), 0.1 * y, measure)
    assert largest(within(inside, 0.1 * y, measure), inside) < 1e-15


@pytest.mark.parametrize(
    "solver", [DDIM(), DDIM(1.0), DDPM("small"), Heun(), DPMSolverPP(2)], ids=str
)
@pytest.mark.parametrize("name", MEASURES)
def test_what_was_measured_is_kept(name, solver):
    """To rounding at any process; the pixels, to the last bit."""
    y, measure = 2 * normal(2, 3, 4, 4), MEASURES[name]
    for p in PROCESSES:
        data = Gaussian(p, torch.zeros(3, 4, 4, dtype=torch.float64), 0.5)
        times = grids.logsnr(p, 6)
        if solver == Heun() and float(p.alpha(float(times[0]))) < 1e-12:
            continue
        x = last(complete(data, y, measure, times, noise(), solver=solver, repeat=Repeat(2, 2)))
        assert largest(measure(x), measure(y)) < 1e-14
        if name == "pixels":
            assert torch.equal(x[..., 1:3], y[..., 1:3])
        assert bool(x.isfinite().all())
        assert largest(x - measure(x)) > 0.01


@pytest.mark.parametrize("name", MEASURES)
def test_on_the_way_the_measured_part_is_as_noisy_as_the_rest(name):
    """After a step to s it is that of alpha_s y + sigma_s z: 5 standard errors of 24,000 numbers.

    P z has the variance of unit noise in the share of the numbers that P is of.
    """
    measure, times = MEASURES[name], grids.uniform(4)
    y = normal(1, 3, 4, 4).expand(500, -1, -1, -1)
    share = float(measure(normal(500, 3, 4, 4)).square().mean())
    data = Gaussian(Cosine(), torch.zeros(3, 4, 4, dtype=torch.float64), 0.5)
    for s, x in zip(
        times[1:-1].tolist(), complete(data, y, measure, times, noise()), strict=False
    ):
        error = measure(x) - Cosine().alpha(s) * measure(y)
        assert float(error.square().mean()) == pytest.approx(
            share * Cosine().sigma(s) ** 2, rel=0.1
        )
        assert abs(float(error.mean())) < 5 * Cosine().sigma(s) / 24_000**0.5


def filled(p, repeat, steps):
    """Return mean / y and variance of the number that was not measured, where y = 1.5."""
    y = torch.full((4000, 1, 1, 2), 1.5, dtype=torch.float64)
    left = Pixels(torch.tensor([[True, False]]))
    times = grids.logsnr(p, steps, low=0.01)
    x = last(complete(Pair(p), y, left, times, noise(), repeat=repeat))[..., 1]
    return float(x.mean()) / 1.5, float(x.var())


def test_what_was_not_measured_fits_better_the_more_often_the_way_is_walked():
    """The truth is RHO and 1 - RHO^2 = 0.19; walked once, the mean is a third too small.

    4000 samples: standard errors of 0.005 and 0.004.
    """
    once = filled(Cosine(), Repeat(), 80)
    assert once == pytest.approx((0.60, 0.29), abs=0.03)  # the bias that `complete` states
    thrice = filled(Cosine(), Repeat(3), 40)
    assert once[0] + 0.1 < thrice[0] < RHO - 0.05
    assert filled(Cosine(), Repeat(20), 80) == pytest.approx((RHO, 1 - RHO**2), abs=0.03)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_the_image_that_was_measured_is_found_again(measure):
    """Of five images that a perfect memory knows, each 20 times, from its measured part."""
    images = normal(5, 3, 4, 4)
    memory, y, times = DataSet(Cosine(), images), images.repeat(20, 1, 1, 1), grids.uniform(20)

    def share(part, times_walked):
        x = last(complete(memory, y, part, times, noise(), repeat=Repeat(times_walked)))
        return float(((x - y).abs().flatten(1).amax(1) < 1e-6).double().mean())

    once, often = share(measure, 1), share(measure, 20)
    assert often >= max(0.85, once)
    assert once > share(lambda x: 0 * x, 1) + 0.1 < 0.4  # nothing known: any of the five


def test_the_path_of_a_repeated_walk():
    times = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    down = list(pairwise(times))
    assert Repeat().path(times, clean=True) == down
    twice = Repeat(2, 2).path(times, clean=True)
    assert twice == [
        *(*down[:2], (0.6, 1.0), *down[:2]),
        *(*down[2:4], (0.2, 0.6), *down[2:4]),
        down[4],
    ]
    assert Repeat(2, 3).path(times, clean=False)[:5] == [*down[:2], (0.6, 1.0), *down[:2]]
    assert (
        len(Repeat(10, 10).path([k / 250 for k in range(250, -1, -1)], clean=True))
        == 10 * 249 + 9 * 25 + 1
    )


def test_each_image_has_its_own_seed():
    data = Gaussian(Cosine(), torch.zeros(1, 4, 4), 0.5)
    y, times = normal(3, 1, 4, 4).float(), grids.uniform(5)
    before = torch.get_rng_state()
    for run in (
        lambda y, seeds: complete(data, y, BlockMeans(2), times, PerImage(seeds)),
        lambda y, seeds: stroke(data, y, times, 0.6, PerImage(seeds)),
    ):
        together = last(run(y, [4, 5, 6]))
        assert torch.equal(together[1:2], last(run(y[1:2], [5])))
        assert not torch.equal(together[1:2], last(run(y[1:2], [6])))
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- strokes
@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_a_sketch_is_returned_at_0_and_forgotten_at_1(p):
    data = Gaussian(p, torch.zeros(1, 2, 2), 0.5)
    y, times = torch.full((2, 1, 2, 2), 0.7), grids.logsnr(p, 8)
    assert torch.equal(last(stroke(data, y, times, 0.0, noise())), y)
    new = last(stroke(data, y, times, 1.0, PerImage([3, 4])))
    assert torch.equal(new, generate(data, tuple(y.shape), times, DDIM(1.0), seed=3))
    half = remaining(p, times, 0.5)
    if float(p.sigma(0.0)) < 1:  # as much noise as image, for every process
        assert float(p.sigma(float(half[0]))) == pytest.approx(float(p.alpha(float(half[0]))))
    assert bool((half[1:] < half[:-1]).all())
    assert float(half[-1]) == float(times[-1])


@pytest.mark.parametrize("p", PROCESSES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_the_nearest_strength_of_a_grid_starts_at_one_of_its_times(p, n):
    """What remains is the end of the grid itself, of the noise nearest to what was asked for."""
    times = grids.karras(p, n)

    def share(t):
        return 2 / math.pi * math.atan2(float(p.sigma(t)), float(p.alpha(t)))

    own = [share(t) for t in times[:-1].tolist()]
    for asked in torch.linspace(0, 1, 41).tolist():
        found = nearest(p, times, asked)
        left = remaining(p, times, found)
        if asked == 0:
            assert (found, len(left)) == (0, 1)
            continue
        assert torch.equal(left, times[-len(left) :])
        assert len(left) > 1
        apart = abs(share(float(left[0])) - asked)
        assert apart == pytest.approx(min(abs(asked - one) for one in own), abs=1e-9)
        assert found == pytest.approx(share(float(left[0])) if len(left) <= n else 1.0)
        assert nearest(p, times, found) == found
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="strength"):
            nearest(p, times, wrong)


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sketch_is_kept_as_much_as_the_strength_says(strength, eta):
    """Data N(0, c^2), r = sigma / alpha, k = c^2 / (c^2 + r^2).

    By the ODE x = (y + r z) sqrt(k). By the SDE its mean is y k, and its variance r^2 k^2 and that
    of p(x0 | x_t), r^2 k.
    """
    c, r, n = 0.5, math.tan(strength * math.pi / 2), 20_000
    data = Gaussian(VP(), torch.zeros(1, dtype=torch.float64), c)
    y = torch.full((n, 1), 1.5, dtype=torch.float64)
    times = grids.logsnr(VP(), 400)
    x = last(stroke(data, y, times, strength, noise(), solver=DDIM(eta)))
    share = c**2 / (c**2 + r**2)
    mean, var = (
        (1.5 * share**0.5, r**2 * share)
        if eta == 0
        else (1.5 * share, share**2 * r**2 + r**2 * share)
    )
    assert float(x.mean()) == pytest.approx(mean, abs=0.02)
    assert float(x.var()) == pytest.approx(var, rel=0.05)


# ---------------------------------------------------------------- what is refused
def test_bad_arguments_are_refused():
    data, y = Gaussian(VE(), torch.zeros(1, 2, 2), 0.5), torch.zeros(2, 1, 2, 2)
    blocks = BlockMeans(2)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match=r"strength .*0\.\.1"):
            stroke(data, y, grids.uniform(3), bad, noise())
    for bad in ((0, 1), (1, 0)):
        with pytest.raises(UsageError, match="at least 1"):
            Repeat(*bad)
    with pytest.raises(UsageError, match="must fall"):
        complete(data, y, blocks, grids.uniform(3).flip(0), noise(), solver=DDIM())
    with pytest.raises(ValueError, match="cond of shape"):
        complete(data, y, blocks, grids.uniform(3), noise(), torch.zeros(3))


def test_what_is_not_finite_is_refused_with_its_step():
    class Breaks(Gaussian):
        def forward(self, x_t, t, cond=None):
            x0 = super().forward(x_t, t).x0
            alpha, sigma = self.levels(x_t, t)
            return Prediction.from_x0(x_t, alpha, sigma, x0 / (0 if t < 0.5 else 1))

    data = Breaks(Cosine(), torch.zeros(1, 2, 2), 0.5)
    y, times = torch.ones(2, 1, 2, 2), grids.uniform(4)
    with pytest.raises(NumericError, match=r"step 4 of 4, from t = 0\.25 to 0"):
        last(complete(data, y, BlockMeans(2), times, noise()))
    with pytest.raises(NumericError, match=r"step 1 of 2, from t = 0\.4004 to 0\.25"):
        last(stroke(data, y, grids.uniform(4), 0.4, noise()))
