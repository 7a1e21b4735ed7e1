"""Guidance that a network was taught: it says the guided prediction itself."""

import torch
from torch import Tensor

from fewstep import conditions
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.guide.affine import check_scale
from fewstep.prediction import Prediction
from fewstep.shapes import Number


class Taught(Denoiser):
    """Ask a student of guided distillation for its prediction at a guidance scale.

    What takes `ClassifierFree` two branches is one evaluation here, whatever the scale.

    Args:
        denoiser: a denoiser that is told the scale by `conditions.Scaled`.
        scale: the exponent s, a finite number in the range that it was taught.

    Raises:
        UsageError: scale is not finite; when called without a condition, which is not taught.

    Source: Meng et al., "On Distillation of Guided Diffusion Models", 2022, section 3.1 (arXiv
        2210.03142).
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__()
        check_scale(scale)
        self.denoiser, self.scale, self.process = denoiser, float(scale), denoiser.process
        self.null = denoiser.null

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the guided prediction."""
        if cond is None and not self.null:
            raise UsageError(
                "this model was taught guidance, and never the null condition: give a class or a "
                "text"
            )
        wide = torch.promote_types(x_t.dtype, torch.float32)
        scale = torch.full((x_t.shape[0],), self.scale, dtype=wide, device=x_t.device)
        return self.denoiser(x_t, t, conditions.scaled(cond, scale))

    def cost(self, t: float) -> int:
        """Return the cost of the denoiser."""
        return self.denoiser.cost(t)
