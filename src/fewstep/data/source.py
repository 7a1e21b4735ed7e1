"""From a data set that has been understood to one that is decoded.

A `Source` knows its labels, its class names and how to fetch the bytes of item i; it does not
know what it was (folder, idx, parquet). `materialise` turns it into `Images`: every header is
read first, because channels and size are decided over the whole set and a folder of mixed sizes
must be refused before an hour of decoding; then every file is decoded once, by threads (Pillow
releases the interpreter lock while it decodes), into the cache. Rows are laid down part by part,
so that training and held-out images are two slices of one memory map.

All bad files are found before the one error is raised: the message names the first and the count.

Inside: `Source`, `Reading` (the user's options), `survey`, `materialise`.
"""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from fewstep.data import cache
from fewstep.data.decode import RESIZES, Header, Target, Unreadable, decode, header
from fewstep.data.images import Images, Pixels, shown_name
from fewstep.data.stream import Ids
from fewstep.errors import DataError, UsageError, suggest

_BLOCK = 2048  # images decoded before they are written
_SHARE = 64  # images a thread takes at a time: fewer means more hand-over than work
_VERSION = 1  # of the decoding rules; a new number makes old cache entries unused

Item = bytes | Pixels
Fetch = Callable[[int], Item]


@dataclass(frozen=True)
class Reading:
    """State how images are brought to one shape.

    Args:
        size: height and width in pixels, 1 ... 4096; None keeps the size all images share.
        resize: "error" (all must have the size), "crop" or "stretch" (both antialiased).
        channels: 1 or 3; None detects (1 if every image is grey by its mode).
        allow_empty_class: accept classes without images; they keep their place in the class map.

    Raises:
        UsageError: if a value is not allowed.
    """

    size: int | None = None
    resize: str = "error"
    channels: int | None = None
    allow_empty_class: bool = False

    def __post_init__(self) -> None:
        """Refuse values that are not allowed."""
        if self.resize not in RESIZES:
            raise UsageError(
                f"resize={shown_name(self.resize)} is not one of {', '.join(RESIZES)}"
                f"{suggest(str(self.resize), RESIZES)}"
            )
        if self.size is not None and (
            not isinstance(self.size, int) or not 1 <= self.size <= 4096
        ):
            raise UsageError(f"size={self.size} is not allowed: an integer 1 ... 4096")
        if self.channels not in (None, 1, 3):
            raise UsageError(f"channels={self.channels} is not allowed: 1, 3, or none to detect")
        if self.size is None and self.resize != "error":
            raise UsageError(f"resize={self.resize} needs a size: give size=N in pixels")

    def keeps(self, shape: tuple[int, int, int]) -> bool:
        """Tell whether images of a shape (C, H, W) stay as they are."""
        sizes = shape[1:] if self.size is None else (self.size, self.size)
        return (self.channels or shape[0], *sizes) == shape


@dataclass(frozen=True, eq=False)
class Source:
    """Hold what is known of a data set before it is decoded.

    Args:
        layout: what was recognised, for reports ("class folders", "idx files", ...).
        name: what to call the set.
        labels: int64 (N,).
        classes: class names; () if unlabelled.
        item: name of item i, for messages.
        loader: called once before decoding; gives the function that fetches item i.
        stamp: identifies the content without reading it (names, sizes, times of change).
        skipped: extensions of files that were found and not used, with counts.
        whole: uint8 (N, C, H, W) of all items, if they lie in one array that needs no decoding.
    """

    layout: str
    name: str
    labels: Ids
    classes: tuple[str, ...]
    item: Callable[[int], str]
    loader: Callable[[], Fetch]
    stamp: str
    skipped: Counter[str] = field(default_factory=Counter)
    whole: Pixels | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


def stamp(*facts: object) -> str:
    """Return a hash of facts that identify content."""
    text = "\0".join(repr(fact) for fact in facts)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def _strict_pillow() -> Iterator[ThreadPoolExecutor]:
    """Give a thread pool in which Pillow's warnings are errors.

    Filters belong to the process, so they are set around the pool and not in its threads.
    """
    from PIL import Image

    Image.init()  # once, before threads race to register formats
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Phones write multi-picture files whose index is wrong and whose first picture is right.
        warnings.filterwarnings("ignore", message="Image appears to be a malformed MPO")
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            yield pool


def _each(
    pool: ThreadPoolExecutor, work: Callable[[int], object], ids: Sequence[int] | Ids
) -> dict[int, str]:
    """Do `work` for every id in threads; return the reasons of those that failed."""

    def share(start: int) -> list[tuple[int, str]]:
        failed = []
        for i in ids[start : start + _SHARE]:
            try:
                work(int(i))
            except Unreadable as reason:
                failed.append((int(i), str(reason)))
        return failed

    starts = range(0, len(ids), _SHARE)
    return {i: why for part in pool.map(share, starts) for i, why in part}


