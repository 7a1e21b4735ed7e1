"""Quality of a set of images against a real set.

The arithmetic is torch-fidelity's, so that a figure here is the figure of that program on the
same features; the extra `eval` installs it. What is ours: features are read in pieces, and the
kernel distance is computed in float64 for features of any dtype. The Frechet distance of few
images is too large (`expected_distance`), the kernel distance is not, and precision and recall
are below 1 even for real images: none of them says much without what real images get.
"""

import importlib
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import DataError, NumericError, UsageError
from fewstep.metrics.moments import Moments, check_width, pieces

BLOCK = 1000
"""Rows whose distances to a whole set are held together, for precision and recall."""


class Kernel(NamedTuple):
    """A kernel distance from random subsets.

    Attributes:
        mean: over the subsets, the estimate; may be slightly negative.
        std: over the subsets; the spread of one subset, not the error of the mean.
        subset: images in each subset.
        subsets: how many.
    """

    mean: float
    std: float
    subset: int
    subsets: int = 100


def frechet_distance(real: Moments | Tensor, made: Moments | Tensor) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets of features.

    |mean_r - mean_g|^2 + tr(C_r + C_g - 2 (C_r C_g)^(1/2)), in squared units of the features. It
    is biased upwards by a term that falls as 1 / N, so that only figures at equal N compare.

    Args:
        real: features of real images, shape (N, D), N > 1, or their moments.
        made: features of the images to judge, shape (M, D), M > 1, or their moments.

    Returns:
        the distance, >= 0 up to rounding.

    Raises:
        DataError: fewer than two rows, or different widths.
        NumericError: a feature is not finite.
        UsageError: torch-fidelity is not installed, or the features are wider than 4096.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium", 2017, eq. 6 (arXiv 1706.08500).
    """
    shapes = [x.mean.shape if isinstance(x, Moments) else x.shape for x in (real, made)]
    counts = [x.n if isinstance(x, Moments) else len(x) for x in (real, made)]
    flat = all(isinstance(x, Moments) or x.ndim == 2 for x in (real, made))
    if not flat or shapes[0][-1] != shapes[1][-1]:
        raise DataError(
            f"Frechet distance: features of shape {tuple(shapes[0])} and {tuple(shapes[1])}; "
            "expected (N, D) and (M, D)"
        )
    if min(counts) < 2:
        raise DataError(f"Frechet distance: {counts[0]} and {counts[1]} images; 2 are needed")
    check_width(shapes[0][-1])
    fid = _fidelity("metric_fid")
    statistics = []
    for x in (real, made):
        m = x if isinstance(x, Moments) else Moments.of(x)
        statistics.append({"mu": m.mean.numpy(), "sigma": m.covariance.numpy()})
    metric = fid.fid_statistics_to_metric(*statistics, verbose=False)
    return float(metric[fid.KEY_METRIC_FID])


def expected_distance(covariance: Tensor, n: int, m: int) -> float:
    """Return the Frechet distance to expect between n and m images of one distribution.

    (1/n + 1/m) (sum_i l_i + 1/2 sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j)), with l the
    eigenvalues: the first sum is the noise of the means, the second that of the covariances. It is
    the leading order for Gaussian features and for n and m well above the number of directions
    with variance; below that the distance is smaller than this.

    Args:
        covariance: of the features, shape (D, D).
        n: images in one set.
        m: images in the other set.

    >>> round(expected_distance(torch.eye(32), 2000, 2000), 3)
    0.296
    """
    spread = torch.linalg.eigvalsh(covariance.double()).clamp_min(0)
    product, total = torch.outer(spread, spread), spread[:, None] + spread
    pairs = torch.where(total > 0, product / total.clamp_min(1e-300), 0.0)
    noise = spread.sum() + 0.5 * (pairs.sum() + pairs.diagonal().sum())
    return float((1 / n + 1 / m) * noise)


def kernel_distance(
    real: Tensor, made: Tensor, subset: int | None = None, subsets: int = 100, seed: int = 2020
) -> Kernel:
    """Return the squared maximum mean discrepancy with the kernel (x . y / D + 1)^3.

    The mean over random subsets of the unbiased estimate
    (sum_{i != j} k(x_i, x_j) + sum_{i != j} k(y_i, y_j)) / (m (m - 1)) - 2 mean k(x_i, y_j).
    It is unbiased at every N, in units of the kernel. The subsets are those that torch-fidelity
    draws for this seed; in float32 its values carry rounding of the size of the small ones.

    Args:
        real: features of real images, shape (N, D).
        made: features of the images to judge, shape (M, D).
        subset: images in a subset, m; None: half of the smaller set, at most 1000.
        subsets: how many subsets.
        seed: of the subsets.

    Raises:
        DataError: different widths, fewer than 4 images or a subset larger than a set.
        NumericError: a feature is not finite.
        UsageError: torch-fidelity is not installed.

    Source: Binkowski et al., "Demystifying MMD GANs", 2018, eq. 4 and section 4
        (arXiv 1801.01401).
    """
    _check_pair("kernel distance", real, made, 4)
    n = min(len(real), len(made))
    subset = min(1000, n // 2) if subset is None else subset
    if not 2 <= subset <= n:
        raise DataError(f"kernel distance: subsets of {subset} of {n} images; allowed: 2 to {n}")
    kid = _fidelity("metric_kid")
    draw = np.random.RandomState(seed)
    values = np.zeros(subsets)
    for i in range(subsets):
        parts = []
        for x in (made, real):  # drawn in the order in which the program is commonly called
            rows = torch.from_numpy(draw.choice(len(x), subset, replace=False))
            parts.append(x[rows.to(x.device)].cpu().double())
        _check_finite("kernel distance", *parts)
        values[i] = kid.kernel_mmd(*(x.numpy() for x in parts))
    return Kernel(float(values.mean()), float(values.std()), subset, subsets)


def inception_score(logits: Tensor, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Return mean and standard deviation over the splits of exp E KL(p(y|x) || p(y)).

    1 if all images look alike to the classifier, K if each is one of K classes without doubt and
    all classes are equally frequent. It is too small for few images per split and knows no real
    images at all.

    Args:
        logits: before the softmax, shape (N, K), N >= splits.
        splits: parts that the images are divided into after a shuffle.
        seed: of the shuffle.

    Raises:
        DataError: not a matrix, or fewer images than splits.
        NumericError: a logit is not finite.
        UsageError: torch-fidelity is not installed.

    Source: Salimans et al., "Improved Techniques for Training GANs", 2016, section 4
        (arXiv 1606.03498).
    """
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise DataError(
            f"score: logits of shape {tuple(logits.shape)} in {splits} splits; expected (N, K) "
            "and at least one image per split"
        )
    _check_finite("score", logits)
    isc = _fidelity("metric_isc")
    found = isc.isc_features_to_metric(logits.cpu(), splits, True, seed)
    mean, std = found[isc.KEY_METRIC_ISC_MEAN], found[isc.KEY_METRIC_ISC_STD]
    return float(mean), float(std)


