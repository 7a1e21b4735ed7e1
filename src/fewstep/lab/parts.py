"""All sections of the laboratory, in the order of the talk."""

from collections.abc import Callable

from torch import Tensor

from fewstep.lab import chains, diffused, guided, learned, paths, strided
from fewstep.lab.part import Part
from fewstep.lab.sets import standard
from fewstep.lab.size import Size

STAGES = 7
"""Calls of `tell` by `parts`."""


def parts(x: Tensor, size: Size, seed: int, tell: Callable[[str], None]) -> list[Part]:
    """Train on points and measure every section.

    Args:
        x: points, shape (n, 2), float32, at least two of them different.
        size: how much work.
        seed: of training and of everything drawn, in 0..2^64-1.
        tell: called with what is done next.
    """
    x0 = standard(x)
    tell(f"training a small network on {len(x0)} points, {size.training} steps")
    net = learned.learn(x0, size.training, seed, diffused.BLUR)
    tell("the forward process")
    found = [diffused.forward(x0, size, seed)]
    tell("the score, exact and learned")
    found.append(diffused.score(x0, net, size, seed))
    tell("Langevin dynamics, without and with annealing")
    found.append(chains.measure(size, seed))
    tell("guidance")
    found.append(guided.measure(size, seed))
    tell("fewer steps: DDIM, DDPM, sigma-hat")
    found.append(strided.measure(net, size, seed))
    tell("solvers with five to ten evaluations")
    found.append(paths.measure(x0, size, seed))
    return found
