"""Sources of noise for sampling: one stream of numbers per image.

Image i of a run owns a CPU generator seeded with (seed + i) mod 2^64 and takes all its noise
from there, in float32, first its starting point and then what each stochastic step asks for. So
the same picture comes out of any batch size, number of processes or order, and image 37 of a run
can be made again alone with seed + 37.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.errors import UsageError

SEEDS = 2**64
"""Seeds are whole numbers below this."""


def image_seeds(seed: int, n: int, first: int = 0) -> list[int]:
    """Return the seeds of images first .. first + n - 1 of a run: (seed + i) mod 2^64.

    Args:
        seed: of the run, in 0 .. 2^64 - 1.
        n: number of images, >= 0.
        first: number of the first image in the run, >= 0.

    Returns:
        n seeds in 0 .. 2^64 - 1, one per image.

    Raises:
        UsageError: seed is not in 0 .. 2^64 - 1.

    >>> image_seeds(5, 3)
    [5, 6, 7]
    """
    if not 0 <= seed < SEEDS:
        raise UsageError(f"seed {seed}: must be a whole number in 0..2^64-1")
    return [(seed + first + i) % SEEDS for i in range(n)]


class PerImage:
    """Draw noise for a batch, each image from its own generator.

    Args:
        seeds: one seed in 0 .. 2^64 - 1 per image of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        # manual_seed reads the upper half of the range as negative numbers
        self._generators = [torch.Generator().manual_seed(s) for s in seeds]

    def __call__(self, x: Tensor) -> Tensor:
        """Return standard normal noise, shape, dtype and device of x.

        Raises:
            ValueError: the batch has another size than there are seeds.
        """
        if x.shape[0] != len(self._generators):
            raise ValueError(f"{len(self._generators)} seeds for a batch of {x.shape[0]} images")
        z = torch.empty(x.shape, dtype=torch.float32)
        for row, generator in zip(z, self._generators, strict=True):
            row.normal_(generator=generator)
        return z.to(x)
