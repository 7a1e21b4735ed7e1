"""Laws of DEIS and iPNDM: their integrals and weights, and the orders on two kinds of grids."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.process import EDM, VP, Process, Tabulated
from fewstep.solvers import DDIM, DEIS, IPNDM, Euler, Solver, grids
from laws.cases import PROCESSES, largest, mixture, normal, truth, walk

SMOOTH = [p for p in PROCESSES if not isinstance(p, Tabulated)]
every_process = pytest.mark.parametrize("p", PROCESSES, ids=str)
LAM = (-1.5, -0.9, -0.5, -0.2, 0.3)  # ln(alpha / sigma)


def played(p: Process, solver: Solver) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return y = x / alpha before and after the fourth uneven step, and eps newest first."""
    exact, carry, seen = mixture(p), None, []
    t = [p.time(2 * u) for u in LAM]
    x = before = normal(4, 2) * p.prior_std(t[0])
    for k in range(4):
        before = x
        seen.insert(0, exact(x, t[k]).eps)
        x, carry = solver.step(exact, x, t[k], t[k + 1], carry=carry)
    return before / p.alpha(t[3]), x / p.alpha(t[4]), seen


@every_process
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_integrates_the_lagrange_polynomial_in_ln_r(p: Process, order: int) -> None:
    """w_j = int_(r_t)^(r_s) prod_i (ln r - ln r_i) / (ln r_j - ln r_i) dr, by quadrature."""
    before, after, seen = played(p, DEIS(order))
    places = [-LAM[3 - j] for j in range(order)]
    start, end = math.exp(-LAM[3]), math.exp(-LAM[4])
    at, weights = np.polynomial.legendre.leggauss(20)
    r = start + (end - start) * (at + 1) / 2
    want = before
    for j, place in enumerate(places):
        basis = np.ones_like(r)
        for other in (u for i, u in enumerate(places) if i != j):
            basis = basis * (np.log(r) - other) / (place - other)
        want = want + float((weights * basis).sum() * (end - start) / 2) * seen[j]
    assert largest(after, want) < 1e-10 * float(1 + before.abs().max())


@pytest.mark.parametrize("p", SMOOTH, ids=str)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_in_t_integrates_the_lagrange_polynomial_in_t(p: Process, order: int) -> None:
    """w_j = int_(r_t)^(r_s) prod_i (u - t_i) / (t_j - t_i) dr with u = t(r), by Simpson's rule."""
    before, after, seen = played(p, DEIS(order, "t"))
    places = [float(p.time(2 * LAM[3 - j])) for j in range(order)]
    ln_r = np.linspace(-LAM[3], -LAM[4], 2001)
    u = np.array([float(p.time(-2 * float(v))) for v in ln_r])
    simpson = np.full(2001, 2.0)
    simpson[1::2] = 4.0
    simpson[[0, -1]] = 1.0
    weights = simpson * (ln_r[1] - ln_r[0]) / 3 * np.exp(ln_r)
    want = before
    for j, place in enumerate(places):
        basis = np.ones_like(u)
        for other in (v for i, v in enumerate(places) if i != j):
            basis = basis * (u - other) / (place - other)
        want = want + float((weights * basis).sum()) * seen[j]
    assert largest(after, want) < 1e-10 * float(1 + before.abs().max())


@every_process
@pytest.mark.parametrize(
    ("points", "weights"),
    [
        (1, (1.0,)),
        (2, (1.5, -0.5)),
        (3, (23 / 12, -16 / 12, 5 / 12)),
        (4, (55 / 24, -59 / 24, 37 / 24, -9 / 24)),
    ],
)
def test_ipndm_has_the_weights_of_adams_and_bashforth(
    p: Process, points: int, weights: tuple[float, ...]
) -> None:
    before, after, seen = played(p, IPNDM(points))
    slope = sum(w * e for w, e in zip(weights, seen, strict=False))
    want = before + (math.exp(-LAM[4]) - math.exp(-LAM[3])) * slope
    assert largest(after, want) < 1e-10 * float(1 + before.abs().max())


@every_process
def test_with_one_prediction_they_are_ddim(p: Process) -> None:
    times = grids.karras(p, 8, low=0.05, high=20.0)
    x = normal(4, 2) * p.prior_std(float(times[0]))
    one, two, three, four = (
        walk(mixture(p), x, times, s) for s in (DDIM(), DEIS(1), Euler(), IPNDM(1))
    )
    assert torch.equal(two, walk(mixture(p), x, times, DEIS(1, "t")))
    assert largest(one, two) < 1e-11 * float(1 + x.abs().max())
    assert largest(three, four) < 1e-11 * float(1 + x.abs().max())


def test_ipndm_is_of_order_four_on_even_steps() -> None:
    """Its weights are those of steps even in sigma / alpha, which no sampling grid is."""
    p = EDM(10.0)
    x = 4 * normal(6, 2)
    want = truth(mixture(p), x, grids.uniform(1, 0.4, 0.1), 1024)
    a, b = (
        float((walk(mixture(p), x, grids.uniform(n, 0.4, 0.1), IPNDM()) - want).norm())
        for n in (20, 40)
    )
    c, d = (
        float((walk(mixture(p), x, grids.uniform(n, 0.4, 0.1), IPNDM(2)) - want).norm())
        for n in (20, 40)
    )
    assert b < d / 2
    assert a / b > 4
    assert c / d > 3


def test_what_they_refuse() -> None:
    with pytest.raises(UsageError, match="allowed are 1, 2, 3 and 4"):
        DEIS(5)
    with pytest.raises(UsageError, match="allowed are 1, 2, 3 and 4"):
        IPNDM(0)
    with pytest.raises(UsageError, match='basis "rho": allowed are logsnr and t'):
        DEIS(3, "rho")
    for solver in (DEIS(), DEIS(3, "t"), IPNDM()):
        with pytest.raises(UsageError, match="no noise is left"):
            solver.check(VP(), [0.0, 0.5])
        with pytest.raises(UsageError, match="no signal is left"):
            solver.check(Tabulated(zero_terminal_snr=True), [1.0, 0.5])
