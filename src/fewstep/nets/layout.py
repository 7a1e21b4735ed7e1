"""Describe a U-Net: its configuration and the list of cells that it spells out.

`UNet`, `EncoderUNet` and the maps of parameter names in `interop` are all built from the same
`layout`, so that none of them can disagree with another about which part stands where.

Inside: `UNetConfig`, `Cell`, `layout`, `EMB_FACTOR`.
"""

from dataclasses import dataclass
from typing import Literal

from fewstep.nets.blocks import Direction

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
        rescale: divide every sum of a branch and its skip connection by sqrt(2) (it cost FID in
            the paper's ablation).
        resample_conv: without `updown`, resample by a convolution, else by the parameter-free
            average and repetition alone.
        heads_up: attention heads of the decoder where `head_channels` is None; None = `heads`.
        tokens: width of the text tokens that every attention reads beside the pixels; 0 = none.

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
    rescale: bool = False
    resample_conv: bool = True
    heads_up: int | None = None
    tokens: int = 0

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
        for name in ("classes", "tokens"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"UNetConfig: {name} is {getattr(self, name)}; give 0 (none) or more"
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
            attends = self.size // 2**level in self.attention or level == len(self.mult) - 1
            if attends:
                self._check_heads(level, channels)

    def _check_heads(self, level: int, channels: int) -> None:
        """Check that the heads of one level divide its channels."""
        per_head = self.head_channels
        if per_head is not None and (per_head < 1 or channels % per_head):
            raise ValueError(
                f"UNetConfig: head_channels = {per_head} does not divide the {channels} channels "
                f"of level {level}"
            )
        counts = {"heads": self.heads, "heads_up": self.heads_up}
        for name, heads in counts.items() if per_head is None else ():
            if heads is not None and (heads < 1 or channels % heads):
                raise ValueError(
                    f"UNetConfig: {name} = {heads} does not divide the {channels} channels of "
                    f"level {level}"
                )

    def _check_sizes(self) -> None:
        """Check that the size can be halved and that each attention resolution occurs."""
        if self.size % self.factor:
            raise ValueError(
                f"UNetConfig: size {self.size} cannot be halved {len(self.mult) - 1} times; "
                f"{nearest(self.size, self.factor)}, or give fewer levels in mult"
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

    def heads_of(self, channels: int) -> int:
        """Return the number of attention heads at so many channels."""
        return self.heads if self.head_channels is None else channels // self.head_channels

    @property
    def factor(self) -> int:
        """Number that height and width must be multiples of."""
        return 2 ** (len(self.mult) - 1)


def nearest(size: int, factor: int) -> str:
    """Name the multiples of `factor` around `size`, e.g. "nearest allowed: 24 or 32"."""
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
