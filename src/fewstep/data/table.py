"""Data sets that come as tables: idx files (MNIST's format) and parquet with encoded images.

idx: a big-endian header (0, 0, type, dimensions, then each length) and the raw bytes, plain or
gzipped; an images file `*images-idx3-ubyte[.gz]` belongs to the labels file of the same name with
`labels-idx1`. The header is checked against the bytes before anything is trusted.

Parquet: one column of encoded images (binary, or the struct {bytes, path} that the `datasets`
library writes) and one column of labels (integers or strings). Class names come from the schema's
metadata if it has them. Only bytes are read: paths inside the table are never followed.

Inside: `idx_in`, `parquet_in` (one source, or training and held-out), `is_idx`, `is_parquet`.
"""

import gzip
import json
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.data.decode import Unreadable
from fewstep.data.images import Pixels, shown_name
from fewstep.data.source import Fetch, Source, stamp
from fewstep.data.stream import Ids
from fewstep.errors import DataError, UsageError

_IMAGES, _LABELS = 0x00000803, 0x00000801  # idx: unsigned bytes, three and one dimensions
_IDX_LIMIT = 2**34  # bytes promised by a header that are believed
_IDX_NAME = re.compile(r"(images-idx3|labels-idx1)-ubyte(\.gz)?$")
_HELD_OUT = re.compile(r"^(test|t10k|valid|validation|val|held_out)\b|^(test|val|validation)[-_]")
_LABEL_NAMES = ("label", "labels", "class", "target", "fine_label", "y")


def _split_names(paths: Sequence[Path]) -> list[list[Path]]:
    """Group files into [training, held-out] by their names, or [all] if there is one kind."""
    held = [path for path in paths if _HELD_OUT.search(path.name)]
    train = [path for path in paths if path not in held]
    return [group for group in (train, held) if group]


def _file_stamp(paths: Sequence[Path]) -> str:
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return stamp(*facts)


def class_ids(
    values: Sequence[Any], names: Sequence[str] | None, where: str, allow_empty_class: bool
) -> tuple[Ids, tuple[str, ...]]:
    """Turn a column of labels into class indices and class names.

    Args:
        values: integers 0 ... K - 1, or strings (then the sorted distinct ones are the classes).
        names: the K names if they are known; else the integers name the classes.
        where: file and column, for messages.
        allow_empty_class: accept integers that no row uses.

    Raises:
        DataError: naming the first row whose label is not allowed, or a label that is never used.
    """
    if names is None and values and all(isinstance(value, str) for value in values):
        names = sorted(set(values))
        index = {name: i for i, name in enumerate(names)}
        return np.array([index[value] for value in values], dtype=np.int64), tuple(names)
    allowed = f"integers 0 ... {len(names) - 1}" if names else "integers from 0"
    for row, value in enumerate(values):
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not fits or (names and value >= len(names)) or value > 10**6:
            raise DataError(
                f"{where}: row {row} has label {shown_name(value)!a}, allowed are {allowed}; "
                f"correct or remove the row"
            )
    labels = np.array(values, dtype=np.int64)
    counts = np.bincount(labels, minlength=len(names or ()))
    if not allow_empty_class and (counts == 0).any():
        unused = int(np.flatnonzero(counts == 0)[0])
        title = f" ({shown_name(names[unused])})" if names else ""
        raise DataError(
            f"{where}: no row has label {unused}{title} of 0 ... {len(counts) - 1}: number the "
            f"labels without gaps, or allow empty classes (allow_empty_class)"
        )
    return labels, tuple(names) if names else tuple(str(i) for i in range(len(counts)))


# ------------------------------------------------------------------------------------------ idx


def is_idx(path: Path) -> bool:
    """Tell whether a file is named like one of an idx pair."""
    return bool(_IDX_NAME.search(path.name))


