"""Numbers that stand for one noise level or for a batch of them.

A time, and every coefficient made from it, is either a Python float (one level for the whole
batch: arithmetic in double precision, no kernel is launched) or a tensor of shape (B,) (a level
for each sample, as in training). The functions here do the same on both, so that a formula is
written once. `like` is the only broadcasting helper of the library.
"""

import math

import torch
from torch import Tensor

Number = float | Tensor
"""A noise level or coefficient: a float, or a tensor of shape (B,)."""

_COS = math.cos(math.pi / 2)  # 6e-17


def like(c: Number, x: Tensor) -> Number:
    """Reshape a coefficient so that it multiplies a batch.

    Args:
        c: a float, or a tensor of shape () or (B,), or one that broadcasts against x already.
        x: a batch, shape (B, *).

    Returns:
        c itself if it is a float, else c in the dtype and on the device of x, with shape (1, ...),
        (B, 1, ..., 1) or, if it broadcasts already, its own.

    Raises:
        ValueError: c has neither one entry nor as many as the batch, nor does it broadcast.
    """
    if isinstance(c, (float, int)):
        return float(c)
    if c.ndim == x.ndim and all(n in (1, m) for n, m in zip(c.shape, x.shape, strict=True)):
        return c.to(x)
    if c.ndim > 1 or (c.ndim == 1 and c.shape[0] != x.shape[0]):
        raise ValueError(
            f"coefficient of shape {tuple(c.shape)} does not fit a batch of shape "
            f"{tuple(x.shape)}: expected () or ({x.shape[0]},)"
        )
    return c.to(x).reshape(c.shape + (1,) * (x.ndim - c.ndim))


def exp(c: Number) -> Number:
    """Return e**c, inf where it is too large for a float (above about 709)."""
    if isinstance(c, Tensor):
        return c.exp()
    try:
        return math.exp(c)
    except OverflowError:
        return math.inf


def log(c: Number) -> Number:
    """Return the natural logarithm, -inf at 0."""
    if isinstance(c, Tensor):
        return c.log()
    return math.log(c) if c > 0 else -math.inf


def sqrt(c: Number) -> Number:
    """Return the square root of max(c, 0): rounding may leave a radicand at -1e-17."""
    return c.clamp(min=0).sqrt() if isinstance(c, Tensor) else math.sqrt(max(c, 0.0))


def expm1(c: Number) -> Number:
    """Return e**c - 1 without cancellation."""
    return c.expm1() if isinstance(c, Tensor) else math.expm1(c)


def log1p(c: Number) -> Number:
    """Return ln(1 + c) without cancellation."""
    return c.log1p() if isinstance(c, Tensor) else math.log1p(c)


def sin(c: Number) -> Number:
    """Return the sine."""
    return c.sin() if isinstance(c, Tensor) else math.sin(c)


def cos(c: Number) -> Number:
    """Return the cosine of an angle in [0, pi/2], at the end 6e-17 in whatever precision.

    That is what double precision makes of it; single precision alone would say -4e-8 there.
    """
    return c.cos().clamp(min=_COS) if isinstance(c, Tensor) else max(math.cos(c), _COS)


def atan2(y: Number, x: Number) -> Number:
    """Return the angle of the point (x, y), in [0, pi/2] for y, x >= 0."""
    if isinstance(y, Tensor):
        return torch.atan2(y, torch.as_tensor(x).to(y))
    if isinstance(x, Tensor):
        return torch.atan2(torch.as_tensor(y).to(x), x)
    return math.atan2(y, x)


def ones(c: Number) -> Number:
    """Return 1 in the form of c."""
    return torch.ones_like(c) if isinstance(c, Tensor) else 1.0


def divide(a: Number, b: Number) -> Number:
    """Return a / b, inf or nan at b = 0 for floats as for tensors."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a / b
    if b == 0:
        return math.nan if a == 0 else math.copysign(math.inf, a)
    return a / b


def at_zero(c: Number) -> bool:
    """Say whether c is the float 0: the clean end of a process, where log-SNR is infinite."""
    return not isinstance(c, Tensor) and c == 0.0


def per_sample(t: Number, x: Tensor) -> Tensor:
    """Return t as float32 values, as a network wants it.

    Args:
        t: a float or a tensor of shape () or (B,).
        x: the batch, shape (B, *).

    Returns:
        shape (B,) or, for a float, (1,): one level is embedded once, not once per sample.
    """
    if isinstance(t, Tensor):
        return t.to(x.device, torch.float32).expand(x.shape[0])
    return torch.full((1,), t, dtype=torch.float32, device=x.device)
