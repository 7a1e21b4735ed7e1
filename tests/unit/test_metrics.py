"""Quality figures: closed forms, the program they come from, and no side effects."""

import math
import random

import numpy as np
import pytest
import torch

from fewstep import data, metrics
from fewstep.errors import DataError

fidelity = pytest.importorskip("torch_fidelity.metric_fid")


def exactly(mean: torch.Tensor, std: float, n: int = 512) -> torch.Tensor:
    """Rows whose sample mean is `mean` and whose sample covariance is std^2 I, exactly."""
    d = len(mean)
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(0)
    factor = torch.linalg.cholesky(x.T @ x / (n - 1))
    return mean + std * torch.linalg.solve_triangular(factor, x.T, upper=False).T


def test_frechet_distance_of_two_gaussians_is_the_closed_form() -> None:
    """For isotropic Gaussians: |m1 - m2|^2 + D (s1 - s2)^2."""
    a = exactly(torch.zeros(6, dtype=torch.float64), 1.0)
    b = exactly(torch.full((6,), 0.5, dtype=torch.float64), 2.0)
    assert math.isclose(metrics.frechet_distance(a, b), 6 * 0.25 + 6, rel_tol=1e-9)
    assert abs(metrics.frechet_distance(a, a)) < 1e-9


def test_frechet_distance_is_torch_fidelitys() -> None:
    """The same statistics through the program itself, digit for digit."""
    a, b = (torch.rand(40, 5, dtype=torch.float64) for _ in range(2))
    stats = [fidelity.fid_features_to_statistics(x) for x in (a, b)]
    want = fidelity.fid_statistics_to_metric(*stats, verbose=False)[fidelity.KEY_METRIC_FID]
    assert metrics.frechet_distance(a, b) == want


@pytest.mark.parametrize("shapes", [((1, 4), (9, 4)), ((9, 4), (9, 3)), ((9, 4), (0, 4))])
def test_features_that_cannot_be_compared_are_refused(shapes) -> None:
    """Too few rows, or rows of two widths."""
    with pytest.raises(DataError, match="Frechet distance"):
        metrics.frechet_distance(*(torch.zeros(s) for s in shapes))


def test_pixels_are_eight_bit_levels() -> None:
    """Half levels go to the nearest, values outside the range to its ends."""
    x = torch.tensor([-3.0, -1.0, 0.001, 1.0, 2.0, 100.4 / 127.5 - 1]).reshape(6, 1, 1, 1)
    want = torch.tensor([0, 0, 128, 255, 255, 100], dtype=torch.float64) / 127.5 - 1
    assert torch.allclose(metrics.pixels(x).flatten(), want, atol=1e-6)


def test_floor_falls_with_the_number_of_images() -> None:
    """The bias of the distance falls with N: fewer real images look worse."""
    train, held_out = data.digits()
    real, held = (metrics.pixels(s.batch(np.arange(len(s)))[0]) for s in (train, held_out))
    floors = [metrics.floor(real, held, n) for n in (100, 300, 1000)]
    assert floors[0] > floors[1] > floors[2] > 0


def test_classifier_learns_real_digits_and_touches_no_global_state() -> None:
    """Held-out accuracy far above chance after few steps; all generators as before."""
    train, held_out = data.digits()
    (x, y), (x_held, y_held) = (s.batch(np.arange(len(s))) for s in (train, held_out))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    net = metrics.train_classifier(x, y, 10, steps=120)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.rand(3)  # another global state, the same classifier
    same = metrics.train_classifier(x, y, 10, steps=120)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))
    assert metrics.accuracy(net, x_held, y_held) > 0.9
    assert metrics.accuracy(net, x_held, (y_held + 1) % 10) < 0.1
