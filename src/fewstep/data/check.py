"""Look at a data set before anything is trained: what was understood, and what is wrong.

`open` stops at the first fault; `check` decodes every file, keeps nothing, and lists all faults,
so that they can be repaired in one go.

Inside: `check`, `Report`.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep.data.door import sources
from fewstep.data.images import shown_name
from fewstep.data.source import survey, unreadable

FEW = 1000  # images below which a model tends to repeat its training set


@dataclass(frozen=True)
class Report:
    """Hold what is known of a data set.

    Args:
        path: what was asked for.
        layout: what it was understood as.
        images: files or rows found.
        classes: images per class name, in the order of the labels; empty if unlabelled.
        sizes: images per "WIDTHxHEIGHT", commonest first.
        modes: images per Pillow mode (L, RGB, ...).
        channels: what `open` would detect (1 or 3).
        unreadable: (name, reason) of every image that cannot be used.
        skipped: files per extension that are no images.
    """

    path: str
    layout: str
    images: int
    classes: dict[str, int]
    sizes: dict[str, int]
    modes: dict[str, int]
    channels: int
    unreadable: tuple[tuple[str, str], ...]
    skipped: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether every image can be used (sizes may still need a resize rule)."""
        return not self.unreadable

    def lines(self) -> list[str]:
        """Return the report as lines of text for a terminal."""
        text = [f"{shown_name(self.path)}: {self.layout}, {self.images} images"]
        if self.classes:
            named = ", ".join(f"{shown_name(k)} {v}" for k, v in self.classes.items())
            text.append(f"{len(self.classes)} classes: {named}")
        text.append("sizes: " + ", ".join(f"{k} ({v})" for k, v in self.sizes.items()))
        modes = ", ".join(f"{k} ({v})" for k, v in self.modes.items())
        text.append(f"channels: {self.channels} (modes {modes})")
        if len(self.sizes) > 1:
            text.append("the sizes differ: give a size with resize=crop or resize=stretch")
        if self.skipped:
            named = ", ".join(f"{v} {k}" for k, v in self.skipped.items())
            text.append(f"skipped, not images by their extension: {named}")
        if self.images < FEW:
            text.append(f"fewer than {FEW} images: a model may repeat its training images")
        text += [f"cannot be used: {shown_name(name)}: {why}" for name, why in self.unreadable]
        return text


def check(path: str | Path) -> Report:
    """Decode every image of a data set and report what was found.

    Args:
        path: as for `open`; training and held-out parts are reported together.

    Raises:
        DataError: if there is no data set at all.
    """
    found = sources(path, allow_empty_class=True)
    classes: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    bad: list[tuple[str, str]] = []
    channels = 1
    for source in found:
        fetch = source.loader()
        headers, refused = survey(source, fetch)
        refused |= unreadable(source, fetch, headers)
        bad += [(source.item(i), why) for i, why in sorted(refused.items())]
        counts = np.bincount(source.labels, minlength=len(source.classes))
        for name, count in zip(source.classes, counts.tolist(), strict=False):
            classes[name] += count
        skipped += source.skipped
        for head in headers:
            if head is not None:
                sizes[f"{head.width}x{head.height}"] += 1
                modes[head.mode] += 1
                channels = max(channels, head.channels)
    return Report(
        path=str(path),
        layout=found[0].layout + (", with its own held-out part" if len(found) > 1 else ""),
        images=sum(len(source) for source in found),
        classes=dict(classes),
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        channels=channels,
        unreadable=tuple(bad),
        skipped=dict(skipped.most_common()),
    )
