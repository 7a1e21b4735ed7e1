"""Laws of Langevin steps within a grid: published algorithms step by step, and what they reach."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.exact import Gaussian, Mixture
from fewstep.langevin import annealed, epsilon_of, ladder, score_of, step_sizes
from fewstep.process import EDM, VE, VP, Cosine, Process, Tabulated
from fewstep.solvers import DDIM, DDPM, Noise, PredictorCorrector, UniPC, grids, nfe, sample
from laws.cases import counted, generator, largest, mixture, normal, walk

P = VE(0.1, 20.0)
TWO = torch.tensor([[-5.0, -5.0], [5.0, 5.0]], dtype=torch.float64)


def source(seed: int = 0) -> Noise:
    """Return noise for all samples from one generator."""
    draw = generator(seed)
    return lambda x: torch.randn(x.shape, generator=draw, dtype=x.dtype)


def test_without_predictor_it_is_annealed_langevin_dynamics():
    """L levels of a VE process in L - 1 steps, T at each, and the denoising: move for move."""
    x, each, snr = 20 * normal(50, 2), 4, 0.3
    solver = PredictorCorrector(None, each, snr, "level")
    sigmas = ladder.geometric(P.sigma_max, P.sigma_min, 12)
    steps = step_sizes(sigmas, epsilon_of(snr, P.sigma_min))
    *_, end = annealed(score_of(mixture(P)), sigmas, steps, x, source(), each)
    got = walk(mixture(P), x, grids.uniform(11), solver, noise=source())
    assert largest(got, end.x) < 1e-9
    plain = PredictorCorrector(None, each, snr, "level", denoise=False)
    *_, end = annealed(score_of(mixture(P)), sigmas, steps, x, source(), each, denoise=False)
    assert largest(walk(mixture(P), x, grids.uniform(11), plain, noise=source()), end.x) < 1e-9


def reverse_diffusion(x: Tensor, sigmas: list[float], snr: float, rule: str) -> Tensor:
    """Follow score_sde's loop for VE: corrector, then predictor, N levels, the last mean kept."""
    noise, model, mean = source(), mixture(P), x
    for sigma, lower in pairwise([*sigmas, 0.0]):
        t = P.time(-2 * math.log(sigma))
        for kind in ("corrector", "predictor"):
            s, z = model(x, t).score, noise(x)
            if kind == "corrector":
                ratio = (
                    z.norm(dim=1) / s.norm(dim=1)
                    if rule == "norm"
                    else torch.tensor([sigma], dtype=torch.float64).double()
                )
                a = (2 * (snr * ratio) ** 2).reshape(-1, 1)
                x = x + a * s + (2 * a).sqrt() * z
            else:
                mean = x + (sigma**2 - lower**2) * s
                x = mean + math.sqrt(sigma**2 - lower**2) * z
    return mean


@pytest.mark.parametrize("rule", ["norm", "level"])
def test_it_is_the_published_loop(rule: str):
    x = 20 * normal(50, 2)
    sigmas = ladder.geometric(P.sigma_max, P.sigma_min, 12).tolist()
    want = reverse_diffusion(x, sigmas, 0.16, rule)
    got = walk(mixture(P), x, grids.uniform(11), PredictorCorrector(rule=rule), noise=source())
    assert largest(got, want) < 1e-9


def test_a_process_that_ends_clean_makes_the_same_steps():
    """EDM on the levels and then clean: L steps; the last one is the denoising."""
    x = 20 * normal(50, 2)
    sigmas = ladder.geometric(P.sigma_max, P.sigma_min, 12)
    q = EDM()
    times = torch.cat([q.time(-2 * sigmas.log()), torch.zeros(1, dtype=torch.float64)])
    for solver in (PredictorCorrector(), PredictorCorrector(None, 3, 0.3, "level")):
        one = walk(mixture(P), x, grids.uniform(11), solver, noise=source())
        two = walk(mixture(q), x, times, solver, noise=source())
        assert largest(one, two) < 1e-9


