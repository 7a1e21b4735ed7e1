"""Consistency models: a function that sends every point of a trajectory to its clean end.

f(x_t, t) = f(x_r, r) for any two points of one trajectory of the probability-flow ODE, and
f(x, 0) = x. One evaluation then goes from noise to an image. The function is a denoiser whose
reading is the identity without noise (`V`, `EDM`, `BOTH`; `CONSISTENCY` at a least noise), and
it is taught by pairs: its value at the noisier point is drawn to its value at the cleaner one.

One objective is all published ways; they differ in what is put into it (see `presets`):

    which pairs of levels      `pairs.OnGrid`, `pairs.Easy`, and their curricula
    the cleaner point          a step of a teacher's ODE (distillation), or the same noise on the
                               same image (training)
    the cleaner value          of the student's own weights, or of their moving average
    the distance               `distances.L2`, `L1`, `PseudoHuber`, `perceptual.LPIPS`
    the weight                 none, or 1 / (u - r)

Source: Song et al., "Consistency Models", 2023 (arXiv 2303.01469); Song and Dhariwal, 2023 (arXiv
2310.14189); Geng et al., 2024 (arXiv 2406.14548).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser, NetDenoiser
from fewstep.distill.curriculum import Doubling, Fixed, Growing
from fewstep.distill.distances import L2, Metric, PseudoHuber
from fewstep.distill.dropout import shared
from fewstep.distill.pairs import Easy, OnGrid, Pairs
from fewstep.distill.target import Following
from fewstep.errors import UsageError
from fewstep.objectives.denoising import dropped
from fewstep.process import Process
from fewstep.shapes import like
from fewstep.solvers import Heun, Solver


@dataclass(frozen=True)
class Consistency:
    """Measure how far a consistency function is from itself at a cleaner point.

    Args:
        pairs: law of the noise levels.
        metric: distance of the two images.
        by_gap: whether distances are divided by the difference of the levels, u - r.
        teacher: whose ODE leads to the cleaner point, frozen and in evaluation mode; guided, it
            bakes its guidance into the student. None takes the image and its noise instead.
        solver: how its ODE is walked, one step a pair.
        target: None for the student's own weights, or their moving average.
        drop: probability, in [0, 1], that a sample's class is replaced by the null condition.
        name: says which teacher, and how it is guided, in the identity of a run.

    Raises:
        UsageError: a solver that draws noise.
    """

    pairs: Pairs
    metric: Metric = field(default_factory=PseudoHuber)
    by_gap: bool = False
    teacher: Denoiser | None = field(default=None, repr=False)
    solver: Solver = field(default_factory=Heun)
    target: Following | None = None
    drop: float = 0.0
    name: str = ""

    precision: ClassVar[str] = "fp32"
    """What training it takes, on a GPU without TF32: late pairs lie so close together that what
    bf16 rounds off is as large as how far apart their values are (on digits, at r = 0.99 u, the
    loss rises by half and its gradient turns by 40 degrees or more)."""

    def __post_init__(self) -> None:
        """Check the solver."""
        if self.solver.stochastic:
            raise UsageError(f"{self.solver}: a trajectory takes a solver that draws no noise")

    @property
    def memory(self) -> Following | None:
        """What a continued run must get back."""
        return self.target

    def __call__(
        self, denoiser: NetDenoiser, x0: Tensor, cond: Cond, step: int, noise: torch.Generator
    ) -> Tensor:
        """Return the losses of a batch.

        Args:
            denoiser: the student, of the teacher's process.
            x0: clean batch, shape (B, *), in the range of the data.
            cond: class indices, shape (B,), or None.
            step: number of the optimizer step.
            noise: the only source of randomness but for dropout, on the device of x0.

        Returns:
            shape (B,), in the dtype of x0.
        """
        u, r = self.pairs(denoiser.process, len(x0), step, noise)
        eps = torch.randn(x0.shape, generator=noise, device=noise.device, dtype=x0.dtype)
        cond = dropped(cond, self.drop, noise)
        aim = denoiser if self.target is None else self.target(denoiser, step)
        return self.losses(denoiser, aim, (x0, eps), (u, r), cond)

    def losses(
        self,
        denoiser: Denoiser,
        aim: Denoiser,
        image: tuple[Tensor, Tensor],
        levels: tuple[Tensor, Tensor],
        cond: Cond = None,
    ) -> Tensor:
        """Return the losses of given pairs.

        Args:
            denoiser: the student.
            aim: what gives the value at the cleaner point; it gets no gradient.
            image: x0 and its noise, both (B, *).
            levels: the noisier and the cleaner sigma / alpha, both (B,); the cleaner may be 0,
                where the value is the image, or where the teacher's trajectory ends.
            cond: the condition, shape (B,), or None.

        Returns:
            shape (B,).
        """
        x0, eps = image
        u, r = levels
        t, s = times(denoiser.process, u), times(denoiser.process, r)
        alpha, sigma = denoiser.levels(x0, t)
        x_t = alpha * x0 + sigma * eps
        with shared(x0.device) as again:
            guess = denoiser(x_t, t, cond).x0
            again()
            with torch.no_grad():
                x_s = self._cleaner(denoiser, image, x_t, (t, s), cond)
                clean = like(r, x0) == 0
                # at no noise some labels are infinite: ask elsewhere, and take the end itself
                value = aim(x_s, times(denoiser.process, r.clamp(min=_LEAST)), cond).x0
                end = x0 if self.teacher is None else x_s
                value = torch.where(torch.as_tensor(clean), end, value)
        losses = self.metric(guess, value)
        return losses / (u - r).to(losses) if self.by_gap else losses

    def _cleaner(
        self,
        denoiser: Denoiser,
        image: tuple[Tensor, Tensor],
        x_t: Tensor,
        move: tuple[Tensor, Tensor],
        cond: Cond,
    ) -> Tensor:
        """Return the cleaner points of the pairs, shape (B, *)."""
        if self.teacher is not None:
            return self.solver.step(self.teacher, x_t, *move, cond)[0]
        x0, eps = image
        alpha, sigma = denoiser.levels(x0, move[1])
        return alpha * x0 + sigma * eps


_LEAST = 1e-6


def times(process: Process, ratio: Tensor) -> Tensor:
    """Return the times of levels sigma / alpha, shape (B,) as they; 0 for 0."""
    t = process.time(-2 * ratio.clamp(min=1e-12).log())
    return torch.where(ratio > 0, torch.as_tensor(t), torch.zeros_like(ratio)).clamp(0, 1)


def distillation(teacher: Denoiser, total: int, name: str = "") -> Consistency:
    """Return consistency distillation: 18 levels, Heun, the student's own weights.

    What is known at the clean end climbs from level to level, and the weight 1 / (u - r) lets the
    low ones be learned first. Without it, and with a distance that is no square, far levels chase
    each other: on digits the copy error rises from 0.34 to 0.48 in 160 updates, with it it falls
    to 0.18.

    Args:
        teacher: frozen.
        total: steps of the training; unused.
        name: of the teacher.

    Source: Song et al., 2023, algorithm 2, with CIFAR-10's N = 18 and mu = 0, and with distance
        and weight of Song and Dhariwal, 2023, sections 3.3 and 3.1, in place of LPIPS and none.
    """
    del total
    return Consistency(OnGrid(Fixed(18)), by_gap=True, teacher=teacher, name=name)


def training(teacher: Denoiser | None, total: int, name: str = "") -> Consistency:
    """Return consistency training: a growing grid, squared distance, an averaged target.

    What is known at the clean end crosses N levels in about N^2 / 0.2 steps, as the target forgets
    more slowly the more levels there are. So the grid ends at 150 levels, as published for 800
    thousand steps, in trainings of 90 thousand or more, and before that at sqrt(total) / 2: on
    points in the plane 300 to 3000 steps end nearest to the teacher so, and nowhere near with 150.

    Args:
        teacher: unused.
        total: steps of the training.
        name: unused.

    Source: Song et al., 2023, algorithm 3, s0 = 2, s1 = 150, mu0 = 0.9 (CIFAR-10).
    """
    del teacher, name
    grid = Growing(total, s1=min(150, max(2, math.isqrt(total) // 2)))
    return Consistency(OnGrid(grid), metric=L2(), target=Following(grid.mu))


def improved(teacher: Denoiser | None, total: int, name: str = "") -> Consistency:
    """Return improved consistency training (iCT).

    Args:
        teacher: unused.
        total: steps of the training.
        name: unused.

    Source: Song and Dhariwal, 2023, table 1: s0 = 10, s1 = 1280, log-normal (-1.1, 2.0).
    """
    del teacher, name
    return Consistency(OnGrid(Doubling(total), normal=(-1.1, 2.0)), by_gap=True)


def easy(teacher: Denoiser | None, total: int, name: str = "") -> Consistency:
    """Return easy consistency tuning (ECT) in eight stages, for weights of a diffusion model.

    Args:
        teacher: unused.
        total: steps of the training.
        name: unused.

    Source: Geng et al., 2024, section 3 and the settings of CIFAR-10.
    """
    del teacher, name
    return Consistency(Easy(max(1, total // 8)), metric=PseudoHuber(0.0), by_gap=True)


PRESETS: Mapping[str, Callable[..., Consistency]] = {
    "consistency-distillation": distillation,
    "consistency-training": training,
    "ict": improved,
    "ect": easy,
}
"""Published ways, each preset(teacher, total steps, name of the teacher)."""
