"""Guidances that keep what strong guidance blows up in bounds: range, contrast, direction.

They are not affine: where they stand matters, and so does the view in which they work.
"""

import math

import torch
from torch import Tensor

from fewstep.conditions import Cond, Known
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.guide.affine import branches, check_null, check_scale
from fewstep.prediction import VIEWS, Prediction
from fewstep.shapes import Number


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


class Keep(Denoiser):
    """Put the known pixels into the predicted clean image: what inpainting may not change.

    The condition says them (`conditions.Known`); without one nothing is kept. At the last step
    the image has exactly the known pixels. It stands around `Clamp` and `Threshold`: for images in
    [-1, 1] clipping before or after is the same, scaling down is not.

    Args:
        denoiser: any denoiser.

    Source: Nichol et al., GLIDE, 2021, released program (`denoised_fn`, before clipping).
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.process, self.null = denoiser, denoiser.process, denoiser.null

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the prediction with the known pixels in its clean image."""
        prediction = self.denoiser(x_t, t, cond)
        if not isinstance(cond, Known):
            return prediction
        known, image = cond.mask > 0, cond.image.to(x_t.dtype)
        return prediction.with_x0(torch.where(known, image, prediction.x0))

    def cost(self, t: float) -> int:
        """Return the cost of the denoiser."""
        return self.denoiser.cost(t)


