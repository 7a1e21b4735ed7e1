"""What a training run shows of itself now and then, the same every time.

A generator shows a grid of samples: a row is a class (the first ten), a column a seed, so that
two grids of a run show the same images getting better. A noisy classifier shows its accuracy on
held-out images in quarters of the noise, because where it guides is where the noise is.
"""

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.report import picture

if TYPE_CHECKING:
    from fewstep.data import Images
    from fewstep.model import Model

_ROWS, _STEPS = 10, 20
_JUDGED = 1000  # images that a classifier in training is judged by
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
        few = {"steps": min(model.sampling.steps, _STEPS)}
        settings = sampling.changed(model.sampling, few)
        walk = sampling.walk(model, settings, labels or None, len(labels) or columns**2)
        (last,) = deque(walk, maxlen=1)
        pixels = sampling.to_uint8(last.x).cpu().numpy()
        scale = picture.factor(*model.shape[1:])
        sheet = picture.grid(pixels, columns, max(1, scale // 2))
        facts = {"version": __version__, "step": step, "labels": labels, "steps": settings.steps}
        picture.save(sheet, self.folder / f"step-{step:08d}.png", facts)


@dataclass(frozen=True)
class Accuracy:
    """Write samples/step-00000250.json and a line; `fit` calls it with the averaged classifier.

    Args:
        folder: where the files go.
        images: held-out images; of more than a thousand, a fixed choice.
    """

    folder: Path
    images: "Images"

    def __call__(self, step: int, model: "Model") -> None:
        """Classify noised images; write and say the accuracy by quarter."""
        import torch

        from fewstep.cli import console, record
        from fewstep.objectives import accuracy_by_noise

        assert model.classifier is not None
        ids = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))
        x, y = self.images.batch(ids[:_JUDGED])
        place = next(model.classifier.parameters()).device
        noise = torch.Generator(place).manual_seed(0)
        found = accuracy_by_noise(model.classifier, x.to(place), y.to(place), noise)
        record.json_file(
            self.folder / f"step-{step:08d}.json",
            {"step": step, "images": len(x), "of": self.images.name, "accuracy": found},
        )
        shown = " ".join(f"{share:.2f}" for share in found)
        console.note(f"step {step}: accuracy by noise, from the cleanest quarter: {shown}")


def layout(shape: tuple[int, ...], classes: int) -> tuple[list[int], int]:
    """Return the label of every image, row by row, and the number of columns.

    Large images get fewer columns: a preview must cost seconds, not minutes.

    >>> layout((1, 8, 8), 10)[1], len(layout((1, 8, 8), 10)[0])
    (8, 80)
    """
    columns = min(8, max(2, _WORK * 4 // (_ROWS * shape[1] * shape[2])))
    return [k for k in range(min(classes, _ROWS)) for _ in range(columns)], columns
