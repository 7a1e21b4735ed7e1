"""Features that are kept on disk, because making them is most of the work of judging.

Features of real images lie in the cache, under a hash of the images and of the extractor; those
of generated images lie beside the chunk they belong to. Both come in files of 250 images and are
memory-mapped when they are large, so that the memory of a figure does not grow with the number
of images.
"""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.data import Images, cache
from fewstep.errors import ResourceError
from fewstep.files import replacing
from fewstep.metrics import Extractor, Features
from fewstep.report.cells import loaded, ranges

_ELSEWHERE = "features are not kept (FEWSTEP_CACHE chooses another folder)"
_IN_MEMORY = 1 << 26  # bytes of features that are held in memory rather than mapped


def mark(extractor: Extractor) -> str:
    """Return a name for the features of an extractor that tells two of one name apart."""
    facts = f"{extractor.weights}\0{extractor.rule}"
    return f"{extractor.name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def real_features(
    extractor: Extractor, images: Images, tick: Callable[[int, int], None] | None = None
) -> Features:
    """Return the features of real images, made once and then taken from the cache.

    They are kept in pieces as they are made, so that interrupted work goes on where it was.

    Args:
        extractor: what to compute.
        images: the real images.
        tick: told (images done, images) while features are made.

    Returns:
        vectors of shape (N, D) and logits (N, K) or None; memory-mapped if they are large.
    """
    folder = cache.folder().parent / "features" / images.fingerprint[:40]

    def pieces() -> Iterator[Features]:
        refused = False
        for span in ranges(len(images)):
            found = None if refused else chunk_features(extractor, folder, span, None)
            if found is None:
                found = extractor(torch.from_numpy(np.array(images.pixels[slice(*span)])))
                try:
                    if not refused:
                        _keep(place(extractor, folder, span), found)
                except ResourceError as error:
                    warnings.warn(f"{error}; {_ELSEWHERE}", stacklevel=3)
                    refused = True
                if tick is not None:
                    tick(span[1], len(images))
            yield found

    return mapped(pieces(), len(images))


def joined(pieces: Sequence[Features]) -> Features:
    """Return pieces of features as one set.

    Args:
        pieces: vectors of shape (B, D) each, logits (B, K) each or None in all.
    """
    logits = [p.logits for p in pieces if p.logits is not None]
    return Features(torch.cat([p.vectors for p in pieces]), torch.cat(logits) if logits else None)


def mapped(pieces: Iterator[Features], n: int) -> Features:
    """Return pieces of features as one set, in a temporary file if that is large.

    Args:
        pieces: vectors of shape (B, D) each, logits (B, K) or None.
        n: images in all.

    Returns:
        vectors of shape (n, D); the file is gone when the features are.
    """
    first = next(pieces)
    if n * first.vectors.shape[1] * 4 <= _IN_MEMORY:
        return joined([first, *pieces])
    vectors = _scratch((n, first.vectors.shape[1]))
    logits = None if first.logits is None else _scratch((n, first.logits.shape[1]))
    row = 0
    for piece in (p for group in ([first], pieces) for p in group):
        vectors[row : row + len(piece.vectors)] = piece.vectors.numpy()
        if logits is not None and piece.logits is not None:
            logits[row : row + len(piece.logits)] = piece.logits.numpy()
        row += len(piece.vectors)
    return Features(
        torch.from_numpy(vectors), None if logits is None else torch.from_numpy(logits)
    )


def _scratch(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return an array in a file without a name.

    Raises:
        ResourceError: there is no room for it.
    """
    size = 4 * shape[0] * shape[1]
    with tempfile.TemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):  # else a full disk is noticed by being killed
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as e:
            raise ResourceError(
                f"no room for {size / 2**20:.0f} MiB of features in {tempfile.gettempdir()} "
                f"({e.strerror or e}); set TMPDIR to a larger folder"
            ) from e
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)


def place(extractor: Extractor, folder: Path, span: tuple[int, int]) -> Path:
    """Return the file of a chunk's features; arguments as in `chunk_features`."""
    return folder / mark(extractor) / f"{span[0]:06d}-{span[1]:06d}.npz"


def chunk_features(
    extractor: Extractor, folder: Path, span: tuple[int, int], pixels: NDArray[np.uint8] | None
) -> Features | None:
    """Return the features of a chunk, kept beside it.

    Args:
        extractor: what to compute.
        folder: of the cell, or of the real images.
        span: start and end of the chunk.
        pixels: the images, uint8, shape (B, C, H, W), to compute them from if they are not
            there; None only looks.

    Raises:
        ResourceError: the disk refuses.
    """
    (start, end), path = span, place(extractor, folder, span)
    arrays = loaded(path)
    if "vectors" in arrays and len(arrays["vectors"]) == end - start:
        return Features(*(torch.from_numpy(arrays[k]) for k in Features._fields if k in arrays))
    if pixels is None:
        return None
    made = extractor(torch.from_numpy(np.array(pixels)))
    _keep(path, made)
    return made


def _keep(path: Path, features: Features) -> None:
    """Write the features of a chunk.

    Raises:
        ResourceError: the disk refuses.
    """
    arrays = {name: x.numpy() for name, x in features._asdict().items() if x is not None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            np.savez(aside, **arrays)
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror or e}") from e
