"""Laws of guidance on exact denoisers: what scale means, and what guided sampling samples."""

import math

import pytest
import torch
from torch import Tensor

from fewstep import guide, solvers
from fewstep.conditions import classes
from fewstep.denoiser import Cond, Denoiser
from fewstep.exact import Gaussian, Mixture
from fewstep.prediction import VIEWS, Prediction
from fewstep.process import EDM, VP, Cosine, Process
from fewstep.shapes import Number
from fewstep.solvers import grids
from laws.cases import (
    PROCESSES,
    counted,
    gaussian_log_prob,
    generator,
    guided,
    largest,
    mixture,
    normal,
    walk,
)

B = 32
every_process = pytest.mark.parametrize("p", PROCESSES, ids=str)
SCALES = (-0.5, 0.0, 0.3, 1.0, 2.7)


def point(p: Process, n: int = B) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_t, times and classes over all the noise levels that matter to the mixture."""
    t = p.time(torch.linspace(6, -4, n, dtype=torch.float64))
    scale = (p.alpha(t) ** 2 + p.sigma(t) ** 2).sqrt()
    return normal(n, 2) * 1.5 * scale[:, None], t, torch.arange(n) % 2


@every_process
@pytest.mark.parametrize("n", [3, B], ids=["doubled", "twice"])
@pytest.mark.parametrize("w", [-1.5, -0.5, 1.7])
def test_classifier_free_is_one_affine_rule_in_every_view(p: Process, n: int, w: float) -> None:
    """(1 + w) cond - w uncond, the talk's formula, with scale = 1 + w."""
    x_t, t, y = point(p, n)
    cond, uncond = mixture(p)(x_t, t, y), mixture(p)(x_t, t)
    got = guide.ClassifierFree(mixture(p), 1 + w)(x_t, t, y)
    for view in VIEWS:
        want = (1 + w) * cond.view(view) - w * uncond.view(view)
        size = 1 + float(want.abs().max())
        assert largest(got.view(view), want) < 1e-11 * size


@every_process
def test_scale_one_is_conditional_and_scale_zero_unconditional(p: Process) -> None:
    x_t, t, y = point(p)
    for n in (2, B):
        args = x_t[:n], t[:n]
        cond, uncond = mixture(p)(*args, y[:n]), mixture(p)(*args)
        one = guide.ClassifierFree(mixture(p), 1.0)(*args, y[:n])
        zero = guide.ClassifierFree(mixture(p), 0.0)(*args, y[:n])
        assert torch.equal(one.x0, cond.x0)
        assert torch.equal(zero.x0, uncond.x0)
        free = guide.ClassifierFree(mixture(p), 3.0)(*args)
        assert torch.equal(free.x0, uncond.x0)
        assert torch.equal(guide.Unconditional(mixture(p))(*args, y[:n]).x0, uncond.x0)
    assert largest(cond.x0, uncond.x0) > 0.1


@every_process
def test_a_null_label_is_the_null_condition_of_its_sample(p: Process) -> None:
    x_t, t, y = point(p)
    some = y.masked_fill(torch.arange(B) % 3 == 0, -1)
    got = guide.ClassifierFree(mixture(p), 2.5)(x_t, t, some)
    want = guide.ClassifierFree(mixture(p), 2.5)(x_t, t, y)
    null = mixture(p)(x_t, t)
    assert largest(got.x0[some < 0], null.x0[some < 0]) < 1e-12
    assert torch.equal(got.x0[some >= 0], want.x0[some >= 0])


@every_process
@pytest.mark.parametrize("scale", SCALES)
def test_one_scale_one_meaning(p: Process, scale: float) -> None:
    """ClassifierFree(s) == LogProb(s) around the unconditional model, with exact parts (Bayes)."""
    x_t, t, y = point(p)
    exact = mixture(p)
    free = guide.ClassifierFree(exact, scale)(x_t, t, y)
    classifier = guide.LogProb(guide.Unconditional(exact), exact.log_prob, scale)(x_t, t, y)
    assert largest(free.eps, classifier.eps) < 1e-12
    assert float(((free.x0 - classifier.x0) / (1 + free.x0.abs())).abs().max()) < 1e-12
    if scale == 1:
        assert largest(classifier.eps, exact(x_t, t, y).eps) < 1e-12


