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

from fewstep.cli import climb, judged, meter, options, wished
from fewstep.cli.console import count, note, result
from fewstep.cli.wished import PLANNED, Wish
from fewstep.errors import CheckpointError, DataError, UsageError

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.report.judge import Reals
    from fewstep.students import Work

app = options.app()

_BEGUN = ("to", "method", "guidance_scale", "guidance_range", "seed", "out", *PLANNED)


@app.command()
def distill(  # budget: table
    context: typer.Context,
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
            "--to", parser=options.whole(1, 32), metavar="N", help="sampling steps of the student"
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="progressive, consistency (-distillation), consistency-training, ict, ect; auto: "
            "progressive for 1, 2, 4, ..., 32, else consistency (3, 5, 6, 7)",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            parser=options.duration,
            metavar="TIME",
            help="of training: 90s, 2h, or minutes; by default 10m",
        ),
    ] = None,
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
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--number",
            parser=options.whole(1, 10_000_000),
            metavar="N",
            help="images of each row of the table at the end; by default 1000",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(parser=options.seed, metavar="SEED", help="of all random numbers")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FOLDER",
            help="where stages and student go; by default students/METHOD-N-sS in the teacher's "
            "run (S its guidance), or runs/MODEL-METHOD-N-sS",
        ),
    ] = None,
    device: Annotated[str, options.DEVICE] = "auto",
) -> None:
    """Make a student of few steps, and show what it costs against its teacher.

    The same command on the same folder continues it; so does fewstep distill FOLDER. Ctrl-C saves
    and stops.
    """
    judged.needs("torch_fidelity", "matplotlib")
    from fewstep.train import engine

    told = wished.scales(guidance_range)
    wish = Wish(
        to, method, budget, images, guidance_scale, told, start, data, number, seed, device
    )
    if budget is not None and images is not None:
        raise UsageError("--budget and --images: give one of them")
    said = [name for name in context.params if options.said(context, name)]
    folder, wish, model = _again(model, wish, out, said)
    judged.rules(climb.RULES, wish.number, None, "fp32")  # refuses a number too small to judge
    with meter.leaving():
        found, reals = _opened(model, wish)
        work = _work(found, reals, wish, folder)
        with engine.locked(work.out, "-o"):
            _announce(work, wished.kept(found, wish))
            climb.make(work, found, reals, wish.number or wished.NUMBER)


def _again(
    word: str, wish: Wish, out: Path | None, given: list[str]
) -> tuple[Path | None, Wish, str]:
    """Return folder, wish and teacher; from the folder of a distillation, as it was begun.

    Args:
        word: the argument: a teacher, or such a folder.
        wish: the options.
        out: the folder of -o.
        given: names of the options that were given.

    Raises:
        UsageError: no --to; options that a distillation which goes on does not have.
        CheckpointError: its teacher is gone.
    """
    from fewstep.students import run

    folder = Path(word).expanduser()
    said = run.planned(folder) if folder.is_dir() else None
    if said is None:
        if wish.to is None:
            raise UsageError("--to is missing: give the sampling steps of the student, --to 4")
        way = "auto" if wish.method is None else wish.method
        return out, dataclasses.replace(wish, method=way), word
    idle = [f"--{name.replace('_', '-')}" for name in _BEGUN if name in given]
    if idle:
        raise UsageError(
            f"{' and '.join(idle)}: {word} holds a distillation that has begun, which goes on as "
            "it is; leave this out, or give the teacher in place of the folder"
        )
    asked, kept = said["asked"], said.get("kept", {})
    before = dataclasses.replace(
        wish, to=asked["to"], method=asked["method"], scales=asked["scales"], seed=asked["seed"],
        guidance=asked["guidance"] if asked["scales"] is None else None,
        data=kept.get("data") if wish.data is None else wish.data,
        number=wish.number or kept.get("number"),
        device=wish.device if "device" in given else kept.get("device", "auto"),
    )  # fmt: skip
    if not Path(asked["model"]).exists() and "/" in asked["model"]:
        raise CheckpointError(
            f"{folder}: its teacher {asked['model']} is gone; put it back there, or say where it "
            f"is now, in place of TEACHER: {wished.elsewhere(said, folder)}"
        )
    return folder, before, asked["model"]


