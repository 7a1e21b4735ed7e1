"""Scores learned in seconds, judged by exact ones: denoising and sliced score matching."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep import data
from fewstep.denoiser import SCORE, NetDenoiser
from fewstep.exact import Mixture
from fewstep.labels import nothing
from fewstep.objectives import DenoisingScore, Objective, SlicedScore
from fewstep.objectives.score_matching import implicit
from fewstep.objectives.times import Ladder
from fewstep.process import VE

MEANS = torch.tensor([[2.0, 0.0], [-2.0, 0.5], [0.0, -1.5]])
ONE = Ladder(1)
DENOISING, SLICED = DenoisingScore(ONE, drop=0.0), SlicedScore(ONE, reduced=False, drop=0.0)
REDUCED = SlicedScore(ONE, drop=0.0)


class Told(nn.Module):
    """A network of points that is told neither noise level nor class."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, label: Tensor, cond: object = None) -> Tensor:
        return self.net(x)


def fitted(
    net: nn.Module, draw: Callable[[int, torch.Generator], Tensor], goal: Objective, sigma: float,
    steps: int, lr: float = 2e-3,
) -> NetDenoiser:  # fmt: skip
    """Return a network whose output is the score of data + sigma n, after Adam on `goal`."""
    g = torch.Generator().manual_seed(0)
    model = NetDenoiser(Told(net), VE(sigma, 100.0), SCORE, nothing)
    adam = torch.optim.Adam(net.parameters(), lr=lr)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for step in range(steps):
        loss = goal(model, draw(512, g), None, step, g).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        fall.step()
    return model.eval()


def mlp(dim: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(dim, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, dim)
        )


def error(model: NetDenoiser, score: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return E|s - score|^2 / E|score|^2 over points of the blurred data."""
    with torch.no_grad():
        want = score(x)
        return float((model(x, 0.0).score - want).square().sum() / want.square().sum())


def blobs(n: int, g: torch.Generator) -> Tensor:
    """Draw from three Gaussians in the plane."""
    k = torch.randint(3, (n,), generator=g)
    return MEANS[k] + 0.3 * torch.randn(n, 2, generator=g)


@pytest.mark.parametrize(
    ("goal", "steps", "most"),
    [(DENOISING, 2000, 0.02), (SLICED, 1000, 0.05), (REDUCED, 1000, 0.05)],
    ids=["denoising", "sliced", "sliced-vr"],
)  # fmt: skip
def test_the_score_of_a_mixture_is_learned(goal: Objective, steps: int, most: float) -> None:
    """The squared error as a share of the score's square; and no loss is below that of the exact
    score, which would be a leak."""
    sigma = 0.5
    model = fitted(mlp(2), blobs, goal, sigma, steps)
    exact = Mixture(VE(sigma, 100.0), MEANS, 0.3)
    g = torch.Generator().manual_seed(1)
    x0 = blobs(20_000, g)
    x = x0 + sigma * torch.randn(x0.shape, generator=g)
    off = error(model, lambda y: exact(y, 0.0).score, x)
    with torch.no_grad():
        losses, floor = (
            goal(m, x0, None, 0, torch.Generator().manual_seed(2)) for m in (model, exact)
        )
    assert off < most
    gap = losses - floor
    assert float(gap.mean()) > -3 * float(gap.std()) / len(gap) ** 0.5


@cache
def components() -> tuple[Tensor, Tensor]:
    """Return training and held-out digits in their first 8 principal components."""
    train, held_out = data.open("digits", held_out=0.25)
    x, y = (part.batch(np.arange(len(part)))[0].flatten(1) for part in (train, held_out))
    _, _, axes = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    return tuple((part - x.mean(0)) @ axes[:8].T for part in (x, y))  # pyright: ignore[reportReturnType] -- two parts


def digits(n: int, g: torch.Generator) -> Tensor:
    """Draw from the training digits."""
    x, _ = components()
    return x[torch.randint(len(x), (n,), generator=g)]


def test_a_linear_score_of_digits_is_that_of_the_fitted_gaussian() -> None:
    """Sliced score matching of a linear net: -(S + sigma^2 I)^-1 (x - mean), S the covariance."""
    sigma, (x, _) = 0.5, components()
    net = nn.Linear(8, 8)
    model = fitted(net, digits, REDUCED, sigma, 500, lr=2e-2)
    s = torch.cov(x.T, correction=0) + sigma**2 * torch.eye(8)
    g = torch.Generator().manual_seed(1)
    y = x + sigma * torch.randn(x.shape, generator=g)
    off = error(model, lambda y: -torch.linalg.solve(s, (y - x.mean(0)).T).T, y)
    assert off < 0.01


def test_sliced_and_denoising_agree_on_digits() -> None:
    """The same net at the same noise: both find what the Gaussian does not see."""
    sigma, (x, held_out) = 0.5, components()
    one, two = (fitted(mlp(8), digits, goal, sigma, 700) for goal in (REDUCED, DENOISING))
    g = torch.Generator().manual_seed(1)
    y = held_out + sigma * torch.randn(held_out.shape, generator=g)
    s = torch.cov(x.T, correction=0) + sigma**2 * torch.eye(8)

    def gaussian(y: Tensor) -> Tensor:
        return -torch.linalg.solve(s, (y - x.mean(0)).T).T

    off = error(one, lambda y: two(y, 0.0).score, y)
    with torch.no_grad():
        losses = [
            float(implicit(score, y).mean())
            for score in (lambda y: one(y, 0.0).score, lambda y: two(y, 0.0).score, gaussian)
        ]
    assert off < 0.1
    assert max(losses[:2]) < losses[2] - 0.5
