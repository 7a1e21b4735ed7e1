"""Compare Euler's and Heun's method in older programs' settings with EDM's own, file by file.

Karras et al., 2022, table 1 takes earlier samplers apart: which noise levels (discretization), in
which variable the ODE is stepped (schedule), on which coordinates (scaling), by which method. Here
the first is a grid, the middle two are a process in whose own t the solver steps.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep import shapes
from fewstep.exact import Gaussian, Mixture
from fewstep.process import EDM, VP, Process, Tabulated
from fewstep.shapes import Number
from fewstep.solvers import Euler, Heun, HeunChurn, Solver, grids, levels
from tests.golden.test_sampling import DIRECTORY, Played, check, load

PATHS = sorted(DIRECTORY.glob("edm_ablation_*.json"))
EPSILON = 1e-3  # epsilon_s: least time of the VP grid


@dataclass(frozen=True)
class Scheduled(Process):
    """The noise-to-signal ratio as a function of t in [0, 1], with or without scaling to VP.

    The VP schedule has the linear betas whose noise levels at EPSILON and 1 are `low` and `high`;
    the first of them may be slightly negative, as in the program, so that it is no `VP`.
    """

    schedule: str
    scaled: bool
    low: float
    high: float

    @property
    def betas(self) -> tuple[float, float]:
        """Return the slope of the noise rate and its value at t = 0."""
        a, b = math.log1p(self.low**2), math.log1p(self.high**2)
        slope = 2 * (a / EPSILON - b) / (EPSILON - 1)
        return slope, b - slope / 2

    def ratio(self, t: Number) -> Number:
        """Return sigma / alpha."""
        if self.schedule == "vp":
            slope, start = self.betas
            return shapes.sqrt(shapes.expm1(slope * t * t / 2 + start * t))
        return self.high * (shapes.sqrt(t) if self.schedule == "ve" else t)

    def alpha(self, t: Number) -> Number:
        """Return the factor of the data."""
        return 1 / shapes.sqrt(1 + self.ratio(t) ** 2) if self.scaled else 1.0

    def sigma(self, t: Number) -> Number:
        """Return the standard deviation of the noise."""
        return self.ratio(t) * self.alpha(t)

    def time(self, logsnr: Number) -> Number:
        """Return the t of this log-SNR."""
        if self.schedule == "vp":
            slope, start = self.betas
            root = shapes.sqrt(start**2 + 2 * slope * shapes.log1p(shapes.exp(-logsnr)))
            return (root - start) / slope
        r = shapes.exp(-logsnr / 2) / self.high
        return r**2 if self.schedule == "ve" else r


def noise_levels(name: str, n: int, low: float, high: float, rho: float) -> Tensor:
    """Return the n levels of a discretization, falling."""
    if name == "vp":
        t = torch.linspace(1, EPSILON, n, dtype=torch.float64)
        return torch.as_tensor(Scheduled("vp", False, low, high).ratio(t))
    if name == "ve":
        return high * (low / high) ** torch.linspace(0, 1, n, dtype=torch.float64)
    if name == "iddpm":
        table = Tabulated("cosine", 1000)
        t = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
        every = (-torch.as_tensor(table.logsnr(t)) / 2).exp()
        kept = every[(every >= low) & (every <= high)]
        return kept[
            (torch.linspace(0, 1, n, dtype=torch.float64) * (len(kept) - 1)).round().long()
        ]
    assert name == "edm"
    return torch.as_tensor(EDM(high).sigma(grids.karras(EDM(high), n, low, high, rho)[:-1]))


LIMITS = {
    "vp": tuple(float(VP().sigma(t) / VP().alpha(t)) for t in (EPSILON, 1.0)),
    "ve": (0.02, 100.0),
    "iddpm": (0.002, 81.0),
    "edm": (0.002, 80.0),
}


def build(given: dict[str, Any]) -> tuple[Process, Tensor, Solver]:
    """Return what the settings stand for; refuse a setting that is not known."""
    grid = str(given.pop("discretization", "edm"))
    low, high = (
        float(given.pop(k, d))
        for k, d in zip(("sigma_min", "sigma_max"), LIMITS[grid], strict=True)
    )
    n = int(given.pop("num_steps", 18))
    ratios = noise_levels(grid, n, low, high, float(given.pop("rho", 7)))
    schedule, scaling = str(given.pop("schedule", "linear")), str(given.pop("scaling", "none"))
    assert schedule in ("vp", "ve", "linear"), schedule
    assert scaling in ("vp", "none"), scaling
    process: Process = Scheduled(schedule, scaling == "vp", low, high)
    if (schedule, scaling) == ("linear", "none"):
        process = EDM(high)
    elif (schedule, scaling, grid) == ("vp", "vp", "vp") and (low, high) == LIMITS["vp"]:
        process = VP()
    method = {"euler": Euler, "heun": Heun}[str(given.pop("solver", "heun"))](variable="t")
    churn = float(given.pop("S_churn", 0))
    rest = [
        float(given.pop(f"S_{k}", d)) for k, d in (("min", 0), ("max", math.inf), ("noise", 1))
    ]
    solver = HeunChurn(churn, n, *rest) if churn else method
    assert not (churn and (schedule, scaling, method) != ("linear", "none", Heun("t")))
    assert not given, f"settings that this test does not know: {sorted(given)}"
    return process, levels.listed(process, ratios.tolist()), solver


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_the_reference_program_agrees(path: Path) -> None:
    settings, tensors = load(path)
    process, times, solver = build(dict(settings["settings"]))
    unit = tensors["x_T_unit"]
    means = tensors["gmm.mu"].reshape(-1, *unit.shape[1:])
    denoiser = Mixture(process, means, tensors["gmm.s"], weights=tensors["gmm.pi"])
    x = unit * float(process.sigma(float(times[0])))
    run = Played(denoiser, x, times, solver, tensors["noise"] if solver.stochastic else None)
    check("out", run.x[-1], tensors["out"], settings["tolerance"])


@pytest.mark.parametrize("schedule", ["vp", "ve", "linear"])
@pytest.mark.parametrize("scaling", ["vp", "none"])
@pytest.mark.parametrize("grid", LIMITS)
def test_every_combination_solves_the_ode(schedule: str, scaling: str, grid: str) -> None:
    """On Gaussian data, where x_0 / x_t is known: none of table 1's choices is wired wrongly."""
    # iDDPM has too few levels above 5 for a limit of many steps
    asked = {"schedule": schedule, "scaling": scaling, "discretization": grid}
    asked.update(num_steps=50, sigma_max=5.0)
    process, times, solver = build(asked)
    mean = torch.zeros(1, dtype=torch.float64)
    alpha, sigma = process.levels(float(times[0]))
    x = torch.full((1, 1), float(sigma), dtype=torch.float64)
    got = Played(Gaussian(process, mean, 0.5), x, times, solver, None).x[-1]
    want = 0.5 * sigma / math.hypot(0.5 * alpha, sigma)
    assert abs(float(got) / want - 1) < 0.02
