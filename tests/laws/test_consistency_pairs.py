"""Laws of the pairs of a consistency objective: curricula, grids of levels and the easy map."""

from itertools import pairwise

import pytest
import torch

from fewstep.distill.curriculum import Doubling, Fixed, Growing
from fewstep.distill.pairs import Easy, OnGrid
from fewstep.errors import UsageError
from fewstep.process import EDM as EDMProcess
from fewstep.process import Cosine, Process, Tabulated
from laws.cases import generator, largest

every_process = pytest.mark.parametrize("p", [Cosine(), EDMProcess(), Tabulated()], ids=str)


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
    levels = law.levels(p, 0)
    share = law.shares(levels)
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
     lambda: OnGrid(normal=(0.0, 0.0)), lambda: Easy(0), lambda: Easy(1, q=1.0)],
)  # fmt: skip
def test_bad_numbers_are_refused(make) -> None:
    with pytest.raises(UsageError):
        make()
