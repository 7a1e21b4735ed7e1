"""Laws of classifier guidance: the shift of the mean, its gap, and what is sampled with it."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep import guide, solvers
from fewstep.denoiser import Cond, Denoiser
from fewstep.exact import Mixture
from fewstep.prediction import Prediction
from fewstep.process import Tabulated
from fewstep.reverse import posterior
from fewstep.shapes import Number
from fewstep.solvers import DDIM, DDPM, grids
from laws.cases import generator, largest, normal, walk

TABLE = Tabulated()
MEANS = torch.tensor([[1.5, 0.0], [-0.75, 1.3], [-0.75, -1.3]], dtype=torch.float64)
STD = 0.2
EXACT = Mixture(TABLE, MEANS, STD, torch.arange(3))
FREE = guide.Unconditional(EXACT)


def source(seed: int) -> solvers.Noise:
    """Return a source of noise in the dtype of the batch."""
    g = generator(seed)
    return lambda x: torch.randn(x.shape, generator=g, dtype=x.dtype)


def pushed(solver: DDPM, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Cond) -> Tensor:
    """Return one step without noise."""
    return solver.step(denoiser, x, t, s, y, noise=torch.zeros_like)[0]


def push(scale: float = 1.0) -> Callable[[Tensor, Number, Cond], Tensor]:
    """Return scale times the gradient of the exact classifier."""
    return guide.LogProb(EXACT, EXACT.log_prob, scale).gradient


class Says(Denoiser):
    """A denoiser that says one learned variance, v, beside another's prediction."""

    process = TABLE

    def __init__(self, denoiser: Denoiser, v: float) -> None:
        super().__init__()
        self.denoiser, self.v = denoiser, v

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        said = self.denoiser(x_t, t, cond)
        said.variance = torch.full_like(x_t, self.v)
        return said


