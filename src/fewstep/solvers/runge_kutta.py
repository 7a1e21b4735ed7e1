"""Runge-Kutta methods on the probability-flow ODE.

In the coordinates y = x / alpha and r = sigma / alpha the ODE of every process is dy/dr = eps:
a straight line wherever the prediction does not change. `Euler` follows it with one evaluation
per step and is DDIM(0) by another road; `Heun` corrects with a second one.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.process import Process
from fewstep.shapes import Number, like
from fewstep.solvers.base import Noise, Solver, check_finite


@dataclass(frozen=True)
class Euler(Solver):
    """Follow the tangent: x_s / alpha_s = x_t / alpha_t + (r_s - r_t) eps.

    Source: Song et al., 2021, eq. 13-14 (arXiv 2010.02502); Karras et al., 2022, algorithm 1
        without the correction (arXiv 2206.00364).
    """

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
        eps = denoiser(x, t, cond).eps
        ratio, dr = _line(denoiser, x, t, s)
        return ratio * x + dr * eps, None

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid touches pure noise, where sigma / alpha is infinite."""
        check_finite(self, process, times)


@dataclass(frozen=True)
class Heun(Solver):
    """Average the slopes at both ends of the tangent: second order, two evaluations.

    A step that ends on clean data has no slope there and stays an Euler step, so that n steps
    cost 2 n - 1 evaluations.

    Source: Karras et al., 2022, algorithm 1 (arXiv 2206.00364).
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
        eps = denoiser(x, t, cond).eps
        ratio, dr = _line(denoiser, x, t, s)
        x_s = ratio * x + dr * eps
        sigma_s = like(denoiser.process.sigma(s), x)
        if shapes.at_zero(sigma_s):
            return x_s, None
        slope = (eps + denoiser(x_s, s, cond).eps) / 2
        if isinstance(sigma_s, Tensor):  # of a batch of steps, some may end on clean data
            slope = torch.where(sigma_s > 0, slope, eps)
        return ratio * x + dr * slope, None

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid touches pure noise, where sigma / alpha is infinite."""
        check_finite(self, process, times)


def _line(denoiser: Denoiser, x: Tensor, t: Number, s: Number) -> tuple[Number, Number]:
    """Return the factors of x_t and of the slope in x_s = (alpha_s / alpha_t) x_t + ... ."""
    process = denoiser.process
    ratio = shapes.divide(process.alpha(s), process.alpha(t))
    return like(ratio, x), like(process.sigma(s) - ratio * process.sigma(t), x)
