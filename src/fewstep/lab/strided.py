"""Strided sampling: DDIM, eta and sigma-hat from 10 steps to 1000.

On data whose steps are linear (one point, a Gaussian) the variance of every sampler at every
number of steps follows from algebra, and nothing has to be drawn: a step is x_s = k x_t + c z, and
k and c are read from what the solver does with the points 0 and 1 and a noise of 1.
"""

import math
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep import solvers
from fewstep.denoiser import Denoiser, NetDenoiser
from fewstep.exact import Gaussian, Mixture
from fewstep.lab import draw
from fewstep.lab.chance import source
from fewstep.lab.part import Number, Part, between, most, near
from fewstep.lab.size import Size
from fewstep.process import Tabulated
from fewstep.report import chart
from fewstep.reverse import posterior
from fewstep.solvers import DDIM, DDPM, Noise, Solver, grids

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

TABLE = Tabulated()
"""DDPM's 1000 linear betas."""
STEPS = (10, 20, 50, 100, 1000)
"""Numbers of steps of the talk's table."""
SAMPLERS: dict[str, Solver] = {
    "DDIM, eta 0": DDIM(), "DDPM, eta 1": DDIM(1.0), "sigma-hat": DDPM("large"),
}  # fmt: skip
"""The samplers that are compared."""
_STDS = (0.539, 0.748, 0.867, 0.945, 0.972, 0.997)  # of DDIM at 5 steps and at STEPS
_RATIOS = ((10, 32.0, 0.5), (20, 17.0, 0.5), (50, 7.9, 0.05), (100, 4.6, 0.05), (1000, 1.36, 0.01))
_BLOBS = torch.tensor([[0.6, 0.0], [-0.6, 0.3], [0.0, -0.6]], dtype=torch.float64)
_SHOWN = (10, 20, 50, 1000)  # numbers of steps of the clouds
_COLOURS = (draw.GREEN, draw.BLUE, draw.RED)


def variances(data: Denoiser, solver: Solver, n: int, start: float) -> list[float]:
    """Return the variance after every step, for data whose steps are linear in x.

    Args:
        data: the exact denoiser of a Gaussian or of one point on the line, around 0.
        solver: the sampler.
        n: steps, on the uniform subset of the 1000.
        start: variance of the noise it starts from.

    Returns:
        variances of x at each time of the grid but the first, the last being that of the samples.
    """
    line, times = torch.tensor([[0.0], [1.0]], dtype=torch.float64), grids.strided(n, "uniform")
    seen, v = [], start
    for t, s in pairwise(times.tolist()):
        x, _ = solver.step(data, line, t, s, noise=torch.ones_like)
        k, c = float(x[1] - x[0]), float(x[0])
        v = k * k * v + c * c
        seen.append(v)
    return seen


def shrunk(solver: Solver, n: int) -> float:
    """Return the deviation of samples of N(0, 0.5^2), over 0.5, from noise N(0, 1).

    Args:
        solver: the sampler.
        n: steps.
    """
    data = Gaussian(TABLE, torch.zeros(1, dtype=torch.float64), 0.5)
    return math.sqrt(variances(data, solver, n, 1.0)[-1]) / 0.5


def too_much(solver: Solver, n: int) -> float:
    """Return the noise left before the last step, over what the network expects there.

    Args:
        solver: the sampler; 1 for every DDIM, whatever its eta.
        n: steps.
    """
    data = Gaussian(TABLE, torch.zeros(1, dtype=torch.float64), 0.0)
    times = grids.strided(n, "uniform").tolist()
    v = variances(data, solver, n, float(TABLE.sigma(times[0])) ** 2)[-2]
    return math.sqrt(v) / float(TABLE.sigma(times[-2]))


def fresh(eta: float) -> float:
    """Return the noise that DDIM draws in a step, over the deviation of the posterior: eta.

    The step goes from index 500 to 480, and the variance of the posterior is DDPM's formula for
    thinned chains, written here apart from `reverse.posterior`.
    """
    data, x = Gaussian(TABLE, torch.zeros(1, dtype=torch.float64), 0.5), torch.zeros(1, 1).double()
    drawn, _ = DDIM(eta).step(data, x, 0.501, 0.481, noise=torch.ones_like)
    bar_t, bar_s = TABLE.alpha_bar[[500, 480]].tolist()
    return float(drawn) / math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))


def ode_errors(size: Size, seed: int) -> dict[int, float]:
    """Return the root mean square distance of DDIM's samples from the exact flow, by steps.

    Args:
        size: how exact the flow is.
        seed: of the noise that the samples start from.
    """
    data = Mixture(TABLE, _BLOBS, 0.2)
    times = {n: grids.strided(n, "trailing") for n in STEPS[:-1]}
    x = source(seed, 10)(torch.empty(100, 2, dtype=torch.float64))
    fine = grids.logsnr(TABLE, size.truth, float(TABLE.sigma(0.001) / TABLE.alpha(0.001)))
    truth = _last(data, x, fine, solvers.DPMSolverPP(3))
    return {
        n: float((_last(data, x, grid, DDIM()) - truth).square().sum(1).mean().sqrt())
        for n, grid in times.items()
    }


def _last(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    solver: Solver,
    noise: Noise | None = None,
) -> Tensor:
    walk = solvers.sample(denoiser, tuple(x.shape), times, solver, noise=noise, x=x)
    return deque(walk, maxlen=1)[0].x


