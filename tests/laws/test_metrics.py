"""Laws of the quality figures, in float64: closed forms, invariances, biases, toys.

Where a law is statistical its false-alarm rate is over seeds; the seeds here are fixed.
"""

import math

import pytest
import torch
from torch import Tensor

from fewstep import metrics
from fewstep.metrics import moments, quality
from fewstep.metrics.moments import Moments

fidelity = pytest.importorskip("torch_fidelity.metric_fid")
from torch_fidelity import metric_isc, metric_kid, metric_prc  # noqa: E402 -- after importorskip


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


def exactly(mean: Tensor, root: Tensor, n: int = 300, seed: int = 0) -> Tensor:
    """Rows whose sample mean is `mean` and whose sample covariance is root root^T, exactly."""
    x = normal(n, len(mean), seed=seed)
    x = x - x.mean(0)
    factor = torch.linalg.cholesky(x.T @ x / (n - 1))
    return mean + torch.linalg.solve_triangular(factor, x.T, upper=False).T @ root.T


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form() -> None:
    """|dm|^2 + sum (sqrt l - sqrt k)^2, whether from features or from moments."""
    q = rotation(6)
    first, second = torch.linspace(0.5, 4, 6).double(), torch.linspace(3, 0.1, 6).double()
    mean_a, mean_b = normal(6, seed=1), normal(6, seed=2)
    a = exactly(mean_a, q * first.sqrt())
    b = exactly(mean_b, q * second.sqrt(), 77, seed=3)
    want = (mean_a - mean_b).square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    given = Moments(77, mean_b, q * second @ q.T * 76)
    for pair in ((a, b), (b, a), (Moments.of(a), b), (a, given)):
        assert math.isclose(metrics.frechet_distance(*pair), float(want), rel_tol=1e-9)


@pytest.mark.parametrize("n", [20, 200])
def test_frechet_distance_is_a_distance_of_shapes(n: int) -> None:
    """0 to itself, |d|^2 after a shift, symmetric, blind to rotations, of the order of squares."""
    a, b = normal(n, 30), 1.5 * normal(n, 30, seed=1) + 0.3
    value = metrics.frechet_distance(a, b)
    assert abs(metrics.frechet_distance(a, a)) < 1e-6 * 30
    shift = normal(30, seed=5)
    apart = metrics.frechet_distance(a, a + shift)
    assert math.isclose(apart, float(shift.square().sum()), rel_tol=1e-6)
    assert math.isclose(metrics.frechet_distance(b, a), value, rel_tol=1e-7)
    q = rotation(30)
    assert math.isclose(metrics.frechet_distance(a @ q + 7, b @ q + 7), value, rel_tol=1e-6)
    assert math.isclose(metrics.frechet_distance(3 * a, 3 * b), 9 * value, rel_tol=1e-6)


