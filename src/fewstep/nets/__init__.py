"""Provide networks `net(x, label, cond)`: they map tensors to tensors and know no diffusion."""

from fewstep.nets.condition import NULL, ClassEmbedding, sinusoid
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.nets.unet import UNet, UNetConfig

__all__ = ["MLP", "NULL", "ClassEmbedding", "MLPConfig", "UNet", "UNetConfig", "sinusoid"]
