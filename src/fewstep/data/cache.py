"""Decoded data sets on disk: files are decoded once and memory-mapped from then on.

An entry is a plain `.npy` array of bytes and a small JSON file beside it that seals it: both
are written under a temporary name and renamed, the JSON last, so a process that dies while
writing leaves no entry. Reading an entry hashes it and compares with the seal; a damaged entry
is decoded again with a warning, never used. The hash is the fingerprint a run stores anyway, so
the check is free, and it brings the file into the page cache.

The folder is FEWSTEP_CACHE, else XDG_CACHE_HOME/fewstep, else ~/.cache/fewstep; it can be deleted
at any time.

Inside: `folder`, `read`, `write`, `Part`.
"""

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep.data.images import Images, Pixels, shown_name
from fewstep.data.stream import Ids
from fewstep.files import replacing

_FORMAT = 1


@dataclass(frozen=True)
class Part:
    """Name a run of rows of an entry (training or held-out) and its labels."""

    name: str
    labels: Ids
    classes: tuple[str, ...]


def folder() -> Path:
    """Return the folder of decoded data sets (it need not exist)."""
    ours = os.environ.get("FEWSTEP_CACHE")
    if ours:
        return Path(ours).expanduser() / "data"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fewstep" / "data"


def cut(pixels: Pixels, parts: Sequence[Part]) -> list[Images]:
    """Cut consecutive rows of `pixels` into the parts' images (views, nothing is copied)."""
    images, start = [], 0
    for part in parts:
        rows = pixels[start : start + len(part.labels)]
        images.append(Images.of(rows, part.labels, part.classes, part.name))
        start += len(part.labels)
    return images


def read(key: str, parts: Sequence[Part]) -> list[Images] | None:
    """Return the images of an entry, or None if there is none that can be trusted."""
    array, seal = folder() / f"{key}.npy", folder() / f"{key}.json"
    if not seal.exists():
        return None
    try:
        facts = json.loads(seal.read_text("utf-8"))
        # A plain view of the map: the subclass would slow every gather down.
        pixels = np.asarray(np.load(array, mmap_mode="r", allow_pickle=False))
        images = cut(pixels, parts)
        if facts["format"] == _FORMAT and facts["rows"] == len(pixels):
            found = [each.fingerprint for each in images]
            if facts["fingerprints"] == found:
                return images
        reason = "its content does not match its seal"
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        reason = " ".join(str(error).split())
    warnings.warn(
        f"cached images {shown_name(array)} are damaged ({reason}); decoding the files again",
        stacklevel=2,
    )
    return None


def write(
    key: str, shape: tuple[int, ...], blocks: Iterable[Pixels], parts: Sequence[Part]
) -> list[Images]:
    """Write an entry block by block and return its images, memory-mapped.

    The rows are written, not mapped: a full disk is then an error and not a signal.

    Args:
        key: name of the entry.
        shape: (N, C, H, W) of the whole array.
        blocks: uint8 arrays whose concatenation has that shape.
        parts: how the rows are divided.

    Raises:
        OSError: if the folder cannot be written; nothing is left behind.
    """
    array = folder() / f"{key}.npy"
    array.parent.mkdir(parents=True, exist_ok=True)
    facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with replacing(array, sync=True) as aside, open(aside, "wb") as file:
        np.lib.format.write_array_header_1_0(file, facts)
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)
    images = cut(np.asarray(np.load(array, mmap_mode="r", allow_pickle=False)), parts)
    seal = {"format": _FORMAT, "rows": shape[0], "fingerprints": [i.fingerprint for i in images]}
    with replacing(folder() / f"{key}.json", sync=True) as aside:
        aside.write_text(json.dumps(seal))
    return images