@every_process
@pytest.mark.parametrize("scale", SCALES)
def test_a_classifier_over_a_conditional_model_adds_one(p: Process, scale: float) -> None:
    """ADM-G: guiding a class-conditional model by s has exponent 1 + s."""
    x_t, t, y = point(p)
    exact = mixture(p)
    got = guide.LogProb(exact, exact.log_prob, scale)(x_t, t, y)
    want = guide.ClassifierFree(exact, 1 + scale)(x_t, t, y)
    assert largest(got.eps, want.eps) < 1e-12


@every_process
def test_a_gradient_moves_the_clean_image_by_the_square_of_the_noise(p: Process) -> None:
    """x0 + s sigma^2 / alpha grad: with alpha = 1, the form D + sigma^2 grad of EDM's kin."""
    x_t, t, y = point(p)
    exact = mixture(p)
    g = guide.LogProb(exact, gaussian_log_prob, 3.0)
    alpha, sigma = exact.levels(x_t, t)
    moved = g(x_t, t, y).x0 - exact(x_t, t, y).x0
    want = -0.3 * 3.0 * sigma**2 / alpha * (x_t - y[:, None])
    assert largest(moved, want) < 1e-11 * (1 + largest(want))


@pytest.mark.parametrize("kind", guide.ALL, ids=lambda k: k.__name__)
@every_process
def test_a_guided_prediction_lies_on_the_line(kind: type[Denoiser], p: Process) -> None:
    x_t, t, y = point(p)
    exact = mixture(p)
    q = guided(kind, exact, exact.log_prob)(x_t, t, y)
    assert q.alpha is not None
    assert largest(q.alpha * q.x0 + q.sigma * q.eps, x_t) < 1e-11 * float(x_t.abs().max())


@pytest.mark.parametrize("kind", guide.ALL, ids=lambda k: k.__name__)
@every_process
def test_a_guided_sample_ignores_its_neighbours(kind: type[Denoiser], p: Process) -> None:
    """Alone, in a pair (one doubled batch) or among 32 (two calls); a float time or a batch."""
    x_t, t, y = point(p)
    exact = mixture(p)
    g = guided(kind, exact, exact.log_prob)
    many = g(x_t, t, y).x0
    for i in (0, 7, B - 1):
        for rows in ([i], [i, (i + 1) % B]):
            few = g(x_t[rows], t[rows], y[rows]).x0
            assert largest(few[0], many[i]) < 1e-12 * (1 + float(many[i].abs().max()))
        alone = g(x_t[[i]], float(t[i]), y[[i]]).x0
        assert largest(alone[0], many[i]) < 1e-12 * (1 + float(many[i].abs().max()))


@pytest.mark.parametrize("kind", guide.ALL, ids=lambda k: k.__name__)
def test_the_declared_cost_is_the_counted_cost(kind: type[Denoiser]) -> None:
    """Network evaluations per image, inside the interval of noise and outside, small and large."""
    for n in (1, 3, 8):
        for t in (0.1, 0.5, 0.95):
            base = counted(VP())
            g = guided(kind, base, gaussian_log_prob)
            g(normal(n, 2), t, torch.zeros(n, dtype=torch.long))
            assert base.net.images == n * g.cost(t)


@pytest.mark.parametrize(("scale", "calls"), [(0.0, 1), (1.0, 1), (0.5, 2), (2.5, 2), (-1.0, 2)])
def test_a_scale_without_a_second_branch_costs_one_call(scale: float, calls: int) -> None:
    for n in (2, 9):
        base = counted(VP())
        g = guide.ClassifierFree(base, scale)
        g(normal(n, 2), 0.5, torch.zeros(n, dtype=torch.long))
        assert (base.net.images, g.cost(0.5)) == (n * calls, calls)


