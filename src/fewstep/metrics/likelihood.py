"""How many bits per dimension real images cost a model by its probability-flow ODE."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fewstep import likelihood as ode
from fewstep.data import Images
from fewstep.denoiser import Denoiser
from fewstep.errors import NumericError, UsageError
from fewstep.metrics.figures import Figure
from fewstep.metrics.intervals import around


@dataclass(frozen=True)
class Likelihood:
    """What images cost.

    Attributes:
        figure: mean over the images, with its interval over other images and other probes.
        spread: standard error of the mean that is due to the probes alone; NaN with one probe.
        evaluations: calls of the denoiser for each image, at most.
    """

    figure: Figure
    spread: float
    evaluations: int


def likelihood(  # budget: table
    denoiser: Denoiser,
    images: Images,
    steps: int = 32,
    probes: int = 1,
    tolerance: float | None = None,
    *,
    seed: int = 0,
    batch: int = 100,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Likelihood:
    """Return the cost of dequantised images, in bits per dimension: an upper bound.

    Given their classes, if the images have any. See `likelihood.log_density`. Image i has the
    noise and the probes of seed + i, whatever the batch.

    Args:
        denoiser: in evaluation mode, unclipped; it has a parameter.
        images: at least two.
        steps: Runge-Kutta steps.
        probes: for the trace, >= 1.
        tolerance: of the adaptive solver, in place of steps; see `log_density`.
        seed: of the noise.
        batch: images at once.
        tick: told (images done, images in all).

    Raises:
        UsageError: fewer than two images; as `log_density`.
        NumericError: a density that is not finite.
    """
    if len(images) < 2:
        raise UsageError(f"{images.name}: {len(images)} images have no interval; give at least 2")
    device = next(denoiser.parameters()).device
    found, errors, most = [], [], 0
    for start in range(0, len(images), batch):
        ids = torch.arange(start, min(start + batch, len(images)))
        sources = [torch.Generator().manual_seed(seed + int(i)) for i in ids]
        pixels = torch.from_numpy(images.pixels[ids.numpy()]).split(1)
        parts = [ode.dequantise(p, g) for p, g in zip(pixels, sources, strict=True)]
        thrown = [ode.rademacher(p, probes, g) for p, g in zip(parts, sources, strict=True)]
        labels = torch.from_numpy(images.labels[ids.numpy()]).to(device)
        got = ode.log_density(
            denoiser,
            torch.cat(parts).to(device),
            labels if images.classes else None,
            steps,
            torch.cat(thrown, 1).to(device),
            tolerance=tolerance,
        )
        found.append(got.nats.cpu())
        errors.append(got.error.cpu())
        most = max(most, got.evaluations)
        tick(len(torch.cat(found)), len(images))
    dims = images.pixels[0].size
    every = ode.bits_per_dim(torch.cat(found), dims)
    if not bool(every.isfinite().all()):
        raise NumericError(f"{images.name}: a density that is not finite; the model diverges")
    value, wide = float(every.mean()), float(every.std()) / len(images) ** 0.5
    of_probes = ode.bits_per_dim(torch.cat(errors), dims, width=1).square().sum().sqrt()
    figure = Figure("bits/dim, ODE", value, *around(value, wide))
    return Likelihood(figure, float(of_probes) / len(images), most)
