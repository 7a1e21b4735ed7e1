"""Laws of every process: one clock, two forms of a number, and DDPM's table thinned."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from fewstep import process, shapes, solvers
from fewstep.process import Cosine, Process, Tabulated
from fewstep.reverse import posterior
from fewstep.solvers import grids
from laws.cases import PROCESSES, largest, mixture

TIMES = torch.linspace(0.001, 0.999, 257, dtype=torch.float64)
every_process = pytest.mark.parametrize("p", PROCESSES, ids=str)


@every_process
def test_time_is_the_inverse_of_logsnr(p: Process) -> None:
    back = p.time(p.logsnr(TIMES))
    assert largest(back, TIMES) < 1e-9
    for t in (0.001, 0.1, 0.37, 0.999):
        assert p.time(p.logsnr(t)) == pytest.approx(t, abs=1e-9)


@every_process
def test_time_survives_single_precision(p: Process) -> None:
    """Training draws log-SNRs in float32: the inverse must not cancel at low noise."""
    ratio = torch.tensor([0.002, 0.02, 0.05, 0.3, 1.0, 4.0])
    ratio = ratio[ratio > p.sigma(0.0) / p.alpha(0.0)]
    t = p.time(-2 * ratio.log())
    back = p.sigma(t.double()) / p.alpha(t.double())
    assert float((back / ratio - 1).abs().max()) < 1e-3


@every_process
def test_a_float_and_a_tensor_of_times_agree(p: Process) -> None:
    for f in (p.alpha, p.sigma, p.logsnr):
        one_by_one = torch.tensor([f(t) for t in TIMES.tolist()], dtype=torch.float64)
        assert largest(f(TIMES), one_by_one) < 1e-12
    edge = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert largest(p.sigma(edge), edge.new_tensor([p.sigma(0.0), p.sigma(1.0)])) < 1e-12


@every_process
def test_noise_only_grows(p: Process) -> None:
    logsnr = p.logsnr(TIMES)
    assert bool((logsnr.diff() < 0).all())
    assert bool((p.sigma(TIMES).diff() > 0).all())
    assert bool((p.alpha(TIMES).diff() <= 0).all())


@every_process
def test_the_circle_or_the_line(p: Process) -> None:
    """A process keeps the variance of unit data at 1, or keeps the signal at 1."""
    square = p.alpha(TIMES) ** 2 + p.sigma(TIMES) ** 2
    line = largest(p.alpha(TIMES), 1.0) == 0
    assert line or largest(square, 1.0) < 1e-14
    assert p.prior_std(1.0) == pytest.approx(math.hypot(p.alpha(1.0), p.sigma(1.0)), rel=1e-14)


@every_process
def test_a_process_comes_back_from_its_description(p: Process) -> None:
    assert process.from_description(p.describe()) == p


def test_linear_vp_is_the_limit_of_the_linear_table() -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    fine = Tabulated("linear", steps=20_000)
    assert largest(fine.alpha(t), process.VP().alpha(t)) < 2e-3


# Kept subsets of T = 1000 from the spacings that reach some of its corners.
SUBSETS = [
    grids.respace(1000, 10),
    grids.respace(1000, "20,10,5"),
    grids.ddim_uniform(1000, 30),
    grids.ddim_quadratic(1000, 10),
    grids.trailing(1000, 7),
]


@pytest.mark.parametrize("kept", SUBSETS, ids=lambda k: f"{len(k)} steps")
def test_a_thinned_chain_keeps_the_alpha_bar_of_the_full_one(kept: list[int]) -> None:
    """cumprod(1 - beta') = alpha-bar[tau], with beta' the variance that the solvers use."""
    p = Tabulated()
    times = grids.from_indices(kept).tolist()
    pairs = list(itertools.pairwise(times))[::-1]
    beta = torch.tensor([posterior(p, t, s)[0] for t, s in pairs], dtype=torch.float64)
    assert largest((1 - beta).cumprod(0), p.alpha_bar[kept]) < 1e-12


@pytest.mark.parametrize("kept", SUBSETS, ids=lambda k: f"{len(k)} steps")
def test_the_posterior_variance_of_a_subset(kept: list[int]) -> None:
    """tilde = (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s), from the table alone."""
    p = Tabulated()
    bar = p.alpha_bar[kept].tolist()
    times = grids.from_indices(kept).tolist()[::-1]
    for k in range(1, len(kept)):
        want = (1 - bar[k - 1]) / (1 - bar[k]) * (1 - bar[k] / bar[k - 1])
        assert posterior(p, times[k + 1], times[k])[1] == pytest.approx(want, abs=1e-12)


def test_all_steps_give_back_the_betas() -> None:
    p = Tabulated("cosine", steps=200)
    times = grids.from_indices(grids.respace(200, 200), 200).tolist()
    beta = [posterior(p, t, s)[0] for t, s in itertools.pairwise(times)]
    assert largest(torch.tensor(beta[::-1], dtype=torch.float64), p.beta) < 1e-12


@pytest.mark.parametrize("betas", ["linear", "cosine"])
def test_zero_terminal_snr_keeps_the_first_root_and_empties_the_last(betas: str) -> None:
    p = Tabulated(betas)
    q = replace(p, zero_terminal_snr=True)
    root, rescaled = p.alpha_bar.sqrt(), q.alpha_bar.sqrt()
    assert float(rescaled[0]) == pytest.approx(float(root[0]), abs=1e-14)
    assert float(rescaled[-1]) == 0.0
    assert bool((rescaled.diff() < 0).all())
    assert q.alpha(1.0) < 1e-15
    want = (root - root[-1]) * root[0] / (root[0] - root[-1])
    assert largest(rescaled, want) < 1e-15
    assert largest((1 - q.beta).cumprod(0), q.alpha_bar) < 1e-12


def test_the_terminal_signal_of_the_published_tables() -> None:
    root = Tabulated().alpha_bar.sqrt()
    for index, want in ((999, 0.00635), (949, 0.0104), (900, 0.0164), (800, 0.0388)):
        assert float(root[index]) == pytest.approx(want, rel=6e-3)
    cosine = Tabulated("cosine")
    assert float(cosine.alpha_bar[-1].sqrt()) == pytest.approx(4.9e-5, rel=1e-2)
    assert cosine.sigma(1.0) / cosine.alpha(1.0) == pytest.approx(20291, rel=1e-3)


def test_the_constants_of_the_published_tables() -> None:
    """Where the linear and the cosine table of 1000 and 4000 steps begin and end."""
    tables = {(b, n): Tabulated(b, n) for b in ("linear", "cosine") for n in (1000, 4000)}
    last = {k: float(p.alpha_bar[-1]) for k, p in tables.items()}
    assert last["linear", 1000] == pytest.approx(4.03583e-5, rel=1e-6)
    assert last["linear", 4000] == pytest.approx(4.24665e-5, rel=1e-6)
    assert last["cosine", 1000] == pytest.approx(2.42877e-9, rel=2e-6)
    assert last["cosine", 4000] == pytest.approx(1.518e-10, rel=1e-4)
    cosine = tables["cosine", 1000]
    assert float(cosine.alpha_bar[-2]) == pytest.approx(2.42877e-6, rel=2e-6)
    assert float(cosine.beta[0]) == pytest.approx(4.12842e-5, rel=1e-6)
    assert float(tables["cosine", 4000].beta[0]) == pytest.approx(9.8658e-6, rel=2e-6)
    assert (cosine.beta >= 0.999).tolist() == [False] * 999 + [True]
    assert int((cosine.alpha_bar >= 0.5).sum()) == 496


def test_the_linear_process_is_that_of_the_paper() -> None:
    """beta(t) = 0.1 + 19.9 t: log alpha = -19.9 t^2 / 4 - 0.1 t / 2."""
    log = -19.9 / 4 * TIMES**2 - 0.1 / 2 * TIMES
    p = process.VP()
    assert largest(p.alpha(TIMES), log.exp()) < 1e-12
    assert largest(p.sigma(TIMES), (-torch.expm1(2 * log)).sqrt()) < 1e-12


def test_the_variance_of_a_stride_is_not_that_of_a_step() -> None:
    """20 steps of the linear table at once, from index 500: 0.1766, where one step has 0.0101."""
    p = Tabulated()
    assert posterior(p, 0.501, 0.481)[1] == pytest.approx(0.1766, abs=5e-5)
    assert posterior(p, 0.501, 0.5)[1] == pytest.approx(0.0101, abs=5e-5)


def test_exponentials_of_floats_overflow_as_those_of_tensors_do() -> None:
    assert shapes.exp(710.0) == math.inf == float(shapes.exp(torch.tensor(710.0)))
    assert shapes.exp(709.0) == math.exp(709.0)
    assert math.isnan(shapes.exp(math.nan))
    assert process.EDM().time(-2000.0) == math.inf


def test_the_cosine_never_passes_zero() -> None:
    """An angle that rounding leaves above pi / 2 has the cosine of pi / 2, in both forms."""
    for angle in (math.pi / 2, math.nextafter(math.pi / 2, 2.0)):
        assert shapes.cos(angle) == math.cos(math.pi / 2)
        assert float(shapes.cos(torch.tensor(angle).double())) == math.cos(math.pi / 2)
    assert float(shapes.cos(torch.tensor(math.pi / 2))) == pytest.approx(6.1e-17, rel=0.01)


def test_a_coefficient_that_broadcasts_already_is_cast_and_checked() -> None:
    x = torch.zeros(3, 2)
    for shape in ((3, 1), (1, 1), (3, 2)):
        c = shapes.like(torch.ones(shape, dtype=torch.float64), x)
        assert (c.shape, c.dtype) == (shape, x.dtype)
    for shape, batch in (((2, 1), x), ((3,), torch.zeros(2)), ((3, 3), x)):
        with pytest.raises(ValueError, match="does not fit a batch"):
            shapes.like(torch.ones(shape), batch)


@pytest.mark.parametrize("p", [Cosine(0.0), Tabulated(zero_terminal_snr=True)], ids=str)
def test_there_is_no_negative_signal_in_single_precision(p: Process) -> None:
    """float32 rounds pi / 2 up: alpha, log-SNR and a solver's step from there stay finite."""
    t, s = torch.ones(3), torch.full((3,), 0.8)
    assert float(p.alpha(t)[0]) == pytest.approx(float(p.alpha(1.0)), rel=1e-6)
    assert bool(torch.as_tensor(p.logsnr(t)).isfinite().all())
    for solver in (solvers.DPMSolverPP(3), solvers.UniPC(3)):
        x = torch.ones(3, 2)
        y, carry = solver.step(mixture(p), x, t, s)
        y, _ = solver.step(mixture(p), y, s, s - 0.3, carry=carry)
        assert bool(y.isfinite().all())
