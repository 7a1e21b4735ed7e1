"""Laws of the loop: one image per seed whatever stands beside it, and no hidden state."""

import hashlib
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep import guide, solvers
from fewstep.denoiser import Denoiser, NetDenoiser
from fewstep.nets.guidance import GuidanceScale
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.process import VP, Tabulated
from fewstep.sampling import to_uint8
from fewstep.solvers import DDIM, PerImage, Solver, generate, grids, image_seeds, nfe, sample
from laws.cases import (
    PROCESSES,
    counted,
    gaussian_log_prob,
    generator,
    guided,
    largest,
    mixture,
    normal,
)

every_solver = pytest.mark.parametrize("solver", solvers.ALL, ids=str)
every_guide = pytest.mark.parametrize("kind", guide.ALL, ids=lambda k: k.__name__)
SIDE = 8


@pytest.fixture(scope="module")
def images() -> Denoiser:
    """A small U-Net in float32, its layers that start at zero filled too, clipped to [-1, 1]."""
    config = UNetConfig(
        in_channels=1,
        out_channels=1,
        size=SIDE,
        width=8,
        mult=(1, 2),
        depth=1,
        attention=(4,),
        heads=2,
        groups=4,
        classes=3,
    )
    g = generator(5)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        net = UNet(config).eval()
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.03)
    return guide.Clamp(NetDenoiser(net, Tabulated("cosine")))


def told(images: Denoiser) -> Denoiser:
    """Return the small U-Net told the guidance scale, which it heeds."""
    assert isinstance(images, guide.Clamp)
    assert isinstance(images.denoiser, NetDenoiser)
    net = GuidanceScale(images.denoiser.net)
    with torch.no_grad():
        net.scale.weight.copy_(torch.randn(net.scale.weight.shape, generator=generator(6)) * 0.03)
    return guide.Clamp(NetDenoiser(net, images.process))


def picture(denoiser: Denoiser, solver: Solver, n: int, batch: int, seed: int = 7) -> Tensor:
    """Return n images of shape (1, SIDE, SIDE) with classes 0, 1, 2, 0, ..."""
    # from sigma / alpha = 20: this table begins at 20,000, where Heun's slopes amplify rounding
    times = grids.karras(denoiser.process, 4, low=0.05, high=20.0)
    shape = (n, 1, SIDE, SIDE)
    return generate(denoiser, shape, times, solver, torch.arange(n) % 3, seed, batch)


@every_solver
def test_an_image_does_not_depend_on_the_batch_size(images: Denoiser, solver: Solver) -> None:
    """16 seeds in batches of 1, 2, 3, 4, 8 and 16: floats within 1e-5, hardly a grey level."""
    whole = picture(images, solver, 16, 16)
    assert float(whole.std()) > 0.1
    changed = 0
    for batch in (1, 2, 3, 4, 8):
        split = picture(images, solver, 16, batch)
        assert float((split - whole).abs().max()) <= 1e-5
        grey = (to_uint8(split).int() - to_uint8(whole).int()).abs()
        assert int(grey.max()) <= 1
        changed += int((grey > 0).sum())
    assert changed <= 1  # of 5,120 pixels: 1e-4 of them would be half a pixel


@every_guide
def test_a_guided_image_does_not_depend_on_the_batch_size(
    images: Denoiser, kind: type[Denoiser]
) -> None:
    """Among 18 the branches of guidance are two calls, among few one doubled batch."""
    own = told(images) if kind is guide.Taught else images
    g = guided(kind, own, gaussian_log_prob)
    whole = picture(g, DDIM(1.0), 18, 18)
    for batch in (1, 4, 9):
        assert float((picture(g, DDIM(1.0), 18, batch) - whole).abs().max()) <= 2e-5


@every_solver
def test_an_image_does_not_depend_on_batch_size_in_float64(solver: Solver) -> None:
    d = mixture(VP())
    whole = generate(d, (16, 2), grids.uniform(20), solver, torch.arange(16) % 2, 3, 16).double()
    for batch in (1, 2, 3, 4, 8):
        split = generate(d, (16, 2), grids.uniform(20), solver, torch.arange(16) % 2, 3, batch)
        assert float((split - whole).abs().max()) < 2e-5


