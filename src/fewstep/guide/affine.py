"""Guidances that are affine: sums of predictions and gradients, the same in every view."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep import conditions, shapes
from fewstep.conditions import Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.prediction import Prediction
from fewstep.shapes import Number

# Images; above it one doubled batch gains little over two calls on a CPU and takes more memory.
_DOUBLE_UP_TO = 16


def check_scale(scale: float) -> None:
    """Raise UsageError unless a guidance scale is a finite number."""
    if not math.isfinite(scale):
        raise UsageError(f"guidance scale {scale}: must be a finite number")


def check_null(denoiser: Denoiser, what: str) -> None:
    """Raise UsageError unless a denoiser knows the null condition."""
    if not denoiser.null:
        raise UsageError(
            f"{what}: this model never saw the null condition (it was trained without label "
            "dropout); use scale 1, or train it with objective.drop=0.1"
        )


class ClassifierFree(Denoiser):
    """Guide with the difference between the conditional and the unconditional prediction.

    prediction = uncond + scale (cond - uncond), the same rule in eps, x0, v and score. It is the
    talk's (1 + w) eps(x, y) - w eps(x) with scale = 1 + w. Scales 0 and 1 cost one evaluation.

    Args:
        denoiser: a denoiser that knows the null condition.
        scale: the exponent s, any finite number.

    Raises:
        UsageError: scale is not finite, or the model never saw the null condition.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, eq. 6 (arXiv
        2207.12598).
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__()
        check_scale(scale)
        if scale != 1:
            check_null(denoiser, f"guidance scale {scale}")
        self.denoiser, self.scale, self.process = denoiser, float(scale), denoiser.process
        self.null = denoiser.null

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the guided prediction; without a condition, the unconditional one."""
        if cond is None or self.scale == 1:
            return self.denoiser(x_t, t, cond)
        if self.scale == 0:
            return self.denoiser(x_t, t, conditions.null(cond))
        uncond, given = branches(self.denoiser, x_t, t, cond)
        return uncond.lerp(given, self.scale)

    def cost(self, t: float) -> int:
        """Return twice the cost of the denoiser, or once at scale 0 and 1."""
        return self.denoiser.cost(t) * (1 if self.scale in (0, 1) else 2)


def branches(
    denoiser: Denoiser, x_t: Tensor, t: Number, cond: Cond
) -> tuple[Prediction, Prediction]:
    """Return the unconditional and the conditional prediction, in one call or in two.

    Few images fill neither a GPU nor a CPU, and a GPU is better filled by one doubled batch at
    any size; on a CPU a doubled batch of many images is no faster and takes more memory.

    Args:
        denoiser: a denoiser that knows the null condition.
        x_t: noisy batch, shape (B, *).
        t: times, a float or (B,).
        cond: the condition; the unconditional branch is asked with `conditions.null` of it.
    """
    nothing = conditions.null(cond)
    if x_t.shape[0] > _DOUBLE_UP_TO and not x_t.is_cuda:
        return denoiser(x_t, t, nothing), denoiser(x_t, t, cond)
    times = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
    both = denoiser(torch.cat([x_t, x_t]), times, conditions.join(nothing, cond))
    alpha, sigma = denoiser.levels(x_t, t)
    x0, eps = both.x0.chunk(2), both.eps.chunk(2)
    wide = (None, None) if both.variance is None else both.variance.chunk(2)
    first, second = (Prediction(x_t, alpha, sigma, x0[i], eps[i], wide[i]) for i in (0, 1))
    return first, second


class LogProb(Denoiser):
    """Guide with the gradient of a log-probability: a noisy classifier or CLIP.

    score = score(x_t, y) + scale grad log p(y | x_t), that is eps - scale sigma grad. The wrapped
    denoiser is asked with the condition, so that over a conditional model the exponent is
    1 + scale, as in ADM-G; wrap it in `Unconditional` for p(x) p(y|x)^scale.

    Args:
        denoiser: any denoiser.
        log_prob: log_prob(x_t, t, cond) -> (B,), differentiable in x_t, no sample depending on
            another.
        scale: the exponent s, any finite number.

    Raises:
        UsageError: scale is not finite.

    Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, eq. 14 and
        algorithm 2 (arXiv 2105.05233).
    """

    def __init__(
        self, denoiser: Denoiser, log_prob: Callable[[Tensor, Number, Cond], Tensor], scale: float
    ) -> None:
        super().__init__()
        check_scale(scale)
        self.denoiser, self.log_prob, self.scale = denoiser, log_prob, float(scale)
        self.process, self.null = denoiser.process, denoiser.null

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the shifted prediction."""
        plain = self.denoiser(x_t, t, cond)
        if self.scale == 0 or cond is None:
            return plain
        return plain.shift_score(self.gradient(x_t, t, cond))

    def gradient(self, x_t: Tensor, t: Number, cond: Cond) -> Tensor:
        """Return scale times the gradient of log p(y | x_t) in x_t, shape (B, *)."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(x, t, cond).sum(), x)
        return self.scale * gradient

    def cost(self, t: float) -> int:
        """Return the cost of the denoiser; the classifier is not counted."""
        return self.denoiser.cost(t)


class Auto(Denoiser):
    """Guide with the difference between a good model and a weaker one of its family.

    prediction = weak + scale (good - weak), both asked with the same condition, so it works on
    unconditional models too. The weak one is smaller, or less trained, or both; it makes the same
    mistakes, only larger. At scale 1 it is not asked.

    Args:
        good: the denoiser to improve.
        weak: a weaker denoiser of the same process.
        scale: 1 is `good` itself, more than 1 guided; any finite number.

    Raises:
        UsageError: scale is not finite, or the processes differ.

    Source: Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", 2024, eq. 3
        (arXiv 2406.02507).
    """

    def __init__(self, good: Denoiser, weak: Denoiser, scale: float) -> None:
        super().__init__()
        check_scale(scale)
        if good.process.describe() != weak.process.describe():
            raise UsageError(
                f"autoguidance: the weak model has the process {weak.process.describe()}, the "
                f"good one {good.process.describe()}; take models of one process"
            )
        self.good, self.weak, self.scale = good, weak, float(scale)
        self.process, self.null = good.process, good.null and (weak.null or scale == 1)

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the guided prediction."""
        if self.scale == 1:
            return self.good(x_t, t, cond)
        return self.weak(x_t, t, cond).lerp(self.good(x_t, t, cond), self.scale)

    def cost(self, t: float) -> int:
        """Return the cost of both, or of the good one alone at scale 1."""
        return self.good.cost(t) + (0 if self.scale == 1 else self.weak.cost(t))


