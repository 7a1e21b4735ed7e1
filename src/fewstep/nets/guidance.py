"""Tell a network how much guidance its answer shall have.

A student of guided distillation says in one evaluation what its teacher says in two, and for a
range of guidance scales it has to be told which. w = scale - 1 is spread over cosines and sines,
as the noise label is, and a linear layer that starts at zero adds them to the embedding of the
label: before its first step the student says the conditional branch of its teacher, whatever w.

Inside: `GuidanceScale`; its condition is `conditions.Scaled`.
"""

import torch
from torch import Tensor, nn

from fewstep.conditions import Cond, Scaled
from fewstep.nets.blocks import zero_init
from fewstep.nets.condition import sinusoid
from fewstep.nets.layout import EMB_FACTOR
from fewstep.nets.mlp import MLP
from fewstep.nets.text import TextUNet
from fewstep.nets.unet import UNet

WAVES = 256
"""Cosines and sines that w is spread over."""
PER_UNIT = 1000.0
"""Units of their angle to one of w: w of 0..4 fills what noise labels of 0..1000 do."""


class GuidanceScale(nn.Module):
    """Add the guidance scale to the embedding of a network's noise label.

    It stands next to the network; wrappers that show it images stand around both.

    Args:
        net: a `UNet`, a `TextUNet` or an `MLP`; the new layer has its type and device.

    Raises:
        ValueError: another network.

    Source: Meng et al., "On Distillation of Guided Diffusion Models", 2022, section 3.1 (arXiv
        2210.03142); 256 features of 1000 w: Luo et al., "Latent Consistency Models", 2023,
        released program.
    """

    def __init__(self, net: nn.Module) -> None:
        """Keep the network and build the layer."""
        super().__init__()
        if not isinstance(net, UNet | TextUNet | MLP):
            raise ValueError(
                f"GuidanceScale: a {type(net).__name__} has no embedding to add to; allowed are "
                "UNet, TextUNet and MLP, inside the wrappers for images"
            )
        width = net.config.width * (1 if isinstance(net, MLP) else EMB_FACTOR)
        own = next(net.parameters())
        self.net = net
        self.scale = zero_init(nn.Linear(WAVES, width, device=own.device, dtype=own.dtype))

    def forward(self, x: Tensor, label: Tensor, cond: Cond = None) -> Tensor:
        """Run the network.

        Args:
            x: (B, *), as the network takes it.
            label: (B,), as the network takes it.
            cond: the scale (B,) and the network's own condition; without a `Scaled` the scale
                is 1.

        Returns:
            What the network returns.

        Raises:
            ValueError: if there are not as many scales as images.
        """
        if not isinstance(cond, Scaled):
            cond = Scaled(torch.ones(x.shape[0], device=x.device), cond)
        if cond.scale.shape != x.shape[:1]:
            raise ValueError(
                f"GuidanceScale: scale has shape {tuple(cond.scale.shape)}; expected "
                f"({x.shape[0]},), one number per image"
            )
        # 1000 w in half precision would be whole numbers
        scale = cond.scale.to(torch.promote_types(cond.scale.dtype, torch.float32))
        waves = sinusoid(PER_UNIT * (scale - 1), WAVES)
        extra = self.scale(waves.to(self.scale.weight.dtype))
        return self.net(x, label, cond.cond, extra=extra)
