"""Images completed, coloured, enlarged and redrawn, with the model as it is.

What was measured of an image stays as it is: pixels, luminance or means of blocks
(`edit.complete`); a sketch stays as far as noise leaves it (`edit.stroke`). Result i has the seed
SEED + i. Beside the results a strip shows each image, what was kept of it, and what was made.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import guidance, options
from fewstep.cli.edit.task import Completion, Given, Redrawing, Task, run
from fewstep.cli.edit.way import OUT, Way
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

IMAGES = typer.Argument(metavar="IMAGE...", help="image files, fitted to the model's size")
LABEL = typer.Option(
    "--label", "-l", metavar="NAMES", help="class of the images: one for all, or one for each"
)
NUMBER = typer.Option("-n", "--number", parser=options.whole(1, 1000), help="results of an image")
REPEAT = typer.Option(
    parser=options.whole(1, 1000),
    metavar="R",
    help="walks of each part of the way: 10 fits better",
)
ETA = typer.Option(
    parser=options.number(), metavar="ETA", help="fresh noise of ddim: 0 none, 1 (default) as ddpm"
)
JUMP = typer.Option(
    parser=options.whole(1, 10_000), metavar="J", help="steps of a part of --repeat"
)


def inpaint(  # budget: table
    model: Annotated[str, options.MODEL],
    images: Annotated[list[Path], IMAGES],
    mask: Annotated[
        Path, typer.Option(metavar="FILE", help="white where the image is painted anew")
    ],
    label: Annotated[list[str] | None, LABEL] = None,
    number: Annotated[int, NUMBER] = 1,
    guidance_scale: Annotated[float | None, guidance.SCALE] = None,
    steps: Annotated[int | None, options.STEPS] = None,
    spacing: Annotated[str | None, options.SPACING] = None,
    eta: Annotated[float | None, ETA] = None,
    repeat: Annotated[int, REPEAT] = 1,
    jump: Annotated[int, JUMP] = 1,
    seed: Annotated[int, options.SEED] = 0,
    out: Annotated[str | None, OUT] = None,
    scale: Annotated[int | None, options.SCALE] = None,
    device: Annotated[str, options.DEVICE] = "auto",
    form: Annotated[str, options.FORMAT] = "human",
) -> None:
    """Paint the white part of a mask anew; the other pixels stay, to the last bit."""

    @cache
    def black(*size: int) -> "Tensor":
        from fewstep.cli.told import read_mask

        return read_mask(mask, *size)

    def given(how: Way, path: Path) -> Given:
        from fewstep.cli.told import read_image
        from fewstep.edit import Pixels

        image = read_image(path, *how.found.model.shape).to(how.place)
        known = Pixels(black(*how.found.model.shape[1:]).to(how.place))
        return Given([image, known(image)], image, known, {"mask": mask.name})

    changes = _changes(guidance_scale, steps, spacing, eta)
    task = Task(images, label, number, seed, changes, out, scale, device, form, mask)
    run("inpaint", model, task, given, Completion(repeat, jump))


def colorize(  # budget: table
    model: Annotated[str, options.MODEL],
    images: Annotated[list[Path], IMAGES],
    label: Annotated[list[str] | None, LABEL] = None,
    number: Annotated[int, NUMBER] = 1,
    guidance_scale: Annotated[float | None, guidance.SCALE] = None,
    steps: Annotated[int | None, options.STEPS] = None,
    spacing: Annotated[str | None, options.SPACING] = None,
    eta: Annotated[float | None, ETA] = None,
    repeat: Annotated[int, REPEAT] = 1,
    jump: Annotated[int, JUMP] = 1,
    seed: Annotated[int, options.SEED] = 0,
    out: Annotated[str | None, OUT] = None,
    scale: Annotated[int | None, options.SCALE] = None,
    device: Annotated[str, options.DEVICE] = "auto",
    form: Annotated[str, options.FORMAT] = "human",
) -> None:
    """Give a grey image colours; its luminance stays. Needs a model of RGB images."""

    def given(how: Way, path: Path) -> Given:
        from fewstep.cli.told import read_image
        from fewstep.edit import Luminance

        channels, *size = how.found.model.shape
        if channels != 3:
            raise UsageError(
                f"{how.found.name}: makes grey images, {channels} channel; colorize needs a model "
                "of RGB images, 3 channels"
            )
        grey = read_image(path, 1, *size).expand(-1, 3, -1, -1).to(how.place)
        colour = read_image(path, channels, *size, told=False).to(how.place)
        return Given([colour, grey], grey, Luminance())

    changes = _changes(guidance_scale, steps, spacing, eta)
    task = Task(images, label, number, seed, changes, out, scale, device, form)
    run("colorize", model, task, given, Completion(repeat, jump))


def superres(  # budget: table
    model: Annotated[str, options.MODEL],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="small images, a whole factor smaller")
    ],
    factor: Annotated[
        int | None,
        typer.Option(
            parser=options.whole(2, 1024),
            metavar="K",
            help="enlarge K times; other images are shrunk to fit",
        ),
    ] = None,
    label: Annotated[list[str] | None, LABEL] = None,
    number: Annotated[int, NUMBER] = 1,
    guidance_scale: Annotated[float | None, guidance.SCALE] = None,
    steps: Annotated[int | None, options.STEPS] = None,
    spacing: Annotated[str | None, options.SPACING] = None,
    eta: Annotated[float | None, ETA] = None,
    repeat: Annotated[int, REPEAT] = 1,
    jump: Annotated[int, JUMP] = 1,
    seed: Annotated[int, options.SEED] = 0,
    out: Annotated[str | None, OUT] = None,
    scale: Annotated[int | None, options.SCALE] = None,
    device: Annotated[str, options.DEVICE] = "auto",
    form: Annotated[str, options.FORMAT] = "human",
) -> None:
    """Enlarge a small image to the model's size; the mean of each block of pixels stays."""

    def given(how: Way, path: Path) -> Given:
        from fewstep.cli.told import read_image
        from fewstep.edit import BlockMeans, enlarged

        channels, height, width = how.found.model.shape
        times = _factor(path, height, width, factor)
        small = read_image(path, channels, height // times, width // times).to(how.place)
        smooth = read_image(path, channels, height, width, told=False).to(how.place)
        y = enlarged(small, times)
        return Given([smooth, y], y, BlockMeans(times), {"factor": times})

    changes = _changes(guidance_scale, steps, spacing, eta)
    task = Task(images, label, number, seed, changes, out, scale, device, form)
    run("superres", model, task, given, Completion(repeat, jump))


def stroke(  # budget: table
    model: Annotated[str, options.MODEL],
    images: Annotated[list[Path], IMAGES],
    strength: Annotated[
        float,
        typer.Option(
            parser=options.number(0, 1),
            metavar="S",
            help="share of noise: 0 returns the image, at 0.5 there is as much noise as image, 1 "
            "forgets it",
        ),
    ] = 0.5,
    label: Annotated[list[str] | None, LABEL] = None,
    number: Annotated[int, NUMBER] = 1,
    guidance_scale: Annotated[float | None, guidance.SCALE] = None,
    steps: Annotated[int | None, options.STEPS] = None,
    spacing: Annotated[str | None, options.SPACING] = None,
    eta: Annotated[float | None, ETA] = None,
    seed: Annotated[int, options.SEED] = 0,
    out: Annotated[str | None, OUT] = None,
    scale: Annotated[int | None, options.SCALE] = None,
    device: Annotated[str, options.DEVICE] = "auto",
    form: Annotated[str, options.FORMAT] = "human",
) -> None:
    """Make an image of a sketch, or a variation of an image: noise it, then denoise it."""

    def given(how: Way, path: Path) -> Given:
        from fewstep.cli.told import read_image

        image = read_image(path, *how.found.model.shape).to(how.place)
        return Given([image], image)

    changes = _changes(guidance_scale, steps, spacing, eta)
    task = Task(images, label, number, seed, changes, out, scale, device, form)
    run("stroke", model, task, given, Redrawing(strength))


def _changes(
    guidance_scale: float | None, steps: int | None, spacing: str | None, eta: float | None
) -> dict[str, Any]:
    return {"guidance_scale": guidance_scale, "steps": steps, "spacing": spacing, "eta": eta}


def _factor(path: Path, height: int, width: int, said: int | None) -> int:
    """Return how many times an image is enlarged to the model's size."""
    from fewstep.cli.told import image_size

    good = [k for k in range(2, min(height, width) + 1) if height % k == width % k == 0]
    allowed = ", ".join(map(str, good))
    if said is not None:
        if said not in good:
            raise UsageError(
                f"--factor {said}: the model makes {width}x{height}; allowed are {allowed}"
            )
        return said
    wide, high = image_size(path)
    for k in good:
        if (high * k, wide * k) == (height, width):
            return k
    raise UsageError(
        f"{path}: {wide}x{high} is no whole part of the model's {width}x{height}; give --factor "
        f"({allowed}) to shrink it first"
    )
