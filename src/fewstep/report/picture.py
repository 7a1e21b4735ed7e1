"""PNG files: images side by side, their settings written inside, never half a file.

Small images are enlarged by a whole factor with no smoothing, so that a person can see them and
a program can undo it: factor and gap stand in the metadata, one tEXt entry named "fewstep" that
holds strict JSON. The same images and settings give the same bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import ResourceError, UsageError
from fewstep.files import replacing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

KEY = "fewstep"
"""The name of the PNG's tEXt entry."""
_SEEN = 64  # pixels that a side should have on a screen
_GREY = 128


def factor(height: int, width: int) -> int:
    """Return the whole factor that makes an image large enough to be seen.

    >>> factor(8, 8), factor(28, 28), factor(256, 256)
    (8, 3, 1)
    """
    return max(1, -(-_SEEN // max(height, width)))


def grid(pixels: "NDArray[np.uint8]", columns: int, scale: int = 1) -> "Image.Image":
    """Lay images out in rows.

    Args:
        pixels: uint8, shape (N, C, H, W), C = 1 or 3.
        columns: images in a row, >= 1.
        scale: whole factor, each pixel becomes scale x scale; above 1 the images stand apart.
    """
    import numpy as np
    from PIL import Image

    n, c, h, w = pixels.shape
    gap = between(scale, n)
    large = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    rows, high, wide = -(-n // columns), h * scale, w * scale
    size = (rows * (high + gap) - gap, columns * (wide + gap) - gap, c)
    sheet = np.full(size, _GREY, dtype=np.uint8)
    for i in range(n):
        top, left = i // columns * (high + gap), i % columns * (wide + gap)
        sheet[top : top + high, left : left + wide] = large[i].transpose(1, 2, 0)
    return Image.fromarray(sheet[..., 0] if c == 1 else sheet)


def between(scale: int, n: int) -> int:
    """Return the pixels between the images of a grid."""
    return 2 if scale > 1 and n > 1 else 0


def save(image: "Image.Image", path: Path, settings: Mapping[str, Any]) -> None:
    """Write a PNG with its settings: the whole file or none.

    Raises:
        UsageError: the folder does not exist.
        ResourceError: the disk refuses.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    # ASCII, so that the entry is a tEXt chunk whatever the class names are.
    info.add_text(KEY, json.dumps(settings, allow_nan=False, sort_keys=True))
    check_parent(path)
    try:
        with replacing(path) as aside, open(aside, "wb") as file:
            image.save(file, format="PNG", pnginfo=info)
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror or e}") from e


def check_parent(path: Path) -> None:
    """Raise unless the folder of a file exists.

    Raises:
        UsageError: it does not, or is no folder.
    """
    if path.parent.exists() and not path.parent.is_dir():
        raise UsageError(f"{path}: {path.parent} is a file, not a folder; choose another place")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: no such folder: {path.parent}; make it first")


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that a PNG of ours carries; empty if it carries none."""
    from PIL import Image

    with Image.open(path) as image:
        text = getattr(image, "text", {}).get(KEY)
    return json.loads(text) if text else {}
