"""How far a figure would move if the same model made other images.

Each interval covers 95 % over new images of the same model; the real images stay as they are.

A Frechet distance gets value +- 1.96 standard deviations, by the infinitesimal jackknife: how
much the distance changes when one image counts a little more. That is the bootstrap without its
draws, and without its fault: a replicate holds only 63 % of the images, which makes it as biased
as a set of so many would be. The replicates lie above the value, so that their percentiles are no
interval, and unless there are many more images than features they spread up to twice too far
(`bootstrap_sd` is here for comparison).

A kernel distance gets the same, and the spread of the random subsets of which it is the mean; a
share of images gets the interval of Wilson, which is sensible at 0 and 1 where the usual one has
no width.
"""

import math

import torch
from torch import Tensor

from fewstep.metrics.moments import Moments, pieces
from fewstep.metrics.quality import Kernel, frechet_distance

Z = 1.96
"""Standard deviations to either side that hold 95 % of a normal distribution."""

_KERNEL_ROWS = 2000


def around(value: float, sd: float) -> tuple[float, float]:
    """Return value - 1.96 sd and value + 1.96 sd."""
    return value - Z * sd, value + Z * sd


def frechet_sd(real: Moments | Tensor, made: Tensor, moments: Moments | None = None) -> float:
    """Return the standard deviation of a Frechet distance over other images of the same model.

    sqrt(var(g) / N), with g_i the derivative of the distance with respect to the weight of image
    i: 2 (x_i - m) . (m - m_r) + |x_i - m|^2 - y_i^T (A C A^T)^(-1/2) y_i, where y_i = A (x_i - m)
    and A^T A is the covariance of the real images. Where C is singular the inverse is that on
    its range, in which every made image lies.

    Args:
        real: features of the real images, or their moments.
        made: features of the images to judge, shape (N, D), N > 1.
        moments: of the made images, if known.

    Source: Jaeckel, "The Infinitesimal Jackknife", 1972; Efron, "The Jackknife, the Bootstrap and
        Other Resampling Plans", 1982, section 6.
    """
    real = real if isinstance(real, Moments) else Moments.of(real)
    moments = moments or Moments.of(made)
    values, axes = torch.linalg.eigh(real.covariance)
    root = (axes * values.clamp_min(0).sqrt()).T
    values, axes = torch.linalg.eigh(root @ moments.covariance @ root.T)
    keep = values > 1e-10 * values[-1]
    to_axes = root.T @ axes[:, keep]
    slopes = []
    for _, x in pieces(made):
        x = x - moments.mean
        across = ((x @ to_axes).square() / values[keep].sqrt()).sum(1)
        slopes.append(2 * x @ (moments.mean - real.mean) + x.square().sum(1) - across)
    return float((torch.cat(slopes).var() / len(made)).sqrt())


def bootstrap_sd(
    real: Moments | Tensor, made: Tensor, replicates: int | None = None, seed: int = 0
) -> float:
    """Return the standard deviation of a Frechet distance by the bootstrap.

    Every replicate counts each made image as often as it comes up in N draws with repetition;
    the images are not copied, they get weights. Too large where N is not well above D.

    Args:
        real: features of the real images, or their moments.
        made: features of the images to judge, shape (N, D), N > 1.
        replicates: how many; their spread is known to 1 / sqrt(2 replicates). None: 50, and 20
            for features wider than 512.
        seed: of the draws.

    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979, section 2.
    """
    n, width = made.shape
    replicates = replicates or (50 if width <= 512 else 20)
    real = real if isinstance(real, Moments) else Moments.of(real)
    draw = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(replicates):
        rows = torch.randint(n, (n,), generator=draw)
        values.append(frechet_distance(real, Moments.of(made, rows.bincount(minlength=n))))
    return float(torch.tensor(values, dtype=torch.float64).std())


def kernel_sd(real: Tensor, made: Tensor, found: Kernel, seed: int = 0) -> float:
    """Return the standard deviation of a kernel distance over other images of the same model.

    sqrt(4 var(h) / N + s^2 / subsets), with h_i = mean_j k(x_i, x_j) - mean_l k(x_i, y_l) over
    the made images x and the real images y: half the derivative of the distance with respect to
    the weight of image i, the infinitesimal jackknife again. The second term is that the
    distance is a mean over random subsets, whose spread is s. The mean and the variance of h are
    taken over a fixed choice of at most `_KERNEL_ROWS` images.

    Args:
        real: features of the real images, shape (M, D).
        made: features of the images to judge, shape (N, D), N > 1.
        found: the distance with the spread of its subsets.
        seed: of the choice.

    Source: Serfling, "Approximation Theorems of Mathematical Statistics", 1980, section 5.5.
    """
    draw = torch.Generator().manual_seed(seed)

    def some(x: Tensor, most: int) -> Tensor:
        rows = torch.randperm(len(x), generator=draw)[:most].sort().values
        return x[rows].double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    x, y = some(made, _KERNEL_ROWS), some(real, _KERNEL_ROWS)
    own = kernel(x, x).fill_diagonal_(0).sum(1) / (len(x) - 1)
    slope = own - kernel(x, y).mean(1)
    return math.sqrt(4 * float(slope.var()) / len(made) + found.std**2 / found.subsets)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a share of n images.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).

    Args:
        share: in [0, 1].
        n: images, >= 1.

    >>> [round(end, 3) for end in wilson(0.0, 100)]
    [0.0, 0.037]

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    middle = share + Z**2 / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    # Exactly 0 or 1 is an end, but rounding could leave it outside its own interval.
    return max(0.0, min(share, (middle - half) / scale)), min(
        1.0, max(share, (middle + half) / scale)
    )
