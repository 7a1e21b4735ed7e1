"""Laws of LPIPS as a distance of the consistency objective, with an untrained VGG: no download."""

import sys

import pytest
import torch
from torch import nn

from fewstep.denoiser import NetDenoiser
from fewstep.distill import Consistency
from fewstep.distill.pairs import OnGrid
from fewstep.distill.perceptual import LPIPS
from fewstep.errors import UsageError
from fewstep.process import Cosine
from laws.cases import generator, largest, normal

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def metric() -> LPIPS:
    pytest.importorskip("lpips", reason="the extra lpips is not installed")
    return LPIPS(size=32, random=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_distance_for_each_image(metric: LPIPS, channels: int) -> None:
    """0 of equal images, above it of others, each of its own pair alone, and symmetric."""
    a, b = (normal(3, channels, 16, 16, seed=s).float().clamp(-1, 1) for s in (1, 2))
    b[0] = a[0]
    got = metric(a, b)
    assert got.shape == (3,)
    assert float(got[0]) == 0
    assert bool((got[1:] > 0).all())
    assert largest(got[1:], metric(a[1:], b[1:])) < 1e-6
    assert largest(got, metric(b, a)) < 1e-6


def test_a_grey_image_is_one_of_three_equal_channels(metric: LPIPS) -> None:
    a, b = (normal(3, 1, 16, 16, seed=s).float().clamp(-1, 1) for s in (1, 2))
    assert largest(metric(a, b), metric(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1))) < 1e-6


def test_it_teaches_and_is_not_taught(metric: LPIPS) -> None:
    """The student gets a gradient through it; its own weights stay as they are."""

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, label, cond=None):
            del label, cond
            return self.conv(x)

    student = NetDenoiser(Tiny(), Cosine())
    goal = Consistency(OnGrid(), metric=metric)
    x0 = normal(2, 3, 16, 16).float().clamp(-1, 1)
    goal(student, x0, None, 0, generator(0).manual_seed(1)).mean().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in student.parameters() if p.grad is not None)
    assert student.net.conv.weight.grad is not None
    assert not any(p.requires_grad for p in metric._net.parameters())
    assert repr(goal).count("LPIPS(32)") == 1


def test_other_images_and_a_missing_package_are_named(metric: LPIPS, monkeypatch) -> None:
    with pytest.raises(UsageError, match="must be \\(1 or 3, H, W\\)"):
        metric(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UsageError, match="pip install 'fewstep\\[lpips\\]'"):
        LPIPS()