@pytest.mark.parametrize("q", [VP(), Cosine(), Tabulated()], ids=str)
@pytest.mark.parametrize(
    "solver",
    [PredictorCorrector(None, 2, 0.3, "level"), PredictorCorrector(DDIM())],
    ids=["annealed", "ddim"],
)
def test_any_process_makes_the_same_steps(q: Process, solver: PredictorCorrector):
    """In x / alpha, through the same ratios sigma / alpha."""
    sigmas, x = ladder.geometric(20.0, 0.1, 9), 20 * normal(20, 2)
    one, two = EDM(), q
    ends = [
        walk(
            mixture(p), x * p.alpha(float(times[0])), times, solver, noise=source()
        ) / p.alpha(float(times[-1]))
        for p in (one, two)
        for times in [p.time(-2 * sigmas.log())]
    ]  # fmt: skip
    assert largest(*ends) < 1e-8


@pytest.mark.parametrize(("steps", "each"), [(9, 100), (19, 50)])
def test_it_finds_the_weights_of_modes(steps: int, each: int):
    """Of 0.2 and 0.8: 0.50 is what chains without annealing find (test_langevin)."""
    model = Mixture(P, TWO, 1.0, weights=torch.tensor([0.2, 0.8], dtype=torch.float64))
    x = 16 * torch.rand(4000, 2, generator=generator(1), dtype=torch.float64) - 8
    solver = PredictorCorrector(None, each, math.sqrt(0.05), "level")
    x = walk(model, x, grids.uniform(steps), solver, noise=source())
    heavy = x.sum(1) > 0
    assert 0.72 <= float(heavy.double().mean()) <= 0.85


def test_a_corrector_holds_the_variance_of_a_level():
    """Steps at one level keep N(0, s^2 + sigma^2) but for the widening of a fixed step."""
    s, t, snr = 0.5, 0.5, 0.2
    model = Gaussian(P, torch.zeros(1, dtype=torch.float64), s)
    v, sigma = s**2 + P.sigma(t) ** 2, P.sigma(t)
    solver = PredictorCorrector(DDIM(), 50, snr, "level", denoise=False)
    x, _ = solver.step(model, math.sqrt(v) * normal(40_000, 1), t, t, noise=source())
    delta = 2 * 2 * snr**2 * sigma**2
    assert float(x.var()) == pytest.approx(v / (1 - delta / (4 * v)), rel=0.03)


def test_evaluations_are_counted():
    """L levels of `each`, the predictor's L - 1 and the denoising."""
    d = counted(P)
    for solver, want in (
        (PredictorCorrector(None, 5, 0.3, "level"), 12 * 5 + 1),
        (PredictorCorrector(None, 5, 0.3, "level", denoise=False), 12 * 5),
        (PredictorCorrector(), 12 + 11 + 1),
        (PredictorCorrector(DDPM("small"), 2), 12 * 2 + 11 + 1),
    ):
        assert nfe(d, grids.uniform(11), solver) == want
    d = counted(VP())  # which ends clean: 11 levels
    assert nfe(d, grids.uniform(11), PredictorCorrector(None, 5, 0.3, "level")) == 11 * 5 + 1
    assert nfe(d, grids.uniform(11), PredictorCorrector()) == 11 + 11


def test_bad_settings_are_refused():
    for make in (
        lambda: PredictorCorrector(each=0),
        lambda: PredictorCorrector(snr=0.0),
        lambda: PredictorCorrector(snr=1.0),
        lambda: PredictorCorrector(snr=float("nan")),
        lambda: PredictorCorrector(rule="ald"),
        lambda: PredictorCorrector(UniPC(2)),  # would undo the Langevin steps
    ):
        with pytest.raises(UsageError):
            make()
    blind = mixture(Tabulated(zero_terminal_snr=True))
    with pytest.raises(UsageError, match="no signal is left"):
        sample(blind, (2, 2), grids.uniform(3), PredictorCorrector(None))
    with pytest.raises(UsageError, match="largest legal eta"):  # the predictor's own refusal
        sample(mixture(VP()), (2, 2), grids.uniform(3), PredictorCorrector(DDIM(1e6)))
