r"""The Gaussian process that turns data into noise.

Every diffusion model here is a family of noisy versions of the data,

    x_t = alpha(t) x0 + sigma(t) eps,      eps ~ N(0, I),      t in [0, 1], 0 = data, 1 = noise.

t is only a label; the coordinate that matters is the log signal-to-noise ratio
logsnr(t) = 2 ln(alpha / sigma), which falls strictly, and `time` is its inverse: two processes
that visit the same log-SNRs make the same samples; DDPM's alpha-bar is `alpha**2`. `VP`, `Cosine`,
`VE`, `EDM` and `Tabulated` (discrete DDPM) are frozen values and answer for a float or (B,) times.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from fewstep import shapes
from fewstep.errors import UsageError, suggest
from fewstep.shapes import Number

_REMEMBERED = 4096  # times whose levels a process keeps


class Process(ABC):
    """Map a time t in [0, 1] to the signal level alpha and the noise level sigma."""

    @abstractmethod
    def alpha(self, t: Number) -> Number:
        """Return the factor of the data: a float or shape (B,), in [0, 1]."""

    @abstractmethod
    def sigma(self, t: Number) -> Number:
        """Return the standard deviation of the noise: a float or shape (B,), >= 0."""

    @abstractmethod
    def time(self, logsnr: Number) -> Number:
        """Return the t with this log-SNR: the inverse of `logsnr`, a float or shape (B,)."""

    def levels(self, t: Number) -> tuple[Number, Number]:
        """Return (alpha, sigma); those of a float are worked out once and remembered.

        A sampler asks for the same few times again and again, for every batch.
        """
        if isinstance(t, Tensor):
            return self.alpha(t), self.sigma(t)
        pair = self._known.get(t)
        if pair is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            pair = self._known[t] = self.alpha(t), self.sigma(t)
        return pair

    @cached_property
    def _known(self) -> dict[float, tuple[Number, Number]]:
        return {}

    def logsnr(self, t: Number) -> Number:
        """Return 2 ln(alpha / sigma): falls with t, +inf where sigma is 0."""
        return 2 * (shapes.log(self.alpha(t)) - shapes.log(self.sigma(t)))

    def prior_std(self, t: Number) -> Number:
        """Return the standard deviation of x_t for data of unit variance: where sampling starts.

        It is 1 for every variance-preserving process and sigma to 1e-4 for the exploding ones.
        """
        alpha, sigma = self.alpha(t), self.sigma(t)
        return shapes.sqrt(alpha * alpha + sigma * sigma)

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values; `from_description` reads them."""
        return {"name": type(self).__name__, **asdict(self)}  # pyright: ignore[reportArgumentType] -- every leaf is a dataclass


def _check(process: Process, good: Callable[[], bool], allowed: str) -> None:
    """Refuse what is no finite number (a recipe may hold text or true) or breaks the rule."""
    values = vars(process).values()
    real = all((isinstance(v, float) or type(v) is int) and math.isfinite(v) for v in values)
    if not (real and good()):
        raise UsageError(f"process {process}: needs finite numbers with {allowed}")


