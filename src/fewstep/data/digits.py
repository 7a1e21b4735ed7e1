"""The embedded data set: 1,797 real handwritten digits of 8x8 pixels in ten classes.

They are the digits that scikit-learn ships (`load_digits`): the test part of the "Optical
Recognition of Handwritten Digits" data set of E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, licence CC BY 4.0. `tools/make_digits.py` writes `digits.npz` from them: grey
levels 0 ... 16 become bytes as round(v * 255 / 16).

The split is fixed for ever: a quarter of every class is held out by seed 0, so that figures
of different runs, versions and people compare.

Inside: `digits`, `digits_source`.
"""

from importlib import resources

import numpy as np

from fewstep.data.images import Images, Pixels, split_ids
from fewstep.data.source import Source, stamp
from fewstep.data.stream import Ids

CLASSES = tuple("0123456789")
HELD_OUT = 0.25
SEED = 0


def _load() -> tuple[Pixels, Ids]:
    """Return pixels uint8 (1797, 1, 8, 8) and labels int64 (1797,), in scikit-learn's order."""
    file = resources.files("fewstep.data").joinpath("digits.npz")
    with file.open("rb") as raw, np.load(raw, allow_pickle=False) as arrays:
        return arrays["pixels"], arrays["labels"].astype(np.int64)


def digits() -> tuple[Images, Images]:
    """Return the embedded digits, split into training and held-out images.

    Returns:
        (train, held_out): 1,347 and 450 images (1, 8, 8), classes "0" ... "9".

    >>> train, held_out = digits()
    >>> len(train), len(held_out), train.shape
    (1347, 450, (1, 8, 8))
    """
    pixels, labels = _load()
    train, held = split_ids(labels, HELD_OUT, SEED)
    return (
        Images.of(pixels[train], labels[train], CLASSES, "digits"),
        Images.of(pixels[held], labels[held], CLASSES, "digits (held out)"),
    )


def digits_source() -> Source:
    """Return the digits as a source, for those who want another size or three channels."""
    pixels, labels = _load()
    return Source(
        layout="embedded digits",
        name="digits",
        labels=labels,
        classes=CLASSES,
        item=lambda i: f"digits image {i}",
        loader=lambda: pixels.__getitem__,
        stamp=stamp("digits"),
    )
