"""Make the model that the package carries, from the run of a recipe.

    fewstep train digits out=runs/digits seed=0 device=cpu
    python tools/make_shipped_model.py runs/digits digits

The averaged weights are stored in float16 (half the size; the card says what the stored model
measures, not the run), with a card that states recipe, command, seed and figures.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from fewstep import data
from fewstep.cli.resolve import SHIPPED, find
from fewstep.metrics import Figure
from fewstep.model import Model, parameter_count
from fewstep.report import spec
from fewstep.report.cells import Labels
from fewstep.report.judge import Judge, Reals, extractors, protocol
from fewstep.report.results import Line
from fewstep.report.work import Item, Subject, Work
from fewstep.train.checkpoint import load_model, save_model

CARD = """# {name}

A class-conditional generator of handwritten digits, 8x8 pixels, ten classes: the model that the
demo trains, so that `fewstep sample {name} --label 7 -n 16` works at once and offline.

- Network: ADM U-Net, {parameters:,} parameters, stored in float16. Predicts v on the cosine
  process; trained with label dropout, so it can be guided.
- Data: scikit-learn's `load_digits` (Alpaydin and Kaynak, "Optical Recognition of Handwritten
  Digits", UCI 1998, CC BY 4.0), training split of {images:,} images.
- Made by: `fewstep train digits out=runs/{name} seed={seed} device=cpu`, {steps:,} steps, then
  `python tools/make_shipped_model.py runs/{name} {name}`.
- Licence: Apache-2.0.
- Not for: anything but trying things out; it knows {images:,} digits of 13 writers.

Figures, {n:,} images each (image i: seed i, class i mod 10), against {held_out} held-out digits;
FD-pixels is the Frechet distance of the raw pixels, its floor that of as many real training
digits. Accuracy by a classifier that names {judge:.3f} of the real held-out digits rightly.

| sampling | network evaluations | accuracy | FD-pixels | floor |
|---|---|---|---|---|
{rows}
"""


def main(run: str, name: str) -> None:
    """Store the model of a run in the package, measured as it is stored."""
    found = find(run)
    config = Path(run) / "config.yaml"
    seed = next(
        int(line.split(":")[1]) for line in config.read_text().splitlines() if line[:5] == "seed:"
    )
    half = dataclasses.replace(found.model, denoiser=found.model.denoiser.to(torch.float16))
    target = SHIPPED / name
    shutil.rmtree(target, ignore_errors=True)
    save_model(half, target)
    lines = _figures(load_model(target))
    accuracy, distance = ([_figure(x, n) for x in lines] for n in ("accuracy", "FD-pixels"))
    rows = "\n".join(
        f"| {line.title} | {line.nfe} | {a.value:.3f} | {d.value:.3f} | {d.real:.3f} |"
        for line, a, d in zip(lines, accuracy, distance, strict=True)
    )
    about = found.model.about
    card = CARD.format(
        name=name, parameters=parameter_count(found.model.denoiser), steps=about["step"],
        images=about["data"]["images"], seed=seed, n=lines[0].images, rows=rows,
        held_out=lines[0].protocol["reference"]["images"], judge=accuracy[0].real,
    )  # fmt: skip
    shutil.rmtree(target)
    save_model(half, target, extra={"card.md": card})
    size = sum(p.stat().st_size for p in target.iterdir())
    print(f"{target.name}: {size:,} bytes")
    print(json.dumps([line.plain() for line in lines], indent=1))


def _figure(line: Line, name: str) -> Figure:
    """Return a figure that must be there."""
    found = line.figure(name)
    assert found is not None, name
    return found


def _figures(model: Model) -> list[Line]:
    """Measure what the package promises, and what is beside it."""
    rules, reals = protocol("small-1k"), Reals("digits", *data.digits())
    judge = Judge(rules, reals, extractors(rules, reals))
    ways = "ddim:20:scale=2,ddim:50,ddim:10,dpmpp:5"
    rows = spec.parse(ways, dataclasses.replace(model.sampling, guidance_scale=1.0))
    with tempfile.TemporaryDirectory() as place:
        labels = Labels(judge.reals.counts(judge.rules.against))
        subject = Subject(model, "digits", "stored", labels)
        items = [Item.of_row(row, subject, Path(place)) for row in rows]
        work = Work(judge, items)
        for done in work.make():
            print(done.item.title, done.images, file=sys.stderr)
        return [work.line(item, work.n) for item in items]


if __name__ == "__main__":
    main(*sys.argv[1:])
