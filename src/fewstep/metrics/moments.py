"""Mean and covariance of features, gathered piece by piece.

A Frechet distance needs nothing but n, the mean and the covariance of each set. They are summed
in float64 around the mean of each piece and the pieces are merged exactly, so that the memory
does not grow with the number of images, and the images of several processes or of a run that was
interrupted give the same numbers as one run: (n, mean, scatter) is all that must be kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import DataError, NumericError, UsageError

PIECE = 4096
"""Rows that are looked at together."""

WIDEST = 4096
"""Widest features that a covariance is made of: 4096 x 4096 numbers are 128 MiB."""


@dataclass(frozen=True)
class Moments:
    """The first two moments of a set of features.

    Attributes:
        n: number of rows.
        mean: shape (D,), float64, in units of the features.
        scatter: sum over the rows of (x - mean) (x - mean)^T, shape (D, D), float64, in squared
            units of the features; a sum and not a mean, so that sets can be merged.
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, vectors: Tensor, weights: Tensor | None = None) -> "Moments":
        """Return the moments of rows.

        Args:
            vectors: shape (N, D), N >= 1, any real dtype; may be backed by a memory map, of which
                `PIECE` rows are in memory at a time.
            weights: how often each row counts, integers >= 0, shape (N,); None: once.

        Raises:
            DataError: not a matrix, or no rows.
            NumericError: a value that is not finite.
            UsageError: rows wider than `WIDEST`.
        """
        if vectors.ndim != 2 or len(vectors) < 1:
            raise DataError(
                f"moments: features of shape {tuple(vectors.shape)}; expected (N, D), N >= 1"
            )
        check_width(vectors.shape[1])
        total = None
        for start, x in pieces(vectors):
            w = None if weights is None else weights[start : start + len(x)].double()
            part = cls._of_piece(x, w)
            total = part if total is None else total.merge(part)
        assert total is not None
        if not torch.isfinite(total.mean).all():
            raise NumericError("moments: a feature is not finite; look at the images or the model")
        return total

    @classmethod
    def _of_piece(cls, x: Tensor, w: Tensor | None) -> "Moments":
        """Return the moments of few rows, float64."""
        if w is None:
            mean = x.mean(0)
            x = x - mean
            return cls(len(x), mean, x.T @ x)
        n = int(w.sum())
        mean = w @ x / max(n, 1)
        x = (x - mean) * w.sqrt()[:, None]
        return cls(n, mean, x.T @ x)

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together, as if their rows had been in one.

        scatter = scatter_a + scatter_b + (n_a n_b / n) delta delta^T with delta = mean_b - mean_a.
        The mean of the two covariances would miss the last term.

        Source: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
            Sample Variances", 1979, eq. 2.1.
        """
        if self.mean.shape != other.mean.shape:
            raise DataError(
                f"moments: features of width {len(self.mean)} and {len(other.mean)}; only equal "
                "widths can be merged"
            )
        n = self.n + other.n
        if not other.n or not n:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        shift = torch.outer(delta, delta) * (self.n * other.n / n)
        return Moments(n, mean, self.scatter + other.scatter + shift)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, scatter / (n - 1), shape (D, D); n > 1."""
        if self.n < 2:
            raise DataError(f"covariance: {self.n} images; 2 are needed")
        return self.scatter / (self.n - 1)


def pieces(vectors: Tensor, rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, rows in float64 on the processor), at most `rows` (`PIECE`) at a time."""
    rows = rows or PIECE
    for start in range(0, len(vectors), rows):
        yield start, vectors[start : start + rows].to("cpu", torch.float64)


def check_width(width: int) -> None:
    """Raise UsageError if a covariance of features this wide would be too large."""
    if width > WIDEST:
        raise UsageError(
            f"Frechet distance: features of width {width}; at most {WIDEST} make a covariance: "
            'take the extractor "classifier" or "inception"'
        )
