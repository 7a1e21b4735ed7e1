"""Cells: the images of one way of sampling, made once and kept.

A cell is a model with its settings, a process and a seed. Its images are made in chunks of 250
and stored as 8-bit pixels, each chunk in a file of its own under a name that says which images
it holds. That alone makes the work resumable, shardable and mergeable: a chunk that lies there
is not made again, any process may make any chunk, and every figure is a function of the files.
Image i of a cell has seed + i and its label from i, so that chunks do not depend on who makes
them, and the same i shows the same noise in every cell.
"""

import hashlib
import io
import json
import platform
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep import sampling, solvers
from fewstep.denoiser import NetDenoiser
from fewstep.errors import DataError, NumericError, ResourceError
from fewstep.files import replacing
from fewstep.model import Model, Sampling
from fewstep.process import Process
from fewstep.sampling import Plan
from fewstep.steer import Steer, Weak
from fewstep.train.sealed import versions

CHUNK = 250
"""Images in a file."""
_BATCH_PIXELS = 1 << 18  # pixels of one channel that are sampled at once unless the user says so
_BALANCED = 1.1

Tick = Callable[[int, int], None]
"""tick(done, total): called as steps of a chunk are finished."""


class Chunk(NamedTuple):
    """Finished images.

    Attributes:
        pixels: uint8, shape (B, C, H, W).
        labels: class asked for, int64, shape (B,); -1 = none.
        seconds: of sampling, without warm-up and writing; 0 for images made elsewhere.
        maker: what sampled them: device, threads, versions; "" for images made elsewhere.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    seconds: float
    maker: str = ""


@dataclass(frozen=True)
class Labels:
    """Which class is asked of image i.

    A class-conditional model is judged with the label marginal of the reference: classes in turn
    where the reference holds about equally many of each, else in its proportions.

    Attributes:
        counts: images of each class in the reference; () asks for no class.
    """

    counts: tuple[int, ...] = ()

    @property
    def rule(self) -> str:
        """The rule in words, a part of the protocol."""
        if not self.counts:
            return "none"
        return "classes in turn" if self._even() else "in the proportions of the reference"

    def _even(self) -> bool:
        return max(self.counts) <= _BALANCED * min(self.counts)

    def first(self, n: int) -> NDArray[np.int64]:
        """Return the labels of images 0 .. n - 1; a longer list begins with a shorter one.

        >>> Labels((30, 10)).first(8).tolist()
        [0, 0, 1, 0, 0, 0, 1, 0]
        """
        if not self.counts:
            return np.full(n, -1, dtype=np.int64)
        if self._even():
            return np.arange(n, dtype=np.int64) % len(self.counts)
        share = np.asarray(self.counts, dtype=np.float64) / sum(self.counts)
        made, labels = np.zeros(len(share)), np.empty(n, dtype=np.int64)
        for i in range(n):  # the class that lags most behind its share; never all of one first
            k = int(np.argmax(share * (i + 1) - made + (share > 0) * 1e-12))
            labels[i] = k
            made[k] += 1
        return labels


@dataclass(frozen=True)
class Cell:
    """One way of making images.

    Attributes:
        model: in evaluation mode, on the device that samples.
        name: what the model is called.
        weights: SHA-256 of its weights.
        sampling: the settings.
        process: sample along this process instead of the model's own; the network, which is told
            the noise level and not the time, does not mind.
        labels: what is asked for.
        seed: image i draws its noise from seed + i.
        steer: the noisy classifier or the weaker model that guides; its weights are named.
    """

    model: Model
    name: str
    weights: str
    sampling: Sampling
    process: Process | None = None
    labels: Labels = Labels()
    seed: int = 0
    steer: Steer | Weak | None = None

    def identity(self) -> dict[str, Any]:
        """Return what decides the images, as JSON values."""
        return {
            **({} if self.steer is None else self._guiding(self.steer)),
            "weights": self.weights,
            "denoiser": self.model.denoiser.describe(),
            "sampling": self.sampling.plain(),
            "process": None if self.process is None else self.process.describe(),
            "labels": list(self.labels.counts) if "reference" in self.labels.rule else None,
            "classes": len(self.labels.counts),
            "seed": self.seed,
        }

    @staticmethod
    def _guiding(steer: Steer | Weak) -> dict[str, Any]:
        """Return which network guides and how; what it is called makes no other images."""
        if not steer.weights:
            raise ValueError("what guides has no SHA-256 of its weights to tell it from another")
        ((kind, facts),) = steer.describe().items()
        kept = {k: v for k, v in facts.items() if k != "name"}
        return {kind: {**kept, "network": steer.model.denoiser.describe()}}

    @property
    def id(self) -> str:
        """The name of the cell's folder."""
        s = self.sampling
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        return f"{s.sampler}-{s.steps}-{digest[:12]}"

    def plan(self) -> Plan:
        """Return denoiser, grid and solver.

        Raises:
            UsageError: settings that this model cannot follow.
        """
        model = self.model
        if self.process is not None:
            own = model.denoiser
            if not isinstance(own, NetDenoiser):
                raise sampling.no_denoiser(model)
            other = NetDenoiser(own.net, self.process, own.param, own.label, own.null)
            model = replace(model, denoiser=other)
        return sampling.plan(model, self.sampling, self.steer)


