"""`fewstep edit`: what can be done to images through their noise.

DDIM without fresh noise makes the same image of the same noise and can be inverted step by step
(`edit.encode`). The image is put down at the first noisy time of the grid and decoding ends
there: the last step, to clean data, cannot be inverted. An image is encoded and decoded without
guidance and without clipping, under which the round trip would not close.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import console, options
from fewstep.errors import NumericError, UsageError
from fewstep.report import picture

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.cli.resolve import Found
    from fewstep.edit import Code
    from fewstep.sampling import Plan

app = options.app()

_BATCH_PIXELS = 1 << 18
_SEEN = 1e-3  # an error of this size, an eighth of a grey level, is told

MODEL = typer.Argument(metavar="MODEL", help="a shipped model (digits), a run or model folder")
STEPS = typer.Option(parser=options.steps, metavar="N", help="steps of DDIM")
SPACING = typer.Option(metavar="NAME", help="even, trailing, karras, ...")
OUT = typer.Option("-o", "--out", metavar="FILE", help="the .png; by default a new one beside you")
SCALE = typer.Option(
    parser=options.whole(1, 64), metavar="K", help="enlarge pixels; 1 = as they are"
)


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


@app.command()
def encode(  # budget: table
    model: Annotated[str, MODEL],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="stretched to the model's size")],
    label: Annotated[
        str | None, typer.Option("--label", "-l", metavar="NAME", help="the class of the image")
    ] = None,
    steps: Annotated[int | None, STEPS] = None,
    spacing: Annotated[str | None, SPACING] = None,
    out: Annotated[str | None, OUT] = None,
    scale: Annotated[int | None, SCALE] = None,
    device: Annotated[str, options.DEVICE] = "auto",
    form: Annotated[str, options.FORMAT] = "human",
) -> None:
    """Encode an image into the noise that DDIM makes it from, and decode it again.

    The PNG shows the image, the decoded one and their difference (grey where they are equal).
    """
    import torch

    found, target = _open(model, out)
    changes = {"steps": steps, "spacing": spacing, "guidance_scale": 1.0}
    way = _way(found, changes, device, exact=True)
    (row,) = _rows(found, None if label is None else [label], most=1)
    x = _read(found, image, way)
    code, back = _round_trip(way, x, row)
    error = back - x
    told = {
        "label": row[0],
        "mse": float(error.square().mean()),
        "largest_error": float(error.abs().max()),
        "residual": float(code.residual.max()),
        "evaluations": code.iterations,
        "code_std": float(code.x.std(correction=0)),
    }
    file = target or _free(f"{found.name}-encode-{image.stem}")
    _save(torch.cat([x, back, error]), 3, file, scale, {**way.facts, "image": image.name, **told})
    if form == "json":
        print(json.dumps({**way.facts, **told, "file": str(file)}))
        return
    console.result(
        f"{file}: {way.facts['steps']} steps, {code.iterations} network evaluations; round trip: "
        f"mean squared error {told['mse']:.2g}, largest error {told['largest_error']:.2g} (a grey "
        f"level is {1 / 127.5:.2g}); noise of standard deviation {told['code_std']:.2f}"
    )


@app.command()
def interpolate(  # budget: table
    model: Annotated[str, MODEL],
    a: Annotated[str, typer.Argument(metavar="A", help="a seed, or an image file")],
    b: Annotated[str, typer.Argument(metavar="B", help="a seed, or an image file")],
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="NAMES", help="a row for each: 7, or 3,7, or all"),
    ] = None,
    number: Annotated[
        int,
        typer.Option("-n", "--number", parser=options.whole(2, 1000), help="frames of a row"),
    ] = 9,
    guidance_scale: Annotated[
        float | None,
        typer.Option(parser=options.number(), metavar="S", help="between seeds; 1 = plain"),
    ] = None,
    steps: Annotated[int | None, STEPS] = None,
    spacing: Annotated[str | None, SPACING] = None,
    out: Annotated[str | None, OUT] = None,
    scale: Annotated[int | None, SCALE] = None,
    device: Annotated[str, options.DEVICE] = "auto",
) -> None:
    """Walk between the noises of two images, along the great circle.

    Images of the same seed and settings are those of fewstep sample.
    """
    import torch

    from fewstep.edit import decode, frames

    found, target = _open(model, out)
    seeds = [_seed(word) for word in (a, b)]
    exact = None in seeds
    if exact and guidance_scale not in (None, 1):
        raise UsageError(
            f"--guidance-scale {guidance_scale:g}: an image is encoded without guidance; leave "
            "it out, or give two seeds"
        )
    free = exact or (not label and bool(found.model.classes))
    if free and guidance_scale not in (None, 1):
        raise UsageError(f"--guidance-scale {guidance_scale:g}: without a --label; give one")
    changes = {
        "steps": steps,
        "spacing": spacing,
        "guidance_scale": 1.0 if free else guidance_scale,
    }
    way = _way(found, changes, device, exact=exact)
    rows = _rows(found, label)
    done: list[Tensor] = []
    for row in rows:
        first, last = (_end(way, w, k, row) for w, k in zip((a, b), seeds, strict=True))
        walk = frames(first, last, number)
        size = max(1, min(256, _BATCH_PIXELS // walk[0, 0].numel()))
        for some in walk.split(size):
            cond = None if row[1] is None else row[1].expand(len(some))
            done.append(decode(way.plan.denoiser, some, way.plan.times, cond))
    x = torch.cat(done)
    names = [row[0] for row in rows]
    file = target or _free(f"{found.name}-interpolate-{Path(a).stem}-{Path(b).stem}")
    ends = [Path(w).name for w in (a, b)]
    _save(x, number, file, scale, {**way.facts, "between": ends, "labels": names})
    console.result(
        f"{file}: {len(names)} x {number} images between {ends[0]} and {ends[1]}, ddim "
        f"{way.facts['steps']} steps, guidance scale {way.facts['sampling']['guidance_scale']:g}"
    )


def _open(word: str, out: str | None) -> "tuple[Found, Path | None]":
    """Return the model and the file to write, both checked before any work."""
    from fewstep.cli.resolve import find

    target = None if out is None else Path(out).expanduser()
    if target is not None:
        if target.suffix.lower() != ".png" or target.is_dir():
            raise UsageError(f"-o {out}: must be a file that ends in .png")
        picture.check_parent(target)
    found = find(word)
    if found.model.inputs or found.model.text is not None:
        raise UsageError(f"{found.name}: a model of texts or of further images; edit takes none")
    return found, target


def _way(found: "Found", changes: dict[str, Any], device: str, *, exact: bool) -> Way:
    """Return deterministic DDIM with the user's changes; exact = for images to be encoded."""
    from fewstep import __version__, sampling
    from fewstep.train import engine

    place = engine.pick_device(device)
    said = {k: v for k, v in changes.items() if v is not None}
    said |= {"sampler": "ddim", "eta": 0.0, **({"clip": False} if exact else {})}
    preset = sampling.changed(found.model.sampling, said)
    plan = sampling.plan(found.model, preset)
    if exact:
        if len(plan.times) < 3:
            raise UsageError("--steps 1: an image is encoded over at least 2 steps")
        plan = sampling.Plan(plan.denoiser, plan.times[:-1], plan.solver, plan.nfe)
    facts = {
        "version": __version__,
        "model": found.name,
        "weights_sha256": found.weights,
        "sampling": preset.plain(),
        "steps": len(plan.times) - 1,
        "device": str(place).partition(":")[0],
    }
    engine.tune_cpu()
    found.model.denoiser.to(place)
    return Way(found, plan, facts, place)


