"""Laws of the samples themselves: stochastic solvers end on the distribution of the data.

N = 10,000 samples over 300 levels of noise (Karras grid from sigma / alpha = 80 to 0.01). A mean
or covariance must lie within 5 standard errors of the mixture's. The solvers are of first order in
the steps, and at 300 of them the bias is below 1.5 standard errors, so that one statistic raises a
false alarm with probability below 2.4e-4 (P(Z > 3.5)); draws are seeded, so that this matters only
when they change. Power: samples that are too wide or too narrow by 5% (variance 10%, ten standard
errors for the first coordinate) are found with probability above 0.999.
"""

import pytest
import torch
from torch import Tensor

from fewstep.process import EDM, VP, Process
from fewstep.solvers import DDIM, DDPM, Consistency, PredictorCorrector, Solver, grids
from laws.cases import MEANS, STD, STOCHASTIC, generator, mixture, walk

N = 10_000
MEAN = MEANS.mean(0)
COV = STD**2 * torch.eye(2, dtype=torch.float64) + (MEANS - MEAN).T @ (MEANS - MEAN) / 3
# The step of the rule "norm" depends on the noise, a lot in so few dimensions as two; with the
# posterior mean, which is no consistency function, `Consistency` loses variance.
UNFAITHFUL = (DDPM("large"), PredictorCorrector(), Consistency())
FAITHFUL = [s for s in STOCHASTIC if s not in UNFAITHFUL]


def draw(p: Process, solver: Solver, steps: int, gain: float = 1.0) -> Tensor:
    """Return N samples, shape (N, 2), whose fresh noise is multiplied by `gain`."""
    g = generator(11)
    x = torch.randn(N, 2, generator=g, dtype=torch.float64) * p.prior_std(1.0)
    times = grids.karras(p, steps, low=0.01)
    x = x * (p.prior_std(float(times[0])) / p.prior_std(1.0))

    def noise(y: Tensor) -> Tensor:
        return gain * torch.randn(y.shape, generator=g, dtype=y.dtype)

    return walk(mixture(p), x, times, solver, noise=noise)


def errors(x: Tensor) -> Tensor:
    """Return the deviations of two means and three covariances in standard errors."""
    centred = x - MEAN
    products = torch.stack([centred[:, i] * centred[:, j] for i, j in ((0, 0), (0, 1), (1, 1))], 1)
    values = torch.cat([x, products], 1)
    want = torch.cat([MEAN, COV[[0, 0, 1], [0, 1, 1]]])
    return (values.mean(0) - want) / (values.std(0) / len(x) ** 0.5)


@pytest.mark.parametrize("solver", FAITHFUL, ids=str)
def test_mean_and_covariance_of_the_samples(solver: Solver) -> None:
    assert float(errors(draw(VP(), solver, 300)).abs().max()) < 5


def test_mean_and_covariance_of_the_samples_of_an_exploding_process() -> None:
    assert float(errors(draw(EDM(), DDIM(1.0), 300)).abs().max()) < 5


def test_the_statistics_see_wrong_noise() -> None:
    """The negative control: fresh noise that is a fifth too large is found."""
    assert float(errors(draw(VP(), DDIM(1.0), 300, gain=1.2)).abs().max()) > 5
