"""What a network is told beside the noisy image: classes, a caption, a small or a partial image.

A condition is one argument everywhere. It is None (nothing is told), class indices of shape (B,),
a `Caption`, or something more with the condition of the network inside it: an image, `LowRes` for
super-resolution and `Known` for inpainting, or a guidance scale, `Scaled`; nested as the networks
are. Classifier-free guidance asks a network twice, with its condition and with `null` of it: what
is left out is the class or the caption, never the image that is to be enlarged or completed.

Inside: `Caption`, `LowRes`, `Known`, `Scaled`; `scaled`, `classes`, `null`, `join`, `rows`, `to`
and `check`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Caption(NamedTuple):
    """Texts as numbers.

    Attributes:
        tokens: (B, context) int64 in 0..vocab-1; anything in that range where the mask is False.
        mask: (B, context) bool, False = padding; a row of False = the null condition.
    """

    tokens: Tensor
    mask: Tensor


class LowRes(NamedTuple):
    """The condition of a super-resolution network.

    Attributes:
        image: (B, C, h, w), the small image in the range of the data; any h, w.
        cond: the condition of the network inside, e.g. class indices (B,) or None.
    """

    image: Tensor
    cond: Any = None


class Known(NamedTuple):
    """The condition of an inpainting network.

    Attributes:
        image: (B, C, H, W) of the noisy image's size; what the mask hides is not read.
        mask: (B, 1, H, W), 1 = known, 0 = to be painted.
        cond: the condition of the network inside.
    """

    image: Tensor
    mask: Tensor
    cond: Any = None


class Scaled(NamedTuple):
    """The condition of a network that was taught guidance: how much is asked for.

    Attributes:
        scale: (B,) floating point, the exponent s = 1 + w; 1 = plain conditional.
        cond: the condition of the network inside: classes or a caption, which images stand around.
    """

    scale: Tensor
    cond: Any = None


Cond = Tensor | Caption | LowRes | Known | Scaled | None
"""Class indices (B,) with -1 for the null, a structure of tensors (B, *), or None."""


def classes(cond: Cond) -> Tensor | None:
    """Return the class indices in a condition, also those beside an image.

    Args:
        cond: any condition.

    Returns:
        shape (B,), -1 = null, or None where there are none.

    Raises:
        ValueError: a caption, which is of no class.
    """
    if isinstance(cond, Caption):
        raise ValueError("a caption where class indices are expected")
    return classes(cond.cond) if isinstance(cond, LowRes | Known | Scaled) else cond


def scaled(cond: Cond, scale: Tensor) -> Cond:
    """Return the condition with a guidance scale beside its class or caption.

    Args:
        cond: any condition; a scale that it has already is replaced.
        scale: shape (B,), floating point.

    Returns:
        a `Scaled`, inside the images if there are any.
    """
    if isinstance(cond, LowRes | Known):
        return cond._replace(cond=scaled(cond.cond, scale))
    return Scaled(scale, cond.cond if isinstance(cond, Scaled) else cond)


def null(cond: Cond) -> Cond:
    """Return the condition without its class or caption; images and a guidance scale stay.

    So both branches of a guidance are of one kind. Guidance towards nothing is the same at every
    scale; a network that was taught guidance is never taught this branch, and does not know it.

    Args:
        cond: any condition.

    Returns:
        None for classes, a `Caption` of the same shape without words, an image without the
        condition inside it, and so a scale.
    """
    if isinstance(cond, Caption):
        return cond._replace(mask=torch.zeros_like(cond.mask))
    if isinstance(cond, LowRes | Known | Scaled):
        return cond._replace(cond=null(cond.cond))
    return None


def join(first: Cond, second: Cond) -> Cond:
    """Return the condition of one batch after that of another.

    Args:
        first: of B images; None beside class indices stands for B times -1.
        second: a condition of the same kind, of B' images.

    Returns:
        the condition of B + B' images; None if both are.

    Raises:
        ValueError: conditions of two kinds.
    """
    if second is None and first is None:
        return None
    if first is None and isinstance(second, Tensor):
        first = torch.full_like(second, -1)
    if second is None and isinstance(first, Tensor):
        second = torch.full_like(first, -1)
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    if type(first) is not type(second) or not isinstance(first, tuple):
        raise ValueError(f"conditions of two kinds: {type(first)} and {type(second)}")
    assert isinstance(second, tuple)
    return first._make(map(join, first, second))


def rows(cond: Cond, index: slice | Tensor) -> Cond:
    """Return the condition of some images of a batch.

    Args:
        cond: of B images.
        index: which, as a slice or as int64 numbers of shape (n,), each in 0..B-1.

    Returns:
        a condition of the same kind, of n images.
    """
    if isinstance(cond, tuple):
        return cond._make(rows(part, index) for part in cond)
    return None if cond is None else cond[index]


def to(cond: Cond, device: torch.device) -> Cond:
    """Return the condition on a device.

    Args:
        cond: any condition.
        device: where its tensors shall lie.
    """
    if isinstance(cond, tuple):
        return cond._make(to(part, device) for part in cond)
    return None if cond is None else cond.to(device)


def check(cond: Cond, n: int) -> None:
    """Check that a condition is one of n images.

    Args:
        cond: any condition.
        n: number of images.

    Raises:
        ValueError: class indices of another shape than (n,), or another number of images.
    """
    if isinstance(cond, Tensor):
        if cond.shape != (n,):
            raise ValueError(f"cond of shape {tuple(cond.shape)}: expected ({n},)")
        return
    for name, part in zip(getattr(cond, "_fields", ()), cond or (), strict=True):
        if name == "cond":
            check(part, n)
        elif part.shape[:1] != (n,) or (name == "scale" and part.ndim != 1):
            raise ValueError(f"{name} of shape {tuple(part.shape)}: expected {n} images")
