"""Are made images copies of training images?

A made image is called a copy if it lies as near to some training image as hardly any real image
does that was not trained on: nearer than 95 % of the held-out images. By that construction 5 %
is what new real images get, in the given features; a model that only repeats its training set
gets 100 %, and one that makes nothing like real images 0 %. It is a question to ask and not a
proof: the nearest pairs are there to be looked at.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import DataError, NumericError
from fewstep.metrics.figures import Figure
from fewstep.metrics.intervals import wilson
from fewstep.metrics.moments import pieces

SHARE = 0.05
"""Share of held-out images that are called copies."""


@dataclass(frozen=True)
class Copies:
    """How many made images are too near to a training image.

    Attributes:
        rate: the share, with the interval for the number of made images; `real` is the share
            of held-out images within the threshold, `SHARE` by construction.
        threshold: the distance that decides, in units of the features.
        pairs: (made image, training image, distance), nearest first, each made image once.
    """

    rate: Figure
    threshold: float
    pairs: list[tuple[int, int, float]]


def copies(made: Tensor, train: Tensor, held_out: Tensor, pairs: int = 10) -> Copies:
    """Return how many made images are copies, and the nearest pairs.

    Args:
        made: features of the images to judge, shape (N, D).
        train: features of the images that the model was trained on, shape (T, D).
        held_out: features of real images that it was not trained on, shape (H, D), H >= 20.
        pairs: how many of the nearest pairs to return.

    Raises:
        DataError: different widths, or too few images.
        NumericError: a feature is not finite.
    """
    shapes = [tuple(x.shape) for x in (made, train, held_out)]
    if any(len(s) != 2 or s[1] != shapes[0][-1] for s in shapes):
        raise DataError(f"copy rate: features of shape {shapes}; expected (N, D) of one width")
    least = round(1 / SHARE)
    if not len(made) or not len(train) or len(held_out) < least:
        raise DataError(
            f"copy rate: {len(made)} made, {len(train)} training and {len(held_out)} held-out "
            f"images; 1, 1 and {least} are needed"
        )
    usual = nearest(held_out, train)[0]
    threshold = float(usual.quantile(SHARE))
    far, partner = nearest(made, train)
    share = float((far <= threshold).double().mean())
    rate = Figure(
        "copy rate",
        share,
        *wilson(share, len(made)),
        real=float((usual <= threshold).double().mean()),
        real_n=len(held_out),
    )
    order = far.argsort(stable=True)[:pairs].tolist()
    return Copies(rate, threshold, [(i, int(partner[i]), float(far[i])) for i in order])


def nearest(x: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of every row to its nearest row of another set, and which that is.

    Distances are sought by products of matrices in float64, in pieces, and the one that is found
    is computed again from the difference, so that a true copy is at exactly 0.

    Args:
        x: shape (N, D).
        among: shape (T, D).

    Returns:
        distances, shape (N,), float64, and rows of `among`, shape (N,), int64.
    """
    distances, rows = [], []
    for _, part in pieces(x, 1000):
        best = torch.full((len(part),), torch.inf, dtype=torch.float64)
        row = torch.zeros(len(part), dtype=torch.int64)
        for start, candidates in pieces(among):
            near, at = torch.cdist(part, candidates).min(1)
            row = torch.where(near < best, at + start, row)
            best = torch.minimum(near, best)
        far = (part - among[row].to(part)).norm(dim=1)
        distances.append(torch.where(best.isfinite(), far, torch.nan))
        rows.append(row)
    found = torch.cat(distances)
    if not torch.isfinite(found).all():
        raise NumericError("copy rate: a feature is not finite; look at the images or the model")
    return found, torch.cat(rows)
