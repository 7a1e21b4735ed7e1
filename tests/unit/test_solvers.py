"""What solvers and the loop refuse at their doors, and how they say it."""

import itertools
import math
import re

import pytest
import torch
from torch import Tensor

from fewstep import solvers
from fewstep.denoiser import Cond, NetDenoiser
from fewstep.errors import UsageError
from fewstep.exact import Mixture
from fewstep.prediction import Prediction
from fewstep.process import EDM, VP, Tabulated
from fewstep.shapes import Number
from fewstep.solvers import DDIM, DDPM, DPMSolverPP, Euler, Heun, generate, grids, sample

MODEL = Mixture(VP(), torch.tensor([[1.0], [-1.0]]), 0.2, torch.tensor([0, 1]))


@pytest.mark.parametrize("eta", [-0.1, math.nan, math.inf, -math.inf])
def test_refuses_an_eta_that_no_grid_allows(eta: float) -> None:
    with pytest.raises(UsageError, match="must be a number >= 0"):
        DDIM(eta)


def test_names_the_largest_legal_eta() -> None:
    """eta <= sigma_t / sqrt(var_ts) at the tightest step of the grid."""
    times = grids.strided(10, "trailing")
    model = Mixture(Tabulated(), torch.zeros(1, 1), 0.5)
    with pytest.raises(UsageError, match=r"the largest legal eta is \d+\.\d+") as error:
        sample(model, (1, 1), times, DDIM(2.0))
    found = re.search(r"eta is ([\d.]+)", str(error.value))
    assert found
    bar = [1.0, *Tabulated().alpha_bar[[99, 199, 299, 399, 499, 599, 699, 799, 899, 999]].tolist()]
    want = min(math.sqrt((1 - t) / (1 - t / s)) for s, t in itertools.pairwise(bar[1:]))
    largest = float(found.group(1))
    assert want - 1e-4 < largest <= want  # rounded down, so that it is legal itself
    *_, last = sample(model, (4, 1), times, DDIM(want * (1 - 1e-9)))
    assert last.x.isfinite().all()
    with pytest.raises(UsageError, match="largest legal eta"):
        sample(model, (4, 1), times, DDIM(want * 1.001))


def test_refuses_unknown_settings_of_solvers() -> None:
    with pytest.raises(UsageError, match="allowed are small, large and learned"):
        DDPM("medium")
    with pytest.raises(UsageError, match="allowed are 1, 2 and 3"):
        DPMSolverPP(4)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.5], "at least 2"),
        ([], "at least 2"),
        ([1.0, 0.5, 0.5, 0.0], r"time 2 is 0\.5 after 0\.5; the times must fall"),
        ([1.0, 0.5, 0.7, 0.0], r"time 2 is 0\.7 after 0\.5; the times must fall"),
        ([0.1, 0.5, 0.4], r"time 2 is 0\.4 after 0\.5; the times must rise"),
        ([0.5, 0.5], "time 1 is"),
        ([1.5, 0.5, 0.0], r"time 0 is 1\.5, outside 0\.\.1"),
        ([1.0, math.nan, 0.0], "time 1 is nan, outside"),
        ([1.0, -0.1], r"time 1 is -0\.1, outside"),
    ],
)
def test_refuses_grids_that_are_no_walk(times: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sample(MODEL, (2, 1), torch.tensor(times, dtype=torch.float64), DDIM())


def test_refuses_shapes_that_do_not_fit_at_the_call() -> None:
    times = grids.uniform(3)
    with pytest.raises(ValueError, match=r"cond of shape \(3,\): expected \(2,\)"):
        sample(MODEL, (2, 1), times, DDIM(), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"x of shape \(3, 1\): expected \(2, 1\)"):
        sample(MODEL, (2, 1), times, DDIM(), x=torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"cond of shape \(9,\): expected \(4,\)"):
        generate(MODEL, (4, 1), times, DDIM(), torch.zeros(9, dtype=torch.long), batch_size=2)
    with pytest.raises(ValueError, match="at least one is needed"):
        generate(MODEL, (0, 1), times, DDIM())
    with pytest.raises(UsageError, match="batch size 0"):
        generate(MODEL, (4, 1), times, DDIM(), batch_size=0)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_refuses_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(UsageError, match="must be a whole number"):
        sample(MODEL, (2, 1), grids.uniform(3), DDIM(), seed=seed)
    with pytest.raises(UsageError, match="must be a whole number"):
        generate(MODEL, (2, 1), grids.uniform(3), DDIM(), seed=seed)


@pytest.mark.parametrize("solver", [s for s in solvers.ALL if s.stochastic], ids=str)
def test_refuses_to_encode_with_noise(solver: solvers.Solver) -> None:
    with pytest.raises(UsageError, match="cannot encode"):
        sample(MODEL, (2, 1), grids.uniform(3).flip(0), solver)


def test_refuses_ends_where_a_solver_is_undefined() -> None:
    with pytest.raises(UsageError, match="infinite on clean data"):
        sample(MODEL, (2, 1), grids.uniform(3).flip(0), DPMSolverPP())
    blind = Mixture(Tabulated(zero_terminal_snr=True), torch.zeros(1, 1), 0.5)
    for solver in (Euler(), Heun()):
        with pytest.raises(UsageError, match="zero terminal SNR"):
            sample(blind, (2, 1), grids.uniform(3), solver)
    for solver in (DDIM(), DPMSolverPP(2), DDPM()):
        *_, last = sample(blind, (2, 1), grids.uniform(6), solver)
        assert last.x.isfinite().all()


def test_coefficients_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"coefficient of shape \(3,\) does not fit"):
        DDIM().step(MODEL, torch.zeros(2, 1), torch.rand(3), torch.rand(3))


def test_the_dtype_and_the_start_follow_the_denoiser() -> None:
    x = torch.zeros(2, 1, dtype=torch.float64)
    *_, last = sample(MODEL, (2, 1), grids.uniform(3), DDIM(), x=x)
    assert last.x.dtype == torch.float64
    *_, last = sample(MODEL, (2, 1), grids.uniform(3), DDIM())
    assert last.x.dtype == torch.float32
    exploding = Mixture(EDM(), torch.zeros(1, 1), 0.5)
    first = next(iter(sample(exploding, (512, 1), grids.karras(EDM(), 40), DDIM())))
    assert 60 < float(first.x.std()) < 80


class Distant(NetDenoiser):
    """A model on another device, which notes where its labels are."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(1, 1, device="meta"), VP())
        self.heard: set[str] = set()

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        assert cond is not None
        self.heard.add(cond.device.type)
        return Prediction.from_x0(x_t, *self.levels(x_t, t), x_t)


def test_labels_follow_the_batch_to_its_device() -> None:
    """The device without memory stands for an accelerator; labels are made on the CPU."""
    model, times, labels = Distant(), grids.uniform(3), torch.tensor([0, 1])
    assert labels.device.type == "cpu"
    *_, last = sample(model, (2, 1), times, DDIM(), labels)
    assert last.x.device.type == "meta"
    assert model.heard == {"meta"}
    model.heard.clear()
    generate(model, (2, 1), times, DDIM(), labels, batch_size=1)
    assert model.heard == {"meta"}
