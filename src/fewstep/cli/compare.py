"""`fewstep compare`: what each way of sampling costs and yields, in one table under one protocol.

Steps against quality against time, for one model or several, with the pictures of the same seeds
side by side. Results of earlier commands can stand in the same table if, and only if, they were
measured under the same protocol.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import console, guidance, judged, meter, options
from fewstep.cli.evaluate import default_folder
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.report.judge import Protocol
    from fewstep.report.results import Line
    from fewstep.report.spec import Row
    from fewstep.report.work import Item, Work
    from fewstep.steer import Steer, Weak

app = options.app()


@app.command()
def compare(  # budget: table
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="shipped models (digits), run or model folders; also results.json files of "
            "earlier evaluate and compare",
        ),
    ],
    samplers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="ddpm:1000,ddim:50,ddim:10:eta=0.5,dpmpp:10: NAME:STEPS and then eta=, scale=, "
            "w=, spacing=, levels=14.6/2/0.3, clip=, process=, interval=, rescale=, apg=, "
            "momentum=, threshold=, classifier=SCALE, weak=yes",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="frontier (the default), ddim-table: the DDIM paper's table of eta against S",
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="strides of ddim-table: uniform or quadratic"),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="guidance=0,0.5,1,2,4: a row to each scale of classifier-free guidance and, with "
            "--classifier, of a classifier's; sampled as the model's settings, or the one row of "
            "--samplers, say",
        ),
    ] = None,
    classifier: Annotated[str | None, guidance.CLASSIFIER] = None,
    weak: Annotated[str | None, guidance.AWAY] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="real images; by default those the first model was trained on"
        ),
    ] = None,
    protocol: Annotated[str, judged.PROTOCOL] = "small-2k",
    number: Annotated[int | None, judged.NUMBER] = None,
    seed: Annotated[int, judged.SEED] = 0,
    shard: Annotated[str | None, judged.SHARD] = None,
    merge: Annotated[bool, judged.MERGE] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="where images and the report are kept"),
    ] = None,
    inception: Annotated[Path | None, judged.INCEPTION] = None,
    precision: Annotated[str, judged.PRECISION] = "fp32",
    batch_size: Annotated[int | None, judged.BATCH] = None,
    device: Annotated[str, judged.DEVICE] = "auto",
) -> None:
    """Compare ways of sampling: steps x quality x time in one table and one report.

    Early estimates come after the first pass over all rows. Interrupted or killed, the same
    command goes on where it was.
    """
    if merge and shard is not None:
        raise UsageError("--shard and --merge: give --shard to make a part, --merge to measure")
    part = judged.share(shard)
    judged.needs("torch_fidelity", "matplotlib")
    for word in models:
        if Path(word).suffix != ".json" and judged.is_images(word):
            raise UsageError(
                f"{word}: finished images; measure them with {console.command('evaluate', word)} "
                "and give the .json file that it writes"
            )
    from fewstep.cli.resolve import find
    from fewstep.report import judge as judges
    from fewstep.report import results
    from fewstep.report.work import Item, Work

    earlier = _earlier([m for m in models if Path(m).suffix == ".json"])
    found = [find(m) for m in models if Path(m).suffix != ".json"]
    for f in found:
        judged.untold(f)
    if not found:
        _only(earlier, out)
        return
    rules = judged.rules(protocol, number, inception, precision)
    judge_of_noise = None if classifier is None else guidance.classifier(classifier)
    weaker = None if weak is None else guidance.weaker(weak)
    words = (samplers, preset, spacing, sweep)
    rows = [_rows(f, words, judge_of_noise, weaker) for f in found]
    _refuse_idle(rows, classifier, weak)
    guidance.warn_far(*(row.sampling.guidance_scale for ways in rows for row in ways))
    reals = judged.reals(data, found[0])
    for steer in (judge_of_noise, weaker):
        if steer is not None:
            steer.model.denoiser.to(judged.placed(device))
    base = judged.folder(out or _default(found), data or judged.own(found[0])[0])
    items = []
    for f, ways in zip(found, rows, strict=True):
        known = () if judge_of_noise is None else judge_of_noise.model.classes
        subject = judged.subject(f, reals, rules, seed, device, known)
        items += [Item.of_row(way, subject, base / "samples", batch_size) for way in ways]
    mine = _keys(items, judges.terms(rules, reals))
    way = "sweep" if sweep else "compare" if samplers is not None else preset or "frontier"
    place = base if out else base / _label(mine, rules, way, spacing, precision)
    _refuse_loss({*mine, *map(_key, earlier)}, place)
    _refuse_mixed(earlier, found[0].name, judges.terms(rules, reals))
    if merge:
        meter.complete(items, rules.n, options.again(context))
    how = {"inception": inception, "precision": precision, "device": device, "folder": base}
    judge = judged.judge(rules, reals, **how)
    work = Work(judge, items, part)
    results.same_protocol([*earlier, work.outline()])
    judged.made(place)
    console.note(f"folder: {place}; {len(items)} rows of {work.n} images")
    meter.do(work, _early if part == (0, 1) and not merge else None)
    if shard is not None:
        judged.part_done(shard, options.again(context, merge=True))
        return
    if console.rank():
        return
    meter.wait(work)
    _finish(work, earlier, place, found)


def _earlier(paths: list[str]) -> "list[Line]":
    """Read the lines of earlier commands, those of the same images and judge once."""
    from fewstep.report import results

    lines: dict[str, Line] = {}
    for path in paths:
        for line in results.load(Path(path).expanduser()):
            judge = json.dumps(line.protocol["extractors"], sort_keys=True)
            lines.setdefault(_key(line) + judge, line)
    return list(lines.values())


def _default(found: "list[Found]") -> Path:
    """Return where a comparison goes unless the user says so."""
    if len(found) == 1:
        return default_folder(found[0])
    return Path("runs") / f"eval-{'-'.join(f.name for f in found)}"


def _key(line: "Line") -> str:
    """Return what tells a row from another: how it was made and what it was measured against."""
    settings = json.dumps(line.settings, sort_keys=True)
    terms = json.dumps(
        {k: v for k, v in line.protocol.items() if k != "extractors"}, sort_keys=True
    )
    return f"{line.weights} {settings} {line.record.get('seeds')} {terms}"


def _keys(items: "list[Item]", terms: dict[str, Any]) -> list[str]:
    """Return the keys that rows will have."""
    return [_key(item.outline(terms)) for item in items]


def _label(
    keys: list[str], rules: "Protocol", way: str, spacing: str | None, precision: str
) -> str:
    """Return a name for the folder of a comparison that another comparison does not have."""
    digest = hashlib.sha256("\n".join([*keys, precision]).encode()).hexdigest()[:8]
    return "-".join(x for x in (way, spacing, rules.name, f"n{rules.n}", digest) if x)


def _refuse_loss(keys: set[str], place: Path) -> None:
    """Refuse a folder with results of rows that are not among these.

    Raises:
        UsageError: it holds another comparison, which would be lost.
    """
    from fewstep.report import results

    path = place / "results.json"
    lost = [x for x in results.load(path) if _key(x) not in keys] if path.exists() else []
    if lost:
        raise UsageError(
            f"{path} holds other rows ({', '.join(x.title for x in lost[:3])}), which would be "
            "lost: choose another folder with -o, or give this file to compare as well"
        )


def _rows(
    found: "Found",
    words: tuple[str | None, str | None, str | None, str | None],
    classifier: "Steer | None",
    weak: "Weak | None",
) -> "list[Row]":
    """Return the ways of sampling a model that are asked for.

    Args:
        found: the model.
        words: --samplers, --preset, --spacing and --sweep.
        classifier: what --classifier means.
        weak: what --weak means.

    Raises:
        UsageError: options that do not go together, or a word that is not known.
    """
    from fewstep.report import spec
    from fewstep.report import sweep as sweeps

    samplers, preset, spacing, sweep = words
    if samplers is not None and preset is not None:
        raise UsageError("--samplers and --preset: give one of them")
    if spacing is not None and preset != "ddim-table":
        raise UsageError(
            f"--spacing {spacing}: belongs to --preset ddim-table; in --samplers it is "
            "NAME:STEPS:spacing=NAME"
        )
    settings = found.model.sampling
    if sweep is not None:
        if preset is not None:
            raise UsageError("--sweep and --preset: give one of them")
        scales = sweeps.scales(sweep)
        ways = [spec.own(settings)] if samplers is None else []
        ways += [] if samplers is None else spec.parse(samplers, settings, classifier, weak)
        if len(ways) > 1:
            raise UsageError(f"--sweep: --samplers {samplers} has {len(ways)} rows; give one")
        return sweeps.rows(found.model, ways[0], scales, classifier)
    if samplers is not None:
        return spec.parse(samplers, settings, classifier, weak)
    kind = found.model.student.get("kind")
    if preset is None and kind in ("progressive", "consistency"):
        console.note(
            f"{found.name}: a {kind} student, measured in the way that it was made for; give its "
            "teacher as well to compare it with"
        )
        return [spec.own(settings)]
    own = found.model.denoiser.process
    return spec.preset(preset or "frontier", settings, own, spacing or "uniform")


def _refuse_idle(rows: "list[list[Row]]", classifier: str | None, weak: str | None) -> None:
    """Refuse a classifier or a weak model that no row asks for."""
    from fewstep.steer import Steer, Weak

    steers = [row.steer for ways in rows for row in ways]
    if classifier is not None and not any(isinstance(s, Steer) for s in steers):
        raise UsageError(
            f"--classifier {classifier}: no row asks for it; write classifier=SCALE in a row of "
            "--samplers, or give --sweep"
        )
    if weak is not None and not any(isinstance(s, Weak) for s in steers):
        raise UsageError(
            f"--weak {weak}: no row asks for it; write weak=yes in a row of --samplers"
        )


def _refuse_mixed(earlier: "list[Line]", name: str, terms: dict[str, Any]) -> None:
    """Refuse earlier lines of another protocol before a judge is trained."""
    from fewstep.report import results

    if earlier:
        first = earlier[0]
        known = {**terms, "extractors": first.protocol["extractors"]}
        results.same_protocol([*earlier, replace(first, title="", model=name, protocol=known)])


def _only(lines: "list[Line]", out: Path | None) -> None:
    """Show earlier results in one table; nothing is measured."""
    from fewstep.report import results

    results.same_protocol(lines)
    digest = hashlib.sha256("\n".join(map(_key, lines)).encode()).hexdigest()[:8]
    place = judged.folder(out or Path("runs") / f"compare-{digest}")
    _refuse_loss(set(map(_key, lines)), place)
    write(lines, judged.made(place), [])


def _early(lines: "list[Line]", n: int) -> None:
    """Print a table of early estimates."""
    from fewstep.report import table

    console.note(f"early estimates, {n} images of each row:")
    for text in table.frontier(lines):
        console.note(text)


def _finish(work: "Work", earlier: "list[Line]", place: Path, found: "list[Found]") -> None:
    """Measure all rows, write and print the comparison."""
    from fewstep.cli.resolve import SHIPPED

    lines = []
    with console.bar("measuring") as tick:
        for i, item in enumerate(work.items):
            lines.append(work.line(item, work.n))
            tick(i + 1, len(work.items))
    first = found[0]
    name = first.name if first.path.parent == SHIPPED else str(first.path)
    label = [f"--label={first.model.classes[0]}"] if first.model.classes else []
    more = console.command("sample", name, *label, "-n", "16")
    write([*earlier, *lines], place, [more])


def write(lines: "list[Line]", place: Path, hints: list[str], figure: str = "") -> None:
    """Write results, charts and page; print table and paths.

    Args:
        lines: of one protocol.
        place: the folder.
        hints: commands that follow.
        figure: of the chart, whose features come first in the table; by default the first
            distance.
    """
    from fewstep.cli import record
    from fewstep.report import chart, page, results, sections, sweep, table

    results.save(place / "results.json", lines)
    lines = results.named(lines)
    talk = table.is_ddim_table(lines)
    figure = figure or sweep.distance(lines)
    swept = sweep.is_sweep(lines)
    if swept:
        record.text(place / "guidance.svg", sweep.figure(lines, figure))
        sweep.png(lines, figure, place / "guidance.png")
    elif chart.drawable(lines, figure):
        record.text(place / "frontier.svg", chart.chart(lines, figure))
        chart.png(lines, figure, place / "frontier.png")
    models = ", ".join(dict.fromkeys(line.model for line in lines))
    record.text(
        place / "report.html",
        page.render(
            f"{models}: what {'guidance does' if swept else 'steps cost'}",
            judged.lead(lines),
            sections.measured(lines, figure),
            judged.facts(lines),
            hints,
        ),
    )
    names = sweep.columns(lines, figure) if swept else table.ranked(lines, figure)
    for text in table.frontier(lines, names=names):
        console.result(text)
    for text in table.ddim_table(lines, figure) if talk else []:
        console.result(text)
    for text in judged.stated(lines):
        console.result(f"  {text}")
    console.result(f"results: {place / 'results.json'}")
    if swept:
        console.result(f"figure: {place / 'guidance.svg'}")
    console.result(f"report: {place / 'report.html'}")
    for hint in hints:
        console.result(f"next: {hint}")
