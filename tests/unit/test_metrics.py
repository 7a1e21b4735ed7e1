"""Intervals of quality figures, and the answers that bad input gets."""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep import metrics
from fewstep.errors import DataError, NumericError, UsageError
from fewstep.metrics import intervals
from fewstep.metrics.moments import Moments

pytest.importorskip("torch_fidelity.metric_fid")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "d", "within"), [(300, 8, 0.2), (150, 48, 0.2), (30, 48, 0.5)])
def test_spread_of_the_frechet_distance_is_that_of_independent_sets(n, d, within) -> None:
    """Within 20 % of the standard deviation over 400 sets, 50 % with fewer images than features.

    The truth is known to 3.5 %, the mean of 16 to 4 % and 3 % too large: a false alarm in one of
    1000 seeds. For 30 images of 48 features it is 25 % too large and known to 6 %; the bootstrap
    would be 80 % too large.
    """
    scale = torch.arange(1, d + 1).double() ** -0.5
    real = Moments.of((normal(400, d) + 0.2) * scale)

    def made(i: int) -> Tensor:
        return 1.2 * normal(n, d, seed=i) * scale

    values = [metrics.frechet_distance(real, made(i)) for i in range(1, 401)]
    truth = float(torch.tensor(values).std())
    found = [intervals.frechet_sd(real, made(1000 + i)) for i in range(16)]
    assert abs(sum(found) / 16 / truth - 1) < within


@pytest.mark.parametrize(("shift", "power"), [(0.4, 3), (2.0, 1)])  # shape matters, means matter
def test_spread_of_the_frechet_distance_is_that_of_other_resampling(shift, power) -> None:
    """The jackknife that leaves out one image at a time, to 3 %, and the bootstrap, to 25 %.

    No chance in the first. A bootstrap of 200 spreads by 5 %: a false alarm in fewer than one of
    10^5 seeds. Draws of half the images would be 41 % off.
    """
    real, made = normal(300, 5) + shift, 1.3 * normal(250, 5, seed=1) ** power
    found = intervals.frechet_sd(real, made)
    keep = ~torch.eye(250, dtype=torch.bool)
    without = torch.tensor([metrics.frechet_distance(real, made[k]) for k in keep])
    jackknife = float((without - without.mean()).square().sum() * 249 / 250) ** 0.5
    assert math.isclose(found, jackknife, rel_tol=0.03)
    assert found == pytest.approx(intervals.frechet_sd(Moments.of(real), made, Moments.of(made)))
    bootstrap = intervals.bootstrap_sd(real, made, 200, seed=3)
    assert abs(bootstrap / found - 1) < 0.25
    assert intervals.bootstrap_sd(real, made, 3) == intervals.bootstrap_sd(real, made, 3)


def test_spread_of_the_kernel_distance_is_that_of_independent_sets() -> None:
    """Within 30 % of the standard deviation over 100 sets of 200 images, the real ones fixed.

    The truth is known to 7 %, the mean of four to 3 %: a false alarm in one of 10,000 seeds.
    Taking the real images' share as well, or leaving out the factor 4, is caught.
    """
    real = normal(100, 8)

    def found(i: int) -> tuple[torch.Tensor, metrics.quality.Kernel]:
        made = normal(200, 8, seed=1 + i) + 0.5
        return made, metrics.kernel_distance(real, made, 50, 20)

    truth = float(torch.tensor([found(i)[1].mean for i in range(100)]).std())
    got = [intervals.kernel_sd(real, *found(500 + i)) for i in range(4)]
    assert abs(sum(got) / 4 / truth - 1) < 0.3
    spread = metrics.quality.Kernel(1, 30.0, 50, 9)
    assert math.isclose(intervals.kernel_sd(real, found(0)[0], spread), 10, rel_tol=0.1)


@pytest.mark.parametrize("n", [50, 400])
@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.97])
def test_wilson_covers(p: float, n: int) -> None:
    """The interval holds the true share in about 95 % of cases: all cases counted, no chance."""
    inside = 0.0
    for k in range(n + 1):
        low, high = intervals.wilson(k / n, n)
        assert 0 <= low <= k / n <= high <= 1
        if low <= p <= high:
            inside += math.comb(n, k) * p**k * (1 - p) ** (n - k)
    assert 0.9 < inside < 0.99


