"""Laws of guided distillation: the target, the network told the scale, one evaluation a step."""

import pytest
import torch
from torch import Tensor

from fewstep import conditions, solvers
from fewstep.conditions import Cond, LowRes, Scaled
from fewstep.denoiser import EPS, X0, Denoiser, NetDenoiser, Param, V
from fewstep.distill import Guided, Progressive
from fewstep.exact import Mixture
from fewstep.guide import ClassifierFree, Taught
from fewstep.nets import (
    MLP,
    GuidanceScale,
    MLPConfig,
)
from fewstep.objectives import times
from fewstep.prediction import Prediction
from fewstep.process import EDM, VP, Cosine, Process
from fewstep.shapes import Number
from fewstep.solvers import DDIM, grids
from laws.cases import generator, largest, mixture, normal, walk
from unit.random_nets import randomise

every_process = pytest.mark.parametrize("p", [Cosine(), VP(), EDM()], ids=str)
SCALES = torch.tensor([1.0, 1.5, 2.0, 3.7, 5.0, -0.5, 0.0], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0, 1, 1, 0, 1])


class Told(Denoiser):
    """The exact student: it says the guided prediction of its teacher, sample by sample."""

    def __init__(self, teacher: Denoiser) -> None:
        super().__init__()
        self.teacher, self.process = teacher, teacher.process
        self.asked: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        assert isinstance(cond, Scaled)
        self.asked.append(cond.scale)
        uncond, given = self.teacher(x_t, t), self.teacher(x_t, t, cond.cond)
        scale = cond.scale[:, None]
        return given.with_x0((1 - scale) * uncond.x0 + scale * given.x0)

    def cost(self, t: float) -> int:
        return 1


def points(p: Process, n: int = 7) -> tuple[Tensor, Tensor]:
    """Return x_t and times over all the noise levels that matter to the mixture."""
    t = p.time(torch.linspace(6, -4, n, dtype=torch.float64))
    scale = (p.alpha(t) ** 2 + p.sigma(t) ** 2).sqrt()
    return normal(n, 2) * 1.5 * scale[:, None], t


# ---------------------------------------------------------------- the target
@every_process
@pytest.mark.parametrize("param", [X0, V, EPS], ids=str)
def test_the_target_at_scale_one_is_the_conditional_prediction(p: Process, param: Param) -> None:
    """CHECK 12: bit for bit, in single precision, for exact teachers and for networks."""
    torch.manual_seed(0)
    net = randomise(MLP(MLPConfig(width=32, classes=2)))
    for teacher in (mixture(p), NetDenoiser(net, p, param)):
        x_t, t = (u.float() for u in points(p))
        got = Guided(teacher).truth(x_t, t, torch.ones(7), LABELS)
        want = teacher(x_t, t, LABELS)
        assert torch.equal(got.x0, want.x0)
        assert torch.equal(got.eps, want.eps)
        none = Guided(teacher).truth(x_t, t, torch.zeros(7), LABELS)
        assert torch.equal(none.x0, teacher(x_t, t).x0)


@every_process
def test_the_target_is_linear_in_the_scale(p: Process) -> None:
    """CHECK 12: x0(s) = x0(1) + (s - 1) (x0(2) - x0(1)), each sample with its own s."""
    x_t, t = points(p)
    goal = Guided(mixture(p))
    one, two = (goal.truth(x_t, t, torch.full((7,), s).double(), LABELS).x0 for s in (1, 2))
    got = goal.truth(x_t, t, SCALES, LABELS).x0
    want = one + (SCALES - 1)[:, None] * (two - one)
    assert largest(got, want) < 1e-11 * (1 + largest(want))
    assert largest(one, two) > 0.1


@every_process
def test_the_target_is_classifier_free_guidance_of_each_sample(p: Process) -> None:
    x_t, t = points(p)
    got = Guided(mixture(p)).truth(x_t, t, SCALES, LABELS)
    for i, s in enumerate(SCALES.tolist()):
        want = ClassifierFree(mixture(p), s)(x_t[i : i + 1], t[i : i + 1], LABELS[i : i + 1])
        assert largest(got.x0[i], want.x0[0]) < 1e-12 * (1 + largest(want.x0))


