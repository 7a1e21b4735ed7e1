"""Embed what a network is told beside the image: the noise level and the class.

A network that denoises at every noise level must know which one it sees. A real number is spread
over cosines and sines of geometrically falling frequencies, so that a linear layer can read it
coarsely and finely at once. A class is a row of a table. The *null* condition ("no class is told")
is a row of its own, never the zero vector and never class 0: the difference between a class row
and the null row is what classifier-free guidance amplifies.

Inside: `NULL`, `sinusoid`, `ClassEmbedding`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NULL = -1
"""The class index that stands for "no condition" in a `cond` tensor."""


def sinusoid(label: Tensor, width: int, period: float = 10000.0) -> Tensor:
    """Spread noise labels over cosines and sines, `[cos(label f_k), sin(label f_k)]`, k < width/2.

    The frequencies are `f_k = period ** (-k / half)` with `half = width / 2`: the exponent runs
    over k/half as in ADM, not over k/(half - 1) as in DDPM's code, and the cosines come first.
    Published weights depend on both choices.

    Args:
        label: (B,) noise labels, any real number; computed in float32, or float64 if that is
            given, because half precision cannot tell label 999 from label 1000.
        width: number of outputs per label, even.
        period: ratio between the fastest and (nearly) the slowest frequency, in label units.

    Returns:
        (B, width) values in [-1, 1], float32 or float64.

    Raises:
        ValueError: if `width` is odd.

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.5; Dhariwal & Nichol 2021
    (order and exponent).
    """
    if width % 2:
        raise ValueError(f"sinusoid: width {width} is odd; give an even width")
    half = width // 2
    dtype = torch.float64 if label.dtype == torch.float64 else torch.float32
    index = torch.arange(half, dtype=dtype, device=label.device)
    angle = label.to(dtype)[:, None] * torch.exp(-math.log(period) * index / half)
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)


class ClassEmbedding(nn.Module):
    """Look up one row per class, with a row of its own for the null condition.

    A table built with `null=False` (ADM's published conditional checkpoints) has no such row;
    asking it for the null condition is an error, because any row it could return would be the row
    of some class.

    Args:
        classes: number of classes, at least 1.
        width: length of a row.
        null: whether the table has the null row (row number `classes`).

    Source: Ho & Salimans, Classifier-Free Diffusion Guidance, 2022, section 3.2 (the null token).
    """

    def __init__(self, classes: int, width: int, null: bool = True) -> None:
        """Build the table."""
        super().__init__()
        self.classes = classes
        self.null = null
        self.table = nn.Embedding(classes + null, width)

    def forward(self, cond: Tensor | None) -> Tensor:
        """Return the rows of the given classes.

        Args:
            cond: (B,) int64 in 0..classes-1, or -1 for the null condition of that sample; None =
                null for all.

        Returns:
            (B, width), or (1, width) for `None`.

        Raises:
            ValueError: if the null row is asked for and does not exist, or an index is out of
                range. Indices are looked at only where that costs no device synchronisation: on a
                GPU the lookup itself fails.
        """
        if cond is None:
            if not self.null:
                raise ValueError(
                    "this network was trained without the null condition: give cond, a class "
                    "index "
                    f"in 0..{self.classes - 1} for every image"
                )
            return self.table.weight[self.classes :]
        # -1 goes to row `classes`: the null row, or one past the end of a table without it. Every
        # other bad index is moved past the end as well, so that no wrong row is ever returned
        # silently (an index of -2, or a 1-based label).
        past = cond + (cond >= self.classes)
        rows = torch.where(cond < 0, self.classes + NULL - cond, past)
        try:
            return F.embedding(rows, self.table.weight)
        except IndexError as error:
            lowest = NULL if self.null else 0
            raise ValueError(
                f"cond holds class indices from {int(cond.min())} to {int(cond.max())}; "
                f"allowed are {lowest}..{self.classes - 1}"
                + (
                    ""
                    if self.null
                    else " (this network was trained without the null condition -1)"
                )
            ) from error
