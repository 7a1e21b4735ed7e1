"""Noise of a batch: one stream per image."""

import pytest
import torch

from fewstep.errors import UsageError
from fewstep.solvers import PerImage, image_seeds


def test_every_image_has_its_own_stream() -> None:
    many = PerImage([4, 9, 9])
    first, second = many(torch.empty(3, 2, 2)), many(torch.empty(3, 2, 2))
    alone = PerImage([9])
    assert torch.equal(alone(torch.empty(1, 2, 2))[0], first[1])
    assert torch.equal(alone(torch.empty(1, 2, 2))[0], second[2])
    assert torch.equal(first[1], first[2])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_the_numbers_are_a_cpu_generators_float32() -> None:
    want = torch.randn(5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(PerImage([3])(torch.empty(1, 5))[0], want)
    double = PerImage([3])(torch.empty(1, 5, dtype=torch.float64))
    assert double.dtype == torch.float64
    assert torch.equal(double[0], want.double())


def test_the_law_of_the_numbers() -> None:
    """100,000 draws: mean, variance, correlation of neighbours within 4.5 standard errors."""
    z = PerImage(range(1000))(torch.empty(1000, 100))
    n = z.numel()
    assert abs(float(z.mean())) < 4.5 / n**0.5
    assert abs(float(z.var()) - 1) < 4.5 * (2 / n) ** 0.5
    assert abs(float((z[:-1] * z[1:]).mean())) < 4.5 / n**0.5


def test_seeds_wrap_around() -> None:
    top = 2**64 - 1
    assert image_seeds(top, 3) == [top, 0, 1]
    assert image_seeds(5, 2, first=3) == [8, 9]
    for seed in (0, 2**63 - 1, 2**63, top):
        assert PerImage([seed])(torch.empty(1, 3)).isfinite().all()
    assert not torch.equal(PerImage([0])(torch.empty(1, 3)), PerImage([top])(torch.empty(1, 3)))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_refuses_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(UsageError, match=r"0\.\.2\^64-1"):
        image_seeds(seed, 1)


def test_refuses_another_batch() -> None:
    with pytest.raises(ValueError, match="2 seeds for a batch of 3 images"):
        PerImage([1, 2])(torch.empty(3, 4))
