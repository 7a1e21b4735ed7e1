"""Laws of UniPC: the paper's linear systems, its relatives, and where it does not correct."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.process import EDM, VP, Process, Tabulated
from fewstep.solvers import DPMSolverPP, UniPC, grids
from laws.cases import PROCESSES, Straight, largest, mixture, normal, walk

every_process = pytest.mark.parametrize("p", PROCESSES, ids=str)
LAM = (-1.5, -0.9, -0.5, 0.3)  # ln(alpha / sigma)


def paper(
    ratio: float, alpha: float, x: Tensor, m: list[Tensor], lam: list[float], end: float, bh: str
) -> Tensor:
    """Return the step of the paper: m[0] at lam[0], its start, and other points at lam[1:].

    sum_j rho_j r_j^(k - 1) = k! hh phi_(k + 1) / B for k = 1 .. q, with rho = 1/2 for q = 1.
    """
    h = end - lam[0]
    hh = -h
    b = hh if bh == "bh1" else math.expm1(hh)
    r = [(u - lam[0]) / h for u in lam[1:]]
    d = [(v - m[0]) / q for v, q in zip(m[1:], r, strict=True)]
    phi, right = math.expm1(hh) / hh, []
    for k in range(1, len(r) + 1):
        phi = (phi - 1 / math.factorial(k)) / hh
        right.append(math.factorial(k) * hh * phi / b)
    rho = [0.5]
    if len(r) > 1:
        rho = np.linalg.solve([[q**k for q in r] for k in range(len(r))], right).tolist()
    total = sum(c * v for c, v in zip(rho, d, strict=True)) if r else 0.0
    return ratio * x - alpha * (math.expm1(hh) * m[0] + b * total)


@every_process
@pytest.mark.parametrize("bh", ["bh1", "bh2"])
@pytest.mark.parametrize("points", [1, 2, 3])
def test_three_steps_are_the_papers(p: Process, bh: str, points: int) -> None:
    """Predictor with up to p points, then the corrector with one more, on unequal steps."""
    exact, solver = mixture(p), UniPC(points, bh)
    t = [p.time(2 * u) for u in LAM]
    x = start = normal(4, 2) * p.prior_std(t[0])
    guess, carry, seen = start, None, []
    for k in range(3):
        seen.insert(0, exact(guess, t[k]).x0)
        at = [LAM[k - j] for j in range(k + 1)]
        if k:  # correct x at t[k] from the last corrected one, with one point more
            used = min(points, k)
            m = [seen[1], seen[0], *seen[2 : used + 1]]
            lam = [at[1], at[0], *at[2 : used + 1]]
            ratio = p.sigma(t[k]) / p.sigma(t[k - 1])
            x = paper(ratio, p.alpha(t[k]), x, m, lam, at[0], bh)
        now = min(points, k + 1)
        ratio = p.sigma(t[k + 1]) / p.sigma(t[k])
        want = paper(ratio, p.alpha(t[k + 1]), x, seen[:now], at[:now], LAM[k + 1], bh)
        got, carry = solver.step(exact, guess, t[k], t[k + 1], carry=carry)
        assert largest(got, want) < 1e-9 * float(1 + start.abs().max())
        guess = got


@every_process
def test_without_corrector_it_is_dpm_solver(p: Process) -> None:
    """UniP-1, UniP-2 (bh2) and UniP-3 are DPM-Solver++ of order 1, 2 and the corrected 3."""
    times = grids.karras(p, 12, low=0.05, high=20.0)
    x = normal(5, 2) * p.prior_std(float(times[0]))
    for points in (1, 3):
        one = walk(mixture(p), x, times, DPMSolverPP(points))
        # the second of the three points' steps is UniP-2, which is DPM-Solver++(2M) in bh2
        two = walk(mixture(p), x, times, UniPC(points, corrector=False))
        assert largest(one, two) < 1e-12 * float(1 + x.abs().max())
    one = walk(mixture(p), x, times, DPMSolverPP(2))
    assert largest(one, walk(mixture(p), x, times, UniPC(2, corrector=False))) < 1e-12 * float(
        1 + x.abs().max()
    )
    other = walk(mixture(p), x, times, UniPC(2, "bh1", corrector=False))
    assert largest(one, other) > 1e-6


def test_the_corrector_saves_steps() -> None:
    """At the same 40 evaluations each point and each correction brings the result nearer."""
    p = EDM()
    times = p.time(torch.linspace(-2 * math.log(10), 4, 41, dtype=torch.float64))
    fine = p.time(torch.linspace(-2 * math.log(10), 4, 641, dtype=torch.float64))
    x = 10 * normal(64, 2)
    want = walk(mixture(p), x, fine, UniPC(3))
    plain, two, three = (
        float((walk(mixture(p), x, times, s) - want).norm())
        for s in (UniPC(2, corrector=False), UniPC(2), UniPC(3))
    )
    assert three < two < plain / 2


def test_a_grid_that_ends_clean_and_one_that_starts_blind() -> None:
    """The last step returns x0 of the uncorrected x; pure noise has no lam to bend with."""
    times = grids.uniform(6)
    for p in (VP(), Tabulated(zero_terminal_snr=True)):
        x, carry = normal(4, 2), None
        for t, s in pairwise(times.tolist()):
            before = x
            x, carry = UniPC(3).step(mixture(p), x, t, s, carry=carry)
            assert x.isfinite().all()
        assert torch.equal(x, p.alpha(0.0) * mixture(p)(before, float(times[-2])).x0)
        assert carry is None


@pytest.mark.parametrize("bh", ["bh1", "bh2"])
def test_the_step_from_pure_noise_is_not_corrected(bh: str) -> None:
    exact, x = mixture(Straight()), normal(4, 2)
    first, carry = UniPC(2, bh).step(exact, x, 1.0, 0.8)
    second, _ = UniPC(2, bh).step(exact, first, 0.8, 0.5, carry=carry)
    plain, _ = UniPC(1, bh).step(exact, first, 0.8, 0.5)
    assert largest(second, plain) < 1e-12


def test_the_last_steps_take_fewer_points() -> None:
    """And corrections follow them: older predictions than the step had change nothing."""
    p, times = VP(), grids.uniform(6, 0.9, 0.1)
    x, carry, other = normal(4, 2), None, None
    whole = lower = x
    for k, (t, s) in enumerate(pairwise(times.tolist())):
        whole, carry = UniPC(3).step(mixture(p), whole, t, s, carry=carry)
        lower, other = UniPC(3, steps=6).step(mixture(p), lower, t, s, carry=other)
        assert torch.equal(whole, lower) == (k < 4)
        assert other.points == (1, 2, 3, 3, 2, 1)[k]
        if k == 4:
            short = other._replace(past=other.past._replace(nodes=other.past.nodes[:2]))
            end = UniPC(3, steps=6).step(mixture(p), lower, s, 0.05, carry=short)[0]
            same = UniPC(3, steps=6).step(mixture(p), lower, s, 0.05, carry=other)[0]
            assert torch.equal(end, same)


def test_what_unipc_refuses() -> None:
    with pytest.raises(UsageError, match="allowed are 1, 2 and 3"):
        UniPC(4)
    with pytest.raises(UsageError, match="allowed are bh1 and bh2"):
        UniPC(2, "bh3")
    with pytest.raises(UsageError, match="must be at least 0"):
        UniPC(steps=-1)
    with pytest.raises(UsageError, match="infinite on clean data"):
        UniPC().check(VP(), [0.0, 0.5])
