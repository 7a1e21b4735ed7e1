"""Laws of the solvers on exact denoisers: order, exactness, agreement and the way back."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep import solvers
from fewstep.denoiser import Cond, Denoiser
from fewstep.prediction import Prediction
from fewstep.process import EDM, VE, VP, Cosine, Process, Tabulated
from fewstep.reverse import posterior
from fewstep.shapes import Number, like
from fewstep.solvers import DDIM, DDPM, DEIS, IPNDM, DPMSolverPP, Euler, Heun, Solver, grids
from laws.cases import (
    DETERMINISTIC,
    PROCESSES,
    STOCHASTIC,
    generator,
    largest,
    mixture,
    normal,
    truth,
    walk,
)

every_process = pytest.mark.parametrize("p", PROCESSES, ids=str)
every_solver = pytest.mark.parametrize("solver", solvers.ALL, ids=str)
smooth = [p for p in PROCESSES if not isinstance(p, Tabulated)]


def interval(p: Process) -> tuple[float, float]:
    """Return the times of sigma / alpha = 4 and 0.1: the mixture is decided in between."""
    return p.time(-2 * math.log(4.0)), p.time(-2 * math.log(0.1))


def levels(p: Process, n: int, kind: str) -> Tensor:
    """Return n steps over the interval, even in t or in log-SNR."""
    start, end = interval(p)
    if kind == "t":
        return grids.uniform(n, start, end)
    return p.time(torch.linspace(p.logsnr(start), p.logsnr(end), n + 1, dtype=torch.float64))


def started(times: Tensor) -> Tensor:
    """Return the grid with its first step taken in nine, each but the second twice the last."""
    share = 2.0 ** torch.arange(-8, 0, dtype=torch.float64)
    return torch.cat([times[:1], times[0] + share * (times[1] - times[0]), times[1:]])


@pytest.mark.parametrize("kind", ["t", "logsnr"])
@pytest.mark.parametrize("p", smooth, ids=str)
def test_the_declared_order_is_the_measured_order(p: Process, kind: str) -> None:
    """Doubling the steps from 160 to 320 divides the error by 2^order, to 0.1 of the exponent.

    Judged by 1024 steps of a Runge-Kutta method of order 4, good to 4e-12. The first step is taken
    in nine that double, so that multistep methods show their order and not that of their start.
    Orders above 2 show at 640 steps, and only where the grid is smooth in log-SNR; iPNDM
    has its own only on grids that are uneven in sigma / alpha. A table is
    left out: it is piecewise linear in the angle, where no order is promised.
    """
    x = normal(6, 2) * math.hypot(p.alpha(interval(p)[0]), p.sigma(interval(p)[0])) * 1.2
    exact = mixture(p)
    want = truth(exact, x, levels(p, 1, kind), 1024)
    for solver in DETERMINISTIC:
        if kind == "t" and (solver.order > 2 or isinstance(solver, IPNDM)):
            continue
        a, b = (
            float((walk(exact, x, started(levels(p, n, kind)), solver) - want).norm())
            for n in ((320, 640) if solver.order > 2 else (160, 320))
        )
        assert b > 1e-10
        assert math.log2(a / b) == pytest.approx(solver.order, abs=0.1), (str(solver), a, b)


@every_process
def test_solvers_of_order_one_are_one_solver(p: Process) -> None:
    """DDIM(0), Euler on the probability-flow ODE and DPM-Solver++(1): the same line of numbers."""
    times = grids.karras(p, 12) if isinstance(p, EDM) else grids.uniform(12)
    x = normal(5, 2) * p.prior_std(1.0)
    # the last step of Euler from pure noise divides by alpha: start where alpha is not rounding
    times = times[1:]
    one, two, three = (walk(mixture(p), x, times, s) for s in (DDIM(), Euler(), DPMSolverPP(1)))
    size = float(1 + x.abs().max())
    assert largest(one, two) < 1e-10 * size
    assert largest(one, three) < 1e-10 * size


class Known(Denoiser):
    """A denoiser that always says the same clean batch."""

    def __init__(self, p: Process, x0: Tensor) -> None:
        super().__init__()
        self.process, self.x0 = p, x0

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        alpha, sigma = self.levels(x_t, t)
        return Prediction.from_x0(x_t, alpha, sigma, self.x0)


@every_process
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=str)
def test_data_of_one_point_is_reached_exactly_in_any_number_of_steps(
    p: Process, solver: Solver
) -> None:
    x0, eps = normal(5, 2), normal(5, 2, seed=1)
    t, s = p.time(-4.0), p.time(4.0)
    x = p.alpha(t) * x0 + p.sigma(t) * eps
    want = p.alpha(s) * x0 + p.sigma(s) * eps
    for n in (1, 3):
        got = walk(Known(p, x0), x, grids.uniform(n, t, s), solver)
        assert largest(got, want) < 1e-10 * float(x.abs().max())


@every_process
@every_solver
def test_the_last_step_lands_on_the_prediction(p: Process, solver: Solver) -> None:
    """A step that ends on clean data returns x0 itself: no noise is left and none is added."""
    if p.sigma(0.0) != 0:
        return
    x0 = normal(5, 2)
    for t, s in ((0.3, 0.0), (torch.full((5,), 0.3), torch.zeros(5))):
        got, _ = solver.step(Known(p, x0), normal(5, 2), t, s, noise=torch.ones_like)
        assert largest(got, p.alpha(0.0) * x0) < 1e-6


@every_process
@every_solver
def test_a_batch_of_different_steps_is_each_step_alone(p: Process, solver: Solver) -> None:
    """Distillation asks for a batch of (t, s) at once: the same numbers as one after another."""
    n = 6
    t = p.time(torch.linspace(-3, 3, n, dtype=torch.float64))
    m, s = t * 0.8, t * 0.6
    if p.sigma(0.0) == 0:
        s = torch.cat([s[:-1], torch.zeros(1, dtype=torch.float64)])
    x = normal(n, 2) * ((p.alpha(t) ** 2 + p.sigma(t) ** 2) ** 0.5)[:, None]
    exact = mixture(p)
    x_m, carry = solver.step(exact, x, t, m, noise=torch.ones_like)
    end, _ = solver.step(exact, x_m, m, s, carry=carry, noise=torch.ones_like)
    for i in range(n):
        row = x[[i]]
        one, own = solver.step(exact, row, float(t[i]), float(m[i]), noise=torch.ones_like)
        two, _ = solver.step(
            exact, one, float(m[i]), float(s[i]), carry=own, noise=torch.ones_like
        )
        assert largest(one[0], x_m[i]) < 1e-9 * (1 + float(x_m[i].abs().max()))
        assert largest(two[0], end[i]) < 1e-9 * (1 + float(end[i].abs().max()))


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=str)
@pytest.mark.parametrize("q", [VE(1e-4, 100.0), EDM(), Cosine(), Tabulated("cosine")], ids=str)
def test_processes_agree_on_the_same_logsnr_grid(q: Process, solver: Solver) -> None:
    """t is a label: VP and any other process make the same image through the same log-SNRs.

    DEIS in t is the one that heeds the label.
    """
    p = VP()
    times = levels(p, 40, "t")
    other = q.time(p.logsnr(times))
    y = 4 * normal(6, 2)  # x / alpha
    one = walk(mixture(p), y * p.alpha(float(times[0])), times, solver)
    two = walk(mixture(q), y * q.alpha(float(other[0])), other, solver)
    got = one / p.alpha(float(times[-1])), two / q.alpha(float(other[-1]))
    assert (largest(*got) < 1e-9) == (solver != DEIS(3, "t"))


@every_process
def test_eta_one_is_the_posterior_of_ddpm(p: Process) -> None:
    """Mean and standard deviation of q(x_s | x_t, x0) on a random rising subset and clean."""
    picks = torch.randperm(999, generator=generator(2))[:12].sort().values
    times = [*((picks.flip(0) + 1) / 1000).tolist(), 0.0]
    exact = mixture(p)
    for t, s in itertools.pairwise(times):
        x = normal(5, 2) * p.prior_std(t)
        a_t, a_s, s_t, s_s = p.alpha(t), p.alpha(s), p.sigma(t), p.sigma(s)
        x0 = exact(x, t).x0
        ratio = a_t / a_s
        beta = s_t**2 - ratio**2 * s_s**2
        mean = ratio * s_s**2 / s_t**2 * x + a_s * beta / s_t**2 * x0
        std = math.sqrt(beta) * s_s / s_t
        size = 1 + float(x.abs().max())
        for solver in (DDIM(1.0), DDPM("small")):
            zero, _ = solver.step(exact, x, t, s, noise=torch.zeros_like)
            unit, _ = solver.step(exact, x, t, s, noise=torch.ones_like)
            assert largest(zero, mean) < 1e-12 * size
            assert largest(unit - zero, std) < 1e-12 * size
        large, _ = DDPM("large").step(exact, x, t, s, noise=torch.ones_like)
        assert largest(large - mean, math.sqrt(beta) if s_s else 0.0) < 1e-12 * size


@every_process
@pytest.mark.parametrize("eta", [0.2, 0.5, 1.0])
def test_eta_multiplies_the_standard_deviation(p: Process, eta: float) -> None:
    x = normal(5, 2)
    zero, _ = DDIM(eta).step(mixture(p), x, 0.7, 0.4, noise=torch.zeros_like)
    unit, _ = DDIM(eta).step(mixture(p), x, 0.7, 0.4, noise=torch.ones_like)
    _, tilde = posterior(p, 0.7, 0.4)
    assert largest(unit - zero, eta * math.sqrt(tilde)) < 1e-12 * (1 + p.sigma(1.0))


@every_process
def test_composing_forward_and_posterior_gives_the_marginal(p: Process) -> None:
    """q(x_t | x0) and then q(x_s | x_t, x0) is q(x_s | x0): alpha_s and sigma_s^2 come back."""
    times = torch.linspace(1, 0.02, 50, dtype=torch.float64).tolist()
    for t, s in itertools.pairwise(times):
        x0 = torch.ones(1, 1, dtype=torch.float64)
        noiseless = p.alpha(t) * x0
        one_sigma = noiseless + p.sigma(t)
        step = DDPM("small").step
        mean, _ = step(Known(p, x0), noiseless, t, s, noise=torch.zeros_like)
        gain = step(Known(p, x0), one_sigma, t, s, noise=torch.zeros_like)[0] - mean
        var = float(gain) ** 2 + posterior(p, t, s)[1]
        assert float(mean) == pytest.approx(p.alpha(s), abs=1e-12)
        assert var == pytest.approx(p.sigma(s) ** 2, rel=1e-12)


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=str)
@pytest.mark.parametrize("p", [VP(), Cosine(), EDM()], ids=str)
def test_encoding_then_decoding_returns_as_the_steps_grow(p: Process, solver: Solver) -> None:
    """The same solver on the flipped grid: the error falls by 2^order at every doubling."""
    exact = mixture(p)
    start = levels(p, 64, "logsnr")
    x = walk(exact, normal(6, 2) * p.prior_std(float(start[0])), start, Heun())
    error = []
    for n in (32, 64, 128, 256):
        down = levels(p, n, "logsnr")
        code = walk(exact, x, down.flip(0), solver)
        error.append(float((walk(exact, code, down, solver) - x).norm()))
    for a, b in itertools.pairwise(error):
        assert b < a / 1.6**solver.order
    assert error[-1] < 0.05


class Implicit(Denoiser):
    """Says at x_s what another denoiser says at x_t: the implicit step solved by iteration."""

    def __init__(self, process: Process, eps: Tensor) -> None:
        super().__init__()
        self.process, self.eps = process, eps

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        alpha, sigma = self.levels(x_t, t)
        return Prediction.from_eps(x_t, alpha, sigma, self.eps)


def test_the_implicit_encoder_inverts_ddim_exactly() -> None:
    """Solving x_t = A x_s + B eps(x_t, t) by fixed point undoes each DDIM step to rounding."""
    p = EDM()
    exact = mixture(p)
    times = grids.karras(p, 20, low=0.02, high=20.0)[:-1]
    start = 20 * normal(4, 2)
    steps = list(solvers.sample(exact, (4, 2), times, DDIM(), x=start))
    x_s = steps[-1].x
    for step in reversed(steps):
        x_t = x_s
        for _ in range(150):
            eps = exact(x_t, step.t).eps
            x_t, _ = DDIM().step(Implicit(p, eps), x_s, step.s, step.t)
        x_s = x_t
    assert largest(x_s, start) < 1e-10
    explicit = walk(exact, steps[-1].x, times.flip(0), DDIM())
    assert largest(explicit, start) > 0.1


def progressive_target(
    teacher: Denoiser, x_t: Tensor, t: Tensor, m: Tensor, s: Tensor, cond: Cond = None
) -> Tensor:
    """Return the x0 with which one DDIM step t -> s is two teacher steps t -> m -> s."""
    x_m, _ = DDIM().step(teacher, x_t, t, m, cond)
    x_s, _ = DDIM().step(teacher, x_m, m, s, cond)
    p = teacher.process
    a_t, s_t, a_s, s_s = (like(f(u), x_t) for u in (t, s) for f in (p.alpha, p.sigma))
    return (x_s - s_s / s_t * x_t) / (a_s - s_s / s_t * a_t)


@every_process
def test_one_student_step_is_two_teacher_steps(p: Process) -> None:
    n = 16
    t = p.time(torch.linspace(-4, 4, n, dtype=torch.float64))
    m, s = t * 0.75, t * 0.5
    x_t = normal(n, 2) * ((p.alpha(t) ** 2 + p.sigma(t) ** 2) ** 0.5)[:, None]
    y = torch.arange(n) % 2
    teacher = mixture(p)
    student = Known(p, progressive_target(teacher, x_t, t, m, s, y))
    one, _ = DDIM().step(student, x_t, t, s)
    x_m, _ = DDIM().step(teacher, x_t, t, m, y)
    two, _ = DDIM().step(teacher, x_m, m, s, y)
    assert largest(one, two) < 1e-11 * float(1 + x_t.abs().max())


def test_a_step_is_a_rotation_on_the_circle() -> None:
    """VP, phi = atan(sigma / alpha): x_(phi - d) = cos(d) x - sin(d) v."""
    p = Cosine()
    x = normal(5, 2)
    v = mixture(p)(x, 0.8).v
    d = math.atan2(p.sigma(0.8), p.alpha(0.8)) - math.atan2(p.sigma(0.5), p.alpha(0.5))
    got, _ = DDIM().step(mixture(p), x, 0.8, 0.5)
    assert largest(got, math.cos(d) * x - math.sin(d) * v) < 1e-14


@pytest.mark.parametrize("solver", STOCHASTIC, ids=str)
def test_a_stochastic_solver_asks_for_its_noise(solver: Solver) -> None:
    p = VP()
    with pytest.raises(ValueError, match="is stochastic: give noise"):
        solver.step(mixture(p), normal(2, 2), 0.5, 0.4)


def test_a_multistep_solver_is_pure() -> None:
    """The same (x, t, s, carry) gives the same answer again: nothing is kept in the solver."""
    p, solver = VP(), DPMSolverPP(2)
    carry: Any = None
    x, carry = solver.step(mixture(p), normal(3, 2), 0.9, 0.7)
    one, _ = solver.step(mixture(p), x, 0.7, 0.5, carry=carry)
    two, _ = solver.step(mixture(p), x, 0.7, 0.5, carry=carry)
    fresh, _ = solver.step(mixture(p), x, 0.7, 0.5)
    assert torch.equal(one, two)
    assert largest(one, fresh) > 1e-4


@every_process
def test_the_second_multistep_step_is_the_papers(p: Process) -> None:
    """D = (1 + 1 / 2r) x0 - 1 / 2r x0_prev with r = h_prev / h, for unequal steps.

    The order cannot tell r from 1 / r: the difference of the methods telescopes along the grid.
    """
    exact, solver = mixture(p), DPMSolverPP(2)
    lam = [-1.5, -0.9, 0.7]  # ln(alpha / sigma)
    t, m, s = (p.time(2 * u) for u in lam)
    x = normal(4, 2) * p.prior_std(t)
    x_m, carry = solver.step(exact, x, t, m)
    got, _ = solver.step(exact, x_m, m, s, carry=carry)
    h, r = 1.6, 0.6 / 1.6
    d = (1 + 1 / (2 * r)) * exact(x_m, m).x0 - 1 / (2 * r) * exact(x, t).x0
    want = p.sigma(s) / p.sigma(m) * x_m - p.alpha(s) * math.expm1(-h) * d
    assert largest(got, want) < 1e-10 * float(1 + x.abs().max())
