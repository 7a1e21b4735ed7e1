"""Laws of score matching: on Gaussian data every loss and its minimum are known."""

import pytest
import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.exact import Gaussian
from fewstep.langevin import score_of
from fewstep.objectives import Denoising
from fewstep.objectives.score_matching import denoising, implicit, projections, sliced
from fewstep.process import VE
from laws.cases import generator, largest, normal

MEAN = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 1.3]], dtype=torch.float64)
SIGMA = ROOT @ ROOT.T


def whitened(n: int) -> Tensor:
    """Draw n points whose mean and covariance are exactly those of N(MEAN, SIGMA)."""
    z = normal(n, 3)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / n), z.T, upper=False).T
    return MEAN + z @ ROOT.T


def linear(b: Tensor):
    return lambda x: -(x - MEAN) @ b.T


@torch.no_grad()
def test_the_implicit_loss_is_the_explicit_one_less_a_constant():
    x, precision = whitened(500), SIGMA.inverse()
    for b in (precision, torch.eye(3).double(), normal(3, 3)):
        want = -b.trace() + (b @ SIGMA @ b.T).trace() / 2
        got = implicit(linear(b), x).mean()
        assert largest(got, want) < 1e-9
        explicit = (linear(b)(x) - linear(precision)(x)).square().sum(1).mean() / 2
        assert largest(got + precision.trace() / 2, explicit) < 1e-9


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere", "unit"])
@pytest.mark.parametrize("reduced", [False, True])
def test_the_true_score_is_where_the_gradient_vanishes(law: str, reduced: bool):
    """All but unit directions in the reduced loss, which has its minimum elsewhere."""
    n = 100_000
    x = MEAN + normal(n, 3, seed=1) @ ROOT.T
    b = SIGMA.inverse().expand(n, 3, 3).clone().requires_grad_()  # one matrix a sample
    v = projections(x, 1, generator(2), law)
    score = lambda x: -torch.einsum("nij,nj->ni", b, x - MEAN)  # noqa: E731 -- as short as `linear`
    (each,) = torch.autograd.grad(sliced(score, x, v, reduced).sum(), b)
    pull = each.mean(0) / (each.std(0) / n**0.5)
    assert (float(pull.abs().max()) < 5) == (not (reduced and law == "unit"))


@torch.no_grad()
def test_unit_directions_give_a_share_of_the_plain_loss():
    x, score = normal(40, 5), lambda x: (x @ normal(5, 5)).tanh() - x
    signs = projections(x, 2, generator(), "rademacher")
    unit = signs / 5**0.5
    assert largest(sliced(score, x, unit, False), sliced(score, x, signs, False) / 5) < 1e-12


@torch.no_grad()
def test_signs_are_exact_where_the_jacobian_is_diagonal():
    x, score = normal(40, 2, 3), lambda x: x.sin() - x**3
    v = projections(x, 1, generator(), "rademacher")
    assert largest(sliced(score, x, v), implicit(score, x)) < 1e-12


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
def test_directions_have_unit_covariance(law: str):
    v = projections(torch.zeros(50_000, 4, dtype=torch.float64), 2, generator(), law).flatten(0, 1)
    assert largest(v.T @ v / len(v), torch.eye(4).double()) < 0.03


@torch.no_grad()
@pytest.mark.parametrize("dim", [1, 4, 6, 20])
def test_the_variances_of_sliced_losses(dim: int):
    """Over directions, for a symmetric J at one point: 2 |J|^2 with Gaussian ones if reduced, else
    |s|^4 / 2 + 2 s^T J s more; with signs 2 sum J_ij^2 off the diagonal."""
    n = 200_000
    root, s = normal(dim, dim, seed=5) / dim**0.5, normal(dim, seed=6)
    j = -(root @ root.T + 0.2 * torch.eye(dim).double())
    x = torch.zeros(1, dim, dtype=torch.float64)

    def spread(law: str, reduced: bool) -> float:
        v = projections(x.expand(n, dim), 1, generator(7), law)
        losses = sliced(lambda x: s + x @ j, x.expand(n, dim), v, reduced)
        return float(losses.var())

    off = j - torch.diag(j.diag())
    square, bend = float(s.square().sum()), float(s @ j @ s)
    full = 2 * float(j.square().sum())
    assert spread("gaussian", True) == pytest.approx(full, rel=0.03)
    assert spread("gaussian", False) == pytest.approx(full + square**2 / 2 + 2 * bend, rel=0.05)
    want = 2 * float(off.square().sum())
    assert spread("rademacher", True) == pytest.approx(want, rel=0.03, abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(("square", "better"), [(1.0, True), (3.6, True), (4.4, False)])
def test_the_reduced_loss_may_have_the_larger_variance(square: float, better: bool):
    """J = -I and Gaussian directions: the plain loss varies less where |s|^2 < 4."""
    x = torch.zeros(400_000, 1, dtype=torch.float64)
    v = projections(x, 1, generator(8), "gaussian")
    plain, reduced = (
        float(sliced(lambda x: square**0.5 - x, x, v, kind).var()) for kind in (False, True)
    )
    assert plain == pytest.approx(2 + square**2 / 2 - 2 * square, rel=0.03)
    assert reduced == pytest.approx(2.0, rel=0.03)
    assert (plain < reduced) == better


def test_the_denoising_loss_has_its_floor():
    """N(m, s^2) in D dimensions: D s^2 / (s^2 + sigma^2) / 2 for the exact score, 0.1 D here."""
    s, d, n = 0.5, 4, 100_000
    x0 = 2.0 + s * normal(n, d, seed=3)
    exact = score_of(Gaussian(VE(0.01, 50.0), torch.full((d,), 2.0, dtype=torch.float64), s))
    loss = denoising(lambda x: exact(x, 1.0), x0, 1.0, normal(n, d, seed=4)).mean()
    assert float(loss) == pytest.approx(0.1 * d, rel=0.02)


def test_the_denoising_loss_is_that_of_the_noise():
    """Half the entries times `Denoising(view="eps")`, from the same draws."""
    denoiser, x0 = Gaussian(VE(), torch.zeros(2, 3, dtype=torch.float64), 0.7), normal(8, 2, 3)
    goal = Denoising("eps")
    want = goal(denoiser, x0, None, 0, generator(1))
    draw = generator(1)
    t = goal.times(denoiser.process, 8, draw)
    eps = torch.randn(x0.shape, generator=draw, dtype=x0.dtype)
    sigma = denoiser.process.sigma(t)
    losses = denoising(lambda x: denoiser(x, t).score, x0, sigma, eps)
    assert largest(losses * 2 / 6, want) < 1e-6 * float(want.max())


def test_losses_do_not_need_gradients():
    x = normal(5, 2)
    v = projections(x, 1, generator())
    with torch.no_grad():
        loss = sliced(torch.sin, x, v)
    assert not loss.requires_grad
    assert largest(loss, sliced(torch.sin, x, v).detach()) == 0


def test_bad_projections_are_refused():
    x = normal(5, 2)
    for law, count in (("cauchy", 1), ("unit", 0)):
        with pytest.raises(UsageError, match="projections of law"):
            projections(x, count, generator(), law)
    with pytest.raises(ValueError, match=r"shape \(5, 2\)"):
        sliced(torch.sin, x, x)