def _read_idx(path: Path, magic: int) -> Pixels:
    """Read one idx file of unsigned bytes.

    Raises:
        DataError: if it cannot be read, is not of this kind, or its length is not as promised.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    dimensions = magic & 0xFF
    name = shown_name(path)
    try:
        with opener(path, "rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions:
                raise DataError(f"{name}: truncated at byte {len(head)}; get the file again")
            found, *lengths = struct.unpack(f">{dimensions + 1}I", head)
            promised = int(np.prod(np.array(lengths, dtype=object)))
            if found != magic or promised > _IDX_LIMIT:
                raise DataError(
                    f"{name}: not an idx file of {dimensions} dimensions (starts with "
                    f"{head[:4].hex()}, allowed is {magic:08x}); give MNIST-like files"
                )
            body = file.read(promised + 1)
    except (OSError, EOFError, zlib.error) as error:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{name}: cannot be read ({text}); get the file again") from error
    if len(body) != promised:
        kind = "truncated at byte" if len(body) < promised else "longer than"
        raise DataError(
            f"{name}: {kind} {len(head) + min(len(body), promised)}, the header promises "
            f"{promised} bytes after it; get the file again"
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(lengths)


def _idx_count(path: Path) -> int:
    """Return the number of items that an idx header promises (0 if it cannot be read)."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            return struct.unpack(">II", file.read(8))[1]
    except (OSError, EOFError, zlib.error, struct.error):
        return 0


def _idx_pair(images: Path, allow_empty_class: bool) -> Source:
    stem = _IDX_NAME.sub("", images.name)
    beside = [
        images.parent / f"{stem}labels-idx1-ubyte{end}"
        for end in (".gz" if images.suffix == ".gz" else "", ".gz", "")
    ]
    labels_file = next((path for path in beside if path.exists()), None)
    if labels_file is None:
        raise DataError(
            f"no labels file beside {shown_name(images)}: {shown_name(beside[0].name)} is needed"
        )
    values = _read_idx(labels_file, _LABELS)
    if _idx_count(images) not in (0, len(values)):  # 0: the reader of the images says why
        raise DataError(
            f"{shown_name(images)} has {_idx_count(images)} images and "
            f"{shown_name(labels_file.name)} {len(values)} labels: get both files again"
        )
    where = shown_name(labels_file)
    labels, classes = class_ids(values.tolist(), None, where, allow_empty_class)
    if not len(labels):
        raise DataError(f"no images in {shown_name(images)}: get the file again")

    def loader() -> Fetch:
        pixels = _read_idx(images, _IMAGES)
        return lambda i: pixels[i][None]

    return Source(
        layout="idx files",
        name=str(images),
        labels=labels,
        classes=classes,
        item=lambda i: f"{images} image {i}",
        loader=loader,
        stamp=_file_stamp([images, labels_file]),
    )


def idx_in(path: Path, *, allow_empty_class: bool = False) -> list[Source]:
    """Understand an idx file, or a folder with idx files.

    Args:
        path: an images file, a labels file, or a folder that holds such pairs.
        allow_empty_class: accept labels that no image has.

    Returns:
        One source, or training and held-out if the folder has both (`t10k-`, `test-`).

    Raises:
        DataError: if a file is damaged or its partner is missing.
    """
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if is_idx(p) and "images" in p.name)
        # The same file plain and gzipped is one data set, not two.
        single = {p.name.removesuffix(".gz"): p for p in reversed(found)}
        groups = _split_names(sorted(single.values()))
        if not groups or any(len(group) > 1 for group in groups):
            raise DataError(
                f"{shown_name(path)} has {len(single)} idx images files: one, or one for "
                f"training and one for test, is needed; give the file"
            )
        return [_idx_pair(group[0], allow_empty_class) for group in groups]
    images = path.with_name(path.name.replace("labels-idx1", "images-idx3"))
    if not images.exists():
        raise DataError(f"no images file beside {shown_name(path)}: {images.name} is needed")
    return [_idx_pair(images, allow_empty_class)]


# -------------------------------------------------------------------------------------- parquet


def is_parquet(path: Path) -> bool:
    """Tell whether a file is named like parquet."""
    return path.suffix.lower() == ".parquet"


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"parquet files need the extra `parquet` ({text}): pip install 'fewstep[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet


