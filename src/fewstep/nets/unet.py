"""Build the ADM U-Net: an encoder and a decoder over resolutions, joined by skip connections.

The encoder halves the resolution level by level and remembers its features; the decoder doubles it
again and reads the remembered features of the same resolution beside its own. Self-attention sits
where images are small. One embedding vector, of the noise label and of the class, is told to every
residual block. Every choice that the paper ablates is a field of the configuration.

Inside: `Stage` (one cell), `Encoder` (what the U-Net and the classifier share), `UNet`; the
configuration is in `layout`.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.nets.blocks import (
    Attention,
    Direction,
    Order,
    Resample,
    ResBlock,
    act,
    group_norm,
    zero_init,
)
from fewstep.nets.condition import ClassEmbedding, sinusoid
from fewstep.nets.layout import EMB_FACTOR, Cell, UNetConfig, layout, nearest

__all__ = ["Encoder", "Stage", "UNet", "UNetConfig"]


def _block(config: UNetConfig, a: int, b: int, direction: Direction | None = None) -> ResBlock:
    return ResBlock(
        a,
        b,
        EMB_FACTOR * config.width,
        groups=config.groups,
        dropout=config.dropout,
        scale_shift=config.scale_shift,
        direction=direction,
        rescale=config.rescale,
    )


def _attention(config: UNetConfig, channels: int) -> Attention:
    order: Order = config.attention_order
    return Attention(
        channels,
        config.heads_of(channels),
        groups=config.groups,
        order=order,
        tokens=config.tokens,
        rescale=config.rescale,
    )


class Stage(nn.Module):
    """Run one `Cell`."""

    def __init__(self, config: UNetConfig, cell: Cell) -> None:
        """Build the parts that the cell names."""
        super().__init__()
        width = cell.channels_out
        self.block = _block(config, cell.channels_in, width) if cell.block else None
        self.attention = _attention(config, width) if cell.attention else None
        self.resample: ResBlock | Resample | None = None
        if cell.direction is not None:
            self.resample = (
                _block(config, width, width, cell.direction)
                if config.updown
                else Resample(width, cell.direction, config.resample_conv)
            )

    def forward(self, h: Tensor, emb: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Transform features (B, channels_in, H, W) into (B, channels_out, H', W')."""
        if self.block is not None:
            h = self.block(h, emb)
        if self.attention is not None:
            h = self.attention(h, tokens)
        if self.resample is not None:
            h = self.resample(h, emb)
        return h


