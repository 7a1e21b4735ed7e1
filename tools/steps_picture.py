"""Make docs/images/steps.png and students.png: the same seeds with fewer and fewer steps.

The first is of the shipped model in several ways of sampling, the second of it and its students.

python tools/steps_picture.py
"""

from dataclasses import replace
from pathlib import Path

import torch

from fewstep import sampling
from fewstep.cli.resolve import find
from fewstep.model import Model, Sampling
from fewstep.report import picture

WAYS = (("ddpm", 1000), ("ddim", 50), ("ddim", 20), ("ddim", 10), ("dpmpp", 5))
STUDENTS = (("digits", 50), ("digits", 4), ("digits-4step", 4), ("digits", 1), ("digits-1step", 1))
COLUMNS = 20
IMAGES = Path(__file__).parent.parent / "docs/images"


def row(model: Model, preset: Sampling) -> torch.Tensor:
    """Return a row of the same seeds and labels, uint8, shape (COLUMNS, C, H, W)."""
    x, labels = torch.empty(0), [i % 10 for i in range(COLUMNS)]
    for step in sampling.walk(model, preset, labels, COLUMNS):
        x = step.x
    return sampling.to_uint8(x)


def main() -> None:
    """Sample each row and lay the rows out."""
    model, rows = find("digits").model, []
    for sampler, steps in WAYS:
        preset = replace(model.sampling, sampler=sampler, steps=steps, guidance_scale=2.0)
        rows.append(row(model, preset))
    facts = {"rows": [f"{name} {steps}" for name, steps in WAYS], "guidance_scale": 2.0, "seed": 0}
    sheet = picture.grid(torch.cat(rows).numpy(), COLUMNS, 5)
    picture.save(sheet, IMAGES / "steps.png", facts)
    rows = [row(find(name).model, Sampling("ddim", steps)) for name, steps in STUDENTS]
    facts = {"rows": [f"{n} {k}" for n, k in STUDENTS], "guidance_scale": 1.0, "seed": 0}
    sheet = picture.grid(torch.cat(rows).numpy(), COLUMNS, 5)
    picture.save(sheet, IMAGES / "students.png", facts)


if __name__ == "__main__":
    main()
