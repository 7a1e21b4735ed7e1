"""To change an image with any diffusion model: complete what was measured, or redraw a sketch.

`complete` samples while the measured part of every noisy batch is replaced by the noised
measurement: no training, no gradient. It is not exact: until the noise is low the rest is drawn
as if it did not know all of the measurement, and so the two fit less well than they should. Going
back and forth between two noise levels (`Repeat`) makes them fit. `stroke` noises a sketch until
its faults are drowned, and denoises that.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep import conditions, shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.edit.measure import Measure, put
from fewstep.errors import UsageError
from fewstep.process import Process
from fewstep.reverse import posterior
from fewstep.solvers import DDIM, Noise, Solver, sample
from fewstep.solvers.sample import Finite, check_grid


@dataclass(frozen=True)
class Repeat:
    """How often each part of the way down is walked.

    Args:
        times: walks of each part, >= 1; after each but the last, noise is added back.
        jump: steps of a part, >= 1.

    Raises:
        UsageError: a number below 1.

    Source: Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models",
        2022, algorithm 1 and section 4.2, with times = jump = 10 at 250 steps (arXiv 2201.09865).
    """

    times: int = 1
    jump: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in (("times", self.times), ("jump", self.jump)):
            if value < 1:
                raise UsageError(f"repeat {name} {value}: must be at least 1")

    def path(self, times: list[float], clean: bool) -> list[tuple[float, float]]:
        """Return the moves (from, to) of a walk down a grid; those that rise add noise.

        Args:
            times: falling.
            clean: whether the last time is clean data: that step is walked once.
        """
        moves = list(pairwise(times))
        last = [moves.pop()] if clean else []
        first = len(moves) % self.jump
        parts = [moves[:first]] if first else []
        parts += [moves[k : k + self.jump] for k in range(first, len(moves), self.jump)]
        walked: list[tuple[float, float]] = []
        for part in parts:
            back = (part[-1][1], part[0][0])
            walked += [*part, back] * (self.times - 1) + part
        return walked + last


ONCE = Repeat()
ANCESTRAL = DDIM(1.0)


def complete(
    denoiser: Denoiser,
    y: Tensor,
    measure: Measure,
    times: Tensor,
    noise: Noise,
    cond: Cond = None,
    solver: Solver = ANCESTRAL,
    repeat: Repeat = ONCE,
) -> Iterator[Tensor]:
    """Yield the batch after each move: images that have the measured part of y in the end.

    After each step to s the measured part of x_s becomes that of alpha_s y + sigma_s z with
    fresh z; after the last step, that of y. Each step starts anew, so that a method which
    remembers earlier steps is its first-order self here.

    The known bias, for data that are a Gaussian with correlation rho between a measured and an
    unmeasured number: without repetition the mean of the second comes out below rho y. It goes to
    rho y, and the variance to 1 - rho^2, as `repeat.times` grows.

    Args:
        denoiser: with its guidance.
        y: images of which the measured part is read, shape (B, C, H, W).
        measure: the projection on what was measured.
        times: falling grid, shape (n + 1,).
        noise: source of standard normal noise.
        cond: the condition of the B images, or None.
        solver: the method; one that draws noise corrects the rest as it goes on.
        repeat: how often each part of the way is walked.

    Returns:
        an iterator of batches, shape of y, one for each move of `repeat.path`.

    Raises:
        UsageError: the grid does not fall, or the solver cannot walk it.
        NumericError: the last batch is not finite; names the first step that was not.

    Source: Song et al., 2021, appendix I.2 (arXiv 2011.13456); `repeat`: Lugmayr et al., 2022.
    """
    process, levels = denoiser.process, times.tolist()
    check_grid(levels)
    if levels[0] < levels[-1]:
        raise UsageError("the grid must fall, from noise to the image")
    conditions.check(cond, y.shape[0])
    solver.check(process, levels)
    path = repeat.path(levels, shapes.at_zero(process.sigma(levels[-1])))
    cond = conditions.to(cond, y.device)
    return _completed(denoiser, y, measure, path, noise, cond, solver)


def _completed(
    denoiser: Denoiser,
    y: Tensor,
    measure: Measure,
    path: list[tuple[float, float]],
    noise: Noise,
    cond: Cond,
    solver: Solver,
) -> Iterator[Tensor]:
    process, silent, last = denoiser.process, torch.no_grad(), len(path) - 1

    def noised(t: float) -> Tensor:
        return float(process.alpha(t)) * y + float(process.sigma(t)) * noise(y)

    start, finite = path[0][0], Finite(path)
    x = put(float(process.prior_std(start)) * noise(y), noised(start), measure)
    for k, (t, s) in enumerate(path):
        with silent:  # inside the loop: the caller's own code between steps is not ours
            if s > t:
                keep = float(process.alpha(s)) / float(process.alpha(t))
                x = keep * x + math.sqrt(float(posterior(process, s, t)[0])) * noise(x)
            else:
                x, _ = solver.step(denoiser, x, t, s, cond, None, noise)
                x = put(x, y if k == last else noised(s), measure)
            finite.see(x)
        yield x


def remaining(process: Process, times: Tensor, strength: float) -> Tensor:
    """Return the part of a grid that is below a share of noise, with that level in front.

    The share is that of the quarter circle, 2/pi atan(sigma / alpha): the same noise for every
    process, as much noise as image at 0.5.

    Args:
        process: turns noise levels into times.
        times: falling grid, shape (n + 1,).
        strength: in [0, 1].

    Returns:
        shape (m + 1,); all of `times` from the strength of its own beginning on, its end alone
        at strength 0.

    Raises:
        UsageError: another strength.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength {strength}: must be in 0..1")
    if strength == 0:
        return times[-1:]
    ratio = math.tan(strength * math.pi / 2)
    start = float(process.time(-2 * math.log(ratio)))
    if strength == 1 or start >= float(times[0]):
        return times
    below = times[times < start - 1e-9]
    return torch.cat([times.new_tensor([start]), below]) if len(below) else times[-1:]


def stroke(
    denoiser: Denoiser,
    y: Tensor,
    times: Tensor,
    strength: float,
    noise: Noise,
    cond: Cond = None,
    solver: Solver = ANCESTRAL,
) -> Iterator[Tensor]:
    """Yield the batch after each step: y, noised to a level and denoised again.

    Args:
        denoiser: with its guidance.
        y: sketches, or images to vary, shape (B, *).
        times: falling grid, shape (n + 1,).
        strength: share of noise that y gets, in [0, 1]: 0 returns y, 1 forgets it and begins as
            `sample` does; about 0.5 keeps layout and colours.
        noise: source of standard normal noise.
        cond: the condition of the B images, or None.
        solver: the method.

    Returns:
        an iterator of batches, shape of y, one for each step of `remaining`; y itself once where
        there is none.

    Raises:
        UsageError: another strength, or as `solvers.sample`.
        NumericError: as `solvers.sample`.

    Source: Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential
        Equations", 2022, algorithm 1 (arXiv 2108.01073).
    """
    grid = remaining(denoiser.process, times, strength)
    if len(grid) < 2:
        return iter([y])
    start = float(grid[0])
    if start == float(times[0]):
        x = float(denoiser.process.prior_std(start)) * noise(y)
    else:
        alpha, sigma = (float(level) for level in denoiser.process.levels(start))
        x = alpha * y + sigma * noise(y)
    steps = sample(denoiser, tuple(y.shape), grid, solver, cond, noise=noise, x=x)
    return (step.x for step in steps)
