"""Laws of Langevin chains: on Gaussians everything about them is known."""

import math
from collections import deque
from itertools import islice, repeat

import pytest
import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.langevin import Moments, Move, decaying, langevin, minibatch_score
from fewstep.solvers import Noise, PerImage, image_seeds
from laws.cases import generator, largest, normal


def source(seed: int = 0) -> Noise:
    """Return noise for all chains from one generator, faster than one per chain."""
    draw = generator(seed)
    return lambda x: torch.randn(x.shape, generator=draw).to(x)


def last(moves) -> Move:
    return deque(moves, maxlen=1)[0]


@pytest.mark.parametrize(("delta", "variance"), [(0.1, 1.02564), (0.5, 1.14286), (1.0, 1.33333)])
def test_a_fixed_step_widens_a_gaussian_as_the_closed_form_says(delta: float, variance: float):
    x = last(langevin(torch.neg, normal(100_000, 1), repeat(delta, 200), source())).x
    assert float(x.var()) == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize(("times", "grows"), [(5, True), (3, False)])
def test_a_step_of_four_variances_is_the_limit(times: float, grows: bool):
    s2 = 0.7
    move = last(langevin(lambda x: -x / s2, normal(100, 1), repeat(times * s2, 200), source()))
    assert (largest(move.x) > 1e6) == grows


def two_modes(x: Tensor, sigma: float = 0.0) -> Tensor:
    """The score of 0.2 N((-5, -5), I) + 0.8 N((5, 5), I), blurred by sigma."""
    v = 1 + sigma**2
    heavy = torch.sigmoid(torch.tensor(0.8 / 0.2).log() + 10 * x.sum(1, keepdim=True) / v)
    return (5 * (2 * heavy - 1) - x) / v


def test_the_score_is_that_of_two_modes():
    """Against automatic differentiation of the density."""
    x = (3 * normal(50, 2)).requires_grad_()
    for sigma in (0.0, 2.0):
        v = 1 + sigma**2
        light = math.log(0.2) - (x + 5).square().sum(1) / (2 * v)
        heavy = math.log(0.8) - (x - 5).square().sum(1) / (2 * v)
        (slope,) = torch.autograd.grad(torch.logaddexp(light, heavy).sum(), x)
        assert largest(two_modes(x.detach(), sigma), slope) < 1e-6


def test_plain_chains_do_not_find_the_weights_of_modes():
    """Half the chains start nearer to the heavy mode, and there they stay."""
    x = 16 * torch.rand(4000, 2, generator=generator(1), dtype=torch.float64) - 8
    x = last(langevin(two_modes, x, repeat(0.1, 1000), source())).x
    assert float((x.sum(1) > 0).double().mean()) == pytest.approx(0.50, abs=0.03)


def test_the_metropolis_correction_takes_the_widening_away():
    moves = langevin(
        torch.neg, normal(50_000, 1), repeat(1.0, 100), source(),
        lambda x: -x.square().flatten(1).sum(1) / 2,
    )  # fmt: skip
    moments, rates = Moments(), []
    for move in moves:
        assert move.accepted is not None
        rates.append(float(move.accepted.double().mean()))
        moments.add(move.x)
    assert float(moments.variance) == pytest.approx(1.0, rel=0.01)
    assert 0.7 < rates[-1] < 0.99


