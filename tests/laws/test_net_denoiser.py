"""Laws of a network as a denoiser: what it is shown, and how its answer is read."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.denoiser import PARAMS, Cond, NetDenoiser
from fewstep.process import VP, Cosine
from laws.cases import normal

X = normal(4, 3, 2, 2)
Y = torch.tensor([0, 1, -1, 2])


class Ask(nn.Module):
    """Answers with a fixed tensor and remembers what it was shown."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out
        self.seen: tuple[Any, ...] = ()

    def forward(self, x: Tensor, label: Tensor, cond: Cond = None) -> Tensor:
        self.seen = x, label, cond
        return self.out


@pytest.mark.parametrize("name", sorted(PARAMS.keys() - {"BOTH"}))  # whose second half is eps
def test_the_second_half_of_the_channels_is_the_variance(name: str) -> None:
    """The first half is read as without it; the second is handed on as it is."""
    said, wide = normal(4, 3, 2, 2, seed=1), normal(4, 3, 2, 2, seed=2)
    plain = NetDenoiser(Ask(said), VP(), PARAMS[name])(X, 0.4, Y)
    both = NetDenoiser(Ask(torch.cat([said, wide], dim=1)), VP(), PARAMS[name])(X, 0.4, Y)
    assert plain.variance is None
    assert both.variance is not None
    assert torch.equal(both.variance, wide)
    for view in ("x0", "eps", "v"):
        assert torch.equal(both.view(view), plain.view(view))


@pytest.mark.parametrize("t", [0.4, torch.tensor([0.1, 0.4, 0.7, 1.0])], ids=["one", "each"])
def test_the_network_hears_its_condition_and_the_noise_level(t: float | Tensor) -> None:
    ask = Ask(X)
    denoiser = NetDenoiser(ask, VP())
    denoiser(X, t, Y)
    assert ask.seen[2] is Y
    denoiser(X, t)
    assert ask.seen[2] is None
    assert ask.seen[1].shape == ((4,) if isinstance(t, Tensor) else (1,))


def test_an_answer_in_half_precision_is_read_in_that_of_the_batch() -> None:
    """The arithmetic of the prediction, and guidance after it, is not rounded to bfloat16."""
    out = torch.cat([X, X], dim=1).bfloat16()
    got = NetDenoiser(Ask(out), VP())(X, 0.4, Y)
    assert got.variance is not None
    for value in (got.x0, got.eps, got.v, got.variance):
        assert value.dtype == torch.float64
    want = NetDenoiser(Ask(out[:, :3].double()), VP())(X, 0.4, Y)
    assert torch.equal(got.x0, want.x0)


def test_times_that_are_near_are_told_apart() -> None:
    """Labels are remembered by their time: 20 times of 1000 steps, asked for twice in a row."""
    ask = Ask(X)
    denoiser = NetDenoiser(ask, Cosine(0.0))
    for k in (*range(400, 420), *range(400, 420)):
        denoiser(X, k / 1000)
        assert float(ask.seen[1]) == pytest.approx(k, abs=1e-3)


@pytest.mark.parametrize("name", PARAMS)
def test_a_copy_is_described_as_the_original(name: str) -> None:
    net = NetDenoiser(Ask(torch.zeros(1)), VP(), PARAMS[name])
    assert copy.deepcopy(net).describe() == net.describe()
