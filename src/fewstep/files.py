"""Files that are written whole or not at all.

A file is written under another name in the same folder and renamed to its place, which every
file system does in one step: a process that dies while writing leaves the old file or none.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Give a name beside a file, of the same suffix; rename it to the file if all is well.

    Args:
        path: the file; its folder must exist.
        sync: ask the disk to have the content before it has the name.

    Raises:
        OSError: the disk refuses; nothing is left behind.
    """
    # random, because processes of two machines may have one number
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield aside
        if sync:
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
