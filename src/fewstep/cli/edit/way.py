"""What all edits share: the model and its settings, the classes, the pictures."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fewstep.cli import guidance, made
from fewstep.errors import NumericError, UsageError
from fewstep.report import picture

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.cli.resolve import Found
    from fewstep.sampling import Plan

OUT = typer.Option("-o", "--out", metavar="FILE", help="the .png; by default a new one beside you")
Row = tuple["str | None", "Tensor | None"]
"""Name and condition, shape (1,), of a class; None and None where no class is asked for."""


@dataclass(frozen=True)
class Way:
    """How noise becomes images.

    Attributes:
        found: the model.
        plan: its denoiser with guidance and the grid.
        facts: what goes into the file.
        place: the device.
    """

    found: "Found"
    plan: "Plan"
    facts: dict[str, Any]
    place: "Any"


def begin(word: str, out: str | None, inputs: Iterable[Path]) -> "tuple[Found, Path | None]":
    """Return the model and the file to write, both checked before any work.

    Args:
        word: for the model.
        out: for the file, or None.
        inputs: files that are read.

    Raises:
        UsageError: another file than a .png, an input, or a model of texts or further images.
        CheckpointError: as `resolve.find`.
    """
    from fewstep.cli.resolve import find

    target = made.png(out)
    made.spare(target, inputs)
    found = find(word)
    if found.model.inputs or found.model.text is not None:
        raise UsageError(f"{found.name}: a model of texts or of further images; edit takes none")
    return found, target


def scale_of(found: "Found", label: list[str] | None, scale: float | None) -> float | None:
    """Return the guidance scale: none without a class, None = the model's own.

    Raises:
        UsageError: guidance towards no class.
    """
    guidance.warn_far(scale)
    if label or not found.model.classes:
        return scale
    if scale not in (None, 1):
        raise UsageError(f"--guidance-scale {scale:g}: without a --label; give one")
    return 1.0


def consistent(found: "Found") -> bool:
    """Return whether the model says where a trajectory ends, so that no ODE is solved with it."""
    return found.model.sampling.sampler == "consistency"


def down(found: "Found", high: float, steps: int) -> tuple[float, ...]:
    """Return noise levels of Karras' spacing from a level down to the least of a student's.

    Args:
        found: the model.
        high: the first, sigma / alpha.
        steps: how many.
    """
    from fewstep.solvers import grids
    from fewstep.students import make

    process = found.model.denoiser.process
    times = grids.karras(process, steps, make.floor(process), high)[:-1].tolist()
    return (high, *(float(process.sigma(t)) / float(process.alpha(t)) for t in times[1:]))


def plan(found: "Found", changes: dict[str, Any], device: str) -> Way:
    """Return DDIM, or `Consistency`, with the user's changes to the model's settings.

    None is no change.

    Raises:
        UsageError: as `sampling.plan`, or a device that is not there.
    """
    from fewstep import __version__, sampling
    from fewstep.train import engine

    place = engine.pick_device(device)
    said = {k: v for k, v in changes.items() if v is not None}
    sampler = "consistency" if consistent(found) else "ddim"
    preset = sampling.changed(found.model.sampling, {**said, "sampler": sampler})
    way = sampling.plan(found.model, preset)
    facts = {
        "version": __version__,
        "model": found.name,
        "weights_sha256": found.weights,
        "sampling": preset.plain(),
        "steps": len(way.times) - 1,
        "device": str(place).partition(":")[0],
        **guidance.baked(found.model),
    }
    engine.tune_cpu()
    found.model.denoiser.to(place)
    return Way(found, way, facts, place)


def rows(found: "Found", words: list[str] | None) -> list[Row]:
    """Return each class that was named, or one row of none.

    Raises:
        UsageError: no such class, or a model without classes.
    """
    import torch

    from fewstep.cli.told import class_indices

    if words and not found.model.classes:
        raise UsageError(f"--label {words[0]}: {found.name} has no classes; leave it out")
    indices = class_indices(found.model, words)
    if indices is None:
        return [(None, None)]
    return [(found.model.classes[k], torch.tensor([k])) for k in indices]


def save(x: "Tensor", columns: int, file: Path, scale: int | None, facts: dict[str, Any]) -> None:
    """Write images of shape (N, C, H, W) in rows.

    Raises:
        NumericError: a value is not finite.
        ResourceError: the disk refuses.
    """
    from fewstep import sampling

    if not x.isfinite().all():
        raise NumericError("the images are not finite; nothing was written")
    pixels = sampling.to_uint8(x).cpu().numpy()
    factor = scale or picture.factor(*pixels.shape[2:])
    layout = {"columns": columns, "scale": factor, "gap": picture.between(factor, len(pixels))}
    picture.save(picture.grid(pixels, columns, factor), file, {**facts, "grid": layout})