def two_modes(p: Process) -> Mixture:
    """Return two blobs in the plane, each of its own class."""
    means = torch.tensor([[0.5, 0.2], [-0.5, 0.1]], dtype=torch.float64)
    return Mixture(p, means, 0.25, torch.arange(2))


def by_hand(p: Process, x_t: Tensor, t: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """Return the guided image of the two blobs, from the formulas of two Gaussians."""
    means = torch.tensor([[0.5, 0.2], [-0.5, 0.1]], dtype=x_t.dtype)
    alpha, sigma = p.alpha(t)[:, None], p.sigma(t)[:, None]
    var = alpha**2 * 0.25**2 + sigma**2
    each = [m + alpha * 0.25**2 / var * (x_t - alpha * m) for m in means]
    away = [((x_t - alpha * m) ** 2).sum(1, keepdim=True) for m in means]
    first = torch.sigmoid((away[1] - away[0]) / (2 * var))
    uncond = first * each[0] + (1 - first) * each[1]
    cond = torch.where(y[:, None] == 0, each[0], each[1])
    return uncond + scale[:, None] * (cond - uncond)


@every_process
def test_the_target_of_two_modes_is_known(p: Process) -> None:
    x_t, t = points(p)
    got = Guided(two_modes(p)).truth(x_t, t, SCALES, LABELS).x0
    assert largest(got, by_hand(p, x_t, t, SCALES, LABELS)) < 1e-11


def test_a_small_network_learns_every_scale_at_once() -> None:
    """CHECK: mean squared error below 1e-3 against the analytic guided image, scales 1 to 5."""
    p, g = Cosine(), generator(0)
    torch.manual_seed(0)
    exact = two_modes(p).float()
    net = GuidanceScale(MLP(MLPConfig(width=128, classes=2)))
    guess = NetDenoiser(net, p, V, null=False)
    goal, steps = Guided(exact), 700
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)

    def batch(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(2, (n,), generator=g)
        return exact.means[y] + 0.25 * torch.randn(n, 2, generator=g), y

    def error() -> float:
        x0, y = batch(4000)
        t, scale = torch.rand(4000, generator=g), 1 + 4 * torch.rand(4000, generator=g)
        x_t = p.alpha(t)[:, None] * x0 + p.sigma(t)[:, None] * torch.randn(4000, 2, generator=g)
        want = by_hand(p, x_t, t, scale, y)
        with torch.no_grad():
            return float((guess(x_t, t, Scaled(scale, y)).x0 - want).square().mean())

    before = error()
    for step in range(steps):
        adam.zero_grad()
        goal(guess, *batch(256), step, g).mean().backward()
        adam.step()
        fall.step()
    assert error() < 1e-3 < before


def test_the_objective_asks_for_scales_of_its_range_and_nothing_else() -> None:
    """The perfect student has no loss; it is asked once, for scales that fill the range."""
    p = Cosine()
    exact = Told(mixture(p))
    x0, y = normal(512, 2), torch.arange(512) % 2
    losses = Guided(mixture(p), 1.5, 4.0)(exact, x0, y, 0, generator(0))
    assert losses.shape == (512,)
    assert float(losses.max()) < 1e-20
    (asked,) = exact.asked
    assert asked.shape == (512,)
    assert 1.5 <= float(asked.min()) < 1.52
    assert 3.98 < float(asked.max()) <= 4.0
    assert abs(float(asked.mean()) - 2.75) < 0.1
    far = Guided(mixture(p))(_Plain(mixture(p)), x0, y, 0, generator(0))
    assert float(far.mean()) > 1e-2


class _Plain(Denoiser):
    """A student that pays no heed to the scale."""

    def __init__(self, teacher: Denoiser) -> None:
        super().__init__()
        self.teacher, self.process = teacher, teacher.process

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        return self.teacher(x_t, t, conditions.classes(cond))


def test_the_target_is_weighed_and_images_stay_outside_the_scale() -> None:
    """max(SNR, 1) by default; the scale stands where the network is told its class."""
    p, x0, y = Cosine(), normal(64, 2), torch.arange(64) % 2
    seen: list[Cond] = []

    class Spy(_Plain):
        def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
            seen.append(cond)
            return super().forward(x_t, t, cond)

    runs = []
    for weight in ({}, {"weight": lambda truth: 1.0}):
        goal = Guided(mixture(p), times=times.Uniform(0.3), **weight)
        runs.append(goal(Spy(mixture(p)), x0, LowRes(x0, y), 0, generator(0)))
    cond = seen[0]
    assert isinstance(cond, LowRes)
    assert isinstance(cond.cond, Scaled)
    assert torch.equal(cond.cond.cond, y)
    ratio = runs[0] / runs[1]
    assert float(ratio.min()) == 1.0
    assert 1.5 < float(ratio.max()) <= 1.01 / torch.tensor(0.3 * torch.pi / 2).tan() ** 2


# ---------------------------------------------------------------- the second stage
@every_process
@pytest.mark.parametrize("n", [1, 4, 64])
def test_one_step_of_the_student_is_two_of_the_guided_teacher(p: Process, n: int) -> None:
    """Section 7's identity with D := D^w, each sample with its own scale, to 1e-10."""
    ends = (1.0, 0.0) if p.alpha(1.0) > 1e-3 else (0.98, 0.0)
    grid = torch.linspace(*ends, 2 * n + 1).double().tolist()
    goal = Progressive(Told(mixture(p)), tuple(grid), scales=(1.0, 5.0))
    for i in {0, n // 2, n - 1}:
        t, m, s = grid[2 * i : 2 * i + 3]
        z = normal(7, 2) * p.prior_std(t)
        rows = (torch.full((7,), u).double() for u in (t, m, s))
        truth = goal.truth(z, *rows, Scaled(SCALES, LABELS))
        alpha, sigma = p.levels(s)
        for k, scale in enumerate(SCALES.tolist()):
            teacher, y = ClassifierFree(mixture(p), scale), LABELS[k : k + 1]
            once, _ = DDIM().step(teacher, z[k : k + 1], t, m, y)
            twice, _ = DDIM().step(teacher, once, m, s, y)
            size = max(1.0, float(z.abs().max()))
            assert largest(truth.at(alpha, sigma)[k], twice[0]) < 1e-10 * size


def test_teacher_and_student_are_asked_for_the_same_scales() -> None:
    p, x0, y = Cosine(), normal(64, 2), torch.arange(64) % 2
    teacher, pupil = Told(mixture(p)), Told(mixture(p))
    goal = Progressive(teacher, (1.0, 0.5, 0.25), scales=(2.0, 4.0))
    goal(pupil, x0, y, 0, generator(0))
    (asked,) = pupil.asked
    assert [torch.equal(asked, other) for other in teacher.asked] == [True, True]
    assert 2 <= float(asked.min()) < 2.2 < 3.8 < float(asked.max()) <= 4
    plain = Progressive(mixture(p), (1.0, 0.5, 0.25))(mixture(p), x0, y, 0, generator(0))
    again = Progressive(mixture(p), (1.0, 0.5, 0.25))(mixture(p), x0, y, 0, generator(0))
    assert torch.equal(plain, again)


# ---------------------------------------------------------------- sampling
@every_process
@pytest.mark.parametrize("scale", [1.0, 1.7, 4.0])
def test_an_exact_student_samples_what_its_teacher_samples(p: Process, scale: float) -> None:
    exact, times = mixture(p), grids.uniform(6) * 0.98
    x, y = normal(7, 2) * p.prior_std(0.98), LABELS
    want = walk(ClassifierFree(exact, scale), x, times, DDIM(), y)
    got = walk(Taught(Told(exact), scale), x, times, DDIM(), y)
    assert largest(got, want) < 1e-10
    assert solvers.nfe(Taught(Told(exact), scale), times, DDIM()) == 6