def test_wilson_by_hand() -> None:
    """The ends solve |share - p| = z sqrt(p (1 - p) / n), and they shrink with n."""
    for end in intervals.wilson(0.3, 80):
        assert math.isclose(abs(0.3 - end), 1.96 * math.sqrt(end * (1 - end) / 80), rel_tol=1e-9)
    widths = [high - low for low, high in (intervals.wilson(0.3, n) for n in (10, 100, 1000))]
    assert all(a > 2.5 * b for a, b in pairwise(widths))
    assert intervals.around(3, 0.5) == (3 - 0.98, 3 + 0.98)


@pytest.mark.parametrize("shapes", [((1, 4), (9, 4)), ((9, 4), (9, 3)), ((9, 4), (0, 4))])
@pytest.mark.parametrize(
    ("of", "says"),
    [
        (metrics.frechet_distance, "Frechet distance"),
        (metrics.kernel_distance, "kernel distance"),
        (metrics.precision_recall, "precision and recall"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(of, says, shapes) -> None:
    """Too few rows, or rows of two widths."""
    with pytest.raises(DataError, match=says):
        of(*(torch.zeros(s) for s in shapes))


def test_impossible_parameters_are_refused() -> None:
    """Subsets that do not fit, more splits than images, no neighbours, too wide, no matrix."""
    x = torch.rand(9, 4)
    for subset in (1, 10):
        with pytest.raises(DataError, match="allowed: 2 to 9"):
            metrics.kernel_distance(x, x, subset=subset)
    with pytest.raises(DataError, match=r"score: .* 10 splits"):
        metrics.inception_score(x)
    with pytest.raises(DataError, match="precision and recall: 9 and 9 images; 10 are needed"):
        metrics.precision_recall(x, x, 8)
    with pytest.raises(UsageError, match=r'width 12288; at most 4096 .*"classifier"'):
        metrics.frechet_distance(torch.zeros(3, 12288), torch.zeros(3, 12288))
    with pytest.raises(DataError, match="expected \\(N, D\\)"):
        Moments.of(torch.zeros(3, 4, 4))
    with pytest.raises(DataError, match="only equal widths"):
        Moments.of(torch.zeros(3, 4)).merge(Moments.of(torch.zeros(3, 5)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    """One number in one image is enough, in either set."""
    good, bad = torch.rand(20, 4), torch.rand(20, 4)
    bad[7, 2] = value
    for of in (metrics.frechet_distance, metrics.kernel_distance, metrics.precision_recall):
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(NumericError, match="not finite"):
                of(*pair)
    with pytest.raises(NumericError, match="not finite"):
        metrics.inception_score(bad)


def test_missing_torch_fidelity_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the extra to install."""
    for name in ("metric_fid", "metric_kid", "metric_isc", "metric_prc"):
        monkeypatch.setitem(sys.modules, f"torch_fidelity.{name}", None)
    x = torch.rand(20, 4)
    for of in (metrics.frechet_distance, metrics.kernel_distance, metrics.precision_recall):
        with pytest.raises(UsageError, match=r"pip install 'fewstep\[eval\]'"):
            of(x, x)
    with pytest.raises(UsageError, match=r"pip install 'fewstep\[eval\]'"):
        metrics.inception_score(x)


def test_memory_maps_are_read_in_pieces(tmp_path) -> None:
    """Features on disk: the numbers of features in memory, and never more than a piece of them."""
    x = normal(9000, 3).float()
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    got, want = Moments.of(mapped), Moments.of(x)
    assert torch.equal(got.scatter, want.scatter)
    seen = [len(p) for _, p in metrics.moments.pieces(mapped)]
    assert seen == [4096, 4096, 808]


def test_pixels_are_eight_bit_levels() -> None:
    """Half levels go to the nearest, values outside the range to its ends."""
    x = torch.tensor([-3.0, -1.0, 0.001, 1.0, 2.0, 100.4 / 127.5 - 1]).reshape(6, 1, 1, 1)
    want = torch.tensor([0, 0, 128, 255, 255, 100], dtype=torch.float64) / 127.5 - 1
    assert torch.allclose(metrics.quantise(x).flatten().double(), want, atol=1e-6)