@pytest.mark.parametrize("n", [20, 200])
def test_four_forms_of_the_cross_term_agree(n: int) -> None:
    """Also when the covariances are singular (20 images of 40 features)."""
    a, b = normal(n, 40), normal(n + 3, 40, seed=1) * 1.3
    first, second = (Moments.of(x) for x in (a, b))
    gap = (first.mean - second.mean).square().sum()
    traces = first.covariance.trace() + second.covariance.trace()
    cross = float(gap + traces - metrics.frechet_distance(first, second)) / 2

    def root(c: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(c)
        return vectors * values.clamp_min(0).sqrt() @ vectors.T

    r1, r2 = root(first.covariance), root(second.covariance)
    inner = torch.linalg.eigvalsh(r1 @ second.covariance @ r1).clamp_min(0).sqrt().sum()
    product = torch.linalg.eigvals(first.covariance @ second.covariance).sqrt().real.sum()
    centred = (a - a.mean(0)) @ (b - b.mean(0)).T / math.sqrt((n - 1) * (n + 2))
    for form in (
        inner,
        product,
        torch.linalg.matrix_norm(r1 @ r2, "nuc"),
        torch.linalg.matrix_norm(centred, "nuc"),
    ):
        assert math.isclose(float(form), cross, rel_tol=1e-6)


@pytest.mark.parametrize(("n", "m"), [(2000, 2000), (500, 4000)])
def test_expected_distance_is_the_mean_over_repeats(n: int, m: int) -> None:
    """Equal and unequal variances, 20 pairs each: within 10 %.

    One distance spreads by 6 % and 9 %, the mean of 20 by 2 %, and the law is off by 1 %: a false
    alarm in fewer than one of 10^4 seeds. Without the factor 1/2 the law is 85 % too high; the
    small terms (the means' 11 %, i = j 3 %) are for the closed form below.
    """
    for spread in (torch.ones(32), torch.linspace(0.1, 2, 32).square()):
        scale = spread.double().sqrt()
        values = [
            metrics.frechet_distance(
                normal(n, 32, seed=2 * i) * scale, normal(m, 32, seed=2 * i + 1) * scale
            )
            for i in range(20)
        ]
        want = metrics.expected_distance(torch.diag(spread), n, m)
        assert abs(sum(values) / 20 / want - 1) < 0.1


def test_expected_distance_of_isotropic_features_is_the_closed_form() -> None:
    """(1/n + 1/m) (d + d (d + 1) / 4); directions without variance add nothing."""
    want = (1 / 500 + 1 / 700) * (32 + 32 * 33 / 4)
    c = torch.diag(torch.cat([torch.ones(32), torch.zeros(8)]))
    assert math.isclose(metrics.expected_distance(c, 500, 700), want, rel_tol=1e-12)
    spread = [0.5, 2.0]  # by hand: 2.5 + 1/2 (0.25 + 1/2.5 * 2 + 2 * 4 / 4 + 2 * 0.25 / 1 - 0.25)
    pairs = 2 * spread[0] ** 2 / 1.0 + 2 * spread[1] ** 2 / 4.0 + 2 * 1.0 / 2.5
    got = metrics.expected_distance(torch.diag(torch.tensor(spread)), 10, 20)
    assert math.isclose(got, (0.1 + 0.05) * (2.5 + pairs / 2), rel_tol=1e-12)


def test_moments_of_uneven_parts_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from 0, in any order, in pieces of any size, merged or streamed."""
    x = normal(503, 7) * torch.linspace(0.1, 5, 7).double() + 300
    parts = [Moments.of(p) for p in x.split([1, 200, 3, 299])]
    merged = parts[3].merge(parts[0]).merge(parts[2].merge(parts[1]))
    monkeypatch.setattr(moments, "PIECE", 64)
    streamed, shuffled = Moments.of(x), Moments.of(x.flip(0).float())
    for m, within in ((merged, 1e-10), (streamed, 1e-10), (shuffled, 1e-5)):
        assert m.n == 503
        assert torch.allclose(m.mean, x.mean(0), rtol=within)
        assert torch.allclose(m.covariance, torch.cov(x.T), rtol=within, atol=within)


def test_weights_count_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of 2 is the row twice, of 0 not at all, across pieces too."""
    x = normal(40, 3)
    times = torch.arange(40) % 3
    monkeypatch.setattr(moments, "PIECE", 11)
    got, want = Moments.of(x, times), Moments.of(x.repeat_interleave(times, 0))
    assert got.n == want.n
    assert torch.allclose(got.mean, want.mean, rtol=1e-12)
    assert torch.allclose(got.scatter, want.scatter, rtol=1e-12)
    nothing = Moments.of(x, torch.zeros(40)).merge(want)
    assert nothing.n == want.n
    assert torch.allclose(nothing.scatter, want.scatter, rtol=1e-12)


def test_kernel_distance_is_the_double_loop() -> None:
    """Over all pairs without those of an image with itself, to 1e-10."""
    x, y = normal(12, 4), normal(12, 4, seed=1) + 0.5

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 4 + 1) ** 3)

    same = sum(k(z[i], z[j]) for z in (x, y) for i in range(12) for j in range(12) if i != j)
    cross = sum(k(a, b) for a in x for b in y)
    want = same / (12 * 11) - 2 * cross / 144
    got = metrics.kernel_distance(x, y, subset=12, subsets=2)
    assert math.isclose(got.mean, want, rel_tol=1e-10)
    assert got.std < 1e-10
    assert got.subset == 12
    assert metrics.kernel_distance(x, normal(31, 4)).subset == 6


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_kernel_distance_is_unbiased(shift: float) -> None:
    """60 pairs of sets of 60 in 16 dimensions: within 3 standard errors of the closed form.

    False alarm in 0.3 % of seeds. The biased estimate would be 43 standard errors off, one
    divided by m^2 in place of m (m - 1) more than 6.
    """
    d = 16

    def mean_kernel(a: float, b: float) -> float:
        """E (x . y / d + 1)^3 of x ~ N(a 1, I), y ~ N(b 1, I)."""
        ab, aa, bb = d * a * b, d * a * a, d * b * b
        cube = ab**3 + 3 * ab * bb + 3 * ab * (aa + d + 2)
        return 1 + 3 * ab / d + 3 * (ab**2 + aa + bb + d) / d**2 + cube / d**3

    want = mean_kernel(0, 0) + mean_kernel(shift, shift) - 2 * mean_kernel(0, shift)
    values = torch.tensor(
        [
            metrics.kernel_distance(
                normal(60, d, seed=2 * i), normal(60, d, seed=2 * i + 1) + shift, 60, 1
            ).mean
            for i in range(60)
        ]
    )
    assert abs(float(values.mean()) - want) < 3 * float(values.std()) / 60**0.5