class Interval(Denoiser):
    """Guide only while the noise-to-signal ratio sigma / alpha lies in (low, high].

    Guidance early spoils diversity and late changes nothing; outside the interval the plain
    denoiser is asked, which costs one evaluation.

    Args:
        guided: the denoiser inside the interval.
        plain: the denoiser outside, of the same process.
        low: lower end in units of sigma / alpha, >= 0.
        high: upper end, > low, may be inf.

    Raises:
        UsageError: low < 0 or high <= low.

    Source: Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and
        Distribution Quality in Diffusion Models", 2024, eq. 5 (arXiv 2404.07724).
    """

    def __init__(
        self, guided: Denoiser, plain: Denoiser, low: float = 0.0, high: float = math.inf
    ) -> None:
        super().__init__()
        if not 0 <= low < high:
            raise UsageError(f"guidance interval ({low}, {high}]: must satisfy 0 <= low < high")
        self.guided, self.plain, self.low, self.high = guided, plain, low, high
        self.process, self.null = guided.process, guided.null and plain.null

    def _ratio(self, t: Number) -> Number:
        return shapes.divide(self.process.sigma(t), self.process.alpha(t))

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the guided prediction inside, the plain one outside."""
        ratio = self._ratio(t)
        if not isinstance(ratio, Tensor):
            inside = self.low < ratio <= self.high
            return (self.guided if inside else self.plain)(x_t, t, cond)
        weight = ((ratio > self.low) & (ratio <= self.high)).to(x_t.dtype)
        return self.plain(x_t, t, cond).lerp(self.guided(x_t, t, cond), weight)

    def cost(self, t: float) -> int:
        """Return the cost of the denoiser that is asked at t."""
        ratio = self._ratio(t)
        return (self.guided if self.low < ratio <= self.high else self.plain).cost(t)


class Unconditional(Denoiser):
    """Ask the denoiser without the condition, whatever condition is given.

    Args:
        denoiser: a denoiser that knows the null condition.

    Raises:
        UsageError: the model never saw the null condition.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        if not denoiser.null:
            raise UsageError(
                "unconditional sampling: this model never saw the null condition (it was "
                "trained without label dropout); give a class"
            )
        self.denoiser, self.process = denoiser, denoiser.process

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the prediction for the null condition."""
        return self.denoiser(x_t, t, conditions.null(cond))

    def cost(self, t: float) -> int:
        """Return the cost of the denoiser."""
        return self.denoiser.cost(t)
