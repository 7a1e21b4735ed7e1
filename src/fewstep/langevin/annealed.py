r"""Annealed Langevin dynamics: from a ladder of noise levels down to data.

At large noise the modes of the blurred data run into each other, and chains find their weights;
each lower level starts from the samples of the one above. The score is that of data + sigma n,
with unit signal; `score_of` takes it from a denoiser of any process.

Two conventions of the step size differ by a factor of 2, the commonest error here:

    NCSN's paper, algorithm 1, and this package    x + delta / 2 score + sqrt(delta) z
    the programs of NCSN and NCSNv2, v2's paper    x + a score + sqrt(2 a) z,    delta = 2 a

and NCSN's program reads the paper's epsilon = 2e-5 as an a. `step_sizes` takes an epsilon of the
second kind, and is the only place that converts.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat

import torch
from torch import Tensor

from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.langevin.chain import Move, langevin
from fewstep.solvers import Noise

NoisyScore = Callable[[Tensor, float], Tensor]
"""score(x, sigma) -> the gradient at x of the log density of data + sigma n, shape (B, *)."""


def score_of(denoiser: Denoiser, cond: Cond = None) -> NoisyScore:
    """Return the scores of data + sigma n that a denoiser of any process knows.

    x_t / alpha is data with noise sigma / alpha, so the time is the one of that log-SNR and
    score(x, sigma) = alpha score_t(alpha x).

    Args:
        denoiser: with its guidance.
        cond: the condition of the chains, or None.

    Returns:
        a function of x, shape (B, *), and of the noise level sigma > 0 in units of the data.
    """

    def score(x: Tensor, sigma: float) -> Tensor:
        t = denoiser.process.time(-2 * math.log(sigma))
        alpha = denoiser.process.alpha(t)
        return alpha * denoiser(alpha * x, t, cond).score

    return score


def step_sizes(sigmas: Tensor, epsilon: float) -> Tensor:
    """Return the step sizes delta_i = 2 epsilon (sigma_i / sigma_L)^2 of the levels.

    The ratio of drift to noise is then the same at all levels.

    Args:
        sigmas: the ladder, shape (L,), falling.
        epsilon: as in NCSNv2 and both programs (a of the last level), > 0: 6.2e-6 for CIFAR-10.
            For the epsilon of NCSN's paper, algorithm 1, give half of it.

    Returns:
        shape (L,), float64.

    Source: Song and Ermon, "Improved Techniques for Training Score-Based Generative Models",
        2020, algorithm 1 (arXiv 2006.09011).
    """
    return 2 * epsilon * (sigmas.double() / sigmas[-1].double()) ** 2


def epsilon_of(snr: float, sigma_min: float) -> float:
    """Return the epsilon of `step_sizes` that score_sde's correctors call snr: 2 (snr sigma_L)^2.

    >>> round(epsilon_of(0.176, 0.01), 7)
    6.2e-06
    """
    return 2 * (snr * sigma_min) ** 2


def annealed(
    score: NoisyScore,
    sigmas: Tensor,
    steps: Tensor,
    x: Tensor,
    noise: Noise,
    each: int,
    denoise: bool = True,
) -> Iterator[Move]:
    """Yield the chains after every step, all levels in turn; the arguments are checked at once.

    The chains end on the data blurred by sigma_L. `denoise` adds the step to their mean given the
    blurred value, x + sigma_L^2 score(x), of step size 0: FID changes by 20 points with it, so say
    which one a figure is of.

    Args:
        score: of the blurred data at any level of the ladder, for example `score_of(denoiser)`.
        sigmas: noise levels, shape (L,), falling, > 0, in units of the data.
        steps: the step size delta of each level, shape (L,), > 0, for example `step_sizes`.
        x: start of the chains, shape (B, *); with sigma_1 large enough it does not matter.
        noise: source of standard normal noise; `solvers.PerImage` gives each chain its own.
        each: T, steps per level, >= 1.
        denoise: whether to end with the denoising.

    Returns:
        an iterator of L each `Move`s, and one more for the denoising.

    Raises:
        UsageError: levels that do not fall or are not > 0, steps that are not > 0, each < 1.
        ValueError: shapes of `sigmas` and `steps` that do not fit.

    Source: Song and Ermon, "Generative Modeling by Estimating Gradients of the Data
        Distribution", 2019, algorithm 1 (arXiv 1907.05600); the denoising: Song and Ermon, 2020,
        algorithm 1 (arXiv 2006.09011).
    """
    if sigmas.ndim != 1 or not len(sigmas) or steps.shape != sigmas.shape:
        raise ValueError(
            f"levels of shape {tuple(sigmas.shape)} and steps of shape {tuple(steps.shape)}: "
            "expected (L,) for both, L at least 1"
        )
    levels, sizes = sigmas.tolist(), steps.tolist()
    if not (levels[-1] > 0 and levels[0] < math.inf and all(a > b for a, b in pairwise(levels))):
        raise UsageError("noise levels: must be finite, > 0 and fall strictly")
    for i, delta in enumerate(sizes):
        if not 0 < delta < math.inf:
            raise UsageError(f"step size {delta:g} of level {i}: must be finite and > 0")
    if each < 1:
        raise UsageError(f"{each} Langevin steps per level: must be at least 1")
    return _descend(score, list(zip(levels, sizes, strict=True)), x, noise, each, denoise)


def _descend(
    score: NoisyScore,
    levels: list[tuple[float, float]],
    x: Tensor,
    noise: Noise,
    each: int,
    denoise: bool,
) -> Iterator[Move]:
    for i, (sigma, delta) in enumerate(levels):
        at_level = langevin(lambda y, s=sigma: score(y, s), x, repeat(delta, each), noise)
        for move in at_level:
            x = move.x
            yield Move(i * each + move.index, delta, x)
    if denoise:
        sigma = levels[-1][0]
        with torch.no_grad():
            x = x + sigma**2 * score(x, sigma)
        yield Move(len(levels) * each, 0.0, x)
