"""The likelihood of data by the probability-flow ODE.

In the coordinates y = x / alpha and r = sigma / alpha the ODE of every process is dy/dr = eps, and
the density of y changes along it by

    ln p(y_low) = ln p(y_high) + integral over ln r of r tr(d eps / d y).

`log_density` follows both from the data to the noise, where the density is known; the trace is
exact (one derivative per dimension) or estimated (`probes`). A density is not a probability:
images are whole numbers, to which `dequantise` adds uniform noise, and `bits_per_dim` then bounds
what they cost from above. This is the cost of the deterministic sampler; `objectives.bound_parts`
has that of the ancestral one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep import conditions
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.process import Process, Tabulated

LEAST, MOST = 1e-3, 1e4
"""sigma / alpha at the two ends, where the process goes further: the density of data with so
little noise is measured, and beyond so much noise nothing is left of them."""
WIDTH = 1 / 127.5
"""Distance of two neighbouring grey levels of an image in [-1, 1]."""


@dataclass(frozen=True)
class LogDensity:
    """ln p of a batch.

    Attributes:
        nats: natural logarithm of the density, shape (B,), float64.
        error: standard error of `nats` over the probes, shape (B,), float64; 0 with the exact
            trace, NaN with a single probe. The error of the steps is not in it.
        evaluations: calls of the denoiser; a derivative per probe or dimension comes with each.
    """

    nats: Tensor
    error: Tensor
    evaluations: int


def log_density(
    denoiser: Denoiser,
    x: Tensor,
    cond: Cond = None,
    steps: int = 64,
    probes: Tensor | None = None,
    prior: Callable[[Tensor, float], Tensor] | None = None,
    tolerance: float | None = None,
) -> LogDensity:
    """Return ln p(x), or ln p(x | cond), by classical Runge-Kutta steps, even in ln r.

    With probes v of mean zero and unit covariance, tr J is estimated without bias by v^T J v
    (Hutchinson), one vector-Jacobian product each; every probe is kept through the whole solve,
    so that it sees one smooth ODE. The steps are fixed, and the density of an image is its own.
    With a tolerance torchdiffeq's adaptive dopri5 chooses the steps, by the worst image of the
    batch: what an image gets then depends on its neighbours, within the tolerance.

    Args:
        denoiser: in evaluation mode, unclipped; differentiable.
        x: data, shape (B, *), such as images in [-1, 1] from `dequantise`.
        cond: the condition of the B samples, or None.
        steps: Runge-Kutta steps of four evaluations, >= 1.
        probes: for an estimate, shape (K, B, *), from `rademacher`; None = the exact trace.
        prior: ln p at the noisy end: prior(x_t, t), shape (B,); None = N(0, prior_std(t)^2).
        tolerance: relative and absolute, > 0, of an adaptive solver in place of `steps`; 1e-5 in
            the paper. None = `steps`.

    Returns:
        the log densities, in nats, of data with noise of standard deviation `LEAST` (or as little
        as the process has; of `Tabulated`, that of its first entry).

    Raises:
        UsageError: steps < 1; a tolerance that is not > 0, or without torchdiffeq.
        ValueError: probes or a condition of another shape.

    Source: Song et al., 2021, section 4.3, appendix D.2 (arXiv 2011.13456); Hutchinson, "A
        Stochastic Estimator of the Trace of the Influence Matrix", 1989.
    """
    _check(x, cond, steps, probes)
    cond = conditions.to(cond, x.device)
    process = denoiser.process
    low, high = _ends(process)

    def slope(u: float, y: Tensor) -> tuple[Tensor, Tensor]:
        t = float(process.time(-2 * u))
        return _slope(denoiser, y, t, math.exp(u), cond, probes)

    total = torch.zeros(1 if probes is None else len(probes), len(x)).to(x).double()
    if tolerance is None:
        y, total = _runge_kutta(slope, (low, high), (x.detach(), total), steps)
        calls = 4 * steps
    else:
        y, total, calls = _adaptive(slope, (low, high), (x.detach(), total), tolerance)
    t = float(process.time(-2 * high))
    alpha = float(process.alpha(t))
    with torch.no_grad():
        end = (prior or _normal(process))(alpha * y, t).double()
    dims = x[0].numel()
    nats = end + dims * math.log(alpha) + total
    mean, n = nats.mean(0), len(nats)
    error = ((nats - mean).square().sum(0) / (n * (n - 1))).sqrt()  # 0 / 0 = NaN for one probe
    return LogDensity(mean, torch.zeros_like(mean) if probes is None else error, calls)


def rademacher(x: Tensor, n: int, noise: torch.Generator) -> Tensor:
    """Return n probes of -1 and 1: of all with unit covariance, those of least variance.

    Args:
        x: a batch, shape (B, *), whose shape, dtype and device they have.
        n: how many, >= 1.
        noise: a generator on the CPU.

    Returns:
        shape (n, B, *).

    Raises:
        UsageError: n < 1.
    """
    if n < 1:
        raise UsageError(f"probes {n}: must be at least 1")
    return (2 * torch.randint(0, 2, (n, *x.shape), generator=noise) - 1).to(x)


def dequantise(pixels: Tensor, noise: torch.Generator) -> Tensor:
    """Spread each of the 256 grey levels evenly over its bin.

    (k + u - 1/2) / 127.5 - 1, u ~ U[0, 1): the levels of images in [-1, 1] stay at the middle of
    their bins. Without this the density of whole numbers has no upper bound.

    Args:
        pixels: uint8, shape (B, *).
        noise: a generator on the CPU.

    Returns:
        float32, shape (B, *), in [-1 - `WIDTH` / 2, 1 + `WIDTH` / 2].

    Raises:
        ValueError: pixels that are not uint8.

    Source: Theis, van den Oord, Bethge, "A Note on the Evaluation of Generative Models", 2016,
        section 3.1 (arXiv 1511.01844).
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels of {pixels.dtype}: expected uint8")
    u = torch.rand(pixels.shape, generator=noise, dtype=torch.float64).to(pixels.device)
    return ((pixels.double() + u - 0.5) * WIDTH - 1).float()


