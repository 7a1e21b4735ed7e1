"""Solvers with five to ten evaluations: the ways that samples take, and how far they end.

All follow the flow of the same exact denoiser from the same noise. How fast a solver gains from
more steps, its order, is measured where steps are many.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep import solvers
from fewstep.denoiser import Denoiser
from fewstep.exact import Gaussian, Mixture
from fewstep.lab import draw
from fewstep.lab.chance import source
from fewstep.lab.diffused import exact
from fewstep.lab.part import Number, Part, near
from fewstep.lab.size import Size
from fewstep.process import EDM
from fewstep.report import chart
from fewstep.solvers import DDIM, DPMSolverPP, Heun, Solver, UniPC, grids

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

BUDGETS = (5, 10)
"""Evaluations that a sampler may take."""
SOLVERS: dict[str, Solver] = {
    "DDIM": DDIM(), "Heun": Heun(), "DPM-Solver++(2M)": DPMSolverPP(2), "UniPC": UniPC(2),
}  # fmt: skip
"""The solvers that are compared."""
_ORDERS: tuple[tuple[str, Solver, int], ...] = (
    ("DDIM", DDIM(), 1),
    ("Heun", Heun(), 2),
    ("DPM-Solver++(2M)", DPMSolverPP(2), 2),
    ("DPM-Solver++(3M)", DPMSolverPP(3), 3),
    ("UniPC", UniPC(2), 3),
)
_HEUN = ((8, 1.394), (18, 1.055), (40, 1.0098))  # deviation left of N(0, 0.25) on EDM's grid
_BLOBS = torch.tensor([[2.0, 0.0], [-2.0, 0.5], [0.0, -1.5]], dtype=torch.float64)
_LOW, _HIGH = 0.02, 20.0  # noise levels between which samples walk
_FAR = 80.0  # from where orders are measured: the first steps, of low order, count for nothing
_WALKERS, _DRAWN = 60, 12


def steps_for(solver: Solver, evaluations: int) -> int:
    """Return the most steps, to clean data, that a number of evaluations allows."""
    if solver.evals == 1:
        return evaluations
    return (evaluations + 1) // 2  # the last step has no second slope


def walk(denoiser: Denoiser, x: Tensor, times: Tensor, solver: Solver) -> list[Tensor]:
    """Return x after every step, divided by alpha, with the start before them.

    Args:
        denoiser: whose flow is followed.
        x: start at times[0], shape (B, *).
        times: the grid, shape (n + 1,).
        solver: the method.
    """
    process = denoiser.process
    seen = [x / process.alpha(float(times[0]))]
    for step in solvers.sample(denoiser, tuple(x.shape), times, solver, x=x):
        seen.append(step.x / process.alpha(step.s))
    return seen


def deviation_left(solver: Solver, n: int) -> float:
    """Return the deviation of samples of N(0, 0.5^2), over 0.5, in n steps of EDM's grid."""
    data = Gaussian(EDM(), torch.zeros(1, dtype=torch.float64), 0.5)
    x = torch.full((1, 1), 80.0, dtype=torch.float64)
    return float(walk(data, x, grids.karras(EDM(), n), solver)[-1]) / 0.5


def orders() -> dict[str, float]:
    """Return the measured orders by solver: log2 of the error in 160 steps over that in 320.

    On three blobs in the plane, from 40 points on two circles to noise of 0.02, in equal steps of
    log-SNR.
    """
    process = EDM()
    data = Mixture(process, _BLOBS, 0.6)
    angle = torch.arange(40, dtype=torch.float64)
    radius = _FAR * (0.6 + 0.6 * (angle % 2))
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

    def end(solver: Solver, n: int) -> Tensor:
        ratio = torch.linspace(math.log(_FAR), math.log(_LOW), n + 1, dtype=torch.float64).exp()
        return walk(data, x, ratio / ratio[0], solver)[-1]

    truth, found = end(UniPC(3), 1500), {}
    for name, solver, _ in _ORDERS:
        errors = [float((end(solver, n) - truth).square().mean().sqrt()) for n in (160, 320)]
        found[name] = math.log2(errors[0] / errors[1])
    return found


