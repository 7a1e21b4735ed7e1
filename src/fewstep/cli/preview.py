"""The sample grids of a training run: the same classes and seeds every time.

A row is a class (the first ten), a column a seed, so that two grids of a run show the same
images getting better.
"""

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.report import picture

if TYPE_CHECKING:
    from fewstep.model import Model

_ROWS, _STEPS = 10, 20
_WORK = 80 * 64  # pixels of the grid for which a CPU needs seconds


@dataclass(frozen=True)
class Preview:
    """Write samples/step-00000250.png; `fit` calls it with the averaged model.

    Args:
        folder: where the grids go.
    """

    folder: Path

    def __call__(self, step: int, model: "Model") -> None:
        """Sample and write one grid."""
        from fewstep import __version__, sampling

        labels, columns = layout(model.shape, len(model.classes))
        settings = replace(model.sampling, steps=min(model.sampling.steps, _STEPS))
        walk = sampling.walk(model, settings, labels or None, len(labels) or columns**2)
        (last,) = deque(walk, maxlen=1)
        pixels = sampling.to_uint8(last.x).cpu().numpy()
        scale = picture.factor(*model.shape[1:])
        sheet = picture.grid(pixels, columns, max(1, scale // 2))
        facts = {"version": __version__, "step": step, "labels": labels, "steps": settings.steps}
        picture.save(sheet, self.folder / f"step-{step:08d}.png", facts)


def layout(shape: tuple[int, ...], classes: int) -> tuple[list[int], int]:
    """Return the label of every image, row by row, and the number of columns.

    Large images get fewer columns: a preview must cost seconds, not minutes.

    >>> layout((1, 8, 8), 10)[1], len(layout((1, 8, 8), 10)[0])
    (8, 80)
    """
    columns = min(8, max(2, _WORK * 4 // (_ROWS * shape[1] * shape[2])))
    return [k for k in range(min(classes, _ROWS)) for _ in range(columns)], columns
