"""Langevin dynamics: sampling with a score alone.

`langevin` walks chains along a score, with the Metropolis correction if the density is known too;
`minibatch_score`, `decaying` and `Moments` make stochastic gradient Langevin dynamics of it.
"""

from fewstep.langevin.chain import Moments, Move, Score, decaying, langevin, minibatch_score

__all__ = [
    "Moments",
    "Move",
    "Score",
    "decaying",
    "langevin",
    "minibatch_score",
]
