"""Images that lie in one array: what other programs write when they sample.

Accepted, N images of height H and width W with C = 1 or 3 channels:

    .npz          `arr_0` uint8 (N, H, W, C), and `arr_1` integer labels (N,) if there are any:
                  the format of the evaluation batches of Dhariwal and Nichol's programs. The
                  statistics that reference batches also hold (mu, sigma, mu_s, sigma_s) are not
                  used.
                  Or `pixels` uint8 (N, C, H, W) and `labels`: what this library writes itself
                  (with `cell` and `seconds`, which are not used). Never both.
    .npy          uint8 (N, H, W, C) or (N, C, H, W): the axis of 1 or 3 tells which; if both could
                  be the channels, the file is refused.
    .safetensors  one tensor, or `images` and `labels`; uint8 (N, C, H, W).

Floats instead of uint8 are accepted in [-1, 1] with at least one negative value, and become bytes
as round((x + 1) * 127.5), never truncated. Floats without a negative value are refused: they may
be meant for [0, 1], which would give pictures of half the contrast. Pickles (`.pt`) are refused.

Labels are 0 ... K - 1; the classes are called "0" ... "K-1", K the largest label + 1.

Inside: `is_array`, `array_in` (a file understood as a source).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fewstep.data import container
from fewstep.data.container import Array, Arrays
from fewstep.data.images import Pixels, shown_name
from fewstep.data.source import Source, stamp
from fewstep.data.stream import Ids
from fewstep.data.table import class_ids
from fewstep.errors import DataError

EXTENSIONS = (".npz", ".npy", ".safetensors")
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_ADM, _OURS = ("arr_0", "arr_1"), ("pixels", "labels")
_ALONGSIDE = {"arr_0": {"mu", "sigma", "mu_s", "sigma_s"}, "pixels": {"cell", "seconds"}}
_SHOWN = 8  # names in a message
_PIECE = 2**22  # values looked at in one go


def is_array(path: Path) -> bool:
    """Tell whether a file is named like an array of images, or like a pickle of one."""
    return path.suffix.lower() in (*EXTENSIONS, *PICKLES)


def _chosen(path: Path, names: Sequence[str]) -> tuple[str, str | None, str]:
    """Choose the images, the labels and the order of the axes by the names in a file.

    Returns:
        name of the images, name of the labels or None, "NHWC" or "NCHW" or "either".

    Raises:
        DataError: naming what was found and what was expected.
    """
    held, kind = set(names), path.suffix.lower()
    if kind == ".npy":
        return "", None, "either"
    if kind == ".npz":
        for (images, labels), axes in ((_ADM, "NHWC"), (_OURS, "NCHW")):
            if images in held and held <= {images, labels} | _ALONGSIDE[images]:
                return images, labels if labels in held else None, axes
        expected = "arr_0 (N, H, W, C), with arr_1 (N,) if labelled"
    else:
        if "images" in held and held <= {"images", "labels"}:
            return "images", "labels" if "labels" in held else None, "NCHW"
        if len(held) == 1:
            return names[0], None, "NCHW"
        expected = "one tensor (N, C, H, W), or images and labels"
    shown = ", ".join(shown_name(name)[:40] for name in names[:_SHOWN]) or "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    only = " (statistics, no images)" if {"mu", "sigma"} <= held and "arr_0" not in held else ""
    raise DataError(
        f"{shown_name(path)} holds {shown}{more}{only}; expected are {expected}: write the "
        f"images under these names"
    )


def _planes(values: Array, axes: str, where: str) -> Array:
    """Return a view (N, C, H, W) of an array of images.

    Raises:
        DataError: if the shape is not one of images, or may be read in two ways.
    """
    shape = values.shape
    allowed = {"NHWC": "(N, H, W, C)", "NCHW": "(N, C, H, W)"}.get(
        axes, "(N, H, W, C) or (N, C, H, W)"
    )
    if values.ndim != 4:
        raise DataError(
            f"{where}: shape {shape} has {values.ndim} axes, 4 are needed: {allowed} with C = 1 "
            f"or 3"
        )
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if axes == "either" and first and last:
        raise DataError(
            f"{where}: shape {shape} is ambiguous, axis 1 or axis 3 may be the channels; write "
            f"it as arr_0 (N, H, W, C) of an .npz"
        )
    if axes == "NCHW" or (axes == "either" and first):
        found, other = first, last
    else:
        found, other = last, first
        values = values.transpose(0, 3, 1, 2)
    if found:
        return values
    if other:
        reason = f"the channels of {allowed} are on another axis: transpose it"
    elif axes == "either":
        reason = "neither axis 1 nor axis 3 is 1 (grey) or 3 (RGB): drop an alpha channel"
    else:
        reason = f"{values.shape[1]} channels, allowed are 1 (grey) and 3 (RGB): drop an alpha"
    raise DataError(f"{where}: shape {shape}, expected {allowed}: {reason}")


def _check_floats(values: Array, where: str) -> None:
    """Refuse floats that are not images in [-1, 1].

    Raises:
        DataError: at values that are not finite, out of range, or of an unclear range.
    """
    low, high, first, bad = np.inf, -np.inf, -1, 0
    rows = max(_PIECE // int(np.prod(values.shape[1:])), 1)
    for start in range(0, len(values), rows):
        flat = values[start : start + rows].reshape(len(values[start : start + rows]), -1)
        lost = np.flatnonzero(~np.isfinite(flat).all(axis=1))
        if len(lost):
            first = start + int(lost[0]) if first < 0 else first
            bad += len(lost)
        else:
            low, high = min(low, float(flat.min())), max(high, float(flat.max()))
    if bad:
        raise DataError(
            f"{where}: image {first} has values that are not finite (NaN or infinite), as have "
            f"{bad} of {len(values)} images in all; make them again"
        )
    if low >= 0:
        raise DataError(
            f"{where}: {values.dtype} from {low:g} to {high:g} without a negative value: the "
            f"range is ambiguous ([0, 1], [-1, 1] or 0 ... 255); give uint8 0 ... 255"
        )
    if low < -1 or high > 1:
        raise DataError(
            f"{where}: {values.dtype} from {low:g} to {high:g}, allowed is [-1, 1]: clip it as "
            f"your sampler's pictures are clipped, or give uint8 0 ... 255"
        )


def _as_bytes(values: Array) -> Pixels:
    """Return uint8 images; floats in [-1, 1] are rounded (half to even, as torch rounds)."""
    if values.dtype == np.uint8:
        return values
    wide = values.astype(np.float64 if values.dtype.itemsize == 8 else np.float32)
    return np.rint((wide + 1) * 127.5).astype(np.uint8)


def _labelled(
    values: Array | None, count: int, where: str, allow_empty_class: bool
) -> tuple[Ids, tuple[str, ...]]:
    """Return labels int64 (count,) and class names; zeros and () without labels."""
    if values is None:
        return np.zeros(count, dtype=np.int64), ()
    if values.shape != (count,) or values.dtype.kind not in "ui":
        raise DataError(
            f"{where}: labels are {values.dtype} of shape {values.shape}; expected is int64 of "
            f"shape ({count},), one for every image"
        )
    return class_ids(values.tolist(), None, where, allow_empty_class)


def _opened(path: Path) -> Arrays:
    """Return the arrays of a file by their names.

    Raises:
        DataError: if the file is a pickle, is damaged, or is not what its name says.
    """
    kind = path.suffix.lower()
    if kind in PICKLES:
        raise DataError(
            f"{shown_name(path)} is a {kind} file: such files are pickles, which can run code, "
            f"and are never loaded; write the images as .safetensors or .npz"
        )
    readers: dict[str, Callable[[Path], Arrays]] = {
        ".npy": container.npy,
        ".npz": container.npz,
    }
    return readers.get(kind, container.safetensors)(path)


def array_in(path: Path, *, allow_empty_class: bool = False) -> Source:
    """Understand a file with an array of images (the formats: see the module).

    Args:
        path: an existing file for which `is_array` holds.
        allow_empty_class: accept labels that no image has.

    Returns:
        One source. Its `whole` is the array itself if its values are bytes.

    Raises:
        DataError: if the file cannot be used.
        ResourceError: if it is packed and does not fit into memory.
    """
    arrays = _opened(path)
    images, labels, axes = _chosen(path, sorted(arrays))
    where = f"{shown_name(path)} {shown_name(images)}".rstrip()
    values = _planes(arrays[images](), axes, where)
    if values.dtype.kind == "f":
        _check_floats(values, where)
    elif values.dtype != np.uint8:
        raise DataError(
            f"{where}: {values.dtype} values; write uint8 0 ... 255, or floats in [-1, 1]"
        )
    marks, classes = _labelled(
        arrays[labels]() if labels else None,
        len(values),
        f"{shown_name(path)} {labels}",
        allow_empty_class,
    )
    facts = path.stat()
    return Source(
        layout=f"{path.suffix.lower()} array",
        name=str(path),
        labels=marks,
        classes=classes,
        item=lambda i: f"{where} image {i}",
        loader=lambda: lambda i: _as_bytes(values[i]),
        stamp=stamp("array", path.name, facts.st_size, facts.st_mtime_ns),
        whole=values if values.dtype == np.uint8 else None,
    )