class Wide(Denoiser):
    """A denoiser that says a variance too: that of class y is y, of the null condition -1."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.process = denoiser, denoiser.process

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        said = self.denoiser(x_t, t, cond)
        y = classes(cond)
        said.variance = (0 * x_t - 1) if y is None else 0 * x_t + y[:, None]
        return said


@pytest.mark.parametrize("kind", guide.ALL, ids=lambda k: k.__name__)
@pytest.mark.parametrize("n", [3, B], ids=["doubled", "twice"])
def test_guidance_keeps_the_learned_variance_of_the_condition(
    kind: type[Denoiser], n: int
) -> None:
    """Only the mean is guided; the variance is that of the conditional branch."""
    x_t, t, y = point(VP(), n)
    want = torch.full_like(x_t, -1) if kind is guide.Unconditional else 0 * x_t + y[:, None]
    for base in (mixture(VP()), Velocity(mixture(VP()))):
        got = guided(kind, Wide(base), base.log_prob)(x_t, t, y).variance
        assert got is not None
        assert torch.equal(got, want)


class Velocity(Denoiser):
    """A denoiser whose answers are kept as v, as those of most networks are."""

    def __init__(self, denoiser: Mixture) -> None:
        super().__init__()
        self.denoiser, self.process = denoiser, denoiser.process
        self.log_prob = denoiser.log_prob

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        said = self.denoiser(x_t, t, cond)
        return Prediction.from_v(x_t, said.alpha, said.sigma, said.v)


class Deaf(Denoiser):
    """A denoiser that does not hear its condition."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.process = denoiser, denoiser.process

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        return self.denoiser(x_t, t)


@every_process
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_guidance_without_a_difference_does_nothing(p: Process, scale: float) -> None:
    x_t, t, y = point(p)
    deaf = Deaf(mixture(p))
    plain = deaf(x_t, t).x0
    free = guide.ClassifierFree(deaf, scale)
    assert largest(free(x_t, t, y).x0, plain) < 1e-12
    assert largest(guide.Interval(free, deaf, 0.3, 2.0)(x_t, t, y).x0, plain) < 1e-12


@every_process
def test_the_full_interval_guides_and_an_empty_one_does_not(p: Process) -> None:
    x_t, t, y = point(p)
    exact = mixture(p)
    free = guide.ClassifierFree(exact, 3.0)
    full = guide.Interval(free, exact, 0.0, math.inf)
    empty = guide.Interval(free, exact, 1e8, 1e9)
    assert torch.equal(full(x_t, t, y).x0, exact(x_t, t, y).x0.lerp(free(x_t, t, y).x0, 1.0))
    assert torch.equal(empty(x_t, t, y).x0, exact(x_t, t, y).x0)


def test_an_interval_counts_its_calls() -> None:
    """N evaluations with an empty interval, 2 N with the full one, N + k with k steps inside."""
    p, n = EDM(), 16
    times = grids.karras(p, n)
    x, y = 80 * normal(4, 2), torch.zeros(4, dtype=torch.long)
    ratios = [p.sigma(t) for t in times.tolist()[:-1]]
    for low, high in ((0.0, math.inf), (1e8, 1e9), (0.3, 3.0)):
        inside = sum(low < r <= high for r in ratios)
        base = counted(p)
        g = guide.Interval(guide.ClassifierFree(base, 2.0), base, low, high)
        walk(g, x, times, solvers.Euler(), y)
        assert base.net.images == 4 * (n + inside)
        assert solvers.nfe(g, times, solvers.Euler()) == n + inside
    assert inside not in (0, n)


def test_the_interval_is_open_below_and_closed_above() -> None:
    p = EDM(1.0)  # sigma / alpha = t
    base = counted(p)
    g = guide.Interval(guide.ClassifierFree(base, 2.0), base, 0.25, 0.5)
    ends = (0.25, 0.2500001, 0.5, 0.5000001)
    assert [g.cost(t) for t in ends] == [1, 2, 2, 1]
    asked = []
    for t in ends:
        before = base.net.images
        g(normal(1, 2), t, torch.zeros(1, dtype=torch.long))
        asked.append(base.net.images - before)
    assert asked == [1, 2, 2, 1]
    x, y, t = normal(4, 2), torch.ones(4, dtype=torch.long), torch.tensor(ends).double()
    moved = (g(x, t, y).x0 - base(x, t, y).x0).abs().amax(1) > 1e-9
    assert moved.tolist() == [False, True, True, False]


def test_clipping_breaks_the_affine_rule_and_must_come_last() -> None:
    """Guidance agrees in eps, x0 and v without clipping and disagrees with clipped branches."""
    p = Cosine()
    x_t, t, y = point(p)
    exact = mixture(p)
    clipped = guide.Clamp(exact, -1.0, 1.0)
    inner = guide.ClassifierFree(clipped, 3.0)(x_t, t, y)
    outer = guide.Clamp(guide.ClassifierFree(exact, 3.0))(x_t, t, y)
    assert float(outer.x0.abs().max()) <= 1.0
    assert float(inner.x0.abs().max()) > 1.0 + 1e-3
    assert largest(inner.x0, outer.x0) > 0.1
    assert largest(outer.alpha * outer.x0 + outer.sigma * outer.eps, x_t) < 1e-12


