"""Features: what a quality figure is measured on.

A Frechet distance compares two sets of feature vectors, and its value is a property of the
features as much as of the images. Inception's are made for photographs; for 8x8 digits the raw
pixels themselves do, or what a classifier of digits sees. Every extractor takes the 8-bit image
that a viewer gets, rounded and never truncated, so that a sample and a file of it give the same
figures. A figure is named after its features: "FD-pixels", never "FID".

Inside: `Extractor` and `Features`; `pixels` and `module`, two ways to get an extractor (two more
are in `classifier` and `inception`); `state_hash`; `quantise`.
"""

import copy
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.errors import NumericError, UsageError

INCEPTION = "inception"
"""The name of the one extractor whose figures are called FID, KID and IS."""

RESERVED = ("pixels", "classifier", INCEPTION)
"""The names of our own extractors: a `module` cannot take them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Features(NamedTuple):
    """What an extractor says of B images.

    Attributes:
        vectors: shape (B, D), float32.
        logits: shape (B, K), float32, before the softmax; None if the extractor has no classes.
    """

    vectors: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A way to turn 8-bit images into features, with all that must be said beside a figure.

    Attributes:
        name: of the features, in the names of figures; "inception" is reserved.
        weights: SHA-256 of the weights, "" if there are none.
        rule: what is done to an image before the network: channels, resize, range.
        call: from uint8 (B, C, H, W) to `Features`.
    """

    name: str
    weights: str
    rule: str
    call: Callable[[Tensor], Features]

    def __call__(self, pixels: Tensor) -> Features:
        """Return the features of images, uint8, shape (B, C, H, W)."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ValueError(
                f"{self.name}: images {pixels.dtype} {tuple(pixels.shape)}; expected uint8 "
                "(B, C, H, W)"
            )
        with torch.inference_mode():
            return self.call(pixels)

    def named(self, kind: str) -> str:
        """Return what a figure is called on these features.

        Args:
            kind: "FD", "KD", "score", "precision" or "recall".

        >>> Extractor("pixels", "", "", Features).named("FD")
        'FD-pixels'
        """
        if self.name == INCEPTION:
            return {"FD": "FID", "KD": "KID", "score": "IS"}.get(kind, kind)
        return f"{kind}-{self.name}"


def to_range(pixels: Tensor) -> Tensor:
    """Return 8-bit images in the range of the networks: u / 127.5 - 1.

    Args:
        pixels: uint8, shape (B, C, H, W).

    Returns:
        float32 in [-1, 1], same shape.
    """
    return pixels.float().div_(127.5).sub_(1)


def pixels() -> Extractor:
    """Return the extractor whose features are the pixels themselves, C * H * W of them.

    It knows nothing of what an image shows, and that is its strength on 8x8 digits: nothing was
    trained, so that nothing can be overfitted. A shift by one pixel is a large distance to it.
    """
    rule = "u / 127.5 - 1, flattened"
    return Extractor("pixels", "", rule, lambda u: Features(to_range(u).flatten(1).cpu()))


def module(name: str, net: nn.Module, rule: str = "", weights: str | None = None) -> Extractor:
    """Return an extractor made of any network.

    The network is copied as it is now and put into evaluation mode: training the original further
    changes no feature, and dropout or batch statistics play no part. It is called with float32
    images x = u / 127.5 - 1 in [-1, 1], shape (B, C, H, W), on the device of its first parameter,
    and returns features of shape (B, D), or a pair of features (B, D) and logits (B, K).

    Args:
        name: of the features, in the names of figures and files: letters, digits, `.`, `_`, `-`.
        net: the network. Its code is no part of the hash of its weights: two networks that share
            a name must differ in weights or `rule`.
        rule: what the network does to an image before it looks at it, such as a resize.
        weights: what identifies the weights; the SHA-256 of `net.state_dict()` if None.

    Raises:
        UsageError: the name is reserved or not fit for a file name.
        ValueError: (when called) the network returned something else.
        NumericError: (when called) features that are not finite.
    """
    if name in RESERVED:
        raise UsageError(f"extractor {name!r}: this name is one of ours; choose another")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"extractor {name!r}: allowed are 1 to 64 letters, digits, '.', '_' and '-', the "
            "first a letter or digit"
        )
    frozen = copy.deepcopy(net).eval().requires_grad_(False)
    state = frozen.state_dict()
    place = next((t.device for t in state.values()), torch.device("cpu"))

    def call(u: Tensor) -> Features:
        found = frozen(to_range(u.to(place)))
        vectors, logits = found if isinstance(found, tuple) else (found, None)
        return _checked(name, len(u), vectors, logits)

    said = "; ".join(part for part in ("u / 127.5 - 1", rule) if part)
    return Extractor(name, state_hash(state) if weights is None else weights, said, call)


def _checked(name: str, count: int, vectors: Any, logits: Any) -> Features:
    """Return what a network gave, float32 on the CPU, or refuse it."""
    for what, x in (("features", vectors), ("logits", logits)):
        if x is None and what == "logits":
            continue
        if not isinstance(x, Tensor) or x.ndim != 2 or len(x) != count:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name}: {what} {got} of {count} images; expected ({count}, D)")
        if not bool(x.isfinite().all()):
            raise NumericError(f"{name}: {what} that are not finite")
    return Features(vectors.float().cpu(), None if logits is None else logits.float().cpu())


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: names, types, shapes and bytes; "" if there are none.

    Args:
        state: name -> tensor of any shape, on any device; their order plays no part.
    """
    if not state:
        return ""
    digest = hashlib.sha256()
    for name in sorted(state):
        x = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def quantise(x: Tensor) -> Tensor:
    """Return the images as a viewer gets them: clipped, rounded to 8 bits, again in [-1, 1].

    Args:
        x: shape (N, C, H, W), meant for [-1, 1].

    Returns:
        shape of x, each value one of the 256 levels u / 127.5 - 1.
    """
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
