r"""Training objectives that match scores: NCSN's, and sliced score matching of blurred data.

Both learn the score of data + sigma n, sigma = sigma_t / alpha_t, at the levels that `times`
draws, and weigh a level by a power of sigma. They are the losses of `score_matching` divided by
the number of entries, so that learning rate and clipping mean the same for images of any size.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.objectives import score_matching
from fewstep.objectives.denoising import dropped
from fewstep.objectives.score_matching import Score
from fewstep.objectives.times import LossSecondMoment, Times, Uniform
from fewstep.shapes import like


@dataclass(frozen=True)
class DenoisingScore:
    """Match the score of blurred data by denoising: NCSN's objective, with `times.Ladder(L)`.

        sigma^power |s(x0 + sigma n) + n / sigma|^2 / (2 D)

    For power 2 it is half of `Denoising(view="eps")`.

    Args:
        times: the law of the training times; NCSN's is `times.Ladder`.
        power: NCSN's anneal_power; 2 makes all levels count about equally.
        drop: probability, in [0, 1], that a sample's class is replaced by the null condition.

    Raises:
        UsageError: drop outside [0, 1], or times that only `objectives.Bound` can reweight.

    Source: Song and Ermon, "Generative Modeling by Estimating Gradients of the Data
        Distribution", 2019, eq. 5-6 (arXiv 1907.05600).
    """

    times: Times = field(default_factory=Uniform)
    power: float = 2.0
    drop: float = 0.1

    def __post_init__(self) -> None:
        """Check the values."""
        _check(self.times, self.drop)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, cond: Cond, step: int, noise: torch.Generator
    ) -> Tensor:
        """Return the losses of a batch; see `Denoising`.

        Args:
            denoiser: the model in training.
            x0: clean batch, shape (B, *).
            cond: class indices, shape (B,), or None.
            step: unused.
            noise: the only source of randomness, on the device of x0.

        Returns:
            shape (B,).
        """
        del step
        t = self.times(denoiser.process, len(x0), noise)
        eps = torch.randn(x0.shape, generator=noise, device=noise.device, dtype=x0.dtype)
        score = _score(denoiser, t, dropped(cond, self.drop, noise))
        losses = score_matching.denoising(score, x0, _level(denoiser, t), eps, self.power)
        return losses / x0[0].numel()


@dataclass(frozen=True)
class SlicedScore:
    """Match the score of blurred data by random directions, without asking what the noise was.

        sigma^2 (v^T J v + |s|^2 / 2) / D, or with (v^T s)^2 for |s|^2 where not `reduced`

    at x0 + sigma n. Nothing of n is used but the blurring, without which discrete or flat data
    have no density. The authors' plain loss takes v of unit length (`law="unit"`), which is 1 / D
    of that with signs; their variance-reduced loss needs E[v v^T] = I and takes Gaussian v. Signs
    have less variance and serve both. It costs a second backward pass.

    Args:
        times: the law of the training times; `times.Ladder(1)` is the level of t = 0 alone.
        law: of the directions, see `score_matching.projections`.
        count: directions of each sample, >= 1.
        reduced: whether |s|^2 is taken as it is (SSM-VR).
        drop: probability, in [0, 1], that a sample's class is replaced by the null condition.

    Raises:
        UsageError: unit directions where `reduced`, which have another minimum; drop outside
            [0, 1], or times that only `objectives.Bound` can reweight.

    Source: Song et al., "Sliced Score Matching", 2019, eq. 6-8 (arXiv 1905.07088).
    """

    times: Times = field(default_factory=Uniform)
    law: str = "rademacher"
    count: int = 1
    reduced: bool = True
    drop: float = 0.1

    def __post_init__(self) -> None:
        """Check the values."""
        _check(self.times, self.drop)
        if self.reduced and self.law == "unit":
            raise UsageError(
                "directions of unit length with the variance-reduced loss: it needs E[v v^T] = I; "
                "take rademacher, gaussian or sphere"
            )

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, cond: Cond, step: int, noise: torch.Generator
    ) -> Tensor:
        """Return the losses of a batch, which may be negative; see `DenoisingScore`.

        Args:
            denoiser: the model in training; its network must be differentiable twice.
            x0: clean batch, shape (B, *).
            cond: class indices, shape (B,), or None.
            step: unused.
            noise: the only source of randomness, on the device of x0.

        Returns:
            shape (B,).
        """
        del step
        t = self.times(denoiser.process, len(x0), noise)
        sigma = _level(denoiser, t)
        eps = torch.randn(x0.shape, generator=noise, device=noise.device, dtype=x0.dtype)
        x = x0 + like(sigma, x0) * eps
        v = score_matching.projections(x, self.count, noise, self.law)
        score = _score(denoiser, t, dropped(cond, self.drop, noise))
        return sigma**2 * score_matching.sliced(score, x, v, self.reduced) / x0[0].numel()


def _check(times: Times, drop: float) -> None:
    if not 0 <= drop <= 1:
        raise UsageError(f"drop {drop}: must be a probability in 0..1")
    if isinstance(times, LossSecondMoment):
        raise UsageError("importance sampling of the times is for the objective Bound alone")


def _level(denoiser: Denoiser, t: Tensor) -> Tensor:
    """Return sigma / alpha at t, shape (B,): the noise level in units of the data."""
    alpha, sigma = denoiser.process.levels(t)
    return torch.as_tensor(sigma / alpha)


def _score(denoiser: Denoiser, t: Tensor, cond: Cond) -> Score:
    """Return the score of data + sigma n, at levels of its own for each sample."""

    def score(x: Tensor) -> Tensor:
        alpha, _ = denoiser.levels(x, t)
        return alpha * denoiser(alpha * x, t, cond).score

    return score
