"""Show a network other images beside the noisy one, as further channels of its input.

The network itself is an ordinary U-Net with more input channels; a wrapper makes the channels from
the condition. A condition is nested as the wrappers are: each has its own part and the condition
of the network inside. `Inpaint(SuperRes(net))` is called with
`Known(image, mask, LowRes(small, classes))` and shows its U-Net the channels noisy image, known
pixels, mask, enlarged image, in this order.

Inside: `SuperRes` and `Inpaint`; their conditions are `conditions.LowRes` and `Known`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.conditions import Known, LowRes


def _append(x: Tensor, *more: Tensor) -> Tensor:
    """Append channels to x, in x's type."""
    return torch.cat([x, *(m.to(x.dtype) for m in more)], dim=1)


class SuperRes(nn.Module):
    """Append the low-resolution image, enlarged bilinearly to the size of x.

    Pixels are areas: corners of the two images are aligned, not the centres of their corner
    pixels. The wrapper has no parameters.

    Args:
        net: the network, `in_channels` = the channels of x and of the small image together.

    Source: Saharia et al., Image Super-Resolution via Iterative Refinement, 2021, section 2;
    Dhariwal & Nichol 2021, section 5.
    """

    def __init__(self, net: nn.Module) -> None:
        """Keep the network."""
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, label: Tensor, cond: LowRes) -> Tensor:
        """Run the network.

        Args:
            x: (B, C, H, W), as the network takes it.
            label: (B,), as the network takes it.
            cond: the small image (B, C', h, w) and the network's own condition.

        Returns:
            What the network returns.

        Raises:
            ValueError: if cond is no `LowRes` or holds another number of images than x.
        """
        if not isinstance(cond, LowRes):
            raise ValueError(
                "SuperRes: cond must be a LowRes(image, cond): there is no null image"
            )
        if cond.image.ndim != 4 or cond.image.shape[0] != x.shape[0]:
            raise ValueError(
                f"SuperRes: the small image has shape {tuple(cond.image.shape)}; expected "
                f"({x.shape[0]}, C, h, w)"
            )
        large = F.interpolate(
            cond.image.to(x.dtype), x.shape[2:], mode="bilinear", align_corners=False
        )
        return self.net(_append(x, large), label, cond.cond)


class Inpaint(nn.Module):
    """Append the known pixels (the image times its mask) and the mask.

    The wrapper has no parameters. Without a condition nothing is known: image and mask are 0.

    Args:
        net: the network, `in_channels` = twice the channels of x, plus 1.
        channels: channels of the image, at the head of x.

    Source: Nichol et al., GLIDE, 2021, section 3.2.
    """

    def __init__(self, net: nn.Module, channels: int = 3) -> None:
        """Keep the network."""
        super().__init__()
        self.net = net
        self.channels = channels

    def forward(self, x: Tensor, label: Tensor, cond: Known | None = None) -> Tensor:
        """Run the network.

        Args:
            x: (B, C, H, W), as the network takes it.
            label: (B,), as the network takes it.
            cond: image (B, channels, H, W), mask (B, 1, H, W) and the network's own condition, or
                None.

        Returns:
            What the network returns.

        Raises:
            ValueError: if image and mask are not of x's size.
        """
        if cond is None:
            cond = Known(x.new_zeros(x.shape[0], self.channels, *x.shape[2:]), x.new_zeros(()))
            cond = cond._replace(mask=cond.image[:, :1])
        for name, value, channels in (
            ("image", cond.image, self.channels),
            ("mask", cond.mask, 1),
        ):
            expected = (x.shape[0], channels, *x.shape[2:])
            if value.shape != expected:
                raise ValueError(
                    f"Inpaint: the {name} has shape {tuple(value.shape)}; expected {expected}"
                )
        return self.net(_append(x, cond.image * cond.mask, cond.mask), label, cond.cond)
