"""Multistep exponential integrators: one evaluation per step, memory instead of stages.

Written in half log-SNR, lam = ln(alpha / sigma), the ODE has a linear part that is solved
exactly; what remains is an integral of the predicted x0, which the previous prediction helps to
extrapolate. Predicting x0 rather than eps keeps the method stable under guidance.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.prediction import scaled_sum
from fewstep.process import Process
from fewstep.shapes import Number, like
from fewstep.solvers.base import Noise, Solver


class _Past(NamedTuple):
    """The half log-SNR of the previous step and its prediction."""

    lam: Number
    x0: Tensor


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """Step with DPM-Solver++ of order 1 or 2 (2M).

    With h = lam_s - lam_t and q = exp(-h) = sigma_s alpha_t / (sigma_t alpha_s),

        x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - q) D,
        D = x0 + (x0 - x0_prev) / (2 r),     r = (lam_t - lam_prev) / h,

    and D = x0 in the first step, at order 1 (which is DDIM(0)) and in a step that ends on clean
    data, where h is infinite and x_s = alpha_s x0.

    Args:
        order: 1 or 2.

    Raises:
        UsageError: another order.

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
        Models", 2022, algorithm 2 (arXiv 2211.01095).
    """

    order: int = 2  # pyright: ignore[reportIncompatibleVariableOverride] -- a field here
    evals: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the order."""
        if self.order not in (1, 2):
            raise UsageError(f"DPM-Solver++ of order {self.order}: allowed are 1 and 2")

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Number,
        s: Number,
        cond: Cond = None,
        carry: Any = None,
        noise: Noise | None = None,
    ) -> tuple[Tensor, Any]:
        """Return x_s and the prediction to remember; see `Solver.step`."""
        del noise
        x0 = denoiser(x, t, cond).x0
        process = denoiser.process
        alpha_t, sigma_t = process.levels(t)
        alpha_s, sigma_s = process.levels(s)
        if shapes.at_zero(sigma_s):
            return alpha_s * x0, None
        shrink = sigma_s / sigma_t
        lam, lam_s = _half_logsnr(alpha_t, sigma_t), _half_logsnr(alpha_s, sigma_s)
        weight = alpha_s - shrink * alpha_t
        out = scaled_sum(like(shrink, x), x, like(weight, x), x0)
        if self.order == 2 and carry is not None:
            slope = (lam_s - lam) / (2 * (lam - carry.lam))  # 0 after pure noise, lam = -inf
            if isinstance(slope, Tensor):  # of a batch of steps, some may end on clean data
                slope = slope.nan_to_num(0.0, 0.0, 0.0)
            out = scaled_sum(1.0, out, like(weight * slope, x), x0 - carry.x0)
        return out, _Past(lam, x0)

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid starts on clean data, where log-SNR is infinite."""
        if process.sigma(times[0]) == 0:
            raise UsageError(
                f"{self} from t = {times[0]:g}: log-SNR is infinite on clean data; "
                "start the grid later, or use Heun"
            )


def _half_logsnr(alpha: Number, sigma: Number) -> Number:
    return shapes.log(alpha) - shapes.log(sigma)
