"""Folders of images: one folder per class, or one flat folder without labels.

The reader is our own and small, so that what it does can be said: files are taken in the order
of their names, extensions count in any letter case, hidden files are ignored, exactly one level
of class folders is read, and whatever would be dropped silently elsewhere (a class without
images, pictures beside class folders, folders inside a class) is an error.

Inside: `images_in`, which understands a folder and returns a `Source`; nothing is decoded here.
"""

import os
import stat
from collections import Counter
from pathlib import Path

import numpy as np

from fewstep.data.decode import ALLOWED, EXTENSIONS, Unreadable
from fewstep.data.images import shown_name
from fewstep.data.source import Fetch, Source, stamp
from fewstep.errors import DataError

_KINDS = " ".join(EXTENSIONS)


def entries(folder: Path) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """Return the subfolders and the files of a folder, sorted by name, without hidden ones.

    Raises:
        DataError: if the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            visible = sorted((e for e in found if e.name[0] != "."), key=lambda e: e.name)
    except OSError as error:
        raise DataError(
            f"cannot list {shown_name(folder)}: {error.strerror}; make it readable"
        ) from error
    folders, files = [], []
    for entry in visible:
        (folders if _is_folder(entry) else files).append(entry)
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links: as a file it gets its reason when it is read
        return False


def _sorted_out(files: list[os.DirEntry[str]], skipped: Counter[str]) -> list[os.DirEntry[str]]:
    """Return the files with an image's extension and count the others by extension."""
    used = []
    for entry in files:
        extension = os.path.splitext(entry.name)[1].lower()
        if extension in EXTENSIONS:
            used.append(entry)
        else:
            skipped[extension or "(none)"] += 1
    return used


def _nothing(folder: Path, skipped: Counter[str]) -> DataError:
    """Return the error for a folder in which no image was found."""
    seen = ""
    if skipped:
        seen = ", found only " + ", ".join(f"{n} {ext}" for ext, n in skipped.most_common(5))
    return DataError(
        f"no images under {shown_name(folder)} (looked for {_KINDS}{seen}); "
        f"put {ALLOWED} files there, or in one folder per class"
    )


def _classes(
    root: Path, folders: list[os.DirEntry[str]], skipped: Counter[str]
) -> tuple[list[os.DirEntry[str]], list[int], list[str]]:
    """List the images of every class folder: files, their labels, and the empty classes."""
    files: list[os.DirEntry[str]] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, folder in enumerate(folders):
        inner, found = entries(Path(folder.path))
        used = _sorted_out(found, skipped)
        if inner:
            raise DataError(
                f"{shown_name(inner[0].path)} is a folder inside a class folder: one level of "
                f"class folders is read; move its images up, or give {shown_name(root)} "
                f"a level lower"
            )
        files += used
        labels += [label] * len(used)
        if not used:
            empty.append(folder.name)
    return files, labels, empty


def images_in(root: Path, *, allow_empty_class: bool = False) -> Source:
    """Understand a folder of images.

    Args:
        root: an existing folder: class folders with images, or images (then unlabelled).
        allow_empty_class: accept class folders without images; they keep their label.

    Returns:
        The source; labels follow the sorted names of the class folders.

    Raises:
        DataError: if there is no image, a class is empty, or the layout is ambiguous.
    """
    skipped: Counter[str] = Counter()
    folders, loose = entries(root)
    files = _sorted_out(loose, skipped)
    labels, classes, layout = [0] * len(files), [], "flat folder (no labels)"
    if folders:
        inside, marks, empty = _classes(root, folders, skipped)
        if files:
            raise DataError(
                f"{shown_name(root)} has images beside folders ({shown_name(files[0].name)} and "
                f"{shown_name(folders[0].name)}/): use class folders only, or images only"
            )
        if inside and empty and not allow_empty_class:
            raise DataError(
                f"class folder {shown_name(root / empty[0])} has no images ({len(empty)} of "
                f"{len(folders)} are empty): add images, remove it, or allow empty classes "
                f"(allow_empty_class)"
            )
        files, labels = inside, marks
        classes, layout = [folder.name for folder in folders], "class folders"
    if not files:
        raise _nothing(root, skipped)
    paths = [entry.path for entry in files]
    return Source(
        layout=layout,
        name=str(root),
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(classes),
        item=paths.__getitem__,
        loader=lambda: _reader(paths),
        stamp=stamp(*(_state(path, root) for path in paths)),
        skipped=skipped,
    )


def _state(path: str, root: Path) -> tuple[str, int, int]:
    """Return name, size and time of change of a file (a lost file shows when it is read)."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.relpath(path, root), -1, -1
    return os.path.relpath(path, root), found.st_size, found.st_mtime_ns


def _reader(paths: list[str]) -> Fetch:
    def fetch(i: int) -> bytes:
        try:
            if not stat.S_ISREG(os.stat(paths[i]).st_mode):
                raise Unreadable("not a regular file")  # reading a named pipe would hang
            with open(paths[i], "rb") as file:
                return file.read()
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from error

    return fetch
