"""The walk between two noises: on the great circle, sample by sample, exact at the ends."""

import pytest
import torch

from fewstep.edit import frames, slerp
from tests.laws.cases import largest, normal


def test_two_axes_are_joined_by_a_quarter_circle():
    a, b = torch.tensor([[2.0, 0, 0]]), torch.tensor([[0, 2.0, 0]])
    for u in (0.0, 0.25, 1 / 3, 0.5, 1.0):
        angle = torch.tensor(u * torch.pi / 2)
        want = 2 * torch.tensor([[angle.cos(), angle.sin(), 0]])
        assert largest(slerp(a, b, u), want) < 1e-6


def test_the_ends_are_exact_and_steps_are_even():
    a, b = normal(3, 8, 8, seed=1), normal(3, 8, 8, seed=2)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))[:, None, None]
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    walk = frames(a[0], b[0], 9)
    assert largest(walk.flatten(1).norm(dim=1), a[0].norm()) < 1e-12
    chords = (walk[1:] - walk[:-1]).flatten(1).norm(dim=1)
    assert largest(chords, chords.mean()) < 1e-12


def test_every_sample_has_its_own_angle():
    a, b, u = normal(4, 5, seed=1), normal(4, 5, seed=2), torch.tensor([0.1, 0.4, 0.5, 0.9])
    together = slerp(a, b, u)
    alone = [slerp(a[i : i + 1], b[i : i + 1], float(u[i])) for i in range(4)]
    assert largest(together, torch.cat(alone)) < 1e-7


def test_noise_stays_as_long_as_noise_is():
    a, b = normal(1, 4096, seed=1), normal(1, 4096, seed=2)
    assert float(slerp(a, b, 0.5).norm()) == pytest.approx(64, rel=0.02)
    assert float(((a + b) / 2).norm()) < 0.73 * 64


@pytest.mark.parametrize("size", [1e-9, 1e-7, 1e-5, 1e-3])
def test_nearly_equal_noises_are_joined_by_the_short_way(size):
    a = normal(2, 6)
    b = a + size * normal(2, 6, seed=1)
    middle = slerp(a, b, 0.5)
    assert largest(middle, (a + b) / 2) < size**2 + 1e-15


def test_equal_opposite_and_zero_noises_go_straight():
    a = normal(2, 6)
    assert largest(slerp(a, a.clone(), 0.3), a) < 1e-15
    assert largest(slerp(a, -a, 0.25), 0.5 * a) < 1e-15
    assert largest(slerp(a, 0 * a, 0.25), 0.75 * a) < 1e-15


def test_bad_shapes_and_counts_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        slerp(normal(2, 3), normal(3, 2), 0.5)
    with pytest.raises(ValueError, match="at least 2"):
        frames(normal(3), normal(3), 1)
