"""Build a small residual network for points, with the same call as the U-Net.

For two-dimensional toys and for laws that need a network that runs in microseconds and in float64.

Inside: `MLPConfig`, `MLP`.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nets.blocks import zero_init
from fewstep.nets.condition import ClassEmbedding, sinusoid


@dataclass(frozen=True)
class MLPConfig:
    """Describe an MLP; every field is a JSON value.

    Attributes:
        dim: length of a point.
        width: width of the hidden layers and of the embedding, even.
        layers: number of hidden residual layers.
        classes: number of classes; 0 = unconditional.
        null: the class table has a row for the null condition.
        period: period of the noise label's sinusoid, in label units.

    Raises:
        ValueError: if a field is out of range.
    """

    dim: int = 2
    width: int = 128
    layers: int = 3
    classes: int = 0
    null: bool = True
    period: float = 10000.0

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("dim", "width", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"MLPConfig: {name} is {getattr(self, name)}; it must be at least 1"
                )
        if self.width % 2:
            raise ValueError(f"MLPConfig: width {self.width} is odd; give an even width")
        if self.classes < 0:
            raise ValueError(
                f"MLPConfig: classes is {self.classes}; give 0 (unconditional) or more"
            )
        if self.period <= 1:
            raise ValueError(f"MLPConfig: period is {self.period}; it must be above 1")


class MLP(nn.Module):
    """Map noisy points, their noise label and a class to points.

    `h <- h + layer(silu(h + tell(emb)))` for each layer; the last layer starts at zero, so a fresh
    network returns 0.

    Args:
        config: the description; kept as `config`.
    """

    def __init__(self, config: MLPConfig) -> None:
        """Build the network."""
        super().__init__()
        self.config = config
        width = config.width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = ClassEmbedding(config.classes, width, config.null) if config.classes else None
        self.stem = nn.Linear(config.dim, width)
        self.tell = nn.ModuleList(nn.Linear(width, width) for _ in range(config.layers))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(config.layers))
        self.head = zero_init(nn.Linear(width, config.dim))

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        cond: Tensor | None = None,
        *,
        extra: Tensor | None = None,
    ) -> Tensor:
        """Run the network.

        Args:
            x: (B, dim) floating point.
            label: (B,) noise labels, any real number, or one label for the whole batch as (1,) or
                ().
            cond: (B,) int64 class indices with -1 = the null condition, or None = null for all.
            extra: (B or 1, width), added to the embedding of the label: a guidance scale.

        Returns:
            (B, dim) of x's type.

        Raises:
            ValueError: if a shape is not one of these, a class is out of range, the null condition
                is asked of a network without it, or classes are given to an unconditional network.
        """
        if x.ndim != 2 or x.shape[1] != self.config.dim:
            raise ValueError(f"MLP: x has shape {tuple(x.shape)}; expected (B, {self.config.dim})")
        if label.ndim > 1 or label.numel() not in (1, x.shape[0]):
            raise ValueError(
                f"MLP: label has shape {tuple(label.shape)}; expected ({x.shape[0]},), one "
                "number per point"
            )
        if cond is not None and (self.label is None or cond.shape != x.shape[:1]):
            raise ValueError(
                f"MLP: cond has shape {tuple(cond.shape)}; expected "
                + ("none (classes = 0)" if self.label is None else f"({x.shape[0]},)")
            )
        dtype = self.stem.weight.dtype
        wave = sinusoid(label.reshape(-1), self.config.width, self.config.period)
        emb = self.time(wave.to(dtype))
        if self.label is not None:
            emb = emb + self.label(cond)
        if extra is not None:
            emb = emb + extra.to(emb.dtype)
        emb = F.silu(emb)
        h = self.stem(x.to(dtype))
        for tell, layer in zip(self.tell, self.layers, strict=True):
            h = h + layer(F.silu(h + tell(emb)))
        return self.head(F.silu(h)).to(x.dtype)
