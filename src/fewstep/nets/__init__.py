"""Provide networks `net(x, label, cond)`: they map tensors to tensors and know no diffusion."""

from fewstep.nets.condition import NULL, ClassEmbedding, sinusoid
from fewstep.nets.encoder import EncoderConfig, EncoderUNet
from fewstep.nets.extra_inputs import Inpaint, SuperRes
from fewstep.nets.guidance import GuidanceScale
from fewstep.nets.layout import UNetConfig
from fewstep.nets.mlp import MLP, MLPConfig
from fewstep.nets.text import TextUNet, TextUNetConfig
from fewstep.nets.unet import UNet

__all__ = [
    "MLP",
    "NULL",
    "ClassEmbedding",
    "EncoderConfig",
    "EncoderUNet",
    "GuidanceScale",
    "Inpaint",
    "MLPConfig",
    "SuperRes",
    "TextUNet",
    "TextUNetConfig",
    "UNet",
    "UNetConfig",
    "sinusoid",
]
