"""The variational bound of a diffusion model: how many bits per dimension its images cost.

A chain of T steps codes an image as what is left at t = 1 (the prior), one Gaussian per step
whose cost is a KL divergence, and the 8-bit values themselves given the last of them. Each part is
in bits per dimension, and their sum bounds -log2 p(image) from above. Training on it is the only
way to a learned variance, of which the squared error says nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.objectives.denoising import Denoising, dropped, noised
from fewstep.objectives.times import LossSecondMoment, Times, Uniform
from fewstep.prediction import Prediction
from fewstep.process import Process, Tabulated
from fewstep.reverse import posterior
from fewstep.shapes import like

VARIANCES = ("small", "large", "learned")
HALF = 1 / 255
"""Half the distance of two 8-bit values in [-1, 1]."""


def log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor, approximate: bool = False) -> Tensor:
    """Return the log-probability of 8-bit values under a Gaussian, in nats, shape of x.

    The mass between the borders of a value; the two outermost values own their tails. At least
    log 1e-12, as in the released programs.

    Args:
        x: multiples of 2 / 255 in [-1, 1], shape (B, *).
        mean: of the Gaussian, shape (B, *).
        log_std: logarithm of its standard deviation, broadcasts against x.
        approximate: take the tanh form of the normal distribution that the released programs
            have, which is off by up to 1.8e-4, in place of erf.

    Source: Ho et al., 2020, eq. 13 (arXiv 2006.11239).
    """
    inverse = torch.exp(-log_std)

    def below(z: Tensor) -> Tensor:
        if approximate:
            return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        return torch.special.ndtr(z)

    upper, lower = inverse * (x - mean + HALF), inverse * (x - mean - HALF)
    # the mass of the upper tail by symmetry: 1 - below(lower) has no digits left far out
    inside = torch.where(lower > 0, below(-lower) - below(-upper), below(upper) - below(lower))
    mass = torch.where(x < -0.999, below(upper), torch.where(x > 0.999, below(-lower), inside))
    return mass.clamp_min(1e-12).log()


@dataclass(frozen=True)
class Chain:
    """The chain of T equal steps in t, as DDPM's tables have them, and its bound.

    Attributes:
        steps: T, >= 2; a `Tabulated` process has its own.
        variance: of the reverse steps: "small", "large" or "learned".
        approximate: see `log_likelihood`.

    Raises:
        UsageError: another variance, or fewer than two steps.
    """

    steps: int = 1000
    variance: str = "learned"
    approximate: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.variance not in VARIANCES:
            raise UsageError(f'variance "{self.variance}": allowed are {", ".join(VARIANCES)}')
        if self.steps < 2:
            raise UsageError(f"steps {self.steps}: must be at least 2")

    @classmethod
    def of(cls, process: Process, variance: str, approximate: bool = False) -> "Chain":
        """Return the chain of a process: that of its table, or a thousand steps."""
        steps = process.steps if isinstance(process, Tabulated) else 1000
        return cls(steps, variance, approximate)

    def whole(self, t: Tensor) -> Tensor:
        """Return the end i / T, i = 1 ... T, of the step in which each time lies, shape (B,)."""
        # float32 times are off by less than the 1e-3 of a step that is taken for its end
        index = (t.double() * self.steps - 1e-3).ceil().clamp(1, self.steps)
        return (index / self.steps).to(t.dtype)

    def term(self, process: Process, guess: Prediction, truth: Prediction, t: Tensor) -> Tensor:
        """Return the bits per dimension of the step that begins at t, shape (B,).

        KL(q(x_s | x_t, x0) || p(x_s | x_t)) for s = t - 1 / T; at the last step, where s = 0, the
        negative log-likelihood of x0. There the true posterior has no width, and the floor of
        the variance is that of the step before, as in the released programs.

        Args:
            process: of the chain.
            guess: the denoiser's prediction for truth.x_t.
            truth: the pair, with x_t; x0 are 8-bit values.
            t: times i / T, i = 1 ... T, shape (B,).

        Raises:
            UsageError: "learned", and the guess has no variance.
        """
        index = (t.double() * self.steps).round().clamp(1, self.steps)
        first = index == 1
        now, past = index / self.steps, (index - 1) / self.steps
        var_ts, tilde = posterior(process, now, past)
        # the step from 2 / T to 1 / T lends its variance to the one below it
        tilde = torch.where(first, posterior(process, 2 / self.steps, 1 / self.steps)[1], tilde)
        x0 = truth.x0
        c0 = like(process.alpha(past) * var_ts / process.sigma(now) ** 2, x0)
        last = first.reshape(-1, *(1,) * (x0.ndim - 1))
        low, high = (torch.as_tensor(like(shapes.log(v), x0)) for v in (tilde, var_ts))
        log_var = self._log_variance(guess, low, torch.where(last, low, high), high)
        # only what depends on x0 differs between the two means
        far = (c0 * (truth.x0 - guess.x0)).square()
        kl = 0.5 * (log_var - low - 1 + torch.exp(low - log_var) + far * torch.exp(-log_var))
        nll = -log_likelihood(x0, guess.x0, 0.5 * log_var, self.approximate)
        bits = torch.where(last, nll, kl.expand_as(nll))
        return bits.flatten(1).mean(1) / math.log(2)

    def _log_variance(self, guess: Prediction, low: Tensor, large: Tensor, high: Tensor) -> Tensor:
        """Return the log-variance of the model's step, broadcasting against the images."""
        if self.variance == "small":
            return low
        if self.variance == "large":
            return large
        if guess.variance is None:
            raise UsageError(
                'variance "learned": this model predicts no variance (its network has as many '
                "output channels as the images); take small or large"
            )
        share = (guess.variance + 1) / 2
        return share * high + (1 - share) * low

    def prior(self, process: Process, x0: Tensor) -> Tensor:
        """Return the bits per dimension of what is left of x0 at t = 1, shape (B,)."""
        alpha, sigma = float(process.alpha(1.0)), float(process.sigma(1.0))
        whole = alpha**2 + sigma**2  # of the Gaussian that sampling begins with, 1 on a circle
        kl = 0.5 * (((alpha * x0).square() + sigma**2) / whole - 1 - math.log(sigma**2 / whole))
        return kl.flatten(1).mean(1) / math.log(2)


