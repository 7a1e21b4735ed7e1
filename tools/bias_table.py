"""Write the table of the bias of a Frechet distance into docs/evaluation.md.

Two sets of n images of one Gaussian, features of width 32 with unit covariance, measured with the
functions that `fewstep evaluate` uses, beside the law that `metrics.expected_distance` states.

    python tools/bias_table.py            # writes; with --check it only compares
"""

import sys
from pathlib import Path

import numpy as np
import torch

from fewstep.metrics.quality import expected_distance, frechet_distance

PAGE = Path(__file__).resolve().parent.parent / "docs" / "evaluation.md"
BEGIN, END = "<!-- bias: python tools/bias_table.py -->", "<!-- end of bias -->"
WIDTH, REPEATS, LARGE = 32, 20, 50_000
NUMBERS = (500, 2000, 8000)


def measured(n: int, width: int = WIDTH, repeats: int = REPEATS) -> float:
    """Return the mean distance of n images to n others of the same unit Gaussian."""
    draw = np.random.default_rng(n)
    values = []
    for _ in range(repeats):
        real, made = (torch.from_numpy(draw.standard_normal((n, width))) for _ in range(2))
        values.append(frechet_distance(real, made))
    return float(np.mean(values))


def table() -> str:
    """Return the rows as Markdown."""
    eye = torch.eye(WIDTH, dtype=torch.float64)
    lines = [
        f"| N | measured, N against N | law, N against N | law, N against {LARGE:,} |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {n:,} | {measured(n):.4f} | {expected_distance(eye, n, n):.4f} "
        f"| {expected_distance(eye, n, LARGE):.4f} |"
        for n in NUMBERS
    ]
    return "\n".join(lines)


def main(check: bool, page: Path = PAGE) -> int:
    """Write or compare; return the exit code."""
    text = page.read_text("utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    now = f"{head}{BEGIN}\n{table()}\n{END}{tail}"
    if check:
        return 0 if now == text else 1
    page.write_text(now, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
