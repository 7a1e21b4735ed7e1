"""The parts that the laws run over: every process, guidance and solver, around exact denoisers.

A law that runs over these lists tests a new member as soon as it stands in `ALL` of its module.
"""

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import guide, process, shapes, solvers
from fewstep.conditions import classes
from fewstep.denoiser import Cond, Denoiser, NetDenoiser, V
from fewstep.exact import Mixture
from fewstep.process import Process, Tabulated
from fewstep.shapes import Number
from fewstep.solvers import Solver

# One of each kind with its default values, and the other tables of DDPM.
PROCESSES: list[Process] = [
    *(kind() for kind in process.ALL),
    Tabulated("cosine"),
    Tabulated(zero_terminal_snr=True),
    Tabulated(steps=100),
]
DETERMINISTIC = [s for s in solvers.ALL if not s.stochastic]
STOCHASTIC = [s for s in solvers.ALL if s.stochastic]

MEANS = torch.tensor([[2.0, 0.0], [-2.0, 0.5], [0.0, -1.5]], dtype=torch.float64)
CLASSES = torch.tensor([0, 0, 1])
STD = 0.3


def mixture(p: Process) -> Mixture:
    """Return the exact denoiser of three blobs in the plane, two of class 0 and one of class 1."""
    return Mixture(p, MEANS, STD, CLASSES)


def uneven(p: Process) -> Mixture:
    """Return the exact denoiser of three blobs of other sizes and weights, as small as images."""
    means = torch.tensor([[-1.0, 0.3], [0.8, -0.6], [0.2, 1.1]], dtype=torch.float64)
    std = torch.tensor([0.04, 0.09, 0.0625], dtype=torch.float64).sqrt()
    return Mixture(p, means, std, weights=torch.tensor([0.3, 0.45, 0.25]))


class Straight(Process):
    """A straight line from the data to noise without a trace of signal."""

    def alpha(self, t: Number) -> Number:
        return 1 - t

    def sigma(self, t: Number) -> Number:
        return t

    def time(self, logsnr: Number) -> Number:
        return 1 / (1 + shapes.exp(logsnr / 2))


class TinyNet(nn.Module):
    """A fixed network of the plane in float64 that counts the images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.images = 0

    def forward(self, x: Tensor, label: Tensor, cond: Cond = None) -> Tensor:
        self.images += x.shape[0]
        y = classes(cond)
        shift = torch.zeros(len(x)) if y is None else 0.1 * y
        shift = (shift + label / 1000).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.tanh(self.scale * x + shift.to(x))


def counted(p: Process) -> NetDenoiser:
    """Return a network denoiser whose `.net.images` counts evaluations."""
    return NetDenoiser(TinyNet(), p, V)


def guided(kind: type[Denoiser], denoiser: Denoiser, log_prob: Any = None) -> Denoiser:
    """Build a guidance of this class around a denoiser, by the names of its parameters."""
    known = {
        "denoiser": denoiser,
        "plain": denoiser,
        "good": denoiser,
        "weak": denoiser,
        "guided": guide.ClassifierFree(denoiser, 2.5),
        "log_prob": log_prob,
        "scale": 2.5,
        "low": None if kind is guide.Clamp else 0.5,
        "high": None if kind is guide.Clamp else 5.0,
    }
    names = [n for n in inspect.signature(kind).parameters if known.get(n) is not None]
    return kind(**{n: known[n] for n in names})


def gaussian_log_prob(x: Tensor, t: object, cond: Cond) -> Tensor:
    """A log-probability that any process can be guided by."""
    assert cond is not None
    return -0.15 * (x - cond.reshape(-1, *(1,) * (x.ndim - 1))).square().flatten(1).sum(1)


def walk(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    solver: Solver,
    cond: Cond = None,
    noise: solvers.Noise | None = None,
) -> Tensor:
    """Return the last batch of `solvers.sample`."""
    *_, last = solvers.sample(denoiser, tuple(x.shape), times, solver, cond, noise=noise, x=x)
    return last.x


@torch.no_grad()
def truth(denoiser: Denoiser, x: Tensor, times: Tensor, steps: int = 256) -> Tensor:
    """Follow the probability-flow ODE from times[0] to times[-1] by classical Runge-Kutta.

    Fourth order in ln(sigma / alpha) for y = x / alpha, dy / dln r = r eps: written apart from the
    solvers, so that it can judge them.
    """
    p = denoiser.process
    ends = [-float(p.logsnr(float(t))) / 2 for t in (times[0], times[-1])]
    grid = torch.linspace(*ends, 2 * steps + 1, dtype=torch.float64).tolist()
    clock = [float(p.time(-2 * u)) for u in grid]
    levels = [(float(p.alpha(t)), float(p.sigma(t))) for t in clock]
    y = x / levels[0][0]
    h = (ends[1] - ends[0]) / steps

    def slope(y: Tensor, k: int) -> Tensor:
        alpha, sigma = levels[k]
        return sigma / alpha * denoiser(alpha * y, clock[k]).eps

    for k in range(0, 2 * steps, 2):
        a = slope(y, k)
        b = slope(y + h / 2 * a, k + 1)
        c = slope(y + h / 2 * b, k + 1)
        d = slope(y + h * c, k + 2)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
    return y * levels[-1][0]


def generator(seed: int = 0) -> torch.Generator:
    """Return a seeded source of randomness for a test's own inputs."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers in float64."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def largest(a: Tensor, b: Tensor | float = 0.0) -> float:
    """Return the largest absolute difference."""
    return float((a - b).abs().max())


def steps_of(times: Tensor) -> list[tuple[float, float]]:
    """Return the pairs (t, s) of a grid as floats."""
    return list(pairwise(times.tolist()))
