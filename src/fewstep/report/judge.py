"""What images are judged against: a protocol, real images, extractors.

A `Protocol` is a short name for everything that must be equal before two figures may stand in one
column. A `Judge` is a protocol at work: it holds the extractors, the features of the real images
(kept in the cache by the hash of the images and of the extractor) and turns features of generated
images into figures.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep import metrics
from fewstep.data import Images
from fewstep.errors import DataError, UsageError, suggest
from fewstep.metrics import Extractor, Features, Figure, Reference, Split
from fewstep.metrics.moments import WIDEST
from fewstep.metrics.reference import FEW
from fewstep.report import kept

LEAST = 20
"""Fewer images than this are not judged."""

WIDE = 512
"""Features wider than this are not compared class by class: the images of one class are too few
for them, and an ImageNet of such figures would take hours."""

PARAMETERS = {
    "kernel distance": "cubic polynomial kernel, 100 subsets of min(1000, n / 2)",
    "precision, recall": "3 neighbours",
    "score": "10 splits",
}
"""What the figures of every protocol are computed with."""


@dataclass(frozen=True)
class Protocol:
    """How images are judged.

    Attributes:
        name: what to call it.
        n: images to make.
        extractors: names of the features.
        against: which real images are the reference: "held_out" or "train"; where there is one
            set of real images only, it is that.
    """

    name: str
    n: int
    extractors: tuple[str, ...]
    against: str


PROTOCOLS: Mapping[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("small-2k", 2_000, ("pixels", "classifier"), "held_out"),
        Protocol("small-1k", 1_000, ("pixels", "classifier"), "held_out"),
        Protocol("small-10k", 10_000, ("pixels", "classifier"), "held_out"),
        Protocol("fid-50k", 50_000, ("inception",), "train"),
        Protocol("fid-10k", 10_000, ("inception",), "train"),
    )
}
"""The protocols by name. "small": our own features, for images that Inception was not made for;
"fid": the published convention, TF-2015 Inception against the training set."""


def protocol(name: str, n: int | None = None) -> Protocol:
    """Return the protocol of this name, with another number of images if one is given.

    Raises:
        UsageError: there is none of this name, or n is too small.
    """
    if name not in PROTOCOLS:
        raise UsageError(
            f'protocol "{name}": allowed are {", ".join(PROTOCOLS)}{suggest(name, PROTOCOLS)}'
        )
    found = PROTOCOLS[name]
    if n is not None and n < LEAST:
        raise UsageError(f"-n {n}: too few images to judge; at least {LEAST} are needed")
    return found if n is None else replace(found, n=n)


@dataclass(frozen=True)
class Reals:
    """The real images, in two parts if there are two.

    Attributes:
        name: what to call them.
        train: what a model was, or would be, trained on.
        held_out: what it has not seen; None if there is one part only.
    """

    name: str
    train: Images
    held_out: Images | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""
        return self.train.classes

    def check(self, shape: tuple[int, ...], classes: tuple[str, ...], name: str) -> None:
        """Refuse images that these cannot judge.

        Classes that are mere numbers, as labels in an array are, stand for those of the same
        index.

        Args:
            shape: (C, H, W) of the images.
            classes: their class names; () without labels.
            name: what to call them.

        Raises:
            DataError: other channels, another size, other classes; too few real images.
        """
        for part in (self.train, self.held_out):
            if part is not None and len(part) < LEAST:
                raise DataError(
                    f"{part.name}: {len(part)} real images are too few to judge with; at least "
                    f"{LEAST} are needed"
                )
        if tuple(shape) != self.train.shape:
            (c, h, w), (rc, rh, rw) = shape, self.train.shape
            raise DataError(
                f"{name} has images of {c}x{h}x{w} (channels x height x width), the real images "
                f"of {self.name} are {rc}x{rh}x{rw}: measure against images of one shape"
            )
        numbers = tuple(str(i) for i in range(len(classes)))
        by_index = classes == numbers and len(classes) <= len(self.classes)
        if classes and self.classes and classes != self.classes and not by_index:
            missing, new = (
                ", ".join([c for c in a if c not in b][:5]) or "none"
                for a, b in ((self.classes, classes), (classes, self.classes))
            )
            raise DataError(
                f"{name} has other classes than the real images of {self.name} (missing: "
                f"{missing}; new: {new}; {len(classes)} and {len(self.classes)} in all) or has "
                "them in another order: give real images of the same classes"
            )

    def counts(self, against: str) -> tuple[int, ...]:
        """Return how many images of each class the reference holds; () without classes."""
        if not self.classes:
            return ()
        labels = self.parts(against)[1].labels
        return tuple(np.bincount(labels, minlength=len(self.classes)).tolist())

    def pixels(self, ids: Iterable[int]) -> Tensor:
        """Return single training images, uint8, shape (len(ids), C, H, W)."""
        return torch.from_numpy(np.stack([self.train.pixels[i] for i in ids]))

    def parts(self, against: str) -> tuple[str, Images, Images | None]:
        """Return the name of the reference split, the reference and the rest."""
        if self.held_out is None:
            return "all", self.train, None
        if against == "train":
            return "train", self.train, self.held_out
        return "held out", self.held_out, self.train


def terms(rules: Protocol, reals: Reals) -> dict[str, Any]:
    """Return what is known of a judge's protocol before it is one: all but the extractors."""
    split, real, _ = reals.parts(rules.against)
    return {
        "name": rules.name,
        "n": rules.n,
        "quantisation": "8 bits, clipped and rounded; lossless",
        "reference": {"split": split, "images": len(real), "fingerprint": real.fingerprint},
        "parameters": PARAMETERS,
    }


