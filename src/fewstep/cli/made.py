"""What the verbs that make images share: how many at once, and into which file."""

from collections.abc import Iterable
from pathlib import Path

from fewstep.errors import UsageError
from fewstep.report import picture

_BATCH_PIXELS = 1 << 18


def at_once(shape: tuple[int, ...]) -> int:
    """Return how many images of shape (C, H, W) are made at once."""
    return max(1, min(256, _BATCH_PIXELS // (shape[1] * shape[2])))


def free(stem: str, *beside: str, suffix: str = ".png") -> Path:
    """Return the path of a new file.

    Args:
        stem: its path without the suffix; a number follows where that is taken.
        beside: endings of stems that must be free too.
        suffix: of the file.
    """
    path, k = Path(f"{stem}{suffix}"), 2
    while any(path.with_name(f"{path.stem}{end}{suffix}").exists() for end in ("", *beside)):
        path, k = Path(f"{stem}-{k}{suffix}"), k + 1
    return path


def spare(target: Path | None, inputs: Iterable[Path]) -> None:
    """Refuse to write over a file that is read.

    Raises:
        UsageError: the target is one of the inputs, by whatever name.
    """
    if target is None or not target.exists():
        return
    for path in (p.expanduser() for p in inputs):
        if path.exists() and target.samefile(path):
            raise UsageError(
                f"-o {target}: is the input {path}, which is never overwritten; give another name"
            )


def png(out: str | None) -> Path | None:
    """Return the one .png to write, checked before any work; None = a new file.

    Raises:
        UsageError: another ending, a folder, or a file in a folder that is not there.
    """
    if out is None:
        return None
    path = Path(out).expanduser()
    if path.is_dir():
        raise UsageError(f"-o {out or repr(out)}: a folder; must be a file that ends in .png")
    if path.suffix.lower() != ".png" or out.endswith(("/", "\\")):
        raise UsageError(f"-o {out}: must be a file that ends in .png")
    picture.check_parent(path)
    return path
