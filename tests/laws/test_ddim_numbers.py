"""Numbers of DDIM and DDPM that follow from algebra alone, on the linear table of 1000 betas.

Source: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2021 (arXiv 2010.02502): the
variance that the marginals ask for, and what its sigma-hat row of tables 1 and 2 does to it.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from fewstep import guide
from fewstep.denoiser import Cond, Denoiser
from fewstep.exact import Gaussian, Mixture
from fewstep.prediction import Prediction
from fewstep.process import Cosine, Tabulated
from fewstep.shapes import Number
from fewstep.solvers import DDIM, DDPM, Solver, grids
from laws.cases import MEANS, generator, mixture, normal, uneven, walk

TABLE = Tabulated()
LINE = torch.tensor([[0.0], [1.0]], dtype=torch.float64)


class Point(Denoiser):
    """The exact denoiser of data that are one point, at 0."""

    process = TABLE

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        alpha, sigma = self.levels(x_t, t)
        return Prediction.from_x0(x_t, alpha, sigma, torch.zeros_like(x_t))


def linear(denoiser: Denoiser, solver: Solver, t: float, s: float) -> tuple[float, float]:
    """Return (k, std) of a step that is x_s = k x_t + std z."""
    quiet, _ = solver.step(denoiser, LINE, t, s, noise=torch.zeros_like)
    loud, _ = solver.step(denoiser, LINE, t, s, noise=torch.ones_like)
    return float(quiet[1] - quiet[0]), float(loud[0] - quiet[0])


def variances(
    denoiser: Denoiser, solver: Solver, times: list[float], v: float
) -> list[tuple[float, float]]:
    """Return (s, variance of x_s) for each step, starting from variance v."""
    out = []
    for t, s in itertools.pairwise(times):
        k, std = linear(denoiser, solver, t, s)
        v = k**2 * v + std**2
        out.append((s, v))
    return out


SUBSETS = {
    "uniform": grids.ddim_uniform(1000, 20),
    "quadratic": grids.ddim_quadratic(1000, 10),
    "trailing": grids.trailing(1000, 7),
    "random": torch.randperm(1000, generator=generator(3))[:15].sort().values.tolist(),
}


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("name", SUBSETS)
def test_any_eta_keeps_the_marginals_of_one_point(name: str, eta: float) -> None:
    times = grids.from_indices(SUBSETS[name]).tolist()
    start = TABLE.sigma(times[0]) ** 2
    for s, v in variances(Point(), DDIM(eta), times, start):
        assert v == pytest.approx(TABLE.sigma(s) ** 2, abs=1e-12)


def test_small_variance_keeps_the_marginals_of_one_point() -> None:
    times = grids.from_indices(SUBSETS["uniform"]).tolist()
    start = TABLE.sigma(times[0]) ** 2
    for s, v in variances(Point(), DDPM("small"), times, start):
        assert v == pytest.approx(TABLE.sigma(s) ** 2, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "ratio", "digit"),
    [(10, 32, 0.5), (20, 17, 0.5), (50, 7.9, 0.05), (100, 4.6, 0.05), (1000, 1.36, 0.005)],
)
def test_sigma_hat_leaves_too_much_noise(n: int, ratio: float, digit: float) -> None:
    """The talk's sigma-hat row: how many times the noise that is expected is left at index 0.

    32 times at 10 steps, which is why that entry of the table is 367, and 1.36 times at 1000.
    """
    times = grids.strided(n, "uniform").tolist()
    before_last = variances(Point(), DDPM("large"), times, TABLE.sigma(times[0]) ** 2)[-2]
    s, v = before_last
    assert s == pytest.approx(0.001)
    assert math.sqrt(v) / TABLE.sigma(s) == pytest.approx(ratio, abs=digit)


@pytest.mark.parametrize("c", [0.1, 0.5, 1.0, 2.0])
def test_one_step_on_gaussian_data(c: float) -> None:
    """DDIM multiplies x by (a_t a_s c^2 + s_t s_s) / (a_t^2 c^2 + s_t^2)."""
    data = Gaussian(TABLE, torch.zeros(1, dtype=torch.float64), c)
    for t, s in ((1.0, 0.9), (0.8, 0.3), (0.3, 0.001), (0.05, 0.0)):
        a_t, a_s, s_t, s_s = TABLE.alpha(t), TABLE.alpha(s), TABLE.sigma(t), TABLE.sigma(s)
        want = (a_t * a_s * c**2 + s_t * s_s) / (a_t**2 * c**2 + s_t**2)
        k, std = linear(data, DDIM(), t, s)
        assert k == pytest.approx(want, rel=1e-13, abs=1e-14)
        assert std == 0.0


STD_TABLE = {
    "uniform": (0.539, 0.748, 0.867, 0.945, 0.972, 0.997),
    "trailing": (0.525, 0.740, 0.863, 0.943, 0.971, 0.997),
}


@pytest.mark.parametrize("spacing", STD_TABLE)
def test_ddim_loses_variance_with_few_steps(spacing: str) -> None:
    """Final std / c for data N(0, c^2), c = 0.5, from N(0, 1) at 5, 10, ..., 1000 steps."""
    c = 0.5
    data = Gaussian(TABLE, torch.zeros(1, dtype=torch.float64), c)
    for n, want in zip((5, 10, 20, 50, 100, 1000), STD_TABLE[spacing], strict=True):
        times = grids.strided(n, spacing).tolist()
        _, v = variances(data, DDIM(), times, 1.0)[-1]
        assert math.sqrt(v) / c == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize(
    ("variance", "want"), [("small", 0.497), ("large", 0.501)], ids=["small", "large"]
)
def test_ddpm_on_a_gaussian_at_all_steps(variance: str, want: float) -> None:
    """Data N(0, 0.5^2), perfect eps, 1000 steps: the choice of variance barely moves the samples.

    The values were simulated with 10,000 samples, whose standard error is 0.0035; here v is exact.
    """
    data = Gaussian(TABLE, torch.zeros(1, dtype=torch.float64), 0.5)
    times = grids.strided(1000, "trailing").tolist()
    _, v = variances(data, DDPM(variance), times, 1.0)[-1]
    assert math.sqrt(v) == pytest.approx(want, abs=2e-3)


def test_the_mean_of_a_step_from_the_noise() -> None:
    """(x_t - beta / sqrt(1 - alpha-bar) eps) / sqrt(alpha), unless x0 is clipped."""
    exact, x, t = mixture(TABLE), normal(999, 2), torch.arange(2, 1001).double() / 1000
    beta, bar = TABLE.beta[1:, None], TABLE.alpha_bar[1:, None]
    want = (x - beta / (1 - bar).sqrt() * exact(x, t).eps) / (1 - beta).sqrt()
    for variance in ("small", "large"):
        step = DDPM(variance).step
        got, _ = step(exact, x, t, t - 1 / 1000, noise=torch.zeros_like)
        assert float((got - want).abs().max()) < 1e-12
        clipped, _ = step(guide.Clamp(exact), x, t, t - 1 / 1000, noise=torch.zeros_like)
        assert float((clipped - want).abs().max()) > 1e-2


def test_more_steps_come_nearer_to_the_same_image() -> None:
    """From the same noise: the distance to a run of 2048 steps shrinks 1.6-fold per doubling."""
    exact = mixture(Cosine())
    x = normal(64, 2)
    want = walk(exact, x, grids.uniform(2048), DDIM())
    error = [
        float((walk(exact, x, grids.uniform(n), DDIM()) - want).square().mean().sqrt())
        for n in (1, 2, 4, 8, 16, 32, 64, 128)
    ]
    assert all(b < a for a, b in itertools.pairwise(error))
    assert all(b < a / 1.6 for a, b in itertools.pairwise(error[3:]))


def test_how_near_the_same_noise_comes_to_the_same_image() -> None:
    """Root mean square distance to a run of 4096 steps, at N equal steps, as NumPy found it."""
    exact, x = uneven(Cosine()), normal(1024, 2)
    best = walk(exact, x, grids.uniform(4096), DDIM())
    known = {1: 0.77, 2: 0.38, 4: 0.16, 8: 0.083, 16: 0.046, 64: 0.014, 256: 0.0027, 1024: 5.4e-4}
    for n, want in known.items():
        off = (walk(exact, x, grids.uniform(n), DDIM()) - best).square().mean().sqrt()
        assert float(off) == pytest.approx(want, rel=0.2)


def test_encoding_and_decoding_images_with_ddim() -> None:
    """Explicit encoding and decoding over the uniform subset: mean squared error of the image.

    It falls at every count of steps, from below 0.02 at 10 to below 5e-4 at 200, as for the
    images of the paper's table 2 (0.014 to 0.0004).
    """
    exact = Mixture(TABLE, MEANS / 4, 0.1)  # within [-1, 1], as images are
    x = exact.means[torch.arange(64) % 3] + 0.1 * normal(64, 2)
    error = []
    for n in (10, 20, 50, 100, 200):
        times = grids.strided(n, "uniform")[:-1]
        code = walk(exact, x, times.flip(0), DDIM())
        error.append(float((walk(exact, code, times, DDIM()) - x).square().mean()))
    assert all(b < a / 1.8 for a, b in itertools.pairwise(error))
    assert error[0] < 0.02
    assert error[-1] < 5e-4
