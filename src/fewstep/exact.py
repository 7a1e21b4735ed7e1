"""Denoisers whose answer is known in closed form.

For data that are a Gaussian, a mixture of Gaussians or a finite set of points, the posterior mean
E[x0 | x_t] is exact at every noise level. These denoisers are the oracle of the tests, the toys
of the documentation and the upper bound of any trained model: with them, whatever error remains
is the solver's. They work on any sample shape; points and means are compared as flat vectors.
"""

import math

import torch
from torch import Tensor

from fewstep import shapes
from fewstep.conditions import Cond, classes
from fewstep.denoiser import Denoiser
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.shapes import Number


class Mixture(Denoiser):
    """Denoise a mixture of isotropic Gaussians, with classes if wanted.

    p(x0) = sum_k w_k N(mean_k, std^2 I); given x_t, component k has responsibility proportional
    to w_k N(x_t; alpha mean_k, (alpha^2 std^2 + sigma^2) I), and x0 is the average of the
    components' posterior means. A condition y keeps the components of class y only.

    Args:
        process: how the data become noise.
        means: shape (K, *).
        std: standard deviation of every component, >= 0, or shape (K,); 0 = points.
        classes: class of each component, shape (K,), or None when there is none.
        weights: positive weights, shape (K,), normalised here; equal when None.

    Raises:
        ValueError: shapes that do not fit, or std < 0.

    Source: Bishop, "Pattern Recognition and Machine Learning", 2006, eq. 2.113-2.117.
    """

    means: Tensor
    std: Tensor
    log_weights: Tensor
    classes: Tensor | None

    def __init__(
        self,
        process: Process,
        means: Tensor,
        std: float | Tensor,
        classes: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        k = means.shape[0]
        stds = torch.as_tensor(std, dtype=means.dtype, device=means.device).expand(k)
        if bool((stds < 0).any()):
            raise ValueError(f"std must be >= 0, got {std}")
        for name, part in (("classes", classes), ("weights", weights)):
            if part is not None and part.shape != (k,):
                raise ValueError(f"{name} of shape {tuple(part.shape)}: expected ({k},)")
        w = means.new_ones(k) if weights is None else weights.to(means)
        self.process = process
        self.register_buffer("means", means, persistent=False)
        self.register_buffer("std", stds, persistent=False)
        self.register_buffer("log_weights", (w / w.sum()).log(), persistent=False)
        where = None if classes is None else classes.to(means.device)
        self.register_buffer("classes", where, persistent=False)

    def log_joint(self, x_t: Tensor, t: Number) -> Tensor:
        """Return log w_k N(x_t; alpha mean_k, var_k I) for each component.

        Args:
            x_t: shape (B, *).
            t: a float or shape (B,).

        Returns:
            shape (B, K), float64: at low noise the squared distances cancel.
        """
        x, means = x_t.flatten(1).double(), self.means.flatten(1).double()
        alpha, sigma = self._columns(x, t)
        var = (alpha * self.std) ** 2 + sigma**2
        # |x - alpha m|^2 by the cosine rule: (B, K) instead of (B, K, D) in memory
        square = (x * x).sum(1, keepdim=True) - 2 * alpha * (x @ means.T)
        square = square + alpha**2 * (means * means).sum(1)
        return self.log_weights - square / (2 * var) - x.shape[1] / 2 * (2 * math.pi * var).log()

    def log_density(self, x_t: Tensor, t: Number, cond: Cond = None) -> Tensor:
        """Return log p(x_t), or log p(x_t, y) for a condition.

        Args:
            x_t: shape (B, *).
            t: a float or shape (B,).
            cond: class indices, shape (B,), -1 = any class, or None.

        Returns:
            shape (B,), float64, in nats.
        """
        return self._keep(self.log_joint(x_t, t), cond).logsumexp(1)

    def log_prob(self, x_t: Tensor, t: Number, cond: Cond) -> Tensor:
        """Return the exact classifier log p(y | x_t), for `guide.LogProb`.

        Args:
            x_t: shape (B, *).
            t: a float or shape (B,).
            cond: class indices y, shape (B,), -1 = any class, or None.

        Returns:
            shape (B,), float64, in nats, <= 0; 0 for any class.
        """
        joint = self.log_joint(x_t, t)
        return self._keep(joint, cond).logsumexp(1) - joint.logsumexp(1)

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the posterior mean."""
        r = self._keep(self.log_joint(x_t, t), cond).softmax(1).to(x_t.dtype)
        alpha, sigma = self._columns(x_t.flatten(1), t)
        gain = alpha * self.std**2 / ((alpha * self.std) ** 2 + sigma**2)
        pull = (r * gain).to(x_t.dtype)
        mean = (r * (1 - gain * alpha)).to(x_t.dtype) @ self.means.flatten(1).to(x_t.dtype)
        x0 = mean + pull.sum(1, keepdim=True) * x_t.flatten(1)
        a, s = self.levels(x_t, t)
        return Prediction.from_x0(x_t, a, s, x0.reshape(x_t.shape))

    def _columns(self, flat: Tensor, t: Number) -> tuple[Number, Number]:
        """Return alpha and sigma to multiply (B, K)."""
        return shapes.like(self.process.alpha(t), flat), shapes.like(self.process.sigma(t), flat)

    def _keep(self, joint: Tensor, cond: Cond) -> Tensor:
        asked = classes(cond)
        if asked is None:
            return joint
        if self.classes is None:
            raise ValueError("a condition was given, but the components have no classes")
        other = (self.classes != asked[:, None]) & (asked[:, None] >= 0)
        return joint.masked_fill(other, -torch.inf)


class Gaussian(Mixture):
    """Denoise one isotropic Gaussian N(mean, std^2 I): a mixture of one.

    Args:
        process: how the data become noise.
        mean: shape (*).
        std: standard deviation, >= 0.
    """

    def __init__(self, process: Process, mean: Tensor, std: float) -> None:
        super().__init__(process, mean[None], std)


class DataSet(Mixture):
    """Denoise a finite set of points, each equally likely: what a perfect memory would do.

    Sampling from it returns the points themselves; a trained model that comes this close has
    copied its training set.

    Args:
        process: how the data become noise.
        points: shape (N, *).
        classes: class of each point, shape (N,), or None.
    """

    def __init__(self, process: Process, points: Tensor, classes: Tensor | None = None) -> None:
        super().__init__(process, points, 0.0, classes)


class GaussianEnd(Denoiser):
    """Say where the trajectories of the probability-flow ODE end, for data N(mean, std^2 I).

        f(x_t, t) = mean + (x_t - alpha mean) sqrt((std^2 + least^2) / (alpha^2 std^2 + sigma^2))

    The exact consistency function: constant along every trajectory, the identity at the ratio
    `least`, and not E[x0 | x_t] as `Gaussian` says it (there the factor has no root), so that the
    eps and score of its predictions mean nothing.

    Args:
        process: how the data become noise.
        mean: shape (*).
        std: standard deviation of the data, > 0.
        least: sigma / alpha where the trajectories end, >= 0.

    Raises:
        ValueError: std <= 0 or least < 0.

    Source: Song et al., "Consistency Models", 2023, definition 1 (arXiv 2303.01469); along a
        trajectory of the ODE (x_t - alpha mean)^2 / (alpha^2 std^2 + sigma^2) is constant (Song et
        al., 2021, eq. 13, arXiv 2011.13456).
    """

    mean: Tensor

    def __init__(self, process: Process, mean: Tensor, std: float, least: float = 0.0) -> None:
        super().__init__()
        if not (std > 0 and least >= 0):
            raise ValueError(f"std {std}, least {least}: must be > 0 and >= 0")
        self.process, self.std, self.least = process, std, least
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the end of the trajectory as x0; the condition is not read."""
        del cond
        alpha, sigma = self.levels(x_t, t)
        here = alpha * alpha * self.std**2 + sigma * sigma
        factor = shapes.sqrt((self.std**2 + self.least**2) / here)
        x0 = self.mean + factor * (x_t - alpha * self.mean)
        return Prediction.from_x0(x_t, alpha, sigma, x0)
