"""Laws of the bound of real images, as `fewstep evaluate --bits-per-dim` measures it."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.data import Images
from fewstep.denoiser import EPS, Cond, Denoiser, NetDenoiser
from fewstep.errors import UsageError
from fewstep.guide import Clamp
from fewstep.metrics import bits
from fewstep.objectives import bound_parts
from fewstep.objectives.bound import chances, chosen
from fewstep.prediction import Prediction
from fewstep.process import EDM, VE, VP, Cosine, Process, Tabulated
from fewstep.reverse import posterior
from fewstep.shapes import like
from laws.test_bound import Twice, decoder, exact_bound

PROCESSES = [VP(), Cosine(), VE(), EDM(), Tabulated("cosine", 9)]


class Gaussian(Denoiser):
    """The exact denoiser of N(0, s^2), where it is as far from the truth as it is in the mean.

    Every term depends on (x0 - E[x0 | x_t])^2 alone, whose mean is the conditional variance. The
    images are all -s (class 0) or all s (class 1), so it knows the truth from the class.
    """

    def __init__(self, s: float) -> None:
        super().__init__()
        self.process, self.s = Tabulated("linear"), s
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Prediction:
        p, s = self.process, t - 1e-3
        alpha, sigma = (v[:, None, None, None] for v in p.levels(t))
        left = self.s**2 * sigma**2 / (alpha**2 * self.s**2 + sigma**2)
        var_ts, tilde = posterior(p, t, s)
        low = torch.where(t > 1.5e-3, tilde, posterior(p, 2e-3, 1e-3)[1])
        c0 = p.alpha(s) * var_ts / sigma.flatten() ** 2
        exact = tilde + c0**2 * left.flatten()
        wide = 2 * (exact / low).log() / (var_ts / low).log() - 1
        sign = like(2.0 * cond - 1, x_t)
        x0 = sign * self.s - left.sqrt()
        x0, wide = ((x_t * 0 + v).to(x_t.dtype) for v in (x0, like(wide, x_t)))  # as a network
        return Prediction(x_t, alpha, sigma, x0=x0, variance=wide)


@pytest.mark.parametrize("level", [255, 140])
def test_the_bound_of_gaussian_data_is_exact(level: int) -> None:
    """Its entropy with the exact variance, and the published losses with the two fixed ones.

    The last step codes 8-bit values; the law takes it for a continuous Gaussian, whose value is
    known: the prior and the sum are those of the program.
    """
    s = level / 127.5 - 1
    pixels = np.stack([np.full((1, 2, 2), v, np.uint8) for v in (255 - level, level)])
    images = Images.of(pixels, np.arange(2), ("minus", "plus"), "two")
    variances = ("learned", "small", "large")
    with torch.no_grad():
        found = bits(Gaussian(s), images, variances)
    for name, each in zip(variances, found, strict=True):
        prior, steps, last = each.parts
        assert each.figure.value == pytest.approx(prior + steps + last, abs=1e-12)
        got = math.log(2) * (prior + steps) + decoder(s * s, name)
        want = exact_bound(s * s, name)
        if name == "learned":
            want = 0.5 * math.log(2 * math.pi * math.e * s * s)
        assert got == pytest.approx(want, abs=1e-5), name


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("terms", [1, 3, 8])
def test_every_step_is_drawn_with_its_chance(process: Process, terms: int) -> None:
    """Over all shifts; no step twice for one image; so a term over its chance has no bias."""
    share = chances(process, 9, terms)
    assert float(share.sum()) == pytest.approx(terms, abs=1e-12)
    assert 0 < float(share.min()) <= float(share.max()) <= 1
    n = 100_000
    shift = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    found = torch.stack([chosen(share, shift + j) for j in range(terms)])
    counts = torch.bincount(found.flatten(), minlength=8)
    assert float((counts / n - share).abs().max()) < 3 / n
    assert bool((found.diff(dim=0) > 0).all())


def test_all_steps_have_one_chance_each() -> None:
    share = chances(Tabulated("linear"), 1000, 999)
    assert torch.equal(share, torch.ones(999, dtype=torch.float64))


def test_the_chances_follow_gaussian_data() -> None:
    """For N(0, 1) and the exact denoiser, draws of few steps hardly differ in their sum."""
    pixels = np.full((400, 1, 1, 1), 255, np.uint8)
    images = Images.of(pixels, np.ones(400, np.int64), ("minus", "plus"), "one")
    with torch.no_grad():
        (some,) = bits(Gaussian(1.0), images, ("learned",), terms=20)
    prior, steps, _ = some.parts
    width = some.figure.high - some.figure.low
    want = (0.5 * math.log(2 * math.pi * math.e) - decoder(1.0, "learned")) / math.log(2) - prior
    assert steps == pytest.approx(want, abs=1.5 * width)
    assert width < 0.02 * steps


def small(n: int) -> Tensor:
    """Return n images of one pixel: four, again and again."""
    return (torch.tensor([3.0, 60, 130, 250]) / 127.5 - 1).repeat(n // 4).reshape(n, 1, 1, 1)


@torch.no_grad()
def test_some_of_the_steps_stand_for_all() -> None:
    """The mean over many draws is that of the whole chain, under every variance."""
    denoiser = Clamp(NetDenoiser(Twice().float(), Tabulated("cosine", 40), EPS))
    n, variances = 8000, ("learned", "small", "large")
    made = [
        bound_parts(denoiser, small(n), None, variances, k, torch.Generator().manual_seed(1))
        for k in (3, 39)
    ]
    some, all_ = (parts.sum(-1) for parts in made)
    error = ((some.var(1) + all_.var(1)) / n).sqrt()
    assert bool(((some.mean(1) - all_.mean(1)).abs() < 4 * error).all())
    assert bool((error < 0.03 * all_.mean(1)).all())


def test_the_interval_covers() -> None:
    """Of 60 measurements of few images, about 95 % cover what many say (binomial, 3.5 sd)."""
    denoiser = Clamp(NetDenoiser(Twice().float(), Tabulated("cosine", 20), EPS))
    pixels = np.random.default_rng(0).integers(0, 256, (20000, 1, 1, 1), dtype=np.uint8)
    labels = np.zeros(len(pixels), np.int64)

    def measure(first: int, n: int, seed: int):
        part = Images(pixels[first : first + n], labels[:n], (), "p", "0" * 64)
        with torch.no_grad():
            return bits(denoiser, part, ("small",), 4, 1000 + seed, batch=n)[0].figure

    truth = measure(0, 20000, 99).value
    inside = [f.low < truth < f.high for f in (measure(300 * i, 300, i) for i in range(60))]
    assert sum(inside) / 60 >= 0.95 - 3.5 * 0.028


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_every_process_has_a_bound(process: Process) -> None:
    """A network that says nothing: an image of eight bits costs more than eight."""

    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, label: Tensor, cond: Cond = None) -> Tensor:
            return 0 * self.one * x

    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 2, 2), dtype=np.uint8)
    images = Images.of(pixels, np.zeros(40, np.int64), (), "noise")
    seen = []
    with torch.no_grad():
        found = bits(
            NetDenoiser(Nothing(), process), images, terms=8, batch=16,
            tick=lambda done, total: seen.append((done, total)),
        )  # fmt: skip
    assert [each.figure.name for each in found] == ["bits/dim, small", "bits/dim, large"]
    assert all(each.figure.value > 8 for each in found)
    assert seen == [(i, 27) for i in range(1, 28)]


def test_what_cannot_be_measured_is_refused() -> None:
    denoiser = NetDenoiser(Twice().float(), Tabulated("cosine", 9), EPS)
    for terms in (0, 9):
        with pytest.raises(UsageError, match=r"must be in 1\.\.8, a chain of 9 steps"):
            bound_parts(denoiser, small(4), terms=terms)
    pixels, labels = np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int64)
    with pytest.raises(UsageError, match="at least 2"):
        bits(denoiser, Images(pixels, labels, (), "one", "0" * 64))
