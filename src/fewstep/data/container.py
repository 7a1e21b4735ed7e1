"""From a file of arrays to arrays that can be trusted: `.npy`, `.npz`, `.safetensors`.

Such files come from anywhere, so nothing is believed before it is compared with what is there:
the shape a header promises with the bytes behind it, a packed size with what the packing can
hold, a zip member with its checksum. Arrays of Python objects are pickles and are never loaded.
Arrays that lie in the file as they are (`np.save`, `np.savez`, safetensors) are memory-mapped; the
members of `np.savez_compressed` are unpacked into memory.

Inside: `npy`, `npz`, `safetensors`: from a path to {name: function that reads this array}.
"""

import json
import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.data.images import shown_name
from fewstep.errors import DataError, ResourceError

Array = NDArray[Any]
Arrays = Mapping[str, Callable[[], Array]]

_AGAIN = "get or write the file again"
_PIECE = 2**22  # bytes read at a time
_DEFLATE = 1032  # no packed byte gives more than this many
_HEADER = 2**24  # bytes of a safetensors header that are believed
_VERSIONS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_TYPES = {
    "U8": "|u1", "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F16": "<f2",
    "BF16": "<u2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


class _Head(NamedTuple):
    """What a header promises: shape, order of the axes in memory, type."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def order(self) -> Any:
        """The order as NumPy writes it."""
        return "F" if self.fortran else "C"

    def judged(self, where: str, held: int) -> "_Head":
        """Return the header if numbers can follow it and `held` bytes do follow it.

        Raises:
            DataError: if they cannot or do not.
        """
        if self.dtype.hasobject:
            raise DataError(
                f"{where}: holds Python objects (a pickle), which are never loaded; write "
                f"numbers: images as uint8, labels as int64"
            )
        if self.dtype.kind not in "uif":
            raise DataError(f"{where}: holds {self.dtype}; write images as uint8, labels as int64")
        if min(self.shape, default=0) < 1:
            raise DataError(
                f"{where}: no images in an array of shape {self.shape}; at least 1 is needed"
            )
        if self.size != held:
            kind = "truncated" if self.size > held else "too long"
            raise DataError(
                f"{where}: {kind}: shape {self.shape} of {self.dtype} promises {self.size} bytes, "
                f"{held} are there; {_AGAIN}"
            )
        return self


def _text(error: BaseException) -> str:
    return shown_name(" ".join(str(error).split())[:120]) or type(error).__name__


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{shown_name(path)}: cannot be read ({error.strerror or error}); {_AGAIN}")


def _other(path: Path, start: bytes, expected: str) -> DataError:
    """Return the error for a file that is not what its name says."""
    held = f"starts with {start[:4].decode('latin-1')!a}" if start else "empty file"
    return DataError(f"{shown_name(path)}: not {expected} ({held}); {_AGAIN}")


def _npy_head(file: IO[bytes], where: str) -> _Head:
    """Read the header of an `.npy` stream and leave the stream behind it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers of Python 2 are read, with a warning
            version = np.lib.format.read_magic(file)
            if version not in _VERSIONS:
                raise ValueError(f"version {version} of the format")
            return _Head(*_VERSIONS[version](file))
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError) as error:
        raise DataError(f"{where}: not a NumPy array ({_text(error)}); {_AGAIN}") from error


def _mapped(path: Path, at: int, head: _Head) -> Array:
    """Map the values at a place of a file; a plain view, whose gathers are faster."""
    return np.asarray(np.memmap(path, head.dtype, "r", at, head.shape, head.order))


def npy(path: Path) -> Arrays:
    """Return the array of a `.npy` file under the name "".

    Raises:
        DataError: if the file is not one, or damaged.
    """

    def read() -> Array:
        try:
            with path.open("rb") as file:
                start = file.read(6)
                if start != b"\x93NUMPY":
                    raise _other(path, start, "a .npy file")
                file.seek(0)
                head = _npy_head(file, shown_name(path))
                at = file.tell()
            head.judged(shown_name(path), path.stat().st_size - at)
            return _mapped(path, at, head)
        except OSError as error:
            raise _unreadable(path, error) from error

    return {"": read}


# ------------------------------------------------------------------------------------------ npz


