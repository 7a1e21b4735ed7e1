"""Points in the plane: five sets drawn from a seed, or those of a file.

Each set says the mean and the standard deviation of the law that its points are drawn from, so
that a sample can be judged. `standard` moves and scales any points to mean 0 and deviation 0.5,
the level of images in [-1, 1], by one factor for both axes: the shape stays.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import DataError, UsageError, suggest

FEWEST = 20
"""Points that a file must have."""
STD = 0.5
"""Standard deviation of `standard` points."""


@dataclass(frozen=True)
class PointSet:
    """A law of points in the plane.

    Attributes:
        about: what it looks like, in a few words.
        mean: of both coordinates, exact or to four digits.
        std: standard deviation of both coordinates, likewise.
        draw: draw(n, generator) -> independent points, float32, shape (n, 2).
    """

    about: str
    mean: tuple[float, float]
    std: tuple[float, float]
    draw: Callable[[int, torch.Generator], Tensor]


def points(name: str, n: int, seed: int = 0) -> Tensor:
    """Draw points of a set.

    Args:
        name: a name in `SETS`.
        n: how many, >= 1.
        seed: of the draw, in 0..2^64-1; the same seed gives the same points.

    Returns:
        shape (n, 2), float32, in no order.

    Raises:
        UsageError: unknown name, or n < 1.

    >>> points("moons", 3).shape
    torch.Size([3, 2])
    """
    if name not in SETS:
        raise UsageError(f'points "{name}": allowed are {", ".join(SETS)}{suggest(name, SETS)}')
    if n < 1:
        raise UsageError(f"{n} points: at least 1 is needed")
    return SETS[name].draw(n, torch.Generator().manual_seed(seed))


def read(path: Path) -> Tensor:
    """Read points from a file: CSV with two columns, or a .npy array of shape (n, 2).

    The first line of a CSV may name the columns.

    Args:
        path: of a file that ends in .csv or .npy.

    Returns:
        shape (n, 2), float32, n >= 20.

    Raises:
        DataError: no such file, another kind of file, other columns, a value that is no finite
            number, too few points, or points that are all the same; with the row.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; --data takes {', '.join(SETS)}, or a .csv or .npy file"
        )
    readers = {".csv": _csv, ".npy": _npy}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: is no .csv and no .npy file; points are read from these")
    with np.errstate(over="ignore"):
        values = readers[path.suffix.lower()](path).astype(np.float32)
    lost = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(lost):
        raise DataError(
            f"{path}: row {lost[0] + 1} of {len(values)} has a value that is not finite, or "
            f"beyond float32 (of {len(lost)} such rows); leave them out"
        )
    if len(values) < FEWEST:
        raise DataError(f"{path}: {len(values)} points; at least {FEWEST} are needed")
    if bool((values == values[0]).all()):
        raise DataError(f"{path}: all points are the same; there is nothing to learn")
    return torch.from_numpy(values)


def _csv(path: Path) -> np.ndarray:
    """Return the numbers of a CSV file, shape (n, 2)."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read ({e}); write it as UTF-8 text") from e
    rows: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        cells = line.split(",")
        if len(cells) != 2:
            raise DataError(
                f"{path}: line {number} has {len(cells)} columns; 2 are needed, with a comma "
                "between them"
            )
        try:
            rows.append([float(cell) for cell in cells])
        except ValueError:
            if rows or number > 1:  # the first line may name the columns
                said = line.strip()[:40]
                raise DataError(
                    f"{path}: line {number} is {said!r}; 2 numbers are needed"
                ) from None
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _npy(path: Path) -> np.ndarray:
    """Return the numbers of a .npy file, shape (n, 2)."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        values = None
    if not isinstance(values, np.ndarray):  # an .npz is something else
        raise DataError(f"{path}: is no .npy array of numbers; write one of shape (n, 2)")
    if values.ndim != 2 or values.shape[1] != 2 or values.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: {values.dtype} of shape {values.shape}; numbers of shape (n, 2) are needed"
        )
    return values


def standard(x: Tensor) -> Tensor:
    """Move and scale points to mean 0 and standard deviation `STD`, the same for both axes.

    Args:
        x: shape (n, 2).

    Returns:
        shape (n, 2), dtype of x, the mean of the two variances being STD^2.
    """
    wide = x.double()
    wide = wide - wide.mean(0)
    return (wide * (STD / wide.square().mean().sqrt())).to(x.dtype)


def _two_modes(n: int, draw: torch.Generator) -> Tensor:
    heavy = torch.rand(n, 1, generator=draw) < 0.8
    return torch.where(heavy, 5.0, -5.0) + torch.randn(n, 2, generator=draw)


def _rings(n: int, draw: torch.Generator) -> Tensor:
    radius = 1.0 + torch.randint(2, (n,), generator=draw) + 0.05 * torch.randn(n, generator=draw)
    angle = 2 * math.pi * torch.rand(n, generator=draw)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _moons(n: int, draw: torch.Generator) -> Tensor:
    angle = math.pi * torch.rand(n, generator=draw)
    arc = torch.stack([angle.cos(), angle.sin()], 1)
    below = torch.rand(n, 1, generator=draw) < 0.5
    x = torch.where(below, torch.tensor([1.0, 0.5]) - arc, arc)
    return x + 0.05 * torch.randn(n, 2, generator=draw)


def _grid(n: int, draw: torch.Generator) -> Tensor:
    corner = torch.randint(5, (n, 2), generator=draw) - 2.0
    return corner + 0.1 * torch.randn(n, 2, generator=draw)


def _swiss_roll(n: int, draw: torch.Generator) -> Tensor:
    angle = math.pi * (1.5 + 3 * torch.rand(n, generator=draw))
    roll = torch.stack([angle.cos(), angle.sin()], 1) * angle[:, None] / 10
    return roll + 0.03 * torch.randn(n, 2, generator=draw)


SETS: Mapping[str, PointSet] = {
    "two-modes": PointSet(
        "0.2 N((-5, -5), I) + 0.8 N((5, 5), I)", (3.0, 3.0), (4.1231, 4.1231), _two_modes
    ),
    "rings": PointSet("two circles, one in the other", (0.0, 0.0), (1.1186, 1.1186), _rings),
    "moons": PointSet("two half circles, locked together", (0.5, 0.25), (0.8675, 0.4967), _moons),
    "grid": PointSet("25 blobs in five rows", (0.0, 0.0), (1.4177, 1.4177), _grid),
    "swiss-roll": PointSet(
        "a spiral of one and a half turns", (0.2, 0.0212), (0.6630, 0.6958), _swiss_roll
    ),
}
"""The sets by name."""