def test_the_correction_forgives_a_wrong_score():
    """Proposals from the score of N(0.5, 2): the chains still sample N(0, 1)."""
    moves = langevin(
        lambda x: -(x - 0.5) / 2, normal(50_000, 1), repeat(0.8, 100), source(),
        lambda x: -x.square().flatten(1).sum(1) / 2,
    )  # fmt: skip
    x = last(moves).x
    assert float(x.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(x.var()) == pytest.approx(1.0, rel=0.03)


def test_a_chain_does_not_depend_on_the_others():
    seeds = image_seeds(7, 6)
    steps, x = [0.3, 0.2, 0.1], normal(6, 2)

    def walked(rows: slice) -> Tensor:
        own = PerImage(seeds[rows])
        return last(langevin(torch.neg, x[rows], steps, own, lambda x: -x.square().sum(1) / 2)).x

    whole = walked(slice(0, 6))
    for i in range(6):
        assert torch.equal(walked(slice(i, i + 1)), whole[i : i + 1])


def pull(theta: Tensor, data: Tensor) -> Tensor:
    """The gradient in theta of the log-likelihood of N(theta, 1), summed over data (B, n, 1)."""
    return (data - theta[:, None]).sum(1)


def test_a_minibatch_is_an_unbiased_score():
    data = normal(50, 1, seed=3)
    exact = data.sum()
    score = minibatch_score(torch.zeros_like, pull, data, 10, source())
    scores = score(torch.zeros(40_000, 1, dtype=torch.float64))
    deviation = 50 / 10**0.5 * float(data.std(correction=0))  # of 10 draws with replacement
    assert abs(float(scores.mean() - exact)) < 4 * deviation / 40_000**0.5
    assert float(scores.std()) == pytest.approx(deviation, rel=0.02)


@pytest.mark.parametrize(("noise", "delta"), [(0.0, 0.1), (4.0, 0.1), (20.0, 0.4)])
def test_noise_of_the_score_widens_the_law(noise: float, delta: float):
    """Precision A, a score of variance V: (1 + delta V / 4) / (A (1 - delta A / 4))."""
    a, own = 2.0, source(3)
    score = lambda x: -a * x + math.sqrt(noise) * own(x)  # noqa: E731 -- as short as its formula
    x = last(langevin(score, normal(100_000, 1), repeat(delta, 100), source())).x
    want = (1 + delta * noise / 4) / (a * (1 - delta * a / 4))
    assert float(x.var()) == pytest.approx(want, rel=0.02)


def test_minibatches_sample_a_conjugate_posterior():
    """The mean of N = 200 numbers, prior N(0, 10): averages weighted by the falling steps."""
    data = 1.0 + normal(200, 1, seed=5)
    precision = 200 + 1 / 10
    centre = float(data.sum()) / precision
    score = minibatch_score(lambda theta: -theta / 10, pull, data, 20, source())
    steps = islice(decaying(2e-3, 1.0, 0.55), 20_000)
    moments = Moments()
    for move in langevin(score, torch.zeros(400, 1, dtype=torch.float64), steps, source(1)):
        if move.index >= 1000:
            moments.add(move.x, move.step)
    assert abs(float(moments.mean) - centre) < 0.15 * precision**-0.5
    assert 0.75 < float(moments.variance) * precision < 1.25


def test_moments_are_the_weighted_ones():
    x, w = 1e6 + normal(30, 4, 2), torch.rand(30, generator=generator(2), dtype=torch.float64)
    moments = Moments()
    for chains, weight in zip(x, w.tolist(), strict=True):
        moments.add(chains, weight)
    share = (w / w.sum() / 4)[:, None, None]
    mean = (share * x).sum((0, 1))
    assert largest(moments.mean, mean) < 1e-8
    assert largest(moments.variance, (share * (x - mean).square()).sum((0, 1))) < 1e-8


def test_steps_fall_as_said():
    assert list(islice(decaying(0.5, 3.0, 1.0), 2)) == pytest.approx([0.5 / 3, 0.5 / 4])


@pytest.mark.parametrize("delta", [0.0, -0.1, float("nan"), float("inf")])
def test_bad_steps_are_refused(delta: float):
    with pytest.raises(UsageError, match="step 0 of size"):
        next(langevin(torch.neg, normal(2, 1), [delta], source()))


@pytest.mark.parametrize(
    "bad", [(0.0, 1.0, 0.6), (1.0, 0.0, 0.6), (1.0, 1.0, 0.5), (1.0, 1.0, 1.1)]
)
def test_bad_decays_are_refused(bad: tuple[float, float, float]):
    with pytest.raises(UsageError, match="decaying steps"):
        next(decaying(*bad))


@pytest.mark.parametrize("size", [0, 51])
def test_bad_minibatches_are_refused(size: int):
    with pytest.raises(UsageError, match="must be in 1"):
        minibatch_score(torch.zeros_like, lambda theta, d: theta, normal(50, 1), size, source())
