r"""Langevin dynamics: samples of a density of which only the score is known.

One step of size delta is

    x <- x + delta / 2 score(x) + sqrt(delta) z,      z ~ N(0, I),

with the exact score (the unadjusted Langevin algorithm) or, for a Bayesian posterior, that of a
random part of the data (`minibatch_score`, with the falling steps of `decaying`: stochastic
gradient Langevin dynamics). NCSN's programs write the same step as x + a score(x) + sqrt(2 a) z:
their a is half of our delta, and `annealed.step_sizes` converts it.

With a fixed step the chain forgets its start and settles on a law that is too wide: N(0, s^2)
becomes N(0, s^2 / (1 - delta / (4 s^2))), and delta >= 4 s^2 diverges. It is exact in the limit of
small steps, or with the Metropolis correction. Nor does the score in the gap between two modes say
how much each of them weighs: chains stay with the mode they began near (see `annealed`).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.solvers import Noise

Score = Callable[[Tensor], Tensor]
"""score(x) -> the gradient of the log density at x, both of shape (B, *)."""


@dataclass(frozen=True, slots=True)
class Move:
    """One step of the chains, just done.

    Attributes:
        index: number of the step, 0-based.
        step: delta, > 0; the weight of x in averages where steps decay (0 for a denoising).
        x: the chains, shape (B, *).
        accepted: which chains moved, shape (B,), bool; None without the Metropolis correction.
    """

    index: int
    step: float
    x: Tensor
    accepted: Tensor | None = None


def langevin(
    score: Score,
    x: Tensor,
    steps: Iterable[float],
    noise: Noise,
    log_density: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Move]:
    """Yield the chains after every step; it ends with `steps`, or where the caller stops.

    With `log_density` a step is a proposal, accepted with probability min(1, p(y) q(x|y) /
    (p(x) q(y|x))), where q is the Gaussian of the step: the chain then samples p itself, whatever
    delta is, and the score may even be wrong.

    Args:
        score: gradient of the log density, from and to shape (B, *).
        x: start of the chains, shape (B, *); float64 where delta is so small that sums round.
        steps: the step sizes delta > 0, for example `itertools.repeat(0.1, 1000)`.
        noise: source of standard normal noise; `solvers.PerImage` gives each chain its own.
        log_density: log p up to a constant, from shape (B, *) to (B,), or None for no correction.

    Returns:
        an iterator of `Move`.

    Raises:
        UsageError: a step size that is not above 0 and finite (when it is reached).

    Source: Roberts and Tweedie, "Exponential convergence of Langevin distributions and their
        discrete approximations", 1996 (the unadjusted and the Metropolis-adjusted algorithm).
    """
    silent = torch.no_grad()
    for index, delta in enumerate(steps):
        if not 0 < delta < math.inf:
            raise UsageError(f"Langevin step {index} of size {delta:g}: must be finite and > 0")
        accepted = None
        with silent:  # inside the loop: the caller's own code between steps is not ours
            drift = x + delta / 2 * score(x)
            y = drift + math.sqrt(delta) * noise(x)
            if log_density is not None:
                back = y + delta / 2 * score(y)
                gain = log_density(y) - log_density(x)
                gain += (_square(y - drift) - _square(x - back)) / (2 * delta)
                # the normal law of a normal number is uniform: one source of noise is enough
                accepted = torch.special.log_ndtr(noise(gain)) < gain
                y = torch.where(accepted.reshape(-1, *(1,) * (x.ndim - 1)), y, x)
            x = y
        yield Move(index, delta, x, accepted)


def _square(x: Tensor) -> Tensor:
    """Return the squared norms, shape (B,)."""
    return x.flatten(1).square().sum(1)


def decaying(a: float, b: float = 1.0, gamma: float = 0.55) -> Iterator[float]:
    """Yield the step sizes a (b + k)^-gamma for k = 0, 1, ... without end.

    With gamma in (0.5, 1] the sum of the steps diverges, so that the chain gets anywhere, and that
    of their squares does not, so that the errors of the steps and of the minibatches die out.

    Args:
        a: size of the steps, > 0.
        b: > 0; the larger, the slower the first steps fall.
        gamma: in (0.5, 1].

    Raises:
        UsageError: a number outside its range (at the first step).

    Source: Welling and Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", 2011,
        eq. 2 and section 5.1.
    """
    if not (0 < a < math.inf and 0 < b < math.inf and 0.5 < gamma <= 1):
        raise UsageError(
            f"decaying steps a={a:g}, b={b:g}, gamma={gamma:g}: needs a > 0, b > 0 and gamma in "
            "(0.5, 1]"
        )
    for k in count():
        yield a * (b + k) ** -gamma


def minibatch_score(
    prior: Score,
    likelihood: Callable[[Tensor, Tensor], Tensor],
    data: Tensor,
    size: int,
    noise: Noise,
) -> Score:
    """Return an unbiased score of the posterior that looks at `size` of N observations a call.

    grad log prior(theta) + N / size * sum over the batch of grad log p(x_i | theta). Each chain
    draws its own batch, with replacement. The noise of the batches is not corrected for: it
    widens the posterior unless it is small beside the noise of the step (`decaying` sees to it).

    Args:
        prior: gradient of the log prior, from and to shape (B, *).
        likelihood: from theta, shape (B, *), and its observations, shape (B, size, ...), to the
            sum over them of the gradients in theta of log p(x_i | theta), shape (B, *).
        data: the observations, shape (N, ...).
        size: observations per call, in 1..N.
        noise: source of standard normal noise; `solvers.PerImage` gives each chain its own.

    Returns:
        a function from theta to its score, both of shape (B, *).

    Raises:
        UsageError: size outside 1..N.

    Source: Welling and Teh, 2011, eq. 4.
    """
    n = len(data)
    if not 1 <= size <= n:
        raise UsageError(f"minibatch of {size} of {n} observations: must be in 1..{n}")

    def score(theta: Tensor) -> Tensor:
        uniform = torch.special.ndtr(noise(theta.new_empty(len(theta), size)))
        rows = (uniform * n).long().clamp(max=n - 1)
        return prior(theta) + n / size * likelihood(theta, data[rows])

    return score


class Moments:
    """Gather the mean and the variance over chains and steps, each step with its own weight.

    Where steps decay, averages over a posterior weigh each sample by its step: the chain spends
    more time in a long step. Sums are float64 and start from the first mean, so that a small
    variance around a large mean survives.

    Source: Welling and Teh, 2011, section 4; West, "Updating mean and variance estimates", 1979.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._mean = self._square = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor, weight: float = 1.0) -> None:
        """Count the chains x, shape (B, *), each with this weight >= 0."""
        if weight <= 0:
            return
        x = x.detach().double()
        mean, own = x.mean(0), weight * len(x)
        total = self.weight + own
        shift = mean - self._mean if self.weight else torch.zeros_like(mean)
        self._mean = self._mean + shift * (own / total) if self.weight else mean
        spread = weight * (x - mean).square().sum(0)
        self._square = self._square + spread + shift.square() * (self.weight * own / total)
        self.weight = total

    @property
    def mean(self) -> Tensor:
        """The weighted mean, shape (*), float64."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """The weighted mean square around the mean, shape (*), float64."""
        return self._square / self.weight
