"""One point on the line x_t = alpha x0 + sigma eps, and its four views.

A network may be asked for the clean image x0, the noise eps, the score or the velocity v: these
are four names of the same point, related by the line. Whatever the network says becomes a
`Prediction`, so that guidance, solvers and losses never ask which one it was. Guidance moves the
point along the line of all views at once, because `lerp` and `shift_score` are affine; the truth
(x0, eps) of a training pair is a Prediction too, and a loss is a distance between two of them.
"""

from __future__ import annotations

from torch import Tensor

from fewstep.shapes import Number, divide, like

VIEWS = ("x0", "eps", "v", "score")
"""The names of the four views."""


class Prediction:
    """Hold a noisy batch x_t with one consistent pair (x0, eps).

    What is missing of the pair is derived on first use: a solver that never asks for eps does
    not pay for it, and nothing is divided by sigma = 0 or alpha = 0 without need.

    Args:
        x_t: noisy batch, shape (B, *).
        alpha: signal level, a float or (B, 1, ...).
        sigma: noise level, a float or (B, 1, ...).
        x0: clean batch, shape of x_t, or None when another view is given.
        eps: noise, shape of x_t, or None when another view is given.
        variance: where the learned variance of the reverse step lies between its two bounds,
            about -1 (the posterior's) to 1 (the large one), not limited to that, shape of x_t
            (Nichol and Dhariwal, 2021, eq. 15).
        v: velocity, shape of x_t, or None when another view is given.
    """

    __slots__ = ("_eps", "_v", "_x0", "alpha", "sigma", "variance", "x_t")

    def __init__(
        self,
        x_t: Tensor,
        alpha: Number,
        sigma: Number,
        x0: Tensor | None = None,
        eps: Tensor | None = None,
        variance: Tensor | None = None,
        v: Tensor | None = None,
    ) -> None:
        assert x0 is not None or eps is not None or v is not None
        self.x_t, self.alpha, self.sigma, self.variance = x_t, alpha, sigma, variance
        self._x0, self._eps, self._v = x0, eps, v

    @classmethod
    def from_x0(cls, x_t: Tensor, alpha: Number, sigma: Number, x0: Tensor) -> Prediction:
        """Make the point whose clean image is x0; eps is singular at sigma = 0.

        Args:
            x_t: noisy batch, shape (B, *).
            alpha: signal level, a float or (B, 1, ...).
            sigma: noise level, a float or (B, 1, ...).
            x0: clean batch, shape (B, *).

        Returns:
            the point, with x0 and eps of shape (B, *).
        """
        return cls(x_t, alpha, sigma, x0=x0)

    @classmethod
    def from_eps(cls, x_t: Tensor, alpha: Number, sigma: Number, eps: Tensor) -> Prediction:
        """Make the point whose noise is eps; x0 is singular at alpha = 0.

        Args:
            x_t: noisy batch, shape (B, *).
            alpha: signal level, a float or (B, 1, ...).
            sigma: noise level, a float or (B, 1, ...).
            eps: noise of unit scale, shape (B, *).

        Returns:
            the point, with x0 and eps of shape (B, *).
        """
        return cls(x_t, alpha, sigma, eps=eps)

    @classmethod
    def from_v(cls, x_t: Tensor, alpha: Number, sigma: Number, v: Tensor) -> Prediction:
        """Make the point whose velocity is v = alpha eps - sigma x0; regular at both ends.

        On a circle (alpha^2 + sigma^2 = 1) x0 = alpha x_t - sigma v and eps = sigma x_t +
        alpha v; in general both are divided by alpha^2 + sigma^2.

        Args:
            x_t: noisy batch, shape (B, *).
            alpha: signal level, a float or (B, 1, ...).
            sigma: noise level, a float or (B, 1, ...).
            v: velocity, shape (B, *).

        Returns:
            the point, with x0 and eps of shape (B, *).

        Source: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion
            Models", 2022, appendix D (arXiv 2202.00512).
        """
        return cls(x_t, alpha, sigma, v=v)

    @classmethod
    def from_score(cls, x_t: Tensor, alpha: Number, sigma: Number, score: Tensor) -> Prediction:
        """Make the point whose score (gradient of log density of x_t) is given.

        Args:
            x_t: noisy batch, shape (B, *).
            alpha: signal level, a float or (B, 1, ...).
            sigma: noise level, a float or (B, 1, ...).
            score: gradient of the log density, of size 1 / sigma, shape (B, *).

        Returns:
            the point, with x0 and eps of shape (B, *).
        """
        return cls(x_t, alpha, sigma, eps=-sigma * score)

    @property
    def x0(self) -> Tensor:
        """The clean image E[x0 | x_t], shape (B, *)."""
        if self._x0 is None:
            if self._v is not None:
                self._x0 = self.at(1.0, 0.0)
            else:
                inverse = divide(1.0, self.alpha)
                self._x0 = scaled_sum(inverse, self.x_t, -self.sigma * inverse, self.eps)
        return self._x0

    @property
    def eps(self) -> Tensor:
        """The noise, shape (B, *), of unit scale."""
        if self._eps is None:
            if self._v is not None:
                self._eps = self.at(0.0, 1.0)
            else:
                inverse = divide(1.0, self.sigma)
                self._eps = scaled_sum(inverse, self.x_t, -self.alpha * inverse, self.x0)
        return self._eps

    @property
    def score(self) -> Tensor:
        """The gradient of the log density of x_t, -eps / sigma, shape (B, *)."""
        return self.eps * divide(-1.0, self.sigma)

    @property
    def v(self) -> Tensor:
        """The velocity alpha eps - sigma x0, shape (B, *)."""
        if self._v is None:
            self._v = scaled_sum(self.alpha, self.eps, -self.sigma, self.x0)
        return self._v

    def at(self, alpha: Number, sigma: Number) -> Tensor:
        """Return alpha x0 + sigma eps: the same pair put down at another noise level.

        Both x0 and eps are sums of x_t and of what the network said, and so is the result: it
        takes one sum, where asking for x0 and eps first takes two or three.

        Args:
            alpha: signal level to go to, a float or (B, 1, ...).
            sigma: noise level to go to, a float or (B, 1, ...).

        Returns:
            shape (B, *).
        """
        if self._x0 is not None and self._eps is not None:
            return scaled_sum(alpha, self._x0, sigma, self._eps)
        if self._v is not None:
            square = self.alpha * self.alpha + self.sigma * self.sigma
            a, s = self.alpha / square, self.sigma / square
            return scaled_sum(alpha * a + sigma * s, self.x_t, sigma * a - alpha * s, self._v)
        if self._x0 is not None:
            ratio = divide(sigma, self.sigma)
            return scaled_sum(ratio, self.x_t, alpha - ratio * self.alpha, self._x0)
        ratio = divide(alpha, self.alpha)
        return scaled_sum(ratio, self.x_t, sigma - ratio * self.sigma, self.eps)

    def view(self, name: str) -> Tensor:
        """Return the view called "x0", "eps", "v" or "score", shape (B, *).

        Raises:
            ValueError: no such view.
        """
        if name not in VIEWS:
            raise ValueError(f"view {name!r}: expected one of {', '.join(VIEWS)}")
        return getattr(self, name)

    def with_x0(self, x0: Tensor) -> Prediction:
        """Return the point with another clean image; eps follows from the line.

        Re-deriving eps is what guided-diffusion does after clipping; keeping the network's eps
        beside a clipped x0 (another library's default) leaves the line.
        """
        return Prediction(self.x_t, self.alpha, self.sigma, x0=x0, variance=self.variance)

    def with_eps(self, eps: Tensor) -> Prediction:
        """Return the point with another noise; x0 follows from the line."""
        return Prediction(self.x_t, self.alpha, self.sigma, eps=eps, variance=self.variance)

    def lerp(self, other: Prediction, weight: Number) -> Prediction:
        """Return self + weight (other - self), the same rule in every view.

        Args:
            other: a prediction for the same x_t.
            weight: any real number or (B,); 0 = self, 1 = other, > 1 extrapolates.

        Returns:
            the combined point; the learned variance is that of `other`.
        """
        w = like(weight, self.x_t)
        if self._v is not None and other._v is not None:
            v = self._v.lerp(other._v, w)
            return Prediction(self.x_t, self.alpha, self.sigma, variance=other.variance, v=v)
        share_x0 = self._x0 is not None and other._x0 is not None
        share_eps = self._eps is not None and other._eps is not None
        x0 = self.x0.lerp(other.x0, w) if share_x0 else None
        eps = self.eps.lerp(other.eps, w) if share_eps or not share_x0 else None
        return Prediction(self.x_t, self.alpha, self.sigma, x0, eps, other.variance)

    def shift_score(self, gradient: Tensor) -> Prediction:
        """Return the point whose score is larger by `gradient`, shape (B, *)."""
        return self.with_eps(self.eps - self.sigma * gradient)


def scaled_sum(a: Number, x: Tensor, b: Number, y: Tensor) -> Tensor:
    """Return a x + b y with as few passes over memory as the coefficients allow.

    Args:
        a: a float or (B, 1, ...).
        x: shape (B, *).
        b: a float or (B, 1, ...).
        y: shape (B, *).

    Returns:
        shape (B, *).
    """
    if isinstance(b, Tensor):
        return (a * x).addcmul(b, y)
    if isinstance(a, float):  # with alpha = 1, the exploding processes, a step is one of these
        if a == 1.0:
            return x.add(y, alpha=b)
        if a + b == 1.0:
            return y.lerp(x, a)
    return (a * x).add_(y, alpha=b)