@dataclass(frozen=True)
class Verdict:
    """What a judge says of generated images.

    Attributes:
        figures: numbers with intervals and floors.
        confusion: rows asked for, columns seen, int64, shape (K, K); None without classes.
        per_class: Frechet distance of each class; () without classes.
        pairs: closest pairs: (number of the generated image, number of the training image,
            distance), nearest first.
    """

    figures: tuple[Figure, ...]
    confusion: Tensor | None = None
    per_class: tuple[Figure, ...] = ()
    pairs: tuple[tuple[int, int, float], ...] = ()


class Judge:
    """A protocol at work on real images.

    Args:
        rules: the protocol.
        reals: the real images.
        extractors: in the order of `rules.extractors`.
        tick: told (images done, images) while features of real images are made.
        device: where the extractors compute, for the record.
    """

    def __init__(
        self,
        rules: Protocol,
        reals: Reals,
        extractors: list[Extractor],
        tick: Callable[[int, int], None] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.rules, self.reals, self.extractors = rules, reals, extractors
        self.device = device or torch.device("cpu")
        self.split, self.real, other = reals.parts(rules.against)
        self._references = {}
        for e in extractors:
            rest = None if other is None else _split(e, other, tick)
            self._references[e.name] = Reference(e, _split(e, self.real, tick), rest)

    def protocol(self) -> dict[str, Any]:
        """Return what must be equal before two figures may stand in one column."""
        known = {e.name: {"weights": e.weights, "rule": e.rule} for e in self.extractors}
        return {**terms(self.rules, self.reals), "extractors": known}

    def notes(self) -> list[str]:
        """Return what must be said beside the figures, one sentence each."""
        few = (
            f"{self.rules.n} images are fewer than {FEW}: Frechet distances are mostly bias; "
            "kernel distances, which have none, come first"
        )
        said = [few] if self.rules.n < FEW else []
        there = {e.name for e in self.extractors}
        if "pixels" in self.rules.extractors and "pixels" not in there:
            width = math.prod(self.reals.train.shape)
            said.append(f"no FD-pixels: {width} values in an image, at most {WIDEST} are allowed")
        if "classifier" in self.rules.extractors and "classifier" not in there:
            said.append("no FD-classifier and no accuracy: the real images have no classes")
        wide = {e: self._references[e].real.vectors.shape[1] for e in there}
        if self.reals.classes and wide[self.extractors[0].name] > WIDE:
            said.append(f"no distances class by class: {wide[self.extractors[0].name]} features")
        said += [line for r in self._references.values() for line in r.notes(self.rules.n)]
        return list(dict.fromkeys(said))

    def figures(self, features: Mapping[str, Features], labels: Tensor | None) -> list[Figure]:
        """Return the figures of generated images.

        Args:
            features: by the name of the extractor; vectors of shape (N, D).
            labels: class asked for, shape (N,); None without labels.

        Raises:
            DataError: too few images for a figure.
        """
        found: list[Figure] = []
        for e in self.extractors:
            made = Split(*features[e.name], labels)
            reference = self._references[e.name]
            found += reference.figures(made)
            if labels is not None and made.logits is not None and e.name == "classifier":
                found += metrics.label_figures(reference, made, self._unseen(e))
        return found

    def _unseen(self, extractor: Extractor) -> Split | None:
        """Return real images that the classifier was not trained on, or None."""
        held_out = self.reals.held_out
        return None if held_out is None else self._part(extractor, held_out)

    def _part(self, extractor: Extractor, images: Images) -> Split:
        """Return the features of a real part that this judge holds."""
        reference = self._references[extractor.name]
        found = reference.real if images is self.real else reference.other
        assert found is not None
        return found

    def verdict(self, features: Mapping[str, Features], labels: Tensor | None) -> Verdict:
        """Return everything: figures, confusion, classes one by one, and copies.

        Args:
            features: as in `figures`.
            labels: as in `figures`.
        """
        found, confusion, per_class, pairs = self.figures(features, labels), None, (), ()
        k = len(self.reals.classes)
        for e in self.extractors:
            made = Split(*features[e.name], labels)
            if labels is not None and e.name == "classifier" and made.logits is not None:
                confusion = metrics.confusion(made.logits, labels, k)
        width = features[self.extractors[0].name].vectors.shape[1]
        if labels is not None and k and width <= WIDE:
            e = self.extractors[0]
            names = self.reals.classes
            per_class = tuple(
                metrics.per_class(
                    self._references[e.name], Split(*features[e.name], labels), names
                )
            )
        if self.reals.held_out is not None:
            e = self.extractors[0]
            parts = (self.reals.train, self.reals.held_out)
            train, held = (self._part(e, part) for part in parts)
            copied = metrics.copies(features[e.name].vectors, train.vectors, held.vectors)
            found.append(copied.rate)
            pairs = tuple(copied.pairs)
        return Verdict(tuple(found), confusion, per_class, pairs)


def extractors(
    rules: Protocol,
    reals: Reals,
    *,
    inception: Path | None = None,
    precision: str = "fp32",
    device: torch.device | None = None,
    tick: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> list[Extractor]:
    """Return the extractors of a protocol: load or train what they need.

    Args:
        rules: the protocol.
        reals: the real images.
        inception: file of Inception's weights; None looks in the cache of torch.hub.
        precision: of Inception, "fp32" or, for monitoring only, "bf16".
        device: where Inception computes.
        tick: told of the training of a classifier.
        folder: where a classifier is kept, so that all who share the work have the same one;
            None: in the cache only.

    Raises:
        UsageError: torch-fidelity is missing, or no feature of the protocol fits the images.
        DataError: the weights are missing or are others.
    """
    made: list[Extractor] = []
    wide = math.prod(reals.train.shape) > WIDEST
    for name in rules.extractors:
        if name == "pixels":
            made += [] if wide else [metrics.pixels()]
        elif name == "inception":
            place = device or torch.device("cpu")
            made.append(metrics.inception(inception, precision, device=place))
        elif reals.classes:  # without classes there is nothing to train the judge on
            made.append(metrics.classifier(reals.train, tick=tick, folder=folder))
    if not made:
        c, h, w = reals.train.shape
        raise UsageError(
            f"protocol {rules.name}: images of {c}x{h}x{w} have too many pixels for FD-pixels, "
            "and without classes there is no classifier; use fid-10k or fid-50k"
        )
    return made


def _split(
    extractor: Extractor, images: Images, tick: Callable[[int, int], None] | None = None
) -> Split:
    """Return the features of real images, from the cache if they are there."""
    features = kept.real_features(extractor, images, tick)
    labels = torch.from_numpy(np.array(images.labels)) if images.classes else None
    return Split(*features, labels)