@torch.no_grad()
def bound_parts(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond = None,
    variances: Sequence[str] = ("small",),
    terms: int | None = None,
    noise: torch.Generator | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the three parts of the bound of each image, in bits per dimension.

    L_T, the sum of L_1 ... L_T-1, and L_0. The sum is estimated without bias from `terms` of its
    steps, drawn for each image by their `chances`; the prior L_T and the last step L_0 are always
    there. One evaluation of the network does for all variances. The noise is drawn anew at each
    step.

    Args:
        denoiser: clip it (`guide.Clamp`) as when sampling: it only gets better.
        x0: 8-bit values in [-1, 1] (multiples of 2 / 255), shape (B, *).
        cond: classes, shape (B,), or None.
        variances: each "small", "large" or "learned".
        terms: how many steps of the sum, 1 ... T - 1; None = all.
        noise: generator on the device of x0.
        tick: called after each of terms + 1 evaluations.

    Returns:
        shape (len(variances), B, 3), float64.

    Raises:
        UsageError: a variance that is not known or was not learned, or so many terms.

    Source: Ho et al., 2020, eq. 5 (arXiv 2006.11239); Nichol and Dhariwal, 2021, section 2.
    """
    process, n = denoiser.process, len(x0)
    chains = [Chain.of(process, variance) for variance in variances]
    steps = chains[0].steps
    terms = steps - 1 if terms is None else terms
    if not 1 <= terms < steps:
        raise UsageError(f"terms {terms}: must be in 1..{steps - 1}, a chain of {steps} steps")
    source = noise or torch.Generator(x0.device).manual_seed(0)
    found = torch.zeros(len(chains), n, 3, dtype=torch.float64, device=x0.device)
    shift = torch.rand(n, dtype=torch.float64, generator=source, device=x0.device)
    share = chances(process, steps, terms).to(x0.device)
    for j in range(-1, terms):
        index = torch.full((n,), -1, device=x0.device) if j < 0 else chosen(share, shift + j)
        t = (index + 2).double() / steps
        truth = noised(denoiser, x0, t, source)
        guess = denoiser(truth.x_t, t, cond)
        for row, chain in zip(found, chains, strict=True):
            row[:, 0] = chain.prior(process, truth.x0)
            bits = chain.term(process, guess, truth, t)
            row[:, 2 if j < 0 else 1] += bits if j < 0 else bits / share[index]
        tick()
    return found


def chances(process: Process, steps: int, terms: int) -> Tensor:
    """Return the probability of each step of the sum to be one of `terms` that are evaluated.

    Half of it in proportion to the steps' terms for Gaussian data of variance one, whose sums are
    differences of log(1 + SNR) / 2, half of it even. A step for which that is too much is always
    evaluated, so that with as many terms as steps all are.

    Args:
        process: of the chain.
        steps: T.
        terms: 1 ... T - 1.

    Returns:
        shape (T - 1,), float64, in (0, 1]; entry i is the step that begins at (i + 2) / T. Their
        sum is `terms`.
    """
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    told = torch.as_tensor(process.logsnr(t)).exp().log1p()
    even = torch.full((steps - 1,), 1 / (steps - 1), dtype=torch.float64)
    wish = 0.5 * (told[:-1] - told[1:]) / (told[0] - told[-1]) + 0.5 * even
    found = torch.ones_like(wish)
    free = found > 0
    while free.any():
        rest = terms - (~free).sum()
        found[free] = rest * wish[free] / wish[free].sum()
        over = free & (found > 1 - 1e-12)
        found[over] = 1
        if not over.any():
            break
        free &= ~over
    return found


def chosen(share: Tensor, place: Tensor) -> Tensor:
    """Return the step at a place on the line on which each step has the length of its chance.

    Args:
        share: the chances, shape (T - 1,).
        place: in [0, sum of them): a random number in [0, 1) and 0, 1, 2, ... for one draw of
            different steps; shape (B,).

    Returns:
        shape (B,), int64, in 0 ... T - 2.
    """
    return torch.searchsorted(share.cumsum(0), place, right=True).clamp(max=len(share) - 1)


def bits_per_dim(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond = None,
    variance: str = "small",
    noise: torch.Generator | None = None,
) -> Tensor:
    """Return the bound of each image, in bits per dimension: the prior and every step.

    One evaluation of the network per step, so T of them.

    Args:
        denoiser: see `bound_parts`.
        x0: 8-bit values in [-1, 1] (multiples of 2 / 255), shape (B, *).
        cond: classes, shape (B,), or None.
        variance: "small", "large" or "learned".
        noise: generator on the device of x0.

    Returns:
        shape (B,), float64.
    """
    return bound_parts(denoiser, x0, cond, (variance,), None, noise)[0].sum(-1)


@dataclass(frozen=True)
class Hybrid:
    """Train the mean by the squared error and the variance by the bound.

    mse(eps) + rate T L_t, with the bound's gradient stopped at the mean, so that it moves the
    variance alone. For networks that answer with twice the channels, along a table.

    Args:
        rate: factor of the bound; 1 / 1000 in the paper and its programs.
        times: the law of the training times, which are moved to whole steps.
        drop: as in `Denoising`.

    Raises:
        UsageError: a rate below 0 or not finite.

    Source: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, eq. 16
        (arXiv 2102.09672).
    """

    rate: float = 1e-3
    times: Times = field(default_factory=Uniform)
    drop: float = 0.1

    def __post_init__(self) -> None:
        """Check the values."""
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise UsageError(f"rate {self.rate}: must be a finite number >= 0")
        Denoising(times=self.times, drop=self.drop)  # checks them

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, cond: Cond, step: int, noise: torch.Generator
    ) -> Tensor:
        """Return the losses of a batch; see `Denoising`."""
        del step
        chain = Chain.of(denoiser.process, "learned", approximate=True)
        t, guess, truth = _drawn(self, chain, denoiser, x0, cond, noise)
        still = guess.with_x0(guess.x0.detach())
        error = (guess.eps - truth.eps).square().flatten(1).mean(1)
        return error + self.rate * chain.steps * chain.term(denoiser.process, still, truth, t)


@dataclass(frozen=True)
class Bound:
    """Train on the bound itself: T times a random step, an unbiased estimate of their sum.

    Args:
        variance: "small", "large" or "learned".
        times: the law of the training times, which are moved to whole steps; with
            `LossSecondMoment` the losses are reweighted, and it is told what they were.
        drop: as in `Denoising`.

    Source: Ho et al., 2020, eq. 5 (arXiv 2006.11239).
    """

    variance: str = "learned"
    times: Times = field(default_factory=Uniform)
    drop: float = 0.1

    def __post_init__(self) -> None:
        """Check the values."""
        Chain(variance=self.variance)
        Denoising(drop=self.drop)  # checks it

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, cond: Cond, step: int, noise: torch.Generator
    ) -> Tensor:
        """Return the losses of a batch, bits per dimension; see `Denoising`."""
        del step
        chain = Chain.of(denoiser.process, self.variance, approximate=True)
        t, guess, truth = _drawn(self, chain, denoiser, x0, cond, noise)
        term = chain.term(denoiser.process, guess, truth, t)
        if isinstance(self.times, LossSecondMoment):
            self.times.see(t, term)
            term = term * self.times.weight(t).to(term.dtype).to(term.device)
        return chain.steps * term


def _drawn(
    goal: Hybrid | Bound,
    chain: Chain,
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    noise: torch.Generator,
) -> tuple[Tensor, Prediction, Prediction]:
    """Return times at whole steps of the chain, the guess and the truth there."""
    t = chain.whole(goal.times(denoiser.process, len(x0), noise))
    truth = noised(denoiser, x0, t, noise)
    return t, denoiser(truth.x_t, t, dropped(cond, goal.drop, noise)), truth
