"""What the verbs that make images share: how many at once, and into which file."""

from pathlib import Path

from fewstep.errors import UsageError
from fewstep.report import picture

_BATCH_PIXELS = 1 << 18


def at_once(shape: tuple[int, ...]) -> int:
    """Return how many images of shape (C, H, W) are made at once."""
    return max(1, min(256, _BATCH_PIXELS // (shape[1] * shape[2])))


def free(stem: str, *beside: str) -> Path:
    """Return the path of a new .png beside the user.

    Args:
        stem: its name; a number follows where that is taken.
        beside: endings of stems that must be free too.
    """
    path, k = Path(f"{stem}.png"), 2
    while any(path.with_stem(path.stem + end).exists() for end in ("", *beside)):
        path, k = Path(f"{stem}-{k}.png"), k + 1
    return path


def png(out: str | None) -> Path | None:
    """Return the one .png to write, checked before any work; None = a new file.

    Raises:
        UsageError: another ending, a folder, or a file in a folder that is not there.
    """
    if out is None:
        return None
    path = Path(out).expanduser()
    if path.suffix.lower() != ".png" or path.is_dir():
        raise UsageError(f"-o {out}: must be a file that ends in .png")
    picture.check_parent(path)
    return path
