"""What is known of an image: some of its pixels, its luminance or the means of its blocks.

Each is an orthogonal projection P, the part of the image that was measured: P P = P and P x is
perpendicular to x - P x. So `put` exchanges the measured part and leaves the rest alone, and unit
noise stays unit noise in both parts: what is true of known pixels is true of the others. `within`
finds an image of bytes that still has the part.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Measure = Callable[[Tensor], Tensor]
"""From images, shape (B, C, H, W), to their measured part, of the same shape: a projection."""

LUMINANCE = (0.2989, 0.5870, 0.1140)
"""Shares of red, green and blue in what a grey picture shows."""


def put(x: Tensor, y: Tensor, measure: Measure) -> Tensor:
    """Return x with the measured part of y: x - P x + P y.

    Args:
        x: shape (B, C, H, W).
        y: shape of x.
        measure: the projection P.

    Returns:
        shape of x; for `Pixels` exactly y where it is known and exactly x elsewhere, for the
        others to rounding.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations", 2021, appendix I (arXiv 2011.13456); the same with orthogonal transforms, Song
        et al., "Consistency Models", 2023, algorithm 4 (arXiv 2303.01469).
    """
    return x - measure(x) + measure(y)


def within(x: Tensor, y: Tensor, measure: Measure, rounds: int = 200) -> Tensor:
    """Return an image near x in [-1, 1] with the measured part of y, as files can hold it.

    A walk ends with the measured part of y, but values beyond black and white are cut off when
    bytes are made of them, which would change that part. Both are brought about in turn; known
    pixels need no more than the cut.

    Args:
        x: shape (B, C, H, W).
        y: shape of x, or of one image, in [-1, 1].
        measure: the projection.
        rounds: of exchange and cut, >= 0.

    Returns:
        shape of x, in [-1, 1]; the measured part is y's to 1e-3 for images that are not all
        black or white, and comes nearer with more rounds.

    Source: Bregman, "The method of successive projection for finding a common point of convex
        sets", 1965.
    """
    x = x.clamp(-1, 1)
    for _ in range(rounds):
        x = put(x, y, measure).clamp(-1, 1)
    return x


@dataclass(frozen=True)
class Pixels:
    """Measure some pixels: inpainting.

    Args:
        known: bool, shape (H, W) or (B, 1, H, W), true where the image stays as it is.
    """

    known: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the known pixels of x and 0 elsewhere, shape of x."""
        return torch.where(self.known, x, 0)


@dataclass(frozen=True)
class Luminance:
    """Measure the luminance of an RGB image: colourisation.

    The projection on the direction of the weights in RGB. It is the first axis of the orthogonal
    matrix of the source; the other two are not needed, the rest of the image is their sum.

    Source: Song et al., 2023, appendix (arXiv 2303.01469), whose weights these are.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Return the part of x along the weights, shape (B, 3, H, W)."""
        length = math.hypot(*LUMINANCE)
        axis = x.new_tensor([w / length for w in LUMINANCE]).reshape(3, 1, 1)
        return (x * axis).sum(-3, keepdim=True) * axis


@dataclass(frozen=True)
class BlockMeans:
    """Measure the mean of each block of pixels: super-resolution.

    Args:
        factor: side of a block in pixels, >= 1, a divisor of height and width.
    """

    factor: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return x with every pixel the mean of its block, shape of x."""
        means = functional.avg_pool2d(x, self.factor)
        return enlarged(means, self.factor)


def enlarged(x: Tensor, factor: int) -> Tensor:
    """Return images whose pixels are blocks, which `BlockMeans` leaves as they are.

    Args:
        x: shape (B, C, h, w).
        factor: side of a block, >= 1.

    Returns:
        shape (B, C, h factor, w factor).
    """
    return x.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
