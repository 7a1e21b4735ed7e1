"""Laws of progressive distillation: the target, the perfect student, its ladder."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.conditions import Cond
from fewstep.denoiser import BOTH, EPS, X0, Denoiser, Param, V
from fewstep.denoiser import EDM as EDM_PARAM
from fewstep.distill import Progressive, halved
from fewstep.errors import UsageError
from fewstep.exact import Gaussian
from fewstep.guide import ClassifierFree
from fewstep.objectives.weights import SNRPlusOne, TruncatedSNR
from fewstep.prediction import Prediction
from fewstep.process import EDM, VP, Cosine, Process, Tabulated
from fewstep.shapes import Number
from fewstep.solvers import DDIM, grids
from laws.cases import generator, largest, mixture, normal, walk

PROCESSES = [Cosine(), VP(), EDM(), Tabulated()]
PARAMS = [X0, V, EPS, EDM_PARAM, BOTH]
every_process = pytest.mark.parametrize("p", PROCESSES, ids=str)


class Perfect(Denoiser):
    """A student that has learned: it says the target of its teacher, one step of two."""

    def __init__(self, teacher: Denoiser, times: Tensor) -> None:
        super().__init__()
        self.process, self.goal = teacher.process, Progressive(teacher, tuple(times.tolist()))
        self.places = {t: i for i, t in enumerate(times.tolist())}

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        i = self.places[float(torch.as_tensor(t).flatten()[0])]
        return self.goal.truth(x_t, *rows(len(x_t), *self.goal.times[i : i + 3]), cond)


def rows(n: int, t: float, middle: float, s: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same three times for n samples."""
    one = torch.ones(n, dtype=torch.float64)
    return t * one, middle * one, s * one


def even(p: Process, n: int) -> Tensor:
    """Return n even steps, from where there is signal."""
    return grids.uniform(n) if p.alpha(1.0) > 1e-3 else torch.linspace(0.98, 0, n + 1).double()


