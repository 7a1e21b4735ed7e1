"""Laws of Euler's and Heun's methods in the time of the process itself."""

import math

import pytest
import torch

from fewstep.errors import UsageError
from fewstep.exact import Gaussian
from fewstep.process import EDM, VP, Cosine, Process
from fewstep.solvers import Euler, Heun, Solver
from laws.cases import largest, mixture, normal, walk


@pytest.mark.parametrize("p", [VP(), Cosine()], ids=str)
@pytest.mark.parametrize("solver", [Euler("t"), Heun("t")], ids=str)
def test_the_declared_order_is_the_measured_order(p: Process, solver: Solver) -> None:
    """From t = 0.9 to 0.1 on Gaussian data, where the factor of one to the other is known."""
    exact, c = Gaussian(p, torch.zeros(1, dtype=torch.float64), 0.5), 0.5
    (a, b), (alpha, sigma) = p.levels(0.9), p.levels(0.1)
    want = math.hypot(c * float(alpha), float(sigma)) / math.hypot(c * float(a), float(b))
    one = torch.ones(1, 1, dtype=torch.float64)
    errors = [
        abs(float(walk(exact, one, torch.linspace(0.9, 0.1, n + 1).double(), solver)) - want)
        for n in (80, 160)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.1)


@pytest.mark.parametrize("kind", [Euler, Heun])
def test_where_t_is_the_ratio_nothing_changes(kind: type[Euler] | type[Heun]) -> None:
    """EDM: alpha = 1, sigma = 80 t."""
    p, times = EDM(), torch.tensor([0.5, 0.1, 0.02, 0.0], dtype=torch.float64)
    x = normal(4, 2) * 40
    assert (
        largest(walk(mixture(p), x, times, kind("t")), walk(mixture(p), x, times, kind())) < 1e-12
    )


@pytest.mark.parametrize("kind", [Euler, Heun])
def test_what_is_refused(kind: type[Euler] | type[Heun]) -> None:
    """Another word; encoding from clean data, where dx/dt may be infinite."""
    with pytest.raises(UsageError, match='variable "time": allowed are ratio and t'):
        kind("time")  # pyright: ignore[reportArgumentType] -- on purpose
    with pytest.raises(UsageError, match="may be infinite on clean data"):
        kind("t").check(VP(), [0.0, 0.5])
    kind().check(VP(), [0.0, 0.5])


@pytest.mark.parametrize("solver", [Euler("t"), Heun("t")], ids=str)
def test_a_batch_of_times_is_that_many_steps(solver: Solver) -> None:
    p, x = VP(), normal(3, 2)
    t, s = torch.tensor([0.9, 0.5, 0.2]).double(), torch.tensor([0.6, 0.3, 0.0]).double()
    got, _ = solver.step(mixture(p), x, t, s)
    for i in range(3):
        want, _ = solver.step(mixture(p), x[i : i + 1], float(t[i]), float(s[i]))
        assert largest(got[i : i + 1], want) < 1e-12
