"""How training times are drawn: the density of noise levels that the network sees.

Each law here is called with the process, the batch size and an explicit generator. All are frozen
values but `LossSecondMoment`, which learns where the loss is: what it has learned is part of the
state of a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import UsageError
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
        u = _strata(n, noise)
        if isinstance(process, Tabulated):
            return ((u * process.steps).floor().clamp(max=process.steps - 1) + 1) / process.steps
        return self.low + (1 - self.low) * u


def _strata(n: int, noise: torch.Generator) -> Tensor:
    """Return n numbers in [0, 1), uniform each and one in every n-th part together."""
    offset = torch.rand(1, generator=noise, device=noise.device)
    u = (torch.arange(n, device=noise.device) / n + offset) % 1
    # the strata go to the samples in random order: the data come sorted by nothing, but
    # a resumed or sharded batch must not pair positions with noise levels either
    return u[torch.randperm(n, generator=noise, device=noise.device)]


@dataclass(frozen=True)
class Ladder:
    """Draw one of L levels that are even in t from 0 to 1: NCSN's ladder along a `VE` process.

    All levels are equally likely, and stratified over the batch as `Uniform` is.

    Args:
        levels: L, >= 1; one level is that of t = 0.

    Raises:
        UsageError: L < 1; when called, a process that is clean at t = 0.

    Source: Song and Ermon, 2019, section 4.2 (arXiv 1907.05600).
    """

    levels: int

    def __post_init__(self) -> None:
        """Check the number."""
        if self.levels < 1:
            raise UsageError(f"a ladder of {self.levels} noise levels: must have at least 1")

    def __call__(self, process: Process, n: int, noise: torch.Generator) -> Tensor:
        """Return times i / (L - 1), shape (n,), 0 is the least noise."""
        if not float(process.sigma(0.0)) > 0:
            raise UsageError(
                f"a ladder of noise levels along {process}: its t = 0 is clean data, which is no "
                "level; take the process VE"
            )
        level = (_strata(n, noise) * self.levels).floor().clamp(max=self.levels - 1)
        return level / max(self.levels - 1, 1)


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


class LossSecondMoment:
    """Draw the steps of a chain in proportion to the root mean square of their last losses.

    p_i ~ sqrt(E[L_i^2]), with a little of the uniform law mixed in, and uniform until every step
    has its losses. A loss times `weight` has the mean of uniform times, and where losses differ by
    orders of magnitude from step to step, as the terms of the bound do, much less variance. The
    hybrid objective gains nothing by it (the authors'), so `Bound` alone takes it.

    An objective calls it, then `see` with the losses; once a step the training loop gathers what
    all ranks have `seen` and lets each of them `learn` all of it, so that they stay in step.

    Args:
        steps: T of the chain, >= 2.
        keep: losses remembered of each step, >= 1.
        uniform: share of the uniform law, in (0, 1].

    Raises:
        UsageError: a number outside its range; when called, a process of other steps.

    Source: Nichol and Dhariwal, 2021, eq. 18 (arXiv 2102.09672); the uniform share is of their
        program.
    """

    def __init__(self, steps: int, keep: int = 10, uniform: float = 1e-3) -> None:
        if steps < 2 or keep < 1 or not 0 < uniform <= 1:
            raise UsageError(
                f"importance sampling of {steps} steps, {keep} losses of each, uniform share "
                f"{uniform}: at least 2 and 1, and a share in (0, 1]"
            )
        self.steps, self.keep, self.uniform = steps, keep, uniform
        self.restore(None)

    def __repr__(self) -> str:
        return f"LossSecondMoment({self.steps}, {self.keep}, {self.uniform})"

    @property
    def probabilities(self) -> Tensor:
        """The probabilities of the steps 1 ... T, shape (T,), float64, on the CPU."""
        root = self._history.double().square().mean(1).sqrt()
        if int(self._count.min()) < self.keep or not root.sum() > 0:
            root = torch.ones_like(root)
        return (1 - self.uniform) * root / root.sum() + self.uniform / self.steps

    def __call__(self, process: Process, n: int, noise: torch.Generator) -> Tensor:
        """Return n times i / T, shape (n,), float32, stratified over the batch as `Uniform` is."""
        total = process.steps if isinstance(process, Tabulated) else None
        if total != self.steps:
            raise UsageError(
                f"importance sampling of {self.steps} steps: the process has {total or 'no table'}"
            )
        device = noise.device
        # 53 random bits, not the 24 of a float32: the rarest step has a share of 1e-3 / T
        offset = torch.randint(2**53, (1,), generator=noise, device=device).cpu().double() / 2**53
        u = (torch.arange(n) + offset) / n
        ends = self.probabilities.cumsum(0)
        index = torch.searchsorted(ends, u * ends[-1], right=True).clamp(max=self.steps - 1)
        t = ((index + 1).double() / self.steps).float().to(device)
        return t[torch.randperm(n, generator=noise, device=device)]

    def weight(self, t: Tensor) -> Tensor:
        """Return 1 / (T p_t), which makes the mean loss that of uniform times.

        Args:
            t: times i / T, shape (B,).

        Returns:
            shape (B,), float64, on the CPU.
        """
        return 1 / (self.steps * self.probabilities[self._index(t).cpu()])

    def see(self, t: Tensor, losses: Tensor) -> None:
        """Note losses of this rank, before any weight.

        Args:
            t: times i / T, shape (B,).
            losses: shape (B,).
        """
        self._seen.append(torch.stack([self._index(t).float(), losses.detach().float()], 1))

    def seen(self) -> Tensor:
        """Return what was noted since the last call, (index, loss) in rows: shape (n, 2)."""
        rows, self._seen = self._seen, []
        return torch.cat(rows) if rows else torch.empty(0, 2)

    def learn(self, rows: Tensor) -> None:
        """Remember losses; a step forgets its oldest.

        Args:
            rows: what `seen` returned, of all ranks, shape (n, 2).
        """
        history, count = self._history.numpy(), self._count.numpy()  # views: 50 times faster
        for index, loss in rows.tolist():
            i = int(index)
            history[i, count[i] % self.keep] = loss
            count[i] += 1

    def state(self) -> dict[str, Tensor]:
        """Return what was learned: losses (T, keep), float32, and their number (T,), int64."""
        return {"history": self._history, "count": self._count}

    def restore(self, stored: Mapping[str, Tensor] | None) -> None:
        """Take what `state` returned, or forget everything.

        Args:
            stored: tensors of the shapes of `state`, or None.

        Raises:
            ValueError: a tensor is missing or of another shape.
        """
        self._seen: list[Tensor] = []
        self._history = torch.zeros(self.steps, self.keep)
        self._count = torch.zeros(self.steps, dtype=torch.int64)
        for name, own in self.state().items() if stored is not None else ():
            value = None if stored is None else stored.get(name)
            if value is None or value.shape != own.shape:
                raise ValueError(f"{name} of importance sampling does not fit {self.steps} steps")
            own.copy_(value)

    def _index(self, t: Tensor) -> Tensor:
        """Return i - 1 of times i / T, shape (B,), int64."""
        return (t * self.steps).round().long() - 1
