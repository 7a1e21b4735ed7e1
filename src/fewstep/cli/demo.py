"""`fewstep demo`: the whole road on real digits, in minutes, ending in one report.

Train a conditional generator on scikit-learn's handwritten digits, steer it with classifier-free
guidance, sample it from 1000 steps down to 5, and judge every way of sampling against held-out
digits. What it prints and writes is made by the same code as any other run and report.
"""

import importlib.util
import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import options
from fewstep.cli.console import bar, command, note, result
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.data import Images
    from fewstep.model import Model, Sampling
    from fewstep.report.frontier import Figures, Judge, Row

app = options.app()

IMAGES, SLOW_IMAGES = 1000, 200
"""Images per row, and for the row of 1000 steps."""


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
    """Train on real digits, steer, sample from 1000 steps down to 5, judge: one report.

    Run again, it continues where it was: a trained model is not trained again.
    """
    _needs("torch_fidelity", "matplotlib")
    began = time.monotonic()
    note("fewstep demo: train on real handwritten digits, steer, sample, judge (about 5 minutes)")
    from fewstep import data

    train, held_out = data.digits()
    note(f"1/3 training on {len(train)} real digits; {len(held_out)} are held out")
    model = _train(out, steps, seed)
    trained = time.monotonic() - began
    note("2/3 judge: a classifier learns the real training digits")
    from fewstep.report.frontier import Judge

    judge = Judge.of(train, held_out)
    note(f"    it names {judge.accuracy:.3f} of the real held-out digits rightly")
    rows = table_rows(model.sampling, images)
    note(f"3/3 sampling in {len(rows)} ways")
    figures = [_measure(model, row, judge, seed) for row in rows]
    page = _write(out, figures, judge, held_out, trained, seed)
    _print(figures, judge)
    result(f"report: {page}")
    result(f"next: {command('sample', str(out), '--label', '7', '-n', '16', '-o', 'sevens.png')}")
    note(f"done in {(time.monotonic() - began) / 60:.1f} minutes, {trained / 60:.1f} of training")


def _needs(*modules: str) -> None:
    """Raise before minutes of training if a library for judging or drawing is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the demo needs {' and '.join(missing)}: pip install 'fewstep[eval,report]'"
        )


def table_rows(preset: "Sampling", images: int = IMAGES) -> "list[Row]":
    """Return the ways of sampling that the demo compares."""
    from dataclasses import replace

    from fewstep.process import Tabulated
    from fewstep.report.frontier import Row

    plain = replace(preset, sampler="ddim", eta=0.0, guidance_scale=1.0, spacing="even")
    sweep = "Guidance: DDIM, 20 steps, classifier-free scale"
    speed = "Fewer steps, without guidance (scale 1)"
    rows = [
        Row(f"scale {s:g}", replace(plain, steps=20, guidance_scale=s), images, sweep)
        for s in (0.0, 1.0, 2.0, 4.0)
    ]
    slow = min(images, SLOW_IMAGES)
    for title, sampler, steps, n in (
        ("DDPM 1000", "ddpm", 1000, slow),
        ("DDPM 50", "ddpm", 50, images),
        ("DDIM 50", "ddim", 50, images),
        ("DDIM 20", "ddim", 20, images),
        ("DDIM 10", "ddim", 10, images),
        ("DDIM 5", "ddim", 5, images),
        ("DPM-Solver++(2M) 10", "dpmpp", 10, images),
        ("DPM-Solver++(2M) 5", "dpmpp", 5, images),
    ):
        rows.append(Row(title, replace(plain, sampler=sampler, steps=steps), n, speed))
    talk = "The talk's table: DDPM's linear betas, T = 1000, uniform strides"
    strided = replace(plain, spacing="uniform")
    for steps in (10, 50):
        for title, sampler in (("DDIM", "ddim"), ("sigma-hat", "ddpm-large")):
            preset = replace(strided, sampler=sampler, steps=steps)
            rows.append(Row(f"{title} {steps}, strided", preset, images, talk, Tabulated()))
    return rows


def _train(out: Path, steps: int | None, seed: int) -> "Model":
    """Train the shipped recipe in the run folder, or take what is there."""
    from fewstep.cli.train import run
    from fewstep.recipes.read import shipped_path

    changes = [f"out={out}", f"seed={seed}"]
    if steps is not None:
        changes.append(f"train.steps={steps}")
    # The file, not the name: a folder ./digits of the user's goes before a name.
    return run(str(shipped_path("digits")), changes)[1]


def _measure(model: "Model", row: "Row", judge: "Judge", seed: int) -> "Figures":
    """Measure one row under a progress bar and say its figures at once."""
    from fewstep.report.frontier import measure

    with bar(row.title) as tick:
        f = measure(model, row, judge, seed=seed, tick=tick)
    note(
        f"    {row.title:<20} {row.images} images, {f.images_per_second:.1f}/s, "
        f"accuracy {f.accuracy:.3f}, FD-pixels {f.distance:.3f} (floor {f.floor:.3f})"
    )
    return f


def _print(figures: "list[Figures]", judge: "Judge") -> None:
    """Print the table."""
    from fewstep.report.frontier import table

    for line in table(figures):
        result(line)
    result("")
    result(
        f"  accuracy: by a classifier that names {judge.accuracy:.3f} of the real held-out "
        "digits rightly"
    )
    result(
        "  floor: FD-pixels of as many real training digits; NFE: network evaluations per image"
    )


def _write(
    out: Path,
    figures: "list[Figures]",
    judge: "Judge",
    held_out: "Images",
    trained: float,
    seed: int,
) -> Path:
    """Write the page and the figures as JSON; return the page."""
    import torch

    from fewstep import __version__
    from fewstep.cli import record
    from fewstep.report.page import render

    facts: dict[str, Any] = {
        "features": "64 raw pixels in [-1, 1], rounded to 8 bits: FD-pixels, not FID",
        "reference": f"{len(held_out)} held-out digits, {held_out.fingerprint[:16]}",
        "floor": "as many real training digits against the same reference",
        "classifier": f"trained on real training digits, {judge.accuracy:.4f} on held-out ones",
        "seeds": f"image i of every row: seed {seed} + i, class i mod 10",
        "grid": "even in t on the cosine process, from 1 to 0, but for the strided rows; "
        "predictions clipped to [-1, 1]",
        "training": f"{trained:.0f} s in this call",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, Python {platform.python_version()}, fewstep {__version__}",
    }
    lead = (
        "A conditional generator trained on 1,347 real handwritten digits, steered, and sampled "
        "from 1000 network evaluations down to 5. Every picture shows the same seeds."
    )
    guided = (
        "--label", "7", "-n", "16", "--guidance-scale", "2", "--steps", "20", "-o", "sevens.png"
    )  # fmt: skip
    hints = [
        command("sample", str(out), *guided),
        command("train", "--data", "FOLDER_OF_CLASS_FOLDERS"),
    ]
    page = out / "report.html"
    record.text(page, render("fewstep demo: digits", lead, figures, facts, hints))
    values = {"protocol": facts, "rows": [f.plain() for f in figures]}
    record.text(out / "results.json", json.dumps(values, indent=1, allow_nan=False) + "\n")
    return page
