"""Build the ADM U-Net: an encoder and a decoder over resolutions, joined by skip connections.

The encoder halves the resolution level by level and remembers its features; the decoder doubles it
again and reads the remembered features of the same resolution beside its own. Self-attention sits
where images are small. One embedding vector, of the noise label and of the class, is told to every
residual block. Every choice that the paper ablates is a field of the configuration.

Inside: `UNetConfig`, the `layout` it spells out (which `interop` maps parameter names with), and
`UNet`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

EMB_FACTOR = 4
"""Width of the embedding over the base width."""


@dataclass(frozen=True)
class UNetConfig:
    """Describe a U-Net; every field is a JSON value (lists are taken for tuples).

    Attributes:
        in_channels: channels of the input (6 for a super-resolution network: the low-resolution
            image is appended).
        out_channels: channels of the output (twice the image's for a learned variance).
        size: side of the training images in pixels, a multiple of `2 ** (levels - 1)`; other
            multiples run as well.
        width: base number of channels.
        mult: channels of each level over `width`, finest first; its length is the number of
            levels.
        depth: residual blocks per level of the encoder (the decoder has one more).
        attention: resolutions in pixels, at the training size, whose residual blocks are followed
            by self-attention; the coarsest point in the middle always has it.
        heads: attention heads, where `head_channels` is None.
        head_channels: channels per head; None = channels / `heads`.
        attention_order: layout of q, k and v in the published weights, "new" or "legacy".
        classes: number of classes; 0 = unconditional.
        null: the class table has a row for the null condition (ADM's published checkpoints have
            none).
        dropout: probability in [0, 1).
        updown: resample in residual blocks (BigGAN), else by a convolution.
        scale_shift: adaptive group normalisation, else an added embedding.
        groups: groups of every normalisation.
        period: period of the noise label's sinusoid, in label units.

    Raises:
        ValueError: if the fields do not fit together; the message names the nearest that do.

    Source: Dhariwal & Nichol 2021, sections 3 and tables 1, 2, 11.
    """

    in_channels: int = 3
    out_channels: int = 3
    size: int = 32
    width: int = 128
    mult: tuple[float, ...] = (1, 2, 2, 2)
    depth: int = 2
    attention: tuple[int, ...] = (16,)
    heads: int = 4
    head_channels: int | None = None
    attention_order: Literal["legacy", "new"] = "new"
    classes: int = 0
    null: bool = True
    dropout: float = 0.0
    updown: bool = True
    scale_shift: bool = True
    groups: int = 32
    period: float = 10000.0

    def __post_init__(self) -> None:
        """Check the fields against one another."""
        object.__setattr__(self, "mult", tuple(self.mult))
        object.__setattr__(self, "attention", tuple(self.attention))
        for name in ("in_channels", "out_channels", "size", "width", "depth", "heads", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"UNetConfig: {name} is {getattr(self, name)}; it must be at least 1"
                )
        if not self.mult:
            raise ValueError(
                "UNetConfig: mult is empty; give one number per level, e.g. (1, 2, 2)"
            )
        if self.classes < 0:
            raise ValueError(
                f"UNetConfig: classes is {self.classes}; give 0 (unconditional) or more"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"UNetConfig: dropout is {self.dropout}; it must be in [0, 1)")
        if self.attention_order not in ("legacy", "new"):
            raise ValueError(
                f"UNetConfig: attention_order is {self.attention_order!r}; allowed are 'legacy' "
                "and 'new'"
            )
        if self.period <= 1:
            raise ValueError(f"UNetConfig: period is {self.period}; it must be above 1")
        self._check_widths()
        self._check_sizes()

    def _check_widths(self) -> None:
        """Check that groups and heads divide the channels of every level."""
        if self.width % 2:
            raise ValueError(f"UNetConfig: width {self.width} is odd; give an even width")
        for level, channels in enumerate(self.channels):
            if channels < 1 or channels % self.groups:
                raise ValueError(
                    f"UNetConfig: level {level} has {channels} channels (width {self.width} x "
                    "mult "
                    f"{self.mult[level]:g}), not a multiple of groups = {self.groups}; change "
                    "width, mult or groups"
                )
            per_head = self.head_channels
            attends = self.size // 2**level in self.attention or level == len(self.mult) - 1
            if attends and (per_head is not None and (per_head < 1 or channels % per_head)):
                raise ValueError(
                    f"UNetConfig: head_channels = {per_head} does not divide the {channels} "
                    f"channels of level {level}"
                )
            if attends and per_head is None and channels % self.heads:
                raise ValueError(
                    f"UNetConfig: heads = {self.heads} does not divide the {channels} channels "
                    f"of level {level}"
                )

    def _check_sizes(self) -> None:
        """Check that the size can be halved and that each attention resolution occurs."""
        if self.size % self.factor:
            raise ValueError(
                f"UNetConfig: size {self.size} cannot be halved {len(self.mult) - 1} times; "
                f"{_nearest(self.size, self.factor)}, or give fewer levels in mult"
            )
        reached = [self.size // 2**level for level in range(len(self.mult))]
        for resolution in self.attention:
            if resolution not in reached:
                raise ValueError(
                    f"UNetConfig: attention at {resolution} pixels never happens: a size of "
                    f"{self.size} with "
                    f"{len(self.mult)} levels has the resolutions {', '.join(map(str, reached))}"
                )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(int(m * self.width) for m in self.mult)

    @property
    def factor(self) -> int:
        """Number that height and width must be multiples of."""
        return 2 ** (len(self.mult) - 1)


def _nearest(size: int, factor: int) -> str:
    """Name the multiples of `factor` around `size`."""
    below = size // factor * factor
    return f"nearest allowed: {f'{below} or ' if below else ''}{below + factor}"


@dataclass(frozen=True)
class Cell:
    """Describe one step of the encoder or decoder: block, attention, resampling, each optional."""

    channels_in: int
    channels_out: int
    block: bool = True
    attention: bool = False
    direction: Direction | None = None


def layout(config: UNetConfig) -> tuple[list[Cell], list[Cell]]:
    """Spell out the encoder's and the decoder's cells.

    The features that the decoder reads are the stem's and those after every encoder cell, last
    first; a decoder cell's `channels_in` counts its own input and the one it reads.

    Args:
        config: the network's description.

    Returns:
        The encoder's cells (after the stem) and the decoder's cells, in the order they run.
    """
    last = len(config.mult) - 1
    attends = [config.size // 2**level in config.attention for level in range(last + 1)]
    width = config.channels[0]
    skips = [width]
    down: list[Cell] = []
    for level, channels in enumerate(config.channels):
        for _ in range(config.depth):
            down.append(Cell(width, channels, attention=attends[level]))
            width = channels
            skips.append(width)
        if level < last:
            down.append(Cell(width, width, block=False, direction="down"))
            skips.append(width)
    up: list[Cell] = []
    for level in range(last, -1, -1):
        channels = config.channels[level]
        for index in range(config.depth + 1):
            direction: Direction | None = "up" if level > 0 and index == config.depth else None
            up.append(
                Cell(width + skips.pop(), channels, attention=attends[level], direction=direction)
            )
            width = channels
    return down, up


def _block(config: UNetConfig, a: int, b: int, direction: Direction | None = None) -> ResBlock:
    return ResBlock(
        a,
        b,
        EMB_FACTOR * config.width,
        groups=config.groups,
        dropout=config.dropout,
        scale_shift=config.scale_shift,
        direction=direction,
    )


def _attention(config: UNetConfig, channels: int) -> Attention:
    per_head = config.head_channels
    heads = config.heads if per_head is None else channels // per_head
    order: Order = config.attention_order
    return Attention(channels, heads, groups=config.groups, order=order)


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
                else Resample(width, cell.direction)
            )

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """Transform features (B, channels_in, H, W) into (B, channels_out, H', W')."""
        if self.block is not None:
            h = self.block(h, emb)
        if self.attention is not None:
            h = self.attention(h)
        if self.resample is not None:
            h = self.resample(h, emb)
        return h


class UNet(nn.Module):
    """Map a noisy image, its noise label and a class to an image-shaped output.

    What the output means (noise, velocity, clean image) is not the network's business. A fresh
    network returns exactly 0 for every input, because its last convolution starts at zero.

    Args:
        config: the description; kept as `config`.

    Source: Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, section 3.
    """

    def __init__(self, config: UNetConfig) -> None:
        """Build the network."""
        super().__init__()
        self.config = config
        self.factor = config.factor
        emb_width = EMB_FACTOR * config.width
        fine, coarse = config.channels[0], config.channels[-1]
        down, up = layout(config)
        self.time = nn.Sequential(
            nn.Linear(config.width, emb_width), nn.SiLU(), nn.Linear(emb_width, emb_width)
        )
        self.label = (
            ClassEmbedding(config.classes, emb_width, config.null) if config.classes else None
        )
        self.stem = nn.Conv2d(config.in_channels, fine, 3, padding=1)
        self.down = nn.ModuleList(Stage(config, cell) for cell in down)
        self.middle_in = Stage(config, Cell(coarse, coarse, attention=True))
        self.middle_out = Stage(config, Cell(coarse, coarse))
        self.up = nn.ModuleList(Stage(config, cell) for cell in up)
        self.norm = nn.GroupNorm(config.groups, fine)
        self.head = zero_init(nn.Conv2d(fine, config.out_channels, 3, padding=1))

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: (B, in_channels, H, W) floating point, H and W multiples of `factor`; either memory
                layout.
            label: (B,) noise labels, any real number, or one label for the whole batch as (1,) or
                ().
            cond: (B,) int64 class indices with -1 = the null condition, or None = null for all.

        Returns:
            (B, out_channels, H, W) of x's type, whatever type the weights have.

        Raises:
            ValueError: if a shape is not one of these, a class is out of range, the null condition
                is asked of a network without it, or classes are given to an unconditional network.
        """
        self._check(x, label, cond)
        emb = self._embed(label, cond)
        h = self.stem(x.to(self.stem.weight.dtype))
        skips = [h]
        for stage in self.down:
            h = stage(h, emb)
            skips.append(h)
        h = self.middle_out(self.middle_in(h, emb), emb)
        for stage in self.up:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb)
        return self.head(act(group_norm(self.norm, h))).to(x.dtype)

    def _embed(self, label: Tensor, cond: Tensor | None) -> Tensor:
        """Return the activated embedding (B or 1, 4 width) that every block is told."""
        wave = sinusoid(label.reshape(-1), self.config.width, self.config.period)
        emb = self.time(wave.to(self.stem.weight.dtype))
        if self.label is not None:
            emb = emb + self.label(cond)
        return F.silu(emb)

    def _check(self, x: Tensor, label: Tensor, cond: Tensor | None) -> None:
        """Check shapes only: looking at values would wait for the device."""
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise ValueError(
                f"UNet: x has shape {tuple(x.shape)}; expected (B, {self.config.in_channels}, H, "
                "W)"
            )
        for side in x.shape[2:]:
            if side < 1 or side % self.factor:
                raise ValueError(
                    f"UNet: x has shape {tuple(x.shape)}; height and width must be multiples of "
                    f"{self.factor}, {_nearest(side, self.factor)} for {side}"
                )
        if label.ndim > 1 or label.numel() not in (1, x.shape[0]):
            raise ValueError(
                f"UNet: label has shape {tuple(label.shape)}; expected ({x.shape[0]},), one "
                "number per image"
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
