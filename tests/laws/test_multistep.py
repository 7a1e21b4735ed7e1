"""Laws of the exponential integrators: the integral, the legacy order, agreement, first points."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.process import EDM, VP, Process
from fewstep.solvers import DPMSolverPP, DPMSolverPP2S, grids
from fewstep.solvers.exponential import Node, follow, moments
from laws.cases import PROCESSES, Straight, counted, largest, mixture, normal, truth, walk

every_process = pytest.mark.parametrize("p", PROCESSES, ids=str)


def decades(p: Process, n: int) -> Tensor:
    """Return n steps even in log-SNR from sigma / alpha = 20 to 0.02."""
    ends = [-2 * math.log(20.0), -2 * math.log(0.02)]
    return p.time(torch.linspace(*ends, n + 1, dtype=torch.float64))


def errors(p: Process, solver: object, sizes: tuple[int, ...]) -> list[float]:
    """Return the errors of so many steps over three decades, against Runge-Kutta."""
    start = float(decades(p, 1)[0])
    x = normal(8, 2) * math.hypot(p.alpha(start), p.sigma(start))
    want = truth(mixture(p), x, decades(p, 1), 1024)
    return [
        float((walk(mixture(p), x, decades(p, n), solver) - want).norm())  # pyright: ignore[reportArgumentType] -- typed as Solver
        for n in sizes
    ]


@pytest.mark.parametrize("h", [1e-5, 0.3, 0.999, 1.001, 4.0, -0.5, -3.0])
def test_the_moments_are_the_integrals(h: float) -> None:
    """int_0^h e^(u - h) u^k du by Gauss-Legendre quadrature; a batch says the same."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(24))
    u = h * (nodes + 1) / 2
    for k, m in enumerate(moments(h, 4)):
        want = float((h / 2 * weights * (u - h).exp() * u**k).sum())
        assert m == pytest.approx(want, rel=1e-11)
        assert float(moments(torch.tensor([h], dtype=torch.float64), 4)[k]) == pytest.approx(m)


def test_the_rest_of_a_polynomial_is_its_integral() -> None:
    """Cubic values at four uneven places give the integral of the cubic, after the first terms."""
    c, h, scale = (2.0, -1.0, 0.5, 3.0), 0.7, 1.3
    places = (-0.4, -0.6, -1.5, 0.2)
    one = torch.ones(1, 1, dtype=torch.float64)
    nodes = [Node(q, one * sum(v * (q + 0.4) ** k for k, v in enumerate(c))) for q in places]
    m = moments(h, 3)
    want = 0.6 + 0.5 * c[0] + scale * sum(v * w for v, w in zip(c[1:], m[1:], strict=True))
    assert float(follow(0.6, one, 0.5, nodes, scale, m)) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("p", [VP(), EDM()], ids=str)
def test_the_legacy_third_order_is_second(p: Process) -> None:
    """Halving the term of second order costs an order, with hardly a difference at 20 steps."""
    a, b = errors(p, DPMSolverPP(3), (160, 320))
    assert math.log2(a / b) == pytest.approx(3.0, abs=0.2)
    c, d = errors(p, DPMSolverPP(3, legacy=True), (160, 320))
    assert math.log2(c / d) == pytest.approx(2.0, abs=0.2)
    assert d > 3 * b
    few, other = errors(p, DPMSolverPP(3), (20,)), errors(p, DPMSolverPP(3, legacy=True), (20,))
    assert few[0] == pytest.approx(other[0], rel=0.5)


