"""Build the parts of a convolutional U-Net: residual block, self-attention, resampling.

A residual block normalises, activates, convolves, twice, and adds the result to its input. The
noise level (and the class) enters between the two halves, either as a per-channel scale and shift
of the normalised features (adaptive group normalisation) or as an added bias. The last convolution
of every branch starts at zero, so a fresh block is the identity and a fresh network outputs
exactly 0.

All parts take (B, C, H, W) in either memory layout and keep it, contain no data-dependent branch,
and call only kernels that accumulate group statistics and softmax in float32 whatever the storage
type.

Inside: `ResBlock`, `Attention`, `Resample`; `group_norm`, `act`, `add`, `attend`, `split_heads`,
`resize`, `zero_init`.
"""

import math
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Direction = Literal["up", "down"]
Order = Literal["legacy", "new"]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
HALF = math.sqrt(0.5)
"""Factor of a sum of two branches that keeps its variance (`rescale`)."""


def zero_init(layer: Layer) -> Layer:
    """Set weight and bias of `layer` to zero, and return it.

    Source: Ho et al., Denoising Diffusion Probabilistic Models, 2020 (their code); Dhariwal &
    Nichol 2021.
    """
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def resize(x: Tensor, direction: Direction) -> Tensor:
    """Halve by 2x2 averaging, or double by repeating pixels; no anti-aliasing filter.

    Args:
        x: (B, C, H, W), H and W even for "down".
        direction: "down" or "up".

    Returns:
        (B, C, H/2, W/2) or (B, C, 2H, 2W).

    Source: Brock et al., BigGAN, 2019, appendix B; Dhariwal & Nichol 2021, section 3.
    """
    if direction == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def group_norm(
    norm: nn.GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Return `norm(x)`, or `norm(x) * (1 + scale) + shift`, as a new tensor.

    The statistics are float32 whatever the storage type.

    Args:
        norm: the normalisation with its learned weight and bias.
        x: (B, C, H, W).
        scale: (B, C, 1, 1) or (1, C, 1, 1), or None.
        shift: like `scale`; both or neither.

    Returns:
        Like x.

    Source: Wu & He, Group Normalization, 2018, equations 1-4; Dhariwal & Nichol 2021, equation 3.
    """
    if _native_is_slow(norm, x):
        return _affine_norm(norm, x, scale, shift)
    h = norm(x)
    if scale is None or shift is None:
        return h
    return torch.addcmul(shift, h, 1 + scale)


def act(h: Tensor) -> Tensor:
    """Return `silu(h)`, in place where no backward pass can need h: memory bounds this step."""
    return F.silu(h, inplace=not torch.is_grad_enabled())


def add(x: Tensor, h: Tensor) -> Tensor:
    """Return `x + h`, in the memory of h, which no backward pass of a convolution needs.

    Args:
        x: the skip connection, (B, C, H, W).
        h: the output of a convolution, like x; not to be used again.
    """
    return h.add_(x) if h.dtype == x.dtype else x + h


def _native_is_slow(norm: nn.GroupNorm, x: Tensor) -> bool:
    """Tell whether torch's kernel is slow here: 1.2 to 14 times.

    On small channels_last maps on a CPU it walks from pixel to pixel, group by group, so that
    the channels of a group must fill a vector register.
    """
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and x.shape[2] * x.shape[3] < 1024
        and norm.num_channels < 16 * norm.num_groups
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _affine_norm(
    norm: nn.GroupNorm, x: Tensor, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    """Normalise channels_last x by sums over pixels, all affine maps folded into one."""
    batch, channels, height, width = x.shape
    groups, count = norm.num_groups, height * width * channels // norm.num_groups
    pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    wide = pixels if x.dtype in (torch.float32, torch.float64) else pixels.float()
    mean = wide.sum(1).view(batch, groups, -1).sum(2) / count
    squares = wide.square() if wide is pixels else wide.square_()  # a copy may be overwritten
    square = squares.sum(1).view(batch, groups, -1).sum(2) / count
    # Rounding can leave the difference a little below zero.
    rstd = torch.rsqrt((square - mean * mean).clamp_min(0) + norm.eps)
    gain = rstd[:, :, None] * norm.weight.to(rstd.dtype).view(groups, -1)
    bias = norm.bias.to(rstd.dtype).view(groups, -1) - mean[:, :, None] * gain
    gain, bias = gain.view(batch, channels, 1, 1), bias.view(batch, channels, 1, 1)
    if scale is not None and shift is not None:
        gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
    return torch.addcmul(bias.to(x.dtype), x, gain.to(x.dtype))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return `softmax(q k^T / sqrt(d)) v`, the softmax in float32.

    Args:
        q: (B, heads, N, d).
        k: (B, heads, M, d).
        v: like k.

    Returns:
        Like q.

    Source: Vaswani et al. 2017, equation 1.
    """
    batch, heads, count, width = q.shape
    scores = batch * heads * count * k.shape[2]
    # torch's fused kernel does bfloat16 at float32 speed on a CPU; two matrix products are 1.5 to
    # 2 times faster there, as long as the scores are few (128 MiB).
    if (
        q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and not torch.compiler.is_compiling()
        and scores <= 2**26
    ):
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))
        likeness = torch.baddbmm(q.new_zeros(()), q, k.mT, beta=0, alpha=width**-0.5)
        return torch.bmm(torch.softmax(likeness, dim=-1), v).unflatten(0, (batch, heads))
    return F.scaled_dot_product_attention(q, k, v)


