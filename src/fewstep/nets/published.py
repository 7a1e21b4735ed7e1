"""Name the configurations of published networks, so that nobody retypes a table of a paper.

`PUBLISHED` maps a name to the configuration; `build` makes the network (on the device "meta" it
costs no memory). The networks of the upsamplers and of inpainting take their further images as
channels: put them into `extra_inputs.SuperRes` and `Inpaint`.

Inside: `PUBLISHED`, `build`.

Source: Dhariwal & Nichol 2021, tables 11-13; Nichol et al., GLIDE, 2021, section 4 and the
released flags; Song et al., Consistency Models, 2023, appendix C.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fewstep.nets.encoder import EncoderConfig, EncoderUNet
from fewstep.nets.layout import UNetConfig
from fewstep.nets.text import TextUNet, TextUNetConfig
from fewstep.nets.unet import UNet

LEVELS: Mapping[int, tuple[float, ...]] = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""Channels of each level over the base width, by the side of the images in pixels."""
SMALL = (32, 16, 8)
CLASSES = 1000


_COMMON: dict[str, Any] = {
    "attention": SMALL,
    "head_channels": 64,
    "attention_order": "legacy",
    "null": False,
}


def _adm(size: int, width: int = 256, depth: int = 2, **more: Any) -> UNetConfig:
    """Describe a network of ADM: learned variance, adaptive norms, resampling blocks."""
    own = {"out_channels": 6, "mult": LEVELS[size], "classes": CLASSES}
    return UNetConfig(size=size, width=width, depth=depth, **(_COMMON | own | more))


def _classifier(size: int, depth: int = 2) -> EncoderConfig:
    """Describe a classifier of ADM."""
    own = {"out_channels": CLASSES, "mult": LEVELS[size], "heads": 1}
    return EncoderConfig(size=size, width=128, depth=depth, **(_COMMON | own))


def _glide(size: int, depth: int, in_channels: int) -> TextUNetConfig:
    """Describe a network of GLIDE (filtered)."""
    own = {"in_channels": in_channels, "out_channels": 6, "mult": LEVELS[size], "heads": 1}
    return TextUNetConfig(size=size, width=192, depth=depth, dropout=0.1, **(_COMMON | own))


_IMAGENET_64 = {"width": 192, "depth": 3, "attention_order": "new"}

PUBLISHED: Mapping[str, UNetConfig] = {
    "adm-imagenet64": _adm(64, **_IMAGENET_64, dropout=0.1),
    "adm-imagenet128": _adm(128, head_channels=None, heads=4),
    "adm-imagenet256": _adm(256),
    "adm-imagenet256-uncond": _adm(256, classes=0),
    "adm-imagenet512": _adm(512),
    "adm-lsun256": _adm(256, classes=0, dropout=0.1),
    "adm-upsample-64-256": _adm(256, 192, in_channels=6, head_channels=None, heads=4),
    "adm-upsample-128-512": _adm(512, 192, in_channels=6, mult=LEVELS[256], attention=(32, 16)),
    "adm-classifier64": _classifier(64, depth=4),
    "adm-classifier128": _classifier(128),
    "adm-classifier256": _classifier(256),
    "adm-classifier512": _classifier(512),
    "glide-base": _glide(64, 3, 3),
    "glide-upsample": _glide(256, 2, 6),
    "glide-base-inpaint": _glide(64, 3, 7),
    "glide-upsample-inpaint": _glide(256, 2, 10),
    "cd-imagenet64": _adm(64, **_IMAGENET_64, out_channels=3),
}
"""Name -> configuration."""


def build(config: UNetConfig) -> nn.Module:
    """Build the network that a configuration describes.

    Args:
        config: a configuration of a U-Net, a classifier or a text-conditional U-Net.

    Returns:
        the network: `EncoderUNet`, `TextUNet` or `UNet`.
    """
    if isinstance(config, EncoderConfig):
        return EncoderUNet(config)
    if isinstance(config, TextUNetConfig):
        return TextUNet(config)
    return UNet(config)
