"""DPM-Solver++: exponential integrators of the predicted x0, multistep and singlestep.

Predicting x0 rather than eps keeps the method stable under guidance. The multistep method takes
one evaluation per step and extrapolates with past ones, the singlestep method takes two.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.prediction import scaled_sum
from fewstep.process import Process
from fewstep.shapes import Number, like
from fewstep.solvers.base import Noise, Solver, check_start
from fewstep.solvers.exponential import History, Node, follow, half_logsnr, moments

SHORT = 15
"""Grids of fewer steps end with steps of lower order, where the number of steps is given."""


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """Step with the multistep DPM-Solver++ of order 1, 2 (2M) or 3 (3M).

    With h = lam_s - lam_t and q = exp(-h) = sigma_s alpha_t / (sigma_t alpha_s),

        x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - q) D,
        D = x0 + (x0 - x0_prev) / (2 r),     r = (lam_t - lam_prev) / h,

    at order 2; D = x0 in the first step, at order 1 (which is DDIM(0)) and in a step that ends on
    clean data, where h is infinite and x_s = alpha_s x0. Order 3 integrates the parabola through
    three predictions, and starts with steps of order 1 and 2. The widespread programs halve its
    term of second order, which leaves a method of order 2: `legacy` does that too.

    Args:
        order: 1, 2 or 3.
        legacy: order 3 as in published numbers; at most 20 steps hardly tell.
        steps: number of steps of the grid; one of less than 15 steps ends with orders 2 and 1.
            0 = not known, and no order is lowered.

    Raises:
        UsageError: another order, steps < 0, or `legacy` at another order than 3.

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
        Models", 2022, algorithm 2 and appendix B (arXiv 2211.01095); order 3 is UniP-3 of Zhao et
        al., 2023 (arXiv 2302.04867).
    """

    order: int = 2  # pyright: ignore[reportIncompatibleVariableOverride] -- a field here
    legacy: bool = False
    steps: int = 0
    evals: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the order."""
        if self.order not in (1, 2, 3):
            raise UsageError(f"DPM-Solver++ of order {self.order}: allowed are 1, 2 and 3")
        if self.steps < 0 or (self.legacy and self.order != 3):
            raise UsageError(f"{self}: needs steps >= 0, and legacy belongs to order 3")

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
        """Return x_s and the predictions to remember; see `Solver.step`."""
        del noise
        x0 = denoiser(x, t, cond).x0
        process = denoiser.process
        alpha_t, sigma_t = process.levels(t)
        alpha_s, sigma_s = process.levels(s)
        if shapes.at_zero(sigma_s):
            return alpha_s * x0, None
        shrink = sigma_s / sigma_t
        lam, lam_s = half_logsnr(alpha_t, sigma_t), half_logsnr(alpha_s, sigma_s)
        weight = alpha_s - shrink * alpha_t
        past = (carry or History()).then(Node(lam, x0), self.order)
        order = self.order
        if self.steps < SHORT:
            order = lowered(order, past, self.steps)
        nodes = past.nodes[:order]
        h = lam_s - lam
        weights: tuple[Number, ...] = ()
        if len(nodes) == 2:
            weights = 0.0, -shapes.expm1(-h) * h / 2
        elif len(nodes) == 3:
            m = moments(h, 2)
            weights = 0.0, m[1], m[2] / 2 if self.legacy else m[2]
        return follow(shrink, x, weight, nodes, alpha_s, weights), past

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid starts on clean data, where log-SNR is infinite."""
        check_start(self, process, times, "log-SNR is infinite")


@dataclass(frozen=True)
class DPMSolverPP2S(Solver):
    """Step with the singlestep DPM-Solver++ of order 2 (2S).

    A step of order 1 to the middle of the step in lam, and a whole step with the x0 predicted
    there. A step that ends on clean data or starts from pure noise has no middle and stays one
    of order 1.

    Source: Lu et al., 2022, algorithm 1 with r = 1/2 (arXiv 2211.01095).
    """

    order: ClassVar[int] = 2
    evals: ClassVar[int] = 2

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
        """Return x_s; see `Solver.step`."""
        del carry, noise
        p, process = denoiser(x, t, cond), denoiser.process
        levels = process.levels(s)
        alpha_s, sigma_s = (like(c, x) for c in levels)
        middle = half_logsnr(*process.levels(t)) / 2 + half_logsnr(*levels) / 2
        if isinstance(middle, Tensor):  # of a batch of steps, some may end on clean data
            whole = middle.isfinite()
            m = torch.where(whole, torch.as_tensor(process.time(2 * middle)), torch.as_tensor(t))
        elif not math.isfinite(middle):
            return p.at(alpha_s, sigma_s), None
        else:
            whole, m = None, process.time(2 * middle)
        x0 = denoiser(p.at(*(like(c, x) for c in process.levels(m))), m, cond).x0
        if whole is not None:
            x0 = torch.where(torch.as_tensor(like(whole, x)) > 0, x0, p.x0)
        ratio = like(process.sigma(s) / process.sigma(t), x)
        return scaled_sum(ratio, x, alpha_s - ratio * like(process.alpha(t), x), x0), None

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid starts on clean data, where log-SNR is infinite."""
        check_start(self, process, times, "log-SNR is infinite")


def lowered(order: int, past: History, steps: int) -> int:
    """Return the order that leaves 2 and 1 for the last steps; `order` where steps is 0.

    Args:
        order: of the method.
        past: with the step that is being taken.
        steps: number of steps of the grid, 0 = not known.
    """
    return max(1, min(order, steps - past.done + 1)) if steps else order
