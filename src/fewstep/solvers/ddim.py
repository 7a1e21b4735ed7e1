"""The samplers of the talk: DDIM with its dial eta, and DDPM with its three variances.

Both take the predicted point (x0, eps) and put it down on the line of an earlier time,

    x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z,

and differ in how much of the noise is fresh. DDIM(0) is deterministic; DDIM(1) is DDPM with the
posterior variance; DDPM("large") draws more noise than the marginals allow, which costs little
at 1000 steps and ruins the images at 10.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.prediction import Prediction, scaled_sum
from fewstep.process import Process
from fewstep.reverse import posterior
from fewstep.shapes import Number, like
from fewstep.solvers.base import Noise, Solver, draw


@dataclass(frozen=True)
class DDIM(Solver):
    """Step along DDIM's family of processes.

        std = eta sqrt(tilde),   x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z

    eta multiplies the standard deviation, as in the paper and its tables; the talk's slides say
    sigma = eta beta~ once and sigma^2 = eta beta~ later, which agree with it at 0 and 1 only.

    Args:
        eta: 0 = deterministic, 1 = DDPM with the posterior variance, any number >= 0 for which
            the radicand stays positive.

    Raises:
        UsageError: eta is negative or not finite; from `check`, eta too large for the grid.

    Source: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2021, eq. 12 and 16 (arXiv
        2010.02502).
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no grid allows."""
        if not (math.isfinite(self.eta) and self.eta >= 0):
            raise UsageError(f"eta {self.eta}: must be a number >= 0 (0 = DDIM, 1 = DDPM)")

    @property
    def stochastic(self) -> bool:
        """Whether eta > 0."""
        return self.eta > 0

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Number,
        s: Number,
        cond: Cond = None,
        carry: Any = None,
        noise: Noise | None = None,
    ) -> tuple[Tensor, Any]:
        """Return x_s; see `Solver.step`."""
        del carry
        p = denoiser(x, t, cond)
        process = denoiser.process
        alpha_s, sigma_s = process.levels(s)
        if shapes.at_zero(sigma_s):
            return alpha_s * p.x0, None
        if not self.eta:
            return p.at(like(alpha_s, x), like(sigma_s, x)), None
        std = self.eta * shapes.sqrt(posterior(process, t, s)[1])
        keep = shapes.sqrt(sigma_s * sigma_s - std * std)
        mean = p.at(like(alpha_s, x), like(keep, x))
        return mean + like(std, x) * draw(noise, x, self), None

    def check(self, process: Process, times: list[float]) -> None:
        """Raise UsageError if sigma_s^2 - std^2 is negative somewhere on the grid."""
        super().check(process, times)
        if not self.eta:
            return
        largest = math.inf
        for t, s in pairwise(times):
            tilde = float(posterior(process, t, s)[1])
            if tilde > 0:
                largest = min(largest, float(process.sigma(s)) / math.sqrt(tilde))
        if self.eta > largest * (1 + 1e-12):
            named = math.floor(largest * (1 + 1e-12) * 1e4) / 1e4  # rounded down: itself legal
            raise UsageError(
                f"eta {self.eta:g}: too large for these {len(times) - 1} steps, where "
                f"sigma_s^2 - std^2 would be negative; the largest legal eta is {named:.4f}"
            )


@dataclass(frozen=True)
class DDPM(Solver):
    """Step along the reverse chain with a fixed variance or the one that the network learned.

        mean = a sigma_s^2 / sigma_t^2 x_t + alpha_s var_ts / sigma_t^2 x0,   a = alpha_t / alpha_s
        std  = sqrt(tilde) ("small") or sqrt(var_ts) ("large", the talk's sigma-hat)
        log std^2 = f log var_ts + (1 - f) log tilde, f = (v + 1) / 2 ("learned", v the network's)

    "small" is DDIM(1). "large" keeps that mean and exceeds its noise, so that strided chains
    drift from the marginals: the talk's CIFAR-10 row 367 at 10 steps. No noise is added by a
    step that ends on clean data.

    Args:
        variance: "small", "large" or "learned".
        push: push(x_t, t, cond), shape (B, *), the gradient of a log-probability: the mean moves
            by std^2 push, as ADM's ancestral sampler guides. `guide.LogProb(...).gradient` is one.
            For any other solver, and by default for this one, `LogProb` shifts eps instead.

    Raises:
        UsageError: another name; "learned" and a model that says no variance (when stepping).

    Source: Ho et al., 2020, eq. 6-7 and section 3.2 (arXiv 2006.11239); sigma-hat: Song et al.,
        2021, section 5.1 (arXiv 2010.02502); learned: Nichol and Dhariwal, 2021, eq. 15
        (arXiv 2102.09672); push: Dhariwal and Nichol, 2021, algorithm 1 (arXiv 2105.05233),
        with the gradient at x_t as the released program takes it.
    """

    variance: str = "small"
    push: Callable[[Tensor, Number, Cond], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check the name."""
        if self.variance not in ("small", "large", "learned"):
            raise UsageError(f'variance "{self.variance}": allowed are small, large and learned')

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Number,
        s: Number,
        cond: Cond = None,
        carry: Any = None,
        noise: Noise | None = None,
    ) -> tuple[Tensor, Any]:
        """Return x_s; see `Solver.step`."""
        p = denoiser(x, t, cond)
        process = denoiser.process
        alpha_s, sigma_s = process.levels(s)
        var_ts, tilde = posterior(process, t, s)
        if shapes.at_zero(sigma_s):
            end = alpha_s * p.x0
            if self.push is None or self.variance == "small" or carry is None:
                return end, None
            # the program's variance of this step, which is 0, has that of the step before as floor
            var = carry if self.variance == "large" else self._learned(p, var_ts, carry) ** 2
            return end + like(var, x) * self.push(x, t, cond), None
        var_t = process.sigma(t) ** 2
        c_t = process.alpha(t) / alpha_s * sigma_s * sigma_s / var_t
        mean = scaled_sum(like(alpha_s * var_ts / var_t, x), p.x0, like(c_t, x), x)
        if self.variance == "learned":
            std = self._learned(p, var_ts, tilde)
        else:
            # the factor is for batches of times, where some of the steps may end on clean data
            std = like(
                shapes.sqrt(tilde if self.variance == "small" else var_ts * (sigma_s > 0)), x
            )
        if self.push is not None:
            mean = mean + std * std * self.push(x, t, cond)
        return mean + std * draw(noise, x, self), tilde

    def _learned(self, p: Prediction, var_ts: Number, tilde: Number) -> Tensor:
        """Return the standard deviation between the two bounds, shape of x_t; 0 at clean data."""
        if p.variance is None:
            raise UsageError(
                'variance "learned": this model predicts no variance (its network has as many '
                "output channels as the images); take small or large"
            )
        share = (p.variance + 1) / 2
        low, high = (like(shapes.sqrt(v), p.x_t) for v in (tilde, var_ts))
        return low ** (1 - share) * high**share
