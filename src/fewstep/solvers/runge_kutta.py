"""Runge-Kutta methods on the probability-flow ODE.

In the coordinates y = x / alpha and r = sigma / alpha the ODE of every process is dy/dr = eps:
a straight line wherever the prediction does not change. `Euler` follows it with one evaluation
per step and is DDIM(0) by another road; `Heun` corrects with a second one. Programs older than
these coordinates step dx/dt in the time t of their process; with `variable="t"` so do these.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.prediction import scaled_sum
from fewstep.process import Process
from fewstep.shapes import Number, like
from fewstep.solvers.base import Noise, Solver, check_finite, check_start

Variable = Literal["ratio", "t"]
"""What a step is straight in: x / alpha along r = sigma / alpha, or x along the process's t."""


@dataclass(frozen=True)
class Euler(Solver):
    """Follow the tangent: x_s / alpha_s = x_t / alpha_t + (r_s - r_t) eps.

    Args:
        variable: "ratio", or "t" for x_s = x_t + (s - t) dx/dt, the step of score_sde's
            probability flow, which is worse: table 2 of Karras et al.

    Source: Song et al., 2021, eq. 13-14 (arXiv 2010.02502); Karras et al., 2022, algorithm 1
        without the correction (arXiv 2206.00364).
    """

    variable: Variable = "ratio"

    def __post_init__(self) -> None:
        """Check the word."""
        _known(self.variable)

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
        return _tangent(self.variable, denoiser, x, t, s, cond), None

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid touches pure noise, where sigma / alpha is infinite."""
        _check(self, process, times)


@dataclass(frozen=True)
class Heun(Solver):
    """Average the slopes at both ends of the tangent: second order, two evaluations.

        x' = x_t + (s - t) slope(x_t, t),   x_s = (x' + x_t + (s - t) slope(x', s)) / 2

    in the coordinates of `Euler`, which makes x'. A step that ends on clean data has no slope
    there and stays an Euler step, so that n steps cost 2 n - 1 evaluations.

    Args:
        variable: see `Euler`.

    Source: Karras et al., 2022, algorithm 1 (arXiv 2206.00364).
    """

    variable: Variable = "ratio"

    order: ClassVar[int] = 2
    evals: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Check the word."""
        _known(self.variable)

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
        tangent = _tangent(self.variable, denoiser, x, t, s, cond)
        (alpha, sigma), (alpha_s, sigma_s) = denoiser.levels(x, t), denoiser.levels(x, s)
        if shapes.at_zero(sigma_s):
            return tangent, None
        if self.variable == "t":
            ratio, dr, slope = 1.0, like(s - t, x), _rate(denoiser, tangent, s, cond)
        else:
            ratio, slope = shapes.divide(alpha_s, alpha), denoiser(tangent, s, cond).eps
            dr = sigma_s - ratio * sigma
        x_s = scaled_sum(1.0, scaled_sum(ratio / 2, x, 0.5, tangent), dr / 2, slope)
        if isinstance(sigma_s, Tensor):  # of a batch of steps, some may end on clean data
            x_s = torch.where(sigma_s > 0, x_s, tangent)
        return x_s, None

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid touches pure noise, where sigma / alpha is infinite."""
        _check(self, process, times)


def _known(variable: str) -> None:
    if variable not in get_args(Variable):
        raise UsageError(f'variable "{variable}": allowed are {" and ".join(get_args(Variable))}')


def _check(solver: Euler | Heun, process: Process, times: list[float]) -> None:
    """Refuse pure noise, and in t clean data as the start: sigma' may be infinite there."""
    check_finite(solver, process, times)
    if solver.variable == "t":
        check_start(solver, process, times, "dx/dt may be infinite", 'variable="ratio"')


def _tangent(
    variable: Variable, denoiser: Denoiser, x: Tensor, t: Number, s: Number, cond: Cond
) -> Tensor:
    """Return x_s on the tangent at x_t, shape of x."""
    if variable == "t":
        return x + like(s - t, x) * _rate(denoiser, x, t, cond)
    return denoiser(x, t, cond).at(*denoiser.levels(x, s))


def _rate(denoiser: Denoiser, x: Tensor, t: Number, cond: Cond) -> Tensor:
    """Return dx/dt = (ln alpha)' x + (sigma' - (ln alpha)' sigma) eps, shape of x."""
    process = denoiser.process
    eps = denoiser(x, t, cond).eps
    with torch.enable_grad():
        u = torch.as_tensor(t, dtype=torch.float64).detach().requires_grad_()
        alpha, sigma = process.alpha(u), process.sigma(u)
        growth = _derivative(alpha, u) / alpha
        rise = _derivative(sigma, u) - growth * sigma
    return _as(growth, t, x) * x + _as(rise, t, x) * eps


def _derivative(value: Number, u: Tensor) -> Tensor:
    """Return d value / d u, shape of u; 0 of what does not depend on it."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return torch.zeros_like(u)
    return torch.autograd.grad(value.sum(), u, retain_graph=True)[0]


def _as(c: Tensor, t: Number, x: Tensor) -> Number:
    """Return a coefficient in the form of t, to multiply x."""
    c = c.detach()
    return like(c if isinstance(t, Tensor) else float(c), x)
