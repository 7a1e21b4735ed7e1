"""Sealed directories: they survive a kill, a full disk and a flipped bit, and run no code.

A sealed directory is written under another name beside its place, every file is
fsynced, a manifest with the size and SHA-256 of every file seals it, and one rename makes it
visible: at any moment a reader finds the old state or the new one, never a mixture. Tensors lie
in safetensors, everything else in strict JSON or plain text; there is no pickle, so nothing in a
checkpoint can run.

Inside: `write`, `verify` and `load` for one directory, whatever its files mean; `checkpoint` says
which files a model has and where the checkpoints of a run lie.
"""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fewstep.errors import CheckpointError, NumericError, ResourceError, UsageError

MANIFEST = "manifest.json"
FORMAT = 1
"""The format version that we write; `KNOWN` are those that we read."""
KNOWN = (1,)

Part = Mapping[str, Any] | str | bytes
"""The content of one file: tensors (.safetensors), a JSON object (.json), text, or bytes as they
are."""

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
_MINE: set[str] = set()  # staging names that this process is writing at the moment
_LEFTOVER = re.compile(r"\.(staging|trash|old)-(.+)-(\d+)-([0-9a-f]{6})([0-9a-f]{8})")
STEP = re.compile(r"step-(\d{8,})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LOOKS = (
    (b"\x80", "a pickle"),
    (b"PK\x03\x04", "a zip archive, such as torch.save writes"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself"),
    (b"<", "an HTML or XML page"),
)


# ---------------------------------------------------------------- writing
def write(directory: Path | str, parts: Mapping[str, Part], *, step: int | None = None) -> None:
    """Write a sealed checkpoint directory; it appears whole or not at all.

    The order of calls is write < fsync of each file < manifest < fsync of the folder < rename <
    fsync of the parent. A checkpoint of ours in the same place is replaced.

    Args:
        directory: the directory to make; a free name or an earlier checkpoint.
        parts: file name -> tensors of any shape (.safetensors), JSON object (.json) or text.
        step: optimizer steps done, for the manifest.

    Raises:
        NumericError: a tensor or number is not finite (nothing is written).
        UsageError: the place is taken by something that is not a checkpoint.
        ResourceError: the disk is full or refuses; earlier checkpoints are untouched.
    """
    directory = Path(directory)
    contents = {name: _encode(name, part) for name, part in parts.items()}
    contents[MANIFEST] = _manifest(contents, step)
    try:
        _refuse_foreign(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        _publish(directory, contents)
    except OSError as e:
        raise ResourceError(
            f"cannot save {directory}: {_reason(e)}; what was saved before is untouched; "
            "make room or choose another folder"
        ) from e


def _publish(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write the files under a staging name and rename it to its place."""
    staging = aside("staging", directory)
    _MINE.add(staging.name)
    try:
        staging.mkdir()
        for name, data in contents.items():  # the manifest is last
            with open(staging / name, "xb") as f:  # open() gives 0666 & ~umask
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        _sync(staging)
        _move(staging, directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        _MINE.discard(staging.name)


def _move(staging: Path, directory: Path) -> None:
    """Rename a finished staging folder to its place, where an old checkpoint may lie."""
    old = aside("old", directory)
    if directory.exists():  # a folder cannot replace one that holds files
        os.replace(directory, old)
    try:
        os.replace(staging, directory)
    except OSError:
        if old.exists():
            os.replace(old, directory)
        raise
    _sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _encode(name: str, part: Part) -> bytes:
    """Return the bytes of one file."""
    if not _NAME.fullmatch(name) or name == MANIFEST:
        raise ValueError(f"checkpoint file name {name!r}: letters, digits, '_', '-', '.' only")
    if isinstance(part, str | bytes):
        return part if isinstance(part, bytes) else part.encode()
    if name.endswith(".safetensors"):
        return safetensors.torch.save(_plain(name, part))
    return _dump(name, part)


def _plain(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return finite, contiguous CPU tensors that share no memory."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        # One pass over the values; an aminmax is NaN if any is, and shows an infinity.
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise NumericError(f"{name}: tensor {key!r} holds NaN or infinity; not saved")
        flat = tensor.detach().cpu().contiguous()
        plain[key] = flat.clone() if flat.data_ptr() in seen else flat
        seen.add(flat.data_ptr())
    return plain


def _dump(name: str, value: object) -> bytes:
    """Return canonical strict JSON: sorted keys, no NaN."""
    try:
        return json.dumps(value, allow_nan=False, sort_keys=True, indent=1).encode() + b"\n"
    except ValueError as e:
        raise NumericError(f"{name}: {e}; not saved") from e


def _manifest(contents: Mapping[str, bytes], step: int | None) -> bytes:
    """Return the manifest; `seal` is the hash of the manifest without it."""
    files = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    }
    body = {"format": FORMAT, "step": step, "files": files, "versions": versions()}
    return _dump(MANIFEST, {**body, "seal": _seal(body)})


def versions() -> dict[str, str]:
    """Return the versions of the libraries that made a file."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("fewstep", "safetensors", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _seal(body: object) -> str:
    return hashlib.sha256(_dump(MANIFEST, body)).hexdigest()


def _refuse_foreign(directory: Path) -> None:
    """Raise unless the place is free or holds a checkpoint: a rename would destroy the rest."""
    if not os.path.lexists(directory):
        return
    if directory.is_symlink() or not directory.is_dir():
        raise UsageError(f"cannot save to {directory}: it is not a folder; choose a free name")
    ours = (directory / MANIFEST).is_file() or STEP.fullmatch(directory.name)
    if not ours and any(directory.iterdir()):
        raise UsageError(
            f"cannot save to {directory}: the folder holds files and no {MANIFEST}, so it is not "
            "a checkpoint; choose a free name"
        )


def aside(kind: str, directory: Path) -> Path:
    """Return a name beside `directory` that says who uses it: process, host, nonce."""
    owner = f"{os.getpid()}-{_HOST}{secrets.token_hex(4)}"
    return directory.parent / f".{kind}-{directory.name}-{owner}"


def sweep(folder: Path) -> list[str]:
    """Remove what dead processes of this host left in a folder; return the names.

    The staging folders of living processes and of other hosts stay. A checkpoint that was being
    replaced when its process died is put back.
    """
    swept: list[str] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        left = _LEFTOVER.fullmatch(path.name)
        if not left or left[4] != _HOST or path.name in _MINE or _alive(int(left[3])):
            continue
        swept.append(path.name)
        if left[1] == "old" and not os.path.lexists(folder / left[2]):
            os.replace(path, folder / left[2])
        else:
            shutil.rmtree(path, ignore_errors=True)
    return swept


def _alive(pid: int) -> bool:
    """Return whether another process has this id; our own id is that of an earlier life."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync(folder: Path) -> None:
    """Fsync a folder, so that the names in it are on disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _reason(e: OSError) -> str:
    known = {errno.ENOSPC: "the disk is full", errno.EFBIG: "the file may not grow so large"}
    return known.get(e.errno or 0, e.strerror or str(e))


# ---------------------------------------------------------------- reading
@dataclass(frozen=True)
class Checkpoint:
    """Read the files of a verified checkpoint, each when it is asked for."""

    path: Path
    step: int | None
    files: tuple[str, ...]

    def json(self, name: str) -> dict[str, Any]:
        """Return a JSON file's object."""
        return parse(self.raw(name), self.path / name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return a safetensors file's tensors, on the CPU."""
        self._known(name)
        try:
            return safetensors.torch.load_file(self.path / name)
        except (safetensors.SafetensorError, OSError, ValueError) as e:
            kind = look(self.path / name)
            raise CheckpointError(f"{self.path / name}: not safetensors ({e}){kind}") from e

    def raw(self, name: str) -> bytes:
        """Return a file as it is."""
        self._known(name)
        try:
            return (self.path / name).read_bytes()
        except OSError as e:
            raise CheckpointError(f"{self.path / name}: {_reason(e)}") from e

    def _known(self, name: str) -> None:
        if name not in self.files:
            raise CheckpointError(
                f"{self.path}: no {name}; this checkpoint holds {', '.join(self.files)}"
            )


def load(directory: Path | str) -> Checkpoint:
    """Verify a checkpoint and return it for reading.

    Raises:
        CheckpointError: it is not whole; the message names the file.
    """
    manifest = verify(directory)
    return Checkpoint(Path(directory), manifest["step"], tuple(manifest["files"]))


def verify(directory: Path | str, *, hashes: bool = True) -> dict[str, Any]:
    """Return the manifest of a checkpoint if every file is there, unchanged and expected.

    Args:
        directory: the checkpoint.
        hashes: False compares sizes only (milliseconds, for a first look).

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    directory = Path(directory)
    try:
        manifest = _open_manifest(directory)
        found = {entry.name: entry for entry in os.scandir(directory)}
        for extra in sorted(found.keys() - manifest["files"].keys() - {MANIFEST}):
            raise CheckpointError(f"{directory / extra}: not in the manifest; remove it")
        for name, stated in manifest["files"].items():
            path = directory / name
            if name not in found:
                raise CheckpointError(f"{path}: missing")
            if not found[name].is_file(follow_symlinks=False):
                raise CheckpointError(f"{path}: not a regular file")
            size = path.stat().st_size
            if size != stated["bytes"]:
                raise CheckpointError(
                    f"{path}: {size} bytes, the manifest says {stated['bytes']}{look(path)}"
                )
            if hashes and _hash(path) != stated["sha256"]:
                raise CheckpointError(f"{path}: damaged (SHA-256 differs){look(path)}")
    except OSError as e:
        raise CheckpointError(f"{e.filename or directory}: {_reason(e)}") from e
    return manifest


def _open_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest; raise if it is absent, unknown or altered in any byte."""
    path = directory / MANIFEST
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint")
    if not path.is_file() or path.is_symlink():
        raise CheckpointError(f"{path}: missing, so the checkpoint is incomplete")
    raw = path.read_bytes()
    manifest = parse(raw, path)
    if manifest.get("format") not in KNOWN:
        raise CheckpointError(
            f"{path}: format version {manifest.get('format')!r}; this fewstep reads version "
            f"{', '.join(map(str, KNOWN))}; install a newer one"
        )
    body = {key: value for key, value in manifest.items() if key != "seal"}
    # Comparing the bytes too finds a changed space, which a hash of the values would miss.
    if manifest.get("seal") != _seal(body) or raw != _dump(MANIFEST, manifest):
        raise CheckpointError(f"{path}: damaged (the seal differs)")
    if not all(_NAME.fullmatch(name) for name in manifest["files"]):
        raise CheckpointError(f"{path}: a file name leaves the checkpoint")
    return manifest


def parse(raw: bytes, path: Path) -> dict[str, Any]:
    """Return the object of a strict JSON file: no NaN, no key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        value = json.loads(raw, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: not JSON ({e})") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON object is wanted, not {type(value).__name__}")
    return value


def _hash(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def look(path: Path) -> str:
    """Return what a file that is no safetensors looks like, for an error message."""
    if path.suffix == ".json":
        return ""
    with suppress(OSError), open(path, "rb") as f:
        head = f.read(32)
        if not head:
            return "; it is empty"
        looks = (f"; it looks like {what}" for start, what in _LOOKS if head.startswith(start))
        return next(looks, "")
    return ""
