"""Multistep methods of the predicted noise: DEIS and iPNDM.

In y = x / alpha and r = sigma / alpha the ODE is dy/dr = eps. Both methods extrapolate eps with
past predictions: DEIS integrates the polynomial through them, iPNDM takes the weights of Adams
and Bashforth, which belong to even steps, on any grid.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.prediction import scaled_sum
from fewstep.process import Process
from fewstep.shapes import Number, like
from fewstep.solvers.base import Noise, Solver, check_finite
from fewstep.solvers.exponential import History, Node, bend, half_logsnr, moments

ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest to the oldest prediction, for even steps."""


@dataclass(frozen=True)
class DEIS(Solver):
    """Integrate the polynomial in ln r through the last predicted eps.

        x_s / alpha_s = x_t / alpha_t + int_(r_t)^(r_s) P(ln r) dr

    The polynomial could as well run in t, the paper's tAB: this one does not depend on what t
    means, so that all processes make the same images. It starts with fewer predictions, and a
    step that ends on clean data is of order 1.

    Args:
        order: number of predictions, in 1..4; 1 is DDIM(0).

    Raises:
        UsageError: another order.

    Source: Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023,
        eq. 13-15 (arXiv 2204.13902), with ln r for t as in a widespread program.
    """

    order: int = 3  # pyright: ignore[reportIncompatibleVariableOverride] -- a field here
    evals: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the order."""
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
        out = p.at(like(alpha_s, x), like(sigma_s, x))
        if shapes.at_zero(sigma_s):
            return out, None
        place = -half_logsnr(*levels)
        past = (carry or History()).then(Node(place, p.eps), self.order)
        h = -half_logsnr(alpha_s, sigma_s) - place
        return out + bend(past.nodes, sigma_s, moments(h, len(past.nodes) - 1)), past

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid touches pure noise or starts on clean data."""
        _check(self, process, times)


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
        # of a batch of steps, some may end on clean data
        clean = like(1.0 * (sigma_s == 0), x) if isinstance(sigma_s, Tensor) else 0.0
        eps = p.eps
        for weight, e in zip(ADAMS[len(past) - 1], past, strict=True):
            eps = eps + (1.0 - clean) * weight * (e - p.eps)
        ratio = alpha_s / alpha
        return scaled_sum(like(ratio, x), x, like(sigma_s - ratio * sigma, x), eps), past

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid touches pure noise or starts on clean data."""
        _check(self, process, times)


def _check(solver: Solver, process: Process, times: list[float]) -> None:
    """Refuse both ends at which eps or ln r means nothing."""
    check_finite(solver, process, times)
    if process.sigma(times[0]) == 0:
        raise UsageError(
            f"{solver} from t = {times[0]:g}: no noise is left on clean data; "
            "start the grid later, or use Heun"
        )