def survey(source: Source, fetch: Fetch) -> tuple[list[Header | None], dict[int, str]]:
    """Read the header of every item.

    Returns:
        Headers (None where refused) and the reason for every refused item.
    """
    headers: list[Header | None] = [None] * len(source)

    def look(i: int) -> None:
        headers[i] = header(fetch(i))

    with _strict_pillow() as pool:
        bad = _each(pool, look, range(len(source)))
    return headers, bad


def unreadable(source: Source, fetch: Fetch, headers: Sequence[Header | None]) -> dict[int, str]:
    """Decode every item whose header was accepted and return the reasons of those that fail."""

    def attempt(i: int) -> None:
        head = headers[i]
        if head is not None:
            decode(fetch(i), Target(head.channels, head.height, head.width, "error"))

    with _strict_pillow() as pool:
        return _each(pool, attempt, range(len(source)))


def _refuse(source: Source, bad: dict[int, str]) -> DataError:
    """Return the error that names the first bad item and counts all."""
    first = min(bad)
    text = f"{shown_name(source.item(first))}: {bad[first]}"
    if len(bad) == 1:
        return DataError(f"{text}; repair or remove it (1 of {len(source)} images)")
    return DataError(
        f"{text}; {len(bad)} of {len(source)} images cannot be used: repair or remove them "
        f"(fewstep.data.check lists all)"
    )


def _target(source: Source, headers: Sequence[Header | None], reading: Reading) -> Target:
    """Decide shape and rule from the headers of all images.

    Raises:
        DataError: if the sizes differ, or differ from the size asked for, without a resize rule.
    """
    known = [head for head in headers if head is not None]
    channels = reading.channels or max(head.channels for head in known)
    sizes = Counter((head.width, head.height) for head in known)
    asked = None if reading.size is None else (reading.size, reading.size)
    if reading.resize == "error" and (len(sizes) > 1 or (asked and asked not in sizes)):
        shown = ", ".join(f"{w}x{h} ({n} images)" for (w, h), n in sizes.most_common(3))
        want = f"not {asked[0]}x{asked[1]}" if asked else f"{len(sizes)} different sizes"
        advice = reading.size or min(min(pair) for pair in sizes)
        raise DataError(
            f"{shown_name(source.name)} has images of {want}, commonest {shown}: all must have "
            f"one size; give size={advice} with resize=crop or resize=stretch"
        )
    width, height = asked or next(iter(sizes))
    return Target(channels, height, width, reading.resize)


def _blocks(source: Source, fetch: Fetch, target: Target, ids: Ids) -> Iterator[Pixels]:
    """Decode the items in blocks; raise once, at the end, if any was bad."""
    bad: dict[int, str] = {}
    with _strict_pillow() as pool:
        for start in range(0, len(ids), _BLOCK):
            chosen = ids[start : start + _BLOCK]
            block = np.empty((len(chosen), *target.shape), dtype=np.uint8)
            place = {int(i): row for row, i in enumerate(chosen)}

            def put(i: int, block: Pixels = block, place: dict[int, int] = place) -> None:
                block[place[i]] = decode(fetch(i), target)

            bad |= _each(pool, put, chosen)
            if not bad:
                yield block
    if bad:
        raise _refuse(source, bad)


def materialise(
    source: Source, reading: Reading, parts: Sequence[tuple[str, Ids]], *, keep: bool = True
) -> list[Images]:
    """Decode the source, or take it from the cache, as one `Images` per part.

    Args:
        source: the data set; at least one image.
        reading: how images are brought to one shape.
        parts: name and ids of every part; together they are the whole source.
        keep: use the cache on disk; else decode into memory.

    Raises:
        DataError: if an image cannot be used or the sizes need a rule.
    """
    ids = np.concatenate([chosen for _, chosen in parts])
    pieces = [cache.Part(name, source.labels[chosen], source.classes) for name, chosen in parts]
    options = (reading.size, reading.resize, reading.channels)
    identity = (source.stamp, source.classes, source.labels.tobytes())
    lengths = [len(chosen) for _, chosen in parts]
    key = stamp(_VERSION, identity, options, lengths, ids.tobytes())[:40]
    stored = cache.read(key, pieces) if keep else None
    if stored is not None:
        return stored
    fetch = source.loader()
    headers, bad = survey(source, fetch)
    if bad:
        raise _refuse(source, bad | unreadable(source, fetch, headers))
    target = _target(source, headers, reading)
    if keep:
        shape = (len(ids), *target.shape)
        try:
            return cache.write(key, shape, _blocks(source, fetch, target, ids), pieces)
        except OSError as error:
            warnings.warn(
                f"cannot keep decoded images in {shown_name(cache.folder())} "
                f"({error.strerror or error}); working in memory (FEWSTEP_CACHE chooses another "
                f"folder)",
                stacklevel=2,
            )
    blocks = list(_blocks(source, fetch, target, ids))
    return cache.cut(np.concatenate(blocks), pieces)
