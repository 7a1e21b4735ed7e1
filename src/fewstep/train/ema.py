"""The moving average of the weights, with which we sample.

ema <- ema + (1 - d_n) (theta - ema) with d_n = min(decay, (1 + n) / (10 + n)), where n counts the
updates before this one. The warm-up matters: with d = 0.9999 from the first step, the
average of a short run is mostly its random start. Parameters are averaged, buffers copied (an
average of counters or tables means nothing).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class EMA:
    """Follow a network with the moving average of its parameters.

    Args:
        net: the network to follow; it is copied, and its tensors are remembered.
        decay: the limit of d_n, in [0, 1).

    Source: Kingma and Ba, 2015, section 7.2 (arXiv 1412.6980), for the averaging; the warm-up is
        that of TensorFlow's ExponentialMovingAverage(num_updates).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self._average = AveragedModel(net)
        self._average.eval()
        self._parameters = _tensors(self.net.parameters()), _tensors(net.parameters())
        self._buffers = _tensors(self.net.buffers()), _tensors(net.buffers())

    @property
    def net(self) -> nn.Module:
        """The averaged network, in evaluation mode."""
        return self._average.module

    @property
    def updates(self) -> int:
        """How many updates were made."""
        return int(self._average.n_averaged)  # a CPU tensor: no sync

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights of the network that is followed.

        AveragedModel.update_parameters does the same, but sorts all tensors by device and dtype
        in every step, which takes three times as long as the one kernel that does the work.
        """
        weight = 1 - decay_at(self.updates, self.decay)
        lerp = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage] -- no public name
        lerp(*self._parameters, weight)
        for average, current in zip(*self._buffers, strict=True):
            average.copy_(current)
        self._average.n_averaged += 1

    def restore(self, updates: int) -> None:
        """Say how many updates the weights now in `net` stand for."""
        self._average.n_averaged.fill_(updates)


def decay_at(updates: int, decay: float) -> float:
    """Return d_n, the weight of the old average after n = `updates` earlier updates; d_0 = 0.

    >>> decay_at(0, 0.999), decay_at(90, 0.999), decay_at(10**6, 0.999)
    (0.0, 0.91, 0.999)
    """
    return min(decay, (1 + updates) / (10 + updates)) if updates else 0.0


def _tensors(tensors: Iterator[Tensor]) -> list[Tensor]:
    return [t.detach() for t in tensors]
