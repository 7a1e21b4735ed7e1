"""Laws of the consistency objective: its distances, boundary, fixed point and targets.

The exact consistency function of Gaussian data N(0, c^2) is known: f(x, u) = x / sqrt(1 + (u/c)^2)
in coordinates x / alpha. Every way of training must leave it where it is.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fewstep.conditions import Cond
from fewstep.denoiser import BOTH, CONSISTENCY, EDM, Denoiser, NetDenoiser, V
from fewstep.distill import PRESETS, Consistency
from fewstep.distill.consistency import times
from fewstep.distill.curriculum import Fixed, Growing
from fewstep.distill.distances import L1, L2, PseudoHuber
from fewstep.distill.dropout import shared
from fewstep.distill.pairs import Easy, OnGrid
from fewstep.distill.target import Following
from fewstep.errors import UsageError
from fewstep.exact import Gaussian
from fewstep.prediction import Prediction
from fewstep.process import EDM as EDMProcess
from fewstep.process import VE, Cosine, Process, Tabulated
from fewstep.shapes import Number, like
from fewstep.solvers import Euler, Heun
from laws.cases import PROCESSES, generator, largest, normal

C = 0.5
SPREAD = [Cosine(), EDMProcess(), Tabulated()]
every_process = pytest.mark.parametrize("p", SPREAD, ids=str)


class Ideal(Denoiser):
    """The consistency function of N(0, c^2)."""

    def __init__(self, process: Process, gain: float = 1.0) -> None:
        super().__init__()
        self.process = process
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        del cond
        alpha, sigma = self.levels(x_t, t)
        f = x_t / alpha * C / ((sigma / alpha) ** 2 + C**2) ** 0.5
        return Prediction.from_x0(x_t, alpha, sigma, self.gain * f)


def teacher(p: Process, values: int = 3) -> Gaussian:
    """Return the exact denoiser of N(0, c^2 I)."""
    return Gaussian(p, torch.zeros(values, dtype=torch.float64), C)


# ---- distances ---------------------------------------------------------------------------------


def test_pseudo_huber_is_squared_near_and_a_length_far() -> None:
    """||d||^2 / (2 c) for small d, ||d|| - c for large; c = 0.00054 sqrt(d) by default."""
    zero, small = torch.zeros(2, 3, 32, 32).double(), 1e-9 * normal(2, 3, 32, 32)
    for c in (0.03, 0.00054 * math.sqrt(3072)):
        got = PseudoHuber(c)(small, zero)
        # sqrt(s + c^2) - c loses digits: c eps / s of them
        assert got.tolist() == pytest.approx(
            (small.square().sum((1, 2, 3)) / (2 * c)).tolist(), abs=1e-16
        )
        far = 1e5 * small / small.norm()
        length = far.flatten(1).norm(dim=1)
        assert got.shape == (2,)
        assert largest(PseudoHuber(c)(far, zero), length - c) < 1e-6
    assert (
        largest(PseudoHuber()(far, zero), PseudoHuber(0.00054 * math.sqrt(3072))(far, zero)) == 0
    )
    assert 0.00054 * math.sqrt(3072) == pytest.approx(0.03, rel=3e-3)
    assert largest(PseudoHuber(0.0)(far, zero), length) < 1e-9
    same = small.clone().requires_grad_()
    PseudoHuber(0.0)(same, small).sum().backward()
    assert same.grad is not None
    assert bool((same.grad == 0).all())


@pytest.mark.parametrize("c", [-1.0, math.nan])
def test_a_bad_length_of_the_pseudo_huber_is_refused(c: float) -> None:
    with pytest.raises(UsageError):
        PseudoHuber(c)


def test_l1_and_l2_are_means() -> None:
    a, b = normal(3, 2, 4), normal(3, 2, 4, seed=2)
    assert largest(L2()(a, b), (a - b).square().mean((1, 2))) < 1e-15
    assert largest(L1()(a, b), (a - b).abs().mean((1, 2))) < 1e-15


# ---- the boundary ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_a_student_is_the_identity_without_noise(p: Process, dtype: torch.dtype) -> None:
    """NU7: f(x, 0) = x bit for bit, for 100 networks, where the process ends on clean data."""
    if float(p.sigma(0.0)) > 0:
        pytest.skip("its t = 0 is not clean data")
    for seed in range(100):
        x = normal(2, 3, seed=seed).to(dtype)
        for param in (V, EDM, BOTH):
            out = (100 * normal(2, 6 if param is BOTH else 3, seed=seed + 1000)).to(dtype)
            got = param.read(x, 1.0, 0.0, out).x0
            assert torch.equal(got, x), (param, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_published_model_is_the_identity_at_its_least_noise(dtype: torch.dtype) -> None:
    """NU7 for the boundary condition at sigma = 0.002 with 100 random networks."""
    for seed in range(100):
        x, out = normal(2, 3, seed=seed).to(dtype), 100 * normal(2, 3, seed=seed + 1000).to(dtype)
        assert torch.equal(CONSISTENCY.read(x, 1.0, 0.002, out).x0, x)


# ---- the fixed point ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "heun", "euler"),
    [(18, 1.0e-2, 2.7e-2), (40, 8.1e-4, 5.3e-3), (160, 1.2e-5, 3.2e-4)],
)
def test_distillation_leaves_the_exact_function(points: int, heun: float, euler: float) -> None:
    """max over n of |f(x_n+1) - f(step of the exact ODE)|: falls by the local orders 3 and 2."""
    p = EDMProcess()
    levels = OnGrid(Fixed(points)).levels(p, 0)
    u, r = levels[1:], levels[:-1]
    one = torch.ones(points - 1, 1, dtype=torch.float64)
    for solver, want in ((Heun(), heun), (Euler(), euler)):
        goal = Consistency(OnGrid(), L1(), teacher=teacher(p, 1), solver=solver)
        f = Ideal(p)
        x0, eps = 0 * one, (1 + (C / like(u, one)) ** 2) ** 0.5 * one  # x_t of size sqrt(u^2+c^2)
        got = goal.losses(f, f, (x0, eps), (u, r)).detach().max()
        assert float(got) == pytest.approx(want, rel=0.06)


@every_process
def test_distillation_is_the_same_on_every_process(p: Process) -> None:
    """A pair of levels sigma / alpha has one loss, whatever the process it is walked along."""
    law, x0, eps = OnGrid(), C * normal(64, 3), normal(64, 3, seed=2)
    u, r = law(EDMProcess(), 64, 0, generator(0))
    losses = [
        Consistency(law, teacher=teacher(q)).losses(Ideal(q, 0.9), Ideal(q), (x0, eps), (u, r))
        for q in (p, EDMProcess())
    ]
    assert largest(losses[0].detach(), losses[1].detach()) < 1e-9


@every_process
def test_tuning_ends_at_the_exact_function(p: Process) -> None:
    """ECT: with f* the loss falls as the stages bring r to t; at r = 0 it is a denoiser's loss."""
    f, law = Ideal(p), Easy(every=1)
    x0, eps = C * normal(4000, 1), normal(4000, 1, seed=2)
    u = (-1.1 + 2.0 * normal(4000, seed=3)).exp().clamp(0.002, 80)
    goal = Consistency(law, L2())
    with torch.no_grad():
        parts = [goal.losses(f, f, (x0, eps), (u, law.partner(u, j))) for j in (0, 2, 4, 8)]
    means = [float(part.mean()) for part in parts]
    assert all(b < 0.7 * a for a, b in pairwise(means)), means
    clean = torch.zeros_like(u)
    t = times(p, u)
    alpha, sigma = f.levels(x0, t)
    with torch.no_grad():
        want = (f(alpha * x0 + sigma * eps, t).x0 - x0).square().flatten(1).mean(1)
        assert largest(goal.losses(f, f, (x0, eps), (u, clean)), want) < 1e-12


