"""The training objective of diffusion models: predict what the noise hides.

A clean batch is noised, x_t = alpha x0 + sigma eps, and the denoiser's prediction is compared
with the truth, which is a `Prediction` itself. DDPM's simple loss is view "eps" with weight one
(NCSN's denoising score matching, the score's error times sigma^2, is the same thing), EDM's is
view "x0" with its weight, and progressive distillation's is view "v".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions import Cond, classes
from fewstep.denoiser import Denoiser, Told
from fewstep.errors import UsageError
from fewstep.objectives.times import LossSecondMoment, Times, Uniform
from fewstep.objectives.weights import One, Weight
from fewstep.prediction import VIEWS, Prediction

Objective = Callable[[Any, Tensor, Cond, int, torch.Generator], Tensor]
"""objective(denoiser, x0, cond, step, noise) -> losses (B,); the first is what is trained: a
denoiser, or a noisy classifier."""


@dataclass(frozen=True)
class Denoising:
    """Measure the squared error of a view, averaged over the entries of each sample.

    Args:
        view: "x0", "eps", "v" or "score": in which view the error is taken.
        times: the law of the training times.
        weight: factor of the squared error; all but `One` are made for view "x0".
        drop: probability, in [0, 1], that a sample's class is replaced by the null condition;
            classifier-free guidance needs it > 0. 0.1 and 0.2 are equally good in the paper.

    Raises:
        UsageError: unknown view, a weight with another view than "x0", drop outside [0, 1], or
            times that only `objectives.Bound` can reweight.

    Source: Ho et al., 2020, eq. 14 (arXiv 2006.11239); label dropout: Ho and Salimans, 2022,
        algorithm 1 (arXiv 2207.12598).
    """

    view: str = "v"
    times: Times = field(default_factory=Uniform)
    weight: Weight = field(default_factory=One)
    drop: float = 0.1

    def __post_init__(self) -> None:
        """Check the values."""
        if self.view not in VIEWS:
            raise UsageError(f'view "{self.view}": allowed are {", ".join(VIEWS)}')
        if self.view != "x0" and not isinstance(self.weight, One):
            raise UsageError(
                f"weight {self.weight} with view {self.view}: weights are factors of the error in "
                "x0; use view=x0, or the weight one"
            )
        if not (math.isfinite(self.drop) and 0 <= self.drop <= 1):
            raise UsageError(f"drop {self.drop}: must be a probability in 0..1")
        if isinstance(self.times, LossSecondMoment):
            raise UsageError("importance sampling of the times is for the objective Bound alone")

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, cond: Cond, step: int, noise: torch.Generator
    ) -> Tensor:
        """Return the losses of a batch.

        Args:
            denoiser: the model in training.
            x0: clean batch, shape (B, *), in the range of the data.
            cond: class indices, shape (B,), or None.
            step: number of the optimizer step; unused here, curricula need it.
            noise: the only source of randomness, on the device of x0.

        Returns:
            shape (B,), in the dtype of x0.
        """
        del step
        n = x0.shape[0]
        t = self.times(denoiser.process, n, noise)
        truth = noised(denoiser, x0, t, noise)
        guess = denoiser(truth.x_t, t, dropped(cond, self.drop, noise))
        error = guess.view(self.view) - truth.view(self.view)
        return (self.weight(truth) * error.square()).flatten(1).mean(1)


def dropped(cond: Cond, drop: float, noise: torch.Generator) -> Cond:
    """Return classes, each replaced by the null condition with probability `drop`.

    Args:
        cond: shape (B,), or None.
        drop: in [0, 1].
        noise: generator on the device of cond.
    """
    told = classes(cond)
    if told is None or drop == 0:
        return cond
    gone = torch.rand(len(told), generator=noise, device=noise.device) < drop
    return told.masked_fill(gone, -1)


def noised(denoiser: Denoiser | Told, x0: Tensor, t: Tensor, noise: torch.Generator) -> Prediction:
    """Return the truth of a training pair: x_t = alpha x0 + sigma eps with its x0 and eps.

    Args:
        denoiser: knows the process; a noisy classifier does as well.
        x0: shape (B, *).
        t: shape (B,).
        noise: generator on the device of x0.

    Returns:
        the pair and its x_t, shape (B, *), with alpha and sigma of shape (B, 1, ...).
    """
    eps = torch.randn(x0.shape, generator=noise, device=noise.device, dtype=x0.dtype)
    alpha, sigma = denoiser.levels(x0, t)
    return Prediction(alpha * x0 + sigma * eps, alpha, sigma, x0, eps)