class Maker:
    """Make chunks of one cell.

    Args:
        cell: what to make.
        batch_size: images at once; None decides by their size.
    """

    def __init__(self, cell: Cell, batch_size: int | None = None) -> None:
        self.cell, self.plan = cell, cell.plan()
        _, h, w = cell.model.shape
        self.batch = min(batch_size or max(1, _BATCH_PIXELS // (h * w)), CHUNK)
        self._warm: set[int] = set()

    def make(self, start: int, end: int, tick: Tick | None = None) -> Chunk:
        """Return the images start .. end - 1.

        Args:
            start: first image.
            end: one after the last.
            tick: told of every step.

        Raises:
            NumericError: an image is not finite.
        """
        cell, steps = self.cell, len(self.plan.times) - 1
        asked = cell.labels.first(end)[start:]
        device = next(cell.model.denoiser.parameters()).device
        cond = torch.from_numpy(asked).to(device) if cell.labels.counts else None
        pieces = torch.arange(end - start).split(self.batch)
        for size in {len(p) for p in pieces} - self._warm:
            self._warm_up(size, cond)
        done, parts, began = 0, [], time.perf_counter()
        for ids in pieces:
            first, n, x = start + int(ids[0]), len(ids), torch.empty(0)
            walk = solvers.sample(
                self.plan.denoiser,
                (n, *cell.model.shape),
                self.plan.times,
                self.plan.solver,
                None if cond is None else cond[ids.to(device)],
                noise=solvers.PerImage(solvers.image_seeds(cell.seed, n, first)),
            )
            try:
                for step in walk:
                    x, done = step.x, done + 1
                    if tick is not None:
                        tick(done, steps * len(pieces))
            except NumericError as error:
                raise NumericError(
                    f"{cell.name}, {cell.sampling.sampler} {cell.sampling.steps}: images "
                    f"{first}..{first + n - 1}: {error}; nothing of this chunk was kept"
                ) from None
            parts.append(x.cpu())  # waits for the device: the clock stops with the work done
        seconds = time.perf_counter() - began
        x = torch.cat(parts)
        return Chunk(sampling.to_uint8(x).numpy(), asked, seconds, machine(device))

    def _warm_up(self, size: int, cond: torch.Tensor | None) -> None:
        """Call the network once: the first call for a shape prepares its kernels."""
        device = next(self.cell.model.denoiser.parameters()).device
        some = None if cond is None else cond[:1].expand(size)
        with torch.no_grad():
            start = torch.zeros(size, *self.cell.model.shape, device=device)
            self.plan.denoiser(start, float(self.plan.times[0]), some).x0.sum().item()
        self._warm.add(size)


def machine(device: torch.device) -> str:
    """Return what computes here, in words: device, threads, versions."""
    what = device.type if device.type != "cuda" else torch.cuda.get_device_name(device)
    if device.type == "cpu":
        what = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    found = versions()
    return f"{what}; torch {found['torch']}, fewstep {found.get('fewstep', 'unknown')}"


def ranges(n: int) -> list[tuple[int, int]]:
    """Return the chunks of n images: start and end of each.

    >>> ranges(600)
    [(0, 250), (250, 500), (500, 600)]
    """
    return [(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]


class Store:
    """The folder of one cell's chunks.

    Args:
        root: folder of all cells.
        id: name of the cell's own folder.
        identity: what decides the images; written beside them and compared.

    Raises:
        DataError: the folder holds other images.
    """

    def __init__(self, root: Path, id: str, identity: dict[str, Any]) -> None:
        self.folder, self.id = root / id, id
        self._stated, self._identity = self.folder / "cell.json", identity
        if self._stated.exists():
            self._compare()

    def _compare(self) -> None:
        """Refuse a folder of other images."""
        try:
            said = json.loads(self._stated.read_text("utf-8"))
        except (OSError, ValueError) as e:
            raise DataError(
                f"{self._stated}: cannot be read ({e}); remove the folder {self.folder}"
            ) from None
        if said != json.loads(json.dumps(self._identity)):
            raise DataError(f"{self.folder}: holds images made in another way; remove it")

    def open(self) -> None:
        """Make the folder, with a file that says what decides the images.

        Raises:
            ResourceError: it cannot be written.
        """
        if self._stated.exists():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._stated, sync=True) as aside:
                aside.write_text(json.dumps(self._identity, indent=1, sort_keys=True) + "\n")
        except OSError as e:
            raise ResourceError(f"cannot write {self.folder}: {e.strerror or e}") from e

    def path(self, start: int, end: int) -> Path:
        """Return the file of a chunk."""
        return self.folder / f"{start:06d}-{end:06d}.npz"

    def missing(self, n: int) -> list[tuple[int, int]]:
        """Return the chunks of the first n images that are not there."""
        return [r for r in ranges(n) if not self.path(*r).exists()]

    def write(self, start: int, end: int, chunk: Chunk) -> None:
        """Write a chunk: the whole file or none.

        Raises:
            ResourceError: the disk refuses.
        """
        self.open()
        path = self.path(start, end)
        try:
            with replacing(path, sync=True) as aside:
                np.savez(aside, **chunk._asdict(), cell=self.id)
        except OSError as e:
            raise ResourceError(f"cannot write {path}: {e.strerror or e}") from e

    def read(self, start: int, end: int) -> Chunk | None:
        """Return a chunk, or None if it is not there or damaged; a damaged file is removed.

        Raises:
            ResourceError: the disk refuses to show it.
        """
        path = self.path(start, end)
        arrays = loaded(path)
        if {*Chunk._fields, "cell"} <= set(arrays):
            pixels, labels, seconds = (arrays[k] for k in ("pixels", "labels", "seconds"))
            if str(arrays["cell"]) == self.id and len(pixels) == end - start:
                return Chunk(pixels, labels, float(seconds), str(arrays["maker"]))
        path.unlink(missing_ok=True)
        return None


def loaded(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz file; nothing if it is not there or, with a warning, damaged.

    Every member is read to its end before it is looked at, so that its checksum is compared.

    Raises:
        ResourceError: the disk refuses to show the file.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as e:
        raise ResourceError(f"cannot read {path}: {e.strerror or e}") from e
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        return {
            name.removesuffix(".npy"): np.load(io.BytesIO(member), allow_pickle=False)
            for name, member in members.items()
        }
    except Exception as e:  # of zipfile, zlib, numpy and the parsers that numpy calls
        reason = " ".join(str(e).split()) or type(e).__name__
        warnings.warn(f"{path} is damaged ({reason}) and will be made again", stacklevel=3)
        return {}


def passes(stores: Sequence[Store], n: int) -> list[list[tuple[int, int, int]]]:
    """Return what is to be made, in passes over all cells that double the images of each.

    After every pass all cells have equally many images, so that an early table compares.

    Args:
        stores: the cells.
        n: images wanted of each.

    Returns:
        passes of (cell, start, end), in order, whether the chunk is there or not.
    """
    chunks, order, done = ranges(n), [], 0
    while done < len(chunks):
        until = max(1, 2 * done)
        order.append([(c, *r) for r in chunks[done:until] for c in range(len(stores))])
        done = until
    return order
