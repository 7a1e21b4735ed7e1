"""Propose a recipe for a folder of images.

Only the headers of the files are read: size, channels, classes and number decide, by rules that
stand here in the open and are printed with the proposal. The proposal is a pure function of the
data, so that the same command gives the same recipe; every key can be changed on the command line.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep.data.check import FEW
from fewstep.data.door import sources
from fewstep.data.source import survey
from fewstep.errors import DataError
from fewstep.recipes.schema import Data, Net, Objective, Recipe, Sampling, Train

_LARGEST = 64  # pixels that are proposed; more is possible and slow without a large GPU
_EPOCHS = 200


@dataclass(frozen=True)
class Seen:
    """What the headers of a data set say.

    Attributes:
        images: number of images in the training part.
        classes: their names.
        sizes: (width, height) -> number of images.
        channels: 1 if all are grey, else 3.
    """

    images: int
    classes: tuple[str, ...]
    sizes: Counter[tuple[int, int]]
    channels: int


def look(path: str | Path, held_out: float = 0.1) -> Seen:
    """Read the headers of a data set.

    Raises:
        DataError: there is no data set, or no image in it can be read.
    """
    source, *rest = sources(path)
    headers, bad = survey(source, source.loader())
    known = [head for head in headers if head is not None]
    if not known:
        raise DataError(f"{source.item(0)}: {bad[0]}; none of {len(source)} images can be used")
    share = 1.0 if rest else 1 - held_out
    return Seen(
        max(1, int(len(source) * share)),
        source.classes,
        Counter((head.width, head.height) for head in known),
        max(head.channels for head in known),
    )


def propose(path: str | Path) -> tuple[Recipe, list[str]]:
    """Return a recipe for the images at a path, and the reasons, one a line.

    Raises:
        DataError: the data cannot be used.
    """
    seen = look(path)
    data, side, why = _data(str(path), seen)
    net, net_why = _net(side)
    train, train_why = _train(side, seen.images)
    count = len(seen.classes)
    classes = f"{count} classes" if count else "no classes (a flat folder): unconditional"
    grey = "grey" if seen.channels == 1 else "colour"
    lines = [f"{seen.images} training images, {grey}, {classes}", why, net_why, train_why]
    if count:
        lines.append(
            "labels: 10% are dropped in training, so that the model can be guided (scale 2)"
        )
    lines.append("train.flip=false: give train.flip=true if mirrored images are as good")
    if seen.images < FEW:
        lines.append(
            f"note: fewer than {FEW} images: the model may memorise them, that is, repeat its "
            "training images instead of making new ones; add images if you can"
        )
    recipe = Recipe(
        name=Path(path).resolve().name or "run",
        data=data,
        net=net,
        objective=Objective(drop=0.1),
        train=train,
        sampling=Sampling(steps=50, guidance_scale=2.0 if count else 1.0),
    )
    return recipe, lines


def _data(path: str, seen: Seen) -> tuple[Data, int, str]:
    """Return how images are brought to one size, the larger side, and why."""
    (w, h), commonest = seen.sizes.most_common(1)[0]
    least = min(min(size) for size in seen.sizes)
    if len(seen.sizes) == 1 and max(w, h) <= _LARGEST and not (w % 4 or h % 4) and least >= 8:
        return Data(path=path), max(w, h), f"size: all images are {w}x{h}, kept"
    side = min(_LARGEST, least // 8 * 8)
    if side < 8:
        shown = f"size: some side has {least} pixels only, so all are stretched to 8x8"
        return Data(path=path, size=8, resize="stretch"), 8, shown
    other = f", commonest {w}x{h} ({commonest})" if len(seen.sizes) > 1 else f" of {w}x{h}"
    shown = (
        f"data.size={side}, data.resize=crop: {len(seen.sizes)} size(s){other}, least side "
        f"{least}; the centre is cut and scaled"
    )
    return Data(path=path, size=side, resize="crop"), side, shown


def _net(side: int) -> tuple[Net, str]:
    """Return a network for images of this side, and why."""
    width, mult = (48, (1, 2)) if side <= 8 else (64, (1, 2, 2))
    if side > 32 and side % 8 == 0:
        width, mult = 96, (1, 2, 2, 2)
    # Attention costs the square of the number of pixels and pays where images are small.
    levels = [side // 2**i for i in range(len(mult))]
    attention = tuple(n for n in levels if n <= 16 and n < side)
    shown = ", ".join(map(str, mult))
    why = f"net: {len(mult)} levels of {width} x ({shown}) channels for {side} pixels"
    return Net(width=width, mult=mult, depth=2, attention=attention), why


def _train(side: int, images: int) -> tuple[Train, str]:
    """Return batch and length for this many images, and why."""
    batch = min(128 if side <= 32 else 64, 2 ** int(np.log2(images)))
    steps = int(np.clip(round(_EPOCHS * images / batch, -2), 2000, 20_000))
    every = max(250, steps // 20)
    train = Train(
        steps=steps,
        batch_size=batch,
        lr=1e-3 if side <= 8 else 3e-4,
        ema_decay=0.999,
        checkpoint_every=every,
        sample_every=every,
    )
    why = f"train: {steps} steps of {batch} images are {steps * batch / images:.0f} passes"
    return train, why