def test_training_is_distillation_by_euler_in_expectation() -> None:
    """E[f(x_r, r) x_t] = c^2 + r t for linear f, by the image as by an Euler step of the ODE.

    So both have the same gradient in expectation. 4 standard errors of 200,000 pairs: one false
    alarm in 8,000 seeds for each of four figures (the seed is fixed); a step to the wrong level
    moves them by hundreds.
    """
    p, u, r, n = EDMProcess(), 1.5, 1.1, 200_000
    x0, eps = C * normal(n, 1), normal(n, 1, seed=2)
    t, s = (torch.full((n,), v / 80.0, dtype=torch.float64) for v in (u, r))
    x_t = x0 + u * eps
    for goal in (
        Consistency(OnGrid()),
        Consistency(OnGrid(), teacher=teacher(p, 1), solver=Euler()),
    ):
        x_s = goal._cleaner(Ideal(p), (x0, eps), x_t, (t, s), None)
        product = (x_s * x_t).flatten()
        error = 4 * float(product.std()) / math.sqrt(n)
        assert abs(float(product.mean()) - (C**2 + r * u)) < error
        assert error < 0.03


# ---- targets -----------------------------------------------------------------------------------


def test_the_value_at_the_cleaner_point_has_no_gradient() -> None:
    p = Cosine()
    f, aim = Ideal(p, 0.9), Ideal(p, 0.8)
    goal = Consistency(OnGrid(), L2())
    x0, eps = C * normal(64, 3), normal(64, 3, seed=2)
    u, r = goal.pairs(p, 64, 0, generator(0))
    goal.losses(f, aim, (x0, eps), (u, r)).mean().backward()
    assert aim.gain.grad is None
    assert f.gain.grad is not None
    t = times(p, u)
    alpha, sigma = f.levels(x0, t)
    x_t = alpha * x0 + sigma * eps
    alpha_s, sigma_s = f.levels(x0, times(p, r))
    x_s = alpha_s * x0 + sigma_s * eps
    with torch.no_grad():
        a, b = f(x_t, t).x0 / f.gain, aim(x_s, times(p, r)).x0
    want = (2 * a * (f.gain.detach() * a - b)).mean()
    assert float(f.gain.grad) == pytest.approx(float(want), rel=1e-9)


