"""The work of a comparison: make what is missing, look at it early, measure it all.

Items are the rows: cells of a model, or images that somebody else made. The work goes over all
items in passes that double the images of each, so that a table of early estimates exists after
the first pass and every later one is better. What is made lies in files, so an interrupted work
goes on where it was, and several processes or machines share one by taking every k-th chunk.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.data import Images
from fewstep.metrics import Features
from fewstep.model import Model
from fewstep.report import kept
from fewstep.report.cells import Cell, Chunk, Labels, Maker, Store, Tick, machine, passes, ranges
from fewstep.report.judge import Judge, Verdict
from fewstep.report.results import Line
from fewstep.report.spec import Row
from fewstep.steer import Steer
from fewstep.train.sealed import versions

SHOWN = 40
"""Images of a row that its picture shows."""


class Given:
    """Images that were made elsewhere, in chunks like ours.

    Args:
        images: the images.
        n: how many of them; a fixed choice among all where there are more.
    """

    def __init__(self, images: Images, n: int) -> None:
        order = np.random.default_rng(0).permutation(len(images))[:n]
        self.images, self.ids = images, np.sort(order)

    def chunk(self, start: int, end: int) -> Chunk:
        """Return the images start .. end - 1."""
        pixels = np.asarray(self.images.pixels[self.ids[start:end]])
        return Chunk(pixels, self.labels(start, end), 0.0)

    def labels(self, start: int, end: int) -> NDArray[np.int64]:
        """Return the labels of images start .. end - 1; -1 without classes."""
        ids = self.ids[start:end]
        if not self.images.classes:
            return np.full(len(ids), -1, dtype=np.int64)
        return self.images.labels[ids]


class Subject(NamedTuple):
    """A model that is to be measured.

    Attributes:
        model: in evaluation mode, on the device that samples.
        name: what to call it.
        weights: SHA-256 of its weights.
        labels: which classes are asked for; a model without classes is asked for them only
            through a classifier.
        seed: image i draws its noise from seed + i.
    """

    model: Model
    name: str
    weights: str
    labels: Labels
    seed: int = 0


@dataclass(frozen=True)
class Item:
    """One row of the work.

    Attributes:
        title: what to call it.
        group: heading under which it is shown.
        name: what the model, or the folder of foreign images, is called.
        weights: SHA-256 of the model's weights, or the fingerprint of the images.
        settings: of sampling, as JSON values; {} for foreign images.
        nfe: network evaluations per image; 0 for foreign images.
        store: where chunks and features lie.
        maker: makes the chunks; the images themselves if they were made elsewhere.
    """

    title: str
    group: str
    name: str
    weights: str
    settings: dict[str, Any]
    nfe: int
    store: Store
    maker: Maker | Given

    @classmethod
    def of_row(
        cls, row: Row, subject: Subject, root: Path, batch_size: int | None = None
    ) -> "Item":
        """Return the item of a model sampled in one way.

        Args:
            row: the settings.
            subject: the model.
            root: folder of all cells.
            batch_size: images at once; None decides by their size.

        Raises:
            UsageError: settings that this model cannot follow.
        """
        asked = subject.model.classes or isinstance(row.steer, Steer)
        labels = subject.labels if asked else Labels()
        cell = Cell(
            subject.model, subject.name, subject.weights, row.sampling, row.process,
            labels, subject.seed, row.steer,
        )  # fmt: skip
        maker = Maker(cell, batch_size)
        store = Store(root, cell.id, cell.identity())
        return cls(
            row.title, row.group, cell.name, cell.weights, row.settings(), maker.plan.nfe, store,
            maker,
        )  # fmt: skip

    @classmethod
    def of_images(cls, images: Images, name: str, n: int, root: Path) -> "Item":
        """Return the item of images that were made elsewhere."""
        facts = {"images": images.fingerprint, "n": min(n, len(images))}
        store = Store(root, f"given-{images.fingerprint[:12]}-{facts['n']}", facts)
        return cls(name, "", name, images.fingerprint, {}, 0, store, Given(images, n))

    def outline(self, protocol: dict[str, Any]) -> Line:
        """Return the row without figures under a protocol, whole or known in part."""
        return Line(
            self.title, self.group, self.name, self.weights, self.settings, self.nfe,
            protocol["n"], 0.0, (), protocol, self.facts(),
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """Return what a record says of the seeds, and of what a student was made from."""
        if isinstance(self.maker, Given):
            return {}
        cell = self.maker.cell
        student = {"student": dict(cell.model.student)} if cell.model.student else {}
        return {"seeds": f"image i: {cell.seed} + i", **student}

    def number(self, i: int) -> int:
        """Return what its maker calls image i: its place in their own order."""
        return int(self.maker.ids[i]) if isinstance(self.maker, Given) else i

    def chunk(self, start: int, end: int) -> Chunk | None:
        """Return a chunk that is there, or None."""
        if isinstance(self.maker, Given):
            return self.maker.chunk(start, end)
        return self.store.read(start, end)


def absent(items: Sequence[Item], n: int) -> list[tuple[Item, int, int]]:
    """Return the chunks of the first n images of each row that nobody has made yet."""
    return [
        (item, start, end)
        for item in items
        if isinstance(item.maker, Maker)
        for start, end in item.store.missing(n)
    ]


class Done(NamedTuple):
    """A chunk of the work is done.

    Attributes:
        item: the row it belongs to.
        images: of this row, up to and with this chunk.
        turn: number of the pass, from 0.
        last: whether the pass is done with it.
    """

    item: Item
    images: int
    turn: int
    last: bool


class Work:
    """Items under one judge.

    Args:
        judge: decides n and the features.
        items: the rows.
        share: (i, k) takes chunks i, i + k, ... of all; 0 <= i < k.
    """

    def __init__(
        self, judge: Judge, items: Sequence[Item], share: tuple[int, int] = (0, 1)
    ) -> None:
        self.judge, self.items, self.n = judge, list(items), judge.rules.n
        turns = passes([i.store for i in items], self.n)
        everything = [(t, *entry) for t, turn in enumerate(turns) for entry in turn]
        self._mine = everything[share[0] :: share[1]]

    def cost(self) -> int:
        """Return the cost of all chunks that are to be made here: see `make`."""
        return sum(self._cost(self.items[i], start, end) for _, i, start, end in self._mine)

    def _cost(self, item: Item, start: int, end: int) -> int:
        """Return the evaluations of a chunk; of images that are there, those to be looked at."""
        if isinstance(item.maker, Maker) and not item.store.path(start, end).exists():
            return item.nfe * (end - start)
        return 0 if self._looked_at(item, start, end) else end - start

    def make(
        self, begin: Callable[[int, str], None] | None = None, tick: Tick | None = None
    ) -> Iterator[Done]:
        """Make what is missing of this share: images and their features.

        Args:
            begin: told the cost of a chunk before it is made, and its row: network evaluations,
                or images where only features are missing.
            tick: told how far that chunk is.

        Raises:
            NumericError: an image is not finite.
            ResourceError: the disk refuses.
        """
        for k, (turn, i, start, end) in enumerate(self._mine):
            item = self.items[i]
            cost = self._cost(item, start, end)
            if begin is not None and cost:
                begin(cost, f"{item.title}: {end}/{self.n} images")
            sampled = self._features_made(item, start, end, tick)
            if tick is not None and cost and not sampled:
                tick(1, 1)
            last = k + 1 == len(self._mine) or self._mine[k + 1][0] != turn
            yield Done(item, end, turn, last)

    def _features_made(self, item: Item, start: int, end: int, tick: Tick | None) -> bool:
        """Make a chunk and its features unless they are there; return whether it was sampled."""
        chunk = None
        if isinstance(item.maker, Maker) and not item.store.path(start, end).exists():
            chunk = item.maker.make(start, end, tick)
            item.store.write(start, end, chunk)
        sampled = chunk is not None
        item.store.open()
        for e in self.judge.extractors:
            if kept.chunk_features(e, item.store.folder, (start, end), None) is None:
                chunk = chunk or self._whole(item, start, end)
                kept.chunk_features(e, item.store.folder, (start, end), chunk.pixels)
        return sampled

    def _whole(self, item: Item, start: int, end: int) -> Chunk:
        """Return a chunk; make it again if its file is damaged."""
        chunk = item.chunk(start, end)
        if chunk is None:
            assert isinstance(item.maker, Maker)
            chunk = item.maker.make(start, end)
            item.store.write(start, end, chunk)
        return chunk

    def missing(self) -> int:
        """Return how many chunks of the whole work, not of this share, are not there."""
        looked = (self._looked_at(item, *span) for item in self.items for span in ranges(self.n))
        return len(absent(self.items, self.n)) + sum(not there for there in looked)

    def _looked_at(self, item: Item, start: int, end: int) -> bool:
        """Return whether the features of a chunk are there."""
        return all(
            kept.place(e, item.store.folder, (start, end)).exists() for e in self.judge.extractors
        )

    def line(self, item: Item, n: int) -> Line:
        """Return the row measured on its first n images, all of which must be there.

        Raises:
            DataError: too few images for a figure.
        """
        features, labels = self._features(item, n), self._labels(item, n)
        return self._line(item, n, tuple(self.judge.figures(features, labels)))

    def verdict(self, item: Item) -> tuple[Line, Verdict]:
        """Return the row measured whole, with everything the judge can say.

        Raises:
            DataError: too few images for a figure.
        """
        features, labels = self._features(item, self.n), self._labels(item, self.n)
        found = self.judge.verdict(features, labels)
        line = self._line(item, self.n, found.figures)
        detail = {"per_class": [f.plain() for f in found.per_class]} if found.per_class else {}
        if found.confusion is not None:
            detail["confusion"] = found.confusion.tolist()
        return replace(line, detail=detail), found

    def _line(self, item: Item, n: int, figures: tuple[Any, ...]) -> Line:
        spent, makers = [], {}
        for start, end in ranges(n):
            chunk = self._whole(item, start, end)
            spent.append(chunk.seconds / len(chunk.pixels))
            makers[chunk.maker] = None
        return Line(
            item.title, item.group, item.name, item.weights, item.settings, item.nfe, n,
            statistics.median(spent), figures, self.judge.protocol(),
            self._record(item, sorted(filter(None, makers))),
            pixels=self.pixels(item, range(min(n, SHOWN))),
        )  # fmt: skip

    def outline(self) -> Line:
        """Return the first row without figures: enough to see whether others may join it."""
        return self.items[0].outline(self.judge.protocol())

    def _record(self, item: Item, makers: Sequence[str]) -> dict[str, Any]:
        """Return what belongs to a number beside its protocol and its settings."""
        facts: dict[str, Any] = {
            # where they lie is nobody's business; the protocol has their fingerprint
            "reference": Path(self.judge.reals.name).name,
            "measured with": {**versions(), **_installed("torch-fidelity")},
            "measured on": machine(self.judge.device),
        }
        if isinstance(item.maker, Maker):
            cell, times = item.maker.cell, item.maker.plan.times
            facts |= {
                "sampled on": "; and ".join(makers),
                **item.facts(),
                "labels": cell.labels.rule,
                "times": [round(t, 6) for t in times.tolist()]
                if len(times) <= 101
                else len(times),
                "speed": "median over chunks of 250 images, after a warm-up, sampling alone",
            }
        return facts

    def pixels(self, item: Item, ids: Sequence[int]) -> Tensor:
        """Return single images of a row, uint8, shape (len(ids), C, H, W)."""
        found: dict[int, NDArray[np.uint8]] = {}
        for start, end in ranges(self.n):
            mine = [i for i in ids if start <= i < end]
            if mine:
                pixels = self._whole(item, start, end).pixels
                found |= {i: pixels[i - start] for i in mine}
        return torch.from_numpy(np.stack([found[i] for i in ids]))

    def _features(self, item: Item, n: int) -> dict[str, Features]:
        """Return the features of the first n images, mapped from disk if they are large."""

        def pieces(e: Any) -> Iterator[Features]:
            for start, end in ranges(n):
                piece = kept.chunk_features(e, item.store.folder, (start, end), None)
                if piece is None:
                    pixels = self._whole(item, start, end).pixels
                    piece = kept.chunk_features(e, item.store.folder, (start, end), pixels)
                assert piece is not None
                yield piece

        return {e.name: kept.mapped(pieces(e), n) for e in self.judge.extractors}

    def _labels(self, item: Item, n: int) -> Tensor | None:
        """Return the classes asked for, shape (n,), or None."""
        if isinstance(item.maker, Maker):
            labels = item.maker.cell.labels.first(n)
        else:
            labels = item.maker.labels(0, n)
        return torch.from_numpy(labels) if n and labels[0] >= 0 else None


def _installed(name: str) -> dict[str, str]:
    from importlib import metadata

    try:
        return {name: metadata.version(name)}
    except metadata.PackageNotFoundError:
        return {}
