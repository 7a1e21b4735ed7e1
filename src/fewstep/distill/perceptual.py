"""A distance as people see it, for consistency distillation as it was published.

LPIPS compares features of a VGG that was trained on ImageNet. Its authors' package (the extra
`lpips`) brings the weights of the comparison; those of the VGG are fetched by torchvision the
first time. Both have seen ImageNet, as has the network of FID: a student trained with it looks
better by FID than it is, so the other distances are the default.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.errors import ResourceError, UsageError


class LPIPS:
    """Take LPIPS on images enlarged to a size that the network knows.

    Args:
        size: height and width that images are resized to, in pixels; 224 in the paper.
        random: an untrained VGG, which needs no download and says nothing; for tests.

    Raises:
        UsageError: the package is not installed; when called, images of neither 1 nor 3 channels.
        ResourceError: the weights of the VGG cannot be fetched.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
        2018 (arXiv 1801.03924); as in Song et al., 2023, appendix C (arXiv 2303.01469).
    """

    def __init__(self, size: int = 224, random: bool = False) -> None:
        try:
            import lpips
        except ImportError as e:
            raise UsageError("LPIPS: pip install 'fewstep[lpips]', or take another metric") from e
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # of torchvision, about how it is asked
            try:
                net = lpips.LPIPS(net="vgg", pnet_rand=random, verbose=False)
            except OSError as e:
                raise ResourceError(
                    f"LPIPS: torchvision cannot fetch the weights of VGG ({e}); take another "
                    "metric"
                ) from e
        self._net: nn.Module = net.eval().requires_grad_(False)
        self.size = size

    def __repr__(self) -> str:
        return f"LPIPS({self.size})"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances of images in [-1, 1], both (B, 1 or 3, H, W), shape (B,)."""
        if a.ndim != 4 or a.shape[1] not in (1, 3):
            raise UsageError(
                f"LPIPS: images of shape {tuple(a.shape[1:])}: must be (1 or 3, H, W)"
            )
        self._net.to(a.device)
        with torch.autocast(a.device.type, enabled=False):
            return self._net(self._shown(a), self._shown(b)).flatten(1).mean(1)

    def _shown(self, x: Tensor) -> Tensor:
        """Return images as the network takes them: float32, three channels, large."""
        x = x.float().expand(-1, 3, -1, -1)
        if x.shape[2:] == (self.size, self.size):
            return x
        return F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