@every_solver
def test_an_image_can_be_made_again_alone(images: Denoiser, solver: Solver) -> None:
    """Image i of a run with seed s is image 0 of a run with seed s + i."""
    run = picture(images, solver, 6, 6, seed=40)
    times = grids.karras(images.process, 4, low=0.05, high=20.0)
    *_, last = sample(images, (1, 1, SIDE, SIDE), times, solver, torch.tensor([5 % 3]), seed=45)
    assert float((last.x[0] - run[5]).abs().max()) <= 1e-5
    assert largest(run[0], run[3]) > 1e-3


@pytest.mark.parametrize("mode", ["plain", "classifier-free", "classifier"])
@pytest.mark.parametrize("solver", solvers.ALL, ids=str)
def test_the_same_seed_is_the_same_bytes(images: Denoiser, solver: Solver, mode: str) -> None:
    d = {
        "plain": images,
        "classifier-free": guide.ClassifierFree(images, 2.0),
        "classifier": guide.LogProb(images, gaussian_log_prob, 2.0),
    }[mode]

    def digest(seed: int) -> str:
        pixels = to_uint8(picture(d, solver, 3, 3, seed)).numpy()
        return hashlib.sha256(pixels.tobytes()).hexdigest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(9)


@every_solver
def test_sampling_touches_no_global_random_state(images: Denoiser, solver: Solver) -> None:
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    one = picture(images, solver, 3, 2)
    list(sample(images, (2, 1, SIDE, SIDE), grids.uniform(3), solver, seed=4))
    nfe(images, grids.uniform(3), solver)
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert before[2] == after[2]
    torch.manual_seed(321)
    np.random.seed(321)
    random.seed(321)
    assert torch.equal(picture(images, solver, 3, 2), one)


@every_solver
@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_nfe_is_the_number_of_counted_calls(p: object, solver: Solver) -> None:
    for times in (
        grids.uniform(7, 0.99),
        grids.strided(30, "uniform", 200),
        grids.uniform(4, 0.9, 0.2),
    ):
        d = counted(p)  # pyright: ignore[reportArgumentType] -- typed as Process
        list(sample(d, (3, 2), times, solver))
        assert d.net.images == 3 * nfe(d, times, solver)


@every_guide
@every_solver
def test_nfe_counts_every_branch_of_a_guidance(kind: type[Denoiser], solver: Solver) -> None:
    for n in (2, 9):
        d = counted(VP())
        g = guided(kind, d, gaussian_log_prob)
        list(sample(g, (n, 2), grids.uniform(8), solver, torch.zeros(n, dtype=torch.long)))
        assert d.net.images == n * nfe(g, grids.uniform(8), solver)


def test_the_published_counts() -> None:
    """EDM: 18 steps of Heun are 35 evaluations; the talk's "uniform" subset of 30 has 31."""
    d = counted(VP())
    assert nfe(d, grids.karras(VP(), 18), solvers.Heun()) == 35
    assert nfe(d, grids.strided(30, "uniform"), DDIM()) == 31
    both = guide.ClassifierFree(d, 2.0)
    assert nfe(both, grids.uniform(50), DDIM()) == 100


@every_solver
def test_a_step_tells_where_it_is(solver: Solver) -> None:
    times = grids.uniform(5)
    steps = list(sample(mixture(VP()), (3, 2), times, solver, seed=2))
    assert [s.index for s in steps] == [0, 1, 2, 3, 4]
    assert [(s.t, s.s) for s in steps] == list(
        zip(times.tolist()[:-1], times.tolist()[1:], strict=True)
    )
    assert {s.total for s in steps} == {5}
    assert largest(steps[-1].prediction.x0, steps[-1].x) < 1e-6


@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_the_start_has_the_spread_of_the_process(p: object) -> None:
    """x at the first time is prior_std times the first draw of each image's own generator."""
    d = counted(p)  # pyright: ignore[reportArgumentType] -- typed as Process
    seeds = image_seeds(3, 4)
    z = PerImage(seeds)(normal(4, 2))
    times = grids.uniform(2)
    first = next(iter(sample(d, (4, 2), times, DDIM(), seed=3)))
    x = z * d.process.prior_std(1.0)
    want, _ = DDIM().step(d, x, 1.0, 0.5)
    assert largest(first.x, want.detach()) < 1e-10 * d.process.prior_std(1.0)
