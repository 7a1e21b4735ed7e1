"""Multistep methods of the predicted noise: DEIS and iPNDM.

In y = x / alpha and r = sigma / alpha the ODE is dy/dr = eps. Both methods extrapolate eps with
past predictions: DEIS integrates the polynomial through them, iPNDM takes the weights of Adams
and Bashforth, which belong to even steps, on any grid.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.prediction import scaled_sum
from fewstep.process import Process
from fewstep.shapes import Number, like
from fewstep.solvers.base import Noise, Solver, check_finite, check_start
from fewstep.solvers.exponential import History, Node, add, follow, half_logsnr, moments

ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest to the oldest prediction, for even steps."""

_POINTS = 16  # of the quadrature


@dataclass(frozen=True)
class DEIS(Solver):
    """Integrate the polynomial in ln r, or in t, through the last predicted eps.

        x_s / alpha_s = x_t / alpha_t + int_(r_t)^(r_s) P(ln r) dr

    In ln r it does not depend on what t means, so that all processes make the same images; in t
    it is the paper's tAB, which is told apart in few steps only. It starts with fewer
    predictions, and a step that ends on clean data is of order 1.

    Args:
        order: number of predictions, in 1..4; 1 is DDIM(0).
        basis: "logsnr" for the polynomial in ln r = -logsnr / 2, "t" for that in t.

    Raises:
        UsageError: another order or basis.

    Source: Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023,
        eq. 13-15 (arXiv 2204.13902); with ln r for t as in a widespread program.
    """

    order: int = 3  # pyright: ignore[reportIncompatibleVariableOverride] -- a field here
    basis: str = "logsnr"
    evals: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check order and basis."""
        if self.basis not in ("logsnr", "t"):
            raise UsageError(f'DEIS with the basis "{self.basis}": allowed are logsnr and t')
        if self.order not in (1, 2, 3, 4):
            raise UsageError(f"DEIS of order {self.order}: allowed are 1, 2, 3 and 4")

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
        p, process = denoiser(x, t, cond), denoiser.process
        levels, (alpha_s, sigma_s) = process.levels(t), process.levels(s)
        if shapes.at_zero(sigma_s):
            return alpha_s * p.x0, None
        start, end = -half_logsnr(*levels), -half_logsnr(alpha_s, sigma_s)
        place = t if self.basis == "t" else start
        past = (carry or History()).then(Node(place, p.eps), self.order)
        powers = len(past.nodes) - 1
        ratio = alpha_s / levels[0]
        if self.basis == "t":
            scale, weights = alpha_s, _in_t(process, t, start, end, powers)
        else:
            scale, weights = sigma_s, moments(end - start, powers)
        dr = sigma_s - ratio * levels[1]
        return follow(ratio, x, dr, past.nodes, scale, weights), past

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid touches pure noise or starts on clean data."""
        check_finite(self, process, times)
        check_start(self, process, times, "no noise is left")


@dataclass(frozen=True)
class IPNDM(Solver):
    """Follow the tangent with eps extrapolated by Adams and Bashforth's weights for even steps.

        x_s / alpha_s = x_t / alpha_t + (r_s - r_t) (55 eps_t - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24

    with 3, 2 and 1 predictions in the first steps. Grids are not even in r, so that the order is
    2 however many predictions there are; the method is good in few steps all the same. A step
    that ends on clean data is of order 1.

    Args:
        p: number of predictions, in 1..4; 1 is `Euler`.

    Raises:
        UsageError: another number.

    Source: Zhang and Chen, 2023, appendix (arXiv 2204.13902), after Liu et al., "Pseudo Numerical
        Methods for Diffusion Models on Manifolds", 2022 (arXiv 2202.09778).
    """

    p: int = 4
    evals: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the number."""
        if self.p not in (1, 2, 3, 4):
            raise UsageError(f"iPNDM with p = {self.p}: allowed are 1, 2, 3 and 4")

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] -- follows p
        """At most 2, as grids are uneven."""
        return min(self.p, 2)

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
        p, process = denoiser(x, t, cond), denoiser.process
        (alpha, sigma), (alpha_s, sigma_s) = process.levels(t), process.levels(s)
        if shapes.at_zero(sigma_s):
            return alpha_s * p.x0, None
        past = (p.eps, *(carry or ()))[: self.p]
        weights: list[Number] = list(ADAMS[len(past) - 1])
        if isinstance(sigma_s, Tensor):  # of a batch of steps, some may end on clean data
            clean = (sigma_s == 0).to(sigma_s)
            weights = [(1 - clean) * w + clean * (k == 0) for k, w in enumerate(weights)]
        ratio = alpha_s / alpha
        dr = sigma_s - ratio * sigma
        out = scaled_sum(like(ratio, x), x, like(weights[0] * dr, x), p.eps)
        return add(out, [w * dr for w in weights[1:]], past[1:]), past

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid touches pure noise or starts on clean data."""
        check_finite(self, process, times)
        check_start(self, process, times, "no noise is left")


def _in_t(process: Process, t: Number, start: Number, end: Number, n: int) -> list[Number]:
    """Return int (u - t)^k dr along ln r from start to end for k = 0 .. n, u the time at r.

    By Gauss-Legendre quadrature, good to rounding for a process that is smooth. Those of floats
    are remembered, as every batch of a sampler asks for the same.
    """
    if isinstance(t, Tensor):
        return _quadrature(process, t, start, end, n)
    return _known_in_t(process, t, start, end, n)


def _quadrature(process: Process, t: Number, start: Number, end: Number, n: int) -> list[Number]:
    out: list[Number] = [0.0] * (n + 1)
    half = (end - start) / 2
    for node, weight in _rule() if n else ():
        place = start + half * (node + 1)
        share = half * weight * shapes.exp(place)
        away = process.time(-2 * place) - t
        out = [total + share * away**k for k, total in enumerate(out)]
    return out


@lru_cache(maxsize=1)
def _rule() -> tuple[tuple[float, float], ...]:
    """Return the nodes of the quadrature in [-1, 1], each with its weight."""
    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    return tuple(zip(nodes.tolist(), weights.tolist(), strict=True))


_known_in_t = lru_cache(maxsize=4096)(_quadrature)