def test_the_clean_partner_is_the_image() -> None:
    """At r = 0 the value is x0 itself, also where a process has noise left at t = 0."""
    p = VE()
    assert float(p.sigma(0.0)) > 0
    f, x0, eps = Ideal(p), C * normal(64, 3), normal(64, 3, seed=2)
    u = torch.full((64,), 1.0, dtype=torch.float64)
    losses = Consistency(OnGrid(), L2()).losses(f, f, (x0, eps), (u, 0 * u))
    guess = f(x0 + 1.0 * eps, times(p, u)).x0
    assert largest((losses - (guess - x0).square().mean(1)).detach()) < 1e-9


def test_losses_may_be_divided_by_the_gap() -> None:
    goal = Consistency(OnGrid(), L2())
    image = (C * normal(64, 3), normal(64, 3, seed=2))
    u, r = goal.pairs(Cosine(), 64, 0, generator(0))
    f = Ideal(Cosine(), 0.9)
    plain, divided = (
        Consistency(OnGrid(), L2(), by_gap=by).losses(f, f, image, (u, r)) for by in (False, True)
    )
    assert largest((divided - plain / (u - r)).detach()) < 1e-12


class Drops(nn.Module):
    """A network with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.dropout = nn.Linear(6, 6), nn.Linear(6, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor, label: Tensor, cond: Cond = None) -> Tensor:
        del label, cond
        return self.two(self.dropout(self.one(x).relu()))


def test_both_values_see_the_same_dropout() -> None:
    """f at one point twice has no distance, bit for bit; without sharing it has."""
    net = NetDenoiser(Drops().train(), Cosine())
    torch.manual_seed(3)
    x, t = normal(8, 6).float(), torch.full((8,), 0.4, dtype=torch.float64)
    with shared(x.device) as again:
        a = net(x, t).x0
        again()
        b = net(x, t).x0
        c = net(x, t).x0
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    goal = Consistency(OnGrid(), L2())
    u, r = torch.full((8,), 1.0).double(), torch.full((8,), 1.0 - 1e-9).double()
    with torch.no_grad():
        losses = goal.losses(net, net, (x, normal(8, 6, seed=2).float()), (u, r))
    assert float(losses.max()) < 1e-9


@pytest.mark.gpu
def test_both_values_see_the_same_dropout_on_a_gpu() -> None:
    place = torch.device("cuda")
    net = NetDenoiser(Drops().train(), Cosine()).to(place)
    x, t = normal(8, 6).float().to(place), torch.full((8,), 0.4, device=place)
    with shared(place) as again:
        a = net(x, t).x0
        again()
        b = net(x, t).x0
        c = net(x, t).x0
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_averaged_target_follows_the_student() -> None:
    """theta- <- mu theta- + (1 - mu) theta, once a step, with the mu of the step before."""
    grid = Growing(10)
    student = NetDenoiser(nn.Linear(2, 2, bias=False).double(), Cosine())
    target = Following(grid.mu)
    want = student.net.weight.detach().clone()
    for step in range(6):
        if step:
            want = grid.mu(step - 1) * want + (1 - grid.mu(step - 1)) * student.net.weight.detach()
        for _ in range(2):  # micro-batches of one step
            twin = target(student, step)
            assert largest(twin.net.weight, want) < 1e-15
        assert not twin.net.weight.requires_grad
        if step == 3:  # a continued run
            stored = {k: v.clone() for k, v in target.state().items()}
            target = Following(grid.mu)
            target.restore(stored)
            assert largest(target(student, step).net.weight, want) == 0
        with torch.no_grad():
            student.net.weight += normal(2, 2, seed=step)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_published_ways(name: str) -> None:
    """What is in each, and that it gives finite losses with a gradient on a real network."""
    p = Cosine()
    goal = PRESETS[name](teacher(p, 6), 80, "t")
    want = {
        "consistency-distillation": (OnGrid, PseudoHuber, True, True, False),
        "consistency-training": (OnGrid, L2, False, False, True),
        "ict": (OnGrid, PseudoHuber, True, False, False),
        "ect": (Easy, PseudoHuber, True, False, False),
    }[name]
    got = (type(goal.pairs), type(goal.metric), goal.by_gap, goal.teacher is not None,
           goal.target is not None)  # fmt: skip
    assert got == want
    said = {
        "consistency-distillation": ["OnGrid(points=Fixed(points=18), ", "PseudoHuber(c=None)"],
        "consistency-training": [
            "Growing(total=80, s0=2, s1=4, mu0=0.9)",
            "normal=None",
            "L2()",
        ],
        "ict": ["Doubling(total=80, s0=10, s1=1280)", "normal=(-1.1, 2.0)", "PseudoHuber(c=None)"],
        "ect": ["Easy(every=10, mean=-1.1, std=2.0, ", "PseudoHuber(c=0.0)"],
    }[name]
    assert [word for word in said if word not in repr(goal)] == []
    whole = repr(PRESETS[name](teacher(p, 6), 800_000, "t"))
    assert ("s1=150" in whole) == (name == "consistency-training")  # published, for so many steps
    net = NetDenoiser(Drops().double(), p)
    losses = goal(net, C * normal(16, 6), None, 40, generator(0))
    assert losses.shape == (16,)
    losses.mean().backward()
    grads = [q.grad for q in net.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)
    assert "Gaussian" not in repr(goal)


def test_a_solver_that_draws_noise_is_refused() -> None:
    from fewstep.solvers import DDIM

    with pytest.raises(UsageError, match="draws no noise"):
        Consistency(OnGrid(), teacher=teacher(Cosine()), solver=DDIM(1.0))
