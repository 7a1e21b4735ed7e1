"""Lines of results with made-up figures, for the tests of tables and pages."""

import copy

import torch

from fewstep.metrics.figures import Figure
from fewstep.model import Sampling
from fewstep.report import spec
from fewstep.report.results import Line

PROTOCOL = {
    "name": "small-2k",
    "n": 2000,
    "extractors": {"pixels": {"weights": "", "rule": "as they are"}},
    "reference": {
        "split": "held out",
        "images": 450,
        "fingerprint": "3fa9" * 16,
    },
    "quantisation": "8 bits, rounded",
    "parameters": {"subsets": 100, "neighbours": 3},
}


def figures(distance: float, accuracy: float, real: float = 0.25) -> tuple[Figure, ...]:
    """Four figures whose intervals differ."""
    return (
        Figure("KD-pixels", distance / 100, distance / 110, distance / 90, 0.0001, 897),
        Figure("FD-pixels", distance, distance - 0.04, distance + 0.06, real, 897),
        Figure("precision-pixels", 0.75, 0.7, 0.8, 0.82, 897, "higher"),
        Figure("accuracy", accuracy, accuracy - 0.01, accuracy + 0.01, 0.993, 450, "higher"),
    )


def line(row: spec.Row, distance: float, nfe: int, images: int = 2000, **change) -> Line:
    """One measured row, with pictures."""
    values = {
        "title": row.title,
        "group": row.group,
        "model": "digits",
        "weights": "ab12" * 16,
        "settings": row.settings(),
        "nfe": nfe,
        "images": images,
        "seconds": nfe * 1e-3,
        "figures": figures(distance, 0.98),
        "protocol": copy.deepcopy(PROTOCOL),
        "record": {
            "reference": "digits",
            "seeds": "image i: 0 + i",
            "versions": {"fewstep": "0.1.0"},
        },
        "pixels": torch.arange(4 * 64, dtype=torch.uint8).reshape(4, 1, 8, 8),
    }
    return Line(**{**values, **change})


def frontier() -> list[Line]:
    """Six rows; the one of 1000 steps is early."""
    words = "ddim:50,ddim:10,dpmpp:10,ddpm:1000,ddim:20:scale=2,ddim:20:scale=4"
    values = [(0.3, 50), (0.46, 10), (0.32, 10), (2.1, 1000), (0.6, 40), (1.15, 40)]
    return [
        line(row, *pair, images=250 if row.sampling.steps == 1000 else 2000)
        for row, pair in zip(spec.parse(words, Sampling()), values, strict=True)
    ]


def ddim_table() -> list[Line]:
    """The 25 rows of the talk's table; cell (i, j) has the distance 10 i + j + 1."""
    rows, nfe = spec.ddim_table(Sampling()), (10, 20, 49, 96, 688)  # duplicates are dropped
    return [line(row, 10.0 * (k // 5) + k % 5 + 1, nfe[k % 5]) for k, row in enumerate(rows)]


def foreign() -> Line:
    """Images from elsewhere: no settings, no cost."""
    row = spec.Row("folder", Sampling())
    return line(row, 0.9, 0, settings={}, weights="", seconds=0.0, model="theirs")
