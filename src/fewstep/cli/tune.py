"""`fewstep tune`: the sampler and the grid of few steps that suit a model best, kept in the model.

The model's own fine trajectories say where steps are needed (`fewstep.tune`). What is found goes
into model.json beside the weights, which stay byte by byte as they are; `fewstep sample MODEL
--steps N` takes it from there.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli import console, guidance, judged, options
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.model import Sampling
    from fewstep.tune import Course, Tried

app = options.app()

_SHOWN = 3


@app.command()
def tune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="a run folder or a model folder; or a shipped model (digits) with -o",
        ),
    ],
    steps: Annotated[str, typer.Option(metavar="N,...", help="numbers of steps: 5,10")],
    number: Annotated[
        int,
        typer.Option(
            "-n",
            "--number",
            parser=options.whole(4, 10_000),
            metavar="N",
            help="images that a grid is found on, and as many others that ways are tried on",
        ),
    ] = 32,
    guidance_scale: Annotated[
        float | None,
        typer.Option(parser=options.number(), metavar="S", help="by default the model's own"),
    ] = None,
    seed: Annotated[int, judged.SEED] = 0,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="a new model instead of this one"),
    ] = None,
    device: Annotated[str, options.DEVICE] = "auto",
) -> None:
    """Find sampler and noise levels for few steps, and keep them as the model's presets.

    Errors are those of the finished images against the same seeds in many steps, in pixel values
    of [-1, 1]. Interrupted, what was found stays: each number of steps is saved at once.
    """
    from fewstep import sampling
    from fewstep.cli.resolve import find
    from fewstep.train import checkpoint, engine
    from fewstep.tune import Course

    counts = _counts(steps)
    place = engine.pick_device(device)
    found = find(model)
    judged.untold(found)
    _refuse_student(found)
    target = _target(found, out)
    changes = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    preset = sampling.changed(found.model.sampling, changes)
    engine.tune_cpu()
    found.model.denoiser.to(place)
    with console.bar("the model's own trajectories") as tick:
        course = Course.of(found.model, preset, number, seed, tick)
    source = target if (target / checkpoint.MODEL).is_file() else found.path
    for n in counts:
        with console.bar(f"{n} steps") as tick:
            tried = course.tried(n, tick)
        _show(course, n, tried)
        checkpoint.tuned(source, {n: tried[0].sampling}, target)
        source = target
    word = model if out is None else out
    console.result(f"saved in {target}")
    label = [f"--label={found.model.classes[0]}"] if found.model.classes else []
    more = ("--steps", str(counts[0]), *label, "-n", "16")
    console.result(f"next: {console.command('sample', word, *more)}")


def _refuse_student(found: "Found") -> None:
    """Refuse a student that has one way of sampling, which is not looked for.

    Raises:
        UsageError: it is one.
    """
    from fewstep.cli.resolve import teacher

    kind = found.model.student.get("kind")
    if kind in ("progressive", "consistency"):
        raise UsageError(
            f"{found.name}: a {kind} student, which is sampled in the way that it was made for: "
            f"there is nothing to tune; give its teacher, {teacher(found)}"
        )


def _counts(word: str) -> list[int]:
    """Return the numbers of steps that a word lists.

    Raises:
        UsageError: not such a list.
    """
    from fewstep.tune import NODES

    parts = [part.strip() for part in word.split(",")]
    counts = [int(p) if p.isdecimal() and len(p) < 6 else 0 for p in parts]
    if not all(1 <= n <= NODES for n in counts):
        raise UsageError(f"--steps {word}: must be whole numbers in 1..{NODES}, such as 5,10")
    return list(dict.fromkeys(counts))


def _target(found: "Found", out: str | None) -> Path:
    """Return where the model with its presets goes.

    Raises:
        UsageError: a shipped model without another place, or a place that is taken.
        CheckpointError: a damaged model there.
    """
    from fewstep.cli.resolve import SHIPPED
    from fewstep.train import checkpoint

    if out is None:
        if found.path.parent.resolve() == SHIPPED.resolve():
            raise UsageError(
                f"{found.name}: a shipped model is not changed; give -o FOLDER for a new one"
            )
        return found.path
    if not out.strip():
        raise UsageError(f"-o {out!r}: must be a folder; give a free name")
    place = Path(out).expanduser()
    ground = next(p for p in (place, *place.absolute().parents) if p.exists())
    if place.is_dir() and any(place.iterdir()):
        same = (place / checkpoint.MODEL).is_file() and (
            checkpoint.verify(place)["files"][checkpoint.WEIGHTS]["sha256"] == found.weights
        )
        if not same:
            raise UsageError(f"-o {out}: the folder holds something else; choose a free name")
    elif place.exists() and not place.is_dir():
        raise UsageError(f"-o {out}: a file; choose a free name")
    elif not ground.is_dir():
        raise UsageError(f"-o {out}: {ground} is a file, not a folder; choose another place")
    return place


def _show(course: "Course", n: int, tried: "list[Tried]") -> None:
    """Print the best ways, and what would be taken without them."""
    from dataclasses import replace

    from fewstep import sampling

    bare = replace(course.model, tuned={}, sampling=course.preset)
    guided = guidance.on(course.model, course.preset.guidance_scale)
    changes, _ = sampling.for_steps(bare, {"steps": n}, guided=guided)
    usual = sampling.changed(course.preset, changes)
    console.result(f"{n} steps: error, sampler, grid")
    for way, error in tried[:_SHOWN]:
        console.result(f"  {error:.4f}  {way.sampler:<8}  {_grid(way)}")
    console.result(f"  {course.error(usual):.4f}  {usual.sampler:<8}  {_grid(usual)} (untuned)")


def _grid(way: "Sampling") -> str:
    """Return a grid in words."""
    return way.spacing if way.levels is None else " ".join(f"{r:.3g}" for r in way.levels)
