"""Laws of annealed Langevin dynamics and of the rules that propose its ladder and step."""

import math
from collections import deque

import pytest
import torch

from fewstep.errors import UsageError
from fewstep.exact import Gaussian, Mixture
from fewstep.langevin import annealed, epsilon_of, ladder, langevin, score_of, step_sizes
from fewstep.process import VE, Process
from fewstep.solvers import Noise
from laws.cases import MEANS, PROCESSES, STD, generator, largest, mixture, normal

TWO = torch.tensor([[-5.0, -5.0], [5.0, 5.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.8], dtype=torch.float64)


def source(seed: int = 0) -> Noise:
    """Return noise for all chains from one generator, faster than one per chain."""
    draw = generator(seed)
    return lambda x: torch.randn(x.shape, generator=draw).to(x)


@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_every_process_knows_the_scores_of_blurred_data(p: Process):
    """Against the density of the blobs blurred by sigma, written apart from the denoisers."""
    x, sigma = normal(20, 2).requires_grad_(), 0.6
    square = (x[:, None] - MEANS).square().sum(2)
    density = (-square / (2 * (STD**2 + sigma**2))).logsumexp(1)
    (slope,) = torch.autograd.grad(density.sum(), x)
    assert largest(score_of(mixture(p))(x.detach(), sigma), slope) < 1e-6


@pytest.mark.parametrize(("count", "each"), [(10, 100), (20, 50)])
def test_annealing_finds_the_weights_of_modes(count: int, each: int):
    """0.8 itself is not reached; without annealing it is 0.50 (test_langevin)."""
    sigmas = ladder.geometric(20.0, 0.1, count)
    steps = 0.1 * (sigmas**2 + 1) / 1.01
    score = score_of(Mixture(VE(0.01, 50.0), TWO, 1.0, weights=WEIGHTS))
    x = 16 * torch.rand(4000, 2, generator=generator(1), dtype=torch.float64) - 8
    *_, end = annealed(score, sigmas, steps, x, source(), each, denoise=False)
    heavy = end.x.sum(1) > 0
    assert 0.72 <= float(heavy.double().mean()) <= 0.85
    assert float(end.x[heavy].std(0).mean()) == pytest.approx(1.0, rel=0.06)


def test_too_few_steps_do_not_find_the_weights():
    """0.68 of 0.8 with a fifth of the steps: the law of above is one of L T, not of the ladder."""
    sigmas = ladder.geometric(20.0, 0.1, 10)
    score = score_of(Mixture(VE(0.01, 50.0), TWO, 1.0, weights=WEIGHTS))
    x = 16 * torch.rand(4000, 2, generator=generator(1), dtype=torch.float64) - 8
    steps = 0.1 * (sigmas**2 + 1) / 1.01
    *_, end = annealed(score, sigmas, steps, x, source(), 20, denoise=False)
    assert float((end.x.sum(1) > 0).double().mean()) == pytest.approx(0.68, abs=0.03)


def test_chains_end_on_blurred_data_and_the_denoising_on_their_means():
    """With sigma_L equal to the deviation s of the data, theirs is sqrt(2) s before and
    s^2 / sqrt(s^2 + sigma_L^2) after the last move."""
    s = 0.5
    sigmas = ladder.geometric(5.0, s, 8)
    score = score_of(Gaussian(VE(0.01, 50.0), torch.zeros(1, dtype=torch.float64), s))
    moves = annealed(
        score, sigmas, step_sizes(sigmas, 0.02 * s**2), 5 * normal(40_000, 1), source(), 200
    )
    last, denoised = deque(moves, maxlen=2)
    assert float(last.x.std()) == pytest.approx(math.sqrt(2) * s, rel=0.02)
    assert float(denoised.x.std()) == pytest.approx(s**2 / math.sqrt(2 * s**2), rel=0.02)
    assert (last.index, denoised.index, denoised.step) == (1599, 1600, 0.0)


def test_the_variance_after_each_level_follows_the_recursion():
    s, each = 0.3, 5
    sigmas = ladder.geometric(4.0, 0.1, 6)
    steps = step_sizes(sigmas, 0.002)
    score = score_of(Gaussian(VE(0.01, 50.0), torch.zeros(1, dtype=torch.float64), s))
    want, x = float(sigmas[0]) ** 2, float(sigmas[0]) * normal(100_000, 1)
    moves = annealed(score, sigmas, steps, x, source(), each, denoise=False)
    for move in moves:
        sigma, delta = (float(v[move.index // each]) for v in (sigmas, steps))
        want = (1 - delta / (2 * (s**2 + sigma**2))) ** 2 * want + delta
        if move.index % each == each - 1:
            assert float(move.x.var()) == pytest.approx(want, rel=0.02)


def test_the_rule_of_the_step_is_the_variance_of_a_level():
    """Technique 4, played: data in one point, one level, from the variance of the one above."""
    gamma, low, epsilon, each = 1.3, 0.2, 0.004, 4
    sigmas = torch.tensor([0.2 * gamma**2, 0.2 * gamma], dtype=torch.float64)
    delta = float(step_sizes(torch.tensor([*sigmas, low], dtype=torch.float64), epsilon)[1])
    sigma = float(sigmas[1])
    x = gamma * sigma * normal(200_000, 1)
    moves = langevin(lambda x: -x / sigma**2, x, [delta] * each, source())
    got = float(deque(moves, maxlen=1)[0].x.var()) / sigma**2
    assert got == pytest.approx(ladder.variance_ratio(epsilon, low, gamma, each), rel=0.01)


# Published configurations: sigma_1, L, T, epsilon, entries, C, technique 4's ratio and minimiser.
# LSUN church's epsilon is off its own rule, so its ratio is that of the epsilon in use.
PUBLISHED = [
    (50, 232, 5, 6.2e-6, 32, 0.567, 1.0555, 6.19e-6),
    (90, 500, 5, 3.3e-6, 64, 0.567, 1.0314, 3.33e-6),
    (140, 788, 4, 4.9e-6, 96, 0.566, 1.0247, 2.3e-6),
    (190, 1086, 3, 1.8e-6, 128, 0.566, 1.0174, 1.77e-6),
    (348, 2311, 3, 0.9e-6, 256, 0.567, 1.0089, 0.894e-6),
    (1, 10, 100, 2e-5, 32, 0.0, 1.111, 3.2e-6),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row[4]}px-{row[1]}")
def test_the_rules_give_the_published_ladders_and_steps(row: tuple[float, ...]):
    high, count, each, epsilon, side, share, reached, best = row
    sigmas = ladder.geometric(high, 0.01, int(count))
    gamma = float(sigmas[0] / sigmas[1])
    assert ladder.overlap(gamma, int(3 * side * side)) == pytest.approx(share, abs=1e-3)
    assert ladder.variance_ratio(epsilon, 0.01, gamma, int(each)) == pytest.approx(
        reached, abs=1e-3
    )
    assert ladder.epsilon_for(sigmas, int(each)) == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("dim", [5, 48, 3072, 196_608])
def test_the_ratio_has_the_wanted_overlap(dim: int):
    for wanted in (0.1, 0.5, 0.9):
        assert ladder.overlap(ladder.ratio(dim, wanted), dim) == pytest.approx(wanted, abs=1e-9)
    if dim > 1000:
        assert ladder.ratio(dim) == pytest.approx(1 + 3 / math.sqrt(2 * dim), rel=0.01)


def test_the_best_epsilon_has_no_better_neighbour():
    sigmas = ladder.geometric(30.0, 0.02, 120)
    best, gamma = ladder.epsilon_for(sigmas, 6), float(sigmas[0] / sigmas[1])
    tried = [ladder.variance_ratio(best * f, 0.02, gamma, 6) for f in (0.2, 0.9, 1.0, 1.1, 5.0)]
    assert min(tried) == tried[2]


def test_conversions_of_the_published_steps():
    assert epsilon_of(0.316, 0.01) == pytest.approx(2e-5, rel=0.01)
    assert epsilon_of(0.176, 0.01) == pytest.approx(6.2e-6, rel=0.01)
    # the first kind of step is the second with half the number: the paper's 2e-5 as delta
    sigmas = ladder.geometric(1.0, 0.01, 10)
    assert float(step_sizes(sigmas, 2e-5 / 2)[-1]) == pytest.approx(2e-5, rel=1e-12)
    assert float(step_sizes(sigmas, 6.2e-6)[0]) == pytest.approx(2 * 6.2e-6 * 1e4, rel=1e-12)


def test_levels_for_data_span_them():
    data = normal(300, 3, 8, 8)
    sigmas = ladder.levels_for(data, generator())
    square = (data.flatten(1)[:, None] - data.flatten(1)).square().sum(2)
    assert float(sigmas[0]) == pytest.approx(float(square.max().sqrt()), rel=1e-5)
    assert float(sigmas[-1]) == 0.01
    gamma = float(sigmas[0] / sigmas[1])
    assert gamma == pytest.approx(ladder.ratio(192), rel=0.01)


def test_a_large_data_set_is_judged_by_a_part():
    data = normal(400, 6)
    whole = ladder.largest_distance(data, generator())
    part = ladder.largest_distance(data, generator(), most=100)
    assert 0.7 * whole < part < whole


def bad_call(sigmas: list[float], steps: list[float], each: int) -> None:
    annealed(
        lambda x, s: x, torch.tensor(sigmas), torch.tensor(steps), normal(2, 1), source(), each
    )


@pytest.mark.parametrize(
    ("sigmas", "steps", "each", "words"),
    [
        ([1.0, 2.0], [1.0, 1.0], 1, "fall strictly"),
        ([1.0, 0.0], [1.0, 1.0], 1, "fall strictly"),
        ([1.0, float("nan")], [1.0, 1.0], 1, "fall strictly"),
        ([2.0, 1.0], [1.0, 0.0], 1, "of level 1"),
        ([2.0, 1.0], [1.0, 1.0], 0, "0 Langevin steps per level"),
    ],
)
def test_bad_arguments_are_refused_at_once(
    sigmas: list[float], steps: list[float], each: int, words: str
):
    with pytest.raises(UsageError, match=words):
        bad_call(sigmas, steps, each)


def test_bad_shapes_and_ladders_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and steps of shape \(1,\)"):
        bad_call([2.0, 1.0], [1.0], 1)
    for call in (
        lambda: ladder.ratio(4),
        lambda: ladder.ratio(100, 1.0),
        lambda: ladder.geometric(1.0, 2.0, 5),
        lambda: ladder.geometric(2.0, 1.0, 1),
        lambda: ladder.levels_for(torch.zeros(4, 9), generator()),
        lambda: ladder.levels_for(normal(4, 9), generator(), low=0.0),
    ):
        with pytest.raises(UsageError):
            call()
