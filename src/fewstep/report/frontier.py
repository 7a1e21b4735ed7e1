"""The frontier: what each way of sampling costs and what it yields, under one protocol.

A `Row` names settings and a number of images; `measure` samples them with the same seeds and the
same labels as every other row and returns `Figures`: steps, network evaluations, images per
second, label accuracy and Frechet distance on the pixels, with the distance of equally many real
images (the floor) beside it. A `Judge` holds what the figures are measured against.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import metrics, sampling, solvers
from fewstep.data import Images
from fewstep.denoiser import NetDenoiser
from fewstep.errors import UsageError
from fewstep.model import Model, Sampling
from fewstep.process import Process

Tick = Callable[[int, int], None]
"""tick(done, total): called as images are finished."""


@dataclass(frozen=True)
class Row:
    """One way of sampling.

    Attributes:
        title: what to call it.
        sampling: the settings.
        images: how many to make.
        group: heading under which the row is shown.
        process: sample along this process instead of the model's own; the network, which is
            told the noise level and not the time, does not mind.
    """

    title: str
    sampling: Sampling
    images: int
    group: str = ""
    process: Process | None = None


@dataclass(frozen=True)
class Judge:
    """What generated images are measured against.

    Attributes:
        classifier: trained on the real training split.
        accuracy: its accuracy on the real held-out split, 0..1.
        real: features of the training split, shape (N, D).
        held_out: features of the held-out split, shape (M, D).
    """

    classifier: nn.Module
    accuracy: float
    real: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, train: Images, held_out: Images, seed: int = 0) -> "Judge":
        """Train the classifier on the training split and look at both splits."""
        (x, y), (x_held, y_held) = (s.batch(torch.arange(len(s))) for s in (train, held_out))
        classifier = metrics.train_classifier(x, y, len(train.classes), seed=seed)
        return cls(
            classifier,
            metrics.accuracy(classifier, x_held, y_held),
            metrics.pixels(x),
            metrics.pixels(x_held),
        )

    def floor(self, n: int) -> float:
        """Return the distance of n real training images to the held-out ones.

        Raises:
            UsageError: there are fewer than n, and figures at different N do not compare.
        """
        if n > len(self.real):
            raise UsageError(
                f"{n} images: the floor needs as many real ones, and the training split has "
                f"{len(self.real)}"
            )
        return metrics.floor(self.real, self.held_out, n)


@dataclass(frozen=True)
class Figures:
    """What a row cost and yielded.

    Attributes:
        row: the settings.
        nfe: network evaluations per image.
        images_per_second: after a warm-up, on this machine.
        accuracy: share of images that show the class asked for, 0..1.
        distance: Frechet distance of the pixels to the held-out images.
        floor: the same of equally many real training images.
        pixels: the first images, uint8, shape (K, C, H, W).
    """

    row: Row
    nfe: int
    images_per_second: float
    accuracy: float
    distance: float
    floor: float
    pixels: Tensor

    def plain(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        s = self.row.sampling
        return {
            "title": self.row.title, "group": self.row.group, "sampler": s.sampler,
            "steps": s.steps, "spacing": s.spacing, "eta": s.eta,
            "guidance_scale": s.guidance_scale, "clip": s.clip, "images": self.row.images,
            "process": None if self.row.process is None else self.row.process.describe(),
            "network_evaluations": self.nfe,
            "images_per_second": round(self.images_per_second, 2),
            "label_accuracy": round(self.accuracy, 4), "fd_pixels": round(self.distance, 4),
            "fd_pixels_floor": round(self.floor, 4),
        }  # fmt: skip


def measure(
    model: Model,
    row: Row,
    judge: Judge,
    *,
    seed: int = 0,
    batch_size: int = 250,
    shown: int = 40,
    tick: Tick | None = None,
) -> Figures:
    """Sample a row and judge it.

    Image i draws its noise from seed + i and is asked to show class i modulo the number of
    classes, in every row.

    Args:
        model: with classes, in evaluation mode.
        row: what to sample.
        judge: what to measure against.
        seed: first seed.
        batch_size: images at once; one step of such a batch is the warm-up of the clock.
        shown: how many images to keep for the picture.
        tick: told of progress in steps of single batches.

    Raises:
        UsageError: settings that this model cannot follow.
    """
    floor = judge.floor(row.images)  # first: it refuses a number of images it cannot judge
    if row.process is not None:
        own = model.denoiser
        other = NetDenoiser(own.net, row.process, own.param, own.label, own.null)
        model = replace(model, denoiser=other)
    classes = len(model.classes)
    device = next(model.denoiser.parameters()).device
    labels = (torch.arange(row.images) % max(classes, 1)).to(device)
    plan = sampling.plan(model, row.sampling)
    batches = torch.arange(row.images).split(batch_size)
    total = len(batches) * (len(plan.times) - 1)
    with torch.no_grad():  # warm-up: the first call for a shape prepares its kernels
        some = labels[: len(batches[0])]
        start = torch.zeros(len(some), *model.shape, device=device)
        plan.denoiser(start, 1.0, some if classes else None).x0.sum().item()
    done, parts, began = 0, [], time.perf_counter()
    for ids in batches:
        x = torch.empty(0)
        for step in solvers.sample(
            plan.denoiser,
            (len(ids), *model.shape),
            plan.times,
            plan.solver,
            labels[ids] if classes else None,
            noise=solvers.PerImage(solvers.image_seeds(seed, len(ids), int(ids[0]))),
        ):
            x, done = step.x, done + 1
            if tick is not None:
                tick(done, total)
        parts.append(x.cpu())  # waits for the device: the clock stops with the work done
    seconds = time.perf_counter() - began
    x = torch.cat(parts)
    return Figures(
        row,
        plan.nfe,
        row.images / seconds,
        metrics.accuracy(judge.classifier, x, labels.cpu()),
        metrics.frechet_distance(judge.held_out, metrics.pixels(x)),
        floor,
        sampling.to_uint8(x[:shown]),
    )


def table(figures: list[Figures]) -> list[str]:
    """Return the figures as lines of a table for a terminal."""
    titles = ("", "steps", "NFE", "N", "images/s", "accuracy", "FD-pixels", "floor")
    rows = [
        (
            f.row.title,
            f"{f.row.sampling.steps}",
            f"{f.nfe}",
            f"{f.row.images}",
            f"{f.images_per_second:.1f}",
            f"{f.accuracy:.3f}",
            f"{f.distance:.3f}",
            f"{f.floor:.3f}",
        )
        for f in figures
    ]
    widths = [max(len(line[i]) for line in (titles, *rows)) for i in range(len(titles))]
    lines: list[str] = []
    group = None
    for f, cells in zip([None, *figures], [titles, *rows], strict=True):
        if f is not None and f.row.group != group:
            group = f.row.group
            lines += ["", group]
        first = cells[0].ljust(widths[0])
        rest = (c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))
        lines.append("  ".join(["", first, *rest]))
    return lines
