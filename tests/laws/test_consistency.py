"""Laws of the consistency objective: its curricula, pairs, distances, targets and its fixed point.

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
from fewstep.distill.curriculum import Doubling, Fixed, Growing
from fewstep.distill.distances import L1, L2, PseudoHuber
from fewstep.distill.dropout import shared
from fewstep.distill.pairs import Easy, OnGrid
from fewstep.distill.target import Following
from fewstep.errors import UsageError
from fewstep.exact import Gaussian
from fewstep.prediction import Prediction
from fewstep.process import EDM as EDMProcess
from fewstep.process import Cosine, Process, Tabulated
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


# ---- curricula ---------------------------------------------------------------------------------


def test_the_growing_grid_and_its_memory() -> None:
    """N(k) and mu(k) of Song et al. at K = 800k, s0 = 2, s1 = 150, mu0 = 0.9."""
    grid = Growing(800_000)
    points = {0: 2, 1_000: 6, 10_000: 17, 100_000: 54, 400_000: 107, 800_000: 151}
    assert {k: grid(k) for k in points} == points
    decay = {0: 0.81, 1_000: 0.959, 10_000: 0.987, 100_000: 0.996, 400_000: 0.998, 800_000: 0.9986}
    for k, mu in decay.items():
        assert grid.mu(k) == pytest.approx(mu, abs=6e-4)
    assert grid(10**9) == 151


def test_the_doubling_grid() -> None:
    """iCT: K' = 50000 at K = 400k; N doubles exactly there and stays at s1 + 1."""
    grid = Doubling(400_000)
    assert grid.each == 50_000
    assert [grid(k * 50_000) for k in range(8)] == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert [grid(k * 50_000 - 1) for k in range(1, 8)] == [11, 21, 41, 81, 161, 321, 641]
    assert grid(10**9) == 1281


@pytest.mark.parametrize(
    ("stage", "want"),
    [(0, (0, 0, 0.473, 0.5)), (1, (0, 0.212, 0.737, 0.75)), (2, (0.4, 0.606, 0.868, 0.875)),
     (3, (0.7, 0.803, 0.934, 0.9375)), (7, (0.981, 0.988, 0.996, 0.996))],
)  # fmt: skip
def test_the_easy_map(stage: int, want: tuple[float, ...]) -> None:
    """ECT: r / t at t = 0.1, 1, 5, 80 by stages; r < t; q = 256 is stage 7 of q = 2."""
    u = torch.tensor([0.1, 1, 5, 80], dtype=torch.float64)
    law = Easy(every=100)
    share = law.partner(u, stage * 100) / u
    assert share.tolist() == pytest.approx(want, abs=6e-4)
    assert law.partner(u, stage * 100 + 99).tolist() == law.partner(u, stage * 100).tolist()
    assert bool((share < 1).all())
    assert largest(Easy(100, q=256.0).partner(u, 0), law.partner(u, 700)) == 0


@every_process
def test_pairs_are_neighbours_and_reach_both_ends(p: Process) -> None:
    """Every interval is drawn, the last one (which trains pure noise) too; r < u."""
    law = OnGrid(Fixed(18))
    levels = law.levels(p, 0)
    u, r = law(p, 4000, 0, generator(1))
    seen = {(round(float(a), 9), round(float(b), 9)) for a, b in zip(u, r, strict=True)}
    want = {(round(b, 9), round(a, 9)) for a, b in pairwise(levels.tolist())}
    assert seen == want  # an interval of 17 is missed in 4000 draws with probability 17 e^-242
    assert float(levels[-1]) == pytest.approx(80.0)


def test_log_normal_intervals() -> None:
    """iCT: the shares add up to 1 and are those of exp(N(-1.1, 2^2)) between the ends.

    400,000 draws: 4 standard errors in each of 19 intervals, false alarms in 1.2e-3 of seeds (the
    seed is fixed); a mean of +1.1 misses by more than 50.
    """
    p, law = EDMProcess(), OnGrid(Fixed(20), normal=(-1.1, 2.0))
    share, levels = law.shares(p, 0), law.levels(p, 0)
    assert float(share.sum()) == pytest.approx(1.0, abs=1e-12)
    z = (-1.1 + 2.0 * torch.randn(400_000, generator=generator(3), dtype=torch.float64)).exp()
    kept = z[(z > levels[0]) & (z < levels[-1])]
    counts = torch.histogram(kept, levels)[0]
    error = (share * (1 - share) / len(kept)).sqrt()
    assert bool(((counts / len(kept) - share).abs() < 4 * error).all())
    u, _ = law(p, 400_000, 0, generator(4))
    drawn = torch.bucketize(u, levels) - 1
    counts = torch.bincount(drawn, minlength=19).double() / len(u)
    assert bool(((counts - share).abs() < 4 * (share * (1 - share) / len(u)).sqrt() + 1e-7).all())


def test_a_process_bounds_the_levels() -> None:
    """A ladder to 80 is cut where a process has less noise; one that has none says so."""
    small = EDMProcess(sigma_max=5.0)
    assert float(OnGrid().levels(small, 0)[-1]) == pytest.approx(5.0)
    u, _ = Easy(10, mean=5.0)(small, 100, 0, generator(0))
    assert float(u.max()) <= 5.0
    with pytest.raises(UsageError, match="must be 0 < low < high"):
        OnGrid(low=6.0).levels(small, 0)


@pytest.mark.parametrize(
    "make",
    [lambda: Fixed(1), lambda: Growing(0), lambda: Growing(10, 5, 4), lambda: Growing(10, mu0=1.0),
     lambda: Doubling(10, 0), lambda: OnGrid(low=2, high=1), lambda: OnGrid(rho=0),
     lambda: OnGrid(normal=(0.0, 0.0)), lambda: Easy(0), lambda: Easy(1, q=1.0),
     lambda: PseudoHuber(-1.0), lambda: PseudoHuber(math.nan)],
)  # fmt: skip
def test_bad_numbers_are_refused(make) -> None:
    with pytest.raises(UsageError):
        make()


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
        "consistency-distillation": (OnGrid, PseudoHuber, False, True, False),
        "consistency-training": (OnGrid, L2, False, False, True),
        "ict": (OnGrid, PseudoHuber, True, False, False),
        "ect": (Easy, PseudoHuber, True, False, False),
    }[name]
    got = (type(goal.pairs), type(goal.metric), goal.by_gap, goal.teacher is not None,
           goal.target is not None)  # fmt: skip
    assert got == want
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
