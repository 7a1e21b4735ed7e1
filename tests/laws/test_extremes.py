"""Extreme inputs stay finite, or end in a NumericError that names the step (NU11)."""

import sys

import pytest
import torch

from fewstep import guide, solvers
from fewstep.denoiser import Denoiser
from fewstep.errors import NumericError, UsageError
from fewstep.exact import Mixture
from fewstep.prediction import Prediction
from fewstep.process import EDM, VE, VP, Process, Tabulated
from fewstep.solvers import DDIM, grids
from tests.laws.cases import PROCESSES, normal, walk

FAR = {  # noise from 1e-4 to 1e5 times the data, in one step and in six
    "EDM": (EDM(1e5), lambda p, n: grids.karras(p, n, low=1e-4, high=1e5)),
    "VE": (VE(1e-4, 1e5), lambda p, n: grids.logsnr(p, n, low=1e-4, high=1e5)),
    "VE to its end": (VE(1e-4, 1e5), lambda p, n: grids.uniform(n)),
    "linear betas": (Tabulated(), lambda p, n: grids.strided(n, "trailing")),
}
DATA = {
    "one pixel": torch.tensor([0.3, -0.8]).reshape(2, 1, 1, 1),
    "constants": torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 2, 2).clone(),
    "one class": torch.full((1, 1, 2, 2), 0.5),
}


def guided(p: Process, means: torch.Tensor, scale: float) -> Denoiser:
    """Guide and clip points with one class each."""
    exact = Mixture(p, means, 0.0, torch.arange(len(means)))
    return guide.Clamp(guide.ClassifierFree(exact, scale))


@pytest.mark.parametrize("solver", solvers.ALL, ids=str)
def test_samples_stay_finite(solver):
    for p, grid in FAR.values():
        for means in DATA.values():
            for scale in (1.0, 31.0, 1e9):  # w = 30, and row C11
                for n in (1, 6):
                    steps = solvers.sample(
                        guided(p, means, scale),
                        (2, *means.shape[1:]),
                        grid(p, n),
                        solver,
                        torch.zeros(2, dtype=torch.int64),
                    )
                    *_, last = steps
                    assert bool(last.x.isfinite().all())
                    if p == Tabulated() or solver == DDIM():  # clean, so it is the class's point
                        assert float((last.x.sign() - means[0].sign()).abs().max()) == 0


def test_encoding_stays_finite():
    for p, grid in FAR.values():
        for means in DATA.values():
            exact, times = Mixture(p, means, 0.0), grid(p, 6)[:-1]
            x = means[:1] + 1e-3
            assert bool(walk(exact, x, times.flip(0), DDIM()).isfinite().all())


@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_the_ends_of_time(p):
    """At t = 0 and 1, and as near to them as floats are."""
    exact = Mixture(p, DATA["one pixel"], 0.1)
    for t in (0.0, 5e-324, 1e-300, 1e-12, 1 - 2**-53, 1.0):
        x = p.prior_std(t) * normal(2, 1, 1, 1).float()
        prediction = exact(x, t)
        assert bool(prediction.x0.isfinite().all())
        if float(p.sigma(t)) > 1e-30:
            assert bool(prediction.eps.isfinite().all())
        both = exact(x, torch.full((2,), t, dtype=torch.float64))
        assert torch.allclose(both.x0, prediction.x0, atol=1e-5)


