"""Build the noisy classifier: the encoder half of the U-Net and a pool that reads it.

Classifier guidance needs log p(y | x_t) at every noise level, so the classifier is told the noise
label as the U-Net is. It is the U-Net's encoder and middle; a pool turns the last features (or the
means of all of them) into one logit a class.

Inside: `EncoderConfig`, `EncoderUNet`; the pools `MeanPool`, `AttentionPool`, `SpatialPool`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.nets.blocks import act, attend, group_norm, split_heads, zero_init
from fewstep.nets.layout import UNetConfig, layout
from fewstep.nets.unet import Encoder

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")
SPATIAL_WIDTH = 2048
"""Hidden features of the spatial pools."""


@dataclass(frozen=True)
class EncoderConfig(UNetConfig):
    """Describe a noisy classifier; every field is a JSON value.

    The fields are those of `UNetConfig`. `out_channels` is the number of classes to tell apart;
    `classes` stays 0, because a classifier is not told the class; what speaks of the decoder has
    no effect.

    Attributes:
        pool: "adaptive" = mean over positions and a linear map that starts at zero; "attention" =
            the mean as a query token over all positions; "spatial" = the means of all features,
            fine to coarse, and two linear maps; "spatial_v2" = the same, normalised between them.

    Raises:
        ValueError: if the fields do not fit together.

    Source: Dhariwal & Nichol 2021, section 4 and appendix H, table 12.
    """

    pool: Literal["adaptive", "attention", "spatial", "spatial_v2"] = "attention"

    def __post_init__(self) -> None:
        """Check the fields against one another."""
        super().__post_init__()
        if self.pool not in POOLS:
            raise ValueError(
                f"EncoderConfig: pool is {self.pool!r}; allowed are {', '.join(POOLS)}"
            )
        if self.classes or self.tokens:
            raise ValueError(
                "EncoderConfig: classes and tokens must be 0: a classifier is told the noise "
                "level alone; the number of classes is out_channels"
            )
        if self.pool == "spatial_v2" and SPATIAL_WIDTH % self.groups:
            raise ValueError(
                f"EncoderConfig: groups = {self.groups} does not divide the {SPATIAL_WIDTH} "
                "features of the pool spatial_v2"
            )


class MeanPool(nn.Module):
    """Average over positions and map to logits; a fresh one returns 0.

    Args:
        channels: channels of the features.
        classes: number of logits.

    Source: Dhariwal & Nichol 2021, released program ("adaptive").
    """

    def __init__(self, channels: int, classes: int) -> None:
        """Build the layer."""
        super().__init__()
        self.proj = zero_init(nn.Linear(channels, classes))

    def forward(self, h: Tensor) -> Tensor:
        """Map features (B, channels, H, W) to logits (B, classes)."""
        return self.proj(h.mean(dim=(2, 3)))


class AttentionPool(nn.Module):
    """Let the mean of all positions attend to itself and to every position.

    Tokens are the mean, then the positions in reading order; each has a learned position vector.
    Only the first token's output is read, so only its query is used.

    Args:
        side: height and width of the features.
        channels: channels of the features, a multiple of `heads`.
        heads: number of heads.
        classes: number of logits.

    Source: Radford et al., Learning Transferable Visual Models, 2021, section 2.4; Dhariwal &
    Nichol 2021, section 4.
    """

    def __init__(self, side: int, channels: int, heads: int, classes: int) -> None:
        """Build the layers; positions start as N(0, 1 / channels)."""
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(torch.randn(channels, side * side + 1) * channels**-0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, classes)

    def forward(self, h: Tensor) -> Tensor:
        """Map features (B, channels, side, side) to logits (B, classes)."""
        h = h.flatten(2)
        h = torch.cat([h.mean(dim=2, keepdim=True), h], dim=2) + self.position
        q, k, v = split_heads(self.qkv(h.transpose(1, 2)), 3, self.heads, "new")
        return self.proj(attend(q[:, :, :1], k, v).flatten(1))


class SpatialPool(nn.Module):
    """Map the means of all features of the encoder to logits by two linear maps.

    Args:
        features: channels of all features together.
        classes: number of logits.
        groups: groups of the normalisation between the maps; None = no normalisation, and ReLU in
            the place of SiLU.

    Source: Dhariwal & Nichol 2021, released program ("spatial", "spatial_v2").
    """

    def __init__(self, features: int, classes: int, groups: int | None = None) -> None:
        """Build the layers."""
        super().__init__()
        self.hidden = nn.Linear(features, SPATIAL_WIDTH)
        self.norm = None if groups is None else nn.GroupNorm(groups, SPATIAL_WIDTH)
        self.proj = nn.Linear(SPATIAL_WIDTH, classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map a list of features (B, C, H, W) to logits (B, classes)."""
        h = self.hidden(torch.cat([f.mean(dim=(2, 3)) for f in features], dim=1))
        return self.proj(torch.relu(h) if self.norm is None else act(self.norm(h)))


class EncoderUNet(Encoder):
    """Tell the classes of a noisy image apart: logits of p(y | x_t).

    Args:
        config: the description; kept as `config`.

    Source: Dhariwal & Nichol 2021, section 4.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Build the network."""
        super().__init__(config)
        coarse, classes = config.channels[-1], config.out_channels
        self.side = config.size // config.factor
        self.norm: nn.GroupNorm | None = None
        self.pool: MeanPool | AttentionPool | SpatialPool
        if config.pool.startswith("spatial"):
            cells = layout(config)[0]
            total = config.channels[0] + sum(cell.channels_out for cell in cells) + coarse
            groups = config.groups if config.pool == "spatial_v2" else None
            self.pool = SpatialPool(total, classes, groups)
            return
        self.norm = nn.GroupNorm(config.groups, coarse)
        if config.pool == "adaptive":
            self.pool = MeanPool(coarse, classes)
        else:
            self.pool = AttentionPool(self.side, coarse, config.heads_of(coarse), classes)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Classify noisy images.

        Args:
            x: (B, in_channels, H, W) floating point, H and W multiples of `factor`; exactly `size`
                for the pool "attention", which has one vector a position.
            label: (B,) noise labels, any real number, or one for the whole batch as (1,) or ().

        Returns:
            logits (B, out_channels) of x's type; the log of p(y | x_t) is their log-softmax.

        Raises:
            ValueError: if a shape is not one of these.
        """
        self.check(x, label)
        if isinstance(self.pool, AttentionPool) and set(x.shape[2:]) != {self.config.size}:
            raise ValueError(
                f"EncoderUNet: x has shape {tuple(x.shape)}; the attention pool needs height and "
                f"width {self.config.size}, the size of the training images"
            )
        h, features = self.encode(x, self.embed(label))
        if self.norm is None:
            return self.pool([*features, h]).to(x.dtype)
        return self.pool(act(group_norm(self.norm, h))).to(x.dtype)
