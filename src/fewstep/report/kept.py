"""Features that are kept on disk, because making them is most of the work of judging.

Features of real images lie in the cache, under a hash of the images and of the extractor; those
of generated images lie beside the chunk they belong to. Both are memory-mapped when they are
large, so that the memory of a figure does not grow with the number of images.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.data import Images, cache
from fewstep.data.images import shown_name
from fewstep.errors import ResourceError
from fewstep.files import replacing
from fewstep.metrics import Extractor, Features
from fewstep.report.cells import loaded

_PIECE = 250  # images an extractor gets at once
_IN_MEMORY = 1 << 26  # bytes of features that are held in memory rather than mapped


def mark(extractor: Extractor) -> str:
    """Return a name for the features of an extractor that tells two of one name apart."""
    facts = f"{extractor.weights}\0{extractor.rule}"
    return f"{extractor.name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def real_features(extractor: Extractor, images: Images) -> Features:
    """Return the features of real images, made once and then taken from the cache.

    Args:
        extractor: what to compute.
        images: the real images.

    Returns:
        vectors of shape (N, D) and logits (N, K) or None; memory-mapped if they are large.
    """
    folder = cache.folder().parent / "features"
    stem = f"{images.fingerprint[:40]}-{mark(extractor)}"
    stored = _read(folder, stem)
    if stored is not None:
        return stored
    pieces = _computed(extractor, images)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write(folder, stem, pieces)
    except OSError as error:
        warnings.warn(
            f"cannot keep features in {shown_name(folder)} ({error.strerror or error}); working "
            "in memory (FEWSTEP_CACHE chooses another folder)",
            stacklevel=2,
        )
    return joined(list(_computed(extractor, images)))


def _computed(extractor: Extractor, images: Images) -> Iterator[Features]:
    for start in range(0, len(images), _PIECE):
        yield extractor(torch.from_numpy(np.array(images.pixels[start : start + _PIECE])))


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
    """Return an array in a file without a name."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


def _read(folder: Path, stem: str) -> Features | None:
    """Return an entry of the cache, or None if there is none that can be trusted."""
    seal = folder / f"{stem}.json"
    if not seal.exists():
        return None
    try:
        facts = json.loads(seal.read_text("utf-8"))
        arrays: list[Tensor] = []
        for part, digest in facts["sha256"].items():
            path = folder / f"{stem}.{part}.npy"
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise ValueError(f"{path.name} does not match its seal")
            # copy on write: torch wants an array that it may write to, and the file stays as it is
            arrays.append(torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False)))
        return Features(*arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        warnings.warn(
            f"cached features {shown_name(seal)} are damaged ({reason}); making them again",
            stacklevel=2,
        )
        return None


def _write(folder: Path, stem: str, pieces: Iterator[Features]) -> Features:
    """Write an entry piece by piece and return it from disk."""
    raw: dict[str, Path] = {}
    digests: dict[str, str] = {}
    try:
        shapes = _spill(folder, pieces, raw)
        for part, (rows, width) in shapes.items():
            path = folder / f"{stem}.{part}.npy"
            array = np.memmap(raw[part], dtype=np.float32, mode="r", shape=(rows, width))
            with replacing(path) as aside:
                np.save(aside, array, allow_pickle=False)
            with open(path, "rb") as file:
                digests[part] = hashlib.file_digest(file, "sha256").hexdigest()
    finally:
        for path in raw.values():
            path.unlink(missing_ok=True)
    with replacing(folder / f"{stem}.json") as aside:
        aside.write_text(json.dumps({"format": 1, "sha256": digests}))
    stored = _read(folder, stem)
    if stored is None:
        raise OSError(f"{stem} cannot be read back")
    return stored


def _spill(
    folder: Path, pieces: Iterator[Features], raw: dict[str, Path]
) -> dict[str, tuple[int, int]]:
    """Write rows to plain files as they come; return the shape of each."""
    shapes: dict[str, tuple[int, int]] = {}
    with contextlib.ExitStack() as files:
        open_files = {}
        for piece in pieces:
            for part, tensor in zip(("vectors", "logits"), piece, strict=True):
                if tensor is None:
                    continue
                if part not in raw:
                    handle, name = tempfile.mkstemp(prefix=f".{part}.", dir=folder)
                    raw[part] = Path(name)
                    open_files[part] = files.enter_context(os.fdopen(handle, "wb"))
                open_files[part].write(np.ascontiguousarray(tensor.numpy()).data)
                rows = shapes.get(part, (0, 0))[0] + len(tensor)
                shapes[part] = (rows, tensor.shape[1])
    return shapes


def chunk_features(
    extractor: Extractor, folder: Path, span: tuple[int, int], pixels: NDArray[np.uint8] | None
) -> Features | None:
    """Return the features of a chunk, kept beside it.

    Args:
        extractor: what to compute.
        folder: of the cell.
        span: start and end of the chunk.
        pixels: the images, uint8, shape (B, C, H, W), to compute them from if they are not
            there; None only looks.

    Raises:
        ResourceError: the disk refuses.
    """
    start, end = span
    path = folder / mark(extractor) / f"{start:06d}-{end:06d}.npz"
    arrays = loaded(path)
    if "vectors" in arrays and len(arrays["vectors"]) == end - start:
        return Features(*(torch.from_numpy(a) for a in arrays.values()))
    if pixels is None:
        return None
    made = extractor(torch.from_numpy(np.array(pixels)))
    arrays = {"vectors": made.vectors.numpy()}
    if made.logits is not None:
        arrays["logits"] = made.logits.numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            np.savez(aside, **arrays)
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror or e}") from e
    return made
