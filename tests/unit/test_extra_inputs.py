"""Test the further images that a network is shown: order, size, errors."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.conditions import Known, LowRes
from fewstep.nets import UNet, UNetConfig
from fewstep.nets.extra_inputs import Inpaint, SuperRes
from tests.unit.random_nets import randomise


class Echo(nn.Module):
    """Return what the network would see, and remember its condition."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        super().__init__()
        self.cond: Any = None

    def forward(self, x: Tensor, label: Tensor, cond: Any) -> Tensor:
        """Return x as it is."""
        del label
        self.cond = cond
        return x


def test_super_resolution() -> None:
    """The small image stands behind the noisy one, enlarged with aligned corners of areas."""
    x, t = torch.randn(2, 3, 4, 8), torch.zeros(2)
    low = torch.tensor([0.0, 1.0]).expand(2, 3, 2, 2).double()
    echo = Echo()
    seen = SuperRes(echo)(x, t, LowRes(low, "inner"))
    assert echo.cond == "inner"
    assert seen.dtype == x.dtype
    assert torch.equal(seen[:, :3], x)
    # Pixel centres of the large image lie at (i + 1/2) / 8 of the width, the small one's at 1/4
    # and 3/4; outside them the image is constant.
    ramp = ((torch.arange(8) + 0.5) / 8 * 2 - 0.5).clamp(0, 1)
    torch.testing.assert_close(seen[:, 3:], ramp.expand(2, 3, 4, 8))


def test_inpainting() -> None:
    """The known pixels stand behind the noisy image, then the mask; the rest is not read."""
    x, t = torch.randn(2, 3, 4, 4), torch.zeros(2)
    image, mask = torch.randn(2, 3, 4, 4), (torch.rand(2, 1, 4, 4) < 0.5).float()
    echo = Echo()
    seen = Inpaint(echo)(x, t, Known(image, mask, 7))
    assert echo.cond == 7
    assert torch.equal(seen, torch.cat([x, image * mask, mask], 1))
    other = torch.where(mask.bool(), image, torch.randn(2, 3, 4, 4))
    assert torch.equal(Inpaint(echo)(x, t, Known(other, mask)), seen)
    nothing = Inpaint(echo)(x, t)
    assert torch.equal(nothing, torch.cat([x, torch.zeros(2, 4, 4, 4)], 1))
    assert echo.cond is None


def test_nested() -> None:
    """Both together: noisy image, known pixels, mask, enlarged image."""
    x, t = torch.zeros(1, 3, 4, 4), torch.zeros(1)
    known = Known(torch.full((1, 3, 4, 4), 2.0), torch.ones(1, 1, 4, 4))
    cond = known._replace(cond=LowRes(torch.full((1, 3, 2, 2), 3.0)))
    seen = Inpaint(SuperRes(Echo()))(x, t, cond)
    assert seen[0, :, 0, 0].tolist() == [0, 0, 0, 2, 2, 2, 1, 3, 3, 3]


@torch.no_grad()
def test_new_channels_of_zero_change_nothing() -> None:
    """A trained network whose new input channels have zero weights gives its old outputs: the
    start of fine-tuning to inpaint.
    """
    config = UNetConfig(size=8, width=16, mult=(1, 2), depth=1, attention=(4,), groups=8)
    base = randomise(UNet(config))
    wide = UNet(replace(config, in_channels=7)).eval()
    state = base.state_dict()
    state["stem.weight"] = F.pad(state["stem.weight"], (0, 0, 0, 0, 0, 4))
    wide.load_state_dict(state)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    cond = Known(torch.randn(2, 3, 8, 8), torch.ones(2, 1, 8, 8))
    torch.testing.assert_close(Inpaint(wide)(x, t, cond), base(x, t), rtol=1e-5, atol=1e-6)


def test_bad_conditions() -> None:
    """A condition of another kind or shape is refused."""
    x, t = torch.zeros(2, 3, 4, 4), torch.zeros(2)
    with pytest.raises(ValueError, match="no null image"):
        SuperRes(Echo())(x, t, torch.zeros(2))
    with pytest.raises(ValueError, match=r"expected \(2, C, h, w\)"):
        SuperRes(Echo())(x, t, LowRes(torch.zeros(1, 3, 2, 2)))
    with pytest.raises(ValueError, match=r"mask has shape .* expected \(2, 1, 4, 4\)"):
        Inpaint(Echo())(x, t, Known(x, x))
    with pytest.raises(ValueError, match="image has shape"):
        Inpaint(Echo())(x, t, Known(x[:, :, :2], x[:, :1]))
