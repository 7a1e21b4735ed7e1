"""The same dropout for two networks: a consistency function is compared with itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def shared(device: torch.device) -> Iterator[Callable[[], None]]:
    """Give a function that lets the masks drawn since the beginning be drawn again.

    Dropout layers know only the global generator of their device: it is that one which is set
    back, never just the CPU's. Its state lies in the memory of the host: no device is waited for.

    Args:
        device: where the networks compute.
    """
    if device.type == "cuda":
        state = torch.cuda.get_rng_state(device)
        yield lambda: torch.cuda.set_rng_state(state, device)
    elif device.type == "mps":
        state = torch.mps.get_rng_state()
        yield lambda: torch.mps.set_rng_state(state)
    else:
        state = torch.get_rng_state()
        yield lambda: torch.set_rng_state(state)