def precision_recall(real: Tensor, made: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Return the share of made images near real ones, and of real images near made ones.

    A ball around each image reaches to its k-th neighbour in its own set. Precision is the share
    of made images inside any ball of a real one, recall the share of real images inside any ball
    of a made one. Both are below 1 for two real sets. Distances have the dtype of the features,
    as in torch-fidelity; `BLOCK` rows of them are in memory at a time.

    Args:
        real: features of real images, shape (N, D).
        made: features of the images to judge, shape (M, D).
        neighbours: k, >= 1.

    Returns:
        precision and recall, shares in [0, 1].

    Raises:
        DataError: different widths, or fewer than k + 2 images.
        NumericError: a feature is not finite.
        UsageError: torch-fidelity is not installed.

    Source: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative
        Models", 2019, eq. 1 and 2 (arXiv 1904.06991).
    """
    _check_pair("precision and recall", real, made, neighbours + 2)
    _check_finite("precision and recall", real, made)
    prc = _fidelity("metric_prc")
    real, made = (x if x.dtype == torch.float64 else x.float() for x in (real, made))
    if real.dtype != made.dtype:
        real, made = real.double(), made.double()
    # Their order is (made, real): a beta of the program had the two shares swapped.
    return prc.calculate_precision_recall_part(made, real, neighbours, BLOCK)


def _check_pair(what: str, real: Tensor, made: Tensor, least: int) -> None:
    """Raise DataError unless two sets of features can be compared."""
    if real.ndim != 2 or made.ndim != 2 or real.shape[1] != made.shape[1]:
        raise DataError(
            f"{what}: features of shape {tuple(real.shape)} and {tuple(made.shape)}; expected "
            "(N, D) and (M, D)"
        )
    if min(len(real), len(made)) < least:
        raise DataError(f"{what}: {len(real)} and {len(made)} images; {least} are needed")


def _check_finite(what: str, *sets: Tensor) -> None:
    """Raise NumericError unless all features are finite."""
    if not all(torch.isfinite(part).all() for x in sets for _, part in pieces(x)):
        raise NumericError(f"{what}: a feature is not finite; look at the images or the model")


def _fidelity(name: str) -> ModuleType:
    """Return a module of torch-fidelity."""
    try:
        return importlib.import_module(f"torch_fidelity.{name}")
    except ImportError as e:
        raise UsageError(
            "measuring quality needs torch-fidelity: pip install 'fewstep[eval]'"
        ) from e
