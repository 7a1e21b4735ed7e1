"""`fewstep demo`: the whole road on real digits, in minutes, ending in one report.

Train a conditional generator on scikit-learn's handwritten digits, steer it with classifier-free
guidance, sample it from 1000 steps down to 5, distil it into students of 8 to 1 steps, and judge
every way of sampling against held-out digits. What it prints and writes is made by the code of
`fewstep train`, `fewstep distill` and `fewstep compare`.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli import judged, meter, options
from fewstep.cli.console import command, count, note, result

if TYPE_CHECKING:
    from fewstep.cli.resolve import Found
    from fewstep.report.judge import Reals
    from fewstep.report.results import Line
    from fewstep.report.spec import Row

app = options.app()

IMAGES, SLOW_IMAGES = 1000, 250
"""Images per row, and for the comparison with 1000 steps, which is a protocol of its own."""
STUDENTS = {"progressive": 48_000, "consistency-distillation": 24_000}
"""Training images of the two ways to students of few steps."""
_START = 16  # steps of the teacher that the ladder begins with


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="where everything goes")
    ] = Path("runs/demo"),
    steps: Annotated[
        int | None, typer.Option(help="training steps; the recipe's when left out")
    ] = None,
    images: Annotated[int, typer.Option(help="images per row of the table", min=20)] = IMAGES,
    seed: Annotated[int, typer.Option(help="of training and sampling", min=0)] = 0,
) -> None:
    """Train on real digits, steer, sample from 1000 steps down to 1, judge: one report.

    Run again, it continues where it was: neither a trained model nor finished images are made
    again.
    """
    judged.needs("torch_fidelity", "matplotlib")
    began = time.monotonic()
    note("fewstep demo: real handwritten digits from noise to one step (about 10 minutes)")
    from fewstep import data
    from fewstep.report import spec
    from fewstep.report.judge import Reals

    train, held_out = data.digits()
    note(f"1/4 training on {len(train)} real digits; {len(held_out)} are held out")
    found = _train(out, steps, seed)
    trained = time.monotonic() - began
    reals = Reals("digits", train, held_out)
    note("2/4 students of 8, 4, 2 and 1 steps, and a consistency model")
    few = _students(out, found, reals, steps, seed, images)
    distilled = time.monotonic() - began - trained
    rows = [(found, row) for row in spec.preset("demo", found.model.sampling)]
    slow = [(f, r) for f, r in rows if r.sampling.steps >= 1000 and images > SLOW_IMAGES]
    note(f"3/4 sampling in {len(rows) + len(few)} ways")
    quick = [way for way in [*rows, *few] if way not in slow]
    lines = _measure(out, reals, quick, images, seed)
    if slow:
        beside = [way for way in quick if way[1].title in ("DDIM 50", "progressive 1")]
        note("4/4 a thousand steps, on fewer images")
        lines += _measure(out, reals, [*slow, *beside], SLOW_IMAGES, seed)
    _write(out, lines, f"{trained:.0f} s in this call, {distilled:.0f} s more for the students")
    parts = f"{trained / 60:.1f} of training and {distilled / 60:.1f} of distillation"
    note(f"done in {(time.monotonic() - began) / 60:.1f} minutes, {parts}")


def _train(out: Path, steps: int | None, seed: int) -> "Found":
    """Train the shipped recipe in the run folder, or take what is there."""
    from fewstep.cli.resolve import find
    from fewstep.cli.train import run
    from fewstep.recipes.read import shipped_path

    changes = [f"out={out}", f"seed={seed}"]
    if steps is not None:
        changes.append(f"train.steps={steps}")
    # The file, not the name: a folder ./digits of the user's goes before a name.
    run(str(shipped_path("digits")), changes)
    return find(str(out))


def _students(
    out: Path, found: "Found", reals: "Reals", steps: int | None, seed: int, number: int
) -> "list[tuple[Found, Row]]":
    """Distil the model in two ways; return the students, each with its way of sampling.

    A demo of fewer training steps gives its students as much less.
    """
    from fewstep import students
    from fewstep.cli import climb, wished
    from fewstep.recipes import load
    from fewstep.recipes.read import shipped_path
    from fewstep.students import run

    usual = load(shipped_path("digits"))["train"]["steps"]
    share = 1.0 if steps is None else min(1.0, steps / usual)
    group = "Distilled into fewer steps, without guidance (scale 1)"
    ways: list[tuple[Found, Row]] = []
    for method, images in STUDENTS.items():
        plan = (
            students.ladder(1, images, _START)
            if method == "progressive"
            else students.single(method, 1, images)
        )
        plan = [replace(s, updates=max(1, round(share * s.updates))) for s in plan]
        data = reals.train.fingerprint
        teacher = wished.word_of(found)
        asked = run.Asked(teacher, found.weights, 1.0, method, 1, seed, data, name=found.name)
        work = run.Work(asked, found.model, reals.train, tuple(plan), out / method, "cpu")
        wish = wished.Wish(
            1, method, None, images, 1.0, None, None, None, number, seed, work.device
        )
        run.record(work, wished.kept(found, wish))
        rungs = []
        for rung in students.rungs(work):
            note(f"  {method}, {count(rung.stage.steps, 'step')}: copy error {rung.copied:.4f}")
            rungs.append(rung)
        ways += [(climb.found_of(work, rung), climb.row_of(rung, group)) for rung in rungs]
        run.keep(work, rungs[-1])
    return ways


def _measure(
    out: Path, reals: "Reals", ways: "list[tuple[Found, Row]]", n: int, seed: int
) -> "list[Line]":
    """Make and measure rows of one protocol."""
    from fewstep.cli import console
    from fewstep.report.work import Item, Work

    rules = judged.rules("small-1k", n, None, "fp32")
    items = [
        Item.of_row(row, judged.subject(f, reals, rules, seed, "cpu"), out / "eval" / "samples")
        for f, row in ways
    ]
    todo = Work(judged.judge(rules, reals, device="cpu", folder=out / "eval"), items)
    meter.do(todo)
    lines = []
    with console.bar("measuring") as tick:
        for i, item in enumerate(items):
            lines.append(todo.line(item, n))
            tick(i + 1, len(items))
    return lines


def _write(out: Path, lines: "list[Line]", trained: str) -> None:
    """Write the page and the figures; print the tables."""
    from fewstep.cli import record
    from fewstep.report import page, results, sections, table

    results.save(out / "results.json", lines)
    lines = results.named(lines)
    lead = (
        "A conditional generator trained on 1,347 real handwritten digits, steered, sampled in "
        "1000 steps down to 5, and distilled into students of 8 steps down to 1. Every picture "
        "shows the same seeds."
    )
    guided = (
        "--label", "7", "-n", "16", "--guidance-scale", "2", "--steps", "20", "-o", "sevens.png"
    )  # fmt: skip
    hints = [
        command("sample", str(out), *guided),
        command("compare", str(out), "--preset", "ddim-table"),
        command("train", "--data", "FOLDER_OF_CLASS_FOLDERS"),
    ]
    facts = {"training": trained, **judged.facts(lines)}
    text = page.render("fewstep demo: digits", lead, sections.measured(lines), facts, hints)
    record.text(out / "report.html", text)
    for group in results.by_protocol(lines):
        for line in table.frontier(group):
            result(line)
        result("")
    result(f"report: {out / 'report.html'}")
    one = command("sample", str(out / "progressive"), "--label", "7", "-n", "16", "-o", "one.png")
    result(f"in one step: {one}")
    result(f"next: {command('sample', str(out), '--label', '7', '-n', '16', '-o', 'sevens.png')}")
