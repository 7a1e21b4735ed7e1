"""Grids: exact values of the programs that they are named after, and what they refuse."""

import pytest
import torch

from fewstep.errors import UsageError
from fewstep.process import EDM, VE, VP, Cosine, Process, Tabulated
from fewstep.solvers import grids

EXACT = {
    ("respace", 10): [0, 111, 222, 333, 444, 555, 666, 777, 888, 999],
    ("linspace", 10): [0, 111, 222, 333, 444, 555, 666, 777, 888, 999],
    ("leading", 10): [0, 100, 200, 300, 400, 500, 600, 700, 800, 900],
    ("trailing", 10): [99, 199, 299, 399, 499, 599, 699, 799, 899, 999],
    ("trailing", 7): [142, 285, 428, 570, 713, 856, 999],
    ("trailing", 3): [332, 666, 999],
    ("trailing", 1): [999],
    ("quadratic", 10): [0, 9, 39, 88, 158, 246, 355, 483, 632, 800],
    ("respace", 1): [0],
}


@pytest.mark.parametrize(("spacing", "n"), EXACT)
def test_exact_values(spacing: str, n: int) -> None:
    kept = EXACT[spacing, n]
    assert grids.SPACINGS[spacing](1000, n) == kept
    want = [(i + 1) / 1000 for i in reversed(kept)] + [0.0]
    assert grids.strided(n, spacing).tolist() == want


def test_fifty_respaced_steps() -> None:
    kept = grids.respace(1000, 50)
    assert (kept[:4], kept[-3:]) == ([0, 20, 41, 61], [958, 979, 999])


@pytest.mark.parametrize(("n", "stride"), [(50, 20), (30, 34), (7, 143), (25, 40)])
def test_ddim_strides(n: int, stride: int) -> None:
    assert grids.respace(1000, f"ddim{n}") == list(range(0, 1000, stride))


def test_sections() -> None:
    kept = grids.respace(1000, "10,15,20")
    assert len(kept) == 45
    assert (kept[0], kept[9], kept[10], kept[24], kept[25], kept[-1]) == (
        0,
        333,
        334,
        666,
        667,
        999,
    )


def test_the_sections_of_the_published_bedroom_model() -> None:
    """Each fifth of the table has its share of the 250 steps, from low noise to high."""
    kept = torch.tensor(grids.respace(1000, "90,60,60,20,20"))
    assert kept.div(200, rounding_mode="floor").bincount().tolist() == [90, 60, 60, 20, 20]
    assert (int(kept[0]), int(kept[-1])) == (0, 999)


@pytest.mark.parametrize(("n", "steps"), [(30, 31), (300, 334), (600, 1000), (20, 20)])
def test_the_uniform_subset_may_hold_more(n: int, steps: int) -> None:
    assert len(grids.strided(n, "uniform")) == steps + 1


@pytest.mark.parametrize(("n", "left"), [(50, 49), (100, 96), (1000, 688)])
def test_the_quadratic_subset_drops_duplicates_with_a_warning(n: int, left: int) -> None:
    with pytest.warns(UserWarning, match=f"{n} steps asked for, {left} different"):
        assert len(grids.strided(n, "quadratic")) == left + 1


def test_the_quadratic_subset_truncates_as_the_program_does() -> None:
    """32 i^2 / 9 is whole at every third i: floating point puts some of them just below."""
    want = [0, 3, 14, 31, 56, 88, 127, 174, 227, 287, 355, 430, 511, 600, 696, 800]
    assert grids.ddim_quadratic(1000, 16) == want
    assert any(w < 32 * i * i // 9 for i, w in enumerate(want))


@pytest.mark.parametrize("spacing", grids.SPACINGS)
def test_every_spacing_rises_without_repeats(spacing: str) -> None:
    for n in (1, 2, 4, 5, 8):
        kept = grids.SPACINGS[spacing](100, n)
        assert kept == sorted(set(kept))
        assert 0 <= kept[0] <= kept[-1] < 100


@pytest.mark.parametrize("p", [VP(), Cosine(), VE(), EDM(), Tabulated()], ids=str)
@pytest.mark.parametrize("make", [grids.karras, grids.logsnr])
@pytest.mark.parametrize("n", [1, 2, 18])
def test_grids_of_noise_levels_fall_to_clean(p: Process, make: object, n: int) -> None:
    times = make(p, n)  # pyright: ignore[reportCallIssue] -- both kinds
    assert times.shape == (n + 1,)
    assert times.dtype == torch.float64
    assert bool((times.diff() < 0).all())
    assert float(times[-1]) == 0.0
    top = min(80.0, p.sigma(1.0) / p.alpha(1.0))
    assert p.sigma(float(times[0])) / p.alpha(float(times[0])) == pytest.approx(top, rel=1e-6)


def test_karras_is_the_papers_formula() -> None:
    p, n, rho = EDM(), 18, 7.0
    want = [
        (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
        for i in range(n)
    ]
    got = grids.karras(p, n) * 80
    assert got[:-1].tolist() == pytest.approx(want, rel=1e-12)
    assert (grids.logsnr(p, 5)[:-1] * 80).log().diff().std() < 1e-12


def test_an_exploding_process_ends_at_its_least_noise() -> None:
    p = VE(sigma_min=0.01)
    times = grids.logsnr(p, 10)
    assert p.sigma(float(times[-1])) == pytest.approx(0.01)
    steps = p.sigma(times).log().diff()
    assert float(steps.std()) < 1e-10


@pytest.mark.parametrize("spacing", grids.SPACINGS)
@pytest.mark.parametrize("n", [0, -1, 1001])
def test_refuses_counts_that_do_not_exist(spacing: str, n: int) -> None:
    with pytest.raises(UsageError, match=r"1000|must be in"):
        grids.strided(n, spacing)


def test_refuses_other_bad_grids() -> None:
    with pytest.raises(UsageError, match=r'"trailng": allowed are .*did you mean "trailing"'):
        grids.strided(10, "trailng")
    with pytest.raises(UsageError, match="must be at least 1"):
        grids.uniform(0)
    with pytest.raises(UsageError, match="end < start"):
        grids.uniform(3, 0.2, 0.5)
    with pytest.raises(UsageError, match="must be at least 1"):
        grids.karras(VP(), 0)
    with pytest.raises(UsageError, match=r"noise levels 2\.\.1"):
        grids.karras(VP(), 3, low=2, high=1)
    with pytest.raises(UsageError, match="rho"):
        grids.karras(VP(), 3, rho=0.0)
    with pytest.raises(UsageError, match="step 2 of the grid: index 5 does not rise above 7"):
        grids.from_indices([1, 7, 5])
    with pytest.raises(UsageError, match=r"step 1 of the grid: index 1000 is outside 0\.\.999"):
        grids.from_indices([1, 1000])
    with pytest.raises(UsageError, match="section 0 has 500 steps, not 501"):
        grids.respace(1000, "501,1")
    with pytest.raises(UsageError, match="respacing count 'x'"):
        grids.respace(1000, "ddimx")
    with pytest.raises(UsageError, match="respacing count '²'"):
        grids.respace(1000, "10,²")
    with pytest.raises(UsageError, match="no whole stride takes exactly 400"):
        grids.respace(1000, "ddim400")
