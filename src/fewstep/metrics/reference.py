"""Made images against real ones, every number with its interval and with what real images get.

The reference is one split of the real images. The other split, if there is one, is put in the
place of the made images: what it gets is the floor of a distance and the ceiling of a share. Both
must stand for the same number of images. When the other split has fewer than were made, its
Frechet distance is scaled by the law of the bias (`quality.expected_distance`), of which only
1/n + 1/m changes; a kernel distance has no bias; precision, recall and the score have no such law
and are given as measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.errors import DataError
from fewstep.metrics import intervals, quality
from fewstep.metrics.features import Extractor
from fewstep.metrics.figures import Figure
from fewstep.metrics.moments import Moments

FEW = 2048
"""Below this many images the kernel distance comes first: the Frechet distance is mostly bias."""

LEAST = 5
"""Images that all figures need: the third neighbour and one more, or two halves of a subset."""

SPLITS = 10
"""Parts of the score; with fewer images than this it is left out."""


@dataclass(frozen=True)
class Split:
    """What an extractor says of a set of images.

    Attributes:
        vectors: features, shape (N, D), float32; may be backed by a memory map.
        logits: before the softmax, shape (N, K), float32; None if the extractor has no classes.
        labels: classes that the images are of or were asked for, shape (N,), int64; None if
            there are none.
    """

    vectors: Tensor
    logits: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = [None if x is None else tuple(x.shape) for x in (self.logits, self.labels)]
        n = len(self.vectors)
        if self.vectors.ndim != 2 or any(s is not None and s[0] != n for s in shapes):
            raise DataError(
                f"features {tuple(self.vectors.shape)}, logits {shapes[0]} and labels "
                f"{shapes[1]} do not belong together; expected (N, D), (N, K) and (N,)"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.vectors)

    def take(self, rows: Tensor) -> "Split":
        """Return the images of these rows, int64 or boolean."""
        rest = (None if x is None else x[rows] for x in (self.logits, self.labels))
        return Split(self.vectors[rows], *rest)


@dataclass
class Reference:
    """Real images that made ones are compared with.

    Attributes:
        extractor: what the features are of; names the figures.
        real: the real images, at least `LEAST`.
        other: real images that are not among them; None: figures without a floor. Fewer than
            `LEAST` give none either.
        seed: which of the other images take the place of the made ones.

    Raises:
        DataError: too few real images, or splits of different widths.
        NumericError: a feature is not finite.
        UsageError: features wider than 4096, or torch-fidelity is not installed.
    """

    extractor: Extractor
    real: Split
    other: Split | None = None
    seed: int = 0
    _moments: Moments = field(init=False, repr=False)
    _floors: dict[tuple[str, int], tuple[float, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._need(self.real, "the real split")
        if self.other is not None:
            self._same_width(self.other, "the other real split")
        self._moments = Moments.of(self.real.vectors)
        self._floors = {}

    def figures(self, made: Split) -> list[Figure]:
        """Return the figures of made images.

        Frechet and kernel distance (the kernel distance first below `FEW` images), precision,
        recall and, if there are logits of at least `SPLITS` images, the score. `notes` says
        why something is not there.

        Args:
            made: what the same extractor says of the made images, at least `LEAST`.

        Raises:
            DataError: fewer images, or features of another width.
            NumericError: a feature is not finite.
        """
        self._need(made, "the images to judge")
        self._same_width(made, "the images to judge")
        distances = [self.distance(made), self._kernel(made)]
        if len(made) < FEW:
            distances.reverse()
        return [*distances, *self._shares(made), *self._score(made)]

    def distance(self, made: Split) -> Figure:
        """Return the Frechet distance alone; at least 2 images are needed."""
        moments = Moments.of(made.vectors)
        value = quality.frechet_distance(self._moments, moments)
        sd = intervals.frechet_sd(self._moments, made.vectors, moments)
        floor, floor_n = self._floor("FD", len(made), self._frechet_floor)
        m = len(self.real)
        if floor is None:  # what the law says that other real images would get
            floor = (quality.expected_distance(self._moments.covariance, len(made), m),)
        elif floor_n < len(made):
            floor = (floor[0] * (1 / len(made) + 1 / m) / (1 / floor_n + 1 / m),)
        return self._figure("FD", value, intervals.around(value, sd), floor, floor_n)

    def notes(self, n: int) -> list[str]:
        """Return what must be said beside figures of n images, one sentence each."""
        said = []
        fd = self.extractor.named("FD")
        if self.other is None or len(self.other) < LEAST:
            said.append(
                f"no other real split of at least {LEAST} images: the floor of {fd} is what the "
                "law of the bias says, other figures have none"
            )
        elif len(self.other) < n:
            said.append(
                f"real against real by {len(self.other)} images, fewer than {n}: {fd} scaled by "
                "the law of the bias, precision, recall and score as measured"
            )
        if self.real.logits is not None and n < SPLITS:
            said.append(f"no score: {n} images, {SPLITS} are needed")
        return said

    def _kernel(self, made: Split) -> Figure:
        """Return the kernel distance."""
        found = quality.kernel_distance(self.real.vectors, made.vectors)
        sd = intervals.kernel_sd(self.real.vectors, made.vectors, found)
        floor, n = self._floor(
            "KD",
            len(made),
            lambda x: (quality.kernel_distance(self.real.vectors, x.vectors).mean,),
        )
        return self._figure("KD", found.mean, intervals.around(found.mean, sd), floor, n)

    def _shares(self, made: Split) -> list[Figure]:
        """Return precision and recall.

        Recall is a share of the real images, but new made images change it as no more than their
        own number would: the interval counts the smaller of the two.
        """
        shares = quality.precision_recall(self.real.vectors, made.vectors)
        ceiling, n = self._floor(
            "shares",
            len(made),
            lambda x: quality.precision_recall(self.real.vectors, x.vectors),
        )
        figures = []
        few = min(len(made), len(self.real))
        for i, (kind, count) in enumerate((("precision", len(made)), ("recall", few))):
            ends = intervals.wilson(shares[i], count)
            figures.append(
                self._figure(kind, shares[i], ends, ceiling and ceiling[i:], n, "higher")
            )
        return figures

    def _score(self, made: Split) -> list[Figure]:
        """Return the score, or nothing without logits or with too few images."""
        if made.logits is None or len(made) < SPLITS:
            return []
        mean, std = quality.inception_score(made.logits, SPLITS)

        def of(x: Split) -> tuple[float, ...]:
            if x.logits is None or len(x) < SPLITS:
                return ()
            return quality.inception_score(x.logits, SPLITS)

        ceiling, n = self._floor("score", len(made), of)
        ends = intervals.around(mean, std / SPLITS**0.5)
        return [self._figure("score", mean, ends, ceiling, n, "higher")]

    def _frechet_floor(self, x: Split) -> tuple[float, ...]:
        """Return the Frechet distance of other real images, at their own number."""
        return (quality.frechet_distance(self._moments, Moments.of(x.vectors)),)

    def _floor(
        self, kind: str, n: int, of: Callable[[Split], tuple[float, ...]]
    ) -> tuple[tuple[float, ...] | None, int]:
        """Return what min(n, all) of the other real images get, and how many they are."""
        if self.other is None or len(self.other) < LEAST or n < LEAST:
            return None, 0
        n = min(n, len(self.other))
        if (kind, n) not in self._floors:
            self._floors[kind, n] = of(self._some(self.other, n))
        found = self._floors[kind, n]
        return (found, n) if found else (None, 0)

    def _some(self, other: Split, n: int) -> Split:
        """Return a fixed choice of n images; all of them are not copied."""
        if n == len(other):
            return other
        order = torch.randperm(len(other), generator=torch.Generator().manual_seed(self.seed))
        return other.take(order[:n].sort().values)

    def _figure(
        self,
        kind: str,
        value: float,
        ends: tuple[float, float],
        real: tuple[float, ...] | None,
        n: int,
        better: str = "lower",
    ) -> Figure:
        """Return a figure of these features."""
        name = self.extractor.named(kind)
        return Figure(name, value, *ends, real[0] if real else None, n, better)

    def _need(self, split: Split, what: str) -> None:
        """Raise DataError if these are too few images."""
        if len(split) < LEAST:
            raise DataError(
                f"{self.extractor.name}: {what}: {len(split)} images; at least {LEAST} are needed"
            )

    def _same_width(self, split: Split, what: str) -> None:
        """Raise DataError if these features are not of the width of the real ones."""
        if split.vectors.shape[1] != self.real.vectors.shape[1]:
            raise DataError(
                f"{self.extractor.name}: {what}: features of width {split.vectors.shape[1]}; "
                f"the real ones have {self.real.vectors.shape[1]}: use one extractor for both"
            )
