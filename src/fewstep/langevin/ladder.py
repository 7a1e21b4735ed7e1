r"""Propose the noise levels and the step size of annealed Langevin dynamics, from the data.

NCSNv2's techniques: the largest level is the largest distance between two images, so that chains
cross from any to any (1); neighbouring levels overlap, so that samples of one are likely at the
next (2); the network is s(x) / sigma (3), which here is the parametrisation EPS up to its sign,
with the label `nothing`; the step keeps the variance where it should be at every level (4); the
weights are averaged with decay 0.999 (5), an option of training.

Source: Song and Ermon, "Improved Techniques for Training Score-Based Generative Models", 2020,
techniques 1-5 (arXiv 2006.09011).
"""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from fewstep.errors import UsageError

_PHI = NormalDist().cdf
_GOLDEN = (math.sqrt(5) - 1) / 2


def largest_distance(data: Tensor, draw: torch.Generator, most: int = 10_000) -> float:
    """Return the largest Euclidean distance between two samples, for sigma_1 (technique 1).

    Args:
        data: shape (N, *).
        draw: generator on the CPU; chooses the samples where there are more than `most`.
        most: samples to compare, >= 2; a random part of a large set comes close.

    Returns:
        >= 0, in units of the data.
    """
    if len(data) > most:
        data = data[torch.randperm(len(data), generator=draw)[:most].to(data.device)]
    flat = data.flatten(1).float()
    return max(float(torch.cdist(some, flat).max()) for some in flat.split(1000))


def overlap(gamma: float, dim: int) -> float:
    """Return C, the chance that a sample of one level lies in the shell of the next (technique 2).

    Noise of level sigma_i has a radius of N(sqrt(D) sigma_i, sigma_i^2 / 2) in D dimensions, and
    C is the weight of level i - 1 within three such deviations of level i: Phi(sqrt(2D)
    (gamma - 1) + 3 gamma) - Phi(sqrt(2D) (gamma - 1) - 3 gamma).

    Args:
        gamma: ratio sigma_(i-1) / sigma_i of two neighbours, > 1.
        dim: D, entries of a sample, >= 1.

    Returns:
        in (0, 1).

    >>> round(overlap((50 / 0.01) ** (1 / 231), 3 * 32 * 32), 3)
    0.567
    """
    far = math.sqrt(2 * dim) * (gamma - 1)
    return _PHI(far + 3 * gamma) - _PHI(far - 3 * gamma)


def ratio(dim: int, wanted: float = 0.5) -> float:
    """Return the ratio gamma of neighbouring levels whose `overlap` is `wanted` (technique 2).

    Near 1 + 3 / sqrt(2 D) for an overlap of a half.

    Args:
        dim: D, entries of a sample; above 4.5, where 3 deviations are a shell and not a ball.
        wanted: C in (0, 0.99].

    Returns:
        gamma > 1.

    Raises:
        UsageError: dim below 5, or an overlap outside (0, 0.99].
    """
    if dim < 5 or not 0 < wanted <= 0.99:
        raise UsageError(
            f"overlap {wanted:g} in {dim} dimensions: the rule needs an overlap in (0, 0.99] and "
            "at least 5 dimensions; below that choose the levels by hand"
        )
    low, high = 1.0, 2.0
    while overlap(high, dim) > wanted:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if overlap(middle, dim) > wanted else (low, middle)
    return (low + high) / 2


def geometric(high: float, low: float, count: int) -> Tensor:
    """Return `count` levels falling from `high` to `low` by one ratio.

    Args:
        high: sigma_1, > low.
        low: sigma_L, > 0.
        count: L, >= 2.

    Returns:
        shape (L,), float64, both ends as given.

    Raises:
        UsageError: not 0 < low < high, or fewer than 2 levels.
    """
    if not 0 < low < high < math.inf or count < 2:
        raise UsageError(
            f"{count} noise levels from {high:g} to {low:g}: needs 0 < low < high and at least 2"
        )
    levels = torch.linspace(math.log(high), math.log(low), count, dtype=torch.float64).exp()
    levels[0], levels[-1] = high, low
    return levels


def levels_for(data: Tensor, draw: torch.Generator, low: float = 0.01) -> Tensor:
    """Return the ladder that techniques 1 and 2 propose for a data set.

    Args:
        data: shape (N, *), with at least 5 entries a sample.
        draw: generator on the CPU, for `largest_distance`.
        low: sigma_L, > 0: noise that nobody sees, 0.01 for images in 0..1 in the paper.

    Returns:
        shape (L,), float64, falling from the largest distance to `low`, with L the nearest to
        1 + ln(sigma_1 / sigma_L) / ln gamma.

    Raises:
        UsageError: fewer than 5 entries a sample, or no two samples further apart than `low`.
    """
    high = largest_distance(data, draw)
    return geometric(high, low, count_for(high, low, data[0].numel()) if low > 0 else 0)


def count_for(high: float, low: float, dim: int) -> int:
    """Return the number of levels from `high` to `low` that technique 2 proposes.

    Args:
        high: sigma_1, > low.
        low: sigma_L, > 0.
        dim: D, entries of a sample, >= 5.

    Returns:
        L, at least 2: the nearest to 1 + ln(sigma_1 / sigma_L) / ln gamma.

    Raises:
        UsageError: fewer than 5 entries.
    """
    return max(2, round(1 + math.log(max(high / low, 1.0)) / math.log(ratio(dim))))


def variance_ratio(epsilon: float, low: float, gamma: float, each: int) -> float:
    """Return the variance after the steps of one level, over what it should be (technique 4).

    For data in one point: the level starts with the variance gamma^2 sigma_i^2 of the one above,
    and `each` steps of `step_sizes` make it sigma_i^2 times ((1 - r)^(2T) (gamma^2 - b) + b), with
    r = epsilon / sigma_L^2 and b = 2 r / (1 - (1 - r)^2).

    Args:
        epsilon: as of `step_sizes`, > 0.
        low: sigma_L, > 0.
        gamma: ratio of two neighbouring levels, > 1.
        each: T, steps per level, >= 1.

    Returns:
        above 1 where r < 1.
    """
    r = epsilon / low**2
    b = 2 / (2 - r)
    return (1 - r) ** (2 * each) * (gamma**2 - b) + b


def epsilon_for(sigmas: Tensor, each: int) -> float:
    """Return the epsilon of `step_sizes` whose `variance_ratio` is closest to 1 (technique 4).

    Args:
        sigmas: a geometric ladder, shape (L,), falling, L >= 2.
        each: T, steps per level, >= 1; T L is a few thousand in the paper.

    Returns:
        between 0 and sigma_L^2, found by golden section over its logarithm.
    """
    low, gamma = float(sigmas[-1]), float(sigmas[-2] / sigmas[-1])
    a, b = math.log(1e-9), 0.0
    while b - a > 1e-9:
        c, d = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
        fc, fd = (variance_ratio(math.exp(r) * low**2, low, gamma, each) for r in (c, d))
        a, b = (a, d) if fc < fd else (c, b)
    return math.exp((a + b) / 2) * low**2


def snr_for(sigmas: Tensor, each: int) -> float:
    """Return the snr of `solvers.PredictorCorrector` with the step of `epsilon_for`.

    Args:
        sigmas: a geometric ladder, shape (L,), falling, L >= 2.
        each: T, steps per level, >= 1.

    Returns:
        sqrt(epsilon / (2 sigma_L^2)), in (0, 0.71).
    """
    return math.sqrt(epsilon_for(sigmas, each) / 2) / float(sigmas[-1])
