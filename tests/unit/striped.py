"""A data set that a small classifier learns in a moment."""

import numpy as np
import torch

from fewstep.data import Images
from fewstep.metrics.classifier import Recipe

SHORT = Recipe(steps=40, width=8)


def stripes(n=120, channels=1, height=8, width=8, seed=0) -> Images:
    """Two classes, alternating: bright at the top, bright on the left; with noise."""
    u = np.random.default_rng(seed).integers(0, 120, (n, channels, height, width), np.uint8)
    u[0::2, :, : height // 2] += 120
    u[1::2, :, :, : width // 2] += 120
    return Images.of(u, np.arange(n, dtype=np.int64) % 2, ("top", "left"), "stripes")


def raw(images: Images) -> torch.Tensor:
    return torch.from_numpy(images.pixels.copy())


def accuracy(extractor, images: Images) -> float:
    logits = extractor(raw(images)).logits
    return float((logits.argmax(1).numpy() == images.labels).mean())
