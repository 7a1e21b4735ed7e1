"""How training times are drawn: the density of noise levels that the network sees.

Each law here is a frozen value, called with the process, the batch size and an explicit
generator.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.process import Process, Tabulated


class Times(Protocol):
    """Draw training times."""

    def __call__(self, process: Process, n: int, noise: torch.Generator) -> Tensor:
        """Return n times in (0, 1], shape (n,), float32, on the generator's device."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Draw t uniformly, stratified over the batch; whole steps for a `Tabulated` process.

    Sample k of n draws from [k / n, (k + 1) / n), rotated by one common offset: every t is still
    uniform, but a batch covers all noise levels, which lowers the variance of its loss.

    Args:
        low: least time, > 0: at t = 0 there is nothing to learn and eps is undefined.

    Source: Kingma et al., "Variational Diffusion Models", 2021, appendix I.1 (arXiv 2107.00630).
    """

    low: float = 1e-3

    def __call__(self, process: Process, n: int, noise: torch.Generator) -> Tensor:
        """Return times in [low, 1), shape (n,)."""
        offset = torch.rand(1, generator=noise, device=noise.device)
        u = (torch.arange(n, device=noise.device) / n + offset) % 1
        # the strata go to the samples in random order: the data come sorted by nothing, but
        # a resumed or sharded batch must not pair positions with noise levels either
        u = u[torch.randperm(n, generator=noise, device=noise.device)]
        if isinstance(process, Tabulated):
            return ((u * process.steps).floor().clamp(max=process.steps - 1) + 1) / process.steps
        return self.low + (1 - self.low) * u


@dataclass(frozen=True)
class LogNormal:
    """Draw ln(sigma / alpha) from a normal law, as EDM does.

    Args:
        mean: mean of ln(sigma / alpha).
        std: its standard deviation, > 0.

    Source: Karras et al., 2022, table 1, "Noise distribution" (arXiv 2206.00364).
    """

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, process: Process, n: int, noise: torch.Generator) -> Tensor:
        """Return times in (0, 1], shape (n,)."""
        z = torch.randn(n, generator=noise, device=noise.device)
        t = process.time(-2 * (self.mean + self.std * z))
        assert isinstance(t, Tensor)
        return t.clamp(1e-5, 1.0)