def clouds(learned: NetDenoiser, n: int, seed: int) -> dict[str, dict[int, Tensor]]:
    """Return n samples of the learned denoiser for each sampler and number of steps, (n, 2).

    Args:
        learned: a network, of any process: it is told the noise level, not the time.
        n: samples in a cloud.
        seed: of the noise, the same for all clouds.
    """
    denoiser = NetDenoiser(learned.net, TABLE, learned.param)
    seen: dict[str, dict[int, Tensor]] = {}
    for name, solver in SAMPLERS.items():
        seen[name] = {}
        for steps in _SHOWN:
            noise, times = source(seed, 11), grids.strided(steps, "uniform")
            start = noise(torch.empty(n, 2))
            seen[name][steps] = _last(denoiser, start, times, solver, noise)
    return seen


def measure(learned: NetDenoiser, size: Size, seed: int) -> Part:
    """Return the section about strided sampling.

    Args:
        learned: a network that knows the data.
        size: how much work.
        seed: of everything drawn.
    """
    errors = ode_errors(size, seed)
    ends = {name: [shrunk(solver, n) for n in STEPS] for name, solver in SAMPLERS.items()}
    first = shrunk(DDIM(), 5)
    numbers: list[Number] = [
        near(f"DDIM, deviation left of N(0, 0.25), {n} steps", got, want, 0.001)
        for n, got, want in zip((5, *STEPS), (first, *ends["DDIM, eta 0"]), _STDS, strict=True)
    ]
    numbers += [
        near(f"sigma-hat, noise before the end, {n} steps", too_much(DDPM("large"), n), want, by)
        for n, want, by in _RATIOS
    ]
    numbers += [
        near("eta 1, noise before the end, 10 steps", too_much(DDIM(1.0), 10), 1.0, 1e-9),
        near("fresh noise of eta 0.5, of the posterior's", fresh(0.5), 0.5, 1e-9),
        near("variance of the posterior, index 500 to 480",
             float(posterior(TABLE, 0.501, 0.481)[1]), 0.1766, 1e-4),
        most("eta 1 against DDPM, deviation left", abs(
            shrunk(DDIM(1.0), 10) - shrunk(DDPM("small"), 10)), 1e-12),
        between("DDIM, distance at 50 steps over that at 100", errors[50] / errors[100], 1.6, 2.4),
    ]  # fmt: skip
    seen = clouds(learned, size.cloud, seed)

    def picture(drawing: "Drawing") -> None:
        _picture(drawing, seen, ends)

    told = ", ".join(f"{e:.3f} in {n}" for n, e in errors.items())
    return Part(
        "Fewer steps: DDIM, DDPM, sigma-hat",
        (
            "The same network, sampled in 10 to 1000 of the 1000 steps it could take. With few "
            "steps DDIM loses spread and stays on the data; DDPM with its larger variance, "
            "sigma-hat, adds 32 times the noise that the last of 10 steps expects.",
            "&eta; multiplies the standard deviation of the fresh noise, as in the paper. The "
            "clouds are of the learned network; the numbers need no network: they are exact for "
            "Gaussian data and for one point.",
            f"DDIM walks towards the exact flow, at distance {told} steps.",
        ),
        (
            "<i>x<sub>s</sub></i> = &alpha;<sub><i>s</i></sub> <i>x&#770;</i><sub>0</sub> + "
            "&radic;(&sigma;<sub><i>s</i></sub><sup>2</sup> &minus; <i>c</i><sup>2</sup>) "
            "&epsilon; + <i>c z</i>,&ensp; <i>c</i> = &eta; &radic;&beta;&#771;",
            "&beta;&#771; = &sigma;<sub><i>s</i></sub><sup>2</sup> / "
            "&sigma;<sub><i>t</i></sub><sup>2</sup> &middot; &sigma;&#770;<sup>2</sup>,&ensp; "
            "&sigma;&#770;<sup>2</sup> = &sigma;<sub><i>t</i></sub><sup>2</sup> &minus; "
            "(&alpha;<sub><i>t</i></sub> &sigma;<sub><i>s</i></sub> / "
            "&alpha;<sub><i>s</i></sub>)<sup>2</sup>",
        ),
        (
            "fewstep.solvers.DDIM",
            "fewstep.solvers.DDPM",
            "fewstep.solvers.grids.strided",
            "fewstep.reverse.posterior",
        ),
        tuple(numbers),
        "Twelve clouds: with DDIM and with eta 1 the samples take the shape of the data at 10 "
        "steps already, roughly; with sigma-hat only at 1000. Below, deviations against steps",
        picture,
        (7.4, 7.6),
    )


def _picture(
    drawing: "Drawing", seen: dict[str, dict[int, Tensor]], ends: dict[str, list[float]]
) -> None:
    """Draw a row of clouds for each sampler, and what is left of the deviation below."""
    shape = drawing.add_gridspec(4, len(_SHOWN), height_ratios=(1, 1, 1, 1.1))
    for i, (name, row) in enumerate(seen.items()):
        for j, (steps, x) in enumerate(row.items()):
            axes = drawing.add_subplot(shape[i, j])
            draw.plane(axes, 1.7, f"{steps} steps" if i == 0 else "")
            draw.cloud(axes, x, _COLOURS[i], 2.5)
            if j == 0:
                axes.set_ylabel(name, size=9)
    below = drawing.add_subplot(shape[3, :])
    for (name, left), colour, mark in zip(ends.items(), _COLOURS, chart.MARKS, strict=False):
        below.plot(STEPS, left, color=colour, marker=mark, ms=4.5, lw=1.4, label=name)
    below.axhline(1.0, color=chart.GREY, ls=":", label="the data")
    below.set(xscale="log", yscale="log", xticks=STEPS, yticks=(0.7, 1.0, 1.5, 2.0))
    below.set_xticklabels([f"{n}" for n in STEPS])
    below.set_yticklabels(["0.7", "1", "1.5", "2"])
    below.minorticks_off()
    below.set_xlabel("steps", size=9)
    below.set_title("deviation of samples, over that of the data N(0, 0.25)", size=10.5)
    below.legend(fontsize=8.5)
