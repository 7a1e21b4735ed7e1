"""Tell a U-Net a text: a transformer over the caption's tokens, read by every attention.

The caption reaches the U-Net twice. Its last token's output is added to the embedding of the noise
label, where a class would stand; all outputs are further keys and values of every attention. No
position is hidden from another: the transformer is not causal, and padding is not masked but has
learned vectors of its own, so that the empty caption (all padding) is the null condition.

Inside: `TextUNetConfig`, `Transformer`, `TextUNet`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.conditions import Caption
from fewstep.nets.blocks import attend, split_heads
from fewstep.nets.layout import EMB_FACTOR, UNetConfig
from fewstep.nets.unet import UNet

MLP_FACTOR = 4
"""Hidden width of the transformer's two-layer maps over its width."""
TOKEN_STD = 0.02
"""Standard deviation of fresh token, position and padding vectors."""


@dataclass(frozen=True)
class TextUNetConfig(UNetConfig):
    """Describe a U-Net that reads text; every field is a JSON value.

    The fields of `UNetConfig`, where `tokens` is the width of the transformer (at least 1) and
    `classes` stays 0, and:

    Attributes:
        vocab: number of different tokens.
        context: tokens per caption, padding included.
        text_layers: layers of the transformer.
        text_heads: its attention heads; they divide `tokens`.
        text_norm: normalise the transformer's outputs.
        padding: padding has learned vectors, one a position; else the mask is not read.

    Raises:
        ValueError: if the fields do not fit together.

    Source: Nichol et al., GLIDE: Towards Photorealistic Image Generation and Editing with
    Text-Guided Diffusion Models, 2021, section 3 and appendix B.
    """

    tokens: int = 512
    vocab: int = 50257
    context: int = 128
    text_layers: int = 16
    text_heads: int = 8
    text_norm: bool = True
    padding: bool = True

    def __post_init__(self) -> None:
        """Check the fields against one another."""
        super().__post_init__()
        for name in ("tokens", "vocab", "context", "text_layers", "text_heads"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"TextUNetConfig: {name} is {getattr(self, name)}; it must be at least 1"
                )
        if self.tokens % self.text_heads:
            raise ValueError(
                f"TextUNetConfig: text_heads = {self.text_heads} does not divide the width "
                f"tokens = {self.tokens}"
            )
        if self.classes:
            raise ValueError("TextUNetConfig: classes must be 0: the text is the condition")


class Layer(nn.Module):
    """Run one layer of a transformer: attention and a two-layer map, normalised before each.

    Args:
        width: length of a token's vector, a multiple of `heads`.
        heads: attention heads; their q, k, v stand head by head ("legacy").

    Source: Vaswani et al. 2017, section 3; Radford et al., Language Models are Unsupervised
    Multitask Learners, 2019, section 2.3 (normalisation before).
    """

    def __init__(self, width: int, heads: int) -> None:
        """Build the layers."""
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, MLP_FACTOR * width)
        self.narrow = nn.Linear(MLP_FACTOR * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Transform tokens (B, N, width) into the same shape."""
        q, k, v = split_heads(self.qkv(self.norm1(h)), 3, self.heads, "legacy")
        h = h + self.proj(attend(q, k, v).transpose(1, 2).reshape(h.shape))
        return h + self.narrow(F.gelu(self.widen(self.norm2(h))))


class Transformer(nn.Module):
    """Read captions: one vector a position, and one for the whole.

    Args:
        config: the description.

    Source: Nichol et al., GLIDE, 2021, section 3.
    """

    def __init__(self, config: TextUNetConfig) -> None:
        """Build the layers; token, position and padding vectors start as N(0, 0.02^2)."""
        super().__init__()
        width = config.tokens
        self.table = nn.Embedding(config.vocab, width)
        nn.init.normal_(self.table.weight, std=TOKEN_STD)
        self.position = nn.Parameter(torch.randn(config.context, width) * TOKEN_STD)
        self.padding = (
            nn.Parameter(torch.randn(config.context, width) * TOKEN_STD)
            if config.padding
            else None
        )
        self.layers = nn.ModuleList(
            Layer(width, config.text_heads) for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(width) if config.text_norm else None
        self.pooled = nn.Linear(width, EMB_FACTOR * config.width)

    def forward(self, caption: Caption) -> tuple[Tensor, Tensor]:
        """Read captions.

        Args:
            caption: tokens and mask, both (B, context).

        Returns:
            what is added to the embedding of the noise label, (B, 4 width of the U-Net), from the
            last position, and the tokens (B, context, tokens).

        Raises:
            ValueError: if the shapes are others.
        """
        context = self.position.shape[0]
        for name, value in zip(caption._fields, caption, strict=True):
            if value.ndim != 2 or value.shape[1] != context:
                raise ValueError(
                    f"the caption's {name} has shape {tuple(value.shape)}; expected (B, {context})"
                )
        h = self.table(caption.tokens) + self.position
        if self.padding is not None:
            h = torch.where(caption.mask[:, :, None], h, self.padding)
        for layer in self.layers:
            h = layer(h)
        if self.norm is not None:
            h = self.norm(h)
        return self.pooled(h[:, -1]), h


class TextUNet(nn.Module):
    """Map a noisy image, its noise label and a caption to an image-shaped output.

    A fresh network returns exactly 0, as its U-Net does.

    Args:
        config: the description; kept as `config`.

    Source: Nichol et al., GLIDE, 2021, section 3.
    """

    def __init__(self, config: TextUNetConfig) -> None:
        """Build the transformer and the U-Net."""
        super().__init__()
        self.config = config
        self.factor = config.factor
        self.text = Transformer(config)
        self.net = UNet(config)

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        cond: Caption | None = None,
        *,
        extra: Tensor | None = None,
    ) -> Tensor:
        """Run the network.

        Args:
            x: (B, in_channels, H, W), as `UNet` takes it.
            label: (B,), as `UNet` takes it.
            cond: tokens and mask, both (B, context), or None = the empty caption for all.
            extra: (B, 4 width), added beside the pooled text: a guidance scale.

        Returns:
            (B, out_channels, H, W) of x's type.

        Raises:
            ValueError: if a shape is not one of these, or None is given to a network whose padding
                has no vectors of its own.
        """
        if cond is None:
            if not self.config.padding:
                raise ValueError(
                    "TextUNet: without learned padding there is no null condition: give cond, "
                    "a Caption(tokens, mask)"
                )
            tokens = torch.zeros(
                x.shape[0], self.config.context, dtype=torch.int64, device=x.device
            )
            cond = Caption(tokens, tokens.bool())
        pooled, tokens = self.text(cond)
        extra = pooled if extra is None else pooled + extra.to(pooled.dtype)
        return self.net(x, label, extra=extra, tokens=tokens)
