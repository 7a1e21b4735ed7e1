"""Compare the losses of distillation with the reference program's, for given levels and noise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.conditions import Cond
from fewstep.denoiser import CONSISTENCY, NetDenoiser
from fewstep.denoiser import EDM as EDM_PARAM
from fewstep.distill import Consistency, Progressive
from fewstep.distill.consistency import times
from fewstep.distill.curriculum import Fixed
from fewstep.distill.distances import L1, L2
from fewstep.distill.pairs import OnGrid
from fewstep.labels import log_sigma_250
from fewstep.process import EDM
from fewstep.solvers import grids
from golden.test_sampling import DIRECTORY, check, load

PATHS = sorted(DIRECTORY.glob("losses_consistency*.json"))
pytestmark = pytest.mark.skipif(not PATHS, reason=f"no losses_consistency in {DIRECTORY}")


class Toy(nn.Module):
    """The closed-form networks of the cases: F = a tanh(x) + b x."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor, label: Tensor, cond: Cond = None) -> Tensor:
        del label, cond
        return self.a * x.tanh() + self.b * x


STUDENT, TARGET, TEACHER = Toy(0.5, 0.1), Toy(0.45, 0.12), Toy(0.6, -0.05)


def levels(settings: dict[str, Any], points: int) -> Tensor:
    """Return Karras' levels from the noisiest on, shape (points,)."""
    law = OnGrid(
        Fixed(points), low=settings["sigma_min"], high=settings["sigma_max"], rho=settings["rho"]
    )
    return law.levels(EDM(settings["sigma_max"]), 0).flip(0)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
@pytest.mark.parametrize("distance", [L1(), L2()], ids=["l1", "l2"])
@pytest.mark.parametrize("way", ["distillation", "training"])
def test_consistency_losses(path: Path, distance: L1 | L2, way: str) -> None:
    """Song et al.: by a teacher's Heun step and by the image itself, the target another net."""
    settings, tensors = load(path)
    settings |= {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    assert "18 for consistency_*" in settings["num_scales"]
    p, u = EDM(80.0), levels(settings, 18)
    student, target = (NetDenoiser(n, p, CONSISTENCY, log_sigma_250) for n in (STUDENT, TARGET))
    teacher = NetDenoiser(TEACHER, p, EDM_PARAM, log_sigma_250)
    goal = Consistency(
        OnGrid(Fixed(18)), distance, teacher=teacher if way == "distillation" else None
    )
    i = tensors["index"]
    pair = tensors["x_0"].double(), tensors["noise"].double()
    got = goal.losses(student, target, pair, (u[i], u[i + 1]))
    name = f"consistency_{way}.{'l1' if isinstance(distance, L1) else 'l2'}"
    check(name, got, tensors[name], settings["tolerance"])


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_progressive_losses(path: Path) -> None:
    """Salimans and Ho as the consistency models' program has it: 17 steps on Karras' levels."""
    settings, tensors = load(path)
    settings |= {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    p, u = EDM(80.0), levels(settings, 35)
    student, teacher = (NetDenoiser(n, p, EDM_PARAM, log_sigma_250) for n in (STUDENT, TEACHER))
    goal = Progressive(teacher, tuple(times(p, u).tolist()))
    i = 2 * tensors["index"]
    t, middle, s = (times(p, u[i + k]) for k in range(3))
    x0, eps = tensors["x_0"].double(), tensors["noise"].double()
    alpha, sigma = student.levels(x0, t)
    x_t = alpha * x0 + sigma * eps
    truth = goal.truth(x_t, t, middle, s, None)
    guess = student(x_t, t).x0
    weight = torch.as_tensor(goal.weight(truth)).flatten()
    for name, distance in (("l1", L1()), ("l2", L2())):
        key = f"progressive_distillation.{name}"
        check(key, weight * distance(guess, truth.x0), tensors[key], settings["tolerance"])


def test_grid_has_the_ends() -> None:
    """The published grid of 18 levels, to four digits."""
    u = levels({"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}, 18).flip(0)
    want = [.002, .0075, .0229, .0599, .1395, .2964, .5853, 1.0882, 1.9233, 3.2568, 5.3152, 8.4009,
            12.910, 19.353, 28.375, 40.786, 57.586, 80]  # fmt: skip
    assert [round(float(x), 4) for x in u] == pytest.approx(want, rel=2e-2 / 20, abs=5e-5)
    assert float(u[-1]) == pytest.approx(float(grids.karras(EDM(), 18)[0]) * 80)
