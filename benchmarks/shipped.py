"""The peer as it ships: in a process of its own, whose memory nobody has tuned.

`tune_cpu` holds for a whole process and cannot be taken back, so the peer that runs without it
needs another one. The two take turns all the same: one computes while the other waits.
"""

import multiprocessing
from functools import partial
from multiprocessing.connection import Connection

import torch

from benchmarks import pairs


class Shipped:
    """Run the peer's forward pass, eager and in float32, in its own process.

    Args:
        kind: name of the pair, a function of `pairs`.
        batch: images at once.
    """

    def __init__(self, kind: str, batch: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._end, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, kind, batch), daemon=True)
        self._process.start()
        far.close()
        self._end.recv()  # built

    def __call__(self) -> None:
        """Run once; what the pipe costs is far below a thousandth."""
        self._end.send(True)
        self._end.recv()

    def close(self) -> None:
        """End the process."""
        self._end.send(False)
        self._process.join()


def _serve(far: Connection, kind: str, batch: int) -> None:
    """Answer until told to end."""
    torch.set_num_threads(1)
    pair: pairs.Pair = getattr(pairs, kind)()
    x, label = pairs.noisy(batch)
    run = partial(pair.ask, pair.peer, x, label)
    far.send(True)
    while far.recv():
        with torch.no_grad():
            run()
        far.send(True)
