"""Curricula: how a consistency objective changes as training goes on, as functions of the step.

A consistency model is taught by pairs of neighbours on a grid of N noise levels. Few levels teach
fast and wrongly, many slowly and rightly, so N grows. Nothing here has a state: a run that is
continued is where it was.
"""

import math
from dataclasses import dataclass

from fewstep.errors import UsageError


@dataclass(frozen=True)
class Fixed:
    """Keep N levels.

    Args:
        points: N, >= 2.

    Raises:
        UsageError: fewer than 2 levels.
    """

    points: int = 18

    def __post_init__(self) -> None:
        """Check the number."""
        if self.points < 2:
            raise UsageError(f"a grid of {self.points} noise levels: a pair needs at least 2")

    def __call__(self, step: int) -> int:
        """Return N at an optimizer step."""
        del step
        return self.points


@dataclass(frozen=True)
class Growing:
    """Let N^2 grow evenly, and with N the memory of the target.

    N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1

    Args:
        total: K, steps of the training, >= 1.
        s0: intervals at the start, >= 1.
        s1: intervals at the end, >= s0.
        mu0: decay of the target where N - 1 = s0, in (0, 1).

    Raises:
        UsageError: numbers outside these ranges.

    Source: Song et al., "Consistency Models", 2023, appendix C (arXiv 2303.01469). The decay
        divides by N - 1, as their program does; the paper writes N.
    """

    total: int
    s0: int = 2
    s1: int = 150
    mu0: float = 0.9

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check(self.total, self.s0, self.s1)
        if not 0 < self.mu0 < 1:
            raise UsageError(f"mu0 {self.mu0}: must be between 0 and 1")

    def __call__(self, step: int) -> int:
        """Return N at an optimizer step."""
        done = min(step / self.total, 1.0)
        square = done * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2
        return math.ceil(math.sqrt(square) - 1) + 1

    def mu(self, step: int) -> float:
        """Return the decay of the target at an optimizer step: mu0^(s0 / (N - 1)), in (0, 1)."""
        return math.exp(self.s0 * math.log(self.mu0) / (self(step) - 1))


@dataclass(frozen=True)
class Doubling:
    """Double the intervals every K' steps: N = min(s0 2^floor(k / K'), s1) + 1.

    K' = floor(K / (floor(log2(s1 / s0)) + 1)) shares the steps out equally.

    Args:
        total: K, steps of the training, >= 1.
        s0: intervals at the start, >= 1.
        s1: intervals at the end, >= s0.

    Raises:
        UsageError: numbers outside these ranges.

    Source: Song and Dhariwal, "Improved Techniques for Training Consistency Models", 2023,
        section 3.4 (arXiv 2310.14189).
    """

    total: int
    s0: int = 10
    s1: int = 1280

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check(self.total, self.s0, self.s1)

    @property
    def each(self) -> int:
        """K', the steps before the next doubling, >= 1."""
        return max(1, self.total // (int(math.log2(self.s1 / self.s0)) + 1))

    def __call__(self, step: int) -> int:
        """Return N at an optimizer step."""
        doublings = min(step // self.each, 64)
        return min(self.s0 << doublings, self.s1) + 1


def _check(total: int, s0: int, s1: int) -> None:
    if total < 1 or not 1 <= s0 <= s1:
        raise UsageError(
            f"a curriculum of {s0} to {s1} intervals in {total} steps: must be 1 <= s0 <= s1 and "
            "at least a step"
        )
