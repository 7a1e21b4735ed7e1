"""Make the pictures of docs/editing.md with the shipped model: python tools/editing_pictures.py.

First what the commands on that page are given (a held-out digit, a mask, a small image, a
sketch), then what they make.
"""

import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.cli.main import main as fewstep
from fewstep.data.digits import digits

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/editing.md"
IMAGES = ROOT / "docs/images"
FENCE = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Return the words after `fewstep` of each command on the page that writes a picture."""
    lines = "\n".join(FENCE.findall(text)).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[1:] for w in words if w[:2] == ["fewstep", "edit"] and "-o" in w]


def shown(target: Path) -> Path:
    """Return the picture of a command that is shown: the strip of before and after, if any."""
    strip = target.with_stem(f"{target.stem}-strip")
    return strip if strip.exists() else target


def given() -> None:
    """Write what the commands are given."""
    _, held = digits()
    digit = {k: np.asarray(held.pixels[list(held.labels).index(k), 0]) for k in (3, 7)}
    mask, sketch = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    mask[4:] = 255
    sketch[1, 2:7] = sketch[2:7, 5] = 255
    small = Image.fromarray(digit[3]).resize((4, 4), Image.Resampling.BOX)
    for name, picture in {
        "three": Image.fromarray(digit[3]),
        "seven": Image.fromarray(digit[7]),
        "mask": Image.fromarray(mask),
        "small": small,
        "sketch": Image.fromarray(sketch),
    }.items():
        picture.save(IMAGES / f"edit-{name}.png")


def main() -> int:
    """Write all pictures; return the exit code."""
    given()
    with tempfile.TemporaryDirectory() as folder:
        for words in commands(PAGE.read_text("utf-8")):
            at = words.index("-o") + 1
            target = Path(folder, words[at])
            inside = [str(ROOT / w) if w.startswith("docs/") else w for w in words]
            code = fewstep([*inside[:at], str(target), *inside[at + 1 :]])
            if code:
                return code
            shutil.copyfile(shown(target), IMAGES / f"edit-{target.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
