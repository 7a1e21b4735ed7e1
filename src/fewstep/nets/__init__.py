"""Provide networks `net(x, label, cond)`: they map tensors to tensors and know no diffusion."""

from fewstep.nets.condition import NULL, ClassEmbedding, sinusoid
from fewstep.nets.encoder import EncoderConfig, EncoderUNet
from fewstep.nets.extra_inputs import Inpaint, Known, LowRes, SuperRes
from fewstep.nets.layout import UNetConfig
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.nets.text import Caption, TextUNet, TextUNetConfig
from fewstep.nets.unet import UNet

__all__ = [
    "MLP",
    "NULL",
    "Caption",
    "ClassEmbedding",
    "EncoderConfig",
    "EncoderUNet",
    "Inpaint",
    "Known",
    "LowRes",
    "MLPConfig",
    "SuperRes",
    "TextUNet",
    "TextUNetConfig",
    "UNet",
    "UNetConfig",
    "sinusoid",
]
