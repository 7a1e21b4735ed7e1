"""Pairs of noise levels: where a consistency objective compares its function with itself.

A pair is a noisier and a cleaner level on one trajectory, given as ratios sigma / alpha, which
mean the same on every process. `OnGrid` takes neighbours of a grid (Song et al.), `Easy` any
level and one that comes closer to it stage by stage (ECT); both are functions of the step alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fewstep.distill.curriculum import Fixed
from fewstep.errors import UsageError
from fewstep.process import Process


class Pairs(Protocol):
    """Draw pairs of noise levels."""

    def __call__(
        self, process: Process, n: int, step: int, noise: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the noisier and the cleaner sigma / alpha of n pairs.

        Args:
            process: bounds the levels.
            n: number of pairs.
            step: of the optimizer, for curricula.
            noise: the generator.

        Returns:
            two tensors of shape (n,), float64 where the device has it; first > second >= 0.
        """
        ...


@dataclass(frozen=True)
class OnGrid:
    """Take neighbours on a grid of N levels, N by a curriculum.

    Level i of N is (low^(1/rho) + i / (N - 1) (high^(1/rho) - low^(1/rho)))^rho; the N - 1
    intervals are equally likely, or as likely as a normal law of ln(sigma / alpha) says.

    Args:
        points: N as a function of the step, >= 2.
        normal: mean and standard deviation of ln(sigma / alpha), or None for equally likely.
            iCT's mean is minus 1.1.
        low: least level, > 0, where the consistency function is (nearly) the identity.
        high: largest level; cut to what the process reaches.
        rho: > 0; 7 puts most levels at low noise.

    Raises:
        UsageError: levels that do not rise, or a standard deviation <= 0.

    Source: Song et al., 2023, section 4 and appendix C (arXiv 2303.01469), with the grid of
        Karras et al., 2022, eq. 5; the law: Song and Dhariwal, 2023, eq. 8 (arXiv 2310.14189).
    """

    points: Callable[[int], int] = field(default_factory=Fixed)
    normal: tuple[float, float] | None = None
    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        _rising(self.low, self.high)
        if not self.rho > 0 or (self.normal is not None and not self.normal[1] > 0):
            raise UsageError(
                f"rho {self.rho}, law {self.normal}: rho and the deviation must be above 0"
            )

    def __call__(
        self, process: Process, n: int, step: int, noise: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return neighbours, see `Pairs`."""
        levels = self.levels(process, step, noise.device)
        where = torch.rand(n, generator=noise, device=noise.device)
        if self.normal is None:
            lower = (where * (len(levels) - 1)).long().clamp(max=len(levels) - 2)
        else:
            ends = self.shares(levels).cumsum(0).to(torch.float32)
            lower = torch.searchsorted(ends, where, right=True).clamp(max=len(levels) - 2)
        return levels[lower + 1], levels[lower]

    def levels(self, process: Process, step: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the grid, shape (N,), rising, made on the device: nothing is copied to it."""
        low, high = bounds(process, self.low, self.high)
        a, b = low ** (1 / self.rho), high ** (1 / self.rho)
        wide = _wide(torch.device(device))
        return torch.linspace(a, b, self.points(step), dtype=wide, device=device) ** self.rho

    def shares(self, levels: Tensor) -> Tensor:
        """Return the probabilities of the intervals of a grid; they add up to 1.

        Args:
            levels: shape (N,), from `levels`.

        Returns:
            shape (N - 1,), in the dtype of the levels.
        """
        if self.normal is None:
            return torch.full_like(levels[1:], 1 / (len(levels) - 1))
        mean, std = self.normal
        share = torch.erf((levels.log() - mean) / (math.sqrt(2) * std)).diff()
        return share / share.sum()


@dataclass(frozen=True)
class Easy:
    """Take any level u, and one that comes closer to it stage by stage.

    ln u ~ N(mean, std^2), and r = max(0, u (1 - n(u) / q^(j + 1))) with n(u) = 1 + k sigmoid(-b u)
    in stage j: at first r is half of a large u, and 0, the clean image, for a small one, which is
    the training of a denoiser; in the end the pair are neighbours.

    Args:
        every: steps of a stage, >= 1; one stage lasts for ever where q is large (256).
        mean: of ln u.
        std: of ln u, > 0.
        q: how much closer a stage is than the one before, > 1.
        k: how much further away the partner of a low level is, >= 0.
        b: how fast that ends as u rises, >= 0.
        low: least u, > 0.
        high: largest u; cut to what the process reaches.

    Raises:
        UsageError: numbers outside these ranges.

    Source: Geng et al., "Consistency Models Made Easy", 2024, section 3 (arXiv 2406.14548).
    """

    every: int
    mean: float = -1.1
    std: float = 2.0
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    low: float = 0.002
    high: float = 80.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        _rising(self.low, self.high)
        if self.every < 1 or not (self.std > 0 and self.q > 1 and self.k >= 0 and self.b >= 0):
            raise UsageError(f"{self}: must be every >= 1, std > 0, q > 1, k >= 0, b >= 0")

    def __call__(
        self, process: Process, n: int, step: int, noise: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return levels and their partners, see `Pairs`."""
        low, high = bounds(process, self.low, self.high)
        z = torch.randn(n, generator=noise, device=noise.device).to(_wide(noise.device))
        u = (self.mean + self.std * z).exp().clamp(low, high)
        return u, self.partner(u, step)

    def partner(self, u: Tensor, step: int) -> Tensor:
        """Return r of levels u, shape (B,), in [0, u)."""
        away = 1 + self.k * torch.sigmoid(-self.b * u)
        return (u * (1 - away / self.q ** (step // self.every + 1))).clamp(min=0)


def bounds(process: Process, low: float, high: float) -> tuple[float, float]:
    """Return the levels that a process reaches of a range of sigma / alpha.

    Raises:
        UsageError: none of them.
    """
    (alpha, sigma), (alpha_1, sigma_1) = process.levels(0.0), process.levels(1.0)
    low = max(low, float(sigma) / float(alpha))
    high = min(high, float(sigma_1) / float(alpha_1) if float(alpha_1) > 0 else math.inf)
    _rising(low, high, f" on {process}")
    return low, high


def _rising(low: float, high: float, where: str = "") -> None:
    if not (0 < low < high and math.isfinite(high)):
        raise UsageError(f"noise levels {low:g} to {high:g}{where}: must be 0 < low < high")


def _wide(device: torch.device) -> torch.dtype:
    """Return the widest float of a device; mps has no doubles."""
    return torch.float32 if device.type == "mps" else torch.float64
