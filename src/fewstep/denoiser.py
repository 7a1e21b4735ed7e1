r"""Denoisers: from a noisy batch and a time to a `Prediction`.

The interface has one method, forward(x_t, t, cond) -> Prediction, and everything that samples,
guides, trains or distils speaks to it. `NetDenoiser` gives a network this interface: the network
sees the scaled batch and a label of the noise level (never t itself, so that a trained network
survives a change of process) and answers in one of the parametrisations `X0`, `EPS`, `V`,
`SCORE`, `EDM`, `BOTH`, which are analytic coefficients. Exact denoisers are in `exact`, guidance
in `guide`: they are denoisers too.

A condition is one argument (see `conditions`): class indices of shape (B,), where -1 asks for the
null condition (no class) of that sample, another condition, or None for the null of the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep import shapes
from fewstep.conditions import Cond
from fewstep.errors import UsageError
from fewstep.labels import LABELS, Label, angle
from fewstep.prediction import Prediction, scaled_sum
from fewstep.process import Process, Tabulated
from fewstep.shapes import Number, like


def _levels(process: Process, x_t: Tensor, t: Number) -> tuple[Number, Number]:
    alpha, sigma = process.levels(t)
    if isinstance(t, Tensor):
        return like(alpha, x_t), like(sigma, x_t)
    return alpha, sigma


class Denoiser(nn.Module, ABC):
    """Predict the clean image and the noise in a noisy batch.

    Attributes:
        process: how the data became noise.
        null: whether the denoiser knows the null condition (was trained with label dropout, or
            is exact); classifier-free guidance needs it.
    """

    process: Process
    null: bool = True

    @abstractmethod
    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Return the prediction for x_t at time t.

        Args:
            x_t: noisy batch, shape (B, *).
            t: time in [0, 1], a float or shape (B,).
            cond: class indices, shape (B,), -1 = null, or None = null for all.

        Returns:
            a point on the line x_t = alpha x0 + sigma eps.
        """

    def __call__(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Call forward, as `compile` left it, without the hooks of nn.Module.

        Put hooks on the network instead.

        Args:
            x_t: noisy batch, shape (B, *).
            t: time in [0, 1], a float or shape (B,).
            cond: class indices, shape (B,), -1 = null, or None = null for all.

        Returns:
            what `forward` returns.
        """
        return (self._compiled_call_impl or self.forward)(x_t, t, cond)

    def cost(self, t: float) -> int:
        """Return the number of network evaluations per image that one call at t needs."""
        del t
        return 0

    def levels(self, x_t: Tensor, t: Number) -> tuple[Number, Number]:
        """Return alpha and sigma at t, ready to multiply x_t: floats or (B, 1, ...)."""
        return _levels(self.process, x_t, t)


class Param(Protocol):
    """Say how a network's output is to be read.

    `scale` is the factor of the input and `read` turns the output into a prediction.
    """

    def scale(self, alpha: Number, sigma: Number) -> Number:
        """Return c_in, the factor of x_t before the network."""
        ...

    def read(self, x_t: Tensor, alpha: Number, sigma: Number, out: Tensor) -> Prediction:
        """Return the prediction that the output `out`, shape (B, *), stands for."""
        ...


class _Reading:
    """A value by its name: a copied denoiser has the same one, which is in the table of names."""

    def __deepcopy__(self, memo: object) -> "_Reading":
        return self


class _View(_Reading):
    """Read the output as one view of the prediction; the input is not scaled."""

    def __init__(
        self, make: Callable[[Tensor, Number, Number, Tensor], Prediction], name: str
    ) -> None:
        self._make, self.name = make, name

    def __repr__(self) -> str:
        return self.name

    def scale(self, alpha: Number, sigma: Number) -> Number:
        del alpha, sigma
        return 1.0

    def read(self, x_t: Tensor, alpha: Number, sigma: Number, out: Tensor) -> Prediction:
        return self._make(x_t, alpha, sigma, out)


class _Edm(_Reading):
    """Read the output as EDM's F, which is regular at every noise level.

    With r^2 = sigma^2 + alpha^2 s^2 (s = sigma_data, here for any alpha, not only 1):
    c_in = 1 / r, x0 = (alpha s^2 / r^2) x_t + (sigma s / r) F. For s = 1 on a circle, F = -v.

    Source: Karras et al., 2022, table 1 (arXiv 2206.00364).
    """

    name = "EDM"

    def __init__(self, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def __repr__(self) -> str:
        return f"EDM({self.sigma_data})"

    def _radius(self, alpha: Number, sigma: Number) -> Number:
        return shapes.sqrt(sigma * sigma + alpha * alpha * self.sigma_data**2)

    def scale(self, alpha: Number, sigma: Number) -> Number:
        return 1 / self._radius(alpha, sigma)

    def read(self, x_t: Tensor, alpha: Number, sigma: Number, out: Tensor) -> Prediction:
        r, s = self._radius(alpha, sigma), self.sigma_data
        x0 = scaled_sum(alpha * s * s / (r * r), x_t, sigma * s / r, out)
        eps = scaled_sum(sigma / (r * r), x_t, -alpha * s / r, out)
        return Prediction(x_t, alpha, sigma, x0, eps)


class _Consistency(_Edm):
    """Read the output as a consistency function, which is the identity at the ratio `least`.

    EDM's reading of the noise above the least one: with d = sigma - least alpha, s = sigma_data
    and r of EDM, x0 = (alpha s^2 / (d^2 + alpha^2 s^2)) x_t + (d s / r) F. The root in r has
    sigma, not d, as published.

    Source: Song et al., "Consistency Models", 2023, appendix C (arXiv 2303.01469).
    """

    name = "CONSISTENCY"

    def __init__(self, sigma_data: float, least: float) -> None:
        super().__init__(sigma_data)
        self.least = least

    def __repr__(self) -> str:
        return f"CONSISTENCY({self.sigma_data}, {self.least})"

    def read(self, x_t: Tensor, alpha: Number, sigma: Number, out: Tensor) -> Prediction:
        s, d = self.sigma_data, sigma - self.least * alpha
        keep = alpha * s * s / (d * d + alpha * alpha * s * s)
        x0 = scaled_sum(keep, x_t, s * d / self._radius(alpha, sigma), out)
        return Prediction.from_x0(x_t, alpha, sigma, x0)


class _Both(_Reading):
    """Read twice the channels of x_t as an image n and a noise e, and mix the two images they say.

    x0 = (sigma^2 n + alpha (x_t - sigma e)) / (alpha^2 + sigma^2): the image itself counts where
    there is noise, that which the noise implies where there is little; regular at both ends, and
    the identity without noise. With e of a network that says eps it is what such a network is
    distilled into.

    Source: Salimans and Ho, 2022, section 4, third parametrisation (arXiv 2202.00512).
    """

    name = "BOTH"

    def __repr__(self) -> str:
        return self.name

    def scale(self, alpha: Number, sigma: Number) -> Number:
        del alpha, sigma
        return 1.0

    def read(self, x_t: Tensor, alpha: Number, sigma: Number, out: Tensor) -> Prediction:
        if out.shape[1] != 2 * x_t.shape[1]:
            raise ValueError(
                f"BOTH: the network answered with {out.shape[1]} channels; must be twice the "
                f"{x_t.shape[1]} of the image"
            )
        image, noise = out.chunk(2, dim=1)
        square = alpha * alpha + sigma * sigma
        implied = scaled_sum(alpha / square, x_t, -alpha * sigma / square, noise)
        x0 = scaled_sum(sigma * sigma / square, image, 1.0, implied)
        return Prediction.from_x0(x_t, alpha, sigma, x0)


X0: Param = _View(Prediction.from_x0, "X0")
"""The network says x0: singular in eps at sigma = 0, poor at low noise."""
EPS: Param = _View(Prediction.from_eps, "EPS")
"""The network says eps: singular in x0 at alpha = 0, poor at high noise."""
V: Param = _View(Prediction.from_v, "V")
"""The network says v = alpha eps - sigma x0: regular at both ends; our default."""
SCORE: Param = _View(Prediction.from_score, "SCORE")
"""The network says the score, as NCSN does: of size 1 / sigma."""
EDM: Param = _Edm(0.5)
"""The network says EDM's F for data of standard deviation 0.5: regular at both ends."""

CONSISTENCY: Param = _Consistency(0.5, 0.002)
"""The network says the F of a published consistency model, clean at sigma / alpha = 0.002."""

BOTH: Param = _Both()
"""The network says x0 and eps, in twice the channels: regular at both ends."""

PARAMS: Mapping[str, Param] = {
    "X0": X0,
    "EPS": EPS,
    "V": V,
    "SCORE": SCORE,
    "EDM": EDM,
    "CONSISTENCY": CONSISTENCY,
    "BOTH": BOTH,
}
"""The closed table of names that a stored model may use."""

_REMEMBERED = 4096  # times whose labels a denoiser keeps


class Told(nn.Module):
    """A network that is told the noise level of its input.

    Attributes:
        net: the network.
        process: how the data became noise.
        label: what the network is told about the noise level.
    """

    net: nn.Module
    process: Process
    label: Label

    def __init__(self) -> None:
        super().__init__()
        self._labels: dict[tuple[float, torch.device], tuple[Process, Label, Tensor]] = {}

    def levels(self, x_t: Tensor, t: Number) -> tuple[Number, Number]:
        """Return alpha and sigma at t, ready to multiply x_t: floats or (B, 1, ...)."""
        return _levels(self.process, x_t, t)

    def told(self, x_t: Tensor, t: Number) -> Tensor:
        """Return the label, (B,) or for a float (1,); a sampler asks for few, again and again."""
        if isinstance(t, Tensor):
            return shapes.per_sample(self.label(self.process, t), x_t)
        known = self._labels.get((t, x_t.device))
        # process and label are plain attributes: whoever replaces one must not get old labels
        if known is None or known[0] is not self.process or known[1] is not self.label:
            if len(self._labels) >= _REMEMBERED:
                self._labels.clear()
            label = shapes.per_sample(self.label(self.process, t), x_t)
            known = self._labels[t, x_t.device] = self.process, self.label, label
        return known[2]


class NetDenoiser(Told, Denoiser):
    """Make a denoiser of a network.

    Args:
        net: net(x, label, cond) -> out, with x and out of shape (B, *) and label of shape (B,), or
            (1,) where the whole batch has one noise level. A network that answers with twice the
            channels of x_t says the learned variance in the second half.
        process: how the data became noise.
        param: how the output is to be read.
        label: what the network is told about the noise level.
        null: whether the network was trained with the null condition.

    Raises:
        UsageError: a process that ends in pure noise, where eps and score say nothing of x0.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Process,
        param: Param = V,
        label: Label = angle,
        null: bool = True,
    ) -> None:
        super().__init__()
        if param in (EPS, SCORE) and isinstance(process, Tabulated) and process.zero_terminal_snr:
            raise UsageError(
                f"param {param!r} with zero_terminal_snr: at t = 1 there is no signal to find; "
                "use V or X0"
            )
        self.net, self.process, self.param, self.label = net, process, param, label
        self.null = null

    def forward(self, x_t: Tensor, t: Number, cond: Cond = None) -> Prediction:
        """Scale, ask the network, read the answer in the dtype of x_t."""
        alpha, sigma = self.levels(x_t, t)
        c_in = self.param.scale(alpha, sigma)
        x_in = x_t if isinstance(c_in, float) and c_in == 1.0 else c_in * x_t
        out = self.net(x_in, self.told(x_t, t), cond)
        if out.dtype != x_t.dtype:
            out = out.to(x_t.dtype)
        if self.param is not BOTH and out.ndim > 1 and out.size(1) == 2 * x_t.size(1):
            out, variance = out.chunk(2, dim=1)
            prediction = self.param.read(x_t, alpha, sigma, out)
            prediction.variance = variance
            return prediction
        return self.param.read(x_t, alpha, sigma, out)

    def cost(self, t: float) -> int:
        """Return 1."""
        del t
        return 1

    def describe(self) -> dict[str, Any]:
        """Return process, parametrisation, label and null as JSON values."""
        names = {id(v): k for table in (PARAMS, LABELS) for k, v in table.items()}
        for part in (self.param, self.label):
            if id(part) not in names:
                raise ValueError(f"{part!r} is not in the closed tables PARAMS and LABELS")
        return {
            "process": self.process.describe(),
            "param": names[id(self.param)],
            "label": names[id(self.label)],
            "null": self.null,
        }
