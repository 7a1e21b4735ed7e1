"""`fewstep evaluate`: how good images are, under one stated protocol.

The images are those of a model, sampled in one way, or any that somebody else made: a folder of
PNG files, an npz file in the format of ADM's evaluation batches, an npy or a safetensors file. No
number comes without its interval, the same number of real images, and its protocol.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import bits, console, guidance, judged, meter, options
from fewstep.errors import DataError, UsageError

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.metrics import Figure
    from fewstep.report.judge import Protocol, Reals, Verdict
    from fewstep.report.results import Line
    from fewstep.report.work import Item, Work

app = options.app()

_REAL = options.number()


@app.command()
def evaluate(  # budget: table
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_IMAGES",
            help="a shipped model (digits), a run or model folder; or images made elsewhere: a "
            "folder, an npz, npy or safetensors file",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="real images: a folder, idx, parquet or npz files, or digits; by default those "
            "the model was trained on",
        ),
    ] = None,
    protocol: Annotated[str, judged.PROTOCOL] = "small-2k",
    number: Annotated[int | None, judged.NUMBER] = None,
    sampler: Annotated[str | None, typer.Option(metavar="NAME", help="ddim, dpmpp, ...")] = None,
    steps: Annotated[
        int | None,
        typer.Option(parser=options.steps, metavar="N", help="sampling steps"),
    ] = None,
    eta: Annotated[
        float | None, typer.Option(parser=_REAL, metavar="ETA", help="fresh noise of ddim")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(metavar="NAME", help="even, trailing, ...")
    ] = None,
    levels: Annotated[str | None, options.LEVELS] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(parser=_REAL, metavar="S", help="1 = plain conditional")
    ] = None,
    seed: Annotated[int, judged.SEED] = 0,
    shard: Annotated[str | None, judged.SHARD] = None,
    merge: Annotated[bool, judged.MERGE] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="where images and figures are kept"),
    ] = None,
    inception: Annotated[Path | None, judged.INCEPTION] = None,
    precision: Annotated[str, judged.PRECISION] = "fp32",
    bits_per_dim: Annotated[
        bool,
        typer.Option(
            "--bits-per-dim",
            help="the variational bound of -n real held-out images (at most 1000); the usual "
            "figures as well only where --protocol is given",
        ),
    ] = False,
    terms: Annotated[
        int | None,
        typer.Option(
            parser=options.whole(1, 1_000_000),
            metavar="K",
            help="of --bits-per-dim: steps of the chain evaluated for each image, 50",
        ),
    ] = None,
    likelihood: Annotated[
        bool,
        typer.Option(
            "--likelihood",
            help="bits per dimension of -n real held-out images by the probability-flow ODE; the "
            "usual figures as well only where --protocol is given",
        ),
    ] = False,
    ode_steps: Annotated[
        int | None,
        typer.Option(
            parser=options.whole(1, 100_000),
            metavar="N",
            help="of --likelihood: Runge-Kutta steps of four evaluations, 32",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            parser=_REAL,
            metavar="TOL",
            help="of --likelihood: adaptive steps (torchdiffeq's dopri5) in place of --ode-steps",
        ),
    ] = None,
    probes: Annotated[
        int | None,
        typer.Option(
            parser=options.whole(1, 10_000),
            metavar="K",
            help="of --likelihood: random probes of the trace for each image, 1",
        ),
    ] = None,
    batch_size: Annotated[int | None, judged.BATCH] = None,
    device: Annotated[str, judged.DEVICE] = "auto",
    form: Annotated[str, options.FORMAT] = "human",
) -> None:
    """Measure a model, or images that were made elsewhere, under a named protocol.

    Interrupted or killed, the same command goes on where it was.
    """
    if merge and shard is not None:
        raise UsageError("--shard and --merge: give --shard to make a part, --merge to measure")
    wish = bits.Wish(
        number, seed, batch_size or 250, device, form, terms, ode_steps, probes or 1, tolerance
    )
    if _costs(context, model, data, out, wish) and not options.said(context, "protocol"):
        return
    part = judged.share(shard)
    judged.needs("torch_fidelity", "matplotlib")
    said = {"sampler": sampler, "steps": steps, "eta": eta, "spacing": spacing}
    said["guidance_scale"] = guidance_scale
    guidance.warn_far(guidance_scale)
    said["levels"] = options.levels(levels)
    changes = {key: value for key, value in said.items() if value is not None}
    foreign = judged.is_images(model)
    idle = [*changes, *(k for k in ("seed", "batch_size") if options.said(context, k))]
    if foreign and idle:
        raise UsageError(
            f"{_flag(idle[0])}: {model} holds finished images; only a model is sampled"
        )
    from fewstep.report.work import Work

    rules = judged.rules(protocol, number, inception, precision)
    if foreign:
        rules, reals, item, place = _foreign(model, rules, number, data, out)
    else:
        how = {"seed": seed, "batch": batch_size, "device": device}
        reals, item, place = _model(model, changes, rules, data, out, **how)
    if merge:
        meter.complete([item], rules.n, options.again(context))
    how = {"inception": inception, "precision": precision, "device": device, "folder": place}
    judge = judged.judge(rules, reals, **how)
    work = Work(judge, [item], part)
    judged.made(place)
    console.note(f"folder: {place}")
    meter.do(work, _early if part == (0, 1) and not merge else None)
    if shard is not None:
        judged.part_done(shard, options.again(context, merge=True))
        return
    if console.rank():
        return
    meter.wait(work)
    more = {
        "--data": data, "--protocol": protocol, "-n": number, "-o": out,
        "--inception": inception, "--precision": precision, "--seed": seed,
    }  # fmt: skip
    plain = {"--protocol": "small-2k", "--precision": "fp32", "--seed": 0}
    words = [
        w for k, v in more.items() if v is not None and v != plain.get(k) for w in (k, str(v))
    ]
    following = None if foreign else console.command("compare", model, *words)
    _finish(work, item, place, form, following)


_COSTS = {
    "bits_per_dim": ("terms",),
    "likelihood": ("ode_steps", "tolerance", "probes"),
}
"""The options that measure what real images cost, each with its own further options."""


def _costs(
    context: typer.Context, model: str, data: str | None, out: Path | None, wish: bits.Wish
) -> bool:
    """Measure what real images cost a model, if asked; refuse options that have no part in it."""
    from fewstep.cli.resolve import find, teacher

    asked = [name for name in _COSTS if context.params[name]]
    for name, own in _COSTS.items():
        for other in own:
            if name not in asked and context.params[other] is not None:
                value = context.params[other]
                raise UsageError(f"{_flag(other)} {value:g}: belongs to {_flag(name)}")
    if not asked:
        return False
    if wish.steps is not None and wish.tolerance is not None:
        raise UsageError("--ode-steps and --tolerance: give one; a tolerance chooses the steps")
    if wish.tolerance is not None and not 0 < wish.tolerance < 1:
        raise UsageError(f"--tolerance {wish.tolerance:g}: must be above 0 and below 1")
    word = " and ".join(_flag(name) for name in asked)
    if judged.is_images(model):
        raise UsageError(f"{word}: {model} holds finished images; a likelihood is a model's")
    sampled = ("sampler", "steps", "eta", "spacing", "levels", "guidance_scale")
    sampled = (*sampled, "inception", "precision")
    alone = () if options.said(context, "protocol") else sampled
    for name in ("shard", "merge", *alone):
        if options.said(context, name):
            advice = "measure it in a command of its own"
            if name in alone:
                advice = "give --protocol for the usual figures as well"
            raise UsageError(f"{_flag(name)}: no part of {word}; {advice}")
    if console.rank():
        return True
    found = find(model)
    if found.model.student:
        kind = found.model.student.get("kind")
        raise UsageError(
            f"{word}: {found.name} is a {kind} student, which says where a few long steps end and "
            f"has no likelihood; measure its teacher, {teacher(found)}"
        )
    place = judged.folder(out or default_folder(found), data or judged.own(found)[0])
    for name in asked:
        (bits.measure if name == "bits_per_dim" else bits.follow)(found, data, place, wish)
    return True


def _flag(name: str) -> str:
    """Return an option as it is typed."""
    return f"--{name.replace('_', '-')}"


def _model(  # budget: table
    word: str,
    changes: dict[str, Any],
    rules: "Protocol",
    data: str | None,
    out: Path | None,
    *,
    seed: int,
    batch: int | None,
    device: str,
) -> "tuple[Reals, Item, Path]":
    """Return real images, the item of a model sampled in one way, and the folder."""
    from fewstep import sampling
    from fewstep.cli.resolve import find
    from fewstep.report.spec import Row
    from fewstep.report.work import Item

    found = find(word)
    judged.untold(found)
    preset = sampling.changed(found.model.sampling, changes)
    sampling.plan(found.model, preset)  # refuses settings before any data are read
    reals = judged.reals(data, found)
    place = judged.folder(out or default_folder(found), data or judged.own(found)[0])
    subject = judged.subject(found, reals, rules, seed, device)
    row = Row(f"{found.name}, {preset.sampler} {preset.steps}", preset)
    return reals, Item.of_row(row, subject, place / "samples", batch), place


def _foreign(
    word: str, rules: "Protocol", number: int | None, data: str | None, out: Path | None
) -> "tuple[Protocol, Reals, Item, Path]":
    """Return the protocol at their number, real images, the item of given images, the folder."""
    from fewstep import data as door
    from fewstep.report.judge import LEAST
    from fewstep.report.work import Item

    images = door.load(word)
    if number is not None and number > len(images):
        raise UsageError(f"-n {number}: {word} has {len(images)} images")
    if len(images) < LEAST:
        raise DataError(f"{word}: {len(images)} images are too few; at least {LEAST} are needed")
    rules = replace(rules, n=min(rules.n, len(images)))
    whole = Path(word).expanduser().resolve()
    place = judged.folder(out or Path("runs") / f"eval-{whole.stem}", data, word)
    reals = judged.reals(data, None)
    reals.check(images.shape, images.classes, word)
    if images.classes and reals.classes and images.classes != reals.classes:
        pairs = zip(images.classes[:3], reals.classes, strict=False)
        shown = ", ".join(f"{a} is {b}" for a, b in pairs)
        console.note(f"labels of {word} are taken by index: {shown}, ...")
    name = whole.name
    return rules, reals, Item.of_images(images, name, rules.n, place / "samples"), place


def default_folder(found: "Found") -> Path:
    """Return where figures go unless the user says so: into the run, or beside the runs."""
    from fewstep.cli.resolve import is_student

    if is_student(found.path):
        return found.path.parent / "eval"
    run = found.path.parent.parent if found.path.parent.name == "checkpoints" else found.path
    if (run / "config.yaml").is_file():
        return run / "eval"
    return Path("runs") / f"eval-{found.name}"


def _early(lines: "list[Line]", n: int) -> None:
    """Print an early estimate."""
    first = ", ".join(_short(f) for f in lines[0].figures[:2])
    console.note(f"  early estimate, {n} images: {first}")


def _short(figure: "Figure") -> str:
    """Return a figure in few characters."""
    from fewstep.report import table

    return f"{figure.name} {table.shown(figure, table.places([figure]))}"


def _finish(work: "Work", item: "Item", place: Path, form: str, following: str | None) -> None:
    """Measure, write results and page, print, with the command that follows if there is one."""
    from fewstep.cli import record
    from fewstep.report import page, results, sections

    console.note(f"measuring {item.title}: {work.n} images")
    line, verdict = work.verdict(item)
    terms = hashlib.sha256(json.dumps(line.protocol, sort_keys=True).encode()).hexdigest()
    stem = f"{item.store.id}-{work.judge.rules.name}-n{work.n}-{terms[:8]}"
    results.save(place / f"{stem}.json", [line])
    reals = work.judge.reals
    parts = sections.measured([line])
    if verdict.per_class:
        parts.append(sections.per_class(verdict.per_class))
    if verdict.confusion is not None:
        parts.append(sections.confusion(verdict.confusion, reals.classes))
    if verdict.pairs:
        made = work.pixels(item, [a for a, _, _ in verdict.pairs])
        near = [(item.number(a), b, far) for a, b, far in verdict.pairs]
        parts.append(sections.pairs(near, made, reals.pixels(b for _, b, _ in near)))
    html = page.render(
        f"{line.title}: how good", judged.lead([line]), parts, judged.facts([line]), []
    )
    record.text(place / f"{stem}.html", html)
    if form == "json":
        print(json.dumps(line.plain(), allow_nan=False))
        return
    _print(line, verdict)
    console.result(f"figures: {place / f'{stem}.json'}")
    console.result(f"report: {place / f'{stem}.html'}")
    if following:
        console.result(f"next: {following}")


def _print(line: "Line", verdict: "Verdict") -> None:
    """Print every figure with its interval and that of real images."""
    from fewstep.report import table

    speed = f", {line.nfe} network evaluations, {line.rate:.1f} images/s" if line.rate else ""
    console.result(f"{line.title}: {line.images} images{speed}")
    rows = [("", "", "95 % interval", "real images")]
    for f in (*line.figures, *verdict.per_class):
        wide = table.places([f])
        value, low, high = (f"{x:.{wide}f}" for x in (f.value, f.low, f.high))
        real = "-" if f.real is None else f"{f.real:.{wide}f}"
        rows.append((f.name, value, f"{low} to {high}", real))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for first, *rest in rows:
        cells = (c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))
        console.result("  ".join(["", first.ljust(widths[0]), *cells]))
    for text in judged.stated([line]):
        console.result(f"  {text}")
