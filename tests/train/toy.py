"""A network of some thousand weights on random bytes: training that takes milliseconds."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from fewstep.data.images import Images
from fewstep.denoiser import NetDenoiser
from fewstep.model import Model
from fewstep.nets.unet import UNet, UNetConfig
from fewstep.objectives import Bound, Denoising, LossSecondMoment
from fewstep.process import Cosine, Tabulated
from fewstep.train.config import FitConfig
from fewstep.train.fit import fit

CLASSES = ("a", "b", "c")


def images(n: int = 50, classes: tuple[str, ...] = CLASSES) -> Images:
    """Return n random 8x8 images."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, len(CLASSES), n).astype(np.int64)
    return Images.of(pixels, labels, classes, "toy")


def model(classes: tuple[str, ...] = CLASSES, width: int = 8) -> Model:
    """Return a tiny U-Net with dropout, so that every random source is used."""
    torch.manual_seed(0)
    config = UNetConfig(
        in_channels=1, out_channels=1, size=8, width=width, mult=(1,), depth=1, attention=(),
        heads=1, classes=len(classes), dropout=0.1, groups=4,
    )  # fmt: skip
    return Model(NetDenoiser(UNet(config), Cosine()), (1, 8, 8), classes)


def bound() -> Bound:
    """Return the bound as objective, with times that learn."""
    return Bound(times=LossSecondMoment(4, keep=3))


def wide() -> Model:
    """Return the toy with a learned variance, on a table of as many steps as `bound` has."""
    torch.manual_seed(0)
    config = dataclasses.replace(model().denoiser.net.config, out_channels=2)
    return Model(NetDenoiser(UNet(config), Tabulated("cosine", 4)), (1, 8, 8), CLASSES)


def config(steps: int = 60, **changes: object) -> FitConfig:
    """Return quick settings."""
    values: dict[str, object] = {
        "steps": steps, "batch_size": 8, "accumulate": 2, "warmup": 10, "ema_decay": 0.9,
        "checkpoint_every": 1000, "sample_every": 1000, "log_every": 1, "flip": True,
        "precision": "fp32",  # on every CPU: gradients are compared to 1e-4
    }  # fmt: skip
    return FitConfig(**{**values, **changes})  # type: ignore[arg-type] -- a test gives any value


def train(out: Path, steps: int = 60, data: Images | None = None, **changes: object) -> Model:
    """Run the real loop on the toy."""
    return fit(model(), data or images(), Denoising(), config(steps, **changes), out, device="cpu")
