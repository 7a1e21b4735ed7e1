"""The one door to data: a name or a path in, training and held-out images out.

What lies at the path is recognised, never guessed from options: the word `digits`, a folder with
`train/` beside `test/` (or val, valid, validation, held_out), idx files, parquet files, arrays
(`arrays` has the formats), class folders or a flat folder. Where the data brings its own held-out
part, that part is used; otherwise a stratified fraction is held out, as a pure function of the
labels and the seed.

Inside: `sources` (understand, decode nothing), `open` (decode, or take from the cache), and `load`
(one whole set, nothing held out: images that somebody else made).
"""

import contextlib
from pathlib import Path

import numpy as np

from fewstep.data.arrays import EXTENSIONS as ARRAYS
from fewstep.data.arrays import array_in, is_array
from fewstep.data.decode import ALLOWED, EXTENSIONS
from fewstep.data.digits import HELD_OUT, SEED, digits_source
from fewstep.data.folder import entries, images_in
from fewstep.data.images import Images, check_classes, shown_name, split_ids
from fewstep.data.source import Reading, Source, materialise
from fewstep.data.table import idx_in, is_idx, is_parquet, parquet_in
from fewstep.errors import DataError, suggest

DIGITS = "digits"
_HELD_FOLDERS = ("test", "val", "valid", "validation", "held_out")
_ACCEPTED = (
    f"a folder of {ALLOWED} images, idx or parquet files, {' '.join(ARRAYS)} arrays, or the word "
    f"{DIGITS}"
)
_MAGIC = (
    (b"PK\3\4", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"\x93NUMPY", "a NumPy array (its name must end in .npy)"),
)


def _missing(path: Path) -> DataError:
    """Return the error for a path that does not exist, with what exists nearby."""
    parent = path.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    near = [DIGITS]
    if parent == path.parent:
        with contextlib.suppress(OSError):  # nothing to suggest if it cannot be listed
            near += [each.name for each in parent.iterdir()]
    what = "file" if is_array(path) else "folder"
    return DataError(
        f"no such {what}: {shown_name(path)}{suggest(path.name, near)}; the nearest folder "
        f"that exists is {shown_name(parent.absolute())}; give {_ACCEPTED}"
    )


def _kind_of_file(path: Path) -> str:
    """Say what a file is that is not a data set."""
    try:
        with path.open("rb") as file:
            start = file.read(300)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    if path.suffix.lower() in EXTENSIONS:
        return "one image"
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return name
    if start[257:262] == b"ustar":
        return "a tar archive"
    return f"a {shown_name(path.suffix)} file" if path.suffix else "a file"


def _file(path: Path, allow_empty_class: bool) -> list[Source]:
    if is_idx(path):
        return idx_in(path, allow_empty_class=allow_empty_class)
    if is_parquet(path):
        return parquet_in(path, allow_empty_class=allow_empty_class)
    if is_array(path):
        return [array_in(path, allow_empty_class=allow_empty_class)]
    kind = _kind_of_file(path)
    advice = "unpack it and give the folder" if "archive" in kind else "give its folder"
    raise DataError(
        f"{shown_name(path)} is {kind}, not a data set: {advice}; allowed: {_ACCEPTED}"
    )


def sources(path: str | Path, *, allow_empty_class: bool = False) -> list[Source]:
    """Understand what lies at a path without decoding an image.

    Args:
        path: "digits", a folder or a file.
        allow_empty_class: accept classes without images.

    Returns:
        One source, or training and held-out where the data brings both.

    Raises:
        DataError: if it is no data set, with what was found there.
        ResourceError: if a packed array does not fit into memory.
    """
    if str(path) == DIGITS:
        return [digits_source()]
    root = Path(path).expanduser()
    try:
        is_folder, exists = root.is_dir(), root.exists()
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{shown_name(path)[:200]} is no path ({reason}); give {_ACCEPTED}"
        ) from None
    if not exists:
        raise _missing(root)
    if not is_folder:
        return _file(root, allow_empty_class)
    folders, files = entries(root)
    names = {each.name for each in folders}
    held = [name for name in _HELD_FOLDERS if name in names]
    if "train" in names and held:
        ours = sources(root / "train", allow_empty_class=allow_empty_class)
        theirs = sources(root / held[0], allow_empty_class=True)
        return [ours[0], theirs[0]]
    if any(is_idx(Path(each.name)) and "images" in each.name for each in files):
        return idx_in(root, allow_empty_class=allow_empty_class)
    if any(is_parquet(Path(each.name)) for each in files):
        return parquet_in(root, allow_empty_class=allow_empty_class)
    return [images_in(root, allow_empty_class=allow_empty_class)]


