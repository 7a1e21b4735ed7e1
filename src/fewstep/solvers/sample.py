"""The one loop that samples.

`sample` is an iterator: it yields after every step, so that progress bars, previews, cancelling
and trajectories are the caller's own for-loop; `generate` is that loop to its end, in batches.
Neither touches a global random state.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep import conditions
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import NumericError, UsageError
from fewstep.prediction import Prediction
from fewstep.shapes import Number
from fewstep.solvers.base import Noise, Solver
from fewstep.solvers.noise import PerImage, image_seeds


@dataclass(slots=True)  # frozen would cost a microsecond in every step
class Step:
    """One step of a sampler, just done.

    Attributes:
        index: number of the step, 0-based.
        total: number of steps.
        t: the time it started from.
        s: the time it reached.
        x: the batch at s, shape (B, *).
        prediction: the last prediction that was asked for; `.x0` is a preview of the result.
    """

    index: int
    total: int
    t: float
    s: float
    x: Tensor
    prediction: Prediction


class _Watch(Denoiser):
    """Remember the last prediction of a denoiser."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.inner, self.process, self.null = (denoiser,), denoiser.process, denoiser.null
        self.last: list[Prediction] = []

    def __call__(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        p = self.inner[0](x_t, t, cond)
        self.last[:] = (p,)
        return p

    forward = __call__


class _Count(Denoiser):
    """Add up what the calls of a solver would cost, without calling the denoiser's network."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.inner, self.process, self.total = (denoiser,), denoiser.process, 0

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        self.total += self.inner[0].cost(float(t))
        return Prediction(x_t, 1.0, 1.0, x_t, x_t, variance=x_t)


def nfe(denoiser: Denoiser, times: Tensor, solver: Solver) -> int:
    """Return the network evaluations per image that sampling on this grid costs.

    Args:
        denoiser: with its guidance; a guided call counts each branch.
        times: the grid, shape (n + 1,).
        solver: the method.

    Returns:
        the evaluations from the first time to the last, >= 0.
    """
    count, x, carry = _Count(denoiser), torch.zeros(1, 1), None
    for t, s in pairwise(times.tolist()):
        _, carry = solver.step(count, x, t, s, None, carry, torch.zeros_like)
    return count.total


def sample(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    times: Tensor,
    solver: Solver,
    cond: Cond = None,
    seed: int = 0,
    noise: Noise | None = None,
    x: Tensor | None = None,
) -> Iterator[Step]:
    """Yield the steps from noise to images; the arguments are checked at once.

    Args:
        denoiser: with its guidance; its parameters (or `x`) decide device and dtype.
        shape: (B, *) of the batch.
        times: the grid, shape (n + 1,), usually falling to 0; flip it to encode.
        solver: the method.
        cond: the condition of the B images, or None; moved to the device of the batch.
        seed: image i of the batch draws its noise from seed + i; unused when `noise` is given.
        noise: source of standard normal noise, called first for the start and then per step.
        x: the starting batch, shape `shape`; drawn from the noise when None.

    Returns:
        an iterator of `Step`, one per interval of the grid.

    Raises:
        UsageError: the solver cannot walk this grid; the grid leaves [0, 1] or turns back.
        ValueError: shapes of `x` or `cond` that do not fit.
        NumericError: the last batch is not finite; names the first step that was not.
    """
    levels = times.tolist()
    check_grid(levels)
    conditions.check(cond, shape[0])
    if x is not None and tuple(x.shape) != tuple(shape):
        raise ValueError(f"x of shape {tuple(x.shape)}: expected {tuple(shape)}")
    solver.check(denoiser.process, levels)
    if noise is None and (x is None or solver.stochastic):
        noise = PerImage(image_seeds(seed, shape[0]))  # a generator each: not made for nothing
    if x is None:
        assert noise is not None
        parameter = next(denoiser.parameters(), torch.empty(()))
        dtype = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
        start = noise(torch.empty(shape, dtype=dtype, device=parameter.device))
        x = start * denoiser.process.prior_std(levels[0])
    # labels are made on the CPU by habit; the batch says where the model is
    return _walk(denoiser, x, levels, solver, conditions.to(cond, x.device), noise)


def check_grid(levels: list[float]) -> None:
    """Raise UsageError for what is no walk through [0, 1] in one direction, naming the entry."""
    if len(levels) < 2:
        raise UsageError(f"grid of {len(levels)} times: at least 2 are needed, both ends")
    sign = -1 if levels[1] < levels[0] else 1
    for k, t in enumerate(levels):
        if not 0 <= t <= 1:
            raise UsageError(f"grid: time {k} is {t:g}, outside 0..1")
        if k and not sign * (t - levels[k - 1]) > 0:
            raise UsageError(
                f"grid: time {k} is {t:g} after {levels[k - 1]:g}; the times must "
                f"{'fall' if sign < 0 else 'rise'} strictly"
            )


def _walk(
    denoiser: Denoiser,
    x: Tensor,
    times: list[float],
    solver: Solver,
    cond: Cond,
    noise: Noise | None,
) -> Iterator[Step]:
    watch, carry, total, silent = _Watch(denoiser), None, len(times) - 1, torch.no_grad()
    moves = list(pairwise(times))
    finite = Finite(moves)
    for i, (t, s) in enumerate(moves):
        with silent:  # inside the loop: the caller's own code between steps is not ours
            x, carry = solver.step(watch, x, t, s, cond, carry, noise)
            finite.see(x)
        yield Step(i, total, t, s, x, watch.last[0])


_KEPT = 1 << 24  # bytes


class Finite:
    """Refuse a last batch that is not finite, naming the first step that was not.

    The batches of a small walk are kept until its end, of a large one their sums: steps cost
    nothing beside the network, and an accelerator is waited for once.

    Args:
        moves: (t, s) of every step.
    """

    def __init__(self, moves: list[tuple[float, float]]) -> None:
        self._moves = moves
        self._left = len(moves)
        self._seen: list[Tensor] = []
        self._small = False

    def see(self, x: Tensor) -> None:
        """Take the batch after one more step.

        Args:
            x: shape (B, *).

        Raises:
            NumericError: this was the last step, and a value is not finite.
        """
        if not self._seen:
            self._small = x.nbytes * self._left <= _KEPT
        self._seen.append(x if self._small else x.sum())
        self._left -= 1
        if self._left or x.is_meta or bool(x.isfinite().all()):
            return
        k = [bool(seen.isfinite().all()) for seen in self._seen].index(False)
        t, s = self._moves[k]
        raise NumericError(
            f"step {k + 1} of {len(self._moves)}, from t = {t:g} to {s:g}: from here on the batch "
            "is not finite; lower the guidance scale, or take more steps or another sampler"
        )


def generate(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    times: Tensor,
    solver: Solver,
    cond: Cond = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """Return finished images.

    Args:
        denoiser: with its guidance.
        shape: (N, *) of all the images.
        times: the grid, shape (n + 1,).
        solver: the method.
        cond: the condition of the N images, or None.
        seed: image i draws its noise from seed + i, whatever the batch size.
        batch_size: images at once, >= 1.

    Returns:
        shape (N, *), on the device of the denoiser.

    Raises:
        UsageError: as `sample`, or batch_size < 1.
        ValueError: no images, or cond of another length.
        NumericError: as `sample`.
    """
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: must be at least 1")
    if shape[0] < 1:
        raise ValueError(f"images of shape {tuple(shape)}: at least one is needed")
    conditions.check(cond, shape[0])
    done: list[Tensor] = []
    for first in range(0, shape[0], batch_size):
        n = min(batch_size, shape[0] - first)
        some = conditions.rows(cond, slice(first, first + n))
        noise = PerImage(image_seeds(seed, n, first))
        steps = sample(denoiser, (n, *shape[1:]), times, solver, some, noise=noise)
        done.append(deque(steps, maxlen=1)[0].x)
    return torch.cat(done)
