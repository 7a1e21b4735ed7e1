"""To change an image with any diffusion model: complete what was measured, or redraw a sketch.

`complete` samples while the measured part of every noisy batch is replaced by the noised
measurement: no training, no gradient. It is not exact: until the noise is low the rest is drawn
as if it did not know all of the measurement, and so the two fit less well than they should. Going
back and forth between two noise levels (`Repeat`) makes them fit. `stroke` noises a sketch until
its faults are drowned, and denoises that; `denoise` takes the noise for that of the model's own
way. All of them work with a consistency model too, with the solver `Consistency`.
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
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.reverse import posterior
from fewstep.shapes import Number
from fewstep.solvers import DDIM, Consistency, Noise, Solver, sample
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
_SAME = 1e-9  # times nearer to each other are one


class _Measured(Denoiser):
    """Put the measured part of y into the predicted clean image."""

    def __init__(self, denoiser: Denoiser, y: Tensor, measure: Measure) -> None:
        super().__init__()
        self.denoiser, self.y, self.measure = denoiser, y, measure
        self.process, self.null = denoiser.process, denoiser.null

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        prediction = self.denoiser(x_t, t, cond)
        return prediction.with_x0(put(prediction.x0, self.y, self.measure))

    def cost(self, t: float) -> int:
        return self.denoiser.cost(t)


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
    remembers earlier steps is its first-order self here. `Consistency` replaces the measured part
    of the image at the end of the trajectory instead, before it adds noise: all of x_s is then as
    noisy, and the next call may change how the rest fits.

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

    Source: Song et al., 2021, appendix I.2 (arXiv 2011.13456); `repeat`: Lugmayr et al., 2022;
        with `Consistency`: Song et al., 2023, algorithm 4 (arXiv 2303.01469).
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
    ends = isinstance(solver, Consistency)
    denoiser = _Measured(denoiser, y, measure) if ends else denoiser
    x = put(float(process.prior_std(start)) * noise(y), noised(start), measure)
    for k, (t, s) in enumerate(path):
        with silent:  # inside the loop: the caller's own code between steps is not ours
            if s > t:
                keep = float(process.alpha(s)) / float(process.alpha(t))
                x = keep * x + math.sqrt(float(posterior(process, s, t)[0])) * noise(x)
            else:
                x, _ = solver.step(denoiser, x, t, s, cond, None, noise)
                if k == last:
                    x = put(x, y, measure)
                elif not ends:
                    x = put(x, noised(s), measure)
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
    _share(strength)
    if strength == 0:
        return times[-1:]
    ratio = math.tan(strength * math.pi / 2)
    start = float(process.time(-2 * math.log(ratio)))
    if strength == 1 or start >= float(times[0]):
        return times
    left = times[times <= start + _SAME]
    if len(left) and float(left[0]) < start - _SAME:
        left = torch.cat([times.new_tensor([start]), left])
    return left if len(left) > 1 else times[-1:]


def nearest(process: Process, times: Tensor, strength: float) -> float:
    """Return the strength nearest to this one at which a grid has a time of its own.

    So that a model which knows no other times is asked for none, see `remaining`.

    Args:
        process: has the noise levels.
        times: falling grid, shape (n + 1,).
        strength: in [0, 1].

    Returns:
        in [0, 1]: 0 for 0 alone, 1 for the beginning of the grid.

    Raises:
        UsageError: another strength.
    """
    _share(strength)
    if strength == 0:
        return 0.0
    levels = [process.levels(t) for t in times[:-1].tolist()]
    own = [2 / math.pi * math.atan2(float(sigma), float(alpha)) for alpha, sigma in levels]
    k = min(range(len(own)), key=lambda i: abs(own[i] - strength))
    return own[k] if k else 1.0


def _share(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise UsageError(f"strength {strength}: must be in 0..1")


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


def denoise(
    denoiser: Denoiser,
    y: Tensor,
    times: Tensor,
    ratio: float,
    noise: Noise,
    cond: Cond = None,
    solver: Solver = ANCESTRAL,
) -> Iterator[Tensor]:
    """Yield the batch after each step: y, which is noisy already, taken for a point of the way.

    Args:
        denoiser: with its guidance.
        y: images plus normal noise of standard deviation `ratio`, shape (B, *).
        times: falling grid, shape (n + 1,); the part below the noise is walked.
        ratio: sigma / alpha of y, the noise for images in [-1, 1], >= 0.
        noise: source of standard normal noise.
        cond: the condition of the B images, or None.
        solver: the method; DDIM() and `Consistency` in one step draw none.

    Returns:
        an iterator of batches, shape of y; y itself once where there is no step.

    Raises:
        UsageError: a ratio below 0 or above that of the grid's beginning, or as `solvers.sample`.
        NumericError: as `solvers.sample`.

    Source: Song et al., "Consistency Models", 2023, section 6.3 (arXiv 2303.01469).
    """
    process, first = denoiser.process, float(times[0])
    most = float(shapes.divide(process.sigma(first), process.alpha(first)))
    if not 0 <= ratio <= most:
        raise UsageError(f"noise {ratio:g}: must be in 0..{most:g}, that of the grid")
    grid = remaining(process, times, 2 / math.pi * math.atan(ratio))
    if len(grid) < 2:
        return iter([y])
    x = float(process.alpha(float(grid[0]))) * y
    steps = sample(denoiser, tuple(y.shape), grid, solver, cond, noise=noise, x=x)
    return (step.x for step in steps)
