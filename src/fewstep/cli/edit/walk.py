"""An image into noise and back, and the walk between two images.

DDIM without fresh noise makes the same image of the same noise and can be inverted step by step
(`edit.encode`). The image is put down at the first noisy time of the grid and decoding ends
there: the last step, to clean data, cannot be inverted. An image is encoded and decoded without
guidance and without clipping, under which the round trip would not close.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import console, guidance, made, options
from fewstep.cli.edit import way
from fewstep.cli.edit.way import OUT, Row, Way
from fewstep.errors import NumericError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.cli.resolve import Found
    from fewstep.edit import Code

_SEEN = 1e-3  # an error of this size, an eighth of a grey level, is told


def encode(  # budget: table
    model: Annotated[str, options.MODEL],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="stretched to the model's size")],
    label: Annotated[
        str | None, typer.Option("--label", "-l", metavar="NAME", help="the class of the image")
    ] = None,
    steps: Annotated[int | None, options.STEPS] = None,
    spacing: Annotated[str | None, options.SPACING] = None,
    out: Annotated[str | None, OUT] = None,
    scale: Annotated[int | None, options.SCALE] = None,
    device: Annotated[str, options.DEVICE] = "auto",
    form: Annotated[str, options.FORMAT] = "human",
) -> None:
    """Encode an image into the noise that DDIM makes it from, and decode it again.

    The PNG shows the image, the decoded one and their difference (grey where they are equal).
    The last step of the grid, to clean data, cannot be inverted and is left out: with it, as in
    fewstep sample, the noise ends a little elsewhere (at 20 steps, by 3 grey levels on average).
    """
    import torch

    found, target = way.begin(model, out, [image])
    how = _way(found, {"steps": steps, "spacing": spacing}, device, exact=True)
    row, *more = way.rows(found, None if label is None else [label])
    if more:
        raise UsageError(f"--label {label}: give one class")
    x = _read(how, image)
    code, back = _round_trip(how, x, row)
    error = back - x
    told = {
        "label": row[0],
        "mse": float(error.square().mean()),
        "largest_error": float(error.abs().max()),
        "residual": float(code.residual.max()),
        "evaluations": code.iterations,
        "code_std": float(code.x.std(correction=0)),
    }
    file = target or made.free(f"{found.name}-encode-{image.stem}")
    facts = {**how.facts, "image": image.name, **told}
    way.save(torch.cat([x, back, error]), 3, file, scale, facts)
    if form == "json":
        print(json.dumps({**facts, "file": str(file)}))
        return
    walked = console.count(how.facts["steps"], "step")
    console.result(
        f"{file}: {walked}, {code.iterations} network evaluations; round trip: mean squared error "
        f"{told['mse']:.2g}, largest error {told['largest_error']:.2g} (a grey level is "
        f"{1 / 127.5:.2g}); noise of standard deviation {told['code_std']:.2f}"
    )


def interpolate(  # budget: table
    model: Annotated[str, options.MODEL],
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
    steps: Annotated[int | None, options.STEPS] = None,
    spacing: Annotated[str | None, options.SPACING] = None,
    out: Annotated[str | None, OUT] = None,
    scale: Annotated[int | None, options.SCALE] = None,
    device: Annotated[str, options.DEVICE] = "auto",
    form: Annotated[str, options.FORMAT] = "human",
) -> None:
    """Walk between the noises of two images, along the great circle.

    From seed to seed, the ends are the images of fewstep sample --sampler ddim --eta 0 with the
    same settings. With an image at either end, the last step of the grid, to clean data, is left
    out, as in encode.
    """
    import torch

    from fewstep.edit import decode, frames

    seeds = {word: _seed(word) for word in (a, b)}
    files = [Path(word) for word, seed in seeds.items() if seed is None]
    found, target = way.begin(model, out, files)
    exact = bool(files)
    if exact and guidance_scale not in (None, 1):
        raise UsageError(
            f"--guidance-scale {guidance_scale:g}: an image is encoded without guidance; leave "
            "it out, or give two seeds"
        )
    changes = {
        "steps": steps,
        "spacing": spacing,
        "guidance_scale": way.scale_of(found, label, guidance_scale),
    }
    how = _way(found, changes, device, exact=exact)
    rows = way.rows(found, label)
    ends = {w: _read(how, Path(w)) if seed is None else seed for w, seed in seeds.items()}
    done: list[Tensor] = []
    for row in rows:
        first, last = (_end(how, ends[word], row) for word in (a, b))
        for some in frames(first, last, number).split(made.at_once(found.model.shape)):
            cond = None if row[1] is None else row[1].expand(len(some))
            p = how.plan
            done.append(decode(p.denoiser, some, p.times, cond, p.solver))
    x = torch.cat(done)
    names = [row[0] for row in rows]
    file = target or made.free(f"{found.name}-interpolate-{Path(a).stem}-{Path(b).stem}")
    between = [Path(word).name for word in (a, b)]
    facts = {**how.facts, "between": between, "labels": names}
    way.save(x, number, file, scale, facts)
    if form == "json":
        print(json.dumps({**facts, "file": str(file)}))
        return
    console.result(
        f"{file}: {len(names)} x {number} images between {between[0]} and {between[1]}, "
        f"{how.facts['sampling']['sampler']} {console.count(how.facts['steps'], 'step')}, "
        f"{guidance.shown(how.facts)}"
    )


def _way(found: "Found", changes: dict[str, Any], device: str, *, exact: bool) -> Way:
    """Return deterministic DDIM, or a consistency model's step; exact = for images to be encoded.

    Raises:
        UsageError: a student that is to encode an image, or a consistency model that is to take
            further steps, each of which would draw noise.
    """
    if way.consistent(found):
        if exact:
            raise UsageError(
                f"{found.name}: a consistency model says the image of a noise, not the noise of "
                "an image; give a diffusion model, or walk between two seeds"
            )
        if changes["steps"] not in (None, 1):
            raise UsageError(
                f"--steps {changes['steps']}: between noises a consistency model takes 1 step, as "
                "further ones draw noise; leave it out"
            )
        return way.plan(found, {**changes, "steps": 1}, device)
    if exact and found.model.student.get("kind") == "progressive":
        from fewstep.cli.resolve import teacher

        raise UsageError(
            f"{found.name}: a progressive student, whose few steps follow no ODE back from an "
            f"image; give its teacher, {teacher(found)}, or walk between two seeds"
        )
    fixed = {"eta": 0.0, **({"clip": False, "guidance_scale": 1.0} if exact else {})}
    how = way.plan(found, changes | fixed, device)
    if not exact:
        return how
    times = how.plan.times[:-1]
    if len(times) < 2:
        raise UsageError("--steps 1: an image is encoded over at least 2 steps")
    facts = {**how.facts, "steps": len(times) - 1}
    return replace(how, plan=replace(how.plan, times=times), facts=facts)


def _seed(word: str) -> int | None:
    """Return a seed, or None where the word is a file."""
    number = word.strip()
    return options.seed(number) if number.lstrip("-").isdecimal() else None


def _end(how: Way, end: "int | Tensor", row: Row) -> "Tensor":
    """Return the noise at one end of the walk, a seed or an image, shape (C, H, W)."""
    import torch

    from fewstep.solvers import PerImage

    if not isinstance(end, int):
        return _round_trip(how, end, row)[0].x[0]
    start = PerImage([end])(torch.empty(1, *how.found.model.shape, device=how.place))
    return start[0] * how.plan.denoiser.process.prior_std(float(how.plan.times[0]))


def _read(how: Way, path: Path) -> "Tensor":
    """Return an image, shape (1, C, H, W), in [-1, 1]."""
    from fewstep.cli.told import read_image

    return read_image(path, *how.found.model.shape).to(how.place)


def _round_trip(how: Way, x: "Tensor", row: Row) -> "tuple[Code, Tensor]":
    """Return the code of an image and what it decodes to; warn where they do not fit."""
    from fewstep.edit import decode, encode

    code = encode(how.plan.denoiser, x, how.plan.times, row[1])
    if not code.x.isfinite().all():
        raise NumericError("the noise of this image is not finite; give more --steps")
    if float(code.residual.max()) > _SEEN:
        console.warn(
            f"not every step could be inverted (off by {float(code.residual.max()):.2g}); give "
            "more --steps"
        )
    return code, decode(how.plan.denoiser, code.x, how.plan.times, row[1])
