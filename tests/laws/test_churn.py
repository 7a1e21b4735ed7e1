"""Laws of the sampler with churn: its spread on a Gaussian, and what it is without churn."""

import math

import pytest
import torch

from fewstep.errors import UsageError
from fewstep.exact import Gaussian
from fewstep.process import EDM, VP, Process, Tabulated
from fewstep.solvers import Heun, HeunChurn, grids
from laws.cases import PROCESSES, largest, mixture, normal, steps_of, walk

C = 0.5


def spread(p: Process, solver: HeunChurn, n: int) -> float:
    """Return std / c of n steps from N(0, 80^2): every step is linear in x and in its noise."""
    exact = Gaussian(p, torch.zeros(1, dtype=torch.float64), C)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    times = grids.karras(p, n)
    var = float(p.sigma(float(times[0]))) ** 2
    for t, s in steps_of(times):
        gain, _ = solver.step(exact, one, t, s, noise=torch.zeros_like)
        fresh, _ = solver.step(exact, zero, t, s, noise=torch.ones_like)
        var = var * float(gain) ** 2 + float(fresh) ** 2
    return math.sqrt(var) / C


@pytest.mark.parametrize(
    ("n", "plain", "churned", "unit"),
    [(18, 1.055, 1.128, 1.125), (40, 1.0098, 1.041, 1.037), (256, 1.0002, 1.0050, 1.0020)],
)
def test_the_spread_of_gaussian_data(n: int, plain: float, churned: float, unit: float) -> None:
    """Figures worked out apart, without churn, at S_noise 1.003 and at 1."""
    p = EDM()
    assert spread(p, HeunChurn(0.0), n) == pytest.approx(plain, abs=6e-4)
    assert spread(p, HeunChurn(steps=n), n) == pytest.approx(churned, abs=6e-4)
    assert spread(p, HeunChurn(steps=n, scale=1.0), n) == pytest.approx(unit, abs=6e-4)


def test_the_spread_is_the_same_along_another_process() -> None:
    """VP reaches sigma / alpha = 150 and takes the same levels: t is a label."""
    solver = HeunChurn(steps=40)
    p = VP()
    alpha = float(p.alpha(float(grids.karras(p, 40)[0])))
    scaled = spread(p, solver, 40)
    # a start of spread sigma is one of 80 in x / alpha, and clean data has alpha = 1
    assert p.sigma(float(grids.karras(p, 40)[0])) / alpha == pytest.approx(80.0)
    assert scaled == pytest.approx(spread(EDM(), solver, 40), abs=1e-9)


@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_without_churn_it_is_heun_bit_for_bit(p: Process) -> None:
    times = grids.karras(p, 6, low=0.05, high=20.0)
    x = normal(4, 2) * p.prior_std(float(times[0]))
    solver = HeunChurn(0.0)
    assert not solver.stochastic
    assert torch.equal(walk(mixture(p), x, times, solver), walk(mixture(p), x, times, Heun()))


def test_the_share_is_limited_and_ends_with_the_range() -> None:
    """gamma = min(churn / steps, sqrt 2 - 1) within low..high, and r' within the process."""
    p = EDM(80.0)
    for r, solver, want in (
        (1.0, HeunChurn(1.0, 10), 1.1),
        (1.0, HeunChurn(1.0, 1), math.sqrt(2)),
        (0.04, HeunChurn(), 0.04),
        (51.0, HeunChurn(), 51.0),
        (70.0, HeunChurn(1.0, 1, high=math.inf), 80.0),
    ):
        x, s = torch.zeros(1, 1, dtype=torch.float64), r / 80 / 2
        flat = Gaussian(p, torch.zeros(1, dtype=torch.float64), 1e9)  # x0 = x: no step moves
        unit = 1.0 if want == r else solver.scale
        got, _ = solver.step(flat, x, r / 80, s, noise=torch.ones_like)
        assert largest(got, unit * math.sqrt(want**2 - r**2)) < 1e-6


def test_what_churn_refuses() -> None:
    for bad in ({"churn": -1.0}, {"steps": 0}, {"low": 2.0, "high": 1.0}, {"scale": 0.0}):
        with pytest.raises(UsageError, match="needs churn >= 0"):
            HeunChurn(**bad)
    with pytest.raises(UsageError, match="cannot encode"):
        HeunChurn().check(VP(), [0.1, 0.9])
    with pytest.raises(UsageError, match="no signal is left"):
        HeunChurn().check(Tabulated(zero_terminal_snr=True), [1.0, 0.5])
