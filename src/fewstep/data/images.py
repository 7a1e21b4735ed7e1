"""A decoded data set: one array of bytes, one array of labels, and what they are called.

Images stay uint8 until a batch is asked for: a data set is then a memory map that several
processes share, and a batch is one gather of rows followed by a cast, with no Python work per
image. The network's range is x = u / 127.5 - 1, which sends 0 to -1 and 255 to 1 exactly; the
other common convention, u / 128 - 1, never reaches 1 and makes white pixels unreachable for a
sampler that clips.

Inside: `Images`; `fingerprint` (what identifies a data set); `split_ids` (stratified split);
`check_batch` and `check_classes` (refusals that must come before training starts).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.data.stream import Ids, scramble
from fewstep.errors import DataError, UsageError

Pixels = NDArray[np.uint8]

_SHOWN = 5  # classes named in a message before the rest is counted


def fingerprint(pixels: Pixels, labels: Ids, classes: Sequence[str]) -> str:
    """Return the SHA-256 of shape, class names, labels and pixels, in hexadecimal.

    Args:
        pixels: uint8 (N, C, H, W), 0 ... 255.
        labels: int64 (N,).
        classes: names of the labels.
    """
    head = json.dumps({"shape": list(pixels.shape), "classes": list(classes)})
    digest = hashlib.sha256(head.encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    for start in range(0, len(pixels), 4096):  # pieces: a strided memory map is never copied whole
        digest.update(np.ascontiguousarray(pixels[start : start + 4096]).data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Images:
    """Hold a labelled set of images of one size, in memory or as a memory map.

    Args:
        pixels: uint8 (N, C, H, W), 0 ... 255, C = 1 or 3.
        labels: int64 (N,), 0 ... K - 1; all 0 when there are no classes.
        classes: the K class names, in the order of the labels; () means unlabelled.
        name: what to call the set in reports.
        fingerprint: SHA-256 of the content (see `fingerprint`).

    Raises:
        ValueError: if shapes, types or labels do not fit together.
    """

    pixels: Pixels
    labels: Ids
    classes: tuple[str, ...]
    name: str
    fingerprint: str

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        if self.pixels.ndim != 4 or self.pixels.dtype != np.uint8:
            raise ValueError(
                f"pixels must be uint8 (N, C, H, W), got {self.pixels.dtype} {self.pixels.shape}"
            )
        if self.labels.shape != (len(self.pixels),) or self.labels.dtype != np.int64:
            raise ValueError(
                f"labels must be int64 ({len(self.pixels)},), "
                f"got {self.labels.dtype} {self.labels.shape}"
            )
        top = max(len(self.classes), 1) - 1
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() <= top:
            raise ValueError(
                f"labels must lie in 0 ... {top}, got {self.labels.min()} ... {self.labels.max()}"
            )

    @classmethod
    def of(cls, pixels: Pixels, labels: Ids, classes: Sequence[str], name: str) -> "Images":
        """Return the set with its fingerprint computed from the content."""
        return cls(pixels, labels, tuple(classes), name, fingerprint(pixels, labels, classes))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        _, c, h, w = self.pixels.shape
        return c, h, w

    def batch(self, ids: Ids | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather images and labels: x = u / 127.5 - 1.

        Args:
            ids: int64 (B,), values 0 ... N - 1.

        Returns:
            x float32 (B, C, H, W) in [-1, 1] and y int64 (B,), both on the CPU.
        """
        rows = ids.numpy() if isinstance(ids, torch.Tensor) else ids
        # The gather happens on bytes: a quarter of the traffic of gathering floats.
        x = torch.from_numpy(self.pixels[rows]).float().div_(127.5).sub_(1)
        return x, torch.from_numpy(self.labels[rows])

    def subset(self, ids: Ids) -> "Images":
        """Return the images with these ids, in this order, as a set in memory."""
        return Images.of(self.pixels[ids], self.labels[ids], self.classes, self.name)

    def renamed(self, name: str) -> "Images":
        """Return the same content under another name."""
        return replace(self, name=name)

    def describe(self) -> dict[str, Any]:
        """Return what a run writes down about its data (JSON-able)."""
        counts = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        return {
            "name": self.name,
            "images": len(self),
            "shape": list(self.shape),
            "classes": list(self.classes),
            "counts": counts[: len(self.classes)],
            "fingerprint": self.fingerprint,
        }


def split_ids(labels: Ids, held_out: float, seed: int) -> tuple[Ids, Ids]:
    """Split 0 ... N - 1 into training and held-out ids, class by class.

    Every class gives round(held_out * its size) images, at least one if it has two, so a rare
    class is never missing from the held-out part and never emptied from the training part.

    Args:
        labels: int64 (N,).
        held_out: fraction to hold out, 0 <= held_out < 1.
        seed: 0 ... 2**64 - 1; the split is a pure function of (labels, held_out, seed).

    Returns:
        Two sorted int64 arrays, disjoint, together all of 0 ... N - 1.

    Raises:
        UsageError: if `held_out` or `seed` is out of range.
    """
    if not 0 <= held_out < 1:
        raise UsageError(f"held_out={held_out} is not a fraction: allowed is 0 <= held_out < 1")
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed={seed} is out of range: allowed is 0 ... 2**64 - 1")
    held = np.zeros(len(labels), dtype=bool)
    if held_out > 0:
        rank = scramble(seed, 0, len(labels))
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            count = min(max(round(held_out * len(members)), 1), len(members) - 1)
            held[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)


def check_batch(images: Images, batch_size: int, *, replacement: bool = False) -> None:
    """Refuse a batch larger than the data set.

    Args:
        images: the training set.
        batch_size: images in one global batch.
        replacement: accept it; a batch then repeats images.

    Raises:
        DataError: if there are no images, or fewer than `batch_size` without `replacement`.
    """
    if not len(images):
        raise DataError(f"{images.name} has no images: at least 1 is needed; add images")
    if len(images) < batch_size and not replacement:
        raise DataError(
            f"{images.name} has {len(images)} images, fewer than the batch size {batch_size}: "
            f"give a batch size of at most {len(images)}, or allow replacement"
        )


def _names(words: Sequence[str]) -> str:
    shown = ", ".join(f'"{shown_name(word)}"' for word in words[:_SHOWN])
    more = len(words) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def check_classes(expected: Sequence[str], found: Sequence[str], where: str = "data") -> None:
    """Refuse data whose class map is not the one a model was trained with.

    Args:
        expected: class names of the model or run, in the order of the labels.
        found: class names of the data at hand.
        where: what to call the data in the message.

    Raises:
        DataError: if a class is missing or new, or the order differs (labels would be wrong).
    """
    if tuple(expected) == tuple(found):
        return
    missing = [name for name in expected if name not in set(found)]
    new = [name for name in found if name not in set(expected)]
    parts = [f"missing {_names(missing)}"] if missing else []
    parts += [f"new {_names(new)}"] if new else []
    if not parts:
        parts = [f"another order ({_names(list(found))} for {_names(list(expected))})"]
    raise DataError(
        f"{shown_name(where)} does not have the {len(expected)} classes that were trained: "
        f"{', '.join(parts)}; restore the class names, or train anew"
    )


def shown_name(name: object) -> str:
    r"""Return a name fit for one line: control and undecodable characters are escaped.

    >>> print(shown_name("a" + chr(9) + "b"))
    a\tb
    """
    text = str(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
