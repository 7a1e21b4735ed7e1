"""Encoding by inverting each DDIM step: the code decodes to the image, and is the right one."""

import pytest
import torch

from fewstep import guide
from fewstep.edit import decode, encode
from fewstep.errors import UsageError
from fewstep.process import EDM, VE, VP, Cosine, Tabulated
from fewstep.solvers import DDIM, grids
from tests.laws.cases import largest, mixture, normal, uneven, walk

GRIDS = [
    (EDM(), lambda p: grids.karras(p, 20, low=0.02, high=20.0)[:-1]),
    (VE(), lambda p: grids.logsnr(p, 40)[:-1]),
    (VP(), lambda p: grids.uniform(50)[:-1]),
    (Cosine(), lambda p: grids.uniform(50)),
    (Tabulated(), lambda p: grids.strided(50, "trailing")),
]


@pytest.mark.parametrize(("p", "grid"), GRIDS, ids=[str(p) for p, _ in GRIDS])
def test_the_code_of_a_decoded_image_is_the_noise_it_was_made_of(p, grid):
    exact, times = mixture(p), grid(p)
    start = float(p.prior_std(float(times[0]))) * normal(16, 2)
    cond = torch.arange(16) % 3 - 1  # no class, and each of the two
    image = decode(exact, start, times, cond)
    code = encode(exact, image, times, cond, most=400)
    assert float(code.residual.max()) < 1e-12
    assert largest(decode(exact, code.x, times, cond), image) < 1e-10
    assert largest(code.x, start) < 1e-10 * float(p.prior_std(float(times[0])))
    assert code.iterations < 60 * (len(times) - 1)


def test_the_flipped_grid_is_only_near():
    exact, times = mixture(Cosine()), grids.uniform(50)[:-1]
    start = normal(16, 2)
    image = decode(exact, start, times)
    assert largest(walk(exact, image, times.flip(0), DDIM()), start) > 0.01


def test_an_image_that_comes_back_does_not_mean_that_its_noise_is_right():
    """20 steps of the flipped grid from 0.02 to 20 times the image."""
    exact, times = uneven(EDM(20.0)), grids.logsnr(EDM(20.0), 20, low=0.02, high=20.0)[:-1]
    start = 20 * normal(256, 2)
    image = decode(exact, start, times)
    flipped = walk(exact, image, times.flip(0), DDIM())
    assert float((decode(exact, flipped, times) - image).square().mean()) < 0.03
    assert float((flipped - start).square().mean().sqrt()) > 2
    assert float((encode(exact, image, times, most=400).x - start).square().mean().sqrt()) < 1e-8


def test_what_cannot_be_inverted_says_so():
    """Clipping maps many points to one: the residual is large, the code finite."""
    clipped, times = guide.Clamp(mixture(Cosine())), grids.uniform(10)
    code = encode(clipped, torch.full((2, 2), 3.0, dtype=torch.float64), times)
    assert float(code.residual.min()) > 0.1
    assert bool(code.x.isfinite().all())


def test_a_rising_grid_is_refused():
    with pytest.raises(UsageError, match="must fall"):
        encode(mixture(Cosine()), normal(2, 2), grids.uniform(4).flip(0))
