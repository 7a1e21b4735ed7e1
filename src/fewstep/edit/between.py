"""Between two noises: along the great circle, where every point is as long as noise is.

In many dimensions standard normal noise lies close to a sphere. A straight line between two
noises cuts through it (its middle is 0.71 as long), and a denoiser has never seen such points.
"""

import torch
from torch import Tensor

from fewstep.shapes import Number, like

_FLAT = 1e-6  # |sin| of the angle below which there is no great circle to divide by


def slerp(a: Tensor, b: Tensor, u: Number) -> Tensor:
    """Return the points between a and b on the great circle through both.

        (sin((1 - u) angle) a + sin(u angle) b) / sin(angle)

    The angle is that of each sample; the DDIM program takes one angle for the whole batch, which
    is right for a batch of one only. Where a and b point the same way, in opposite ways or one of
    them is zero, no great circle is singled out and the straight line is taken.

    Args:
        a: at u = 0, shape (B, *).
        b: at u = 1, shape of a.
        u: share of the way, a float or shape (B,), usually in [0, 1].

    Returns:
        shape (B, *), dtype of a; exactly a and b at the ends.

    Raises:
        ValueError: a and b of different shapes.

    Source: Shoemake, "Animating Rotation with Quaternion Curves", 1985; for noise: Song, Meng,
        Ermon, 2021, appendix D.5 (arXiv 2010.02502).
    """
    if a.shape != b.shape:
        raise ValueError(
            f"a of shape {tuple(a.shape)}, b of shape {tuple(b.shape)}: must be equal"
        )
    p, q = a.flatten(1).double(), b.flatten(1).double()
    p, q = (v / v.norm(dim=1, keepdim=True).clamp(min=1e-300) for v in (p, q))
    # by the two chords: the arccosine of the cosine loses half its digits at small angles
    angle = 2 * torch.atan2((p - q).norm(dim=1), (p + q).norm(dim=1))
    share = torch.as_tensor(u, dtype=torch.float64, device=a.device).expand(len(a))
    sine = angle.sin()
    flat = (sine.abs() < _FLAT) | (p.norm(dim=1) == 0) | (q.norm(dim=1) == 0)
    sine = torch.where(flat, 1.0, sine)
    left = torch.where(flat, 1 - share, ((1 - share) * angle).sin() / sine)
    right = torch.where(flat, share, (share * angle).sin() / sine)
    return like(left, a) * a + like(right, b) * b


def frames(a: Tensor, b: Tensor, n: int) -> Tensor:
    """Return n noises from a to b, evenly along the great circle.

    Args:
        a: the first, shape (*).
        b: the last, shape of a.
        n: how many, >= 2.

    Returns:
        shape (n, *), dtype of a.

    Raises:
        ValueError: n < 2, or shapes that differ.
    """
    if n < 2:
        raise ValueError(f"{n} frames: must be at least 2, both ends")
    if a.shape != b.shape:
        raise ValueError(
            f"a of shape {tuple(a.shape)}, b of shape {tuple(b.shape)}: must be equal"
        )
    share = torch.linspace(0, 1, n, dtype=torch.float64, device=a.device)
    return slerp(a.expand(n, *a.shape), b.expand(n, *b.shape), share)
