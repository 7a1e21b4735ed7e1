"""Make docs/images/steps.png: the same seeds of the shipped model with fewer and fewer steps.

python tools/steps_picture.py
"""

from dataclasses import replace
from pathlib import Path

import torch

from fewstep import sampling
from fewstep.cli.resolve import find
from fewstep.report import picture

WAYS = (("ddpm", 1000), ("ddim", 50), ("ddim", 20), ("ddim", 10), ("dpmpp", 5))
COLUMNS = 20


def main() -> None:
    """Sample each row and lay the rows out."""
    model = find("digits").model
    labels = [i % 10 for i in range(COLUMNS)]
    rows = []
    for sampler, steps in WAYS:
        preset = replace(model.sampling, sampler=sampler, steps=steps, guidance_scale=2.0)
        x = torch.empty(0)
        for step in sampling.walk(model, preset, labels, COLUMNS):
            x = step.x
        rows.append(sampling.to_uint8(x))
    facts = {"rows": [f"{name} {steps}" for name, steps in WAYS], "guidance_scale": 2.0, "seed": 0}
    sheet = picture.grid(torch.cat(rows).numpy(), COLUMNS, 5)
    picture.save(sheet, Path(__file__).parent.parent / "docs/images/steps.png", facts)


if __name__ == "__main__":
    main()