def two_gaussians(p: Process, mean: float, a: float, b: float) -> Denoiser:
    """Return a denoiser whose conditional law is N(mean, a) and unconditional law N(0, b)."""

    class Pair(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.process = p
            at = torch.full((1,), mean, dtype=torch.float64)
            self.given = Gaussian(p, at, math.sqrt(a))
            self.free = Gaussian(p, 0 * at, math.sqrt(b))

        def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
            if cond is None:
                return self.free(x_t, t)
            null = cond < 0
            x0 = torch.where(null[:, None], self.free(x_t, t).x0, self.given(x_t, t).x0)
            alpha, sigma = self.levels(x_t, t)
            return Prediction.from_x0(x_t, alpha, sigma, x0)

    return Pair()


def end_variance(a: float, b: float, scale: float, steps: int) -> float:
    """Return the variance at t = 0 of guided EDM-Heun from N(0, 80^2): the map is linear in x."""
    p = EDM()
    x = torch.tensor([[80.0], [-80.0]], dtype=torch.float64)
    g = guide.ClassifierFree(two_gaussians(p, 0.0, a, b), scale)
    y = torch.zeros(2, dtype=torch.long)
    out = walk(g, x, grids.karras(p, steps), solvers.Heun(), y)
    assert largest(out[0], -out[1]) < 1e-12
    return float(out[0]) ** 2


@pytest.mark.parametrize(
    ("a", "b", "scale", "heun"),
    [(1.0, 4.0, 2.0, 0.25015), (0.25, 1.0, 1.5, 0.12503), (1.0, 4.0, 2.5, None)],
)
def test_constant_guidance_does_not_sample_the_sharpened_density(
    a: float, b: float, scale: float, heun: float | None
) -> None:
    """Guided flow ends at variance a^s b^(1-s), not at the tilted 1 / (s/a - (s-1)/b).

    a = 1, b = 4, s = 2: 0.25, of which 400 steps of Heun on EDM's grid make 0.25015, while the
    tilted density has 0.571.
    """
    got = end_variance(a, b, scale, 400)
    if heun is not None:
        assert got == pytest.approx(heun, abs=5e-6)
    assert got == pytest.approx(a**scale * b ** (1 - scale), rel=5e-3)
    tilted = 1 / (scale / a - (scale - 1) / b)
    assert tilted > 1.4 * got


def test_coarse_guided_sampling_is_too_wide() -> None:
    assert end_variance(1.0, 4.0, 2.0, 32) == pytest.approx(0.263, abs=1e-3)


@pytest.mark.parametrize("solver", [solvers.DDIM(), solvers.Heun()], ids=str)
def test_equal_variances_only_move_the_mean(solver: solvers.Solver) -> None:
    """Guidance of N(m, c) by N(0, c) is an unguided run on N(s m, c): it overshoots the class."""
    p, scale, m, c = VP(), 3.0, 0.8, 0.36
    x, y = normal(B, 1), torch.zeros(B, dtype=torch.long)
    times = grids.uniform(20)
    got = walk(guide.ClassifierFree(two_gaussians(p, m, c, c), scale), x, times, solver, y)
    mean = torch.full((1,), scale * m, dtype=torch.float64)
    assert largest(got, walk(Gaussian(p, mean, math.sqrt(c)), x, times, solver)) < 1e-10


def test_more_guidance_is_more_confident_and_less_diverse() -> None:
    """Two overlapping classes: over s = 1, 2, 4 confidence in the class rises, entropy falls."""
    p = EDM()
    means = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    exact = Mixture(p, means, 1.0, torch.tensor([0, 1]))
    x = 80 * torch.randn((512, 1), generator=generator(4), dtype=torch.float64)
    y = torch.zeros(512, dtype=torch.long)
    confidence, entropy = [], []
    for scale in (1.0, 2.0, 4.0):
        g = guide.ClassifierFree(exact, scale)
        out = walk(g, x, grids.karras(p, 32), solvers.Heun(), y)
        prob = exact.log_prob(out, 0.0, y).exp()
        confidence.append(float(prob.mean()))
        entropy.append(float(-(torch.xlogy(prob, prob) + torch.xlogy(1 - prob, 1 - prob)).mean()))
    assert confidence[0] + 0.05 < confidence[1] < confidence[2]
    assert entropy[0] - 0.05 > entropy[1] > entropy[2]
