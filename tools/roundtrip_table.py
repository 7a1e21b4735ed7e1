"""Store how well images come back from their noise at each number of steps, with a table.

python tools/roundtrip_table.py            # half an hour to an hour on one core
python tools/roundtrip_table.py --check    # compares the pages with what is stored
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.cli.resolve import find
from fewstep.data.digits import digits
from fewstep.denoiser import Denoiser
from fewstep.edit import decode, encode
from fewstep.solvers import DDIM, grids, sample

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "docs/results/roundtrip-digits.json"
PAGE = STORED.with_suffix(".md")
SHARED = ROOT / "docs/editing.md"
BEGIN, END = "<!-- roundtrip: python tools/roundtrip_table.py -->", "<!-- end of roundtrip -->"
PUBLISHED = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 1e-4, 1000: 1e-4}
"""Song, Meng, Ermon, 2021, table 2 (arXiv 2010.02502): CIFAR-10 test images."""
IMAGES, EXACTLY = 128, 32
TEXT = """# An image into its noise and back, by steps

Made by `python tools/roundtrip_table.py`: the shipped model `digits`, its first {images} held-out
images, no label, no guidance, no clipping. Mean squared error of pixels in [0, 1], as in the DDIM
paper (four times as much for pixels in [-1, 1]). *Flipped grid* asks for the noise at the lower
time of each step, as the paper does; *inverted* solves each step, as `fewstep edit encode` does,
here for {exactly} of the images. An image is put down at the first noisy time of the grid: S
steps are S - 1 from there; evaluations are those of inverting. The last column says how far the
noise that the flipped grid finds is from the one that was solved for (root mean square, where the
numbers of noise are about 1): a small error of the image does not say that its noise is right.

"""


def images(n: int) -> Tensor:
    """Return the first held-out digits, shape (n, 1, 8, 8), in [-1, 1]."""
    _, held = digits()
    return torch.tensor(held.pixels[:n]).float() / 127.5 - 1


def flipped(denoiser: Denoiser, x: Tensor, times: Tensor) -> Tensor:
    """Return the noise that the flipped grid finds.

    Args:
        denoiser: without guidance.
        x: shape (B, C, H, W).
        times: falling grid, shape (n + 1,).
    """
    for step in sample(denoiser, tuple(x.shape), times.flip(0), DDIM(), x=x):
        x = step.x
    return x


def error(a: Tensor, b: Tensor) -> float:
    """Return the mean squared error of pixels in [0, 1] of two sets in [-1, 1] of one shape."""
    return float((a - b).double().square().mean()) / 4


def row(denoiser: Denoiser, x: Tensor, steps: int, exactly: int) -> dict[str, Any]:
    """Return the figures of a number of steps.

    Args:
        denoiser: without guidance.
        x: images, shape (B, C, H, W).
        steps: S, >= 3.
        exactly: how many of the images are encoded step by step inverted, in 1..B.
    """
    times = grids.uniform(steps)[:-1]
    near = flipped(denoiser, x, times)
    code = encode(denoiser, x[:exactly], times)
    return {
        "steps": steps,
        "flipped": error(decode(denoiser, near, times), x),
        "inverted": error(decode(denoiser, code.x, times), x[:exactly]),
        "evaluations": code.iterations,
        "noise off": float((near[:exactly] - code.x).square().mean().sqrt()),
    }


def table(stored: dict[str, Any]) -> str:
    """Return the table."""
    heads = [
        *("S", "CIFAR-10, published", "digits, flipped grid", "digits, inverted"),
        *("evaluations", "noise off by"),
    ]
    lines = [heads, ["---:"] * len(heads)]
    for r in stored["rows"]:
        known, off = f"{PUBLISHED[r['steps']]:g}", f"{r['noise off']:.2f}"
        figures = [f"{r['flipped']:.2g}", f"{r['inverted']:.1g}", str(r["evaluations"]), off]
        lines.append([str(r["steps"]), known, *figures])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def pages(stored: dict[str, Any]) -> dict[Path, str]:
    """Return the pages with the table as they should be."""
    before, rest = SHARED.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    text = TEXT.format(images=stored["images"], exactly=stored["exactly"])
    return {
        PAGE: text + table(stored),
        SHARED: f"{before}{BEGIN}\n{table(stored)}{END}{after}",
    }


def main(words: list[str]) -> int:
    """Store and write, or compare; return the exit code."""
    if words == ["--check"]:
        made = pages(json.loads(STORED.read_text("utf-8")))
        return int(any(path.read_text("utf-8") != text for path, text in made.items()))
    found, x = find("digits"), images(IMAGES)
    denoiser = found.model.denoiser
    assert isinstance(denoiser, Denoiser)  # the other kind of model is a noisy classifier
    torch.set_num_threads(1)
    stored: dict[str, Any] = {
        "model": found.name,
        "weights_sha256": found.weights,
        "images": IMAGES,
        "exactly": EXACTLY,
        "rows": [],
    }
    for steps in PUBLISHED:
        stored["rows"].append(row(denoiser, x, steps, EXACTLY))
        STORED.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", "utf-8")
        for path, text in pages(stored).items():
            path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
