"""Quality of a set of images against a real set.

The arithmetic is torch-fidelity's, so that a figure here is the figure of that program on the
same features; the extra `eval` installs it.
"""

from types import ModuleType

import torch
from torch import Tensor

from fewstep.errors import DataError, UsageError


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets of features.

    |mean_r - mean_g|^2 + tr(C_r + C_g - 2 (C_r C_g)^(1/2)), in squared units of the features. It
    is biased upwards by a term that falls as 1 / N, so that only figures at equal N compare.

    Args:
        real: features of real images, shape (N, D), N > 1.
        made: features of the images to judge, shape (M, D), M > 1.

    Returns:
        the distance, >= 0 up to rounding.

    Raises:
        DataError: fewer than two rows, or different widths.
        UsageError: torch-fidelity is not installed.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium", 2017, eq. 6 (arXiv 1706.08500).
    """
    if real.ndim != 2 or made.ndim != 2 or real.shape[1] != made.shape[1]:
        raise DataError(
            f"Frechet distance: features of shape {tuple(real.shape)} and {tuple(made.shape)}; "
            "expected (N, D) and (M, D)"
        )
    if min(len(real), len(made)) < 2:
        raise DataError(f"Frechet distance: {len(real)} and {len(made)} images; 2 are needed")
    fid = _fidelity()
    statistics = [fid.fid_features_to_statistics(f.double()) for f in (real, made)]
    metric = fid.fid_statistics_to_metric(*statistics, verbose=False)
    return float(metric[fid.KEY_METRIC_FID])


def floor(real: Tensor, held_out: Tensor, n: int, seed: int = 0) -> float:
    """Return the distance of n real images to the held-out ones: what a perfect model gets.

    Args:
        real: features of the training split, shape (N, D).
        held_out: features of the held-out split, shape (M, D).
        n: how many of the training images, as many as will be generated; at most N are taken.
        seed: which of them.
    """
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    return frechet_distance(held_out, real[order[:n]])


def _fidelity() -> ModuleType:
    try:
        from torch_fidelity import metric_fid
    except ImportError as e:
        raise UsageError(
            "measuring quality needs torch-fidelity: pip install 'fewstep[eval]'"
        ) from e
    return metric_fid
