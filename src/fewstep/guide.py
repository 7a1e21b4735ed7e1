"""Guidance: denoisers around denoisers.

Each combinator here takes a denoiser and is one, so guidance meets any solver, any objective and
any other guidance. `scale` has one meaning everywhere, the exponent s in p(x) p(y|x)^s at one
noise level: 0 is unconditional, 1 the plain conditional model, more than 1 guided. The talk's w is
s - 1 for classifier-free guidance and s for classifier guidance. (Across noise levels the guided
fields do not sample that sharpened density: see the law with two Gaussians.)
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep import shapes
from fewstep.denoiser import Cond, Denoiser
from fewstep.errors import UsageError
from fewstep.prediction import Prediction
from fewstep.shapes import Number

_DOUBLE_UP_TO = 4  # images; above it one doubled batch is slower than two calls on a CPU


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
        if not math.isfinite(scale):
            raise UsageError(f"guidance scale {scale}: must be a finite number")
        if not denoiser.null and scale != 1:
            raise UsageError(
                f"guidance scale {scale}: this model never saw the null condition (it was "
                "trained without label dropout); use scale 1, or train it with "
                "objective.drop=0.1"
            )
        self.denoiser, self.scale, self.process = denoiser, float(scale), denoiser.process
        self.null = denoiser.null

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the guided prediction; without a condition, the unconditional one."""
        if cond is None or self.scale == 1:
            return self.denoiser(x_t, t, cond)
        if self.scale == 0:
            return self.denoiser(x_t, t)
        if x_t.shape[0] > _DOUBLE_UP_TO and not x_t.is_cuda:
            return self.denoiser(x_t, t).lerp(self.denoiser(x_t, t, cond), self.scale)
        times = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        both = self.denoiser(
            torch.cat([x_t, x_t]), times, torch.cat([torch.full_like(cond, -1), cond])
        )
        alpha, sigma = self.denoiser.levels(x_t, t)
        uncond, guided = both.x0.chunk(2)
        eps_uncond, eps_guided = both.eps.chunk(2)
        half = Prediction(x_t, alpha, sigma, uncond, eps_uncond)
        return half.lerp(Prediction(x_t, alpha, sigma, guided, eps_guided), self.scale)

    def cost(self, t: float) -> int:
        """Return twice the cost of the denoiser, or once at scale 0 and 1."""
        return self.denoiser.cost(t) * (1 if self.scale in (0, 1) else 2)


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
        if not math.isfinite(scale):
            raise UsageError(f"guidance scale {scale}: must be a finite number")
        self.denoiser, self.log_prob, self.scale = denoiser, log_prob, float(scale)
        self.process, self.null = denoiser.process, denoiser.null

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the shifted prediction."""
        plain = self.denoiser(x_t, t, cond)
        if self.scale == 0 or cond is None:
            return plain
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(x, t, cond).sum(), x)
        return plain.shift_score(self.scale * gradient)

    def cost(self, t: float) -> int:
        """Return the cost of the denoiser; the classifier is not counted."""
        return self.denoiser.cost(t)


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


class Clamp(Denoiser):
    """Clip the predicted clean image to the range of the data; eps follows.

    Clipping must be the outermost guidance: clipped branches no longer combine affinely.

    Args:
        denoiser: any denoiser.
        low: smallest value of the data.
        high: largest value of the data, > low.

    Source: Ho et al., 2020, released program; Dhariwal and Nichol, 2021, released program
        (`clip_denoised`), which re-derives eps as done here.
    """

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"clamp to [{low}, {high}]: low must be below high")
        self.denoiser, self.low, self.high = denoiser, low, high
        self.process, self.null = denoiser.process, denoiser.null

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the clipped prediction."""
        prediction = self.denoiser(x_t, t, cond)
        return prediction.with_x0(prediction.x0.clamp(self.low, self.high))

    def cost(self, t: float) -> int:
        """Return the cost of the denoiser."""
        return self.denoiser.cost(t)


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
        del cond
        return self.denoiser(x_t, t)

    def cost(self, t: float) -> int:
        """Return the cost of the denoiser."""
        return self.denoiser.cost(t)


ALL: tuple[type[Denoiser], ...] = (ClassifierFree, LogProb, Interval, Clamp, Unconditional)
"""Every guidance: the laws run over this list."""
