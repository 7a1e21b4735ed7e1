"""The moving average of the student inside the loss of consistency training.

It is another one than that of the trainer, with which we sample: its decay is a part of the
curriculum, and it begins anew with every run.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fewstep.denoiser import NetDenoiser


class Following:
    """Follow the student: theta- <- mu theta- + (1 - mu) theta after every optimizer step.

    It is brought up to date when it is asked for, once for a step, so that no trainer needs to
    know of it; a checkpoint stores it as it was last asked for.

    Args:
        mu: decay in [0, 1) as a function of the optimizer step.

    Source: Song et al., 2023, eq. 8 (arXiv 2303.01469).
    """

    def __init__(self, mu: Callable[[int], float]) -> None:
        self.mu = mu
        self.restore(None)

    def __repr__(self) -> str:
        return f"Following({getattr(self.mu, '__self__', self.mu)!r})"

    def __call__(self, denoiser: NetDenoiser, step: int) -> NetDenoiser:
        """Return the student with averaged weights.

        Args:
            denoiser: the student.
            step: number of the optimizer step, not falling.
        """
        net = _bare(denoiser.net)
        if self._net is None:
            self._net = copy.deepcopy(net).requires_grad_(False)
            if self._stored:
                self._net.load_state_dict(self._stored)
        if step != self._step:
            if self._step >= 0:
                self._move(net, self.mu(self._step))
            self._step = step
        self._net.train(net.training)
        twin = copy.copy(denoiser)
        twin._modules = {**denoiser._modules, "net": self._net}
        return twin

    @torch.no_grad()
    def _move(self, net: nn.Module, mu: float) -> None:
        assert self._net is not None
        own = [p.detach() for p in self._net.parameters()]
        lerp = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage] -- no public name
        lerp(own, [p.detach() for p in net.parameters()], 1 - mu)
        for mine, current in zip(self._net.buffers(), net.buffers(), strict=True):
            mine.copy_(current)

    def state(self) -> dict[str, Tensor]:
        """Return the averaged weights and the step of the last call, int64 (1,)."""
        if self._net is None:
            return {}
        return {**self._net.state_dict(), "step": torch.tensor([self._step])}

    def restore(self, stored: Mapping[str, Tensor] | None) -> None:
        """Take what `state` returned, or forget everything.

        Args:
            stored: its tensors, or None.

        Raises:
            ValueError: the step is missing.
        """
        self._net: nn.Module | None = None
        self._stored = dict(stored or {})
        self._step = -1
        if self._stored:
            if "step" not in self._stored:
                raise ValueError("the averaged target has no step")
            self._step = int(self._stored.pop("step"))


def _bare(net: nn.Module) -> nn.Module:
    """Return the network inside the wrapper of distributed training."""
    return net.module if isinstance(net, nn.parallel.DistributedDataParallel) else net
