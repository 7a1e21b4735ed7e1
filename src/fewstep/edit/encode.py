"""From an image to the noise that DDIM makes it from.

The same solver on the flipped grid encodes too, but only to first order: it asks for the noise
at the lower time of each step, decoding at the upper one. Here each decoding step is inverted,
so that decoding the code gives the image again to rounding, whatever the number of steps.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep import conditions
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.shapes import like
from fewstep.solvers import DDIM, Solver, sample

_DDIM = DDIM()
_ROUNDINGS = 8  # that many roundings of the largest number count as solved


@dataclass(frozen=True)
class Code:
    """The noise of a batch of images.

    Attributes:
        x: at the noisy end of the grid, shape (B, *).
        residual: largest distance of a decoding step from the point that it should reach, over
            all steps and numbers of a sample, shape (B,), in units of the data; at rounding where
            every step was inverted.
        iterations: evaluations of the denoiser per image.
    """

    x: Tensor
    residual: Tensor
    iterations: int


def decode(
    denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond = None, solver: Solver = _DDIM
) -> Tensor:
    """Return what DDIM makes of noise, or another solver.

    Args:
        denoiser: with its guidance.
        x: at times[0], shape (B, *).
        times: falling grid, shape (n + 1,).
        cond: the condition of the B images, or None.
        solver: the method; `Consistency` on a grid of one step draws no noise.

    Returns:
        at times[-1], shape (B, *).

    Raises:
        UsageError: as `solvers.sample`.
    """
    for step in sample(denoiser, tuple(x.shape), times, solver, cond, x=x):
        x = step.x
    return x


@torch.no_grad()
def encode(
    denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond = None, most: int = 100
) -> Code:
    """Find the noise from which `decode` on the same grid makes these images.

    Step by step from clean to noisy, x_s = step(x_t) is solved for x_t by

        x_t <- x_t + factor (x_s - step(x_t)),
        factor = (alpha_t^2 + sigma_t^2) / (alpha_t alpha_s + sigma_t sigma_s),

    a fixed point whose factor is exact for Gaussian data of unit variance. The usual forms, which
    hold the predicted noise (factor alpha_t / alpha_s) or the predicted image (sigma_t / sigma_s),
    contract slowly at much and at little noise. Where a sample gets worse, it goes back to its
    best point with half the factor. There may be no solution under guidance, with clipping, or
    for a step that ends on clean data, where many x_t have one image: leave such a last step out
    of the grid. `Code.residual` says how far it came; a small error of the decoded image says
    little about the code.

    Args:
        denoiser: deterministic, unclipped, guided with scale 1 at most.
        x: images at times[-1], shape (B, *), usually in [-1, 1].
        times: the grid of decoding, shape (n + 1,), falling.
        cond: the condition of the B images, or None.
        most: evaluations per step at most, >= 1.

    Returns:
        the noise at times[0] with what is left of the error.

    Raises:
        UsageError: the grid does not fall, or most < 1.

    Source: Song, Meng, Ermon, 2021, section 5.4 (arXiv 2010.02502), for the encoding; the
        inversion of the implicit step is ours.
    """
    levels = times.tolist()
    if len(levels) < 2 or any(t <= s for t, s in pairwise(levels)):
        raise UsageError("the grid of encoding must fall, as that of decoding: do not flip it")
    if most < 1:
        raise UsageError(f"most {most}: must be at least 1")
    cond = conditions.to(cond, x.device)
    worst, used = x.new_zeros(len(x)), 0
    for t, s in reversed(list(pairwise(levels))):
        x, left, count = _undo(denoiser, x, t, s, cond, most)
        worst, used = torch.maximum(worst, left), used + count
    return Code(x, worst, used)


def _undo(
    denoiser: Denoiser, x_s: Tensor, t: float, s: float, cond: Cond, most: int
) -> tuple[Tensor, Tensor, int]:
    """Return x_t, what is left of each sample's error, shape (B,), and the evaluations."""
    (a_t, s_t), (a_s, s_s) = (denoiser.process.levels(u) for u in (t, s))
    factor = float((a_t * a_t + s_t * s_t) / (a_t * a_s + s_t * s_s))
    goal = _ROUNDINGS * torch.finfo(x_s.dtype).eps * (1 + float(x_s.abs().max()))
    best = x_t = factor * x_s
    kept = torch.zeros_like(x_s)
    least, gain = x_s.new_full((len(x_s),), torch.inf), x_s.new_ones(len(x_s))
    count = 0
    while count < most and not bool((least <= goal).all()):
        count += 1
        error = x_s - DDIM().step(denoiser, x_t, t, s, cond)[0]
        left = error.abs().flatten(1).amax(1)
        better = left < least  # false for NaN too
        wide = better.reshape(-1, *(1,) * (x_s.ndim - 1))
        best, kept = torch.where(wide, x_t, best), torch.where(wide, error, kept)
        least = torch.where(better, left, least)
        gain = torch.where(better, gain, gain / 2)  # too far: again from the best point
        x_t = best + factor * like(gain, x_s) * kept
    return best, least, count
