"""Does a generated image show what was asked for? Ask a classifier trained on real images.

The classifier sees the real training split only, so its accuracy on the real held-out split says
how far it can be believed. It judges finished images; the noisy classifier that steers sampling
is another one.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fewstep.errors import DataError
from fewstep.metrics.features import quantise
from fewstep.metrics.figures import Figure
from fewstep.metrics.intervals import around, wilson
from fewstep.metrics.reference import LEAST, Reference, Split


def accuracy(classifier: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of 8-bit images that the classifier assigns to the wanted class.

    Args:
        classifier: from (B, C, H, W) to logits (B, K).
        x: images meant for [-1, 1], shape (N, C, H, W).
        y: wanted classes, shape (N,).

    Returns:
        a share in [0, 1].
    """
    place = next(classifier.parameters()).device
    with torch.no_grad():
        parts = quantise(x).to(place).split(512)
        guess = torch.cat([classifier(part).argmax(1) for part in parts])
    return (guess == y.to(place)).float().mean().item()


def confusion(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return how often an image of one class was taken for another.

    Args:
        logits: of the classifier, shape (N, classes).
        labels: classes asked for, shape (N,), in [0, classes).
        classes: K.

    Returns:
        counts, shape (K, K), int64: rows are the classes asked for, columns the classes seen.

    Raises:
        DataError: other shapes, or a label out of range.
    """
    if logits.shape != (len(labels), classes) or labels.ndim != 1:
        raise DataError(
            f"confusion: logits {tuple(logits.shape)} and labels {tuple(labels.shape)}; expected "
            f"(N, {classes}) and (N,)"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"confusion: labels {int(labels.min())} to {int(labels.max())}; the classifier knows "
            f"0 to {classes - 1}: is it another class map?"
        )
    cells = labels.long().cpu() * classes + logits.argmax(1).cpu()
    return cells.bincount(minlength=classes * classes).reshape(classes, classes)


def label_figures(reference: Reference, made: Split, unseen: Split | None) -> list[Figure]:
    """Return what the classifier says of images that were asked for by class.

    The accuracy, whose ceiling is that of real images which the classifier was not trained on;
    and the diversity within a class (`diversity`), whose real value is that of the other split.

    Args:
        reference: real images in the classifier's features, with labels.
        made: what the classifier says of the made images; labels are what was asked for.
        unseen: what it says of labelled real images that it was not trained on, or None.

    Returns:
        accuracy and diversity, as far as classes have at least two images each.

    Raises:
        DataError: without labels or logits, or labels that the classifier does not know.
    """
    share, n = _accuracy(made, "the images to judge")
    ceiling, real_n = None, 0
    if unseen is not None:
        ceiling, real_n = _accuracy(unseen, "the unseen real images")
    figures = [Figure("accuracy", share, *wilson(share, n), ceiling, real_n, "higher")]
    found = diversity(reference.real, made)
    if found is not None:
        other = reference.other
        real = None if other is None or other.labels is None else diversity(reference.real, other)
        name = reference.extractor.named("diversity")
        at = (None, 0) if real is None or other is None else (real[0], len(other))
        figures.append(Figure(name, found[0], *around(*found), *at, "higher"))
    return figures


def diversity(real: Split, made: Split) -> tuple[float, float] | None:
    """Return how far images of one class lie apart, compared with real ones.

    The mean over the classes of tr(C_made) / tr(C_real), C the covariance of the features within
    the class: the ratio of the mean squared distances of two images. A model that repeats itself
    is below 1 even if every image is perfect; so is one under strong guidance.

    Args:
        real: real images with labels.
        made: made images with labels.

    Returns:
        the ratio and its standard deviation over other images of the same model: that of the mean
        of |x - mean|^2 in each class. None if no class has two images in both sets.

    Raises:
        DataError: a set has no labels.
    """
    ratios, variances = [], []
    for c in _labels(made, "the images to judge").unique().tolist():
        of_real = real.vectors[_labels(real, "the real split") == c]
        of_made = made.vectors[_labels(made, "the images to judge") == c]
        if min(len(of_real), len(of_made)) < 2:
            continue
        scale, _ = _spread(of_real)
        if scale > 0:
            spread, variance = _spread(of_made)
            ratios.append(spread / scale)
            variances.append(variance / scale**2)
    if not ratios:
        return None
    return sum(ratios) / len(ratios), sum(variances) ** 0.5 / len(ratios)


def per_class(reference: Reference, made: Split, classes: Sequence[str]) -> list[Figure]:
    """Return the Frechet distance of each class to the real images of that class.

    Few images per class make it large by bias alone: compare with the floor beside it, not with
    the figure of all images.

    Args:
        reference: real images with labels.
        made: made images with labels.
        classes: names, by label.

    Returns:
        one figure "FD-<extractor> of <class>" for each class of which both sets have enough
        images (2 made, `reference.LEAST` real).

    Raises:
        DataError: a set has no labels.
    """
    figures = []
    labels, real_labels = _labels(made, "the images to judge"), _labels(reference.real, "real")
    for c, name in enumerate(classes):
        real, part = reference.real.take(real_labels == c), made.take(labels == c)
        if len(real) < LEAST or len(part) < 2:
            continue
        other = reference.other
        if other is not None:
            other = other.take(_labels(other, "the other real split") == c)
        figure = Reference(reference.extractor, real, other, reference.seed).distance(part)
        figures.append(replace(figure, name=f"{figure.name} of {name}"))
    return figures


def _spread(x: Tensor) -> tuple[float, float]:
    """Return the trace of the covariance of rows, and the variance of that estimate."""
    x = x.double()
    n = len(x)
    far = (x - x.mean(0)).square().sum(1) * (n / (n - 1))
    return float(far.mean()), float(far.var() / n)


def _accuracy(split: Split, what: str) -> tuple[float, int]:
    """Return the share of images that the classifier takes for what they should be."""
    if split.logits is None:
        raise DataError(f"accuracy: {what} have no logits; use the extractor of a classifier")
    table = confusion(split.logits, _labels(split, what), split.logits.shape[1])
    if not len(split):
        raise DataError(f"accuracy: {what}: no images")
    return int(table.diagonal().sum()) / len(split), len(split)


def _labels(split: Split, what: str) -> Tensor:
    """Return the labels, or raise DataError."""
    if split.labels is None:
        raise DataError(f"{what}: no labels; figures by class need one for every image")
    return split.labels
