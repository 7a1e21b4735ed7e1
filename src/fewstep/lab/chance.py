"""Random numbers of the laboratory: a stream of its own for every use of one seed.

Two uses of the same generator seed would draw the same numbers: noise would know the data that it
is added to.
"""

import torch

from fewstep.solvers import Noise
from fewstep.train.engine import entropy


def generator(seed: int, *use: int) -> torch.Generator:
    """Return a generator that depends on the seed and on what it is used for.

    Args:
        seed: of the run, in 0..2^64-1.
        use: numbers that tell this use from the others.
    """
    return torch.Generator().manual_seed(entropy(seed, *use)[0])


def source(seed: int, *use: int) -> Noise:
    """Return one source of standard normal noise for a whole batch; see `generator`."""
    own = generator(seed, *use)
    return lambda x: torch.randn(x.shape, generator=own, dtype=x.dtype)
