"""Guidance: denoisers around denoisers.

Each combinator here takes a denoiser and is one, so guidance meets any solver, any objective and
any other guidance. `scale` has one meaning everywhere, the exponent s in p(x) p(y|x)^s at one
noise level: 0 is unconditional, 1 the plain conditional model, more than 1 guided. The talk's w is
s - 1 for classifier-free guidance and s for classifier guidance. (Across noise levels the guided
fields do not sample that sharpened density: see the law with two Gaussians.)

Inside: `affine` (sums of predictions and gradients), `bounded` (what keeps range, contrast and
direction in bounds under strong guidance) and `taught` (a network that says the sum itself).
"""

from fewstep.denoiser import Denoiser
from fewstep.guide.affine import Auto, ClassifierFree, Interval, LogProb, Unconditional
from fewstep.guide.bounded import Clamp, Keep, Projected, Rescaled, Threshold
from fewstep.guide.taught import Taught

ALL: tuple[type[Denoiser], ...] = (
    ClassifierFree,
    LogProb,
    Interval,
    Auto,
    Unconditional,
    Clamp,
    Keep,
    Threshold,
    Rescaled,
    Projected,
    Taught,
)
"""Every guidance: the laws run over this list."""

__all__ = [
    "ALL",
    "Auto",
    "Clamp",
    "ClassifierFree",
    "Interval",
    "Keep",
    "LogProb",
    "Projected",
    "Rescaled",
    "Taught",
    "Threshold",
    "Unconditional",
]
