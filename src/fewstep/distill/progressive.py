"""Progressive distillation: one step of the student does what two of the teacher do.

Two DDIM steps of the teacher, from t over the time t' to t'', end where one step ends that
believes in the image

    x~ = (z'' - r z_t) / (alpha'' - r alpha_t),   r = sigma'' / sigma_t.

Written out, z'' and z_t cancel: x~ is a mean of the two images that the teacher predicted, at t
and at t', with weights that are numbers of the process. So no digit is lost, however many steps
the teacher takes, and a step that ends on clean data needs no rule of its own: its x~ is the
second image.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fewstep import conditions
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.distill.guided import check_scales, drawn
from fewstep.errors import UsageError
from fewstep.objectives.denoising import dropped, noised
from fewstep.objectives.weights import TruncatedSNR, Weight
from fewstep.prediction import Prediction
from fewstep.shapes import like


@dataclass(frozen=True)
class Progressive:
    """Measure the error of the student's image against that of two steps of the teacher.

    Args:
        teacher: frozen, in evaluation mode; guided, it bakes its guidance into the student.
        times: the teacher's grid, 2 N + 1 falling times in [0, 1]. The student learns the N steps
            of every second one, and no other times.
        weight: factor of the squared error in x0.
        drop: probability, in [0, 1], that a sample's class is replaced by the null condition, for
            the teacher as for the student.
        name: says which teacher, and how it is guided, in the identity of a run.
        scales: of a teacher that is told its guidance scale (`Guided`), the least and the largest:
            every sample draws one, which teacher and student are told alike. None = none is told.

    Raises:
        UsageError: an even number of times, or fewer than 3; scales that are no range, or with a
            `drop`: such a teacher does not know the null condition.

    Source: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models",
        2022, algorithm 2 and appendix G (arXiv 2202.00512).
    """

    teacher: Denoiser = field(repr=False)
    times: tuple[float, ...]
    weight: Weight = field(default_factory=TruncatedSNR)
    drop: float = 0.0
    name: str = ""
    scales: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check the grid."""
        if len(self.times) < 3 or len(self.times) % 2 == 0:
            raise UsageError(
                f"a teacher of {len(self.times) - 1} steps: two of its steps become one, so their "
                "number must be even"
            )
        if self.scales is not None:
            check_scales(*self.scales)
            if self.drop:
                raise UsageError(
                    f"drop {self.drop:g} with guidance scales: a teacher that is told its scale "
                    "does not know the null condition; use drop=0"
                )

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, cond: Cond, step: int, noise: torch.Generator
    ) -> Tensor:
        """Return the losses of a batch.

        Args:
            denoiser: the student, of the teacher's process.
            x0: clean batch, shape (B, *), in the range of the data.
            cond: class indices, shape (B,), or None.
            step: number of the optimizer step; unused here.
            noise: the only source of randomness, on the device of x0.

        Returns:
            shape (B,), in the dtype of x0.
        """
        del step
        grid = self._grid(x0.device)
        steps = torch.randint(
            (len(self.times) - 1) // 2, (len(x0),), generator=noise, device=noise.device
        )
        t, middle, s = (grid[2 * steps + k] for k in range(3))
        x_t = noised(denoiser, x0, t, noise).x_t
        cond = dropped(cond, self.drop, noise)
        if self.scales is not None:
            cond = conditions.scaled(cond, drawn(*self.scales, x0, noise))
        with torch.no_grad():
            truth = self.truth(x_t, t, middle, s, cond)
        error = denoiser(x_t, t, cond).x0 - truth.x0
        return (self.weight(truth) * error.square()).flatten(1).mean(1)

    def truth(self, x_t: Tensor, t: Tensor, middle: Tensor, s: Tensor, cond: Cond) -> Prediction:
        """Return the point whose single step from t to s ends where two of the teacher end.

        Args:
            x_t: noisy batch, shape (B, *).
            t: shape (B,).
            middle: where the teacher's first step ends, shape (B,), below t.
            s: where both end, shape (B,), below that.
            cond: the condition, shape (B,), or None.

        Returns:
            x~ and the noise that belongs to it, shape (B, *).
        """
        process = self.teacher.process
        (a, sigma), (a_m, sigma_m), (a_s, sigma_s) = (process.levels(u) for u in (t, middle, s))
        first = self.teacher(x_t, t, cond)
        second = self.teacher(first.at(like(a_m, x_t), like(sigma_m, x_t)), middle, cond)
        share = sigma_s / sigma_m * (a_m - sigma_m / sigma * a) / (a_s - sigma_s / sigma * a)
        x0 = second.x0.lerp(first.x0, torch.as_tensor(like(share, x_t)))
        return Prediction.from_x0(x_t, *self.teacher.levels(x_t, t), x0)

    def _grid(self, device: torch.device) -> Tensor:
        """Return `times` on this device, copied there once: a training step copies nothing."""
        if device not in self._grids:
            dtype = torch.float64 if device.type != "mps" else torch.float32  # mps has no doubles
            self._grids[device] = torch.tensor(self.times, dtype=dtype).to(device)
        return self._grids[device]

    @cached_property
    def _grids(self) -> dict[torch.device, Tensor]:
        return {}


def halved(steps: int, to: int) -> list[int]:
    """Return the numbers of steps from a teacher's down to a student's, each half of the last.

    Args:
        steps: of the teacher, `to` times a power of two.
        to: of the last student, >= 1.

    Returns:
        steps, steps / 2, ..., to.

    Raises:
        UsageError: `to` is not reached by halving; the message names what is.

    >>> halved(8, 1)
    [8, 4, 2, 1]
    """
    path = [steps]
    while path[-1] % 2 == 0 and path[-1] > 1:
        path.append(path[-1] // 2)
    if to not in path:
        near = (
            f"; or start from {to << max(1, (steps // to).bit_length())} steps" if to > 0 else ""
        )
        raise UsageError(
            f"{steps} steps are not halved to {to}: allowed are {', '.join(map(str, path))}{near}"
        )
    return path[: path.index(to) + 1]