def split_heads(flat: Tensor, parts: int, heads: int, order: Order) -> tuple[Tensor, ...]:
    """Cut the outputs of one linear map into q, k, v (or k, v) of every head.

    Reading one order as the other gives no shape error and a plausible wrong picture.

    Args:
        flat: (B, N, parts * heads * d).
        parts: number of tensors to cut into.
        heads: number of heads.
        order: "legacy" = heads first, [heads, parts, d]; "new" = parts first, [parts, heads, d].

    Returns:
        `parts` tensors (B, heads, N, d).
    """
    batch, count, _ = flat.shape
    if order == "legacy":
        return flat.view(batch, count, heads, parts, -1).permute(3, 0, 2, 1, 4).unbind(0)
    return flat.view(batch, count, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


class ResBlock(nn.Module):
    """Transform features by two convolutions around a skip connection, told `emb`.

    `out = skip(x) + conv2(silu(mix(norm2(conv1(silu(norm1(x)))), emb)))` with
    `mix(h) = h * (1 + scale) + shift` if `scale_shift`, else `norm2` is applied to `h + bias`;
    the sum is divided by sqrt(2) if `rescale`. A resampling block resizes between
    activation and convolution on the main branch and resizes its skip by the same parameter-free
    map.

    Args:
        channels_in: channels of the input, a multiple of `groups`.
        channels_out: channels of the output, a multiple of `groups`.
        emb_width: length of the embedding.
        groups: groups of the normalisation.
        dropout: probability in [0, 1) of zeroing a feature before the last convolution.
        scale_shift: adaptive group normalisation, else an added bias.
        direction: resample by 2, or None.
        rescale: divide the sum by sqrt(2).

    Source: Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, section 3 and
    equation 3 (its y_s is `1 + scale` here, as in the authors' code).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        emb_width: int,
        *,
        groups: int = 32,
        dropout: float = 0.0,
        scale_shift: bool = True,
        direction: Direction | None = None,
        rescale: bool = False,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.rescale = rescale
        self.scale_shift = scale_shift
        self.direction: Direction | None = direction
        self.norm1 = nn.GroupNorm(groups, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.emb = nn.Linear(emb_width, channels_out * (2 if scale_shift else 1))
        self.norm2 = nn.GroupNorm(groups, channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = (
            nn.Identity()
            if channels_in == channels_out
            else nn.Conv2d(channels_in, channels_out, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (B, channels_in, H, W).
            emb: (B, emb_width) or (1, emb_width), already activated: `silu` is the same for all
                blocks, so the network applies it once.

        Returns:
            (B, channels_out, H', W'), H' = H, 2H or H/2.
        """
        h = act(group_norm(self.norm1, x))
        if self.direction is not None:
            h, x = resize(h, self.direction), resize(x, self.direction)
        h = self.conv1(h)
        told = self.emb(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = group_norm(self.norm2, h, scale, shift)
        else:
            h = group_norm(self.norm2, add(told, h))
        out = add(self.skip(x), self.conv2(self.dropout(act(h))))
        return out * HALF if self.rescale else out


class Attention(nn.Module):
    """Let every pixel attend to every other, with a residual connection.

    `out = x + proj(softmax(q k^T / sqrt(d)) v)`. Text tokens, where there are any, are read beside
    the pixels: their keys and values stand in front of the pixels' own under one softmax. The
    layout of the 3 H d outputs of `qkv` differs between published checkpoints (`split_heads`).

    Args:
        channels: channels of the features, a multiple of `groups` and of `heads`.
        heads: number of heads H.
        groups: groups of the normalisation.
        order: "legacy" or "new".
        tokens: width of the text tokens; 0 = none.
        rescale: divide the sum by sqrt(2).

    Source: Dhariwal & Nichol 2021, section 3.1; Vaswani et al. 2017, equation 1; Nichol et al.,
    GLIDE, 2021, section 3 (tokens).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        groups: int = 32,
        order: Order = "new",
        tokens: int = 0,
        rescale: bool = False,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.heads = heads
        self.order: Order = order
        self.rescale = rescale
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.text = nn.Linear(tokens, 2 * channels) if tokens else None
        self.proj = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: (B, channels, H, W).
            tokens: (B, N, tokens), or None where the block reads none.

        Returns:
            Like x.
        """
        # (B, N, C): a view, not a copy, of channels_last features, and the layout that the
        # attention kernels want.
        pixels = group_norm(self.norm, x).flatten(2).transpose(1, 2)
        q, k, v = split_heads(self.qkv(pixels), 3, self.heads, self.order)
        if self.text is not None and tokens is not None:
            text = self.text(tokens.to(self.text.weight.dtype))
            text_k, text_v = split_heads(text, 2, self.heads, self.order)
            k, v = torch.cat([text_k, k], dim=2), torch.cat([text_v, v], dim=2)
        h = self.proj(attend(q, k, v).transpose(1, 2).reshape(pixels.shape))
        out = x + h.transpose(1, 2).reshape(x.shape)
        return out * HALF if self.rescale else out


class Resample(nn.Module):
    """Change the resolution by 2: convolve with stride 2, or repeat pixels and convolve.

    The alternative to a resampling `ResBlock` (DDPM's choice). Without its convolution it is
    `resize` and has no parameters.

    Args:
        channels: channels in and out.
        direction: "up" or "down".
        convolve: whether there is a convolution.

    Source: Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, table 1 (the ablation).
    """

    def __init__(self, channels: int, direction: Direction, convolve: bool = True) -> None:
        """Build the convolution."""
        super().__init__()
        self.direction: Direction = direction
        stride = 2 if direction == "down" else 1
        self.conv = (
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1) if convolve else None
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Resample (B, C, H, W); `emb` is not used, it makes the signature that of `ResBlock`."""
        if self.conv is None:
            return resize(x, self.direction)
        return self.conv(x if self.direction == "down" else resize(x, self.direction))
