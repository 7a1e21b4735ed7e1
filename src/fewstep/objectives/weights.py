"""Loss weights: how much each noise level counts.

A weight multiplies the squared error in x0. A loss in another view is the x0 loss reweighted,
||eps-error||^2 = SNR ||x0-error||^2 and ||v-error||^2 = (SNR + 1) ||x0-error||^2 on a circle, so
a weight and a view are two names of one choice; `One` leaves the choice to the view.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fewstep.prediction import Prediction
from fewstep.shapes import Number


class Weight(Protocol):
    """Weigh the losses of a batch."""

    def __call__(self, truth: Prediction) -> Number:
        """Return a factor of the squared error, a float or broadcastable to (B, *)."""
        ...


@dataclass(frozen=True)
class One:
    """Count every noise level as the view does."""

    def __call__(self, truth: Prediction) -> Number:
        """Return 1."""
        del truth
        return 1.0


@dataclass(frozen=True)
class MinSNR:
    """Weigh an x0 loss with min(SNR, gamma): caps the influence of low noise.

    Use it with view "x0".

    Args:
        gamma: the cap, > 0; 5 in the paper.

    Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023,
        section 3.4 (arXiv 2303.09556).
    """

    gamma: float = 5.0

    def __call__(self, truth: Prediction) -> Number:
        """Return min(alpha^2 / sigma^2, gamma), shape (B, 1, ...)."""
        snr = (truth.alpha / truth.sigma) ** 2
        return snr.clamp(max=self.gamma) if isinstance(snr, Tensor) else min(snr, self.gamma)


@dataclass(frozen=True)
class TruncatedSNR:
    """Weigh an x0 loss with max(SNR, 1): the larger of the errors in x0 and in eps.

    Source: Salimans and Ho, 2022, section 4 (arXiv 2202.00512).
    """

    def __call__(self, truth: Prediction) -> Number:
        """Return max(alpha^2 / sigma^2, 1), shape (B, 1, ...)."""
        snr = (truth.alpha / truth.sigma) ** 2
        return snr.clamp(min=1.0) if isinstance(snr, Tensor) else max(snr, 1.0)


@dataclass(frozen=True)
class SNRPlusOne:
    """Weigh an x0 loss with SNR + 1: on a circle, the error in v.

    Source: Salimans and Ho, 2022, section 4 (arXiv 2202.00512).
    """

    def __call__(self, truth: Prediction) -> Number:
        """Return alpha^2 / sigma^2 + 1, shape (B, 1, ...)."""
        return (truth.alpha / truth.sigma) ** 2 + 1


@dataclass(frozen=True)
class Edm:
    """Weigh an x0 loss with (r^2 + s^2) / (r s)^2, r = sigma / alpha: unit loss for EDM's F.

    Args:
        sigma_data: s, the standard deviation of the data.

    Source: Karras et al., 2022, table 1, "Loss weighting" (arXiv 2206.00364).
    """

    sigma_data: float = 0.5

    def __call__(self, truth: Prediction) -> Number:
        """Return the weight, shape (B, 1, ...)."""
        r = truth.sigma / truth.alpha
        return (r**2 + self.sigma_data**2) / (r * self.sigma_data) ** 2
