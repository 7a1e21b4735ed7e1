"""The interface of a solver, and the coefficients of one step.

A solver is a frozen value with a pure `step` from the time t to a time s: it never loops and
never works out "the previous time". Both times come from the grid, so any grid, in either
direction, works with any solver, and a distiller may ask for a batch of different steps at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.process import Process
from fewstep.shapes import Number

Noise = Callable[[Tensor], Tensor]
"""Draw standard normal noise of the shape, dtype and device of the given batch."""


class Solver(ABC):
    """Carry a batch from one time to another.

    Attributes:
        order: declared order of convergence of the deterministic method, checked by a law.
        evals: calls of the denoiser per step.
        stochastic: whether `step` draws noise.
    """

    order: ClassVar[int] = 1
    evals: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        """Whether `step` draws noise."""
        return False

    @abstractmethod
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
        """Return x_s and what the next step wants to remember.

        Args:
            denoiser: predicts at t (and where the method needs it).
            x: current batch x_t, shape (B, *).
            t: current time, a float or shape (B,).
            s: target time, same form as t; s < t samples, s > t encodes.
            cond: class indices, shape (B,), or None.
            carry: what the previous step returned, None at the start.
            noise: source of standard normal noise; needed by stochastic solvers only.

        Returns:
            x_s, shape (B, *), dtype of x, and the carry.

        Raises:
            ValueError: noise is needed and missing.
        """

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the solver cannot walk these times: noise only goes down."""
        del process
        if self.stochastic and times[0] < times[-1]:
            raise UsageError(
                f"{self} on a rising grid: a solver that draws noise cannot encode; "
                "use DDIM(eta=0)"
            )


def draw(noise: Noise | None, x: Tensor, solver: Solver) -> Tensor:
    """Return noise like x, or say that the solver needs a source."""
    if noise is None:
        raise ValueError(f"{solver} is stochastic: give noise=..., for example noise.PerImage")
    return noise(x)


def check_finite(solver: Solver, process: Process, times: list[float]) -> None:
    """Refuse pure noise, where r is infinite and dy/dr has no meaning."""
    for t in (times[0], times[-1]):
        if process.alpha(t) < 1e-12 * process.sigma(t):
            raise UsageError(
                f"{solver} at t = {t:g}: no signal is left there (zero terminal SNR), so that "
                "sigma / alpha is infinite; use DDIM or DPM-Solver++"
            )


def check_start(
    solver: Solver, process: Process, times: list[float], why: str, instead: str = "Heun"
) -> None:
    """Refuse clean data as the start.

    Args:
        solver: what cannot start there.
        process: of the times.
        times: of the grid.
        why: what is wrong on clean data.
        instead: what can start there.
    """
    if process.sigma(times[0]) == 0:
        raise UsageError(
            f"{solver} from t = {times[0]:g}: {why} on clean data; "
            f"start the grid later, or use {instead}"
        )