def _rows(
    found: "Found", words: list[str] | None, most: int = 1000
) -> "list[tuple[str | None, Tensor | None]]":
    """Return name and condition, shape (1,), of each class that was named, or (None, None)."""
    import torch

    from fewstep.cli.told import class_indices

    if words and not found.model.classes:
        raise UsageError(f"--label {words[0]}: {found.name} has no classes; leave it out")
    indices = class_indices(found.model, words)
    if indices is None:
        return [(None, None)]
    if len(indices) > most:
        raise UsageError(f"--label {','.join(words or ())}: give one class")
    return [(found.model.classes[k], torch.tensor([k])) for k in indices]


def _seed(word: str) -> int | None:
    """Return a seed, or None where the word is a file."""
    number = word.strip()
    return options.seed(number) if number.lstrip("-").isdecimal() else None


def _end(
    way: Way, word: str, seed: int | None, row: "tuple[str | None, Tensor | None]"
) -> "Tensor":
    """Return the noise at one end of the walk, shape (C, H, W)."""
    import torch

    from fewstep.solvers import PerImage

    if seed is None:
        return _round_trip(way, _read(way.found, Path(word), way), row)[0].x[0]
    start = PerImage([seed])(torch.empty(1, *way.found.model.shape, device=way.place))
    return start[0] * way.plan.denoiser.process.prior_std(float(way.plan.times[0]))


def _read(found: "Found", path: Path, way: Way) -> "Tensor":
    """Return an image, shape (1, C, H, W), in [-1, 1]."""
    from fewstep.cli.told import read_image

    return read_image(path, *found.model.shape).to(way.place)


def _round_trip(
    way: Way, x: "Tensor", row: "tuple[str | None, Tensor | None]"
) -> "tuple[Code, Tensor]":
    """Return the code of an image and what it decodes to; warn where they do not fit."""
    from fewstep.edit import decode, encode

    code = encode(way.plan.denoiser, x, way.plan.times, row[1])
    if not code.x.isfinite().all():
        raise NumericError("the noise of this image is not finite; give more --steps")
    if float(code.residual.max()) > _SEEN:
        console.warn(
            f"not every step could be inverted (off by {float(code.residual.max()):.2g}); give "
            "more --steps"
        )
    return code, decode(way.plan.denoiser, code.x, way.plan.times, row[1])


def _free(stem: str) -> Path:
    """Return a file name that is not taken."""
    path, k = Path(f"{stem}.png"), 2
    while path.exists():
        path, k = Path(f"{stem}-{k}.png"), k + 1
    return path


def _save(x: "Tensor", columns: int, file: Path, scale: int | None, facts: dict[str, Any]) -> None:
    """Write images in rows."""
    from fewstep import sampling

    if not x.isfinite().all():
        raise NumericError("the images are not finite; nothing was written")
    pixels = sampling.to_uint8(x).cpu().numpy()
    factor = scale or picture.factor(*pixels.shape[2:])
    layout = {"columns": columns, "scale": factor, "gap": picture.between(factor, len(pixels))}
    picture.save(picture.grid(pixels, columns, factor), file, {**facts, "grid": layout})
