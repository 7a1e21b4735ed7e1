r"""Make the students of few steps that the package carries, from a distillation.

    fewstep distill digits --to 1 --method progressive --guidance-scale 1 --images 160000 \
        -n 2000 -o runs/digits-few
    python tools/make_shipped_students.py runs/digits-few digits 4 1

Each is measured as it is stored, in float16, beside its teacher in 50 steps.
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
from fewstep.model import Model, Sampling, parameter_count
from fewstep.report.cells import Labels
from fewstep.report.judge import Judge, Reals, extractors, protocol
from fewstep.report.results import Line
from fewstep.report.spec import Row
from fewstep.report.work import Item, Subject, Work
from fewstep.train.checkpoint import load_model, save_model

CARD = """# {name}

A student of `{teacher}` that draws handwritten digits of 8x8 pixels in {steps} step{s} of DDIM,
{steps} network evaluation{s}, where its teacher takes 50: `fewstep sample {name} --label 7 -n 16`
works at once.

- Network: that of `{teacher}`, {parameters:,} parameters, stored in float16; it predicts v. It is
  sampled in {steps} step{s} and no other way; the conditional model's guidance (scale 1) is in it.
- Made by: progressive distillation (Salimans and Ho, 2022), {images:,} images in all,
  `fewstep distill {teacher} --to 1 --method progressive --guidance-scale 1 --images 160000
  -n 2000 -o runs/{teacher}-few`, its student of {steps} step{s}, then
  `python tools/make_shipped_students.py runs/{teacher}-few {teacher} 4 1`.
- Data: scikit-learn's `load_digits` (Alpaydin and Kaynak, "Optical Recognition of Handwritten
  Digits", UCI 1998, CC BY 4.0), training split of 1,347 images.
- Licence: Apache-2.0.
- Not for: anything but trying things out; it knows 1,347 digits of 13 writers.

Figures, {n:,} images each (image i: seed i, class i mod 10), against {held_out} held-out digits;
accuracy by a classifier that names {judge:.3f} of the real held-out digits rightly.

| sampling | network evaluations | accuracy | FD-classifier | FD-pixels |
|---|---|---|---|---|
{rows}
"""


def main(folder: str, teacher: str, *counts: str) -> None:
    """Store the students of a distillation in the package, measured as they are stored."""
    for steps in map(int, counts):
        name = f"{teacher}-{steps}step"
        model = find(f"{folder}/stages/{steps}").model
        half = dataclasses.replace(model, denoiser=model.denoiser.to(torch.float16))
        target = SHIPPED / name
        shutil.rmtree(target, ignore_errors=True)
        save_model(half, target)
        lines = _figures(load_model(target), find(teacher).model, steps)
        rows = "\n".join(_row(line) for line in lines)
        accuracy = lines[0].figure("accuracy")
        assert accuracy is not None
        card = CARD.format(
            name=name, teacher=teacher, steps=steps, s="" if steps == 1 else "s", rows=rows,
            parameters=parameter_count(model.denoiser), images=model.student["images"],
            n=lines[0].images, held_out=lines[0].protocol["reference"]["images"],
            judge=accuracy.real,
        )  # fmt: skip
        shutil.rmtree(target)
        save_model(half, target, extra={"card.md": card})
        size = sum(p.stat().st_size for p in target.iterdir())
        print(f"{name}: {size:,} bytes")
        print(json.dumps([line.plain() for line in lines], indent=1), file=sys.stderr)


def _row(line: Line) -> str:
    """Return a line of the card's table."""
    figures = [line.figure(n) for n in ("accuracy", "FD-classifier", "FD-pixels")]
    shown = " | ".join(f"{f.value:.3f}" for f in figures if f is not None)
    return f"| {line.title} | {line.nfe} | {shown} |"


def _figures(student: Model, teacher: Model, steps: int) -> list[Line]:
    """Measure a student, and its teacher in 50 steps and in as many."""
    rules, reals = protocol("small-2k"), Reals("digits", *data.digits())
    judge = Judge(rules, reals, extractors(rules, reals))
    ways = [(student, Row(f"this model, {steps}", student.sampling))]
    for n in (50, steps):
        ways.append((teacher, Row(f"its teacher, DDIM {n}", Sampling("ddim", n))))
    with tempfile.TemporaryDirectory() as place:
        labels = Labels(judge.reals.counts(judge.rules.against))
        items = [
            Item.of_row(row, Subject(model, "digits", f"stored {i}", labels), Path(place))
            for i, (model, row) in enumerate(ways)
        ]
        work = Work(judge, items)
        for done in work.make():
            print(done.item.title, done.images, file=sys.stderr)
        return [work.line(item, work.n) for item in items]


if __name__ == "__main__":
    main(*sys.argv[1:])