def npz(path: Path) -> Arrays:
    """Return the arrays of a `.npz` file by their names; none is read yet.

    Raises:
        DataError: if the file is no zip archive, or its list of members is damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start not in (b"PK\3\4", b"PK\5\6"):
            raise _other(path, start, "an .npz file, which is a zip archive")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except DataError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{shown_name(path)}: truncated or damaged zip archive ({_text(error)}); {_AGAIN}"
        ) from error
    return {each.filename.removesuffix(".npy"): partial(_member, path, each) for each in members}


def _member(path: Path, info: zipfile.ZipInfo) -> Array:
    """Read one member of an `.npz`: mapped if it is stored, unpacked if it is packed."""
    where = f"{shown_name(path)} {shown_name(info.filename.removesuffix('.npy'))}"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(info) as file:
            head = _npy_head(file, where)
            start = file.tell()
            head.judged(where, info.file_size - start)
            if info.compress_type != zipfile.ZIP_STORED:
                return _unpacked(file, info, head, where)
            if info.compress_size != info.file_size:
                raise EOFError(f"{info.compress_size} of {info.file_size} bytes are there")
            while file.read(_PIECE):  # to the end: the checksum is compared there
                pass
        return _mapped(path, _place(path, info) + start, head)
    except DataError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise DataError(f"{where}: damaged ({_text(error)}); {_AGAIN}") from error


def _place(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where the bytes of a member begin: behind its own header, name and extra field."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    size = info.header_offset + 30
    return size + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _unpacked(file: IO[bytes], info: zipfile.ZipInfo, head: _Head, where: str) -> Array:
    """Unpack the values of a member into memory."""
    if info.file_size > _DEFLATE * (info.compress_size + 1):
        raise DataError(
            f"{where}: damaged: promises {info.file_size} bytes, more than the "
            f"{info.compress_size} packed bytes can hold; {_AGAIN}"
        )
    try:
        held = bytearray(head.size)
    except (MemoryError, OverflowError):
        raise ResourceError(
            f"{where}: unpacking needs {head.size / 2**30:.1f} GiB of memory; write it with "
            f"np.savez, which does not pack, and it is read from disk"
        ) from None
    room, done = memoryview(held), 0
    while done < head.size:
        piece = file.read(min(_PIECE, head.size - done))  # the last compares the checksum
        if not piece:
            raise EOFError(f"{done} of {head.size} bytes could be unpacked")
        room[done : done + len(piece)] = piece
        done += len(piece)
    return np.frombuffer(held, head.dtype).reshape(head.shape, order=head.order)


# ---------------------------------------------------------------------------------- safetensors


def safetensors(path: Path) -> Arrays:
    """Return the tensors of a `.safetensors` file by their names; none is read yet.

    The format is a length (8 bytes, little endian), a JSON header {name: {dtype, shape,
    data_offsets}}, and the bytes. It is read here and not by its library to be memory-mapped.

    Raises:
        DataError: if the header is damaged.
    """
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            held = path.stat().st_size - 8 - length
            if len(start) < 8 or held < 0 or length > _HEADER:
                raise _other(path, start, "a safetensors file, or truncated")
            header = json.loads(file.read(length))
    except DataError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise _other(path, start, "a safetensors file") from error
    if not isinstance(header, dict):
        raise _other(path, start, "a safetensors file")
    header.pop("__metadata__", None)
    return {name: partial(_tensor, path, 8 + length, name, header[name]) for name in header}


def _tensor(path: Path, begin: int, name: str, facts: Any) -> Array:
    """Map one tensor; bfloat16, which NumPy has not, is widened to float32 in memory."""
    where = f"{shown_name(path)} {shown_name(name)}"
    try:
        kind, shape, (first, last) = facts["dtype"], facts["shape"], facts["data_offsets"]
        whole = all(type(each) is int for each in (*shape, first, last))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: damaged header; {_AGAIN}") from error
    if not isinstance(kind, str) or kind not in _TYPES:
        raise DataError(
            f"{where}: holds {shown_name(kind)[:20]}; write images as U8, labels as I64"
        )
    end = path.stat().st_size - begin
    if not whole or not 0 <= first <= last or first > end:
        raise DataError(f"{where}: damaged header (bytes {first!a} to {last!a}); {_AGAIN}")
    head = _Head(tuple(shape), False, np.dtype(_TYPES[kind]))
    values = _mapped(path, begin + first, head.judged(where, min(last, end) - first))
    if kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values
