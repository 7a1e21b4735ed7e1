"""Grids of given noise levels: any list, and the published lists of Align Your Steps."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewstep.errors import UsageError, suggest
from fewstep.process import Process
from fewstep.shapes import divide

ALIGN_YOUR_STEPS: Mapping[str, tuple[float, ...]] = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}
"""Levels sigma / alpha of 10 steps, found for Stable Diffusion 1.5, XL and video."""


def listed(process: Process, ratios: Sequence[float]) -> Tensor:
    """Return the grid that stops at these noise levels, then at clean.

    Args:
        process: turns levels into times.
        ratios: falling values of sigma / alpha, > 0; a last 0 may be left out.

    Returns:
        shape (n + 1,), float64, falling, last 0; n levels above 0.

    Raises:
        UsageError: a level that does not fall or lies outside the process, named by its position.
    """
    kept = list(ratios[:-1]) if len(ratios) and ratios[-1] == 0 else list(ratios)
    if not kept:
        raise UsageError("noise levels: at least one above 0 is needed")
    least, most = (float(divide(process.sigma(t), process.alpha(t))) for t in (0.0, 1.0))
    for k, r in enumerate(kept):
        if not (least < r <= most * (1 + 1e-12) and math.isfinite(r)):
            raise UsageError(
                f"noise level {k} is {r:g}: must lie above {least:g} and up to {most:g}, as those "
                "of the process"
            )
        if k and not r < kept[k - 1]:
            raise UsageError(f"noise level {k} is {r:g}: does not fall below {kept[k - 1]:g}")
    times = process.time(-2 * torch.tensor(kept, dtype=torch.float64).log())
    assert isinstance(times, Tensor)
    return torch.cat([times.clamp(max=1.0), torch.zeros(1, dtype=torch.float64)])


def align_your_steps(process: Process, n: int = 10, name: str = "sd15") -> Tensor:
    """Return the grid of a list of `ALIGN_YOUR_STEPS`, for another n interpolated in ln sigma.

    Args:
        process: turns levels into times; must reach the first level.
        n: number of steps, >= 1.
        name: of the list.

    Returns:
        shape (n + 1,), float64, falling, last 0.

    Raises:
        UsageError: another name, n < 1, or as `listed`.

    Source: Sabour, Fidler, Kreis, "Align Your Steps: Optimizing Sampling Schedules in Diffusion
        Models", 2024 (arXiv 2404.14507), lists of the released quickstart guide.
    """
    if name not in ALIGN_YOUR_STEPS:
        raise UsageError(
            f'list "{name}": allowed are {", ".join(ALIGN_YOUR_STEPS)}'
            f"{suggest(name, ALIGN_YOUR_STEPS)}"
        )
    if n < 1:
        raise UsageError(f"steps {n}: must be at least 1")
    given = ALIGN_YOUR_STEPS[name]
    out: list[float] = []
    for i in range(n):
        at = i * (len(given) - 1) / max(n - 1, 1)
        k = min(int(at), len(given) - 2)
        out.append(given[k] ** (1 - at + k) * given[k + 1] ** (at - k))
    return listed(process, out)
