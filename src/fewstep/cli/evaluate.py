"""`fewstep evaluate`: how good images are, under one stated protocol.

The images are those of a model, sampled in one way, or any that somebody else made: a folder of
PNG files, an npz file in the format of ADM's evaluation batches, an npy or a safetensors file. No
number comes without its interval, the same number of real images, and its protocol.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import console, judged, options
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.metrics import Figure
    from fewstep.report.judge import Judge, Verdict
    from fewstep.report.results import Line
    from fewstep.report.work import Item, Work

app = options.app()

_REAL = options.number()


@app.command()
def evaluate(  # budget: table
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
    protocol: Annotated[
        str, typer.Option(metavar="NAME", help="small-1k, small-2k, small-10k, fid-10k, fid-50k")
    ] = "small-2k",
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--number",
            parser=options.whole(1, 10_000_000),
            metavar="N",
            help="images, in place of the protocol's number; a protocol of its own",
        ),
    ] = None,
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
    guidance_scale: Annotated[
        float | None, typer.Option(parser=_REAL, metavar="S", help="1 = plain conditional")
    ] = None,
    seed: Annotated[
        int, typer.Option(parser=options.seed, metavar="SEED", help="image i: SEED + i")
    ] = 0,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/K", help="make only part I of K, on any machine; --merge measures them"
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="make nothing: measure what all shards have made")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="where images and figures are kept"),
    ] = None,
    inception: Annotated[Path | None, judged.INCEPTION] = None,
    precision: Annotated[str, judged.PRECISION] = "fp32",
    batch_size: Annotated[
        int | None,
        typer.Option(parser=options.whole(1, 250), metavar="B", help="images sampled at once"),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, ...")] = "auto",
    form: Annotated[
        str,
        typer.Option(
            "--format", parser=options.choice("human", "json"), metavar="human|json", help="result"
        ),
    ] = "human",
) -> None:
    """Measure a model, or images that were made elsewhere, under a named protocol.

    Interrupted or killed, the same command goes on where it was.
    """
    if merge and shard is not None:
        raise UsageError("--shard and --merge: give --shard to make a part, --merge to measure")
    part = judged.share(shard)
    changes = {
        k: v
        for k, v in {
            "sampler": sampler,
            "steps": steps,
            "eta": eta,
            "spacing": spacing,
            "guidance_scale": guidance_scale,
        }.items()
        if v is not None
    }
    foreign = judged.is_images(model)
    if foreign and changes:
        raise UsageError(
            f"--{next(iter(changes)).replace('_', '-')}: {model} holds finished images; only a "
            "model is sampled"
        )
    from fewstep.cli.resolve import find
    from fewstep.report.work import Work

    judged.needs("torch_fidelity", "matplotlib")
    found = None if foreign else find(model)
    real = judged.reals(data, found)
    place = judged.folder(out, default_folder(model, found), data)
    images = _foreign(model) if foreign else None
    n = number
    if images is not None:
        n = _whole(len(images), number, protocol)
    judge = judged.judge(
        (protocol, n), real, inception=inception, precision=precision, device=device
    )
    if images is not None:
        from fewstep.report.work import Item

        judge.check(images.shape, images.classes, model)
        item = Item.of_images(images, Path(model).name, judge.rules.n, place / "samples")
    else:
        assert found is not None
        item = _item(found, changes, judge, place, seed=seed, batch=batch_size, device=device)
    work = Work(judge, [item], part)
    again = console.command("evaluate", model, "-o", str(place))
    if not merge:
        console.note(f"folder: {place}")
        judged.do(work, _early if shard is None else None)
    if shard is not None:
        console.result(
            f"part {shard} is done; when all are: {again} --merge (and the same options)"
        )
        return
    if merge:
        judged.complete(work, again)
    elif console.rank():
        return
    judged.wait(work)
    _finish(work, item, place, form)


def default_folder(word: str, found: "Found | None") -> Path:
    """Return where figures go unless the user says so: into the run, or beside the runs."""
    if found is not None:
        run = found.path.parent.parent if found.path.parent.name == "checkpoints" else found.path
        if (run / "config.yaml").is_file():
            return run / "eval"
        return Path("runs") / f"eval-{found.name}"
    return Path("runs") / f"eval-{Path(word).stem}"


def _foreign(word: str) -> Any:
    """Return images that were made elsewhere."""
    from fewstep import data

    return data.load(word)


def _whole(count: int, number: int | None, protocol: str) -> int:
    """Return how many of the images that are there to measure."""
    from fewstep.report.judge import protocol as named

    wanted = number or named(protocol).n
    if number is not None and number > count:
        raise UsageError(f"-n {number}: there are {count} images")
    return min(wanted, count)


def _item(
    found: "Found",
    changes: dict[str, Any],
    judge: "Judge",
    place: Path,
    *,
    seed: int,
    batch: int | None,
    device: str,
) -> "Item":
    """Return the item of a model sampled in one way."""
    from fewstep import sampling
    from fewstep.report import work
    from fewstep.report.spec import Row
    from fewstep.train import engine

    engine.tune_cpu()
    preset = sampling.changed(found.model.sampling, changes)
    found.model.denoiser.to(engine.pick_device(device))
    row = Row(f"{found.name}, {preset.sampler} {preset.steps}", preset)
    cell = work.cell(row, (found.model, found.name, found.weights), judge, seed)
    return work.Item.of_cell(row, cell, place / "samples", batch)


def _early(lines: "list[Line]", n: int) -> None:
    """Print an early estimate."""
    first = ", ".join(_short(f) for f in lines[0].figures[:2])
    console.note(f"  early estimate, {n} images: {first}")


def _short(figure: "Figure") -> str:
    """Return a figure in few characters."""
    from fewstep.report import table

    return f"{figure.name} {table.shown(figure, table.places([figure]))}"


def _finish(work: "Work", item: "Item", place: Path, form: str) -> None:
    """Measure, write results and page, print."""
    from fewstep.cli import record
    from fewstep.report import page, results, sections

    line, verdict = work.verdict(item)
    stem = f"{item.store.id}-{work.judge.rules.name}-n{work.n}"
    results.save(place / f"{stem}.json", [line])
    reals = work.judge.reals
    parts = sections.measured([line])
    if verdict.per_class:
        parts.append(sections.per_class(verdict.per_class))
    if verdict.confusion is not None:
        parts.append(sections.confusion(verdict.confusion, reals.classes))
    if verdict.pairs:
        made = work.pixels(item, [a for a, _, _ in verdict.pairs])
        parts.append(
            sections.pairs(verdict.pairs, made, reals.pixels(b for _, b, _ in verdict.pairs))
        )
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