@every_process
def test_the_third_multistep_step_is_the_papers(p: Process) -> None:
    """-phi1 x0 + phi2 d1 - 2 phi3 d2 on unequal steps; -phi3 d2 is the legacy one."""
    exact = mixture(p)
    lam = [-1.5, -0.9, -0.5, 0.3]
    t = [p.time(2 * u) for u in lam]
    x, carry, seen = normal(4, 2) * p.prior_std(t[0]), None, []
    for k in (0, 1):
        seen.append(exact(x, t[k]).x0)
        x, carry = DPMSolverPP(3).step(exact, x, t[k], t[k + 1], carry=carry)
    seen.append(exact(x, t[2]).x0)
    h, r0, r1 = 0.8, 0.4 / 0.8, 0.6 / 0.8
    d10, d11 = (seen[2] - seen[1]) / r0, (seen[1] - seen[0]) / r1
    d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
    phi1 = math.expm1(-h)
    phi2 = phi1 / h + 1
    phi3 = phi2 / h - 0.5
    for solver, factor in ((DPMSolverPP(3), 2), (DPMSolverPP(3, legacy=True), 1)):
        got, _ = solver.step(exact, x, t[2], t[3], carry=carry)
        d = -phi1 * seen[2] + phi2 * d1 - factor * phi3 * d2
        want = p.sigma(t[3]) / p.sigma(t[2]) * x + p.alpha(t[3]) * d
        assert largest(got, want) < 1e-10 * float(1 + x.abs().max())


@every_process
def test_the_singlestep_step_is_the_papers(p: Process) -> None:
    """u at the middle in lam, then x_s = (sigma_s / sigma_t) x - alpha_s (e^-h - 1) x0(u)."""
    exact = mixture(p)
    t, m, s = (p.time(2 * u) for u in (-1.0, -0.3, 0.4))
    x = normal(4, 2) * p.prior_std(t)
    u = p.sigma(m) / p.sigma(t) * x - p.alpha(m) * math.expm1(-0.7) * exact(x, t).x0
    want = p.sigma(s) / p.sigma(t) * x - p.alpha(s) * math.expm1(-1.4) * exact(u, m).x0
    got, _ = DPMSolverPP2S().step(exact, x, t, s)
    assert largest(got, want) < 1e-10 * float(1 + x.abs().max())


@pytest.mark.parametrize("s", [0.8, 0.0])
def test_the_singlestep_step_from_pure_noise_has_no_middle(s: float) -> None:
    """It is one of order 1 with one evaluation, whether it ends on clean data or before."""
    net, x = counted(Straight()), normal(4, 2)
    with torch.no_grad():
        got, _ = DPMSolverPP2S().step(net, x, 1.0, s)
        assert net.net.images == len(x)
        want, _ = DPMSolverPP(1).step(net, x, 1.0, s)
        ones = torch.ones(4, dtype=torch.float64)
        batch, _ = DPMSolverPP2S().step(net, x, ones, s * ones)
    assert largest(got, want) < 1e-12
    assert largest(batch, want) < 1e-12


def test_short_grids_end_with_lower_orders() -> None:
    """Of 8 steps the last is of order 1 and the one before of order 2; of 20 steps none."""
    p = VP()
    for n, same in ((8, 6), (20, 20)):
        times = grids.uniform(n, 0.9, 0.1)
        x = normal(4, 2)
        carry = other = None
        whole, lower = x, x
        for k, (t, s) in enumerate(zip(times.tolist(), times.tolist()[1:], strict=False)):
            before, past = lower, other
            whole, carry = DPMSolverPP(3).step(mixture(p), whole, t, s, carry=carry)
            lower, other = DPMSolverPP(3, steps=n).step(mixture(p), lower, t, s, carry=other)
            assert torch.equal(whole, lower) == (k < same)
            if k == 6 and n == 8:
                two, _ = DPMSolverPP(2).step(mixture(p), before, t, s, carry=past)
                assert largest(two, lower) < 1e-14
            if k == 7 and n == 8:
                one, _ = DPMSolverPP(1).step(mixture(p), before, t, s)
                assert largest(one, lower) < 1e-14


def test_what_the_multistep_solvers_refuse() -> None:
    for bad in ({"order": 4}, {"order": 2, "legacy": True}, {"steps": -1}):
        with pytest.raises(UsageError, match=r"allowed are 1, 2 and 3|needs steps >= 0"):
            DPMSolverPP(**bad)
    for solver in (DPMSolverPP(), DPMSolverPP2S()):
        with pytest.raises(UsageError, match="log-SNR is infinite on clean data"):
            solver.check(VP(), [0.0, 0.5])