def bits_per_dim(nats: Tensor, dims: int, width: float = WIDTH) -> Tensor:
    """Return the upper bound on the bits of whole numbers, per dimension.

        -nats / (dims ln 2) - log2(width)

    For width 2 / 256 the offset is the 7 of programs that cut [-1, 1] into 256 bins; 256 equally
    likely levels cost 8 bits either way.

    Args:
        nats: log density of dequantised data, shape (*).
        dims: numbers in one sample.
        width: of the bin of one level, > 0.

    Returns:
        shape of nats.
    """
    return -nats / (dims * math.log(2)) - math.log2(width)


def _check(x: Tensor, cond: Cond, steps: int, probes: Tensor | None) -> None:
    """Refuse what does not fit the batch."""
    if steps < 1:
        raise UsageError(f"steps {steps}: must be at least 1")
    if probes is not None and (probes.ndim < 2 or probes.shape[1:] != x.shape or not len(probes)):
        raise ValueError(f"probes of shape {tuple(probes.shape)}: expected (K, {tuple(x.shape)})")
    conditions.check(cond, x.shape[0])


def _ends(process: Process) -> tuple[float, float]:
    """Return ln(sigma / alpha) from which and to which the ODE is solved."""
    first = 1 / process.steps if isinstance(process, Tabulated) else 0.0
    low, high = (-float(process.logsnr(t)) / 2 for t in (first, 1.0))
    return max(low, math.log(LEAST)), min(high, math.log(MOST))


State = tuple[Tensor, Tensor]
Slope = Callable[[float, Tensor], State]


def _runge_kutta(slope: Slope, ends: tuple[float, float], state: State, steps: int) -> State:
    """Return the state at the other end, by steps of order 4."""
    (y, total), u, h = state, ends[0], (ends[1] - ends[0]) / steps
    for k in range(steps):
        u = ends[0] + k * h
        a, da = slope(u, y)
        b, db = slope(u + h / 2, y + h / 2 * a)
        c, dc = slope(u + h / 2, y + h / 2 * b)
        d, dd = slope(u + h, y + h * c)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
        total = total + h / 6 * (da + 2 * db + 2 * dc + dd)
    return y, total


def _adaptive(
    slope: Slope, ends: tuple[float, float], state: State, tolerance: float
) -> tuple[Tensor, Tensor, int]:
    """Return the state at the other end and the evaluations, by torchdiffeq's dopri5."""
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise UsageError(f"tolerance {tolerance}: must be a number > 0")
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise UsageError(
            "a tolerance needs torchdiffeq: pip install 'fewstep[likelihood]'; or give steps"
        ) from None
    y, total = state
    shape, calls = y.shape, 0
    flat = torch.cat([y.flatten(1).double(), total.T], 1)  # a row is an image and its traces
    width = y.flatten(1).shape[1]

    def rates(u: Tensor, rows: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        inside = min(float(u), ends[1])  # a last step may reach past the end
        dy, dt = slope(inside, rows[:, :width].reshape(shape).to(y.dtype))
        return torch.cat([dy.flatten(1).double(), dt.T], 1)

    def worst(rows: Tensor) -> Tensor:
        return rows.square().mean(1).sqrt().max()

    times = torch.tensor(ends, dtype=torch.float64)
    walked = odeint(
        rates, flat, times, rtol=tolerance, atol=tolerance, method="dopri5",
        options={"norm": worst},
    )  # fmt: skip
    assert isinstance(walked, Tensor)
    end = walked[-1]
    return end[:, :width].reshape(shape).to(y.dtype), end[:, width:].T, calls


def _slope(
    denoiser: Denoiser, y: Tensor, t: float, r: float, cond: Cond, probes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return dy / dln r, shape of y, and r tr(d eps / d y), float64 (K, B), or (1, B)."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        eps = denoiser(denoiser.process.levels(t)[0] * y, t, cond).eps
        if probes is None:
            flat = eps.flatten(1).sum(0)  # samples do not see each other
            rows = range(len(flat))
            parts = [
                torch.autograd.grad(flat[i], y, retain_graph=True)[0].flatten(1)[:, i]
                for i in rows
            ]
            trace = torch.stack(parts).double().sum(0, keepdim=True)
        else:
            products = (torch.autograd.grad(eps, y, v, retain_graph=True)[0] * v for v in probes)
            trace = torch.stack([p.flatten(1).double().sum(1) for p in products])
    return r * eps.detach(), r * trace


def _normal(process: Process) -> Callable[[Tensor, float], Tensor]:
    """Return ln N(x; 0, prior_std(t)^2 I)."""

    def log_prob(x: Tensor, t: float) -> Tensor:
        flat, var = x.flatten(1).double(), float(process.prior_std(t)) ** 2
        return -(flat.square() / var + math.log(2 * math.pi * var)).sum(1) / 2

    return log_prob