Races = tuple[list[Tensor], dict[tuple[str, int], list[Tensor]], dict[tuple[str, int], float]]
"""The exact way, and for each solver and budget its way and its distance at the end."""


def race(data: Mixture, x: Tensor, fine: int) -> Races:
    """Let every solver walk from the same noise with every budget.

    Args:
        data: the exact denoiser whose flow is followed.
        x: standard normal noise, shape (B, 2).
        fine: steps of the way that counts as exact.
    """

    def way(solver: Solver, n: int) -> list[Tensor]:
        times = grids.karras(data.process, n, _LOW, _HIGH)
        return walk(data, x * data.process.prior_std(float(times[0])), times, solver)

    truth = way(DPMSolverPP(3), fine)
    ways, errors = {}, {}
    for name, solver in SOLVERS.items():
        for budget in BUDGETS:
            seen = ways[name, budget] = way(solver, steps_for(solver, budget))
            errors[name, budget] = float((seen[-1] - truth[-1]).square().sum(1).mean().sqrt())
    return truth, ways, errors


def measure(x0: Tensor, size: Size, seed: int) -> Part:
    """Return the section about solvers.

    Args:
        x0: the data, shape (n, 2), of standard deviation 0.5.
        size: how much work.
        seed: of the noise that samples start from.
    """
    data = exact(x0, size.kept)
    x = source(seed, 13)(torch.empty(_WALKERS, 2, dtype=torch.float64))
    truth, ways, errors = race(data, x, size.truth)
    found = orders()
    numbers: list[Number] = [
        near(f"order of {name}", found[name], float(want), 0.2) for name, _, want in _ORDERS
    ]
    numbers += [
        near(f"Heun, deviation left of N(0, 0.25), {n} steps", deviation_left(Heun(), n), want,
             0.0006)
        for n, want in _HEUN
    ]  # fmt: skip
    shade = draw.shade(data, 0.0, 1.9)

    def picture(drawing: "Drawing") -> None:
        places = draw.panels(drawing, len(BUDGETS), len(SOLVERS))
        shown = [(name, budget) for budget in BUDGETS for name in SOLVERS]
        for axes, (name, budget) in zip(places, shown, strict=True):
            error = errors[name, budget]
            draw.plane(axes, 1.9, f"{name}\n{budget} evaluations: {error:.3f}", 9.5)
            draw.density(axes, shade, 1.9)
            draw.paths(axes, [y[:_DRAWN] for y in truth], chart.GREY)
            draw.paths(axes, [y[:_DRAWN] for y in ways[name, budget]], draw.RED, "o")

    return Part(
        "Five to ten evaluations: solvers",
        (
            "Samples walk from noise, outside the picture, to the data along the flow of the "
            "exact denoiser (grey). Each solver is given 5 and 10 evaluations; beside them stands "
            "how far its samples end from those of the exact flow, in root mean square, in units "
            "of data with standard deviation 0.5.",
            "A solver of order <i>p</i> gains 2<sup><i>p</i></sup> from twice as many steps, once "
            "they are many. With few, order is no guide: Heun spends two evaluations a step, "
            "and 9 of the 10.",
        ),
        (
            "d<i>y</i>/d<i>r</i> = &epsilon;(<i>x<sub>t</sub></i>),&ensp; <i>y</i> = "
            "<i>x<sub>t</sub></i> / &alpha;<sub><i>t</i></sub>,&ensp; <i>r</i> = "
            "&sigma;<sub><i>t</i></sub> / &alpha;<sub><i>t</i></sub>",
            "order = log<sub>2</sub> (error in 160 steps / error in 320)",
        ),
        (
            "fewstep.solvers.DDIM",
            "fewstep.solvers.Heun",
            "fewstep.solvers.DPMSolverPP",
            "fewstep.solvers.UniPC",
            "fewstep.solvers.grids.karras",
        ),
        tuple(numbers),
        "Eight panels, four solvers with 5 and with 10 evaluations: the ways of twelve "
        "samples over the density of the data, beside the exact ways",
        picture,
        (7.4, 4.3),
    )