def _opened(word: str, wish: Wish) -> "tuple[Found, Reals]":
    """Return the teacher and its images; refuse what cannot be distilled."""
    from fewstep.cli.resolve import find, teacher
    from fewstep.data import check_classes
    from fewstep.metrics.moments import WIDEST

    found = find(word)
    judged.untold(found)
    if found.model.student:
        kind = found.model.student.get("kind", "")
        raise UsageError(f"{word}: a {kind} student already; give its teacher, {teacher(found)}")
    reals = judged.reals(wish.data, found)
    if reals.train.shape != found.model.shape:
        given = f"--data {wish.data}" if wish.data else f"its images {reals.name}"
        raise DataError(
            f"{word}: makes images of {_size(found.model.shape)} (channels x height x width), "
            f"{given} are {_size(reals.train.shape)}; give images of its size"
        )
    if not reals.classes and math.prod(reals.train.shape) > WIDEST:
        raise UsageError(
            f"{word}: images of {_size(reals.train.shape)} without classes: too many pixels to "
            "judge a student by, and no classes to train a judge on"
        )
    check_classes(found.model.classes, reals.train.classes, reals.name)
    reals.check(found.model.shape, found.model.classes, found.name)
    return found, reals


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _work(found: "Found", reals: "Reals", wish: Wish, folder: Path | None) -> "Work":
    """Return the plan: of the folder if it holds one, else for the budget."""
    from fewstep.students import Pace, make, run
    from fewstep.students.plan import method
    from fewstep.train import engine

    assert wish.to is not None
    assert wish.method is not None
    way = method(wish.method, wish.to)
    if way != "progressive" and wish.start is not None:
        raise UsageError(f"--start {wish.start}: of progressive distillation, not of {way}")
    scale = wished.guidance(found, way, wish)
    prints = reals.train.fingerprint
    asked = run.Asked(
        wished.word_of(found), found.weights, scale, way, wish.to, wish.seed, prints, wish.scales,
        found.name,
    )  # fmt: skip
    out = judged.folder(folder or wished.default(found, asked), wish.data or judged.own(found)[0])
    ground = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not ground.is_dir():
        raise UsageError(f"-o {out}: {ground} is a file, not a folder; choose another place")
    place = engine.pick_device(wish.device)
    said = run.planned(out)
    wished.gone_on(said, out)
    if said is None and _foreign(out):
        raise UsageError(f"-o {out}: holds something else; choose a free name")
    make.check(found.model, way, scale, wish.scales)
    engine.tune_cpu()
    found.model.denoiser.to(place)
    work = run.Work(asked, found.model, reals.train, (), out, wish.device)
    if said is None:
        stages = wished.plan(work, wish)
    else:
        stages = Pace(work, 0.0).fitted(run.same(said, asked, out))
        other = [k for k, v in wish.planned.items() if v is not None and said.get(k) != v]
        if other:
            note(
                f"{' and '.join(f'--{k}' for k in other)}: not of use any more, {out} goes on by "
                "the plan that it was begun with"
            )
    return dataclasses.replace(work, stages=stages)


def _foreign(out: Path) -> bool:
    """Return whether a folder holds something, beside a lock."""
    return out.is_dir() and any(not each.name.startswith(".") for each in out.iterdir())


def _announce(work: "Work", facts: dict[str, Any]) -> None:
    """Write the plan down if it is new or was changed; print where the work lies, what it does."""
    from fewstep.cli import record
    from fewstep.students import run

    said, now = run.planned(work.out), run.plain(work)
    if said is None or {**said, **now} != said:  # new, in other pieces, or the teacher has moved
        run.record(work, facts if said is None else run.facts(said))
    record.json_file(work.out / "environment.json", record.environment(work.device))
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
            f"  stage {i + 1}: {first}{count(stage.steps, 'step')}, {stage.updates} updates of "
            f"{stage.batch_size} images"
        )
