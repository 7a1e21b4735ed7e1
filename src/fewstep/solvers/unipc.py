"""UniPC: the exponential multistep method with a corrector that costs no evaluation."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.process import Process
from fewstep.shapes import Number
from fewstep.solvers.base import Noise, Solver, check_start
from fewstep.solvers.exponential import History, Node, follow, half_logsnr, moments
from fewstep.solvers.multistep import lowered


class _Carry(NamedTuple):
    """The previous step: where it started, with which levels, its history and points used."""

    x: Tensor
    alpha: Number
    sigma: Number
    past: History
    points: int


@dataclass(frozen=True)
class UniPC(Solver):
    """Predict with p points, and correct the result once the next prediction is known.

        x_s = (sigma_s / sigma_t) x_t + alpha_s int_0^h e^(u - h) P(u) du,    h = lam_s - lam_t

    with the polynomial P through the last p predicted x0 (UniP) or through these and the one at s
    (UniC). The prediction at s is made before the correction and is not repeated. Two points
    have B h / 2 in the place of int e^(u - h) u du, B = h ("bh1") or 1 - e^-h ("bh2"); with more
    points the two variants are the same. The order is p + 1; the first steps have fewer points,
    and the last step of a grid, or one that ends on clean data, is not corrected.

    Args:
        p: points of the predictor, 1, 2 or 3.
        variant: "bh1" or "bh2".
        corrector: whether to correct; without it this is UniP, of order p.
        steps: number of steps of the grid, whose last ones then take 2 and 1 points.
            0 = not known, and none takes fewer.

    Raises:
        UsageError: a value that is not allowed.

    Source: Zhao, Bai, Rao, Zhou, Lu, "UniPC: A Unified Predictor-Corrector Framework for Fast
        Sampling of Diffusion Models", 2023, algorithms 5 to 8 (arXiv 2302.04867).
    """

    p: int = 3
    variant: str = "bh2"
    corrector: bool = True
    steps: int = 0
    evals: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the values."""
        if self.p not in (1, 2, 3):
            raise UsageError(f"UniPC with p = {self.p}: allowed are 1, 2 and 3")
        if self.variant not in ("bh1", "bh2"):
            raise UsageError(f'UniPC variant "{self.variant}": allowed are bh1 and bh2')
        if self.steps < 0:
            raise UsageError(f"UniPC with steps {self.steps}: must be at least 0")

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] -- follows p
        """One more than p, or p without the corrector."""
        return self.p + self.corrector

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
        """Return x_s and the step to be corrected; see `Solver.step`."""
        del noise
        x0 = denoiser(x, t, cond).x0
        process = denoiser.process
        alpha, sigma = process.levels(t)
        alpha_s, sigma_s = process.levels(s)
        if shapes.at_zero(sigma_s):
            return alpha_s * x0, None
        here = Node(half_logsnr(alpha, sigma), x0)
        past = History() if carry is None else carry.past
        if carry is not None and self.corrector:
            prev, *older = past.nodes
            nodes = (prev, here, *older[: carry.points - 1])
            x = self._step(carry.x, (carry.alpha, carry.sigma), (alpha, sigma), nodes)
        past = past.then(here, self.p)
        nodes = past.nodes[: lowered(self.p, past, self.steps)]
        out = self._step(x, (alpha, sigma), (alpha_s, sigma_s), nodes)
        return out, _Carry(x, alpha, sigma, past, len(nodes))

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if the grid starts on clean data, where log-SNR is infinite."""
        check_start(self, process, times, "log-SNR is infinite")

    def _step(
        self,
        x: Tensor,
        start: tuple[Number, Number],
        end: tuple[Number, Number],
        nodes: tuple[Node, ...],
    ) -> Tensor:
        """Return x at the levels `end` with the polynomial through the nodes, x0 at `start` first.

        From pure noise, where h is infinite, no polynomial can be followed: x0 is kept.
        """
        shrink = end[1] / start[1]
        weight = end[0] - shrink * start[0]
        h = half_logsnr(*end) - nodes[0].place
        if len(nodes) == 1 or (not isinstance(h, Tensor) and math.isinf(h)):
            return follow(shrink, x, weight, nodes[:1])
        m = moments(h, len(nodes) - 1)
        if len(nodes) == 2:
            m[1] = (h if self.variant == "bh1" else m[0]) * h / 2
        return follow(shrink, x, weight, nodes, end[0], m)
