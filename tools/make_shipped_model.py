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
from pathlib import Path

import torch

from fewstep import data, sampling
from fewstep.cli.resolve import SHIPPED, find
from fewstep.model import Model, parameter_count
from fewstep.report.frontier import Figures, Judge, Row, measure
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
    figures, judge, held_out = _figures(load_model(target))
    rows = "\n".join(
        f"| {f.row.title} | {f.nfe} | {f.accuracy:.3f} | {f.distance:.3f} | {f.floor:.3f} |"
        for f in figures
    )
    about = found.model.about
    card = CARD.format(
        name=name, parameters=parameter_count(found.model.denoiser), steps=about["step"],
        images=about["data"]["images"], seed=seed, n=figures[0].row.images, held_out=held_out,
        judge=judge, rows=rows,
    )  # fmt: skip
    shutil.rmtree(target)
    save_model(half, target, extra={"card.md": card})
    size = sum(p.stat().st_size for p in target.iterdir())
    print(f"{target.name}: {size:,} bytes")
    print(json.dumps([f.plain() for f in figures], indent=1))


def _figures(model: Model) -> tuple[list[Figures], float, int]:
    """Measure the two figures that the package promises, and what they are beside."""
    train, held_out = data.digits()
    judge = Judge.of(train, held_out)
    ways = [
        ("DDIM 20, scale 2", "ddim", 20, 2.0),
        ("DDIM 50, scale 1", "ddim", 50, 1.0),
        ("DDIM 10, scale 1", "ddim", 10, 1.0),
        ("DPM-Solver++(2M) 5, scale 1", "dpmpp", 5, 1.0),
    ]
    figures = []
    for title, sampler, steps, scale in ways:
        assert sampler in sampling.SAMPLERS
        preset = dataclasses.replace(
            model.sampling, sampler=sampler, steps=steps, guidance_scale=scale
        )
        figures.append(measure(model, Row(title, preset, 1000), judge))
    return figures, judge.accuracy, len(held_out)


if __name__ == "__main__":
    main(*sys.argv[1:])
