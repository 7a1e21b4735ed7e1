"""The order in which training sees the images: a pure function of (seed, position).

Every epoch is a permutation of the data set, and the global batches cut the endless chain of
epochs into equal pieces: batch k holds positions `k*B ... k*B + B - 1` of epoch 0, epoch 1, ...
Nothing is stored and nothing is advanced, so a resumed run, a second process or a reader of the
log finds the ids of step k by asking for step k.

The permutation sorts the indices by a 64-bit hash of (seed, epoch, index). A generator of NumPy
would do as well today, but its streams may change between releases, and a run must continue
bit for bit after an upgrade; the hash is ten lines and ours.

Inside: `scramble` (the hash), `order`, `batch_ids`, `rank_slice`.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread the bits of every word (the finaliser of SplitMix64, a bijection)."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def scramble(seed: int, epoch: int, n: int) -> NDArray[np.uint64]:
    """Return one 64-bit hash for every index 0 ... n - 1 of an epoch.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014, section 5
    (the finaliser with Stafford's constants, variant 13).
    """
    # Arrays of length 1 and not scalars: NumPy wraps arrays silently and warns for scalars.
    state = _mix(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
    state = _mix(state + np.array([epoch], dtype=np.uint64) * _GOLDEN)
    return _mix(state + np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> Ids:
    # A stable sort makes the answer a permutation even if two hashes are equal.
    ids = np.argsort(scramble(seed, epoch, n), kind="stable").astype(np.int64)
    ids.setflags(write=False)  # it is shared by every caller
    return ids


def order(seed: int, epoch: int, n: int) -> Ids:
    """Return the permutation of 0 ... n - 1 in which `epoch` visits the images.

    Args:
        seed: the run's data seed, 0 ... 2**64 - 1.
        epoch: which pass over the data, from 0.
        n: number of images, at least 1.

    Returns:
        int64 (n,), a permutation; the same for the same arguments on every machine.

    Raises:
        ValueError: if an argument is out of range.
    """
    if n < 1 or epoch < 0:
        raise ValueError(f"order needs n >= 1 and epoch >= 0, got n={n}, epoch={epoch}")
    return _permutation(seed, epoch, n).copy()


def batch_ids(seed: int, step: int, batch_size: int, n: int) -> Ids:
    """Return the image ids of the global batch `step`.

    Batches run on across epochs: the last batch of an epoch is filled up from the next one, so
    every batch has `batch_size` ids and over many steps every image is seen equally often. A
    batch larger than the data set therefore repeats images (see `images.check_batch`).

    Args:
        seed: the run's data seed, 0 ... 2**64 - 1.
        step: training step, from 0.
        batch_size: images in the batch over all processes, at least 1.
        n: number of images in the data set, at least 1.

    Returns:
        int64 (batch_size,), values 0 ... n - 1.

    Raises:
        ValueError: if an argument is out of range.
    """
    if n < 1 or batch_size < 1 or step < 0:
        raise ValueError(
            f"batch_ids needs n >= 1, batch_size >= 1 and step >= 0, "
            f"got n={n}, batch_size={batch_size}, step={step}"
        )
    first = step * batch_size
    last = first + batch_size
    pieces = []
    for epoch in range(first // n, (last - 1) // n + 1):
        start = epoch * n
        pieces.append(_permutation(seed, epoch, n)[max(first - start, 0) : last - start])
    return np.concatenate(pieces)


def rank_slice(ids: Ids, rank: int, world_size: int) -> Ids:
    """Return the part of a global batch that process `rank` of `world_size` works on.

    Args:
        ids: int64 (B,), a global batch.
        rank: 0 ... world_size - 1.
        world_size: number of processes; it must divide B.

    Returns:
        int64 (B / world_size,). The slices of all ranks are disjoint positions of the batch and
        their concatenation is the batch, so the global batch does not depend on `world_size`.

    Raises:
        ValueError: if `world_size` does not divide the batch or `rank` is out of range.
    """
    if not 0 <= rank < world_size or len(ids) % world_size:
        raise ValueError(f"cannot cut a batch of {len(ids)} for rank {rank} of {world_size}")
    share = len(ids) // world_size
    return ids[rank * share : (rank + 1) * share]