class Encoder(nn.Module):
    """Hold what the U-Net and the classifier share: labels, stem, encoder and middle.

    Attributes:
        config: the description.
        factor: number that height and width must be multiples of.
        recompute: forget the features inside every stage and compute them again in the backward
            pass: less memory, about a third more time, the same numbers. It is how a network is
            run, not what it is: neither the configuration nor the weights know it.

    Args:
        config: the description; kept as `config`.

    Source: Dhariwal & Nichol 2021, section 3; Chen et al., Training Deep Nets with Sublinear
    Memory Cost, 2016, section 3 (`recompute`).
    """

    def __init__(self, config: UNetConfig) -> None:
        """Build the parts."""
        super().__init__()
        self.config = config
        self.factor = config.factor
        self.recompute = False
        emb_width = EMB_FACTOR * config.width
        fine, coarse = config.channels[0], config.channels[-1]
        self.time = nn.Sequential(
            nn.Linear(config.width, emb_width), nn.SiLU(), nn.Linear(emb_width, emb_width)
        )
        self.label = (
            ClassEmbedding(config.classes, emb_width, config.null) if config.classes else None
        )
        self.stem = nn.Conv2d(config.in_channels, fine, 3, padding=1)
        self.down = nn.ModuleList(Stage(config, cell) for cell in layout(config)[0])
        self.middle_in = Stage(config, Cell(coarse, coarse, attention=True))
        self.middle_out = Stage(config, Cell(coarse, coarse))

    def run(self, stage: nn.Module, h: Tensor, emb: Tensor, tokens: Tensor | None) -> Tensor:
        """Apply one stage, remembering its inside or not.

        Args:
            stage: a `Stage` of this network.
            h: (B, C, H, W).
            emb: (B or 1, 4 width), activated.
            tokens: (B, N, tokens), or None.

        Returns:
            the stage's output (B, C', H', W').
        """
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(stage, h, emb, tokens, use_reentrant=False)
        return stage(h, emb, tokens)

    def encode(
        self, x: Tensor, emb: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run stem, encoder and middle.

        Args:
            x: (B, in_channels, H, W).
            emb: (B or 1, 4 width), activated.
            tokens: (B, N, tokens), or None.

        Returns:
            the middle's features (B, C, H / factor, W / factor), and the features after the stem
            and after every stage of the encoder.
        """
        h = self.stem(x.to(self.stem.weight.dtype))
        skips = [h]
        for stage in self.down:
            h = self.run(stage, h, emb, tokens)
            skips.append(h)
        h = self.run(self.middle_in, h, emb, tokens)
        return self.run(self.middle_out, h, emb, tokens), skips

    def embed(
        self, label: Tensor, cond: Tensor | None = None, extra: Tensor | None = None
    ) -> Tensor:
        """Return the activated embedding that every block is told.

        Args:
            label: (B,), (1,) or ().
            cond: (B,) class indices, or None = null for all.
            extra: (B or 1, 4 width) to be added, or None.

        Returns:
            (B or 1, 4 width) of the weights' type.
        """
        wave = sinusoid(label.reshape(-1), self.config.width, self.config.period)
        emb = self.time(wave.to(self.stem.weight.dtype))
        if self.label is not None:
            emb = emb + self.label(cond)
        if extra is not None:
            emb = emb + extra.to(emb.dtype)
        return F.silu(emb)

    def check(self, x: Tensor, label: Tensor) -> None:
        """Check shapes only: looking at values would wait for the device.

        Args:
            x: what should be (B, in_channels, H, W).
            label: what should be (B,), (1,) or ().

        Raises:
            ValueError: if a shape is another.
        """
        name = type(self).__name__
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise ValueError(
                f"{name}: x has shape {tuple(x.shape)}; expected (B, {self.config.in_channels}, "
                "H, W)"
            )
        for side in x.shape[2:]:
            if side < 1 or side % self.factor:
                raise ValueError(
                    f"{name}: x has shape {tuple(x.shape)}; height and width must be multiples of "
                    f"{self.factor}, {nearest(side, self.factor)} for {side}"
                )
        if label.ndim > 1 or label.numel() not in (1, x.shape[0]):
            raise ValueError(
                f"{name}: label has shape {tuple(label.shape)}; expected ({x.shape[0]},), one "
                "number per image"
            )


class UNet(Encoder):
    """Map a noisy image, its noise label and a class to an image-shaped output.

    What the output means (noise, velocity, clean image) is not the network's business. A fresh
    network returns exactly 0 for every input, because its last convolution starts at zero.

    Args:
        config: the description; kept as `config`.

    Source: Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, section 3.
    """

    def __init__(self, config: UNetConfig) -> None:
        """Build the network."""
        super().__init__(config)
        fine = config.channels[0]
        decoder = dataclasses.replace(config, heads=config.heads_up or config.heads)
        self.up = nn.ModuleList(Stage(decoder, cell) for cell in layout(config)[1])
        self.norm = nn.GroupNorm(config.groups, fine)
        self.head = zero_init(nn.Conv2d(fine, config.out_channels, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        cond: Tensor | None = None,
        *,
        extra: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Run the network.

        Args:
            x: (B, in_channels, H, W) floating point, H and W multiples of `factor`; either memory
                layout.
            label: (B,) noise labels, any real number, or one label for the whole batch as (1,) or
                ().
            cond: (B,) int64 class indices with -1 = the null condition, or None = null for all.
            extra: (B or 1, 4 width), added to the embedding of the label: a pooled text,
                a guidance scale.
            tokens: (B, N, config.tokens), what every attention reads beside the pixels; required
                by a network with `config.tokens`, refused by one without.

        Returns:
            (B, out_channels, H, W) of x's type, whatever type the weights have.

        Raises:
            ValueError: if a shape is not one of these, a class is out of range, the null condition
                is asked of a network without it, or classes are given to an unconditional network.
        """
        self.check(x, label)
        self._check_told(x, cond, tokens)
        emb = self.embed(label, cond, extra)
        h, skips = self.encode(x, emb, tokens)
        for stage in self.up:
            h = self.run(stage, torch.cat([h, skips.pop()], dim=1), emb, tokens)
        return self.head(act(group_norm(self.norm, h))).to(x.dtype)

    def _check_told(self, x: Tensor, cond: Tensor | None, tokens: Tensor | None) -> None:
        """Check the shapes of what the network is told beside the image."""
        width = self.config.tokens
        if (tokens is None) != (width == 0):
            raise ValueError(
                f"UNet: tokens of width {width} are needed"
                if width
                else "UNet: tokens were given to a network that reads none (tokens = 0)"
            )
        if tokens is not None and (
            tokens.ndim != 3 or tokens.shape[0] != x.shape[0] or tokens.shape[2] != width
        ):
            raise ValueError(
                f"UNet: tokens have shape {tuple(tokens.shape)}; expected "
                f"({x.shape[0]}, N, {width})"
            )
        if cond is None:
            return
        if self.label is None:
            raise ValueError(
                "UNet: cond was given to an unconditional network (classes = 0); leave it out"
            )
        if cond.shape != x.shape[:1]:
            raise ValueError(
                f"UNet: cond has shape {tuple(cond.shape)}; expected ({x.shape[0]},), one class "
                "per image"
            )
