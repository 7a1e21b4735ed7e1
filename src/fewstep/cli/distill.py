"""`fewstep distill`: from a model of many steps to a student of few, and what it costs.

A budget of time becomes a plan, the plan stages, each stage a student that is held against its
teacher from the same noise and, by the judge of this data, against the first teacher at as many
network evaluations. The folder alone continues the work.
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import climb, judged, options
from fewstep.cli.console import note, result
from fewstep.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.data import Images
    from fewstep.report.judge import Reals
    from fewstep.students import Asked, Stage, Work

app = options.app()

BUDGET = 600.0
_NUMBER = 1000  # images that the table is measured on, unless said


@app.command()
def distill(  # budget: table
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="the teacher: a shipped model (digits), a run or model folder; or the folder of "
            "a distillation, to go on with it",
        ),
    ],
    to: Annotated[
        int | None,
        typer.Option(
            "--to", parser=options.whole(1, 64), metavar="N", help="sampling steps of the student"
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="progressive, consistency (as ect), consistency-distillation, "
            "consistency-training, ict; auto: consistency for 1 and 2 steps, else progressive",
        ),
    ] = None,
    budget: Annotated[
        float,
        typer.Option(
            parser=options.duration, metavar="TIME", help="of training: 90s, 10m, 2h; 10m"
        ),
    ] = BUDGET,
    images: Annotated[
        int | None,
        typer.Option(
            parser=options.whole(1, 10**10),
            metavar="N",
            help="to train on in all, in place of --budget: the same plan on every machine",
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            parser=options.number(),
            metavar="S",
            help="of the teacher, that goes into the student; by default the model's own",
        ),
    ] = None,
    guidance_range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW..HIGH",
            help="one student for all these scales, each in a single pass: 1..4; of progressive",
        ),
    ] = None,
    start: Annotated[
        int | None,
        typer.Option(
            parser=options.whole(2, 4096),
            metavar="N",
            help="steps of the first teacher of progressive; by default 32, less for less time",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="images to train on; by default the teacher's own"),
    ] = None,
    number: Annotated[int | None, judged.NUMBER] = None,
    seed: Annotated[int, judged.SEED] = 0,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="where stages and student go"),
    ] = None,
    device: Annotated[str, options.DEVICE] = "auto",
) -> None:
    """Make a student of few steps, and show what it costs against its teacher.

    The same command on the same folder continues it; so does fewstep distill FOLDER. Ctrl-C saves
    and stops.
    """
    judged.needs("torch_fidelity", "matplotlib")
    told = _range(guidance_range)
    wish = _Wish(
        to, method, budget, images, guidance_scale, told, start, data, number, seed, device
    )
    folder, wish, model = _again(model, wish, out)
    found, reals = _opened(model, wish)
    work = _work(found, reals, wish, folder)
    _announce(work, wish)
    climb.make(work, found, reals, wish.number or _NUMBER)


@dataclasses.dataclass(frozen=True)
class _Wish:
    """What was asked for on the command line."""

    to: int | None
    method: str | None
    budget: float
    images: int | None
    guidance: float | None
    scales: tuple[float, float] | None
    start: int | None
    data: str | None
    number: int | None
    seed: int
    device: str

    @property
    def kept(self) -> dict[str, Any]:
        """What a continued distillation needs that its plan does not say."""
        return {"data": self.data, "number": self.number, "device": self.device}


def _again(word: str, wish: _Wish, out: Path | None) -> tuple[Path | None, _Wish, str]:
    """Return folder, wish and teacher; from the folder of a distillation, as it was begun."""
    from fewstep.students import run

    folder = Path(word).expanduser()
    said = run.planned(folder) if folder.is_dir() else None
    if said is None:
        if wish.to is None:
            raise UsageError("--to is missing: give the sampling steps of the student, --to 4")
        return out, dataclasses.replace(wish, method=wish.method or "auto"), word
    if out is not None or wish.to is not None or wish.method is not None:
        raise UsageError(
            f"{word}: a distillation that has begun, which goes on as it is; leave --to, --method "
            "and -o out, or give the teacher's folder"
        )
    asked, kept = said["asked"], said["kept"]
    before = dataclasses.replace(
        wish, to=asked["to"], method=asked["method"], scales=asked["scales"], seed=asked["seed"],
        guidance=asked["guidance"] if asked["scales"] is None else None,
        data=wish.data or kept["data"], number=wish.number or kept["number"],
    )  # fmt: skip
    if not Path(asked["model"]).exists() and "/" in asked["model"]:
        raise CheckpointError(
            f"{folder}: its teacher {asked['model']} is gone; put it back there: the stages "
            "that are left need it"
        )
    return folder, before, asked["model"]


def _opened(word: str, wish: _Wish) -> "tuple[Found, Reals]":
    """Return the teacher and its images; refuse what cannot be distilled."""
    from fewstep.cli.resolve import find
    from fewstep.data import check_classes

    found = find(word)
    judged.untold(found)
    if found.model.student:
        kind = found.model.student.get("kind", "")
        raise UsageError(
            f"{word}: a {kind} student already; give its teacher, "
            f"{found.model.student.get('teacher', 'the model it was made of')}"
        )
    reals = judged.reals(wish.data, found)
    if reals.train.shape != found.model.shape:
        raise UsageError(
            f"--data: images of {_size(reals.train.shape)}, the teacher makes "
            f"{_size(found.model.shape)}; give images of its size"
        )
    check_classes(found.model.classes, reals.train.classes, reals.name)
    return found, reals


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _work(found: "Found", reals: "Reals", wish: _Wish, folder: Path | None) -> "Work":
    """Return the plan: of the folder if it holds one, else for the budget."""
    from fewstep.students import run
    from fewstep.students.plan import method
    from fewstep.train import engine

    assert wish.to is not None
    way = method(wish.method or "auto", wish.to)
    if way != "progressive" and wish.start is not None:
        raise UsageError(f"--start {wish.start}: of progressive distillation, not of {way}")
    scale = _scale(found, way, wish)
    prints = reals.train.fingerprint
    asked = run.Asked(
        _word(found), found.weights, scale, way, wish.to, wish.seed, prints, wish.scales
    )
    out = (folder or _default(found, asked)).expanduser()
    place = engine.pick_device(wish.device)
    engine.tune_cpu()
    found.model.denoiser.to(place)
    said = run.planned(out)
    if said is not None:
        stages = run.same(said, asked, out)
        return run.Work(asked, found.model, reals.train, stages, out, wish.device)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"-o {out}: holds something else; choose a free name")
    stages = _plan(found, reals.train, asked, wish)
    work = run.Work(asked, found.model, reals.train, stages, out, wish.device)
    run.record(work, {"kept": wish.kept, "budget": wish.budget, "images": wish.images})
    return work


def _range(word: str | None) -> tuple[float, float] | None:
    """Return the scales that --guidance-range says.

    Raises:
        UsageError: they are no range.
    """
    if word is None:
        return None
    low, sign, high = word.partition("..")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = (math.nan, math.nan)
    if not (sign and math.isfinite(sum(ends)) and ends[0] < ends[1]):
        raise UsageError(
            f"--guidance-range {word}: must be LOW..HIGH with LOW < HIGH, such as 1..4"
        )
    return ends


def _scale(found: "Found", way: str, wish: _Wish) -> float:
    """Return the guidance that goes into the student, or what its preset is told.

    Raises:
        UsageError: it is asked of a method that has no teacher to guide.
    """
    from fewstep.students.plan import PROGRESSIVE, TAUGHT

    asked = wish.guidance
    own = found.model.sampling.guidance_scale if asked is None else asked
    if wish.scales is not None:
        low, high = wish.scales
        if way != PROGRESSIVE:
            raise UsageError(f"--guidance-range {low:g}..{high:g}: of progressive, not of {way}")
        if asked is not None:
            raise UsageError("--guidance-scale and --guidance-range: give one of them")
        return min(max(own, low), high)
    if way in TAUGHT or own == 1:
        return own
    if asked is not None:
        raise UsageError(
            f"--guidance-scale {asked:g}: {way} learns from the images, which have no guidance; "
            f"leave it out, or take --method {' or '.join(TAUGHT)}"
        )
    note(f"{way} learns from the images: without the guidance scale {own:g} of {found.name}")
    return 1.0


def _word(found: "Found") -> str:
    """Return the word that finds a model again."""
    from fewstep.cli.resolve import SHIPPED

    return found.name if found.path.parent == SHIPPED else str(found.path.absolute())


def _default(found: "Found", asked: "Asked") -> Path:
    """Return the folder of a distillation that was given none."""
    kind = (
        asked.method
        if asked.method == "progressive"
        else asked.method.replace("ect", "consistency")
    )
    name = f"{kind}-{asked.to}" + ("" if asked.guidance == 1 else f"-s{asked.guidance:g}")
    if found.path.parent.name == "checkpoints":
        return found.path.parent.parent / "students" / name
    return Path("runs") / f"{found.name}-{name}"


def _plan(found: "Found", images: "Images", asked: "Asked", wish: _Wish) -> "tuple[Stage, ...]":
    """Return stages for the budget, at the speed that is measured here.

    Raises:
        UsageError: the budget is too small; says what would be enough.
    """
    from fewstep import students
    from fewstep.train import engine
    from fewstep.train.log import clock

    if wish.images is None:
        place = engine.pick_device(wish.device)
        with engine.memory("a batch of 64 images is too large for this machine"):
            per_image = students.pace(found.model, asked.guidance, images, asked.method, place)
        count = wish.budget / per_image
        note(f"speed of {asked.method} here: {1 / per_image:,.0f} images/s")
    else:
        count = float(wish.images)
    try:
        if asked.method == "progressive":
            guided = asked.scales is not None
            return students.ladder(asked.to, count, wish.start, guided=guided)
        return students.single(asked.method, asked.to, count)
    except students.TooSmall as e:
        more = ", or give a smaller --start" if wish.start else ""
        if wish.images is not None:
            least = math.ceil(wish.images / e.share)
            raise UsageError(
                f"--images {wish.images}: too few for one stage; at least {least} would be "
                f"enough{more}"
            ) from None
        raise UsageError(
            f"--budget {clock(wish.budget)}: too short for one stage, {count:,.0f} images at the "
            f"speed of this machine; {clock(1.1 * wish.budget / e.share)} would be enough{more}"
        ) from None


def _announce(work: "Work", wish: _Wish) -> None:
    """Print where the work lies and what it will do."""
    from fewstep.cli import record

    record.json_file(work.out / "environment.json", record.environment(wish.device))
    result(f"distillation: {work.out}")
    asked = work.asked
    low, high = asked.scales or (asked.guidance, asked.guidance)
    scales = f"scale {low:g}" if low == high else f"scales {low:g} to {high:g}"
    note(f"teacher: {asked.model}, guidance {scales}; method {asked.method}")
    note("copy error: of pixels in [-1, 1], against the teacher in twice the steps, or a fine one")
    for i, stage in enumerate(work.stages):
        first = f"{2 * stage.steps} -> " if stage.method == "progressive" else ""
        if stage.method == "guided":
            first = "told its guidance, "
        note(
            f"  stage {i + 1}: {first}{stage.steps} steps, {stage.updates} updates of "
            f"{stage.batch_size} images"
        )