@dataclass(frozen=True)
class VP(Process):
    """Preserve the variance with a noise rate that is linear in t.

    alpha(t) = exp(-(beta_max - beta_min) t^2 / 4 - beta_min t / 2), sigma^2 = 1 - alpha^2. This
    is the limit T -> inf of DDPM's linear betas 1e-4..0.02 (beta_min, beta_max = T times them).

    Args:
        beta_min: noise rate at t = 0, > 0.
        beta_max: noise rate at t = 1, > beta_min.

    Raises:
        UsageError: not 0 < beta_min < beta_max, or not finite.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
        Equations", 2021, eq. 33 (arXiv 2011.13456).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        """Check the range."""
        _check(self, lambda: 0 < self.beta_min < self.beta_max, "0 < beta_min < beta_max")

    def _log_alpha(self, t: Number) -> Number:
        return -0.25 * (self.beta_max - self.beta_min) * t * t - 0.5 * self.beta_min * t

    def alpha(self, t: Number) -> Number:
        """Return exp(log alpha)."""
        return shapes.exp(self._log_alpha(t))

    def sigma(self, t: Number) -> Number:
        """Return sqrt(1 - alpha^2), without cancellation near t = 0."""
        return shapes.sqrt(-shapes.expm1(2 * self._log_alpha(t)))

    def time(self, logsnr: Number) -> Number:
        """Solve the quadratic in t, in the form that does not cancel near t = 0."""
        log1p = shapes.log1p(shapes.exp(-logsnr))  # = -2 log alpha
        slope = self.beta_max - self.beta_min
        root = shapes.sqrt(self.beta_min**2 + 2 * slope * log1p)
        return 2 * log1p / (root + self.beta_min)


@dataclass(frozen=True)
class Cosine(Process):
    """Preserve the variance along a quarter circle: the angle grows in step with t.

    alpha = cos(phi), sigma = sin(phi), phi = (1 - floor) t pi / 2. t = 0 is exactly clean and
    `floor` keeps alpha(1) > 0, so that log-SNR stays finite at the noisy end. DDPM's cosine
    betas (with their offset s and clipping) are `Tabulated("cosine")`.

    Args:
        floor: signal left at t = 1, as a share of the quarter circle, in [0, 1).

    Raises:
        UsageError: floor outside [0, 1), or not finite.

    Source: after Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models",
        2021, eq. 17 (arXiv 2102.09672).
    """

    floor: float = 1e-3

    def __post_init__(self) -> None:
        """Check the range."""
        _check(self, lambda: 0 <= self.floor < 1, "0 <= floor < 1")

    def _phi(self, t: Number) -> Number:
        return (1 - self.floor) * (math.pi / 2) * t

    def alpha(self, t: Number) -> Number:
        """Return cos(phi)."""
        return shapes.cos(self._phi(t))

    def sigma(self, t: Number) -> Number:
        """Return sin(phi)."""
        return shapes.sin(self._phi(t))

    def time(self, logsnr: Number) -> Number:
        """Return the angle atan(sigma / alpha) as a share of the whole."""
        phi = shapes.atan2(shapes.exp(-logsnr / 2), shapes.ones(logsnr))
        return phi / ((1 - self.floor) * (math.pi / 2))


@dataclass(frozen=True)
class VE(Process):
    """Explode the variance geometrically: NCSN's ladder of noise levels made continuous.

    alpha = 1, sigma(t) = sigma_min^(1-t) sigma_max^t. t = 0 is the least noise of the ladder,
    not clean data; NCSN ends with one denoising.

    Args:
        sigma_min: noise at t = 0, > 0, in units of the data.
        sigma_max: noise at t = 1, > sigma_min.

    Raises:
        UsageError: not 0 < sigma_min < sigma_max, or not finite.

    Source: Song et al., 2021, eq. 30-31 (arXiv 2011.13456), without the term -sigma_min^2 of an
        exact SDE, as in the authors' program.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        """Check the range."""
        _check(self, lambda: 0 < self.sigma_min < self.sigma_max, "0 < sigma_min < sigma_max")

    def alpha(self, t: Number) -> Number:
        """Return 1."""
        return shapes.ones(t)

    def sigma(self, t: Number) -> Number:
        """Return sigma_min (sigma_max / sigma_min)^t."""
        return self.sigma_min * shapes.exp(math.log(self.sigma_max / self.sigma_min) * t)

    def time(self, logsnr: Number) -> Number:
        """Return the share of the ladder climbed."""
        return (-logsnr / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(Process):
    """Explode the variance with sigma itself as the time: alpha = 1, sigma = sigma_max t.

    A uniform grid in this t is a poor choice; use `solvers.grids.karras`.

    Args:
        sigma_max: noise at t = 1, > 0, in units of the data.

    Raises:
        UsageError: sigma_max <= 0, or not finite.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022, table 1, column "Ours" (arXiv 2206.00364).
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        """Check the range."""
        _check(self, lambda: self.sigma_max > 0, "sigma_max > 0")

    def alpha(self, t: Number) -> Number:
        """Return 1."""
        return shapes.ones(t)

    def sigma(self, t: Number) -> Number:
        """Return sigma_max t."""
        return self.sigma_max * t

    def time(self, logsnr: Number) -> Number:
        """Return sigma / sigma_max."""
        return shapes.exp(-logsnr / 2) / self.sigma_max


@dataclass(frozen=True)
class Tabulated(Process):
    """Follow the table of discrete DDPM: alpha^2 = cumprod(1 - beta) at t = i / T, i = 1..T.

    t = 0 is clean. Between the float64 entries the angle atan(sigma / alpha) is interpolated,
    which is finite at both ends, so that solvers may ask for any t.

    Args:
        betas: "linear" (1e-4..0.02 at T = 1000, scaled by 1000 / T), "cosine" (squared cosine
            with offset 0.008, clipped at 0.999) or the T numbers themselves, each in (0, 1).
        steps: T, a whole number >= 2; ignored and replaced when the numbers are given.
        zero_terminal_snr: shift and scale sqrt(alpha-bar) so that t = 1 is pure noise (no eps).

    Raises:
        UsageError: an unknown name, or a value that is not as said above.

    Source: Ho et al., 2020, section 4 (arXiv 2006.11239); Nichol and Dhariwal, 2021, eq. 17 (arXiv
        2102.09672); Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed",
        2023, algorithm 1 (arXiv 2305.08891).
    """

    betas: str | tuple[float, ...] = "linear"
    steps: int = 1000
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        """Check the numbers once, so that a table never fails later."""
        if not isinstance(self.betas, str):
            try:
                numbers = tuple(float(b) for b in self.betas)
            except (TypeError, ValueError):
                raise UsageError(f"betas {self.betas!r}: must be a name or numbers") from None
            object.__setattr__(self, "betas", numbers)
            object.__setattr__(self, "steps", len(numbers))
        elif self.betas not in ("linear", "cosine"):
            near = suggest(self.betas, ["linear", "cosine"])
            raise UsageError(f'betas "{self.betas}": allowed are linear and cosine{near}')
        if type(self.steps) is not int or self.steps < 2:
            raise UsageError(f"steps {self.steps!r}: must be a whole number, at least 2")
        if not isinstance(self.zero_terminal_snr, bool):
            raise UsageError(f"zero_terminal_snr {self.zero_terminal_snr!r}: must be a bool")
        least = "; linear needs at least 21 steps" if self.betas == "linear" else ""
        for i, beta in ((i, b) for i, b in enumerate(_betas(self)) if not 0 < b < 1):
            raise UsageError(f"beta[{i}] = {beta:g}: must be above 0 and below 1{least}")

    @property
    def alpha_bar(self) -> Tensor:
        """Return DDPM's table alpha-bar, shape (T,), float64, entry i is t = (i + 1) / T."""
        return _roots(self) ** 2

    @property
    def beta(self) -> Tensor:
        """Return the betas that belong to `alpha_bar`, shape (T,), float64."""
        bar = self.alpha_bar
        own = 1 - bar / torch.cat([bar.new_ones(1), bar[:-1]])
        return own if self.zero_terminal_snr else torch.tensor(_betas(self), dtype=own.dtype)

    def _phi(self, t: Number) -> Number:
        if isinstance(t, Tensor):
            table = self._table(t.device)
            u = t.to(table.dtype) * self.steps
            i = u.floor().long().clamp(0, self.steps - 1)
            return torch.lerp(table[i], table[i + 1], u - i).to(t.dtype)
        u = t * self.steps
        i = min(max(int(u), 0), self.steps - 1)
        low, high = self._angle_list[i : i + 2]
        return low + (u - i) * (high - low)

    def _table(self, device: torch.device) -> Tensor:
        """Return `_angles` on this device, copied there once: a training step copies nothing."""
        if device not in self._tables:
            dtype = torch.float64 if device.type != "mps" else torch.float32  # mps has no doubles
            self._tables[device] = _angles(self).to(device, dtype)
        return self._tables[device]

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def _angle_list(self) -> list[float]:
        return _angles(self).tolist()  # kept: a look-up by value hashes the betas

    def alpha(self, t: Number) -> Number:
        """Return cos(phi): sqrt(alpha-bar) at the entries of the table."""
        return shapes.cos(self._phi(t))

    def sigma(self, t: Number) -> Number:
        """Return sin(phi): sqrt(1 - alpha-bar) at the entries of the table."""
        return shapes.sin(self._phi(t))

    def time(self, logsnr: Number) -> Number:
        """Invert the interpolated table."""
        phi = shapes.atan2(shapes.exp(-logsnr / 2), shapes.ones(logsnr))
        if not isinstance(phi, Tensor):
            k = min(max(bisect_left(self._angle_list, phi) - 1, 0), self.steps - 1)
            low, high = self._angle_list[k : k + 2]
            return (k + (phi - low) / (high - low)) / self.steps
        table, p = self._table(phi.device), phi.to(self._table(phi.device).dtype)
        i = (torch.searchsorted(table, p.contiguous()) - 1).clamp(0, self.steps - 1)
        return ((i + (p - table[i]) / (table[i + 1] - table[i])) / self.steps).to(phi)


@lru_cache(maxsize=64)
def _betas(process: Tabulated) -> tuple[float, ...]:
    """Return DDPM's betas before any rescaling, in double precision."""
    if not isinstance(process.betas, str):
        return process.betas
    n = process.steps
    if process.betas == "linear":
        scale = 1000 / n
        return tuple(torch.linspace(scale * 1e-4, scale * 0.02, n, dtype=torch.float64).tolist())
    bar = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    return tuple(min(1 - bar[i + 1] / bar[i], 0.999) for i in range(n))


@lru_cache(maxsize=64)
def _roots(process: Tabulated) -> Tensor:
    """Return sqrt(alpha-bar), rescaled if asked: shape (T,), float64, falling."""
    root = (1 - torch.tensor(_betas(process), dtype=torch.float64)).cumprod(0).sqrt()
    if process.zero_terminal_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root


@lru_cache(maxsize=64)
def _angles(process: Tabulated) -> Tensor:
    """Return atan(sigma / alpha) at t = 0, 1/T, ..., 1: shape (T + 1,), float64, rising."""
    root = _roots(process)
    angle = torch.atan2((1 - root**2).sqrt(), root)
    return torch.cat([torch.zeros(1, dtype=torch.float64), angle])


ALL: tuple[type[Process], ...] = (VP, Cosine, VE, EDM, Tabulated)
"""Every process: the laws run over this list."""


def from_description(description: dict[str, Any]) -> Process:
    """Build the process that `Process.describe` described.

    Raises:
        UsageError: the name or a parameter is not known.
    """
    known = {kind.__name__: kind for kind in ALL}
    name = str(description.get("name"))
    if name not in known:
        raise UsageError(f'process "{name}": allowed are {", ".join(known)}{suggest(name, known)}')
    values = {key: value for key, value in description.items() if key != "name"}
    kind: Any = known[name]  # every leaf is a dataclass, which the base class does not say
    fields = kind.__dataclass_fields__
    for key in values:
        if key not in fields:
            raise UsageError(f"process {name} has no parameter {key!r}{suggest(key, fields)}")
    return known[name](**values)
