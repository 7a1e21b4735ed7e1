"""Make fresh networks say something: randomise the layers that start at zero."""

from typing import TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def randomise(net: Net, seed: int = 0) -> Net:
    """Draw every parameter that is all zero from a normal distribution; return the network."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.abs().max() == 0:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
                parameter.copy_(torch.randn(parameter.shape, generator=g) * fan_in**-0.5)
    return net.eval()
