"""The noisy classifier: which class an image shows, at any noise level.

Its gradient steers a sampler (`guide.LogProb`). It is no judge of finished images: that one is
`metrics.classifier`, which has never seen noise.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions import Cond, classes
from fewstep.denoiser import Told
from fewstep.labels import LABELS, Label, angle
from fewstep.process import Process
from fewstep.shapes import Number


class NoisyClassifier(Told):
    """Make a classifier of noisy images of a network.

    Args:
        net: net(x, label) -> logits (B, K), with x of shape (B, *) and label of shape (B,), or
            (1,) where the whole batch has one noise level; such as `nets.EncoderUNet`.
        process: how the data became noise; that of the model it will guide.
        label: what the network is told about the noise level.

    Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, section 4
        (arXiv 2105.05233).
    """

    def __init__(self, net: nn.Module, process: Process, label: Label = angle) -> None:
        super().__init__()
        self.net, self.process, self.label = net, process, label

    def forward(self, x_t: Tensor, t: Number) -> Tensor:
        """Return logits.

        Args:
            x_t: noisy batch, shape (B, *), with alpha and sigma of the process at t.
            t: time in [0, 1], a float or shape (B,).

        Returns:
            shape (B, K), in the dtype of x_t.
        """
        return self.net(x_t, self.told(x_t, t)).to(x_t.dtype)

    def log_prob(self, x_t: Tensor, t: Number, cond: Cond) -> Tensor:
        """Return log p(cond | x_t), over all classes, as `guide.LogProb` wants it.

        Args:
            x_t: noisy batch, shape (B, *).
            t: time in [0, 1], a float or shape (B,).
            cond: class indices, shape (B,); -1 asks for none: 0, without a gradient.

        Returns:
            shape (B,), float32 or better.
        """
        logits, asked = self(x_t, t), classes(cond)
        if asked is None:
            return logits.sum(1) * 0
        known = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), 1)
        found = known.gather(1, asked.clamp_min(0)[:, None])[:, 0]
        return torch.where(asked < 0, 0 * found, found)

    def describe(self) -> dict[str, Any]:
        """Return process and label as JSON values."""
        names = {id(v): k for k, v in LABELS.items()}
        if id(self.label) not in names:
            raise ValueError(f"{self.label!r} is not in the closed table LABELS")
        return {"process": self.process.describe(), "label": names[id(self.label)]}