def steps(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x_t, classes, t and s of all steps of a thinned chain but the last, one a row.

    The points are noised from the middle of two classes, where a classifier always has a gradient.
    """
    times = grids.strided(n, "respace")
    t, s = times[:-2], times[1:-1]
    x = TABLE.alpha(t)[:, None] * MEANS[:2].mean(0) + TABLE.sigma(t)[:, None] * normal(len(t), 2)
    return x, torch.arange(len(t)) % 3, t, s


def test_the_shifted_noise_is_that_of_the_class_at_every_step() -> None:
    """eps - sigma grad log p(y | x_t) of the unconditional model, at all 1000 noise levels."""
    t = torch.arange(1, 1001).double() / 1000
    x = TABLE.alpha(t)[:, None] * MEANS[:2].mean(0) + TABLE.sigma(t)[:, None] * normal(1000, 2)
    y = torch.arange(1000) % 3
    want = EXACT(x, t, y).eps
    got = guide.LogProb(FREE, EXACT.log_prob, 1.0)(x, t, y).eps
    assert largest((got - want) / (1 + want.abs())) < 1e-12
    by_hand = FREE(x, t).eps - TABLE.sigma(t)[:, None] * push()(x, t, y)
    assert largest((by_hand - want) / (1 + want.abs())) < 1e-12


@pytest.mark.parametrize("n", [1000, 250, 25])
def test_the_exact_shift_of_the_mean_is_beta_over_root_alpha(n: int) -> None:
    """mu + beta / sqrt(alpha) grad log p(y | x_t) is the mean of the conditional model's step.

    With beta alone, ADM's choice for a large variance, the way is short by sqrt(alpha).
    """
    x, y, t, s = steps(n)
    root = (TABLE.alpha(t) / TABLE.alpha(s))[:, None]
    plain = pushed(DDPM("large"), FREE, x, t, s, y)
    want = pushed(DDPM("large"), EXACT, x, t, s, y)
    got = pushed(DDPM("large", push()), FREE, x, t, s, y)
    size = 1 + float((want - plain).abs().max())
    assert largest(plain + (got - plain) / root, want) < 1e-12 * size
    beta = posterior(TABLE, t, s)[0][:, None]
    assert largest(plain + beta / root * push()(x, t, y), want) < 1e-12 * size


@pytest.mark.parametrize(
    ("n", "large", "small", "most"),
    [(1000, 0.005, 0.008, 0.55), (250, 0.020, 0.031, 0.86), (25, 0.19, 0.27, 1.00)],
)
def test_the_gap_of_the_shifted_mean(n: int, large: float, small: float, most: float) -> None:
    """Median over the steps of the missing share of the way: beta grad and beta-tilde grad.

    With the small variance guidance is nearly lost at the end, where tilde vanishes: `most`.
    """
    x, y, t, s = steps(n)
    plain = pushed(DDPM("small"), FREE, x, t, s, y)
    way = pushed(DDPM("small"), EXACT, x, t, s, y) - plain
    gap = {}
    for name in ("large", "small"):
        got = pushed(DDPM(name, push()), FREE, x, t, s, y) - plain
        gap[name] = (got - way).norm(dim=1) / way.norm(dim=1)
    assert float(gap["large"].median()) == pytest.approx(large, rel=0.1)
    assert float(gap["small"].median()) == pytest.approx(small, rel=0.1)
    assert float(gap["small"].max()) == pytest.approx(most, abs=0.01)


@pytest.mark.parametrize("v", [-1.0, -0.2, 1.0, 1.5])
def test_a_learned_variance_pushes_by_itself(v: float) -> None:
    """exp(f log beta + (1 - f) log tilde), f = (v + 1) / 2, is what both noise and shift have.

    v is not bounded: at 1.5 the variance is above both.
    """
    x, y, t, s = steps(50)
    beta, tilde = (c[:, None] for c in posterior(TABLE, t, s))
    var = beta ** ((v + 1) / 2) * tilde ** ((1 - v) / 2)
    quiet = pushed(DDPM("learned"), Says(FREE, v), x, t, s, y)
    loud, _ = DDPM("learned").step(Says(FREE, v), x, t, s, y, noise=torch.ones_like)
    assert largest((loud - quiet) / var.sqrt(), 1.0) < 1e-10
    got = pushed(DDPM("learned", push(2.0)), Says(FREE, v), x, t, s, y)
    want = var * push(2.0)(x, t, y)
    assert largest(got - quiet, want) < 1e-12 * (1 + float(want.abs().max()))


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_last_step_is_pushed_by_the_variance_of_the_one_before(variance: str) -> None:
    """Its own, beta-tilde, is 0; the released program takes that of the step before as floor.

    "small" has no floor, "large" is the floor itself, "learned" lies between it and beta.
    """
    x, y = MEANS[:2].mean(0) + 0.1 * normal(6, 2), torch.arange(6) % 3
    solver, denoiser, v = DDPM(variance, push()), Says(FREE, 0.4), 0.4
    middle, carry = solver.step(denoiser, x, 0.04, 0.02, y, noise=torch.zeros_like)
    got, _ = solver.step(denoiser, middle, 0.02, 0.0, y, carry, noise=torch.ones_like)
    floor, beta = posterior(TABLE, 0.04, 0.02)[1], posterior(TABLE, 0.02, 0.0)[0]
    between = floor ** ((1 - v) / 2) * beta ** ((1 + v) / 2)
    var = {"small": 0.0, "large": floor, "learned": between}[variance]
    want = FREE(middle, 0.02, y).x0 + var * push()(middle, 0.02, y)
    assert largest(got, want) < 1e-12


def test_no_scale_is_no_guidance() -> None:
    """Samples of scale 0 are bit-identical to unguided ones, by either way, and ask nobody."""

    def never(x: Tensor, t: Number, cond: Cond) -> Tensor:
        raise AssertionError("the classifier was asked")

    x, y, times = normal(6, 2), torch.arange(6) % 3, grids.strided(20, "respace")
    for solver, again in ((DDIM(), DDIM()), (DDPM("large"), DDPM("large", push(0.0)))):
        plain = walk(FREE, x, times, solver, y, source(3))
        shifted = guide.LogProb(FREE, never, 0.0)
        assert torch.equal(walk(shifted, x, times, solver, y, source(3)), plain)
        assert torch.equal(walk(FREE, x, times, again, y, source(3)), plain)


def test_the_gradient_in_single_precision_is_the_analytic_one() -> None:
    """float32 x_t: within 1e-5 of the scores' difference, which is worked out without autograd."""
    t = torch.linspace(0.1, 1, 64, dtype=torch.float64)
    x, y = normal(64, 2) * 1.2, torch.arange(64) % 3
    x = x.float().double()
    want = EXACT(x, t, y).score - EXACT(x, t).score
    single = Mixture(TABLE, MEANS.float(), STD, torch.arange(3))
    got = guide.LogProb(single, single.log_prob, 1.0).gradient(x.float(), t, y)
    assert got.dtype == torch.float32
    assert float(((got - want).norm(dim=1) / (1 + want.norm(dim=1))).max()) < 1e-5


def test_without_a_condition_nothing_is_guided() -> None:
    def never(x: Tensor, t: Number, cond: Cond) -> Tensor:
        raise AssertionError("the classifier was asked")

    x = normal(3, 2)
    assert torch.equal(guide.LogProb(EXACT, never, 2.0)(x, 0.5).x0, EXACT(x, 0.5).x0)


def drawn(solver: solvers.Solver, n: int, scale: float) -> Tensor:
    """Return 2000 samples of class 0 in n steps, guided by the exact classifier."""
    x, y = normal(2000, 2, seed=5), torch.zeros(2000, dtype=torch.long)
    denoiser = guide.LogProb(FREE, EXACT.log_prob, scale)
    return walk(denoiser, x, grids.strided(n, "respace"), solver, y, source(6))


@pytest.mark.parametrize(
    ("solver", "n", "std"),
    [(DDPM("large"), 1000, 0.199), (DDIM(), 50, 0.18), (DDIM(), 250, 0.195)],
    ids=str,
)
def test_scale_one_samples_the_class(solver: solvers.Solver, n: int, std: float) -> None:
    """Of three classes of std 0.2: fraction, mean and std, DDIM narrow by its steps alone."""
    x = drawn(solver, n, 1.0)
    own = (x[:, None] - MEANS).norm(dim=2).argmin(1) == 0
    assert float(own.double().mean()) >= 0.995
    assert largest(x[own].mean(0), MEANS[0]) < 0.02
    for each in x[own].std(0).tolist():
        assert each == pytest.approx(std, rel=0.05)


def test_a_larger_scale_is_surer_and_narrower() -> None:
    """log p(y | x) rises, the spread falls, and the mean goes past that of the class.

    At scale 4, 50 steps of DDIM end at 1.81 where the class has 1.5, with std 0.13 and 0.10.
    """
    sure, wide, far = [], [], []
    for scale in (1.0, 2.0, 4.0):
        x = drawn(DDIM(), 50, scale)
        sure.append(float(EXACT.log_prob(x, 0.2, torch.zeros(2000, dtype=torch.long)).mean()))
        wide.append(x.std(0).sort().values)
        far.append(float(x[:, 0].mean()))
    assert all(a < b for a, b in itertools.pairwise(sure))
    assert all(bool((a > b).all()) for a, b in itertools.pairwise(wide))
    assert all(a < b for a, b in itertools.pairwise(far))
    assert far[-1] == pytest.approx(1.81, abs=0.02)
    assert wide[-1].tolist() == pytest.approx([0.10, 0.13], abs=0.01)