def _columns(schema: Any, where: str) -> tuple[str, str | None]:
    """Choose the image column and the label column of a schema.

    Raises:
        DataError: if there is no image column, or several: the columns are listed.
    """
    pyarrow, _ = _pyarrow()
    types = pyarrow.types
    images, numbers = [], []
    for each in schema:
        kind = each.type
        struct_of_bytes = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if struct_of_bytes or types.is_binary(kind) or types.is_large_binary(kind):
            images.append(each.name)
        elif types.is_integer(kind) or types.is_string(kind):
            numbers.append(each.name)
    if len(images) != 1:
        raise DataError(
            f"{where} has {len(images)} columns of encoded images, 1 is needed; its columns are "
            f"{', '.join(shown_name(each.name) for each in schema)}"
        )
    named = [name for name in _LABEL_NAMES if name in numbers]
    if named:
        return images[0], named[0]
    integers = [name for name in numbers if types.is_integer(schema.field(name).type)]
    return images[0], integers[0] if len(integers) == 1 else None


def _class_names(schema: Any, column: str) -> list[str] | None:
    """Return the class names that the `datasets` library stored in the schema, if any."""
    stored = (schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(stored)["info"]["features"][column]["names"] if stored else None
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def _parquet(paths: list[Path], allow_empty_class: bool) -> Source:
    """Understand the shards of one data set; only the label column is read now."""
    _, parquet = _pyarrow()
    where = shown_name(paths[0])
    try:
        schema = parquet.read_schema(paths[0])
        image, label = _columns(schema, where)
        wanted = [label] if label else []
        tables = [parquet.read_table(path, columns=wanted or [image]) for path in paths]
    except DataError:
        raise
    except Exception as error:  # pyarrow raises many kinds on damaged files
        text = " ".join(str(error).split())[:160]
        raise DataError(f"{where}: cannot be read ({text}); get the file again") from error
    count = sum(table.num_rows for table in tables)
    if not count:
        raise DataError(f"no images in {where}: it has 0 rows; get the file again")
    labels, classes = np.zeros(count, dtype=np.int64), ()
    if label:
        values = [value for table in tables for value in table[label].to_pylist()]
        names = _class_names(schema, label)
        labels, classes = class_ids(
            values, names, f"{where} column {shown_name(label)}", allow_empty_class
        )
    base = str(paths[0]) if len(paths) == 1 else str(paths[0].parent)
    return Source(
        layout=f"parquet (images: {image}, labels: {label or 'none'})",
        name=base,
        labels=labels,
        classes=classes,
        item=lambda i: f"{base} row {i}",
        loader=lambda: _parquet_reader(paths, image),
        stamp=_file_stamp(paths),
    )


def _parquet_reader(paths: list[Path], column: str) -> Fetch:
    """Read the image column (compressed bytes, in memory) and give access by row."""
    pyarrow, parquet = _pyarrow()
    chunks: list[Any] = []
    for path in paths:
        data = parquet.read_table(path, columns=[column])[column]
        if pyarrow.types.is_struct(data.type):
            data = pyarrow.chunked_array(
                [chunk.field(chunk.type.get_field_index("bytes")) for chunk in data.chunks]
            )
        chunks += data.chunks
    starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])

    def fetch(i: int) -> bytes:
        which = int(np.searchsorted(starts, i, side="right")) - 1
        value = chunks[which][i - int(starts[which])].as_py()
        if value is None:
            raise Unreadable("has no image bytes (None, or only a path)")
        return value

    return fetch


def parquet_in(path: Path, *, allow_empty_class: bool = False) -> list[Source]:
    """Understand a parquet file, or a folder with the shards of a data set.

    Args:
        path: a file, or a folder; files whose names start with `test` or `val` are held out.
        allow_empty_class: accept labels that no row has.

    Returns:
        One source, or training and held-out.

    Raises:
        DataError: if a file is damaged or has no single column of images.
        UsageError: if pyarrow is not installed.
    """
    paths = [path] if path.is_file() else sorted(p for p in path.iterdir() if is_parquet(p))
    return [_parquet(group, allow_empty_class) for group in _split_names(paths)]
