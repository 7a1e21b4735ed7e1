"""`fewstep sample`: images from a model, and where each of them comes from.

A model knows how it wants to be sampled; options change that. Every image has its own seed
(seed + its number), so image 37 of a run can be made again alone; seeds, labels and all settings
lie in the metadata of the PNG. The same command gives the same file, byte for byte.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import console, explained, guidance, made, options
from fewstep.cli.console import count
from fewstep.cli.told import Said, tell
from fewstep.errors import NumericError, UsageError
from fewstep.report import picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fewstep.cli.resolve import Found
    from fewstep.cli.told import Told
    from fewstep.conditions import Cond
    from fewstep.model import Model, Sampling
    from fewstep.steer import Steer, Weak

app = options.app()

_N = options.whole(1, 100_000)


@dataclass(frozen=True)
class Wish:
    """What to make.

    Attributes:
        cond: the condition of all images.
        names: class or text of every image, or None.
        seeds: seed of every image.
        columns: images in a row of the grid.
        scale: whole factor of enlargement, None = by size.
    """

    cond: "Cond"
    names: list[str | None]
    seeds: list[int]
    columns: int
    scale: int | None


@app.command()
def sample(  # budget: table
    model: Annotated[str, options.MODEL],
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="NAMES", help="classes: 7, or 3,7, or all"),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--number",
            parser=_N,
            metavar="N",
            help="images per label, text or image; 16, or 1 of an image",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="for a model that reads text; again for more texts"),
    ] = None,
    low_res: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="for an upsampler: a small image or a folder of them"),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="for inpainting: the image")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="white where the image is painted anew")
    ] = None,
    guidance_scale: Annotated[float | None, guidance.SCALE] = None,
    guidance_w: Annotated[float | None, guidance.W] = None,
    guidance_interval: Annotated[str | None, guidance.INTERVAL] = None,
    guidance_rescale: Annotated[str | None, guidance.RESCALE] = None,
    apg: Annotated[str | None, guidance.APG] = None,
    apg_momentum: Annotated[str | None, guidance.MOMENTUM] = None,
    threshold: Annotated[str | None, guidance.THRESHOLD] = None,
    classifier: Annotated[str | None, guidance.CLASSIFIER] = None,
    classifier_scale: Annotated[float | None, guidance.CLASSIFIER_SCALE] = None,
    weak: Annotated[str | None, guidance.WEAK] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=options.steps,
            metavar="N",
            help="sampling steps; alone, they choose sampler and spacing: those of fewstep tune, "
            "else those measured best",
        ),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help="ddim, ddpm, ddpm-large, heun, dpmpp, ...")
    ] = None,
    eta: Annotated[float | None, options.ETA] = None,
    each: Annotated[
        int | None,
        typer.Option(
            parser=options.whole(1, 99_999), metavar="N", help="Langevin steps at a noise level; 5"
        ),
    ] = None,
    snr: Annotated[
        float | None,
        typer.Option(
            parser=options.number(0, 1),
            metavar="R",
            help="size of Langevin steps: sqrt(epsilon / 2) / (least noise) of NCSNv2's epsilon; "
            "by default as that paper proposes",
        ),
    ] = None,
    spacing: Annotated[str | None, options.SPACING] = None,
    levels: Annotated[str | None, options.LEVELS] = None,
    seed: Annotated[int, options.SEED] = 0,
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="a .png for all images, or a folder/ or a pattern such as img-{i}.png for one "
            "file each; by default a new file beside you",
        ),
    ] = None,
    scale: Annotated[int | None, options.SCALE] = None,
    device: Annotated[str, options.DEVICE] = "auto",
    force: Annotated[
        bool,
        typer.Option("--force", help="sample a student in a way that it was not made for"),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="print the times and the cost; sample only if -o is given"),
    ] = False,
    form: Annotated[str, options.FORMAT] = "human",
) -> None:
    """Make images with a model.

    Without options, the model's own settings are used; images, seeds and settings are the same on
    every machine up to rounding.
    """
    from fewstep.cli.resolve import find
    from fewstep.train import engine

    guidance_scale = guidance.one_scale(guidance_scale, guidance_w)
    target = None if explain and out is None else _target(out)
    made.spare(target, [p for p in (low_res, image, mask) if p is not None])
    changes = {
        "sampler": sampler,
        "steps": steps,
        "spacing": spacing,
        "eta": eta,
        "levels": options.levels(levels),
        "guidance_scale": guidance_scale,
        "each": each,
        "snr": snr,
    }
    said = {
        "guidance-interval": guidance_interval,
        "guidance-rescale": guidance_rescale,
        "apg": apg,
        "apg-momentum": apg_momentum,
        "threshold": threshold,
    }
    place = engine.pick_device(device)
    found = find(model)
    if force:
        found = _freed(found)
    steer = guidance.steer(classifier, classifier_scale, weak, label)
    known = found.model if found.model.classes or steer is None else steer.model
    told = tell(found, known, Said(label, text, low_res, image, mask), number)
    asked = {k: v for k, v in changes.items() if v is not None} | guidance.dials(said)
    preset = _preset(found.model, asked, told.free, weak)
    wish = _wish(told, seed, scale)
    facts = _facts(found, preset, str(place), steer)
    if explain:
        explained.show(found, preset, facts, form, steer)
    if explain and out is None:
        return
    engine.tune_cpu()
    found.model.denoiser.to(place)
    if steer is not None:
        steer.model.denoiser.to(place)
    began = time.monotonic()
    pixels = _draw(found.model, preset, wish, steer)
    facts_made = {**facts, "seconds": round(time.monotonic() - began, 3)}
    files = _write(found, pixels, wish, target or _free(found, wish), facts)
    _report(files, wish, facts_made, form)


def _freed(found: "Found") -> "Found":
    """Return a student without the record that says how it must be sampled.

    Raises:
        UsageError: it is no student.
    """
    kind = found.model.student.get("kind")
    if kind is None:
        raise UsageError("--force: this model is no student, and goes without")
    console.warn(f"--force: a {kind} student is sampled in a way that it was not made for")
    # which guidance scales it was taught holds however it is sampled
    kept = {k: v for k, v in found.model.student.items() if k == "scales"}
    return replace(found, model=replace(found.model, student=kept))


def _target(out: str | None) -> Path | None:
    """Return where to write, checked before any work; None = a new file beside the user."""
    if out is None:
        return None
    if not out.strip():
        raise UsageError(f"-o {out!r}: must be a file that ends in .png, or a folder")
    path = Path(out).expanduser()
    if path.is_dir():
        return path
    if out.endswith(("/", "\\")):
        if path.exists():
            raise UsageError(f"-o {out}: a file, not a folder; choose a free name")
        picture.check_parent(path)
        return path
    if path.suffix.lower() != ".png":
        raise UsageError(f"-o {out}: must end in .png, or in / for a folder of single files")
    picture.check_parent(path)
    return path


def _preset(model: "Model", changes: dict[str, Any], free: bool, weak: str | None) -> "Sampling":
    """Return the model's settings with the user's changes."""
    from fewstep import sampling

    asked = changes.get("guidance_scale", 1.0)
    if weak is not None and changes.get("guidance_scale", model.sampling.guidance_scale) == 1:
        raise UsageError(f"--weak {weak}: not asked at guidance scale 1; give --guidance-scale 2")
    if free and (model.classes or model.text) and weak is None:
        if asked != 1:
            what = "label: give --label NAME" if model.classes else "text: give --text TEXT"
            raise UsageError(f"guidance scale {asked:g} without a {what}, or leave it out")
        guidance.refuse_idle(changes)
        changes = {**changes, "guidance_scale": 1.0}
    scale = changes.get("guidance_scale", model.sampling.guidance_scale)
    guided = guidance.on(model, scale, weak=weak is not None)
    chosen, why = sampling.for_steps(model, changes, guided=guided)
    if why:
        console.note(why)
    return sampling.changed(model.sampling, chosen)


def _wish(told: "Told", seed: int, scale: int | None) -> Wish:
    """Return what to make, with seeds and the shape of the grid."""
    from fewstep.solvers import image_seeds

    count = len(told.names)
    columns = told.each if count > told.each else max(1, round(count**0.5 + 0.49))
    return Wish(told.cond, told.names, image_seeds(seed, count), columns, scale)


def _facts(
    found: "Found", preset: "Sampling", device: str, steer: "Steer | Weak | None"
) -> dict[str, Any]:
    """Return the settings that go into the file; nothing in them changes from run to run."""
    from fewstep import __version__, sampling

    plan = sampling.plan(found.model, preset, steer)
    return {
        "version": __version__,
        "model": found.name,
        "weights_sha256": found.weights,
        "sampling": {**preset.plain(), "guidance_w": preset.guidance_scale - 1},
        "steps": len(plan.times) - 1,
        "nfe": plan.nfe,
        "device": device.partition(":")[0],
        **guidance.baked(found.model),
        **({} if steer is None else steer.describe()),
    }


def _draw(
    model: "Model", preset: "Sampling", wish: Wish, steer: "Steer | Weak | None"
) -> "NDArray[np.uint8]":
    """Return all images, uint8 (N, C, H, W), with a bar on a terminal."""
    import numpy as np

    from fewstep import conditions, sampling

    size = made.at_once(model.shape)
    done: list[NDArray[np.uint8]] = []
    starts = range(0, len(wish.seeds), size)
    with console.bar("sampling") as tick:
        for k, first in enumerate(starts):
            some = conditions.rows(wish.cond, slice(first, first + size))
            n, last = min(size, len(wish.seeds) - first), None
            try:
                for last in sampling.walk(model, preset, some, n, wish.seeds[first], steer):
                    tick(k * last.total + last.index + 1, len(starts) * last.total)
            except NumericError as error:
                raise NumericError(
                    f"images {first}..{first + n - 1}: {error}; nothing was written"
                ) from None
            assert last is not None
            done.append(sampling.to_uint8(last.x).cpu().numpy())
    return np.concatenate(done)


def _name(wish: Wish) -> str:
    """Return what the labels are called, for a file name."""
    said = [name for name in dict.fromkeys(wish.names) if name is not None]
    if not said:
        return "any"
    joined = said[0][:40] if len(said) == 1 else f"{len(said)}-labels"
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in joined)


def _free(found: "Found", wish: Wish) -> Path:
    """Return a file name that is not taken."""
    return made.free(f"{found.name}-{_name(wish)}-seed{wish.seeds[0]}")


def _write(
    found: "Found", pixels: "NDArray[np.uint8]", wish: Wish, target: Path, facts: dict[str, Any]
) -> list[Path]:
    """Write one grid, or one file per image; return the paths."""
    scale = wish.scale or picture.factor(*pixels.shape[2:])
    images = [{"seed": s, "label": name} for s, name in zip(wish.seeds, wish.names, strict=True)]
    single = target.suffix.lower() != ".png" or target.is_dir() or "{i}" in target.name
    if not single:
        layout = {
            "rows": -(-len(images) // wish.columns),
            "columns": wish.columns,
            "scale": scale,
            "gap": picture.between(scale, len(images)),
        }
        sheet = picture.grid(pixels, wish.columns, scale)
        picture.save(sheet, target, {**facts, "grid": layout, "images": images})
        return [target]
    folder, pattern = (target.parent, target.name) if "{i}" in target.name else (target, "")
    folder.mkdir(exist_ok=True)
    digits = len(str(len(images) - 1))
    files: list[Path] = []
    for i, image in enumerate(images):
        name = (
            pattern.replace("{i}", f"{i:0{digits}d}") or f"{i:0{digits}d}-seed{image['seed']}.png"
        )
        facts_one = {**facts, "grid": {"scale": scale}, "images": [image]}
        picture.save(picture.grid(pixels[i : i + 1], 1, scale), folder / name, facts_one)
        files.append(folder / name)
    return files


def _report(files: list[Path], wish: Wish, facts: dict[str, Any], form: str) -> None:
    """Print what was made."""
    if form == "json":
        print(json.dumps({**facts, "files": [str(f) for f in files], "seeds": wish.seeds}))
        return
    s, n = facts["sampling"], len(wish.seeds)
    where = str(files[0]) if len(files) == 1 else f"{files[0]} ... {files[-1].name}"
    print(
        f"{where}: {count(n, 'image')}, {s['sampler']} {count(facts['steps'], 'step')}, "
        f"{count(facts['nfe'], 'network evaluation')} each, {guidance.shown(facts)}"
        f"{guidance.stated(facts)}, seeds {wish.seeds[0]}..{wish.seeds[-1]}, "
        f"{facts['seconds']:.1f} s"
    )
