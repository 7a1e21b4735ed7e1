"""Multistep sampling with a consistency function: to the end of the trajectory, and back up.

A consistency function says where the probability-flow ODE ends that passes through x_t, so that
one call is a whole sample. Noise on that sample, as much as a lower level has, and another call
make a better one: the marginals are right at every level for a true consistency function, and
what the earlier calls got wrong is forgotten in the fresh noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.process import Process
from fewstep.shapes import Number, divide, like
from fewstep.solvers.base import Noise, Solver, draw

_ROUNDED = 1 - 1e-9  # a level of the boundary itself, through a time and back


@dataclass(frozen=True)
class Consistency(Solver):
    """Step to the end of the trajectory, then up to the noise of the target time.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - (least alpha_s)^2) z

    The end x0 of a trajectory at sigma / alpha = `least` has that much noise of its own, so it
    lacks only the rest. Where the rest is 0, and at t = 0, none is drawn: one step is a function
    of the starting noise. No ODE is solved: with a denoiser that says E[x0 | x_t]
    instead of the end, the samples are blurred, as each call takes their variance away.

    Args:
        least: sigma / alpha at which the function is the identity, >= 0; 0.002 for the published
            models, 0 for readings that are the identity at clean data (V, EDM).

    Raises:
        UsageError: least is negative or not finite; from `check`, a step that begins below it,
            where the function is not defined.

    Source: Song et al., "Consistency Models", 2023, algorithm 1 (arXiv 2303.01469).
    """

    least: float = 0.0

    def __post_init__(self) -> None:
        """Check the number."""
        if not (math.isfinite(self.least) and self.least >= 0):
            raise UsageError(f"least {self.least}: must be a number >= 0")

    @property
    def stochastic(self) -> bool:
        """Always, though a step to the boundary or below it draws nothing."""
        return True

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
        del carry
        x0 = denoiser(x, t, cond).x0
        alpha_s, sigma_s = denoiser.process.levels(s)
        end, own = like(alpha_s, x) * x0, self.least * alpha_s
        # as a product: the difference of two squares would lose the digits near the boundary
        std = shapes.sqrt((sigma_s - own) * (sigma_s + own))
        if shapes.at_zero(std) or shapes.at_zero(s):
            return end, None
        return end + like(std, x) * draw(noise, x, self), None

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError for a rising grid, or a step from below the boundary."""
        super().check(process, times)
        for t in times[:-1]:
            ratio = _ratio(process, t)
            if ratio < self.least * _ROUNDED:
                raise UsageError(
                    f"{self} at sigma / alpha = {ratio:g}: a consistency function ends at "
                    f"{self.least:g} and says nothing below; take fewer steps, the spacing "
                    "karras, or noise levels above that"
                )

    def started_above(
        self, times: Tensor, process: Process, again: Callable[[int], Tensor]
    ) -> Tensor:
        """Return a grid of as many steps of which none begins at the boundary.

        A step from there returns its input: one less, where they are few. Karras' levels go down
        to the boundary of the published models.

        Args:
            times: falling, shape (n + 1,), float64.
            process: turns them into noise levels.
            again: makes the grid of another number of steps.

        Returns:
            shape (n + 1,): `times` itself, or that of n + 1 steps without its last step.
        """
        if len(times) < 3 or _ratio(process, float(times[-2])) * _ROUNDED > self.least:
            return times
        more = again(len(times))
        return torch.cat([more[:-2], more[-1:]])


def _ratio(process: Process, t: float) -> float:
    return float(divide(process.sigma(t), process.alpha(t)))