class Explodes(Denoiser):
    """A denoiser as bad weights make it: every step multiplies by more than a float can hold."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t, t, cond=None):
        alpha, sigma = self.levels(x_t, t)
        return Prediction.from_x0(x_t, alpha, sigma, 1e25 * x_t)


@pytest.mark.parametrize("solver", solvers.ALL, ids=str)
def test_what_does_not_stay_finite_names_its_step(solver):
    """The numbers are beyond 3e38 in the second step, or in the first of two evaluations."""
    twice = solver.evals > 1 or isinstance(solver, solvers.PredictorCorrector)
    first = 1 if twice else 2
    times = grids.logsnr(VP(), 6)
    with pytest.raises(NumericError, match=rf"^step {first} of 6, from t = .* not finite"):
        walk(Explodes(VP()), normal(2, 2).float(), times, solver, noise=torch.ones_like)


def test_a_large_walk_keeps_the_sums_alone(monkeypatch):
    monkeypatch.setattr(sys.modules[solvers.Step.__module__], "_KEPT", 0)
    with pytest.raises(NumericError, match=r"^step 2 of 6"):
        walk(Explodes(VP()), normal(2, 2).float(), grids.logsnr(VP(), 6), DDIM())


# ---------------------------------------------------------------- rows C7, C8, C9, C11
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: grids.from_indices([]), "no index"),  # C7
        (lambda: grids.from_indices([0, 3, 3]), "step 2 of the grid: index 3 does not rise"),
        (lambda: grids.from_indices([0, 5, 4]), "step 2 of the grid: index 4 does not rise"),
        (lambda: grids.from_indices([-1, 5]), r"step 0 of the grid: index -1 is outside 0\.\.999"),
        (lambda: grids.from_indices([5, 1000]), r"step 1 of the grid: index 1000 is outside"),
        (lambda: grids.from_indices([0.5, 5]), r"step 0 of the grid: index 0\.5 .*whole"),
        *(
            (lambda name=name, n=n: grids.strided(n, name), rf"{n}\b.*1000")
            for name in grids.SPACINGS
            for n in (0, -3, 1001)
        ),
        (lambda: DDIM(-0.5), r"eta -0\.5: must be a number >= 0"),  # C8
        (lambda: DDIM(float("nan")), "eta nan: must be a number >= 0"),
        (lambda: DDIM(float("inf")), "eta inf: must be a number >= 0"),
        (lambda: Tabulated((0.1, 1.0, 0.2)), r"beta\[1\] = 1: must be above 0 and below 1"),  # C9
        (lambda: Tabulated((0.0, 0.1)), r"beta\[0\] = 0: must be above 0 and below 1"),
        (lambda: Tabulated((0.1, -0.1)), r"beta\[1\] = -0\.1: must be above 0"),
        (lambda: Tabulated((0.1, float("nan"))), r"beta\[1\] = nan: must be above 0"),
        (lambda: Tabulated((0.1,)), "steps 1: .*at least 2"),
        (lambda: Tabulated(()), "steps 0: .*at least 2"),
        (lambda: Tabulated(steps=1), "steps 1: .*at least 2"),
        (lambda: Tabulated(steps=20), r"beta\[19\] = .*linear needs at least 21 steps"),
        (lambda: guide.ClassifierFree(Explodes(VP()), float("nan")), "guidance scale nan"),  # C11
        (lambda: guide.LogProb(Explodes(VP()), lambda x, t, y: x, float("nan")), "scale nan"),
        (lambda: guide.Auto(Explodes(VP()), Explodes(VP()), float("nan")), "scale nan"),
        (lambda: guide.Rescaled(Explodes(VP()), float("nan")), "scale nan"),
        (lambda: guide.Projected(Explodes(VP()), float("nan")), "scale nan"),
    ],
)
def test_bad_numbers_are_refused(make, said):
    with pytest.raises(UsageError, match=said) as refusal:
        make()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_the_largest_legal_eta_is_the_one_that_is_named(p):
    times = grids.logsnr(p, 7)
    with pytest.raises(UsageError, match="the largest legal eta is") as refusal:
        DDIM(1e6).check(p, times.tolist())
    largest = float(str(refusal.value).rpartition(" ")[2])
    assert largest >= 1
    with pytest.raises(UsageError):
        DDIM(largest + 1e-4).check(p, times.tolist())
    exact, x = Mixture(p, DATA["one pixel"], 0.1), normal(2, 1, 1, 1)
    end = walk(exact, x, times, DDIM(largest), noise=torch.zeros_like)
    assert bool(end.isfinite().all())
