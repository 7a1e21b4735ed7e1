"""How far apart two images of a consistency objective are: one number for each of a batch."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import UsageError


class Metric(Protocol):
    """Measure distances between images."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances of a from b, both (B, *), shape (B,), >= 0."""
        ...


@dataclass(frozen=True)
class L2:
    """Take the mean of the squared differences."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances, shape (B,)."""
        return (a - b).square().flatten(1).mean(1)


@dataclass(frozen=True)
class L1:
    """Take the mean of the absolute differences."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances, shape (B,)."""
        return (a - b).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class PseudoHuber:
    """Take sqrt(||a - b||^2 + c^2) - c: squared for small differences, their length for large.

    The norm is that of the whole image, not a mean over pixels. c = 0 is the length itself.

    Args:
        c: where it turns, >= 0; None = 0.00054 sqrt(number of values of an image).

    Raises:
        UsageError: c < 0.

    Source: Song and Dhariwal, 2023, section 3.3 (arXiv 2310.14189).
    """

    c: float | None = None

    def __post_init__(self) -> None:
        """Check the number."""
        if self.c is not None and not (math.isfinite(self.c) and self.c >= 0):
            raise UsageError(f"pseudo-Huber c {self.c}: must be a number >= 0")

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances, shape (B,)."""
        apart = (a - b).flatten(1)
        c = 0.00054 * math.sqrt(apart.shape[1]) if self.c is None else self.c
        if c == 0:
            return torch.linalg.vector_norm(apart, dim=1)  # whose gradient at 0 is 0
        return (apart.square().sum(1) + c * c).sqrt() - c