def _both(found: list[Source], reading: Reading) -> tuple[Images, Images]:
    """Decode data that brings its own held-out part, both to the shape of the training part."""
    ours, theirs = found
    check_classes(ours.classes, theirs.classes, theirs.name)
    (train,) = materialise(ours, reading, [(ours.name, np.arange(len(ours)))])
    same = Reading(reading.size, reading.resize, train.shape[0], reading.allow_empty_class)
    (held,) = materialise(theirs, same, [(theirs.name, np.arange(len(theirs)))])
    if train.shape != held.shape:
        shapes = ["x".join(map(str, each.shape)) for each in (train, held)]
        raise DataError(
            f"{shown_name(theirs.name)} has images of {shapes[1]}, the training images are "
            f"{shapes[0]} (channels x height x width): give a size and resize=crop or "
            f"resize=stretch"
        )
    return train, held


def open(
    path: str | Path,
    *,
    size: int | None = None,
    resize: str = "error",
    channels: int | None = None,
    allow_empty_class: bool = False,
    held_out: float = 0.1,
    seed: int = 0,
) -> tuple[Images, Images]:
    """Open a data set as training and held-out images.

    Args:
        path: "digits", or a folder or file (see the module).
        size: height and width in pixels, 1 ... 4096; None keeps the images' common size.
        resize: "error" (images must have the size), "crop" (scale so that the centre fills the
            square) or "stretch"; both antialiased.
        channels: 1 or 3; None takes 1 if every image is grey by its mode, else 3.
        allow_empty_class: accept class folders without images; they keep their label.
        held_out: fraction of every class to hold out, 0 <= held_out < 1, where the data has no
            held-out part of its own. "digits" has a fixed one (a quarter).
        seed: of the split, 0 ... 2**64 - 1.

    Returns:
        (train, held_out), pixels of one shape; decoded once and then memory-mapped.

    Raises:
        DataError: if the data cannot be used.
        UsageError: if an option is not allowed.
    """
    reading = Reading(size, resize, channels, allow_empty_class)
    split_ids(np.zeros(0, dtype=np.int64), held_out, seed)  # refuse bad options before any work
    found = sources(path, allow_empty_class=allow_empty_class)
    if len(found) == 2:
        return _both(found, reading)
    (source,) = found
    embedded = str(path) == DIGITS
    if embedded:
        held_out, seed = HELD_OUT, SEED
    train, held = split_ids(source.labels, held_out, seed)
    parts = [(source.name, train), (f"{source.name} (held out)", held)]
    first, second = materialise(source, reading, parts, keep=not embedded)
    return first, second


def load(
    path: str | Path,
    *,
    size: int | None = None,
    resize: str = "error",
    channels: int | None = None,
) -> Images:
    """Load one whole set of images, nothing held out: images that somebody else made.

    Args:
        path: what `open` takes. A class folder may be empty and a label unused: it keeps its
            place in the class map.
        size: as for `open`.
        resize: as for `open`.
        channels: as for `open`.

    Returns:
        All images in stated order: files by name, rows as they lie. A `.npy`, `.safetensors` or
        unpacked `.npz` of bytes that needs no change stays where it is, memory-mapped.

    Raises:
        DataError: if the images cannot be used, or the path has a training and a held-out part.
        UsageError: if an option is not allowed.
        ResourceError: if a packed array does not fit into memory.
    """
    reading = Reading(size, resize, channels, allow_empty_class=True)
    found = sources(path, allow_empty_class=True)
    if len(found) > 1:
        names = [shown_name(each.name) for each in found]
        advice = f"{names[0]} or {names[1]}"
        if shown_name(path) in names:  # a folder with the shards of both
            advice = "a folder with the files of one part only"
        raise DataError(
            f"{shown_name(path)} has a training and a held-out part, one set is needed: give "
            f"{advice}"
        )
    (source,) = found
    whole = source.whole
    if whole is not None:
        _, c, h, w = whole.shape
        if reading.keeps((c, h, w)):
            return Images.of(whole, source.labels, source.classes, source.name)
    every = [(source.name, np.arange(len(source)))]
    (images,) = materialise(source, reading, every, keep=str(path) != DIGITS)
    return images
