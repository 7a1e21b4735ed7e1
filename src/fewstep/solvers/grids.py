"""Grids: the times at which a sampler stops.

A grid is a float64 tensor of n + 1 falling times with both ends: t[0] is where sampling starts
and t[n] = 0 is clean. A model trained with T discrete steps is run on a subset tau of 0..T-1; the
papers choose tau in many ways, which differ in whether they reach the noisy end (T - 1) and in
how they round. All of them are here under the names of their programs, and a grid always goes
on from the lowest kept index to clean: no solver works out a previous time by itself.
"""

import math
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UsageError, suggest
from fewstep.process import Process
from fewstep.shapes import divide


def uniform(n: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Return n equal steps in t.

    Args:
        n: number of steps, >= 1.
        start: first time, in (0, 1].
        end: last time, in [0, start).

    Returns:
        shape (n + 1,), float64, falling.

    >>> uniform(4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    _at_least_one(n)
    if not 0 <= end < start <= 1:
        raise UsageError(f"grid from {start} to {end}: must satisfy 0 <= end < start <= 1")
    return torch.linspace(start, end, n + 1, dtype=torch.float64)


def karras(
    process: Process, n: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Return n noise levels uniform in (sigma / alpha)^(1/rho), then clean.

    Args:
        process: turns levels into times.
        n: number of steps, >= 1; one level each, high first.
        low: least noise-to-signal ratio, > 0; raised to that of t = 0 if the process has more.
        high: largest; cut to the largest that the process reaches.
        rho: 7 in the paper; larger puts more steps at low noise.

    Returns:
        shape (n + 1,), float64, falling, last 0.

    Raises:
        UsageError: n < 1, rho <= 0, or levels that do not rise or do not meet those of the
            process.

    Source: Karras et al., 2022, eq. 5 (arXiv 2206.00364).
    """
    if not (math.isfinite(rho) and rho > 0):
        raise UsageError(f"rho {rho}: must be a number > 0")
    low, high, levels = _range(process, n, low, high)
    root = torch.linspace(high ** (1 / rho), low ** (1 / rho), levels, dtype=torch.float64)
    return _times(process, root**rho, n)


def logsnr(process: Process, n: int, low: float = 0.002, high: float = 80.0) -> Tensor:
    """Return n noise levels uniform in log-SNR, then clean.

    Args:
        process: turns levels into times.
        n: number of steps, >= 1; one level each, high first.
        low: least noise-to-signal ratio, > 0; raised to that of t = 0 if the process has more.
        high: largest, > low; cut to the largest that the process reaches.

    Returns:
        shape (n + 1,), float64, falling, last 0.

    Raises:
        UsageError: n < 1, or levels that do not rise or do not meet those of the process.

    Source: Lu et al., 2022, section 4 (arXiv 2211.01095).
    """
    low, high, levels = _range(process, n, low, high)
    ratio = torch.linspace(math.log(high), math.log(low), levels, dtype=torch.float64).exp()
    return _times(process, ratio, n)


def strided(n: int, spacing: str = "respace", steps: int = 1000) -> Tensor:
    """Return the talk's tau: a subset of the T training steps, noisiest first, then clean.

    Args:
        n: number of steps asked for, 1..T. Some spacings yield another number ("uniform" takes
            a whole stride, "quadratic" drops duplicates with a warning): count the grid.
        spacing: a name in `SPACINGS`.
        steps: T of the training.

    Returns:
        shape (m + 1,), float64; index i of 0..T-1 is the time (i + 1) / T.

    Raises:
        UsageError: unknown spacing, or n outside 1..T.
    """
    if spacing not in SPACINGS:
        raise UsageError(
            f'spacing "{spacing}": allowed are {", ".join(SPACINGS)}{suggest(spacing, SPACINGS)}'
        )
    return from_indices(SPACINGS[spacing](steps, n), steps)


def from_indices(kept: list[int], steps: int = 1000) -> Tensor:
    """Return the grid that visits these indices of 0..T-1, noisiest first, then clean.

    Args:
        kept: strictly rising indices of 0..T-1.
        steps: T of the training.

    Returns:
        shape (len(kept) + 1,), float64; index i is the time (i + 1) / T, last 0.

    Raises:
        UsageError: no index, or one that is not whole, outside 0..T-1 or not above the one
            before, named by its position.
    """
    if not kept:
        raise UsageError(f"no index in the grid: must keep at least one of 0..{steps - 1}")
    for k, i in enumerate(kept):
        if i != int(i):
            raise UsageError(f"step {k} of the grid: index {i} must be a whole number")
        if not 0 <= i < steps:
            raise UsageError(f"step {k} of the grid: index {i} is outside 0..{steps - 1}")
        if k and i <= kept[k - 1]:
            raise UsageError(f"step {k} of the grid: index {i} does not rise above {kept[k - 1]}")
    times = [(i + 1) / steps for i in reversed(kept)]
    return torch.tensor([*times, 0.0], dtype=torch.float64)


def respace(steps: int, spec: int | str) -> list[int]:
    """Return improved-diffusion's respacing: both ends kept, fractional stride rounded.

    "ddimN" asks for the whole stride that gives exactly N indices; "10,15,20" splits 0..T-1 into
    equal sections and respaces each. One step keeps index 0 only, as in the program: a one-step
    sampler wants "trailing".

    Args:
        steps: T of the training, >= 1.
        spec: a number of steps, "ddimN", or the counts of the sections, separated by commas.

    Returns:
        rising indices of 0..T-1, as many as the counts add up to.

    Raises:
        UsageError: no such stride, or a section smaller than its count.

    Source: Nichol and Dhariwal, 2021, section 4 and released program (arXiv 2102.09672).
    """
    if isinstance(spec, str) and spec.startswith("ddim"):
        return ddim_stride(steps, _count(spec[4:], steps))
    sections = [spec] if isinstance(spec, int) else [_count(p, steps) for p in spec.split(",")]
    size, extra = divmod(steps, len(sections))
    kept: list[int] = []
    start = 0
    for k, count in enumerate(sections):
        length = size + (k < extra)
        if not 1 <= count <= length:
            raise UsageError(f"respacing {spec!r}: section {k} has {length} steps, not {count}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # round half to even, as the program does; the position is accumulated, not multiplied
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return kept


def ddim_stride(steps: int, n: int) -> list[int]:
    """Return every k-th index from 0 for the smallest whole k that gives exactly n.

    Args:
        steps: T of the training, >= 1.
        n: number of indices, in 1..T.

    Returns:
        n rising indices of 0..T-1, first 0.

    Raises:
        UsageError: n outside 1..T, or no such k.

    Source: Nichol and Dhariwal, 2021, released program (arXiv 2102.09672).
    """
    _in_range(n, steps)
    for k in range(1, steps + 1):
        if len(range(0, steps, k)) == n:
            return list(range(0, steps, k))
    raise UsageError(f"ddim{n}: no whole stride takes exactly {n} of {steps} steps")


def ddim_uniform(steps: int, n: int) -> list[int]:
    """Return range(0, T, T // n): the DDIM program's uniform subset, which may exceed n.

    Args:
        steps: T of the training, >= 1.
        n: number of indices, in 1..T.

    Returns:
        rising indices of 0..T-1, first 0; at least n of them.

    Raises:
        UsageError: n outside 1..T.

    Source: Song et al., 2021, released program and appendix D.2 (arXiv 2010.02502).
    """
    _in_range(n, steps)
    return list(range(0, steps, steps // n))


def ddim_quadratic(steps: int, n: int) -> list[int]:
    """Return floor(linspace(0, sqrt(0.8 T), n)^2): the subset of the talk's CIFAR-10 table.

    Small indices coincide for large n; duplicates would be steps of no length and are dropped
    with a warning.

    Args:
        steps: T of the training, >= 1.
        n: number of indices, in 1..T.

    Returns:
        rising indices of 0..0.8 T, first 0; at most n of them.

    Raises:
        UsageError: n outside 1..T.

    Source: Song et al., 2021, appendix D.2 and released program (arXiv 2010.02502).
    """
    _in_range(n, steps)
    # the squares are whole numbers for many n: only the program's own arithmetic truncates alike
    kept = sorted({int(square) for square in np.linspace(0, np.sqrt(steps * 0.8), n) ** 2})
    if len(kept) < n:
        warnings.warn(
            f"quadratic spacing: {n} steps asked for, {len(kept)} different ones exist",
            stacklevel=3,
        )
    return kept


def leading(steps: int, n: int) -> list[int]:
    """Return arange(n) (T // n): starts far from the noisy end, as early Stable Diffusion.

    Args:
        steps: T of the training, >= 1.
        n: number of indices, in 1..T.

    Returns:
        n rising indices of 0..T-1, first 0.

    Raises:
        UsageError: n outside 1..T.

    Source: Lin et al., 2023, table 2 (arXiv 2305.08891).
    """
    _in_range(n, steps)
    return [i * (steps // n) for i in range(n)]


def linspace(steps: int, n: int) -> list[int]:
    """Return round(linspace(0, T - 1, n)), half to even: both ends.

    Args:
        steps: T of the training, >= 1.
        n: number of indices, in 1..T.

    Returns:
        n rising indices of 0..T-1, last T - 1.

    Raises:
        UsageError: n outside 1..T.

    Source: Lin et al., 2023, table 2 (arXiv 2305.08891).
    """
    _in_range(n, steps)
    if n == 1:
        return [steps - 1]
    return [round(i) for i in np.linspace(0, steps - 1, n).tolist()]


def trailing(steps: int, n: int) -> list[int]:
    """Return round(arange(T, 0, -T / n)) - 1: the noisy end and equal steps to clean.

    The spacing for few steps and for zero terminal SNR.

    Args:
        steps: T of the training, >= 1.
        n: number of indices, in 1..T.

    Returns:
        n rising indices of 0..T-1, last T - 1.

    Raises:
        UsageError: n outside 1..T.

    Source: Lin et al., 2023, table 2 (arXiv 2305.08891).
    """
    _in_range(n, steps)
    return sorted(round(steps - i * (steps / n)) - 1 for i in range(n))


SPACINGS: Mapping[str, Callable[[int, int], list[int]]] = {
    "respace": respace,
    "ddim": ddim_stride,
    "uniform": ddim_uniform,
    "quadratic": ddim_quadratic,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
}
"""Spacing names to functions (T, n) -> rising indices of 0..T-1."""


def _count(text: str, steps: int) -> int:
    if not text.strip().isdecimal():
        raise UsageError(f"respacing count {text!r}: must be a whole number in 1..{steps}")
    return int(text)


def _at_least_one(n: int) -> None:
    if n < 1:
        raise UsageError(f"steps {n}: must be at least 1")


def _in_range(n: int, steps: int) -> None:
    if not 1 <= n <= steps:
        raise UsageError(f"steps {n}: must be in 1..{steps}, the number of training steps")


def _range(process: Process, n: int, low: float, high: float) -> tuple[float, float, int]:
    """Cut the range of sigma / alpha to that of the process; return it and the number of levels.

    There are n levels and then clean, unless the process itself ends at its least noise (VE): then
    t = 0 is one level more.
    """
    _at_least_one(n)
    least, most = (float(divide(process.sigma(t), process.alpha(t))) for t in (0.0, 1.0))
    if not (0 < low < high and low < most and high > least):
        raise UsageError(
            f"noise levels {low:g}..{high:g}: must rise and meet those of the process, "
            f"{least:g}..{most:g}"
        )
    return max(low, least), min(high, most), n + (low <= least)


def _times(process: Process, ratio: Tensor, n: int) -> Tensor:
    """Return the times of the levels, with t = 0 as entry n."""
    times = process.time(-2 * ratio.log())
    assert isinstance(times, Tensor)
    return torch.cat([times[:n].clamp(max=1.0), torch.zeros(1, dtype=torch.float64)])
