"""Features: what a quality figure is measured on.

A Frechet distance compares two sets of feature vectors, and its value is a property of the
features as much as of the images. Inception's are made for photographs; for 8x8 digits the raw
pixels themselves do. A figure is named after its features: "FD-pixels", never "FID".
"""

from torch import Tensor


def quantise(x: Tensor) -> Tensor:
    """Return the images as a viewer gets them: clipped, rounded to 8 bits, again in [-1, 1].

    Args:
        x: shape (N, C, H, W), meant for [-1, 1].

    Returns:
        shape of x, each value one of the 256 levels u / 127.5 - 1.
    """
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def pixels(x: Tensor) -> Tensor:
    """Return each image as one vector of its 8-bit pixels in [-1, 1].

    Args:
        x: shape (N, C, H, W).

    Returns:
        shape (N, C H W), float64, on the CPU.
    """
    return quantise(x).flatten(1).cpu().double()