class Threshold(Denoiser):
    """Clip the predicted clean image at a percentile of its own values, then scale it back.

    s = max(1, percentile of |x0|) for each image, x0 = clip(x0, -s, s) / s: strong guidance that
    pushes many pixels out of [-1, 1] then loses contrast instead of saturating. An outermost
    guidance, like `Clamp`; images within [-1, 1] stay as they are.

    Args:
        denoiser: any denoiser of data in [-1, 1].
        percentile: in (0, 100]; 100 clips nothing and only scales.

    Raises:
        UsageError: another percentile.

    Source: Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language
        Understanding", 2022, section 2.3 (arXiv 2205.11487).
    """

    def __init__(self, denoiser: Denoiser, percentile: float = 99.5) -> None:
        super().__init__()
        if not 0 < percentile <= 100:
            raise UsageError(f"threshold percentile {percentile}: must be in (0, 100]")
        self.denoiser, self.percentile = denoiser, float(percentile)
        self.process, self.null = denoiser.process, denoiser.null

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the prediction with its clean image inside [-1, 1]."""
        prediction = self.denoiser(x_t, t, cond)
        x0 = prediction.x0
        size = x0.abs().flatten(1)
        # The k-th smallest: `quantile` refuses images of more than 16 million values.
        k = max(1, math.ceil(size.shape[1] * self.percentile / 100))
        bound = size.kthvalue(k, dim=1).values.clamp(min=1).reshape(-1, *(1,) * (x0.ndim - 1))
        return prediction.with_x0(x0.clamp(-bound, bound) / bound)

    def cost(self, t: float) -> int:
        """Return the cost of the denoiser."""
        return self.denoiser.cost(t)


class Rescaled(Denoiser):
    """Classifier-free guidance whose contrast is brought back to that of the conditional model.

    g = uncond + scale (cond - uncond) in one view, then g (mix std(cond) / std(g) + 1 - mix), the
    standard deviation over all values of an image. It depends on the view: the paper's is v.

    Args:
        denoiser: a denoiser that knows the null condition.
        scale: the exponent s, any finite number.
        mix: 0 is plain guidance, 1 the whole correction; the paper takes 0.7.
        view: "v", "eps" or "x0".

    Raises:
        UsageError: scale is not finite, mix not in [0, 1], no such view, or the model never saw
            the null condition.

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023,
        section 3.4 (arXiv 2305.08891).
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, mix: float = 0.7, view: str = "v"
    ) -> None:
        super().__init__()
        check_scale(scale)
        if not 0 <= mix <= 1:
            raise UsageError(f"guidance rescale {mix}: must be in [0, 1]")
        if view not in VIEWS or view == "score":
            raise UsageError(f"guidance rescale in {view!r}: allowed are v, eps, x0")
        if scale != 1:
            check_null(denoiser, f"guidance scale {scale}")
        self.denoiser, self.scale, self.mix, self.view = denoiser, float(scale), mix, view
        self.process, self.null = denoiser.process, denoiser.null

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the guided prediction; without a condition, the unconditional one."""
        if cond is None or self.scale == 1:
            return self.denoiser(x_t, t, cond)
        uncond, given = branches(self.denoiser, x_t, t, cond)
        plain = given.view(self.view)
        guided = uncond.lerp(given, self.scale).view(self.view)
        ratio = _std(plain) / _std(guided).clamp_min(torch.finfo(guided.dtype).tiny)
        value = guided * (self.mix * ratio + (1 - self.mix))
        at = {"variance": given.variance, self.view: value}
        return Prediction(x_t, given.alpha, given.sigma, **at)

    def cost(self, t: float) -> int:
        """Return twice the cost of the denoiser, or once at scale 1."""
        return self.denoiser.cost(t) * (1 if self.scale == 1 else 2)


class Projected(Denoiser):
    """Adaptive projected guidance: leave out the part of the guidance that only adds contrast.

    In clean images, d = cond - uncond is split into a part along cond, which saturates, and one
    across it, which is kept: x0 = cond + (scale - 1) (d_across + parallel d_along). Before
    that d may be shortened to `radius` and replaced by the running sum d + momentum * (the last
    sum), with a negative momentum. The sum begins anew when the noise does not fall: a new run.

    Args:
        denoiser: a denoiser that knows the null condition.
        scale: the exponent s, any finite number; 1 is the conditional model.
        parallel: share of the part along the conditional prediction; 1 with no radius and no
            momentum is plain classifier-free guidance.
        radius: longest d of an image, > 0, in units of its values.
        momentum: in (-1, 1); needs one time for the whole batch.

    Raises:
        UsageError: a number out of its range, or the model never saw the null condition.

    Source: Sadat et al., "Eliminating Oversaturation and Artifacts of High Guidance Scales in
        Diffusion Models", 2024, section 4 (arXiv 2410.02416).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float,
        parallel: float = 0.0,
        radius: float = math.inf,
        momentum: float = 0.0,
    ) -> None:
        super().__init__()
        check_scale(scale)
        if not math.isfinite(parallel):
            raise UsageError(f"guidance parallel {parallel}: must be a finite number")
        if not radius > 0:
            raise UsageError(f"guidance radius {radius}: must be above 0")
        if not -1 < momentum < 1:
            raise UsageError(f"guidance momentum {momentum}: must be in (-1, 1)")
        if scale != 1:
            check_null(denoiser, f"guidance scale {scale}")
        self.denoiser, self.scale, self.parallel = denoiser, float(scale), parallel
        self.radius, self.momentum = radius, momentum
        self.process, self.null = denoiser.process, denoiser.null
        self._last: tuple[float, Tensor] | None = None

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the guided prediction; without a condition, the unconditional one."""
        if cond is None or self.scale == 1:
            return self.denoiser(x_t, t, cond)
        uncond, given = branches(self.denoiser, x_t, t, cond)
        d = self._summed(given.x0 - uncond.x0, t)
        far = d.flatten(1).norm(dim=1).reshape(-1, *(1,) * (d.ndim - 1))
        d = d * (self.radius / far).clamp(max=1)
        along = _along(d, given.x0)
        return given.with_x0(given.x0 + (self.scale - 1) * (d - along + self.parallel * along))

    def _summed(self, d: Tensor, t: Number) -> Tensor:
        """Return the running sum of the run at hand, if there is momentum."""
        if not self.momentum:
            return d
        if isinstance(t, Tensor) and t.numel() > 1:
            raise UsageError("guidance momentum: needs one time for the whole batch")
        now, last = float(t), self._last
        if last is not None and now < last[0] and last[1].shape == d.shape:
            d = d + self.momentum * last[1]
        self._last = now, d
        return d

    def cost(self, t: float) -> int:
        """Return twice the cost of the denoiser, or once at scale 1."""
        return self.denoiser.cost(t) * (1 if self.scale == 1 else 2)


def _std(x: Tensor) -> Tensor:
    """Return the standard deviation of each image, shape (B, 1, ...)."""
    return x.flatten(1).std(1, correction=0).reshape(-1, *(1,) * (x.ndim - 1))


def _along(d: Tensor, direction: Tensor) -> Tensor:
    """Return the part of each image of d along another one, in float64; 0 along nothing."""
    one, other = d.flatten(1).double(), direction.flatten(1).double()
    square = other.square().sum(1, keepdim=True)
    share = (one * other).sum(1, keepdim=True) / square.clamp_min(torch.finfo(square.dtype).tiny)
    return (share * other).reshape(d.shape).to(d.dtype)
