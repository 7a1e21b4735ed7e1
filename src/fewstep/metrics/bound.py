"""How many bits per dimension real images cost a model: the bound with its interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch

from fewstep.data import Images
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.metrics.figures import Figure
from fewstep.metrics.intervals import around
from fewstep.objectives import Chain, bound_parts


@dataclass(frozen=True)
class Bits:
    """The bound under one variance of the reverse steps.

    Attributes:
        figure: mean over the images, with its interval over other images and other noise.
        parts: means of L_T, of L_1 ... L_T-1 together, and of L_0; their sum is the figure.
    """

    figure: Figure
    parts: tuple[float, float, float]


def bits(
    denoiser: Denoiser,
    images: Images,
    variances: Sequence[str] = ("small", "large"),
    terms: int | None = None,
    seed: int = 0,
    batch: int = 250,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[Bits]:
    """Return the bound of real images under each variance, in bits per dimension.

    Given their classes, if the images have any. See `objectives.bound_parts`.

    Args:
        denoiser: in evaluation mode, clipped as when sampling; it has a parameter.
        images: at least two.
        variances: each "small", "large" or "learned".
        terms: steps of the sum that are evaluated for each image; None = all.
        seed: of the noise.
        batch: images at once; the noise depends on it.
        tick: told (evaluations done, evaluations in all).

    Raises:
        UsageError: fewer than two images; as `bound_parts`.
    """
    if len(images) < 2:
        raise UsageError(f"{images.name}: {len(images)} images have no interval; give at least 2")
    device = next(denoiser.parameters()).device
    noise = torch.Generator(device).manual_seed(seed)
    starts = range(0, len(images), batch)
    terms = Chain.of(denoiser.process, "small").steps - 1 if terms is None else terms
    done, total, found = count(1), len(starts) * (terms + 1), []
    for start in starts:
        ids = torch.arange(start, min(start + batch, len(images)))
        x0, labels = (part.to(device) for part in images.batch(ids))
        cond = labels if images.classes else None
        parts = bound_parts(
            denoiser, x0, cond, variances, terms, noise, lambda: tick(next(done), total)
        )
        found.append(parts.cpu())
    whole = torch.cat(found, 1)
    sums = whole.sum(-1)
    sd = (sums.std(1) / len(images) ** 0.5).tolist()
    rows = zip(variances, sums.mean(1).tolist(), sd, whole.mean(1).tolist(), strict=True)
    return [
        Bits(Figure(f"bits/dim, {name}", value, *around(value, wide)), (part[0], part[1], part[2]))
        for name, value, wide, part in rows
    ]