@every_process
@pytest.mark.parametrize("n", [1, 2, 4, 8, 64, 4096])
@pytest.mark.parametrize("param", PARAMS, ids=str)
def test_one_step_of_the_student_is_two_of_the_teacher(p: Process, n: int, param: Param) -> None:
    """NU8, CHECK 1: to 1e-10 for a network of any parametrisation, at every place of the grid."""
    teacher, times = mixture(p), even(p, 2 * n).tolist()
    goal, x = Progressive(teacher, tuple(times)), normal(5, 2)
    cond = torch.tensor([0, 1, -1, 0, 1])
    for i in {0, n // 2, n - 1}:
        t, m, s = times[2 * i : 2 * i + 3]
        z = x * p.prior_std(t)
        truth = goal.truth(z, *rows(5, t, m, s), cond)
        alpha, sigma = p.levels(t)
        said = param.read(z, alpha, sigma, answer(param, truth, z))
        student, _ = DDIM().step(_Says(p, said), z, t, s, cond)
        once, _ = DDIM().step(teacher, z, t, m, cond)
        twice, _ = DDIM().step(teacher, once, m, s, cond)
        assert largest(student, twice) < 1e-10 * max(1.0, float(z.abs().max()))


def answer(param: Param, truth: Prediction, z: Tensor) -> Tensor:
    """Return what a network of this parametrisation answers to say the truth."""
    if param is BOTH:
        return torch.cat([truth.x0, truth.eps], dim=1)
    if param is not EDM_PARAM:
        return truth.view({"X0": "x0", "V": "v", "EPS": "eps"}[repr(param)])
    zero = param.read(z, truth.alpha, truth.sigma, torch.zeros_like(z)).x0
    slope = param.read(z, truth.alpha, truth.sigma, torch.ones_like(z)).x0 - zero
    return (truth.x0 - zero) / slope


class _Says(Denoiser):
    def __init__(self, process: Process, said: Prediction) -> None:
        super().__init__()
        self.process, self.said = process, said

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        return self.said


def test_single_precision_keeps_the_digits() -> None:
    """CHECK 1 in float32, where the formula as published cancels at many steps."""
    p, n = Cosine(), 4096
    exact, times = mixture(p), even(Cosine(), 2 * n).tolist()
    goal, x = Progressive(exact, tuple(times)), normal(64, 2)
    for i in (1, n // 2, n - 1):
        where = rows(64, *times[2 * i : 2 * i + 3])
        want, got = goal.truth(x, *where, None).x0, goal.truth(x.float(), *where, None).x0
        assert got.dtype == torch.float32
        assert largest(got.double(), want) < 1e-5


@every_process
def test_a_step_that_ends_on_clean_data_takes_the_second_image(p: Process) -> None:
    """CHECK 2: |x~ - teacher's x0 at t'| = 0 where sigma(0) = 0."""
    teacher, x = mixture(p), normal(4, 2)
    times = 0.3, 0.15, 0.0
    truth = Progressive(teacher, times).truth(x, *rows(4, *times), None)
    once, _ = DDIM().step(teacher, x, 0.3, 0.15)
    assert largest(truth.x0, teacher(once, 0.15).x0) < 1e-12


@every_process
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_chain_of_perfect_students_is_the_teacher(p: Process, scale: float) -> None:
    """CHECK 3: 8 -> 4 -> 2 -> 1, each as good as the first, to 1e-10; guidance is baked in."""
    teacher: Denoiser = mixture(p) if scale == 1 else ClassifierFree(mixture(p), scale)
    times, cond = even(p, 8), torch.tensor([0, 1, 0])
    x = normal(3, 2) * p.prior_std(float(times[0]))
    want = walk(teacher, x, times, DDIM(), cond)
    for _ in range(3):
        teacher, times = Perfect(teacher, times), times[::2]
        assert largest(walk(teacher, x, times, DDIM(), cond), want) < 1e-10 * max(1, x.abs().max())
    assert len(times) == 2


@every_process
def test_the_target_of_gaussian_data_is_known(p: Process) -> None:
    """CHECK 4: two steps multiply by two factors, and one step's image follows."""
    c, (t, m, s) = 0.5, (0.6, 0.4, 0.1)
    teacher = Gaussian(p, torch.zeros(1, dtype=torch.float64), c)

    def factor(t: float, s: float) -> float:
        (a, b), (a_s, b_s) = p.levels(t), p.levels(s)
        var = a * a * c * c + b * b
        return float((a_s * a * c * c + b_s * b) / var)

    x = normal(3, 1)
    got = Progressive(teacher, (t, m, s)).truth(x, *rows(3, t, m, s), None).x0
    (a, b), (a_s, b_s) = p.levels(t), p.levels(s)
    want = (factor(t, m) * factor(m, s) - b_s / b) / (a_s - b_s / b * a) * x
    assert largest(got, want) < 1e-12


def test_the_weights_are_the_losses_of_the_views() -> None:
    """CHECK 5: max(SNR, 1) is the larger of the errors in x0 and eps, SNR + 1 that in v."""
    p, x, shift = Cosine(), normal(6, 2), normal(6, 2, seed=1)
    t = torch.linspace(0.1, 0.9, 6).double()
    alpha, sigma = (torch.as_tensor(u)[:, None] for u in p.levels(t))
    truth = Prediction.from_x0(x, alpha, sigma, normal(6, 2, seed=2))
    guess = truth.with_x0(truth.x0 + shift)
    errors = {v: (guess.view(v) - truth.view(v)).square().sum(1) for v in ("x0", "eps", "v")}
    plain = shift.square()
    larger = torch.maximum(errors["x0"], errors["eps"])
    assert largest((TruncatedSNR()(truth) * plain).sum(1), larger) < 1e-9
    assert largest((SNRPlusOne()(truth) * plain).sum(1), errors["v"]) < 1e-9


def test_the_loss_of_a_perfect_student_is_nothing() -> None:
    """And every step of its grid is asked for, the one from pure noise too."""
    p, times = Cosine(), grids.uniform(8)
    asked: list[float] = []

    class Student(Perfect):
        def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
            times = torch.as_tensor(t).tolist()
            asked.extend(times)
            said = [super(Student, self).forward(x_t[i : i + 1], u) for i, u in enumerate(times)]
            x0 = torch.cat([p.x0 for p in said])
            return Prediction.from_x0(x_t, *self.levels(x_t, t), x0)

    teacher = mixture(p)
    goal, x0 = Progressive(teacher, tuple(times.tolist())), normal(64, 2)
    losses = goal(Student(teacher, times), x0, None, 0, generator(0))
    assert losses.shape == (64,)
    assert float(losses.max()) < 1e-20
    assert sorted(set(asked)) == sorted(times[:-1:2].tolist())
    far = goal(teacher, x0, None, 0, generator(0))  # the teacher itself jumps too far
    assert float(far.mean()) > 1e-3


@every_process
def test_the_student_is_shown_data_at_the_level_of_its_time(p: Process) -> None:
    """x_t ~ N(alpha x0, sigma^2) at each of the times at which its steps begin."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Student(Denoiser):
        process = p

        def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
            seen.append((x_t, torch.as_tensor(t)))
            return Prediction.from_x0(x_t, *self.levels(x_t, t), x_t)

    times = even(p, 8).tolist()
    x0 = torch.full((4000, 2), 3.0, dtype=torch.float64)
    Progressive(mixture(p), tuple(times))(Student(), x0, None, 0, generator(0))
    x_t, t = seen[0]
    for u in times[:-1:2]:
        alpha, sigma = p.levels(u)
        eps = (x_t[t == u] - alpha * x0[t == u]) / sigma
        assert abs(float(eps.mean())) < 0.1
        assert float(eps.std()) == pytest.approx(1.0, abs=0.07)


def test_the_grid_of_a_device_is_made_once() -> None:
    """A training step copies nothing to its device."""
    goal = Progressive(mixture(Cosine()), (1.0, 0.6, 0.0))
    device = torch.device("cpu")
    assert goal._grid(device) is goal._grid(device)
    assert goal._grid(device).tolist() == [1.0, 0.6, 0.0]


def test_the_ladder_halves() -> None:
    assert halved(8, 1) == [8, 4, 2, 1]
    assert halved(12, 3) == [12, 6, 3]
    assert halved(4, 4) == [4]
    with pytest.raises(UsageError, match="8 steps are not halved to 3: allowed are 8, 4, 2, 1"):
        halved(8, 3)
    for steps, to in ((8, 0), (8, 16), (7, 2)):
        with pytest.raises(UsageError):
            halved(steps, to)
    with pytest.raises(UsageError, match="a teacher of 3 steps"):
        Progressive(mixture(Cosine()), (1.0, 0.6, 0.3, 0.0))
    assert math.prod(a // b for a, b in pairwise(halved(64, 2))) == 32