def test_scores_of_toys() -> None:
    """K sure classes give K, doubt about all gives 1, smoothed classes exp(ln K - H)."""
    sure = 60 * torch.eye(10, dtype=torch.float64).repeat(20, 1)
    assert math.isclose(metrics.inception_score(sure, 1)[0], 10, rel_tol=1e-9)
    assert math.isclose(metrics.inception_score(torch.ones(50, 10))[0], 1, rel_tol=1e-9)
    p = torch.full((10, 10), 0.01, dtype=torch.float64).fill_diagonal_(0.91)
    entropy = -(0.91 * math.log(0.91) + 0.09 * math.log(0.01))
    got, spread = metrics.inception_score(p.log() + 3, 1)
    assert math.isclose(got, math.exp(math.log(10) - entropy), rel_tol=1e-9)
    assert math.isclose(got, 6.06356, rel_tol=1e-6)
    assert spread == 0
    mean, spread = metrics.inception_score(3 * normal(200, 10))
    assert 1 < mean < 10
    assert 0 < spread < mean


def half(seed: int) -> tuple[Tensor, Tensor]:
    """Real images of two modes, made images of the first of them."""
    real = normal(1000, 8, seed=seed)
    real[500:, 0] += 40
    return real, normal(1000, 8, seed=seed + 1)


def test_precision_and_recall_of_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The half mode says which input is real: one that makes half of the modes lacks recall.

    Over seeds the shares spread by 0.016 at most, 3.6 times less than the nearest bound is off:
    a false alarm in fewer than one of 1000.
    """
    a = normal(200, 8)
    assert metrics.precision_recall(a, a) == (1, 1)
    assert metrics.precision_recall(a, a + 100) == (0, 0)
    real, made = half(3)
    precision, recall = metrics.precision_recall(real, made)
    assert precision > 0.8
    assert 0.4 < recall < 0.5
    usual = metrics.precision_recall(normal(1000, 8), made)
    narrow = metrics.precision_recall(normal(1000, 8), 0.7 * made)
    assert narrow[0] > max(0.97, usual[0] + 0.05)
    assert narrow[1] < min(0.6, usual[1] - 0.2)
    monkeypatch.setattr(quality, "BLOCK", 37)
    assert metrics.precision_recall(real, made) == pytest.approx((precision, recall), abs=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_the_double_loop(k: int) -> None:
    """The k-th neighbour without the image itself; inside means not farther than it."""
    real, made = normal(40, 3), 0.8 * normal(30, 3, seed=1) + 0.5

    def share(x: Tensor, balls: Tensor) -> float:
        radii = [sorted(float((b - c).norm()) for c in balls)[k] for b in balls]  # [0] is b's own
        inside = sum(
            any(float((a - b).norm()) <= r for b, r in zip(balls, radii, strict=True)) for a in x
        )
        return inside / len(x)

    want = share(made, real), share(real, made)
    assert metrics.precision_recall(real, made, k) == pytest.approx(want, abs=1e-6)
    assert want[0] != want[1]


def test_figures_are_torch_fidelitys() -> None:
    """The same float32 features through the program's own functions, to 1e-6."""
    real, made = normal(220, 24).float(), (normal(150, 24, seed=1) * 1.2 + 0.1).float()
    stats = [fidelity.fid_features_to_statistics(x.double()) for x in (real, made)]
    want = fidelity.fid_statistics_to_metric(*stats, verbose=False)
    got = metrics.frechet_distance(real, made)
    assert math.isclose(got, want[fidelity.KEY_METRIC_FID], rel_tol=1e-6)
    options = {"kid_subset_size": 75, "kid_subsets": 10, "rng_seed": 2020, "verbose": False}
    kid = metric_kid.kid_features_to_metric(made.double(), real.double(), **options)
    kernel = metrics.kernel_distance(real, made, subsets=10)
    assert math.isclose(kernel.mean, kid[metric_kid.KEY_METRIC_KID_MEAN], rel_tol=1e-6)
    assert math.isclose(kernel.std, kid[metric_kid.KEY_METRIC_KID_STD], rel_tol=1e-6)
    isc = metric_isc.isc_features_to_metric(made)
    score = (isc[metric_isc.KEY_METRIC_ISC_MEAN], isc[metric_isc.KEY_METRIC_ISC_STD])
    assert metrics.inception_score(made) == pytest.approx(score, rel=1e-6)
    options = {"prc_neighborhood": 3, "prc_batch_size": 10000, "save_cpu_ram": False}
    prc = metric_prc.prc_features_to_metric(made, real, verbose=False, **options)
    shares = (prc[metric_prc.KEY_METRIC_PRECISION], prc[metric_prc.KEY_METRIC_RECALL])
    assert metrics.precision_recall(real, made) == pytest.approx(shares, rel=1e-6)


def test_order_and_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in any order, looked at in pieces of any size: the same figures to 1e-6."""
    real, made = normal(120, 10).float(), (1.2 * normal(90, 10, seed=1)).float()
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))

    def figures(x: Tensor) -> list[float]:
        kernel = metrics.kernel_distance(real[:90], x, subset=90, subsets=1).mean
        shares = metrics.precision_recall(real, x)
        return [metrics.frechet_distance(real, x), kernel, *shares]

    want = figures(made)
    monkeypatch.setattr(moments, "PIECE", 17)
    monkeypatch.setattr(quality, "BLOCK", 17)
    assert figures(made[order]) == pytest.approx(want, rel=1e-6)
